"""Streams of a device, shared by the threads that deblend.

A thread takes a stream for one piece of work and gives it back: while one stream computes, another is fed, copies hide
behind kernels, and as many threads as there are cores do what is left to the host. A piece of work goes to the stream
that holds its images, if that is free.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import Device, OutOfDeviceMemory
from deblendrt.engine.compute.cuda.model import DeviceModel
from deblendrt.engine.compute.cuda.work import DeviceWork
from deblendrt.engine.compute.problem import Canvases, DoubleArray, FloatArray, Problem, State
from deblendrt.engine.measure.light_shares import Sharing
from deblendrt.engine.measure.systematic_error import Misfit
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.cuda_kernels import CudaRuntime
from deblendrt.engine.model.device_networks import DeviceRuntime
from deblendrt.engine.model.networks import Float32Array, GraphRuntime
from deblendrt.engine.solve.descent import Solution

STREAMS = 3  # one computes, one is fed, one is read


def device_runtime(name: str) -> Callable[[Bundle, Device], DeviceRuntime]:
    """What runs graphs on a device, by its name; ValueError for an unknown one."""
    if name == "kernels":
        return CudaRuntime
    if name == "onnxruntime":
        from deblendrt.engine.model.onnxruntime_cuda import OrtCudaRuntime

        return OrtCudaRuntime
    if name == "tensorrt":
        from deblendrt.engine.model.tensorrt import TensorRTRuntime

        return TensorRTRuntime
    raise ValueError(f"runtime: expected 'kernels', 'onnxruntime' or 'tensorrt', got {name!r}")


class DevicePool:
    """The streams of a device. Thread-safe.

    Parameters
    ----------
    works : iterable of DeviceWork
        One for each stream.
    name : str
        Of the device, as for `Deblender.load`.
    """

    def __init__(self, works: Iterable[DeviceWork], name: str = "cuda") -> None:
        self.name = name
        self._free = list(works)
        self._given_back = threading.Condition()
        self.n_stream = len(self._free)

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
    def stream(self, memory_limit: float | None = None, problem: Problem | None = None) -> Iterator[DeviceWork]:
        """A stream for the calling thread alone; waits for one.

        Parameters
        ----------
        memory_limit : float, optional [byte]
            Of the device's memory, all streams together: OutOfDeviceMemory beyond it, and the stream's buffers are
            given back.
        problem : Problem, optional
            What it is for.
        """
        with self._given_back:
            self._given_back.wait_for(lambda: self._free)
            holding = [k for k, work in enumerate(self._free) if problem is not None and work.holds(problem)]
            work = self._free.pop(holding[0] if holding else 0)
        try:
            with work.device.limit(None if memory_limit is None else memory_limit / self.n_stream):
                yield work
        except OutOfDeviceMemory:
            work.clear()
            raise
        finally:
            with self._given_back:
                self._free.append(work)
                self._given_back.notify()

    def share(self, memory_limit: float | None = None) -> SharedDevice:
        """The `Problem.device` of problems that several threads solve.

        Parameters
        ----------
        memory_limit : float, optional [byte]
        """
        return SharedDevice(self, memory_limit)

    def clear(self) -> None:
        """Give back the buffers of streams that nobody uses."""
        with self._given_back:
            for work in self._free:
                work.clear()


class SharedDevice:
    """`Problem.device` of problems that several threads solve: each call takes a stream of a pool.

    Parameters
    ----------
    pool : DevicePool
    memory_limit : float, optional [byte]

    Attributes
    ----------
    runtime : Runtime
        For the host's arrays.
    """

    def __init__(self, pool: DevicePool, memory_limit: float | None = None) -> None:
        self._stream = functools.partial(pool.stream, memory_limit)
        self.runtime = SharedRuntime(self._stream)

    def solve(self, problem: Problem, latent: DoubleArray, floor: DoubleArray, name: str, n_iteration: int) -> Solution:
        """See `solver.solve`."""
        with self._stream(problem) as work:  # whose own calls must not wait for a stream
            alone = dataclasses.replace(problem, device=work, runtime=work.runtime)
            solution = work.solve(alone, latent, floor, name, n_iteration)
        problem = dataclasses.replace(solution.problem, device=self, runtime=self.runtime)
        return dataclasses.replace(solution, problem=problem)

    def render(self, problem: Problem, coefficients: FloatArray) -> Canvases:
        """See `objective.render`."""
        with self._stream(problem) as work:
            return work.render(problem, coefficients)

    def project(self, problem: Problem, image: Canvases) -> FloatArray:
        """See `objective.project`."""
        with self._stream(problem) as work:
            return work.project(problem, image)

    def linear_fluxes(self, problem: Problem, unit: FloatArray, flux: DoubleArray, n_sweep: int,
                      error: float | None) -> tuple[DoubleArray, DoubleArray]:
        """See `photometry.linear_fluxes`."""
        with self._stream(problem) as work:
            return work.linear_fluxes(problem, unit, flux, n_sweep, error)

    def likelihood_precisions(self, problem: Problem, weights: Canvases,
                              unit: FloatArray) -> list[tuple[NDArray[np.int64], DoubleArray]]:
        """See `uncertainty.likelihood_precisions`."""
        with self._stream(problem) as work:
            return list(work.likelihood_precisions(problem, weights, unit))

    def light_area(self, problem: Problem, coefficients: FloatArray) -> DoubleArray:
        """See `start.light_area`."""
        with self._stream(problem) as work:
            return work.light_area(problem, coefficients)

    def share(self, problem: Problem, coefficients: FloatArray, flux: DoubleArray) -> Sharing:
        """See `sharing.share`."""
        with self._stream(problem) as work:
            return work.share(problem, coefficients, flux)

    def misfit(self, problem: Problem, state: State) -> Misfit:
        """See `systematics.misfit`."""
        with self._stream(problem) as work:
            return work.misfit(problem, state)

    def core_statistics(self, problem: Problem,
                        state: State) -> tuple[DoubleArray, NDArray[np.int64], NDArray[np.int64]]:
        """See `quality.core_statistics`."""
        with self._stream(problem) as work:
            return work.core_statistics(problem, state)


class SharedRuntime(GraphRuntime):
    """The `Runtime` on any stream of a pool."""

    def __init__(self, stream: Callable[[], AbstractContextManager[DeviceWork]]) -> None:
        self._stream = stream

    def run(self, name: str, *inputs: NDArray[Any]) -> list[Float32Array]:
        """See `GraphRuntime`."""
        with self._stream() as work:
            return work.runtime.run(name, *inputs)
