"""Marks of what a shard has begun, so that an input that ends its process does not stop the rest for ever.

    OUT/in_progress/000012       how many processes have begun unit 12 and have not been heard of since
    OUT/in_progress/000012.005   the same of its input 5, at work alone

A mark is written before the work and removed after it: what is left counts processes that ended without a word: out of
memory, crashed or killed. A unit that was begun before is done input by input, to learn which it is. A process that can
still speak takes its mark back: it failed with an exception, or was told to stop (SIGTERM, Ctrl-C). Not with
MemoryError, which would come back at every start, as the kernel's killer does. Nobody knows whether a mark's process
lives: several that do one unit by mistake count as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deblendrt.engine.files import output

CRASH_MARKS = "in_progress"  # folder of the marks
MAX_KILLS = 2  # one may be anybody's kill -9
_STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def mark(out: Path, number: int) -> Path:
    """Where the mark of a unit is."""
    return out / CRASH_MARKS / f"{number:06d}"


def mark_of_input(mark: Path, k: int) -> Path:
    """Where the mark of a unit's k-th input is."""
    return mark.with_name(f"{mark.name}.{k:03d}")


def marks(out: Path) -> list[tuple[int, Path]]:
    """All marks, with the numbers of their units."""
    return [(int(path.name.partition(".")[0]), path) for path in sorted((out / CRASH_MARKS).glob("[0-9]*"))]


def n_kill(path: Path) -> int:
    """How many processes have not been heard of, says a mark."""
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
    except ValueError:  # of a machine that died before the content was on the disk
        return 1


@contextlib.contextmanager
def at_work(path: Path, *, part: bool = False) -> Iterator[None]:
    """Work that has its mark for as long as it is neither done nor given back.

    Parameters
    ----------
    path : Path
        The mark.
    part : bool
        More is to come: the mark is put back to what it said before.
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
    """What is known of inputs that were given up.

    Parameters
    ----------
    n : int
        How often their process ended.
    n_input : int
        How many were at work together.
    """
    times = "twice" if n == 2 else f"{n} times"
    why = "out of memory, a crash, or a kill from outside"
    if n_input == 1:
        return f"killed its process {times} ({why})"
    return f"one of {n_input} inputs at work together killed the process {times}, which is not known ({why})"


def _write(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with output.in_place_of(path) as partial:
        partial.write_text(f"{count}\n")


@contextlib.contextmanager
def _before_a_stop(do: Callable[[], None]) -> Iterator[None]:
    """Do something before a signal that asks to stop does what it would have done; one that is ignored stays so."""
    def stop(number: int, _: Any) -> None:
        do()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    main = threading.current_thread() is threading.main_thread()  # no other may ask for signals
    caught = [number for number in _STOPS if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
