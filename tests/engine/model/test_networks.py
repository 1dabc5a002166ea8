"""The runtime on the CPU: shapes, tiles, threads, and the independence of a source's bits from other sources."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from deblendrt.engine.model.bundle import Bundle, load_bundle
from deblendrt.engine.model.manifest import GRAPHS, BundleError
from deblendrt.engine.model.networks import NETWORK_TILE, FactoredJacobian, Runtime
from deblendrt.engine.model.onnxruntime_cpu import OrtRuntime

N_SOURCE = 2 * NETWORK_TILE + 5  # two full tiles and a padded tile


@pytest.fixture(params=["toy", "lsst"])
def runtime(request: pytest.FixtureRequest, toy_bundle: Path) -> OrtRuntime:
    """Return runtimes of a toy bundle and of the shipped bundle, whose matrices are large enough to be blocked."""
    return OrtRuntime(load_bundle(toy_bundle if request.param == "toy" else request.param))


def draw(bundle: Bundle, name: str, n_source: int) -> list[Any]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal((n_source, *(bundle.sizes[s] for s in symbols[1:]))).astype(np.float32)
            for symbols in GRAPHS[name].inputs.values()]


@pytest.mark.parametrize("name", list(GRAPHS))
def test_bits_do_not_depend_on_the_batch(runtime: OrtRuntime, name: str) -> None:
    inputs = draw(runtime.bundle, name, N_SOURCE)
    together = runtime.run(name, *inputs)
    order = np.random.default_rng(4).permutation(N_SOURCE)
    permuted = runtime.run(name, *(value[order] for value in inputs))
    for a, b in zip(together, permuted, strict=True):
        np.testing.assert_array_equal(a[order], b)
    for row in (0, NETWORK_TILE - 1, NETWORK_TILE, N_SOURCE - 1):
        alone = runtime.run(name, *(value[row : row + 1] for value in inputs))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[row], b[0])


def test_a_bad_row_stays_alone(runtime: OrtRuntime) -> None:
    inputs = draw(runtime.bundle, "decode_jacobian", NETWORK_TILE)
    clean = runtime.run("decode_jacobian", *inputs)
    inputs[0][3] = np.nan
    dirty = runtime.run("decode_jacobian", *inputs)
    others = np.arange(NETWORK_TILE) != 3
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a[others], b[others])
        assert np.isnan(b[3]).any()


def test_methods(toy_bundle: Path) -> None:
    bundle = load_bundle(toy_bundle)
    runtime: Runtime = OrtRuntime(bundle)
    n = bundle.sizes
    latent = np.random.default_rng(0).standard_normal((3, n["L"]))
    coefficients = runtime.decode(latent)  # the input is float64
    assert (coefficients.shape, coefficients.dtype) == ((3, n["B"], n["K"]), np.float32)
    assert runtime.decode_pullback(latent, coefficients).shape == latent.shape
    jacobian = runtime.decode_jacobian(latent[:, :])
    assert isinstance(jacobian, FactoredJacobian)
    assert jacobian.d_maps.shape == (3, 2 + n["S"], n["M"], n["K"])
    assert jacobian.d_mix.shape == (3, n["S"], n["M"], n["B"])
    log_prob, gradient = runtime.log_prior(latent)
    assert (log_prob.shape, gradient.shape) == ((3,), latent.shape)
    start = runtime.encode(np.zeros((3, n["B"], n["H"], n["H"])), np.zeros((3, 2)), np.zeros((3, 2 * n["B"])))
    assert start.shape == latent.shape
    np.testing.assert_array_equal(runtime.decode(np.asfortranarray(latent)), coefficients)


def test_no_sources(toy_bundle: Path) -> None:
    runtime = OrtRuntime(load_bundle(toy_bundle))
    assert runtime.decode(np.empty((0, 7))).shape == (0, 2, 7)


def test_wrong_shape(toy_bundle: Path) -> None:
    runtime = OrtRuntime(load_bundle(toy_bundle))
    with pytest.raises(ValueError, match=r"decode: latent: expected shape \(3, 7\), got \(3, 6\)"):
        runtime.decode(np.zeros((3, 6)))
    with pytest.raises(ValueError, match=r"d_coefficients: expected shape \(3, 2, 7\)"):
        runtime.decode_pullback(np.zeros((3, 7)), np.zeros((2, 2, 7)))


def test_threads_share_a_runtime(runtime: OrtRuntime) -> None:
    inputs = draw(runtime.bundle, "decode_jacobian", NETWORK_TILE)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: runtime.run("decode_jacobian", *inputs), range(8)))
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(a, b)


def test_pickles(toy_bundle: Path) -> None:
    runtime = OrtRuntime(load_bundle(toy_bundle))
    latent = draw(runtime.bundle, "decode", 3)[0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(runtime)).decode(latent), runtime.decode(latent))


def test_minimum_onnxruntime(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(toy_bundle)
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.0")
    with pytest.raises(BundleError, match=r"needs onnxruntime >= 1\.23"):
        OrtRuntime(bundle)


def test_a_graph_changed_after_loading_is_noticed(toy_bundle: Path) -> None:
    runtime = OrtRuntime(load_bundle(toy_bundle))
    path = toy_bundle / "decode.onnx"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BundleError, match=r"decode\.onnx is damaged"):
        runtime.decode(np.zeros((1, 7)))
