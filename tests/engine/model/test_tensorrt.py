"""TensorRT without a GPU: graphs build, different plans get different files, and errors tell what to install."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shim import ShimDevice

from deblendrt.cuda.driver.device import DeviceError
from deblendrt.engine.adapters.cli.main import main
from deblendrt.engine.model import tensorrt
from deblendrt.engine.model.bundle import Bundle, load_bundle
from deblendrt.engine.model.manifest import GRAPHS
from deblendrt.engine.model.tensorrt import (
    TensorRTError,
    TensorRTRuntime,
    build_plan,
    cached_plan,
    find_package,
    plan_path,
)
from deblendrt.engine.model.verification import output_error

ADA, HOPPER = (8, 9), (9, 0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEBLENDRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rtx() -> str:
    if reason := tensorrt.why_unavailable("tensorrt_rtx"):
        pytest.skip(reason)
    return "tensorrt_rtx"


@pytest.fixture
def shipped() -> Bundle:
    return load_bundle("lsst")


@pytest.mark.parametrize("name", list(GRAPHS))
def test_shipped_graphs_build(rtx: str, shipped: Bundle, name: str) -> None:
    assert len(build_plan(shipped.read(f"{name}.onnx"), rtx, (64, 64, 64))) > 0


def test_refuses_nonsense(rtx: str) -> None:
    with pytest.raises(TensorRTError, match="does not parse"):
        build_plan(b"nonsense", rtx, (1, 1, 1))


def test_plans_are_kept(rtx: str, toy_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch,
                        capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", str(toy_bundle), "--package", rtx, "--capability", "8.9", "--rows", "32"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[name, "built"] for name in GRAPHS]
    assert len(list((cache / "plans").iterdir())) == len(GRAPHS)
    monkeypatch.setattr(tensorrt, "build_plan", lambda *_: pytest.fail("built again"))
    assert main(command) == 0
    assert all(" kept " in line for line in capsys.readouterr().out.splitlines())


def test_tensorrt_builds_for_its_own_gpu_only(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(toy_bundle), "--package", "tensorrt", "--capability", "9.0"]) == 1
    assert "tensorrt builds for this machine's GPU only" in capsys.readouterr().err


def test_key(rtx: str, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(toy_bundle)
    settings: dict[str, Any] = {"name": "decode", "package": rtx, "capability": ADA, "n_row": 32, "precision": "fp32"}
    first = plan_path(bundle, **settings)
    assert first == plan_path(load_bundle(toy_bundle), **settings)
    others = [plan_path(bundle, **settings | change) for change in (
        {"name": "encode"}, {"capability": (8, 6)}, {"n_row": 64}, {"precision": "tf32"})]
    monkeypatch.setattr(f"{rtx}.__version__", "0.0.1")
    others.append(plan_path(bundle, **settings))
    object.__setattr__(bundle, "sha256", "0" * 64)
    others.append(plan_path(bundle, **settings))
    assert len({first, *others}) == 7
    with pytest.raises(ValueError, match="precision"):
        cached_plan(bundle, "decode", rtx, ADA, 32, "fp16")


def test_an_unwritable_cache_is_named(rtx: str, toy_bundle: Path, cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    with pytest.raises(DeviceError, match="DEBLENDRT_CACHE"):
        cached_plan(load_bundle(toy_bundle), "decode", rtx, ADA, 32, "fp32")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DeviceError, match=r"tensorrt is not installed: pip install .*; tensorrt_rtx is not installed"):
        find_package()
    with pytest.raises(DeviceError, match="pip install tensorrt-rtx"):
        find_package("tensorrt_rtx", ADA)
    with pytest.raises(DeviceError, match="no package of TensorRT: 'tensorflow'"):
        find_package("tensorflow")


def test_rtx_does_not_run_in_data_centres(rtx: str) -> None:
    assert find_package(rtx, ADA) == rtx
    with pytest.raises(DeviceError, match=r"compute capability 9\.0; tensorrt does: pip install"):
        find_package(rtx, HOPPER)


def test_a_host_is_no_gpu(toy_bundle: Path) -> None:
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"):
        TensorRTRuntime(load_bundle(toy_bundle), ShimDevice())


@pytest.mark.gpu
def test_golden(shipped: Bundle) -> None:
    from deblendrt.cuda.driver.cuda_device import open_device

    try:
        device = open_device()
        runtime = TensorRTRuntime(shipped, device, n_row=64)
    except DeviceError as error:
        pytest.skip(str(error))
    with np.load(shipped.path / "golden.npz") as golden:
        for name, graph in GRAPHS.items():
            results = runtime.run(name, *(golden[f"{name}.in.{key}"] for key in graph.inputs))
            for key, result in zip(graph.outputs, results, strict=True):
                assert output_error(result, golden[f"{name}.out.{key}"], **shipped.golden_tolerance[name]) < 1
    with pytest.raises(DeviceError, match="recorded"):
        device.record(lambda: runtime.enqueue("decode", 64, *runtime._host["decode"]))
