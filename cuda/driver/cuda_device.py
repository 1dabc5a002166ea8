"""A `Device` that is a stream on an NVIDIA GPU."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deblendrt.cuda.driver import kernel_compiler
from deblendrt.cuda.driver.device import Argument, DeviceArray, DeviceError, OutOfDeviceMemory, split_name
from deblendrt.cuda.driver.driver import MINIMUM_CAPABILITY, Driver
from deblendrt.cuda.driver.loaded_kernel import LoadedKernel, pack
from deblendrt.cuda.driver.staging import DISABLE_TIMING, Staging

SHORTAGE_HINT = "give less at once, set a smaller memory limit, or free what else is on the GPU (see nvidia-smi)"

Call = Callable[[Any], None]  # queues something on a stream


def open_device(ordinal: int = 0, stream: Any = None) -> CudaDevice:
    """Open a GPU, check it and compile its kernels. A DeviceError says what is missing and what to do about it.

    Parameters
    ----------
    ordinal : int
        Number of the GPU among the GPUs of CUDA_VISIBLE_DEVICES.
    stream : object, optional
        The caller's stream for all work: anything that `stream_handle` takes. By default the device has its own stream.

    Returns
    -------
    CudaDevice
    """
    device = CudaDevice(ordinal, stream)
    kernel_compiler.prepare(device.architecture)
    return device


def stream_handle(stream: Any) -> int:
    """Handle of a caller's stream: an integer, or an object of CuPy, PyTorch, PyCUDA, Numba or cuda.core.

    Raises TypeError for any other object.
    """
    if isinstance(stream, int | np.integer) and not isinstance(stream, bool):
        return int(stream)
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1])  # a property in the protocol's first draft
    for attribute in ("cuda_stream", "ptr", "handle"):  # PyTorch; CuPy; PyCUDA, Numba
        value = getattr(stream, attribute, None)
        if value is not None:
            return int(getattr(value, "value", value) or 0)
    raise TypeError(f"stream: expected an integer handle or a stream of CuPy, PyTorch, PyCUDA or cuda.core, "
                    f"got {type(stream).__name__}")


class CudaDevice:
    """A `Device` that is a stream on a GPU. Its memory comes from its own pool, which keeps freed memory for later.

    Parameters
    ----------
    ordinal, stream
        See `open_device`.

    Attributes
    ----------
    name : str
        The GPU's name.
    ordinal : int
    capability : tuple of int
        Compute capability.
    architecture : str
        The architecture of its kernels, as "sm_90".
    stream : int
        Handle of the stream.
    driver : Driver
    """

    def __init__(self, ordinal: int = 0, stream: Any = None) -> None:
        self._open = False
        self.driver = driver = Driver()
        self.ordinal = ordinal
        api = driver.api
        count = driver("cuDeviceGetCount")
        if not 0 <= ordinal < count:
            raise DeviceError(f"there is no GPU {ordinal}: the driver shows {count} (nvidia-smi -L lists all, "
                              "CUDA_VISIBLE_DEVICES chooses among them)")
        self._device = driver("cuDeviceGet", ordinal)
        self.name = driver("cuDeviceGetName", 128, self._device).split(b"\0")[0].decode()
        self.capability = (self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR"))
        if self.capability < MINIMUM_CAPABILITY:
            raise DeviceError(f"{self.name} has compute capability {'.'.join(map(str, self.capability))}; 8.0 (Ampere) "
                              'or newer is needed: choose another with CUDA_VISIBLE_DEVICES, or use device="cpu"')
        if not self._attribute("MEMORY_POOLS_SUPPORTED"):
            raise DeviceError(f"{self.name} has no memory pools here (a virtual GPU without unified memory?): enable "
                              'unified memory for it, or use device="cpu"')
        self.architecture = kernel_compiler.target(self.capability)
        self._shared_most = self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
        self._primary = driver("cuDevicePrimaryCtxRetain", self._device)
        self._caller_stream = stream  # kept alive
        self._context = self._context_of(stream)
        self._limit: float | None = None
        self._used = 0
        self._freed: deque[tuple[int, int]] = deque()  # memory of dropped arrays; the next allocation frees it
        self._dropped: deque[Any] = deque()  # graphs of dropped recordings
        self._recorded: list[Call] | None = None
        self._functions: dict[str, LoadedKernel] = {}
        self._modules: dict[str, Any] = {}
        self._staging: Staging | None = None
        self._stream: Any
        with self._current():
            non_blocking = 1
            self._own_stream = driver("cuStreamCreate", non_blocking) if stream is None else None
            self._stream = self._own_stream if stream is None else api.CUstream(stream_handle(stream))
            self._capture = driver("cuStreamCreate", non_blocking)  # the caller's stream may not be capturable
            self._event = driver("cuEventCreate", DISABLE_TIMING)
            self._pool = driver("cuMemPoolCreate", self._pool_properties())
            threshold = api.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
            driver("cuMemPoolSetAttribute", self._pool, threshold, api.cuuint64_t(2**64 - 1))
        self.stream = int(self._stream)
        self._open = True

    @property
    def used(self) -> int:
        """Bytes that are allocated now."""
        with self._current():
            self._free_dropped()
        return self._used

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """DLPack's type (2: CUDA) and number of the device."""
        return 2, self.ordinal

    def memory(self) -> tuple[int, int]:
        """Free and total memory of the GPU [byte]. Memory that the pool keeps is not free."""
        with self._current():
            free, total = self.driver("cuMemGetInfo")
        return free, total

    def empty(self, shape: tuple[int, ...] | int, dtype: DTypeLike) -> DeviceArray:
        """See `Device`."""
        self._not_while_recording("allocate")
        shape = (int(shape),) if isinstance(shape, int | np.integer) else tuple(int(n) for n in shape)
        n_byte = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self._current():
            self._free_dropped()
            if self._limit is not None and self._used + n_byte > self._limit:
                raise OutOfDeviceMemory(f"{n_byte} bytes asked for, {self._limit - self._used:.0f} left of the limit")
            pointer = self._allocate(max(n_byte, 1))  # never null: kernels take null pointers for None
        self._used += n_byte
        return DeviceArray(pointer, shape, dtype, _Block(self, pointer, n_byte))

    def upload(self, array: NDArray[Any], out: DeviceArray | None = None) -> DeviceArray:
        """See `Device`. When it returns, `array` may change, but the copy need not be finished."""
        self._not_while_recording("upload")
        array = np.asarray(array)
        if array.dtype.hasobject:
            raise TypeError(f"upload: expected numbers, got dtype {array.dtype}")
        array = np.asarray(array, array.dtype.newbyteorder("="), order="C")  # FITS files are big-endian
        if out is None:
            out = self.empty(array.shape, array.dtype)
        if out.shape != array.shape or out.dtype != array.dtype:
            raise ValueError(f"upload: expected {out.shape} {out.dtype}, got {array.shape} {array.dtype}")
        if array.size:
            with self._current():
                self._staged().upload(array.reshape(-1).view(np.uint8), out.pointer, self._stream)
        return out

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """See `Device`."""
        self._not_while_recording("download")
        out = np.empty(array.shape, array.dtype)
        with self._current():
            if out.size:
                self._staged().download(array.pointer, out.reshape(-1).view(np.uint8), self._stream)
            else:
                self.driver("cuStreamSynchronize", self._stream)
        return out

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """See `Device`."""
        if source.nbytes != target.nbytes:
            raise ValueError(f"copy: {source.nbytes} bytes to {target.nbytes}")
        if source.nbytes:
            self._queue(lambda stream: self.driver("cuMemcpyDtoDAsync", target.pointer, source.pointer, source.nbytes,
                                                   stream))

    def clear(self, array: DeviceArray) -> None:
        """See `Device`."""
        if array.nbytes:
            self._queue(lambda stream: self.driver("cuMemsetD8Async", array.pointer, 0, array.nbytes, stream))

    def launch(self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Argument,
               shared: int = 0) -> None:
        """See `Device`. Number and sizes of the arguments are checked against the kernel's parameters."""
        sizes = [[*map(int, n), 1, 1][:3] for n in (grid, block)]
        if 0 in sizes[0]:
            return
        function = self._function(kernel)
        content, given = pack(arguments)
        if function.sizes is not None and function.sizes != given:
            raise DeviceError(f"{kernel}: the kernel's parameters take {function.sizes} bytes, got {given}")
        if shared > function.shared:
            self._allow_shared(kernel, function, shared)
        values = (ctypes.c_ubyte * max(len(content), 1)).from_buffer(content or bytearray(1))
        start = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * max(len(given), 1))(*range(start, start + len(content), 8))
        numbers = (*sizes[0], *sizes[1], int(shared))
        what = f"{kernel}, grid {sizes[0]}, block {sizes[1]}, {shared} bytes of shared memory, {function.registers} " \
               "registers a thread"

        def call(stream: Any, keep: tuple[Any, ...] = (values, arguments)) -> None:  # `pointers` points into these
            self.driver.recent.append(kernel)
            self.driver("cuLaunchKernel", function.handle, *numbers, stream, ctypes.addressof(pointers), 0, what=what)

        self._queue(call)

    def record(self, work: Callable[[], None]) -> CudaRecording:
        """See `Device`.

        `work` runs before the capture begins. During a capture, kernels cannot be compiled or loaded, and an exception
        would leave the stream in the capture.
        """
        self._not_while_recording("record")
        calls: list[Call] = []
        self._recorded = calls
        try:
            work()
        finally:
            self._recorded = None
        driver = self.driver
        with self._current():
            driver("cuStreamBeginCapture", self._capture,
                   driver.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            try:
                for call in calls:
                    call(self._capture)
            except BaseException:
                driver.attempt("cuStreamEndCapture", self._capture)
                raise
            graph = driver("cuStreamEndCapture", self._capture)
            try:
                executable = driver("cuGraphInstantiate", graph, 0)
            finally:
                driver.attempt("cuGraphDestroy", graph)
        return CudaRecording(self, executable, calls)

    def synchronize(self) -> None:
        """See `Device`."""
        with self._current():
            self.driver("cuStreamSynchronize", self._stream)
            self._free_dropped()

    @contextlib.contextmanager
    def limit(self, n_byte: float | None) -> Iterator[None]:
        """See `Device`."""
        before, self._limit = self._limit, n_byte
        try:
            yield
        finally:
            self._limit = before

    def wait_for(self, stream: int) -> None:
        """Make later work of this device wait for the present work of another stream (a handle)."""
        self._order(self.driver.api.CUstream(stream), self._stream)

    def let_wait(self, stream: int) -> None:
        """Make later work of another stream (a handle) wait for the present work of this device."""
        self._order(self._stream, self.driver.api.CUstream(stream))

    def close(self) -> None:
        """Wait for all work and free all resources. Arrays and recordings must not be used any more."""
        if not self._open:
            return
        self._open = False
        driver = self.driver
        if driver.lost:
            return
        with self._current():
            driver("cuStreamSynchronize", self._stream)
            self._free_dropped()
            if self._staging is not None:
                self._staging.close()
            for module in self._modules.values():
                driver("cuModuleUnload", module)
            driver("cuEventDestroy", self._event)
            driver("cuMemPoolDestroy", self._pool)
            for stream in (self._capture, self._own_stream):
                if stream is not None:
                    driver("cuStreamDestroy", stream)
        driver("cuDevicePrimaryCtxRelease", self._device)

    def __del__(self) -> None:
        if getattr(self, "_open", False) and not sys.is_finalizing():
            with contextlib.suppress(DeviceError):  # no caller could handle it
                self.close()

    def _attribute(self, name: str) -> int:
        attribute = getattr(self.driver.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self.driver("cuDeviceGetAttribute", attribute, self._device))

    def _pool_properties(self) -> Any:
        api = self.driver.api
        properties, location = api.CUmemPoolProps(), api.CUmemLocation()
        location.type = api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = self.ordinal
        properties.allocType = api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location = location
        return properties

    def _context_of(self, stream: Any) -> Any:
        """Return the context of the caller's stream (PyCUDA makes a new context), else the GPU's primary context."""
        if stream is None:
            return self._primary
        handle = stream_handle(stream)
        if handle > 2:
            context = self.driver("cuStreamGetCtx", self.driver.api.CUstream(handle), what="the caller's stream")
        else:  # a default stream belongs to the current context
            context = self.driver("cuCtxGetCurrent")
            if not int(context):
                return self._primary
        with _Current(self.driver, context):
            device = int(self.driver("cuCtxGetDevice"))
        if device != int(self._device):
            raise DeviceError(f"the stream belongs to GPU {device}, not to GPU {self.ordinal}: pass ordinal={device}")
        return context

    def _current(self) -> _Current:
        return _Current(self.driver, self._context)

    def _staged(self) -> Staging:
        if self._staging is None:
            self._staging = Staging(self.driver)
        return self._staging

    def _allocate(self, n_byte: int) -> int:
        arguments = ("cuMemAllocFromPoolAsync", n_byte, self._pool, self._stream)
        with contextlib.suppress(OutOfDeviceMemory):
            return int(self.driver(*arguments))
        self.driver("cuStreamSynchronize", self._stream)  # memory freed in the stream's order may be in use
        self.driver("cuMemPoolTrimTo", self._pool, 0)
        try:
            return int(self.driver(*arguments))
        except OutOfDeviceMemory:
            free, total = self.driver("cuMemGetInfo")
            raise OutOfDeviceMemory(f"{self.name}: {n_byte} bytes asked for, {free} of {total} free, {self._used} in "
                                    f"use here: {SHORTAGE_HINT}") from None

    def _free_dropped(self) -> None:
        while self._freed:
            pointer, n_byte = self._freed.popleft()
            self._used -= n_byte
            self.driver("cuMemFreeAsync", pointer, self._stream)
        if self._dropped:
            self.driver("cuStreamSynchronize", self._stream)  # a graph may be running
        while self._dropped:
            self.driver("cuGraphExecDestroy", self._dropped.popleft())

    def _order(self, first: Any, then: Any) -> None:
        if int(first) == int(then):
            return
        self._not_while_recording("wait for other streams")
        with self._current():
            self.driver("cuEventRecord", self._event, first)
            self.driver("cuStreamWaitEvent", then, self._event, 0)

    def _function(self, kernel: str) -> LoadedKernel:
        if kernel not in self._functions:
            file, name = split_name(kernel)
            with self._current():
                if file not in self._modules:
                    content = kernel_compiler.cubin(file, self.architecture)
                    self._modules[file] = self._load(file, content)
                self._functions[kernel] = LoadedKernel(self.driver, self._modules[file], file, name)
        return self._functions[kernel]

    def _load(self, file: str, content: bytes) -> Any:
        try:
            return self.driver("cuModuleLoadData", content, what=f"{file}.cu, compiled for {self.architecture}")
        except DeviceError as error:
            tool = kernel_compiler.compiler()
            raise DeviceError(f"{error}. The driver is for CUDA {'.'.join(map(str, self.driver.version))}, the "
                              f"compiler is {tool.version if tool else 'missing'}: what a compiler of a later major "
                              "version made, a driver cannot load; update the driver") from None

    def _allow_shared(self, kernel: str, function: LoadedKernel, shared: int) -> None:
        most = self._shared_most - function.static
        if shared > most:
            raise DeviceError(f"{kernel}: {shared} bytes of shared memory asked for, a block can have {most} here")
        attribute = self.driver.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        with self._current():
            self.driver("cuFuncSetAttribute", function.handle, attribute, shared, what=kernel)
        function.shared = shared

    def _queue(self, call: Call) -> None:
        if self._recorded is not None:
            self._recorded.append(call)
        else:
            with self._current():
                call(self._stream)

    def _not_while_recording(self, what: str) -> None:
        if self._recorded is not None:
            raise DeviceError(f"work that is recorded must not {what}")


class CudaRecording:
    """See `Recording`. It keeps its arrays alive."""

    def __init__(self, device: CudaDevice, executable: Any, calls: list[Call]) -> None:
        self._device, self._executable, self._calls = device, executable, calls

    def replay(self) -> None:
        """See `Recording`."""
        device = self._device
        with device._current():
            device.driver.recent.append("a recording")
            device.driver("cuGraphLaunch", self._executable, device._stream)

    def __del__(self) -> None:
        self._device._dropped.append(self._executable)


class _Block:
    """An allocation."""

    __slots__ = ("device", "n_byte", "pointer")

    def __init__(self, device: CudaDevice, pointer: int, n_byte: int) -> None:
        self.device, self.pointer, self.n_byte = device, pointer, n_byte

    def __del__(self) -> None:
        self.device._freed.append((self.pointer, self.n_byte))


class _Current:
    """Makes a context current within a with statement, and the previous context after it."""

    __slots__ = ("context", "driver")

    def __init__(self, driver: Driver, context: Any) -> None:
        self.driver, self.context = driver, context

    def __enter__(self) -> None:
        self.driver("cuCtxPushCurrent", self.context)

    def __exit__(self, *_: object) -> None:
        self.driver.attempt("cuCtxPopCurrent")  # an error in the with statement is raised already
