"""Bundles: valid bundles load, and all others are refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import STAMP, WIDE_SCALE, WIDE_STAMP, ToyModel, gauss_hermite

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.model import bundle as bundle_module
from deblendrt.engine.model.bundle import load_bundle
from deblendrt.engine.model.manifest import FORMAT_REVISION, GRAPHS, BundleError
from deblendrt.engine.model.verification import output_error, verify_bundle


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of a manifest; None removes a key."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


def test_load(toy_bundle: Path) -> None:
    bundle = load_bundle(toy_bundle)
    assert bundle.bands == ("g", "i")
    assert (bundle.n_band, bundle.n_latent, bundle.reference_index) == (2, 7, 1)
    assert bundle.basis.shape == (7, 11, 11)
    assert bundle.psf_fwhm.dtype == np.float64
    assert bundle.path == toy_bundle
    assert load_bundle(str(toy_bundle)).sha256 == bundle.sha256
    with pytest.raises(ValueError, match="read-only"):
        bundle.basis[0] = 0
    assert bundle.outskirts.shape == (7, 0, 0)
    np.testing.assert_array_equal(bundle.full_basis, bundle.basis)


def test_outskirts(wide_toy_model: ToyModel, wide_toy_deblender: Deblender) -> None:
    bundle = wide_toy_deblender.bundle
    assert (bundle.stamp_size, bundle.outskirts_binning) == (STAMP, 3)
    np.testing.assert_array_equal(bundle.basis, wide_toy_model.phi)
    np.testing.assert_array_equal(bundle.outskirts, wide_toy_model.outskirts)
    full = bundle.full_basis
    assert full.shape == (bundle.n_basis, WIDE_STAMP, WIDE_STAMP)
    assert full is bundle.full_basis
    assert full.dtype == np.float32
    exact = gauss_hermite(WIDE_STAMP, WIDE_SCALE)[0]
    margin = (WIDE_STAMP - STAMP) // 2
    inside = slice(margin, margin + STAMP)
    np.testing.assert_array_equal(full[:, inside, inside], exact.astype(np.float32)[:, inside, inside])
    assert 0.02 < np.abs(full - exact).max() / np.abs(exact).max() < 0.2  # cells are coarse for such steep functions
    outside = 1 - (exact[:, inside, inside] ** 2).sum((1, 2))
    assert outside.max() > 0.1  # the comparison can fail
    with pytest.raises(ValueError, match="read-only"):
        full[0] = 0


@pytest.mark.parametrize(("shape", "binning", "message"), [
    ((7, 3, 3), 11, None),
    ((7, 1, 1), 11, None),  # every cell lies in the core
    ((7, 3, 4), 11, "expected shape"),
    ((6, 3, 3), 11, "expected shape"),
    ((7, 3), 11, "expected shape"),
    ((7, 3, 3), 3, "core of whole cells"),
    ((7, 2, 2), 11, "odd number of cells"),
    ((7, 9, 9), 1, "cells that cover it"),
])
def test_sizes_of_the_outskirts(toy_bundle: Path, reseal: Callable[[Path], None], shape: tuple[int, ...],
                                binning: int, message: str | None) -> None:
    np.save(toy_bundle / "outskirts.npy", np.zeros(shape, np.float32))
    edit(toy_bundle, outskirts_binning=binning)
    reseal(toy_bundle)
    if message is None:
        assert load_bundle(toy_bundle).full_basis.shape == (7, shape[1] * binning, shape[2] * binning)
    else:
        with pytest.raises(BundleError, match=rf"outskirts\.npy.*{message}"):
            load_bundle(toy_bundle)


def test_no_cells_in_the_core(toy_bundle: Path, reseal: Callable[[Path], None]) -> None:
    cells = np.ones((7, 3, 3), np.float32)
    cells[:, 1, 1] = 0
    edit(toy_bundle, outskirts_binning=11)
    for middle in (0, 1):
        cells[3, 1, 1] = middle
        np.save(toy_bundle / "outskirts.npy", cells)
        reseal(toy_bundle)
        if middle:
            with pytest.raises(BundleError, match="zeros in the core"):
                load_bundle(toy_bundle)
        else:
            load_bundle(toy_bundle)


def test_verify(toy_bundle: Path) -> None:
    lines = verify_bundle(toy_bundle)
    assert len(lines) == 1 + len(GRAPHS)
    assert "hashes match" in lines[0]


@pytest.mark.parametrize("name", ["manifest.json", "basis.npy", "decode.onnx", "golden.npz"])
def test_one_wrong_byte(toy_bundle: Path, name: str) -> None:
    content = bytearray((toy_bundle / name).read_bytes())
    content[len(content) // 2] ^= 0x80
    (toy_bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        load_bundle(toy_bundle)


@pytest.mark.parametrize("graph", list(GRAPHS))
def test_one_wrong_weight_fails_the_golden_vectors(toy_bundle: Path, reseal: Callable[[Path], None],
                                                   graph: str) -> None:
    onnx = pytest.importorskip("onnx")
    path = toy_bundle / f"{graph}.onnx"
    proto = onnx.load(path)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name.startswith("w_out_"))
    weights = onnx.numpy_helper.to_array(tensor).copy()
    weights[0, 0] *= 1.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
    onnx.save(proto, path)
    reseal(toy_bundle)
    load_bundle(toy_bundle)  # every hash matches: only the stored outputs tell
    with pytest.raises(BundleError, match=f"{graph}.onnx.*differs from the golden output"):
        verify_bundle(toy_bundle)


@pytest.mark.parametrize(("changes", "message"), [
    ({"colour": "red"}, "unknown keys .'colour'"),
    ({"licence": None}, "missing keys .'licence'"),
    ({"format_revision": FORMAT_REVISION + 1, "something_new": 1}, "newer"),
    ({"format_revision": FORMAT_REVISION - 1, "outskirts_binning": None}, "older.*export the model again"),
    ({"format_revision": "1"}, "positive integer"),
    ({"n_basis": 7.0}, "n_basis: expected int"),
    ({"n_basis": True}, "n_basis: expected int"),
    ({"n_basis": 8}, "basis.npy: expected shape"),
    ({"stamp_size": 12}, "odd"),
    ({"outskirts_binning": 2}, "outskirts_binning: expected an odd"),
    ({"bands": ["g", "g"]}, "bands"),
    ({"reference_band": "r"}, "reference_band"),
    ({"psf_fwhm": [0.8]}, "psf_fwhm: expected 2"),
    ({"pixel_scale": -0.2}, "pixel_scale"),
    ({"sky_sigma": [1.0, "2"]}, "sky_sigma"),
    ({"prior_curvature": [[1.0] * 3] * 2}, "prior_curvature"),
    ({"flux_unit": "maggies"}, "flux_unit"),
    ({"parity": {}}, "parity"),
])
def test_manifest_values(toy_bundle: Path, changes: dict[str, Any], message: str) -> None:
    edit(toy_bundle, **changes)
    with pytest.raises(BundleError, match=message):
        load_bundle(toy_bundle)


@pytest.mark.parametrize("name", ["../basis.npy", "/etc/passwd", "a/b.npy", "..", "C:\\x.npy", ".hidden", "",
                                  "manifest.json"])
def test_file_names_stay_in_the_folder(toy_bundle: Path, name: str) -> None:
    files = json.loads((toy_bundle / "manifest.json").read_text())["files"]
    edit(toy_bundle, files=files | {name: "0" * 64})
    with pytest.raises(BundleError, match="not a plain file name"):
        load_bundle(toy_bundle)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', '{"a": NaN}', "\xff"])
def test_manifest_syntax(toy_bundle: Path, text: str) -> None:
    (toy_bundle / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_bundle(toy_bundle)


def test_missing_and_unlisted_files(toy_bundle: Path, reseal: Callable[[Path], None]) -> None:
    extra = toy_bundle / "readme.txt"
    extra.write_text("hello")
    with pytest.raises(BundleError, match=r"not listed in manifest.json: \['readme.txt'\]"):
        load_bundle(toy_bundle)
    reseal(toy_bundle)
    with pytest.raises(BundleError, match=r"unknown \['readme.txt'\]"):
        load_bundle(toy_bundle)
    extra.unlink()
    with pytest.raises(BundleError):
        load_bundle(toy_bundle)
    reseal(toy_bundle)
    (toy_bundle / "encode.onnx").unlink()
    with pytest.raises(BundleError, match=r"missing: \['encode.onnx'\]"):
        load_bundle(toy_bundle)


def test_pickles_are_not_loaded(toy_bundle: Path, reseal: Callable[[Path], None]) -> None:
    np.save(toy_bundle / "basis.npy", np.array([{}], object), allow_pickle=True)
    reseal(toy_bundle)
    with pytest.raises(BundleError, match=r"basis\.npy is not a NumPy array"):
        load_bundle(toy_bundle)


def test_arrays_must_be_finite_float32(toy_bundle: Path, reseal: Callable[[Path], None]) -> None:
    basis = np.load(toy_bundle / "basis.npy")
    for bad in (basis.astype(np.float64), np.full_like(basis, np.nan)):
        np.save(toy_bundle / "basis.npy", bad)
        reseal(toy_bundle)
        with pytest.raises(BundleError, match="finite float32"):
            load_bundle(toy_bundle)


def test_size_bound(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "MAX_FILE_BYTES", 5000)
    with pytest.raises(BundleError, match="larger than 5000"):
        load_bundle(toy_bundle)


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle 'nonesuch'"):
        load_bundle("nonesuch")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        load_bundle(tmp_path)


def test_golden_vectors_must_be_complete(toy_bundle: Path, reseal: Callable[[Path], None]) -> None:
    with np.load(toy_bundle / "golden.npz") as arrays:
        golden = dict(arrays)
    golden.pop("decode.out.coefficients")
    np.savez(toy_bundle / "golden.npz", **golden)
    reseal(toy_bundle)
    with pytest.raises(BundleError, match=r"missing \['decode.out.coefficients'\]"):
        verify_bundle(toy_bundle)


def test_golden_error_scales_by_source() -> None:
    expected = np.array([[1e6, 1.0], [1.0, 0.5]])
    assert output_error(expected, expected) == 0
    assert output_error(expected + np.array([[0.0, 1.0], [0.0, 0.0]]), expected) == pytest.approx(1e-6)
    assert output_error(expected + np.array([[0.0, 0.0], [0.0, 1.0]]), expected) == pytest.approx(1.0)
    assert output_error(expected * 1.001, expected, rtol=1e-3, atol=1e-9) == pytest.approx(1.0, rel=1e-4)
    assert output_error(np.array([0.0, 2.0]), np.array([0.1, 2.0])) == pytest.approx(0.1 / np.sqrt(4.01 / 2))
    assert output_error(expected[:1], expected) == np.inf
    assert output_error(expected * np.nan, expected) == np.inf
    assert output_error(np.array([[1e-9]]), np.array([[0.0]])) > 1e9
    assert output_error(np.array([[1e-9]]), np.array([[0.0]]), atol=1e-6) < 1
