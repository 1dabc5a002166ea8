"""Runs tests with kernels built under a sanitizer of g++, whose library must be loaded before all else.

As a plugin of pytest (``-p sanitize``) it keeps the first case of every test, and no tests that run the same kernels
once more for another property: to look at every access of a kernel once is what matters here, and it takes time.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shim

HERE = Path(__file__).parent
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
FOUND = {"address": "AddressSanitizer", "thread": "ThreadSanitizer: data race"}
OUT_OF_ADDRESSES = "ThreadSanitizer failed to allocate"
REPEATS = ("bits", "can_fail")  # in names of tests
RAN = "kernels that ran: "
ran: set[str] = set()
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=66",  # the interpreter keeps what it likes
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": f"halt_on_error=1:exitcode=66:report_signal_unsafe=0:suppressions={HERE / 'tsan.txt'}",
}


@functools.cache
def command(mode: str) -> tuple[tuple[str, ...], dict[str, str], str | None]:
    """How to run Python under a sanitizer: what comes before it, the environment, and why it cannot be, or None.

    Parameters
    ----------
    mode : {"address", "thread"}
    """
    compiler = shutil.which("g++")
    if compiler is None:
        return (), {}, "g++ is not installed (Debian: apt-get install g++)"
    said = subprocess.run([compiler, f"-print-file-name={LIBRARIES[mode]}"], capture_output=True, text=True, check=True)
    library = Path(said.stdout.strip())
    if not library.is_absolute() or not library.exists():
        return (), {}, f"g++ comes without {LIBRARIES[mode]}"
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **OPTIONS, "PYTHONPATH": paths, "LD_PRELOAD": str(library.resolve()),
                   "DEBLENDRT_SHIM_MODE": mode,
                   "PYTHONMALLOC": "malloc",  # else small arrays share blocks, and who goes beyond one is not seen
                   "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    reason = "Python does not run under it"
    # TSan needs its addresses free; where the kernel spreads mappings too widely for it, they must not be random: it
    # may fail at once, or, rarely, in the middle of a run
    for before in (("setarch", "-R"), ()):
        if before and not shutil.which(before[0]):
            continue
        done = subprocess.run([*before, sys.executable, "-c", "import numpy"], env=environment, capture_output=True,
                              text=True, check=False)
        if done.returncode == 0:
            return before, environment, None
        reason = f"Python does not run under {LIBRARIES[mode]}: {done.stderr.strip()[-200:]}"
    return (), {}, reason


def start(mode: str, arguments: Sequence[str | Path]) -> subprocess.Popen[str]:
    """Start Python under a sanitizer; its status is 66, with `FOUND` in the output, if something is found.

    Parameters
    ----------
    mode : {"address", "thread"}
    arguments : sequence
        Arguments of the interpreter.

    Returns
    -------
    Popen
        With all output in ``stdout``.
    """
    before, environment, reason = command(mode)
    if reason is not None:
        raise RuntimeError(reason)
    return subprocess.Popen([*before, sys.executable, *map(str, arguments)], env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def pytest_configure() -> None:
    """Note which kernels run."""
    build = shim.build

    def noted(file: str, *arguments: Any) -> Path:
        ran.add(file)
        return build(file, *arguments)

    shim.build = noted


def pytest_unconfigure() -> None:
    """Say which kernels ran."""
    print(f"{RAN}{' '.join(sorted(ran))}", flush=True)


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep the first case of every test of kernels for their own sake."""
    first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
    dropped = [item for item in items if first[item.nodeid.partition("[")[0]] is not item
               or any(word in item.name for word in REPEATS)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]
