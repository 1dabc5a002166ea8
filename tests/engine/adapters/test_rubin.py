"""The adapter for Rubin's objects, with `rubin_standins` in place of afw."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy.table import Table
from rubin_standins import PLANES, Exposure, Image, MultibandExposure, Peak, PhotoCalib, Psf, Record

from deblendrt.engine.adapters import rubin
from deblendrt.engine.adapters.rubin import rubin_objects
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.files.fits import read_image
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.units import InputWarning

XY0 = (12_000, 8_000)
BANDS = ("g", "r", "i")


@pytest.fixture(scope="module")
def deblender() -> Deblender:
    return Deblender.load("lsst")


@pytest.fixture(scope="module")
def example() -> Any:
    """Return the example image in three bands, with its six brightest sources."""
    scene = read_image("examples/lsst_blend.fits")
    own = [list(scene.bands).index(band) for band in BANDS]
    return SimpleNamespace(image=np.asarray(scene.image)[own], variance=np.asarray(scene.variance)[own],
                           psf=np.asarray(scene.psf)[own], centers=np.asarray(scene.centers)[:6],
                           zero_point=scene.zero_point)


def exposures(example: Any, **changes: Any) -> dict[str, Exposure]:
    scale = 1.0 if example.zero_point is None else 10 ** ((31.4 - np.broadcast_to(example.zero_point, 3)[0]) / 2.5)
    made = {}
    for b, band in enumerate(BANDS):
        mask = np.zeros(example.image[b].shape, np.int32)
        made[band] = Exposure(band, example.image[b].astype(np.float32), example.variance[b].astype(np.float32), mask,
                              changes.get("psf", {}).get(band, Psf(example.psf[b])), XY0, PhotoCalib(scale))
    return made


def records(example: Any) -> list[Record]:
    """Return a parent with all sources but the last as peaks, and a record without a footprint."""
    peaks = [Peak(100 + k, x + XY0[0], y + XY0[1]) for k, (x, y) in enumerate(example.centers[:-1])]
    x, y = example.centers[-1] + XY0
    return [Record(7, peaks=peaks), Record(8, float(x), float(y))]


def plain(deblender: Deblender, example: Any, **changes: Any) -> Any:
    arguments = {"variance": example.variance, "psf": example.psf, "bands": BANDS, "zero_point": example.zero_point,
                 "n_iteration": 3}
    return deblender.deblend_batch(example.image, example.centers, **{**arguments, **changes})


def test_the_same_as_without_adapter(deblender: Deblender, example: Any) -> None:
    scene = rubin.read_exposures(exposures(example), records(example))
    result = scene.deblend(deblender, n_iteration=3)
    expected = plain(deblender, example)
    assert scene.lost == []
    assert (scene.x0, scene.y0) == XY0
    np.testing.assert_array_equal(result.flags, expected.flags)
    np.testing.assert_allclose(result.flux, expected.flux, rtol=1e-5)  # the calibration is 10^(0.4 (zero point - 31.4))
    table = scene.table(result)
    assert table["id"].tolist() == [100, 101, 102, 103, 104, 8]
    assert table["parent"].tolist() == [7] * 5 + [0]
    np.testing.assert_allclose(table["x"], result.position[:, 0] + XY0[0])
    np.testing.assert_array_equal(table["deblend_peak_center_y"], np.rint(example.centers[:, 1]) + XY0[1])


def test_a_multiband_exposure_needs_a_zero_point(deblender: Deblender, example: Any) -> None:
    made = exposures(example)
    for exposure in made.values():
        exposure._calib = None
    multiband = MultibandExposure(BANDS, list(made.values()))
    with pytest.raises(ValueError, match="zero_point"):
        rubin.read_exposures(multiband, example.centers + XY0)
    zero_point = 31.4 if example.zero_point is None else float(np.broadcast_to(example.zero_point, 3)[0])
    scene = rubin.read_exposures(multiband, example.centers + XY0, zero_point=zero_point)
    assert scene.bands == BANDS
    np.testing.assert_allclose(scene.arguments()["zero_point"], zero_point, atol=1e-12)
    np.testing.assert_allclose(scene.arguments()["centers"], example.centers)


def test_images_come_back_as_they_came_in(deblender: Deblender, example: Any) -> None:
    made = exposures(example)
    scene = rubin.read_exposures(made, example.centers + XY0)
    result = scene.deblend(deblender, n_iteration=3)
    models = scene.model_images(result)
    r = result.bands.index("r")
    assert isinstance(models["r"], Image)
    assert models["r"].getBBox() == made["r"].getBBox()
    assert models["r"] is not made["r"].image
    np.testing.assert_allclose(models["r"].array * scene.factor[1], result.model(0)[r], rtol=1e-5, atol=1e-6)
    stamp, (x, y) = result.stamps(0)
    own = scene.source_images(result, 0)["r"]
    assert own.bbox == (x + XY0[0], y + XY0[1], x + XY0[0] + stamp.shape[2] - 1, y + XY0[1] + stamp.shape[1] - 1)
    np.testing.assert_allclose(own.array * scene.factor[1], stamp[r], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("redistributed", [True, False])
def test_heavy_footprints(deblender: Deblender, example: Any, redistributed: bool) -> None:
    scene = rubin.read_exposures(exposures(example), example.centers + XY0)
    result = scene.deblend(deblender, n_iteration=3)
    heavy = scene.heavy_footprint(result, 1, redistributed)
    images = scene.source_images(result, 1, redistributed)
    y, first, last = heavy.spans.T
    assert (np.lexsort((first, y)) == np.arange(len(y))).all()
    assert heavy.values["i"].shape == ((last - first + 1).sum(),)
    start = 0
    for row, a, b in heavy.spans:  # unpacked in afw's order, the values equal the source's image
        piece = images["i"].array[row - images["i"].y0, a - images["i"].x0 : b - images["i"].x0 + 1]
        np.testing.assert_array_equal(heavy.values["i"][start : start + b - a + 1], piece)
        start += b - a + 1
    assert heavy.peak == tuple(np.rint(result.position[1] + XY0).astype(int))


def test_masks_and_variance(deblender: Deblender, example: Any) -> None:
    made = exposures(example)
    made["g"].mask.array[10:20, 10:20] |= 1 << PLANES["SAT"]
    made["g"].mask.array[30:40] |= 1 << PLANES["DETECTED"]
    made["r"].variance.array[:, 50] = np.nan
    scene = rubin.read_exposures(made, example.centers + XY0)
    assert scene.mask[0].sum() == 100
    assert (
        rubin.read_exposures(made, None, bad_planes=("DETECTED",)).mask[0].sum() == 10 * scene.mask.shape[2]
    )
    result = scene.deblend(deblender, n_iteration=3)
    assert (result.scenes[0].inverse_variance[result.bands.index("r")][:, 50] == 0).all()
    near = np.abs(example.centers[:, 0] - 50) < 30
    assert near.any()
    assert ((result.flags[near] & Flag.BAD_VARIANCE) != 0).all()
    assert result.n_source == 6


def test_a_missing_band(deblender: Deblender, example: Any) -> None:
    made: dict[str, Any] = exposures(example)
    made["g"] = None
    scene = rubin.read_exposures(made, example.centers + XY0)
    assert scene.bands == ("r", "i")
    assert scene.lost == ["g: no exposure"]
    result = scene.deblend(deblender, n_iteration=3)
    assert result.n_source == 6
    assert ((result.flags & Flag.BAND_MISSING) != 0).all()
    assert result.fitted.all()
    with pytest.raises(ValueError, match="at least one exposure"):
        rubin.read_exposures({"g": None}, None)


def test_a_psf_that_raises(deblender: Deblender, example: Any) -> None:
    """If a PSF model raises at a cell's centre, the cell's sources are tried; if all fail, the pixels are masked."""
    middle = np.array(example.image.shape[:0:-1]) / 2 - 0.5 + XY0
    holed = Psf(example.psf[1], lambda x, y: np.hypot(x - middle[0], y - middle[1]) > 1)
    scene = rubin.read_exposures(exposures(example, psf={"r": holed}), example.centers + XY0)
    assert holed.asked == 2
    assert scene.lost == []
    never = Psf(example.psf[1], lambda x, y: False)
    scene = rubin.read_exposures(exposures(example, psf={"r": never}), example.centers + XY0)
    assert never.asked == 1 + len(example.centers)
    assert scene.lost[0].startswith("r: no PSF in the cell")
    assert "InvalidParameterError" in scene.lost[0]
    result = scene.deblend(deblender, n_iteration=3)
    assert result.n_source == 6
    assert result.fitted.all()
    expected = plain(deblender, example, mask=np.stack([np.full(example.image[0].shape, b == "r") for b in BANDS]))
    np.testing.assert_allclose(result.flux, expected.flux, rtol=1e-5)
    nowhere = {band: Psf(example.psf[0], lambda x, y: False) for band in BANDS}
    scene = rubin.read_exposures(exposures(example, psf=nowhere), example.centers + XY0)
    assert scene.psf is None
    with pytest.warns(InputWarning, match="psf: none was given"):
        result = scene.deblend(deblender, n_iteration=3)
    assert ((result.flags & Flag.NO_DATA) != 0).all()
    assert scene.table(result)["deblend_failed"].all()


def test_psf_cells(example: Any) -> None:
    """The PSF is evaluated only in cells with sources; a band that alone has no PSF there is masked."""
    shape = (400, 400)
    left = Psf(example.psf[0], lambda x, y: x - XY0[0] < 200)
    lower = Psf(example.psf[1], lambda x, y: x - XY0[0] < 200 or y - XY0[1] < 200)
    zero, one, mask = np.zeros(shape, np.float32), np.ones(shape, np.float32), np.zeros(shape, np.int32)
    made = {band: Exposure(band, zero, one, mask, psf, XY0, PhotoCalib(1.0))
            for band, psf in (("g", left), ("r", lower))}
    centers = np.array([(50.0, 60.0), (350.0, 50.0), (300.0, 310.0), (-40.0, 10.0), (np.nan, 0.0)])
    scene = rubin.read_exposures(made, centers + XY0)
    assert scene.psf is not None
    assert scene.psf.known.tolist() == [[True, True], [False, False]]  # the upper cells have no image
    assert scene.mask[0, :200, 200:].all()  # g has no PSF there, r has
    assert not scene.mask[1].any()
    assert not scene.mask[0, 200:].any()  # no band has a PSF: the nearest cell's is used, and the source is flagged
    assert len(scene.lost) == 3


def test_psf_images_are_made_square_and_centred() -> None:
    image = np.zeros((4, 6))
    image[1, 4] = 1.0
    shifted = SimpleNamespace(computeKernelImage=lambda point: Image(image, (-4, -1)))
    square = rubin_objects.psf_at(SimpleNamespace(getPsf=lambda: shifted), 3.0, 4.0)
    assert square.shape == (9, 9)
    assert square[4, 4] == 1.0
    for broken in (np.full((5, 5), np.nan), np.zeros((5, 5))):
        psf = Psf(broken)
        with pytest.raises(ValueError, match="PSF image"):
            rubin_objects.psf_at(SimpleNamespace(getPsf=lambda psf=psf: psf), 0.0, 0.0)


def test_catalogues(example: Any) -> None:
    exposure = exposures(example)["r"]
    read = rubin_objects.read_sources
    assert len(read([], exposure).source_id) == len(read(None, exposure).source_id) == 0
    assert len(read(Table({"x": [], "y": []}), exposure).center) == 0
    twice = [Record(1, peaks=[Peak(1, 5, 6), Peak(2, 7, 8)]), Record(2, peaks=[Peak(1, 9, 9)])]
    assert read(twice, exposure).source_id.tolist() == [0, 1, 2]
    assert read(twice, exposure).parent_id.tolist() == [1, 1, 2]
    assert np.isnan(read(twice, exposure, "records").center).all()
    table = Table({"id": [3, 4], "x": np.ma.array([1.0, 2.0], mask=[False, True]), "y": [5.0, 6.0],
                   "kind": ["star", "auto"]})
    found = read(table, exposure)
    assert found.kind == ["star", "auto"]
    assert np.isnan(found.center[1, 0])
    sky = read(Table({"coord_ra": [12.5e-3], "coord_dec": [8.5e-3]}), exposure)
    np.testing.assert_allclose(sky.center, [[12_500, 8_500]])
    for bad, words in ((Table({"a": [1]}), "columns"), (np.zeros((2, 3)), "positions")):
        with pytest.raises(ValueError, match=words):
            read(bad, exposure)


def test_ten_thousand_sources_of_which_few_are_on_the_image(deblender: Deblender, example: Any) -> None:
    rng = np.random.default_rng(1)
    far = rng.uniform(-50_000, -1_000, (9_994, 2))
    centers = np.concatenate([far[:5_000], example.centers, far[5_000:]])
    scene = rubin.read_exposures(
        exposures(example),
        Table({"id": np.arange(10_000) * 3, "x": centers[:, 0] + XY0[0], "y": centers[:, 1] + XY0[1]}),
    )
    result = scene.deblend(deblender, n_iteration=3)
    table = scene.table(result)
    assert table["id"].tolist() == list(range(0, 30_000, 3))
    assert (table["deblend_error"] == "OFF_IMAGE").sum() == 9_994
    np.testing.assert_allclose(result.flux[5_000:5_006], plain(deblender, example).flux, rtol=1e-5)
    assert len(scene.heavy_footprint(result, 0).spans) == 0


def test_an_empty_catalogue(deblender: Deblender, example: Any) -> None:
    scene = rubin.read_exposures(exposures(example), [])
    result = scene.deblend(deblender, n_iteration=3)
    assert len(scene.table(result)) == 0
    assert (scene.model_images(result)["g"].array == 0).all()


def test_found_sources_get_ids_of_their_own(deblender: Deblender, example: Any) -> None:
    scene = rubin.read_exposures(exposures(example), example.centers[1:] + XY0)
    result = scene.deblend(deblender, find_missed=True, n_iteration=3)
    assert result.n_source > 5
    assert (scene.table(result)["id"][5:] < 0).all()


def test_mistakes_are_named(example: Any) -> None:
    made = exposures(example)
    made["i"] = Exposure("i", np.zeros((9, 9)), np.ones((9, 9)), np.zeros((9, 9), np.int32), None, XY0)
    with pytest.raises(ValueError, match="i: expected the box of g"):
        rubin.read_exposures(made, None)
    made = exposures(example)
    made["r"]._calib = PhotoCalib(1.0, _isConstant=False)
    with pytest.raises(ValueError, match="calibrateImage"):
        rubin.read_exposures(made, None)
    made["r"]._calib = PhotoCalib(0.0)
    with pytest.raises(ValueError, match="positive calibration"):
        rubin.read_exposures(made, None)
    with pytest.raises(ValueError, match="one exposure a band"):
        rubin.read_exposures([made["g"], made["g"]], None)
    with pytest.raises(ValueError, match="by: expected"):
        rubin.read_exposures(exposures(example), [Record(1)], by="footprints")
