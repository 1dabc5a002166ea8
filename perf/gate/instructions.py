"""Instructions that this process has executed, where the machine counts them: what wall time scatters around.

Linux's `perf_event_open`, user space only. Many virtual machines have no counters: then the reason is kept instead.
Valgrind counts anywhere, but knows no AVX-512, so that it would count another code path than the one that is timed, and
one call on one source took 409 s under it where it takes 1.8 s.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

HARDWARE, INSTRUCTIONS = 0, 1
SOFTWARE, TASK_CLOCK = 1, 1
CALL = {"x86_64": 298, "aarch64": 241}
ATTRIBUTE_SIZE = 64  # of the first published layout: type, size, config, period, sample_type, read_format, flags, ...
FLAGS = 1 << 1 | 1 << 5 | 1 << 6  # inherit; exclude the kernel and the hypervisor


class Counter:
    """A counter of this process and the threads that it starts afterwards.

    Parameters
    ----------
    kind, event : int
        Of `perf_event_open`; by default instructions.

    Attributes
    ----------
    why : str
        Empty, or why there is none.
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
        """The count so far; None without a counter."""
        return None if self._file < 0 else int(struct.unpack("=Q", os.read(self._file, 8))[0])

    def close(self) -> None:
        """Give the counter back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
