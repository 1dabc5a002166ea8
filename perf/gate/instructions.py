"""The number of instructions that this process has executed. It scatters far less than wall time.

Linux's `perf_event_open` counts them, in user space only. Many virtual machines have no counters; then the reason is
kept instead. Valgrind can count on any machine, but it knows no AVX-512, so it would count another code path than the
timed path. It is also slow: a call on one source took 409 s under it instead of 1.8 s.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

HARDWARE, INSTRUCTIONS = 0, 1
SOFTWARE, TASK_CLOCK = 1, 1
CALL = {"x86_64": 298, "aarch64": 241}
ATTRIBUTE_SIZE = 64  # bytes: type, size, config, period, sample_type, read_format, flags, ... as first published
FLAGS = 1 << 1 | 1 << 5 | 1 << 6  # inherit; exclude the kernel and the hypervisor


class Counter:
    """A counter of this process and the threads that it starts afterwards.

    Parameters
    ----------
    kind, event : int
        Arguments of `perf_event_open`; by default they select instructions.

    Attributes
    ----------
    why : str
        Why there is no counter; empty if there is.
    """

    def __init__(self, kind: int = HARDWARE, event: int = INSTRUCTIONS) -> None:
        self._file, self.why = -1, ""
        number = CALL.get(platform.machine())
        if platform.system() != "Linux" or number is None:
            self.why = f"no perf_event_open on {platform.system()} {platform.machine()}"
            return
        attribute = struct.pack("=IIQQQQQ", kind, ATTRIBUTE_SIZE, event, 0, 0, 0, FLAGS).ljust(ATTRIBUTE_SIZE, b"\0")
        library = ctypes.CDLL(None, use_errno=True)
        self._file = library.syscall(number, ctypes.create_string_buffer(attribute, ATTRIBUTE_SIZE), 0, -1, -1, 0)
        if self._file < 0:
            self.why = f"perf_event_open: {os.strerror(ctypes.get_errno())} (a virtual machine without counters?)"

    def read(self) -> int | None:
        """The count so far; None if there is no counter."""
        return None if self._file < 0 else int(struct.unpack("=Q", os.read(self._file, 8))[0])

    def close(self) -> None:
        """Close the counter."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
