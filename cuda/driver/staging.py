"""Copies between the host's arrays and the GPU's memory, through pinned memory.

A copy from ordinary memory would make the host wait for all work in the stream. Data therefore go into a ring of pinned
slots, from which copies are queued. A slot is used again after an event has shown that the GPU has copied it.
"""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.driver import Driver

N_SLOT = 8
SLOT_BYTES = 4 << 20
STAGING_ALIGNMENT = 256  # byte
DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING


class Staging:
    """The ring of slots. The GPU's context must be current in every call.

    Parameters
    ----------
    driver : Driver
    n_byte : int [byte]
        Size of a slot.
    """

    def __init__(self, driver: Driver, n_byte: int = SLOT_BYTES) -> None:
        self._driver, self._n_byte = driver, n_byte
        self._address = int(driver("cuMemHostAlloc", N_SLOT * n_byte, 0, what="pinned memory for transfers"))
        memory = (ctypes.c_ubyte * (N_SLOT * n_byte)).from_address(self._address)
        self._memory: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
        self._events = [driver("cuEventCreate", DISABLE_TIMING) for _ in range(N_SLOT)]
        self._slot, self._fill = 0, 0

    def upload(self, content: NDArray[np.uint8], pointer: int, stream: Any) -> None:
        """Queue a copy to the GPU. `content` is one-dimensional, and may change when this returns."""
        for start in range(0, content.size, self._n_byte):
            part = content[start : start + self._n_byte]
            offset = self._take(part.size)
            self._memory[offset : offset + part.size] = part
            self._driver("cuMemcpyHtoDAsync", pointer + start, self._address + offset, part.size, stream)
            self._driver("cuEventRecord", self._events[self._slot], stream)

    def download(self, pointer: int, out: NDArray[np.uint8], stream: Any) -> None:
        """Fill `out`, one-dimensional, from the GPU after all work before it."""
        under_way: deque[tuple[int, int, int]] = deque()
        for start in range(0, out.size, self._n_byte):
            if len(under_way) == N_SLOT - 1:  # the next slot may be the slot of the oldest part
                self._arrive(*under_way.popleft(), out)
            n = min(self._n_byte, out.size - start)
            offset = self._take(n)
            self._driver("cuMemcpyDtoHAsync", self._address + offset, pointer + start, n, stream)
            self._driver("cuEventRecord", self._events[self._slot], stream)
            under_way.append((self._slot, offset, start))
        for part in under_way:
            self._arrive(*part, out)

    def close(self) -> None:
        """Free the memory. The stream must be idle."""
        for event in self._events:
            self._driver("cuEventDestroy", event)
        self._driver("cuMemFreeHost", self._address)

    def _take(self, n: int) -> int:
        """Reserve n bytes that the GPU does not use, in the present slot or the next, and return their offset."""
        if self._fill + n > self._n_byte:
            self._slot, self._fill = (self._slot + 1) % N_SLOT, 0
            self._driver("cuEventSynchronize", self._events[self._slot])  # at once if it was never recorded
        offset = self._slot * self._n_byte + self._fill
        self._fill += -(-n // STAGING_ALIGNMENT) * STAGING_ALIGNMENT
        return offset

    def _arrive(self, slot: int, offset: int, start: int, out: NDArray[np.uint8]) -> None:
        self._driver("cuEventSynchronize", self._events[slot])
        part = out[start : start + self._n_byte]
        part[...] = self._memory[offset : offset + part.size]
