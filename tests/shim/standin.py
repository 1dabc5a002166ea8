"""`CudaDevice` without a GPU: a library that stands in for the driver, whose "cubins" are shims."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import shim

HERE = Path(__file__).parent


@functools.cache
def folder() -> tuple[Path | None, str | None]:
    """Folder with a libcuda.so.1 that stands in, for LD_LIBRARY_PATH; or why there is none."""
    compiler = shutil.which("g++")
    if compiler is None:
        return None, shim.missing()
    source = HERE / "driver.cpp"
    name = f"deblendrt-driver-{os.getuid()}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    made = Path(tempfile.gettempdir()) / name
    if not (made / "libcuda.so.1").exists():
        made.mkdir(parents=True, exist_ok=True)
        partial = made / f"partial.{os.getpid()}"
        command = [compiler, "-std=c++20", "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", str(source), "-o",
                   str(partial), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return None, f"driver.cpp does not compile: {done.stderr[-500:]}"
        partial.replace(made / "libcuda.so.1")
    return made, None


def cubin(file: str, architecture: str, source: Path = shim.SOURCE) -> bytes:
    """The stand-in's cubin of a kernel file: the path of its shim."""
    return os.fsencode(shim.build(file, "fibers", source)) + b"\0"
