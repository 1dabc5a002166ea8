"""ONNX Runtime's CUDA provider. Without a GPU, errors name the missing part; with a GPU, stored outputs are met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from shim import ShimDevice

from deblendrt.cuda.driver.device import DeviceError
from deblendrt.engine.model.bundle import load_bundle
from deblendrt.engine.model.manifest import GRAPHS
from deblendrt.engine.model.onnxruntime_cuda import (
    FOLDER,
    PROVIDER,
    OrtCudaGraph,
    OrtCudaRuntime,
    provider_library,
    without_asinh,
)
from deblendrt.engine.model.verification import output_error

VERSION = onnxruntime.__version__


def install(folder: Path, version: str) -> Path:
    """Make the files that pip would install into a folder, without their contents."""
    (folder / "onnxruntime" / "capi").mkdir(parents=True)
    library = folder / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    library.write_bytes(b"")
    (folder / f"onnxruntime_gpu-{version}.dist-info").mkdir()
    return library


def test_the_provider_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = install(tmp_path, VERSION)
    assert provider_library(tmp_path) == library
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert provider_library() == library
    monkeypatch.delenv(FOLDER)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDER])
    assert provider_library() is None


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=rf"no CUDA provider: pip install .*-gpu=={VERSION}, .*{FOLDER}"):
        provider_library()
    with pytest.raises(DeviceError, match="no onnxruntime-gpu in"):
        provider_library(tmp_path)
    install(tmp_path, "1.0.0")
    with pytest.raises(DeviceError, match=r"is 1\.0\.0, onnxruntime is .* must be the same"):
        provider_library(tmp_path)


def test_asinh_spelled_out() -> None:
    pytest.importorskip("onnx")
    bundle = load_bundle("lsst")
    content = without_asinh(bundle.read("encode.onnx"))
    assert b"Asinh" not in content
    assert without_asinh(bundle.read("decode.onnx")) == bundle.read("decode.onnx")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with np.load(bundle.path / "golden.npz") as golden:
        result = session.run(None, {key: golden[f"encode.in.{key}"] for key in GRAPHS["encode"].inputs})[0]
        assert output_error(result, golden["encode.out.latent"], **bundle.golden_tolerance["encode"]) < 1


def test_a_host_is_no_gpu(toy_bundle: Path) -> None:
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"):
        OrtCudaRuntime(load_bundle(toy_bundle), ShimDevice())


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_nothing_falls_back_to_the_cpu(toy_bundle: Path) -> None:
    """ONNX Runtime falls back to the CPU if a provider is missing; the runtime must raise instead."""
    if PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    device = ShimDevice()
    device.stream = 0  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match="CUDA provider"):
        OrtCudaGraph(device, load_bundle(toy_bundle).read("decode.onnx"), 32, None)


@pytest.mark.gpu
def test_golden() -> None:
    from deblendrt.cuda.driver.cuda_device import open_device

    bundle = load_bundle("lsst")
    try:
        runtime = OrtCudaRuntime(bundle, open_device(), n_row=64)
    except DeviceError as error:
        pytest.skip(str(error))
    with np.load(bundle.path / "golden.npz") as golden:
        for name, graph in GRAPHS.items():
            results = runtime.run(name, *(golden[f"{name}.in.{key}"] for key in graph.inputs))
            for key, result in zip(graph.outputs, results, strict=True):
                assert output_error(result, golden[f"{name}.out.{key}"], **bundle.golden_tolerance[name]) < 1
