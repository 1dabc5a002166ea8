"""Calls of the CUDA driver, each checked for errors."""

from __future__ import annotations

import collections
from typing import Any

from deblendrt.cuda.driver.device import DeviceError, OutOfDeviceMemory

MINIMUM_CAPABILITY = (8, 0)
GPU_INSTALL = 'pip install "deblendrt[gpu]"'
OUT_OF_MEMORY = 2
# Errors after which the driver answers every call in this process with the same error: 214 ECC, 700 illegal address,
# 702 timeout, 710 assert, 714-719 faults of a kernel, 721 a context shared with a process that failed.
LOST = frozenset({214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721})


class Driver:
    """Functions of libcuda by name. Raises DeviceError if there is no driver or no GPU.

    Attributes
    ----------
    version : tuple of int
        CUDA version that the driver supports, as (13, 0).
    api : module
        cuda.bindings.driver, for its types and constants.
    lost : str or None
        Reason why this process cannot use the GPU any more.
    recent : deque of str
        Kernels that were launched last. One of them caused a fault.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise DeviceError(f"the package cuda-bindings is not installed ({error}): {GPU_INSTALL}") from None
        self.api: Any = driver
        self.lost: str | None = None
        self.recent: collections.deque[str] = collections.deque(maxlen=6)
        try:
            code = int(driver.cuInit(0)[0])
        except (RuntimeError, OSError) as error:  # the binding does not find libcuda
            raise DeviceError(f"no NVIDIA driver on this machine ({_one_line(error)}): install driver 580 or newer "
                              "(https://www.nvidia.com/drivers); in a container, start it with --gpus all; check with "
                              "nvidia-smi") from None
        if code:
            raise DeviceError(f"the NVIDIA driver does not start: {self.describe(code)}; check with nvidia-smi -L, and "
                              "that CUDA_VISIBLE_DEVICES, if set, names a GPU")
        version = self("cuDriverGetVersion")
        self.version = (version // 1000, version % 1000 // 10)

    def __call__(self, name: str, *arguments: Any, what: str = "") -> Any:
        """Call a function.

        Parameters
        ----------
        name : str
        *arguments
        what : str
            The action, for an error's message.

        Returns
        -------
        None, one value, or a tuple of values
            The function's results, without its status. Raises OutOfDeviceMemory, DeviceError.
        """
        if self.lost:
            raise DeviceError(self.lost)
        try:
            code, *values = getattr(self.api, name)(*arguments)
        except RuntimeError as error:  # the binding does not find the function in libcuda
            raise DeviceError(f"{name}: {_one_line(error)}; update the NVIDIA driver to 580 or newer") from None
        if code != 0:
            self._fail(int(code), name, what)
        return None if not values else values[0] if len(values) == 1 else tuple(values)

    def attempt(self, name: str, *arguments: Any) -> int:
        """Call a function whose failure does not matter, as in cleaning up after a failure. Returns its status."""
        return int(getattr(self.api, name)(*arguments)[0])

    def describe(self, code: int) -> str:
        """The driver's name and text of a status."""
        texts = []
        for function in (self.api.cuGetErrorName, self.api.cuGetErrorString):
            try:
                status, text = function(self.api.CUresult(code))
            except ValueError:  # a status newer than the binding
                continue
            if int(status) == 0 and text:
                texts.append(text.decode() if isinstance(text, bytes) else str(text))
        return " ".join([f"error {code}", *[f"({text})" for text in texts]])

    def _fail(self, code: int, name: str, what: str) -> None:
        said = f"{what or name}: {self.describe(code)}"
        if code == OUT_OF_MEMORY:
            raise OutOfDeviceMemory(said)
        if code in LOST:
            recent = ", ".join(dict.fromkeys(self.recent)) or "none"
            self.lost = (f"{said}. The GPU's context is lost, and with it all memory on the GPU: nothing more can run "
                         f"in this process, start a new one. Kernels launched last: {recent}. To find the fault, run "
                         "under: compute-sanitizer python ...")
            raise DeviceError(self.lost)
        raise DeviceError(said)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
