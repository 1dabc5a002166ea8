"""Loaded kernels of a GPU, and the bytes of their arguments."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from deblendrt.cuda.driver.device import Argument, DeviceArray, DeviceError
from deblendrt.cuda.driver.driver import Driver

SHARED_BYTES = 48 * 1024  # byte: shared memory of a block, static and dynamic, by default


def pack(arguments: tuple[Argument, ...]) -> tuple[bytearray, list[int]]:
    """Return a kernel's arguments as bytes, each at a multiple of eight, and their sizes; see `Argument`."""
    content, sizes = bytearray(8 * len(arguments)), []
    for i, argument in enumerate(arguments):
        if argument is None or isinstance(argument, DeviceArray):
            value = struct.pack("<Q", 0 if argument is None else argument.pointer)
        elif isinstance(argument, bool | np.bool_):
            raise DeviceError("pass int(flag), not bool")
        elif isinstance(argument, np.generic):  # before float, of which np.float64 is a subclass
            value = argument.tobytes()
        elif isinstance(argument, int):
            if not -(2**31) <= argument < 2**31:
                raise DeviceError(f"{argument} is no int32: pass np.int64({argument})")
            value = struct.pack("<i", argument)
        elif isinstance(argument, float):
            value = np.float32(argument).tobytes()
        else:
            raise DeviceError(f"a kernel cannot take a {type(argument).__name__}")
        if len(value) > 8:
            raise DeviceError(f"a kernel cannot take a {type(argument).__name__}")
        content[8 * i : 8 * i + len(value)] = value
        sizes.append(len(value))
    return content, sizes


class LoadedKernel:
    """A loaded kernel, with the sizes of its parameters and the shared memory that it may use."""

    def __init__(self, driver: Driver, module: Any, file: str, name: str) -> None:
        missing = f'{file}.cu has no extern "C" __global__ void {name}'
        self.handle = driver("cuModuleGetFunction", module, name.encode(), what=missing)
        attribute = driver.api.CUfunction_attribute
        self.registers = driver("cuFuncGetAttribute", attribute.CU_FUNC_ATTRIBUTE_NUM_REGS, self.handle)
        self.static = driver("cuFuncGetAttribute", attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, self.handle)
        self.shared = SHARED_BYTES - self.static
        self.sizes = self._parameter_sizes(driver)

    def _parameter_sizes(self, driver: Driver) -> list[int] | None:
        sizes: list[int] = []
        while True:
            try:
                code, *values = driver.api.cuFuncGetParamInfo(self.handle, len(sizes))
            except (AttributeError, RuntimeError):  # drivers and bindings before CUDA 12.4
                return None
            if int(code):
                return sizes
            sizes.append(int(values[1]))
