"""scarlet_lite's model data, written and read without scarlet_lite, and with it if it is installed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deblendrt.engine.adapters import scarlet
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.files.fits import read_image
from deblendrt.engine.result.result import DeblendResult

XY0 = (1000, 2000)


@pytest.fixture(scope="module")
def deblender() -> Deblender:
    return Deblender.load("lsst")


@pytest.fixture(scope="module")
def result(deblender: Deblender) -> DeblendResult:
    """Return a result with galaxies, a star, a source off the image and a source without a position."""
    return deblend(deblender)


def deblend(deblender: Deblender, **options: Any) -> DeblendResult:
    scene = read_image("examples/lsst_blend.fits")
    centers = np.concatenate([np.asarray(scene.centers)[:8], [[-9.0, 4.0], [np.nan, 3.0]]])
    return deblender.deblend_batch(scene.image, centers, variance=scene.variance, psf=scene.psf, bands=scene.bands,
                                   zero_point=scene.zero_point, kind=["star"] + ["galaxy"] * 9, n_iteration=4,
                                   **options)


@pytest.mark.parametrize("detail", [False, True])
def test_components_are_exact_and_positive(result: DeblendResult, deblender: Deblender, detail: bool) -> None:
    result = result if detail else deblend(deblender, detail=False)
    for row in np.flatnonzero(result.fitted):
        coefficients = result.coefficients[row]
        spectra, maps = scarlet.components(coefficients)
        if not detail:
            assert len(maps) == (1 if result.star[row] else deblender.bundle.n_component)
        np.testing.assert_allclose(spectra.T @ maps, coefficients, atol=1e-6 * np.abs(coefficients).max())
        assert (spectra > -1e-9 * spectra.max()).all()
    nothing = scarlet.components(np.zeros((3, 5), np.float32))
    assert nothing[0].shape == (0, 3)


@pytest.mark.parametrize("container", ["scarlet_lite", "lsst"])
def test_what_is_written_is_read(result: DeblendResult, deblender: Deblender, tmp_path: Path, container: str) -> None:
    ids, parents = np.arange(10) * 7 + 2**40, np.arange(10) // 4 + 5
    data = scarlet.model_data(result, deblender.bundle, source_ids=ids, parent_ids=parents, xy0=XY0,
                              container=container)
    path = tmp_path / ("model.scarlet" if container == "lsst" else "model.json")
    scarlet.write_model(path, data)
    model = scarlet.read_model(path)
    assert model.source_id == ids.tolist()
    assert model.parent_id == parents.tolist()
    assert model.bands == result.bands
    fitted = result.fitted
    np.testing.assert_array_equal(model.centers(XY0)[fitted], np.rint(result.position[fitted]))
    np.testing.assert_array_equal(model.centers(XY0)[~fitted], [[0, 4], [0, 3]])  # entries without flux
    np.testing.assert_allclose(model.psf, result.folded.images[0], atol=1e-7)
    assert model.model_psf is not None
    np.testing.assert_allclose(model.model_psf.sum(), 1, atol=1e-6)
    assert scarlet.read_model(path.read_bytes()).source_id == model.source_id
    with pytest.raises(FileExistsError):
        scarlet.write_model(path, data)
    with pytest.raises(ValueError, match="at most 100 bytes"):
        scarlet.read_model(path, max_bytes=100)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_fluxes_and_failures(result: DeblendResult, deblender: Deblender) -> None:
    data = scarlet.model_data(result, deblender.bundle, zero_point=27.0)
    entries = {int(key): entry for blend in data["blends"].values() for key, entry in blend["sources"].items()}
    assert sorted(entries) == list(range(10))
    counts = 10 ** ((27.0 - 31.4) / 2.5)
    for row, entry in entries.items():
        spectrum = np.sum([np.multiply(c["spectrum"], np.sum(c["morph"])) for c in entry["components"]], 0)
        if result.fitted[row]:
            shown = result.stamps(row)[0].sum((1, 2), dtype=np.float64) * counts
            np.testing.assert_allclose(spectrum, shown, rtol=0.03)  # the window cuts a little light of the observed PSF
            assert entry["metadata"]["id"] == row
        else:
            assert (spectrum == 0).all()
            assert entry["metadata"]["deblend_error"] in ("OFF_IMAGE", "CENTER_NOT_FINITE")


def test_a_scene_without_sources(deblender: Deblender) -> None:
    empty = deblender.deblend_batch(np.zeros((6, 20, 20)), np.zeros((0, 2)), variance=1.0, psf="nominal")
    for container in ("scarlet_lite", "lsst"):
        data = scarlet.model_data(empty, deblender.bundle, container=container)
        assert data["blends"] == {}
        assert len(scarlet.read_model(data).center) == 0


def test_older_and_newer_schemas() -> None:
    """The oldest schema has PSFs and bands beside the blends; the newest schemas hold PSFs as objects."""
    component = {"component_type": "factorized", "peak": [5, 9], "origin": [0, 0], "shape": [1, 1], "spectrum": [1.0],
                 "morph": [1.0]}
    blend = {"psf": [1.0] * 9, "psf_shape": [1, 3, 3], "bands": ["r"], "origin": [0, 0], "shape": [9, 9],
             "sources": {"17": {"components": [], "factorized": [component]}, "peak-3": {"components": []}}}
    model = scarlet.read_model({"blends": {"3": blend}, "psf": [1.0] * 9, "psfShape": [3, 3]})
    assert model.source_id == [17, "peak-3"]
    assert model.bands == ("r",)
    np.testing.assert_array_equal(model.center[0], [9, 5])
    assert np.isnan(model.center[1]).all()
    assert model.model_psf is not None
    assert model.model_psf.shape == (3, 3)
    image = {"psf_type": "image", "data": [1.0] * 9, "shape": [1, 3, 3], "dtype": "float32", "version": "1.0.0"}
    newer = scarlet.read_model({
        "version": "1.0.3", "model_type": "lsst", "metadata": {"psf": image, "model_psf": image, "bands": ["i"]},
        "blends": {"4": {"blend_type": "lsst_hierarchical", "children": {"5": {"sources": {
            "1": {"components": [component], "metadata": {"id": 99}}}}}}},
        "isolated": {"12": {"source_type": "isolated", "peak": [1, 2]}}})
    assert newer.source_id == [99, 12]
    assert newer.parent_id == [4, 12]
    assert newer.psf is not None
    assert newer.psf.shape == (1, 3, 3)


@pytest.mark.parametrize(("source", "words"), [
    (b"{", "JSON"), (b"[1]", "object"), (b"[" * 100_000, "JSON"), ({"blends": 3}, "table of 'blends'"),
    ({"blends": {"1": {}}}, "sources or children"), ({"blends": {"a": {"sources": {"1": {}}}}}, "whole numbers"),
    ({"blends": {"1": {"sources": {"1": {"components": [{"peak": [1]}]}}}}}, "peak"),
    ({"blends": {}, "metadata": {"array_keys": ["psf"], "psf": [1, 2], "psf_shape": [3]}}, "psf: expected as many"),
])
def test_what_is_no_model_is_refused(source: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scarlet.read_model(source)


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.scarlet"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1", b" " * 10_000_000)
    with pytest.raises(ValueError, match="unpacked"):
        scarlet.read_model(path, max_bytes=1_000_000)


def test_mistakes_are_named(result: DeblendResult, deblender: Deblender, tmp_path: Path) -> None:
    for arguments, words in (({"container": "json"}, "container"), ({"bands": "gx"}, "bands"),
                             ({"source_ids": [1] * 10}, "distinct"), ({"parent_ids": [1.5] * 10}, "whole numbers"),
                             ({"source_ids": [1]}, "expected 10")):
        with pytest.raises(ValueError, match=words):
            scarlet.model_data(result, deblender.bundle, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lsst"):
        scarlet.write_model(tmp_path / "x.scarlet", {"model_type": "scarlet_model"})


def test_scarlet_lite_draws_the_same(result: DeblendResult, deblender: Deblender) -> None:
    """scarlet_lite's classes load the model, and their convolution gives the engine's images."""
    scl = pytest.importorskip("lsst.scarlet.lite", reason="scarlet_lite is not installed: perf.embedding.rubin has it")
    data = json.loads(json.dumps(scarlet.model_data(result, deblender.bundle, xy0=XY0)))
    model = scl.io.ScarletModelData.parse_obj(data)
    n = 0
    for blend_data in model.blends.values():
        about = blend_data.metadata
        box = scl.Box(result.scenes[0].shape, origin=XY0[::-1])
        observation = scl.Observation.empty(bands=tuple(about["bands"]), psfs=about["psf"], bbox=box,
                                            model_psf=about["model_psf"], dtype=np.float32)
        for source in blend_data.to_blend(observation).sources:
            row = source.metadata["id"]
            stamp, (x, y) = result.stamps(row)
            drawn = observation.convolve(source.get_model().project(bbox=box), mode="real").data
            own = np.zeros_like(drawn)
            y0, x0 = max(y, 0), max(x, 0)
            own[:, y0 : y + stamp.shape[1], x0 : x + stamp.shape[2]] = stamp[:, y0 - y :, x0 - x :][
                :, : max(own.shape[1] - y0, 0), : max(own.shape[2] - x0, 0)]
            # scarlet_lite keeps light that the PSF carries over the edge of a window, and the engine does not. For
            # light from beyond the edge of the image it is the reverse.
            assert np.abs(drawn - own).max() <= 1e-2 * max(own.max(), 1e-9)
            n += 1
    assert n == result.n_source
