"""Toy bundles and deblenders for all tests, without torch; skips of tests that need a GPU."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import ToyModel

from deblendrt.cuda.driver.cuda_device import open_device
from deblendrt.cuda.driver.device import DeviceError
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.model.bundle import load_bundle
from deblendrt.engine.model.manifest import FORMAT_REVISION, GRAPHS, GraphSignature, graph_sizes
from deblendrt.engine.model.onnxruntime_cpu import OrtRuntime

# perf/ is not installed, and the repository's root on sys.path would shadow NVIDIA's `cuda`: a package by its path
if "perf" not in sys.modules:
    perf = types.ModuleType("perf")
    perf.__path__ = [str(Path(__file__).parents[1] / "perf")]
    sys.modules["perf"] = perf

HIDDEN = 48


def _width(symbols: tuple[str, ...], sizes: dict[str, int]) -> int:
    return int(np.prod([sizes[symbol] for symbol in symbols[1:]], dtype=int))


def toy_graph(graph: GraphSignature, sizes: dict[str, int],
              rng: np.random.Generator) -> tuple[bytes, Callable[..., list[Any]]]:
    """Make outputs = tanh(sum of inputs @ weights) @ weights, as ONNX and as a NumPy function in float64."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    weights = {key: rng.standard_normal((_width(symbols, sizes), HIDDEN)) / np.sqrt(_width(symbols, sizes))
               for key, symbols in graph.inputs.items()}
    heads = {key: rng.standard_normal((HIDDEN, _width(symbols, sizes))) for key, symbols in graph.outputs.items()}
    tables: dict[str, Any] = {f"w_{key}": value.astype(np.float32) for key, value in weights.items()}
    tables |= {f"w_out_{key}": value.astype(np.float32) for key, value in heads.items()}
    nodes = []
    for key in graph.inputs:
        nodes += [helper.make_node("Flatten", [key], [f"flat_{key}"], axis=1),
                  helper.make_node("MatMul", [f"flat_{key}", f"w_{key}"], [f"part_{key}"])]
    nodes += [helper.make_node("Sum", [f"part_{key}" for key in graph.inputs], ["total"]),
              helper.make_node("Tanh", ["total"], ["hidden"])]
    for key, symbols in graph.outputs.items():
        tables[f"shape_{key}"] = np.array([-1, *(sizes[symbol] for symbol in symbols[1:])], np.int64)
        nodes += [helper.make_node("MatMul", ["hidden", f"w_out_{key}"], [f"row_{key}"]),
                  helper.make_node("Reshape", [f"row_{key}", f"shape_{key}"], [key])]

    def values(names: dict[str, tuple[str, ...]]) -> list[Any]:
        return [helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT,
                                              ["N", *(sizes[symbol] for symbol in symbols[1:])])
                for key, symbols in names.items()]

    proto = helper.make_model(
        helper.make_graph(nodes, "main", values(graph.inputs), values(graph.outputs),
                          [onnx.numpy_helper.from_array(value, key) for key, value in tables.items()]),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

    def reference(*inputs: Any) -> list[Any]:
        total = sum(value.reshape(len(value), -1).astype(np.float64) @ tables[f"w_{key}"]
                    for key, value in zip(graph.inputs, inputs, strict=True))
        return [(np.tanh(total) @ tables[f"w_out_{key}"]).reshape(-1, *(sizes[symbol] for symbol in symbols[1:]))
                for key, symbols in graph.outputs.items()]

    return proto.SerializeToString(), reference


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need a GPU where there is none, with the reason."""
    if "gpu" in item.keywords and (reason := no_gpu()):
        pytest.skip(reason)


@functools.cache
def no_gpu() -> str | None:
    """Reason why `device="cuda"` does not work here, or None."""
    if "DEBLENDRT_STAND_IN" in os.environ:  # a driver, but no compiler for it: see test_device.py
        return None
    try:
        open_device().close()
    except DeviceError as error:
        return str(error)
    return None


def write_toy_bundle(folder: Path) -> Path:
    """Write a bundle of two bands and random weights; every check of `load_bundle` and `verify_bundle` passes."""
    rng = np.random.default_rng(0)
    bands, n_basis, n_component, n_shape, stamp = ["g", "i"], 7, 2, 3, 11
    sizes = graph_sizes(n_band=2, n_basis=n_basis, n_component=n_component, n_shape=n_shape, cutout_size=9)
    folder.mkdir()
    golden = {}
    for name, graph in GRAPHS.items():
        content, reference = toy_graph(graph, sizes, rng)
        (folder / f"{name}.onnx").write_bytes(content)
        inputs = [rng.standard_normal((5, *(sizes[s] for s in symbols[1:]))).astype(np.float32)
                  for symbols in graph.inputs.values()]
        golden |= {f"{name}.in.{key}": value for key, value in zip(graph.inputs, inputs, strict=True)}
        golden |= {f"{name}.out.{key}": value.astype(np.float32)
                   for key, value in zip(graph.outputs, reference(*inputs), strict=True)}
    np.savez(folder / "golden.npz", **golden)
    y, x = np.mgrid[:9, :9] - 4
    psf = np.exp(-(x**2 + y**2) / 4.0)
    np.save(folder / "psf.npy", np.stack([psf / psf.sum()] * 2).astype(np.float32))
    np.save(folder / "basis.npy", np.linalg.qr(rng.standard_normal((stamp**2, n_basis)))[0].T.reshape(-1, stamp, stamp)
            .astype(np.float32))
    np.save(folder / "outskirts.npy", np.zeros((n_basis, 0, 0), np.float32))
    for name in ("detail_shared", "detail_band"):
        np.save(folder / f"{name}.npy", (0.01 * rng.standard_normal((2, n_basis))).astype(np.float32))
    np.save(folder / "shift.npy", (0.1 * rng.standard_normal((2, n_basis, n_basis))).astype(np.float32))
    manifest = {
        "format_revision": FORMAT_REVISION, "name": "toy", "model_version": "1", "licence": "BSD-3-Clause",
        "bands": bands, "reference_band": "i", "pixel_scale": 0.2, "stamp_size": stamp, "outskirts_binning": 1,
        "n_basis": n_basis, "n_component": n_component, "n_shape": n_shape, "shape_radius": 6.0,
        "reference_psf_sigma": 1.0, "flux_unit": "nJy", "psf_fwhm": [0.9, 0.8], "sky_sigma": [2.0, 4.0],
        "encoder_cutout_size": 9, "start_shape": [0.0] * n_shape,
        "prior_curvature": np.eye(n_shape).tolist(), "mean_color": [-1.0, 0.0], "color_sigma": [0.5, 0.0],
        "log_prob_percentiles": {"0.1": -30.0, "1": -20.0, "5": -15.0, "25": -8.0, "50": -5.0, "75": -3.0},
        "training": {"seed": 1, "population": {"magnitude_min": 16.5, "magnitude_max": 26.5}}, "opset": 18,
        "minimum_onnxruntime": "1.23", "parity": {name: {"float32": 1e-6, "float64": 1e-15} for name in GRAPHS},
        "golden_tolerance": {name: {"rtol": 2e-5, "atol": 1e-6} for name in GRAPHS},
    }
    seal(folder, manifest)
    return folder


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest with the present hashes of the files."""
    manifest["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                         for path in sorted(folder.iterdir()) if path.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def toy_bundle(tmp_path: Path) -> Path:
    """Folder of a new toy bundle, which a test may damage."""
    return write_toy_bundle(tmp_path / "toy")


@pytest.fixture
def reseal() -> Callable[[Path], None]:
    """Function that gives a damaged bundle's manifest the hashes of its files, as an attacker would."""
    return lambda folder: seal(folder, json.loads((folder / "manifest.json").read_text()))


@pytest.fixture(scope="session")
def toy_model() -> ToyModel:
    """The float64 definition behind `toy_deblender`."""
    return ToyModel()


def _toy_deblender(model: ToyModel, folder: Path) -> Deblender:
    pytest.importorskip("onnx")
    model.write_files(folder)
    seal(folder, model.manifest())
    bundle = load_bundle(folder)
    return Deblender(bundle, OrtRuntime(bundle))


@pytest.fixture(scope="session")
def toy_deblender(toy_model: ToyModel, tmp_path_factory: pytest.TempPathFactory) -> Deblender:
    """A deblender with the small model, whose derivatives belong to its functions."""
    return _toy_deblender(toy_model, tmp_path_factory.mktemp("toy_model"))


@pytest.fixture(scope="session")
def wide_toy_model() -> ToyModel:
    """The float64 definition behind `wide_toy_deblender`."""
    return ToyModel(wide=True)


@pytest.fixture(scope="session")
def wide_toy_deblender(wide_toy_model: ToyModel, tmp_path_factory: pytest.TempPathFactory) -> Deblender:
    """A deblender with the wide model: about a tenth of the galaxies' light lies in outskirts."""
    return _toy_deblender(wide_toy_model, tmp_path_factory.mktemp("wide_toy_model"))
