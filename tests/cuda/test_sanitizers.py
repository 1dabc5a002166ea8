"""Kernels under AddressSanitizer and ThreadSanitizer, which must find the faults that are planted for them."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sanitize
import shim

HERE = Path(__file__).parent
KERNELS = {path.stem for path in shim.SOURCE.rglob("*.cu")}
# Tests of no kernels, and tests of whole networks: they take too long, and other tests run the same kernels on less.
LEFT_OUT = {"test_kernel_compiler.py", "test_device.py", "test_interop.py", "test_sanitizers.py",
            "test_network_bundles.py"}
TESTS = [path for path in sorted(HERE.rglob("test_*.py")) if path.name not in LEFT_OUT]
PLANTED = """
import sys
from pathlib import Path
import numpy as np
from shim import ShimDevice

device = ShimDevice(folder=Path(sys.argv[1]))
x, out = device.upload(np.arange(32, dtype=np.float32)), device.empty(32, np.float32)
kernel = sys.argv[2]
arguments = {"writes_beyond": (32, out), "reads_beyond": (x, 32, out)}.get(kernel, (x, out))
device.launch(f"planted:{kernel}", (1,), (64 if "beyond" in kernel else 32,), *arguments)
print("came through")
"""


def sanitized(mode: str) -> None:
    """Skip where a sanitizer does not run."""
    reason = sanitize.command(mode)[2]
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize(("mode", "kernel", "is_found"), [
    ("address", "writes_beyond", True),
    ("address", "reads_beyond", True),
    ("address", "has_the_barrier", False),
    ("thread", "lacks_a_barrier", True),
    ("thread", "has_the_barrier", False),
])
def test_planted_faults(mode: str, kernel: str, is_found: bool) -> None:
    sanitized(mode)
    process = sanitize.start(mode, ["-c", PLANTED, Path(shim.__file__).parent, kernel])
    said = process.communicate()[0]
    if is_found:
        assert process.returncode == 66, said
        assert sanitize.FOUND[mode] in said
        assert "planted.cu:" in said  # names the line
    else:
        assert process.returncode == 0, said
        assert "came through" in said


# sanitizers write to the file descriptor, which pytest would capture
ARGUMENTS = ["-m", "pytest", "-q", "-x", "--capture=sys", "-m", "not slow", "-p", "sanitize", "-p", "no:cacheprovider",
             *TESTS]


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The kernels' tests under every sanitizer, side by side."""
    with contextlib.ExitStack() as stack:
        yield {mode: stack.enter_context(sanitize.start(mode, ARGUMENTS))
               for mode in sanitize.LIBRARIES if sanitize.command(mode)[2] is None}


@pytest.mark.slow
@pytest.mark.skipif(not TESTS, reason="no kernel has tests yet")
@pytest.mark.parametrize("mode", sanitize.LIBRARIES)
def test_kernels(mode: str, runs: dict[str, subprocess.Popen[str]]) -> None:
    sanitized(mode)
    process = runs[mode]
    said = process.communicate()[0]
    for _ in range(3):
        if sanitize.OUT_OF_ADDRESSES not in said:
            break
        process = sanitize.start(mode, ARGUMENTS)  # no finding: the sanitizer itself gave up
        said = process.communicate()[0]
    assert process.returncode == 0, said
    (ran,) = re.findall(f"{sanitize.RAN}(.*)", said)
    assert set(ran.split()) == KERNELS  # no kernel is without tests
