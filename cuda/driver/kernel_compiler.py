"""Compiles kernels for the present GPU when they are first needed, and keeps them in a cache.

NVRTC, a library of the wheel nvidia-cuda-nvrtc or of a CUDA toolkit, compiles a kernel file to a cubin. nvcc does it
where there is no NVRTC. A cubin's name in the cache contains a hash of the source, all headers and the options, the
architecture and the compiler's version. If there is no compiler, a cubin of any version serves.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deblendrt.cuda.driver.device import DeviceError

SOURCE = Path(__file__).parents[1] / "kernels"
HEADERS = Path(__file__).parents[1] / "math"
OPTIONS = ("--std=c++17", "--generate-line-info")  # line numbers for profilers and compute-sanitizer; costs no speed
NO_COMPILER = ('no compiler of CUDA kernels: neither NVRTC nor nvcc found; '
               'pip install "deblendrt[gpu]", or pip install "nvidia-cuda-nvrtc>=13,<14"')


def cache_folder(name: str) -> Path:
    """Folder of the cache for one kind of files.

    It lies below DEBLENDRT_CACHE, else XDG_CACHE_HOME/deblendrt, else ~/.cache/deblendrt.

    Parameters
    ----------
    name : str
        The folder's name.

    Returns
    -------
    Path
        It need not exist.
    """
    own = os.environ.get("DEBLENDRT_CACHE")
    if own:
        return Path(own) / name
    try:
        general = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in some containers
        general = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return Path(general) / "deblendrt" / name


def store(path: Path, content: bytes) -> None:
    """Write a file of a cache. A reader finds the whole file or none. Raises DeviceError."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise DeviceError(f"cannot write to the cache folder {path.parent} ({error.strerror}): name one that can be "
                          "written to, as in: export DEBLENDRT_CACHE=/path/to/folder") from None


class Nvrtc:
    """NVIDIA's compiler as a library. It needs neither a GPU nor a driver.

    Attributes
    ----------
    version : str
        The compiler's version in the names of cubins.
    """

    def __init__(self) -> None:
        from cuda.bindings import nvrtc

        self._nvrtc = nvrtc
        major, minor = self._call("nvrtcVersion")
        self.version = f"nvrtc{major}.{minor}"

    def architectures(self) -> list[int]:
        """Compute capabilities that it compiles for: 80 for 8.0."""
        (found,) = self._call("nvrtcGetSupportedArchs")
        return list(found)

    def compile(self, path: Path, architecture: str) -> bytes:
        """Compile a file to a cubin. Raises DeviceError with the compiler's log."""
        options = [f"--gpu-architecture={architecture}", f"--include-path={path.parent}",
                   f"--include-path={HEADERS}", *OPTIONS]
        (program,) = self._call("nvrtcCreateProgram", path.read_bytes(), os.fsencode(path), 0, None, None)
        try:
            code, *_ = self._nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
            if int(code):
                log = self._text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)
                said = log.rstrip(b"\0").decode(errors="replace") or str(code)
                raise DeviceError(f"{path.name} does not compile for {architecture} with {self.version}:\n{said}")
            return self._text("nvrtcGetCUBINSize", "nvrtcGetCUBIN", program)
        finally:
            self._nvrtc.nvrtcDestroyProgram(program)

    def _text(self, size: str, content: str, program: Any) -> bytes:
        (n,) = self._call(size, program)
        buffer = bytes(n)  # the binding writes into it, and nothing else refers to it
        self._call(content, program, buffer)
        return buffer

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        code, *values = getattr(self._nvrtc, name)(*arguments)
        if int(code):
            raise DeviceError(f"{name}: {code!s}")
        return tuple(values)


class Nvcc:
    """The compiler of a CUDA toolkit.

    Parameters
    ----------
    command : str

    Attributes
    ----------
    version : str
    """

    def __init__(self, command: str) -> None:
        self.command = command
        found = re.search(r"release (\d+\.\d+)", self._run("--version"))
        self.version = f"nvcc{found[1] if found else ''}"

    def architectures(self) -> list[int]:
        """See `Nvrtc`."""
        return [int(n) for n in re.findall(r"\bsm_(\d+)\b", self._run("--list-gpu-code"))]

    def compile(self, path: Path, architecture: str) -> bytes:
        """See `Nvrtc`."""
        with tempfile.TemporaryDirectory() as temporary:
            cubin = Path(temporary) / "kernel.cubin"
            try:
                self._run("--cubin", f"--gpu-architecture={architecture}", f"--include-path={path.parent}",
                          f"--include-path={HEADERS}", *OPTIONS, str(path), f"--output-file={cubin}")
            except DeviceError as error:
                raise DeviceError(f"{path.name} does not compile for {architecture}: {error}") from None
            return cubin.read_bytes()

    def _run(self, *arguments: str) -> str:
        try:
            done = subprocess.run([self.command, *arguments], capture_output=True, text=True, timeout=600, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DeviceError(f"nvcc failed: {error}") from None
        if done.returncode:
            raise DeviceError(f"{self.command} failed:\n{done.stderr or done.stdout}")
        return done.stdout


@functools.cache
def compiler() -> Nvrtc | Nvcc | None:
    """NVRTC, else nvcc, else None."""
    try:
        return Nvrtc()
    except (ImportError, RuntimeError, OSError):  # the binding raises RuntimeErrors when it does not find the library
        command = shutil.which("nvcc")
        return Nvcc(command) if command else None


def target(capability: tuple[int, int]) -> str:
    """The architecture to compile for, as "sm_90".

    Cubins run on later minor revisions of their architecture, so a compiler that is older than the GPU may serve.

    Parameters
    ----------
    capability : tuple of int
        Compute capability of the GPU, (9, 0) for an H100.

    Returns
    -------
    str
    """
    major, minor = capability
    tool = compiler()
    if tool is None:
        return f"sm_{major}{minor}"
    known = [n for n in tool.architectures() if n // 10 == major and n % 10 <= minor]
    if not known:
        raise DeviceError(f"{tool.version} does not know GPUs of compute capability {major}.{minor}: "
                          "pip install -U nvidia-cuda-nvrtc")
    return f"sm_{max(known)}"


def names() -> list[str]:
    """Kernel files, without .cu."""
    return sorted(path.stem for path in SOURCE.rglob("*.cu"))


def kernel_path(file: str, folder: Path = SOURCE) -> Path:
    """Path of a kernel file (without .cu) in a folder or below it. Names are unique."""
    return next(folder.rglob(f"{file}.cu"), folder / f"{file}.cu")


def cubin(file: str, architecture: str, folder: Path = SOURCE) -> bytes:
    """Machine code of a kernel file, from the cache or compiled now.

    Parameters
    ----------
    file : str
        Name without .cu.
    architecture : str
        As "sm_90".
    folder : Path
        The file's folder, or a folder above it.

    Returns
    -------
    bytes
    """
    kept = _kept(file, architecture, folder)
    if kept.is_file():
        return kept.read_bytes()
    tool = compiler()
    if tool is None:
        raise DeviceError(f"{file}.cu is not compiled for {architecture} yet, and there is {NO_COMPILER}")
    content = tool.compile(kernel_path(file, folder), architecture)
    store(kept, content)
    return content


def prepare(architecture: str) -> None:
    """Compile all kernels that are not in the cache, several at a time. Raises DeviceError."""
    missing = [file for file in names() if not _kept(file, architecture, SOURCE).is_file()]
    if not missing:
        return
    if compiler() is None:
        raise DeviceError(f"{NO_COMPILER}. Not compiled for {architecture} yet: {', '.join(missing)}")
    # a cache that cannot be written to is an error before the work
    probe = cache_folder("kernels") / f"probe.{os.getpid()}"
    store(probe, b"")
    probe.unlink(missing_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda file: cubin(file, architecture), missing))


def _kept(file: str, architecture: str, folder: Path) -> Path:
    path = kernel_path(file, folder)
    if not path.is_file():
        raise DeviceError(f"there is no kernel file {path}: the installation is damaged; "
                          "pip install --force-reinstall --no-deps deblendrt")
    parts = [path.read_bytes(), *(header.read_bytes() for header in sorted({*folder.glob("*.cuh"),
                                                                           *HEADERS.glob("*.cuh")}))]
    digest = hashlib.sha256(b"\0".join([*parts, *(o.encode() for o in OPTIONS)])).hexdigest()[:24]
    tool, cache = compiler(), cache_folder("kernels")
    if tool is None:
        return max(cache.glob(f"{file}-{architecture}-{digest}-*.cubin"), default=cache / f"{file}-{digest}.cubin")
    return cache / f"{file}-{architecture}-{digest}-{tool.version}.cubin"
