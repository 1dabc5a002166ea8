"""The protocol `Device`: memory, launches of kernels in order, and recordings of launches.

There are two devices: `cuda_device.CudaDevice`, a stream on a GPU, and the shim of the tests, which runs the same
kernels on the host. Code above this module uses the protocol, so the tests reach all code without a GPU, except for
the calls of the driver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deblendrt.cuda.driver import dlpack


class DeviceError(RuntimeError):
    """The device cannot do what was asked. The message says what is missing and what to do about it."""


class OutOfDeviceMemory(DeviceError):
    """The device's memory, or the limit that the caller set, is exhausted."""


class DeviceArray:
    """A C-contiguous array in a device's memory.

    Parameters
    ----------
    pointer : int
        Address of the first element.
    shape : tuple of int
    dtype : dtype
    owner : object
        An object that is kept alive with the array: the allocation, or the array of another library.

    Attributes
    ----------
    pointer, shape, dtype, owner
    """

    __slots__ = ("dtype", "owner", "pointer", "shape")

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: DTypeLike, owner: Any) -> None:
        self.pointer, self.shape, self.dtype, self.owner = int(pointer), tuple(shape), np.dtype(dtype), owner

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: int) -> DeviceArray:
        """A view of another shape with as many elements. One length may be -1."""
        if -1 in shape:
            known = -math.prod(shape)
            shape = tuple(self.size // max(known, 1) if n == -1 else n for n in shape)
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return DeviceArray(self.pointer, shape, self.dtype, self.owner)

    def rows(self, start: int, stop: int) -> DeviceArray:
        """A view of rows start to stop along the first axis."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start}:{stop} of {self.shape[0]}")
        step = math.prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceArray(self.pointer + start * step, (stop - start, *self.shape[1:]), self.dtype, self.owner)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False),
                "strides": None, "stream": dlpack.interface_stream(self)}

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None,
                   dl_device: tuple[int, int] | None = None, copy: bool | None = None) -> Any:
        return dlpack.to_dlpack(self, stream, dl_device, copy)  # takers of all versions accept version 1

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.dlpack_device(self)


Argument = DeviceArray | None | int | float | np.generic
"""An argument of a kernel. An array passes its pointer, None a null pointer, int an int32, float a float32, and a NumPy
scalar its own type (np.int64, np.float64). The kernel's parameters must have exactly these types."""


class Device(Protocol):
    """Memory, and work that is done in order. One thread at a time may use it."""

    name: str

    def empty(self, shape: tuple[int, ...] | int, dtype: DTypeLike) -> DeviceArray:
        """New memory with arbitrary content. Raises OutOfDeviceMemory."""
        ...

    def upload(self, array: NDArray[Any], out: DeviceArray | None = None) -> DeviceArray:
        """Copy a host array (any strides) to a new array, or to `out` of equal shape and dtype."""
        ...

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """Copy to a new host array, after all work before it."""
        ...

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """Copy between arrays of the same number of bytes, on the device."""
        ...

    def clear(self, array: DeviceArray) -> None:
        """Set all bytes to zero."""
        ...

    def launch(self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Argument,
               shared: int = 0) -> None:
        """Queue a kernel.

        Parameters
        ----------
        kernel : str
            "file:function" is a function of ``file.cu``; "file" is the function of the file's name.
        grid, block : tuple of int
            Up to three numbers each. A grid with a zero launches nothing.
        *arguments : Argument
        shared : int [byte]
            Dynamic shared memory, which `SHARED_MEMORY` of kernel.cuh declares.
        """
        ...

    def record(self, work: Callable[[], None]) -> Recording:
        """Record the launches, copies and clears of `work` without running them.

        `work` must not allocate, upload or download.
        """
        ...

    def synchronize(self) -> None:
        """Wait for all work."""
        ...

    def limit(self, n_byte: float | None) -> AbstractContextManager[None]:
        """Limit all allocated bytes within a with statement; an allocation beyond raises OutOfDeviceMemory."""
        ...


class Recording(Protocol):
    """Recorded work: a CUDA graph."""

    def replay(self) -> None:
        """Queue the work once."""
        ...


def split_name(kernel: str) -> tuple[str, str]:
    """File (without .cu) and function of a kernel's name."""
    file, _, function = kernel.partition(":")
    return file, function or file


def blocks_for(n: int, block: int = 256) -> tuple[int]:
    """A grid that covers n threads."""
    return (-(-n // block),)
