"""A `Device` that is the host: the kernels of cuda/*.cu compiled with g++ through `shim.h`."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deblendrt.cuda.driver.device import Argument, DeviceArray, DeviceError, OutOfDeviceMemory, split_name
from deblendrt.cuda.driver.kernel_compiler import HEADERS, SOURCE, kernel_path

HERE = Path(__file__).parent
FLAGS = {
    "fibers": ["-O2", "-march=native", "-ffp-contract=off"],
    "address": ["-O1", "-g", "-DSHIM_THREADS", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g", "-DSHIM_THREADS", "-fsanitize=thread"],
}


def missing() -> str | None:
    """Why kernels cannot be compiled here, or None if they can."""
    return None if shutil.which("g++") else "g++ is not installed (Debian: apt-get install g++)"


@functools.cache
def build(file: str, mode: str = "fibers", folder: Path = SOURCE) -> Path:
    """Compile a kernel file; kept by its content.

    Parameters
    ----------
    file : str
        Without .cu.
    mode : {"fibers", "address", "thread"}
    folder : Path
        Folder of the file.

    Returns
    -------
    Path
        Shared library.
    """
    path = kernel_path(file, folder)
    source = path.read_text()
    headers = [*sorted(HEADERS.glob("*.cuh")), HERE / "shim.h"]
    content = "\0".join([source, *(h.read_text() for h in headers), *FLAGS[mode]])
    digest = hashlib.sha256(content.encode()).hexdigest()[:20]
    cache = Path(os.environ.get("DEBLENDRT_SHIM_CACHE", Path(tempfile.gettempdir()) / f"deblendrt-shim-{os.getuid()}"))
    library = cache / f"{file}-{mode}-{digest}.so"
    if library.exists():
        return library
    cache.mkdir(parents=True, exist_ok=True)
    names = re.findall(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(', source)
    entries = "".join(f"""
extern "C" void run_{n}(const unsigned* g, const unsigned* b, size_t s, void** a, int n) {{
    shim::run({n}, g, b, s, a, n); }}
extern "C" int signature_{n}(int* out, int room) {{ return shim::signature({n}, out, room); }}""" for n in names)
    entries += '\nextern "C" void shim_reverse(int on) { shim::reverse = on; }\n'
    with tempfile.TemporaryDirectory() as temporary:
        wrapped = Path(temporary) / f"{file}.cpp"
        wrapped.write_text(f'#define DEBLENDRT_SHIM\n#line 1 "{path}"\n{source}\n{entries}')
        built = Path(temporary) / "built.so"
        command = ["g++", "-std=c++20", "-shared", "-fPIC", "-w", "-pthread", *FLAGS[mode], f"-I{HEADERS}", f"-I{HERE}",
                   str(wrapped), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise DeviceError(f"{file}.cu does not compile:\n{done.stderr}")
        partial = library.with_suffix(f".{os.getpid()}")
        shutil.copy(built, partial)
        partial.replace(library)
    return library


class ShimRecording:
    """Recorded calls."""

    def __init__(self, calls: list[Callable[[], None]]) -> None:
        self.calls = calls

    def replay(self) -> None:
        """See `Recording`."""
        for call in self.calls:
            call()


class ShimDevice:
    """See `Device`.

    Parameters
    ----------
    mode : {"fibers", "address", "thread"}, optional
        By default what DEBLENDRT_SHIM_MODE says, else "fibers"; the others need the sanitizer's library: `sanitize.py`.
    reverse : bool
        Run blocks in reverse order.
    folder : Path
        Folder of the kernels.

    Attributes
    ----------
    used : int [byte]
        Allocated now.
    launched : list of str
        Kernels, in order.
    """

    def __init__(self, mode: str | None = None, *, reverse: bool = False, folder: Path = SOURCE) -> None:
        self.name, self.mode, self.reverse = "shim", mode or os.environ.get("DEBLENDRT_SHIM_MODE", "fibers"), reverse
        self.folder = folder
        self.used = 0
        self.launched: list[str] = []
        self._limit: float | None = None
        self._recorded: list[Callable[[], None]] | None = None
        self._libraries: dict[str, ctypes.CDLL] = {}

    def empty(self, shape: tuple[int, ...] | int, dtype: DTypeLike) -> DeviceArray:
        """See `Device`. All bits set: floats are NaN, integers -1."""
        self._not_while_recording("allocate")
        shape = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
        n_byte = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if self._limit is not None and self.used + n_byte > self._limit:
            raise OutOfDeviceMemory(f"{n_byte} bytes asked for, {self._limit - self.used:.0f} left")
        block = _Block(self, n_byte)
        return DeviceArray(block.bytes.ctypes.data, shape, dtype, block)

    def upload(self, array: NDArray[Any], out: DeviceArray | None = None) -> DeviceArray:
        """See `Device`."""
        self._not_while_recording("upload")
        array = np.asarray(array)
        if out is None:
            out = self.empty(array.shape, array.dtype)
        if out.shape != array.shape or out.dtype != array.dtype:
            raise ValueError(f"upload: expected {out.shape} {out.dtype}, got {array.shape} {array.dtype}")
        view(out)[...] = array
        return out

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """See `Device`."""
        self._not_while_recording("download")
        return view(array).copy()

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """See `Device`."""
        if source.nbytes != target.nbytes:
            raise ValueError(f"copy: {source.nbytes} bytes to {target.nbytes}")
        self._queue(lambda: ctypes.memmove(target.pointer, source.pointer, source.nbytes))

    def clear(self, array: DeviceArray) -> None:
        """See `Device`."""
        self._queue(lambda: ctypes.memset(array.pointer, 0, array.nbytes))

    def launch(self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Argument,
               shared: int = 0) -> None:
        """See `Device`. Checks the types of the arguments against the kernel's parameters."""
        file, function = split_name(kernel)
        if file not in self._libraries:
            self._libraries[file] = ctypes.CDLL(str(build(file, self.mode, self.folder)))
        library = self._libraries[file]
        try:
            run = getattr(library, f"run_{function}")
        except AttributeError:
            raise DeviceError(f'{file}.cu has no extern "C" __global__ void {function}') from None
        sizes = [[*map(int, n), 1, 1][:3] for n in (grid, block)]
        if 0 in sizes[0]:
            return
        packed, kinds = _pack(arguments)
        found = (ctypes.c_int * 64)()
        n = getattr(library, f"signature_{function}")(found, 64)
        expected = [(chr(k // 256), k % 256) for k in found[:n]]
        if expected != kinds:
            raise DeviceError(f"{kernel}: the kernel takes {expected}, got {kinds}")
        pointers = (ctypes.c_void_p * max(len(packed), 1))(*(ctypes.addressof(p) for p in packed))

        def call(keep: tuple[Any, ...] = (packed, arguments)) -> None:  # `pointers` points into these
            self.launched.append(kernel)
            library.shim_reverse(int(self.reverse))
            run((ctypes.c_uint * 3)(*sizes[0]), (ctypes.c_uint * 3)(*sizes[1]), ctypes.c_size_t(shared), pointers,
                len(packed))

        self._queue(call)

    def record(self, work: Callable[[], None]) -> ShimRecording:
        """See `Device`."""
        self._not_while_recording("record")
        self._recorded = []
        try:
            work()
            return ShimRecording(self._recorded)
        finally:
            self._recorded = None

    def synchronize(self) -> None:
        """See `Device`."""

    @contextlib.contextmanager
    def limit(self, n_byte: float | None) -> Iterator[None]:
        """See `Device`."""
        before, self._limit = self._limit, n_byte
        try:
            yield
        finally:
            self._limit = before

    def _queue(self, call: Callable[[], Any]) -> None:
        if self._recorded is not None:
            self._recorded.append(call)
        else:
            call()

    def _not_while_recording(self, what: str) -> None:
        if self._recorded is not None:
            raise DeviceError(f"work that is recorded must not {what}")


class _Block:
    """An allocation; counts itself."""

    def __init__(self, device: ShimDevice, n_byte: int) -> None:
        self.device = device
        self.bytes = np.full(n_byte, 0xFF, np.uint8)  # exactly as long: a sanitizer sees who goes beyond
        device.used += n_byte

    def __del__(self) -> None:
        self.device.used -= self.bytes.nbytes


def view(array: DeviceArray) -> NDArray[Any]:
    """The memory of a shim's array as a NumPy array."""
    if array.size == 0:
        return np.empty(array.shape, array.dtype)
    raw = (ctypes.c_char * array.nbytes).from_address(array.pointer)
    return np.frombuffer(raw, array.dtype).reshape(array.shape)


def _pack(arguments: tuple[Argument, ...]) -> tuple[list[Any], list[tuple[str, int]]]:
    packed: list[Any] = []
    kinds = []
    for a in arguments:
        if a is None or isinstance(a, DeviceArray):
            packed.append(ctypes.c_void_p(0 if a is None else a.pointer))
            kinds.append(("p", 8))
        elif isinstance(a, bool):
            raise DeviceError("pass int(flag), not bool")
        else:
            value = np.int32(a) if isinstance(a, int) else np.float32(a) if type(a) is float else a
            packed.append(ctypes.create_string_buffer(value.tobytes(), value.nbytes))
            kinds.append(("f" if value.dtype.kind == "f" else "i", value.nbytes))
    return packed, kinds
