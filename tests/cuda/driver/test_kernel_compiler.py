"""Every kernel compiles for the supported GPUs, and the cache keeps and finds cubins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import shim

from deblendrt.cuda.driver import kernel_compiler
from deblendrt.cuda.driver.device import DeviceError

PLANTED = Path(shim.__file__).parent
KERNELS = [*sorted(kernel_compiler.SOURCE.rglob("*.cu")), PLANTED / "planted.cu"]
needs_compiler = pytest.mark.skipif(kernel_compiler.compiler() is None, reason="neither NVRTC nor nvcc is installed")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("DEBLENDRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


class Counting:
    """Stands in for a compiler."""

    version = "counting1.0"

    def __init__(self) -> None:
        self.compiled: list[str] = []

    def architectures(self) -> list[int]:
        """See `Nvrtc`."""
        return [80, 86, 89, 90]

    def compile(self, path: Path, architecture: str) -> bytes:
        """See `Nvrtc`."""
        self.compiled.append(f"{path.stem} {architecture}")
        return f"{path.stem} {architecture}".encode()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """A compiler that counts its calls."""
    stand_in = Counting()
    monkeypatch.setattr(kernel_compiler, "compiler", lambda: stand_in)
    return stand_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a kernel and a header."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "one.cu").write_text("// 1")
    (folder / "own.cuh").write_text("// 2")
    return folder


@needs_compiler
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_kernels_compile(path: Path, architecture: str) -> None:
    tool = kernel_compiler.compiler()
    assert tool is not None
    assert tool.compile(path, architecture)[:4] == b"\x7fELF"


@needs_compiler
def test_errors_show_the_compilers_log(tmp_path: Path) -> None:
    tool = kernel_compiler.compiler()
    assert tool is not None
    (tmp_path / "broken.cu").write_text('#include "kernel.cuh"\nextern "C" __global__ void broken() { nothing(); }\n')
    with pytest.raises(DeviceError, match=r"(?s)broken\.cu does not compile for sm_90.*broken\.cu\(2\).*nothing"):
        tool.compile(tmp_path / "broken.cu", "sm_90")


def test_what_is_compiled_is_kept(cache: Path, counting: Counting, folder: Path) -> None:
    for _ in range(2):
        assert kernel_compiler.cubin("one", "sm_90", folder) == b"one sm_90"
    assert counting.compiled == ["one sm_90"]
    assert [path.suffix for path in cache.iterdir()] == [".cubin"]  # no partial file is left


@pytest.mark.parametrize("change", ["source", "header", "options", "version", "architecture"])
def test_what_a_cubin_is_made_of_changes_its_name(cache: Path, counting: Counting, folder: Path, change: str,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_compiler.cubin("one", "sm_90", folder)
    if change == "source":
        (folder / "one.cu").write_text("// 3")
    if change == "header":
        (folder / "own.cuh").write_text("// 3")
    if change == "options":
        monkeypatch.setattr(kernel_compiler, "OPTIONS", ("--std=c++20",))
    if change == "version":
        monkeypatch.setattr(counting, "version", "counting1.1", raising=False)
    kernel_compiler.cubin("one", "sm_80" if change == "architecture" else "sm_90", folder)
    assert len(counting.compiled) == len(list(cache.iterdir())) == 2


def test_without_a_compiler_any_versions_cubin_does(cache: Path, counting: Counting, folder: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_compiler.cubin("one", "sm_90", folder)
    monkeypatch.setattr(kernel_compiler, "compiler", lambda: None)
    assert kernel_compiler.cubin("one", "sm_90", folder) == b"one sm_90"
    with pytest.raises(DeviceError, match=r"one\.cu is not compiled for sm_80 .* pip install"):
        kernel_compiler.cubin("one", "sm_80", folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_cache(tmp_path: Path, counting: Counting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    monkeypatch.setenv("DEBLENDRT_CACHE", str(locked))
    with pytest.raises(DeviceError, match=r"locked.*export DEBLENDRT_CACHE"):
        kernel_compiler.cubin("one", "sm_90", folder)


def test_cache_that_is_a_file(tmp_path: Path, counting: Counting, folder: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEBLENDRT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match=r"file.*export DEBLENDRT_CACHE"):
        kernel_compiler.cubin("one", "sm_90", folder)


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBLENDRT_CACHE", "/a")
    assert kernel_compiler.cache_folder("kernels") == Path("/a/kernels")
    monkeypatch.delenv("DEBLENDRT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert kernel_compiler.cache_folder("kernels") == Path("/b/deblendrt/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert kernel_compiler.cache_folder("kernels") == Path("/c/.cache/deblendrt/kernels")


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), "sm_80"), ((8, 7), "sm_86"), ((9, 0), "sm_90")])
def test_architecture(counting: Counting, capability: tuple[int, int], expected: str) -> None:
    assert kernel_compiler.target(capability) == expected


def test_gpu_newer_than_the_compiler(counting: Counting) -> None:
    with pytest.raises(DeviceError, match=r"counting1\.0 .* 12\.0: pip install"):
        kernel_compiler.target((12, 0))


def test_missing_kernel_file(cache: Path, counting: Counting, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"nothing\.cu"):
        kernel_compiler.cubin("nothing", "sm_90", tmp_path)


def test_prepare(cache: Path, monkeypatch: pytest.MonkeyPatch, counting: Counting, folder: Path) -> None:
    (folder / "two.cu").write_text("// 4")
    monkeypatch.setattr(kernel_compiler, "SOURCE", folder)
    monkeypatch.setattr(kernel_compiler.cubin, "__defaults__", (folder,))
    kernel_compiler.cubin("one", "sm_90")
    kernel_compiler.prepare("sm_90")
    assert counting.compiled == ["one sm_90", "two sm_90"]
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(kernel_compiler, "compiler", lambda: None)
    kernel_compiler.prepare("sm_90")
    with pytest.raises(DeviceError, match=r"neither NVRTC nor nvcc .* sm_80 yet: one, two"):
        kernel_compiler.prepare("sm_80")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_nvcc(tmp_path: Path) -> None:
    tool = kernel_compiler.Nvcc("nvcc")
    assert tool.version.startswith("nvcc1")
    assert {80, 90} <= set(tool.architectures())
    assert tool.compile(PLANTED / "planted.cu", "sm_90")[:4] == b"\x7fELF"
    (tmp_path / "broken.cu").write_text("nothing")
    with pytest.raises(DeviceError, match=r"(?s)broken\.cu does not compile for sm_90.*error"):
        tool.compile(tmp_path / "broken.cu", "sm_90")
