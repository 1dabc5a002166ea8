"""Bundles' graphs on a device: stored outputs, recordings, independent rows, refusals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import Make, graph, numbers, run
from shim import ShimDevice, missing

from deblendrt.cuda.driver.device import DeviceError
from deblendrt.cuda.network.network import Network
from deblendrt.cuda.network.plan import make_plan
from deblendrt.engine.compute.reference import networks as reference_networks
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.model.bundle import Bundle, load_bundle
from deblendrt.engine.model.manifest import GRAPHS
from deblendrt.engine.model.verification import output_error

pytest.importorskip("onnx")
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
Array = np.ndarray[Any, Any]


@pytest.fixture(params=["lsst", "hsc", "random", "toy"])
def bundle(request: pytest.FixtureRequest, toy_bundle: Path, toy_deblender: Deblender) -> Bundle:
    """The shipped bundles and the tests' bundles."""
    if request.param == "random":
        return load_bundle(toy_bundle)
    if request.param == "toy":
        return toy_deblender.bundle
    return load_bundle(request.param)


def golden(bundle: Bundle, name: str, kind: str) -> dict[str, Array]:
    with np.load(bundle.path / "golden.npz") as arrays:
        keys = GRAPHS[name].inputs if kind == "in" else GRAPHS[name].outputs
        return {key: arrays[f"{name}.{kind}.{key}"] for key in keys}


@pytest.mark.parametrize("name", list(GRAPHS))
def test_golden(bundle: Bundle, name: str) -> None:
    content = bundle.read(f"{name}.onnx")
    inputs, expected = ({key: value[:5] for key, value in golden(bundle, name, kind).items()} for kind in ("in", "out"))
    reference = reference_networks.run(make_plan(content, 5), inputs)
    outputs = run(content, inputs)
    for key, value in expected.items():
        assert output_error(reference[key], value, **bundle.golden_tolerance[name]) < 1, key
        assert output_error(outputs[key], value, **bundle.golden_tolerance[name]) < 1, key
    for key, value in run(content, inputs, reverse=True).items():
        np.testing.assert_array_equal(value, outputs[key])


@pytest.mark.parametrize("name", list(GRAPHS))
def test_bits_of_a_row_are_its_own(bundle: Bundle, name: str) -> None:
    content = bundle.read(f"{name}.onnx")
    n_row = 5 if name == "encode" else 37
    inputs = {key: np.resize(value, (n_row, *value.shape[1:])) for key, value in golden(bundle, name, "in").items()}
    for value in inputs.values():
        value[3] = np.nan  # a bad row changes no other row
    together = run(content, inputs)
    for row in (0, 4):
        alone = run(content, {key: value[row : row + 1] for key, value in inputs.items()})
        for key, value in together.items():
            np.testing.assert_array_equal(value[row], alone[key][0])
            assert np.isfinite(value[row]).all()


def test_recorded(bundle: Bundle) -> None:
    device = ShimDevice()
    network = Network(device, bundle.read("log_prior.onnx"), 3)
    latent = device.empty(network.inputs["latent"], np.float32)
    outputs = {key: device.empty(shape, np.float32) for key, shape in network.outputs.items()}
    recording = device.record(lambda: network.enqueue({"latent": latent}, outputs))
    assert not device.launched
    for rows in (slice(0, 3), slice(1, 4)):
        value = golden(bundle, "log_prior", "in")["latent"][rows]
        device.upload(value, latent)
        recording.replay()
        expected = run(bundle.read("log_prior.onnx"), {"latent": value})
        for key, output in outputs.items():
            np.testing.assert_array_equal(device.download(output), expected[key])


def test_shapes_cost_nothing() -> None:
    """The shipped Jacobian's launches: products, and the operations between them."""
    plan = make_plan(load_bundle("lsst").read("decode_jacobian.onnx"), 4096)
    assert len(plan.steps) < 40  # of 197 nodes
    moved, operations = plan.cost()
    assert moved / 4096 < 5e5
    assert operations / 4096 < 1e7


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(match: str, build: Callable[[Make], Any]) -> None:
        with pytest.raises(DeviceError, match=match):
            make_plan(graph(build, {"x": (2, 3)}, {"y": (2, 3)}), 2)

    refuse("operator Erf is not implemented", lambda g: g("Erf", "x", to="y"))
    refuse("operator Pad is used in a way", lambda g: g("Pad", "x", numbers(0, 0, 0, 0, 0, 0), mode="edge", to="y"))
    refuse("operator Gemm is used in a way", lambda g: g("Gemm", "x", np.ones((3, 3), np.float32), alpha=2.0, to="y"))
    refuse("expected shape", lambda g: g("Slice", "x", numbers(0), numbers(1), numbers(1), to="y"))
    with pytest.raises(DeviceError, match="not an ONNX graph"):
        make_plan(b"nonsense", 2)
    content = graph(lambda g: g("Neg", "x", to="y"), {"x": (3,)}, {"y": (3,)})
    device = ShimDevice()
    network = Network(device, content, 2)
    right, wrong = device.empty((2, 3), np.float32), device.empty((3, 3), np.float32)
    with pytest.raises(DeviceError, match=r"x: expected float32 \(2, 3\)"):
        network.enqueue({"x": wrong}, {"y": right})
    with pytest.raises(DeviceError, match="outputs are"):
        network.enqueue({"x": right}, {"z": right})
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DeviceError, match="pip install"):
        make_plan(content, 2)
