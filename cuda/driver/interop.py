"""Arrays of CuPy, PyTorch, PyCUDA and Numba taken without a copy, by DLPack and ``__cuda_array_interface__``.

DLPack is preferred: the other library makes our stream wait for its stream. ``__cuda_array_interface__`` may name the
stream to wait for. If it does not (PyCUDA), the caller passes the stream to `open_device`, or synchronizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from deblendrt.cuda.driver.device import DeviceArray, DeviceError
from deblendrt.cuda.driver.dlpack import (
    CAPSULE,
    CPU,
    CUDA,
    DLPACK_KINDS,
    MANAGED,
    USED_CAPSULE,
    Deleter,
    Managed,
    get_pointer,
    set_name,
)


class Adopted:
    """Owner of an array of another library.

    Parameters
    ----------
    source : object
        The caller's array, kept alive.
    device : object
        The device that uses the array.
    managed : int
        Address of its DLManagedTensor, 0 if it has none.
    """

    def __init__(self, source: Any, device: Any, managed: int = 0) -> None:
        self.source, self.device, self._managed = source, device, managed

    def __del__(self) -> None:
        if self._managed:
            deleter = Managed.from_address(self._managed).deleter
            if deleter:
                Deleter(deleter)(self._managed)


def adopt_array(device: Any, array: Any, dtype: DTypeLike | None = None, name: str = "array") -> DeviceArray:
    """Make a `DeviceArray` of another library's array. It shares the array's memory and keeps it alive.

    Parameters
    ----------
    device : Device
        Its later work waits for the work of the array's library if the library names its stream.
    array : object
        C-contiguous array in this device's memory, with ``__dlpack__`` or ``__cuda_array_interface__``.
    dtype : dtype, optional
        The expected dtype.
    name : str
        For messages.

    Returns
    -------
    DeviceArray
        Raises TypeError, ValueError.
    """
    if isinstance(array, DeviceArray):
        adopted = array
    elif hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        adopted = _from_dlpack(device, array, name)
    elif hasattr(array, "__cuda_array_interface__"):
        adopted = _from_interface(device, array, name)
    else:
        raise TypeError(f"{name}: expected an array with __dlpack__ or __cuda_array_interface__, "
                        f"got {type(array).__name__}")
    if dtype is not None and adopted.dtype != np.dtype(dtype):
        raise ValueError(f"{name}: expected dtype {np.dtype(dtype)}, got {adopted.dtype}")
    return adopted


def is_on_device(array: Any) -> bool:
    """Whether an array says that it lies in a GPU's memory."""
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) in (CUDA, MANAGED)
    return hasattr(array, "__cuda_array_interface__")


def _from_dlpack(device: Any, array: Any, name: str) -> DeviceArray:
    expected = getattr(device, "dlpack_device", (CPU, 0))
    found = tuple(int(n) for n in array.__dlpack_device__())
    if found != expected and not (found[0] == MANAGED and expected[0] == CUDA):
        raise ValueError(f"{name}: expected an array on device {expected} (DLPack's type and number; 1: the host, 2: a "
                         f"GPU), got {found}")
    capsule = array.__dlpack__(stream=device.stream or 1) if expected[0] == CUDA else array.__dlpack__()
    address = get_pointer(id(capsule), CAPSULE)
    tensor = Managed.from_address(address).tensor
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    if tensor.lanes != 1 or tensor.code not in DLPACK_KINDS:
        raise ValueError(f"{name}: a DLPack dtype of code {tensor.code} and {tensor.lanes} lanes is not supported")
    kind = DLPACK_KINDS[tensor.code]
    dtype = np.dtype(np.bool_) if kind == "b" else np.dtype(f"{kind}{tensor.bits // 8}")
    _contiguous(shape, None if strides is None else tuple(n * dtype.itemsize for n in strides), dtype, name)
    pointer = (tensor.data or 0) + tensor.byte_offset
    set_name(id(capsule), USED_CAPSULE)  # from here on we must delete it
    return DeviceArray(pointer, shape, dtype, Adopted(array, device, address))


def _from_interface(device: Any, array: Any, name: str) -> DeviceArray:
    found = array.__cuda_array_interface__
    if found.get("mask") is not None:
        raise ValueError(f"{name}: masked arrays are not supported")
    dtype = np.dtype(found["typestr"])
    if not dtype.isnative or dtype.hasobject:
        raise ValueError(f"{name}: expected numbers in this machine's byte order, got {found['typestr']}")
    shape = tuple(int(n) for n in found["shape"])
    _contiguous(shape, found.get("strides"), dtype, name)
    stream = found.get("stream")
    if stream is not None and hasattr(device, "wait_for"):
        device.wait_for(int(stream))
    pointer = int(found["data"][0] or 0)
    _same_gpu(device, pointer, name)
    return DeviceArray(pointer, shape, dtype, Adopted(array, device))


def _contiguous(shape: tuple[int, ...], strides: Any, dtype: np.dtype[Any], name: str) -> None:
    """Raise ValueError unless strides [byte] belong to a C-contiguous array."""
    if strides is None or 0 in shape:
        return
    step = dtype.itemsize
    for n, stride in zip(reversed(shape), reversed(tuple(strides)), strict=True):
        if n != 1 and stride != step:
            raise ValueError(f"{name}: expected a C-contiguous array, got shape {shape} with strides {tuple(strides)} "
                             "bytes: pass a contiguous copy (ascontiguousarray, or .contiguous() in PyTorch)")
        step *= n


def _same_gpu(device: Any, pointer: int, name: str) -> None:
    if not pointer or not hasattr(device, "driver"):
        return
    attribute = device.driver.api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    try:
        ordinal = int(device.driver("cuPointerGetAttribute", attribute, pointer))
    except DeviceError as error:
        raise ValueError(f"{name}: its pointer is not in a GPU's memory ({error})") from None
    if ordinal != device.ordinal:
        raise ValueError(f"{name}: lies on GPU {ordinal}, the work runs on GPU {device.ordinal}")
