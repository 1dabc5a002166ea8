"""Streams of a device, shared by the threads that deblend.

A thread takes a stream for one piece of work and gives it back. While one stream computes, data are copied to and from
the others. A piece of work goes to the stream that holds its images, if that stream is free.
"""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import Device, DeviceArray, OutOfDeviceMemory
from deblendrt.cuda.kernels.pixels.launch import crop
from deblendrt.engine.compute.cuda.buffers import Buffers
from deblendrt.engine.compute.cuda.layouts import arrays_of, make_layout
from deblendrt.engine.compute.cuda.model import DeviceModel
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.cuda_kernels import CudaRuntime
from deblendrt.engine.model.device_networks import DeviceRuntime
from deblendrt.engine.model.networks import Float32Array, GraphRuntime

STREAMS = 3  # one computes, one is fed, one is read
KEPT = 4  # sets of buffers that a stream keeps


def device_runtime(name: str) -> Callable[[Bundle, Device], DeviceRuntime]:
    """Return the class that runs graphs on a device, by its name; ValueError for an unknown name."""
    if name == "kernels":
        return CudaRuntime
    if name == "onnxruntime":
        from deblendrt.engine.model.onnxruntime_cuda import OrtCudaRuntime

        return OrtCudaRuntime
    if name == "tensorrt":
        from deblendrt.engine.model.tensorrt import TensorRTRuntime

        return TensorRTRuntime
    raise ValueError(f"runtime: expected 'kernels', 'onnxruntime' or 'tensorrt', got {name!r}")


class DeviceStream:
    """A stream of a device, with the model and sets of buffers. One thread at a time may use it.

    It is the `Problem.device` of its owner. Images stay on the device for further problems with the same images.

    Parameters
    ----------
    model : DeviceModel

    Attributes
    ----------
    model : DeviceModel
    device : Device
    runtime : DeviceRuntime
    """

    def __init__(self, model: DeviceModel) -> None:
        self.model, self.device, self.runtime = model, model.device, model.runtime
        self._buffers: collections.OrderedDict[Any, Buffers] = collections.OrderedDict()

    def holds(self, problem: Problem) -> bool:
        """Whether the problem's images are here already."""
        return any(buffers.holds(problem) for buffers in self._buffers.values())

    @contextmanager
    def loaded(self, problem: Problem) -> Iterator[Buffers]:
        """Lend the buffers that hold a problem."""
        yield self._load(problem)

    def model_image(self, problem: Problem, coefficients: NDArray[np.float32]) -> DeviceArray:
        """Draw the image of a problem's only scene on the device, without border, float32 (n_band, n_y, n_x)."""
        buffers = self._load(problem)
        buffers.put(coefficients, buffers.state.coefficients)
        buffers.draw(buffers.state)
        n_band, height, width = problem.data[0].shape
        half = problem.folded.half
        canvas = buffers.state.model.rows(0, problem.data[0].size).reshape(n_band, height, width)
        image = self.device.empty((n_band, height - 2 * half, width - 2 * half), np.float32)
        crop(self.device, canvas, half, image)
        return image

    def clear(self) -> None:
        """Give the memory of buffers and tables back."""
        self._buffers.clear()
        self.model.clear()

    def _load(self, problem: Problem) -> Buffers:
        for key, buffers in self._buffers.items():
            if buffers.holds(problem):
                self._buffers.move_to_end(key)
                buffers.refresh(problem)
                return buffers
        every = make_layout(problem)
        key = (*(array.shape for array in arrays_of(every).values()), every.n_pixel, every.window, every.margin)
        if key in self._buffers:
            self._buffers.move_to_end(key)
        else:
            while len(self._buffers) >= KEPT:
                self._buffers.popitem(last=False)
            self._buffers[key] = Buffers(self.model, every, self)
        self._buffers[key].load(problem, every)
        return self._buffers[key]


class DevicePool:
    """The streams of a device. Thread-safe.

    Parameters
    ----------
    streams : iterable of DeviceStream
    name : str
        Name of the device, as for `Deblender.load`.
    """

    def __init__(self, streams: Iterable[DeviceStream], name: str = "cuda") -> None:
        self.name = name
        self._free = list(streams)
        self._given_back = threading.Condition()
        self.n_stream = len(self._free)

    @classmethod
    def open(cls, bundle: Bundle, open_device: Callable[[], Device], n_stream: int = STREAMS, *, name: str = "cuda",
             runtime: Callable[[Bundle, Device], DeviceRuntime] = CudaRuntime) -> DevicePool:
        """Make the streams of one device.

        Parameters
        ----------
        bundle : Bundle
        open_device : callable
            Makes a `Device`, which is one stream.
        n_stream : int
        name : str
        runtime : callable
            Makes the networks of a bundle on a stream.
        """
        return cls([DeviceStream(DeviceModel(runtime(bundle, open_device()))) for _ in range(n_stream)], name)

    @contextmanager
    def stream(self, memory_limit: float | None = None, problem: Problem | None = None) -> Iterator[DeviceStream]:
        """Lend a stream to the calling thread; wait until a stream is free.

        Parameters
        ----------
        memory_limit : float, optional [byte]
            Limit of the device's memory, all streams together. A stream that needs more raises OutOfDeviceMemory and
            gives its buffers back.
        problem : Problem, optional
            The problem that the stream is for; a stream that holds its images is preferred.
        """
        with self._given_back:
            self._given_back.wait_for(lambda: self._free)
            holding = [k for k, stream in enumerate(self._free) if problem is not None and stream.holds(problem)]
            stream = self._free.pop(holding[0] if holding else 0)
        try:
            with stream.device.limit(None if memory_limit is None else memory_limit / self.n_stream):
                yield stream
        except OutOfDeviceMemory:
            stream.clear()
            raise
        finally:
            with self._given_back:
                self._free.append(stream)
                self._given_back.notify()

    def share(self, memory_limit: float | None = None) -> SharedDevice:
        """Return a `Problem.device` for problems that several threads solve.

        Parameters
        ----------
        memory_limit : float, optional [byte]
        """
        return SharedDevice(self, memory_limit)

    def clear(self) -> None:
        """Give back the buffers of idle streams."""
        with self._given_back:
            for stream in self._free:
                stream.clear()


class SharedDevice:
    """`Problem.device` of problems that several threads solve: each loading takes a stream of a pool.

    Parameters
    ----------
    pool : DevicePool
    memory_limit : float, optional [byte]

    Attributes
    ----------
    runtime : Runtime
        Networks on the device, for arrays on the host.
    """

    def __init__(self, pool: DevicePool, memory_limit: float | None = None) -> None:
        self._stream = functools.partial(pool.stream, memory_limit)
        self.runtime = SharedRuntime(self._stream)

    @contextmanager
    def loaded(self, problem: Problem) -> Iterator[Buffers]:
        """Lend buffers that hold a problem, on a stream that is taken until the context ends."""
        with self._stream(problem) as stream, stream.loaded(problem) as buffers:
            yield buffers


class SharedRuntime(GraphRuntime):
    """The `Runtime` of a pool: each run takes a stream."""

    def __init__(self, stream: Callable[[], AbstractContextManager[DeviceStream]]) -> None:
        self._stream = stream

    def run(self, name: str, *inputs: NDArray[Any]) -> list[Float32Array]:
        """See `GraphRuntime`."""
        with self._stream() as stream:
            return stream.runtime.run(name, *inputs)
