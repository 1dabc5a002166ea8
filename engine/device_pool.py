"""Streams of a device that deblend at the same time, each with buffers of its own.

While one stream computes, another is fed by its thread: copies hide behind kernels without further care.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from deblendrt.cuda.device import Device
from deblendrt.engine.bundle import Bundle
from deblendrt.engine.device_model import DeviceModel
from deblendrt.engine.device_work import DeviceWork
from deblendrt.engine.runtime_cuda import CudaRuntime
from deblendrt.engine.runtime_device import DeviceRuntime

STREAMS = 2


def device_runtime(name: str) -> Callable[[Bundle, Device], DeviceRuntime]:
    """What runs graphs on a device, by its name; ValueError for an unknown one."""
    if name == "kernels":
        return CudaRuntime
    if name == "onnxruntime":
        from deblendrt.engine.runtime_ort_cuda import OrtCudaRuntime

        return OrtCudaRuntime
    if name == "tensorrt":
        from deblendrt.engine.runtime_trt import TensorRTRuntime

        return TensorRTRuntime
    raise ValueError(f"runtime: expected 'kernels', 'onnxruntime' or 'tensorrt', got {name!r}")


class DevicePool:
    """What computes on a device for several threads.

    Parameters
    ----------
    works : iterable of DeviceWork
        One for each stream.
    name : str
        Of the device, as for `Deblender.load`.
    """

    def __init__(self, works: Iterable[DeviceWork], name: str = "cuda") -> None:
        self.name = name
        self._free: queue.SimpleQueue[DeviceWork] = queue.SimpleQueue()
        for work in works:
            self._free.put(work)
        self.n_stream = self._free.qsize()

    @classmethod
    def open(cls, bundle: Bundle, open_device: Callable[[], Device], n_stream: int = STREAMS, *, name: str = "cuda",
             runtime: Callable[[Bundle, Device], DeviceRuntime] = CudaRuntime) -> DevicePool:
        """Streams of one device.

        Parameters
        ----------
        bundle : Bundle
        open_device : callable
            Makes a `Device`: a stream.
        n_stream : int
        name : str
        runtime : callable
            What runs the bundle's graphs on a stream.
        """
        return cls([DeviceWork(DeviceModel(runtime(bundle, open_device()))) for _ in range(n_stream)], name)

    @contextmanager
    def stream(self, memory_limit: float | None = None) -> Iterator[DeviceWork]:
        """A stream for the calling thread alone; waits for one.

        Parameters
        ----------
        memory_limit : float, optional [byte]
            Of the device's memory, all streams together: OutOfDeviceMemory beyond it.
        """
        work = self._free.get()
        try:
            with work.device.limit(None if memory_limit is None else memory_limit / self.n_stream):
                yield work
        finally:
            self._free.put(work)
