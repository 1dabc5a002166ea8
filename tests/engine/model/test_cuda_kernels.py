"""The engine's own runtime on a device, through the shim, compared with ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shim import ShimDevice, missing

from deblendrt.engine.model.bundle import load_bundle
from deblendrt.engine.model.cuda_kernels import FEWEST_ROWS, CudaRuntime
from deblendrt.engine.model.device_networks import HOST_ROWS
from deblendrt.engine.model.manifest import GRAPHS
from deblendrt.engine.model.networks import FactoredJacobian, Runtime
from deblendrt.engine.model.onnxruntime_cpu import OrtRuntime
from deblendrt.engine.model.verification import output_error

pytest.importorskip("onnx")
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture
def runtime(toy_bundle: Path) -> CudaRuntime:
    return CudaRuntime(load_bundle(toy_bundle), ShimDevice())


def draw(runtime: CudaRuntime, name: str, n_source: int) -> list[Any]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal((n_source, *(runtime.bundle.sizes[s] for s in symbols[1:]))).astype(np.float32)
            for symbols in GRAPHS[name].inputs.values()]


@pytest.mark.parametrize("name", list(GRAPHS))
def test_agrees_with_the_cpu(runtime: CudaRuntime, name: str) -> None:
    inputs = draw(runtime, name, HOST_ROWS + 7)
    results, expected = (which.run(name, *inputs) for which in (runtime, OrtRuntime(runtime.bundle)))
    for result, value in zip(results, expected, strict=True):
        assert output_error(result, value, **runtime.bundle.golden_tolerance[name]) < 1


def test_protocol(runtime: CudaRuntime) -> None:
    latent = draw(runtime, "decode", 3)[0]
    same: Runtime = runtime
    assert same.decode(latent.astype(np.float64)[::-1]).shape == (3, 2, 7)
    assert isinstance(runtime.decode_jacobian(latent), FactoredJacobian)
    assert [x.shape for x in runtime.log_prior(latent)] == [(3,), (3, 7)]
    assert runtime.decode_pullback(*draw(runtime, "decode_pullback", 0)).shape == (0, 7)
    assert runtime.encode(*draw(runtime, "encode", 2)).shape == (2, 7)
    with pytest.raises(ValueError, match=r"decode: latent: expected shape \(3, 7\), got \(3, 6\)"):
        runtime.decode(latent[:, :6])


@pytest.mark.parametrize("n_source", [5, FEWEST_ROWS, 40, 64])
def test_on_the_device(runtime: CudaRuntime, n_source: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A padded tile, a full tile and several tiles that overlap, recorded."""
    monkeypatch.setattr("deblendrt.engine.model.cuda_kernels.MOST_ROWS", FEWEST_ROWS)
    device = runtime.device
    latent = draw(runtime, "log_prior", n_source)[0]
    expected = runtime.run("log_prior", *draw(runtime, "log_prior", 64))
    room = n_source + 2
    latents = device.empty((room, 7), np.float32)
    outputs = {"log_prob": device.empty(room, np.float32), "gradient": device.empty((room, 7), np.float32)}
    runtime.prepare("log_prior", n_source)
    recording = device.record(lambda: runtime.enqueue("log_prior", n_source, {"latent": latents}, outputs))
    device.upload(latent, latents.rows(0, n_source))
    recording.replay()
    for result, value in zip(outputs.values(), expected, strict=True):
        np.testing.assert_array_equal(device.download(result)[:n_source], value[:n_source])
        assert np.isnan(device.download(result)[n_source:]).all()
