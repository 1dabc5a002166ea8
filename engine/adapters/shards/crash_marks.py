"""Marks of the work in progress, so that an input that crashes its process cannot stop a shard for ever.

    OUT/in_progress/000012       number of processes that began unit 12 and did not end it
    OUT/in_progress/000012.005   the same number for input 5 of the unit, deblended alone

A mark is written before the work and removed after it. A mark that is left therefore counts processes that ran out of
memory, crashed or were killed. A unit with such a mark is deblended input by input, which finds the input at fault. A
process that fails with an exception, or is told to stop (SIGTERM, Ctrl-C), removes its own count. After a MemoryError
the count stays: the error would come back at every start, as the kernel's out-of-memory killer does. A mark does not
tell whether its process is still alive. Processes that do the same unit by mistake are therefore counted too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deblendrt.engine.files import atomic_write

CRASH_MARKS = "in_progress"  # folder of the marks
MAX_KILLS = 2  # a single kill may have nothing to do with the input
_STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def mark(out: Path, number: int) -> Path:
    """Return the path of a unit's mark."""
    return out / CRASH_MARKS / f"{number:06d}"


def mark_of_input(mark: Path, k: int) -> Path:
    """Return the path of the mark of a unit's k-th input."""
    return mark.with_name(f"{mark.name}.{k:03d}")


def marks(out: Path) -> list[tuple[int, Path]]:
    """Return the unit's number and the path of every mark."""
    return [(int(path.name.partition(".")[0]), path) for path in sorted((out / CRASH_MARKS).glob("[0-9]*"))]


def n_kill(path: Path) -> int:
    """Return the number of processes that a mark counts."""
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
    except ValueError:  # the machine died before the content was on the disk
        return 1


@contextlib.contextmanager
def at_work(path: Path, *, part: bool = False) -> Iterator[None]:
    """Count this process in a mark while the body of the ``with`` statement runs.

    Parameters
    ----------
    path : Path
        The mark.
    part : bool
        Whether the body is a part of the unit's work. The mark then gets its earlier count back at the end of the body,
        and is not removed.
    """
    before = n_kill(path)

    def take_back() -> None:
        if before:
            _write(path, before)
        else:
            path.unlink(missing_ok=True)

    _write(path, before + 1)
    with _before_a_stop(take_back):
        try:
            yield
        except MemoryError:
            raise
        except BaseException:
            take_back()
            raise
    if part:
        take_back()
    else:
        path.unlink(missing_ok=True)


def crash_reason(n: int, n_input: int) -> str:
    """Return the error text of inputs that are not tried again.

    Parameters
    ----------
    n : int
        Number of processes that ended.
    n_input : int
        Number of inputs that were deblended together.
    """
    times = "twice" if n == 2 else f"{n} times"
    why = "out of memory, a crash, or a kill from outside"
    if n_input == 1:
        return f"killed its process {times} ({why})"
    return f"one of {n_input} inputs at work together killed the process {times}, which is not known ({why})"


def _write(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write.in_place_of(path) as partial:
        partial.write_text(f"{count}\n")


@contextlib.contextmanager
def _before_a_stop(do: Callable[[], None]) -> Iterator[None]:
    """Call a function before a signal stops the process. Signals that the process ignores or handles are left alone."""
    def stop(number: int, _: Any) -> None:
        do()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    main = threading.current_thread() is threading.main_thread()  # only the main thread may handle signals
    caught = [number for number in _STOPS if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
