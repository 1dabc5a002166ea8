"""The bundled model with unlisted sources, missing bands, masks and edges.

Scenes are drawn with the model itself, so that no simulator is needed; `perf.studies.robustness` simulates scenes.
"""

from __future__ import annotations

import numpy as np
import pytest
from toy_scenes import changed

from deblendrt.engine.compute import drawing
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import Flag

SHAPE = (101, 111)
CENTERS = np.array([[50.2, 49.7], [33.6, 60.1], [66.0, 40.3], [58.4, 68.8]])
FLUX = np.array([6000.0, 1500.0, 2500.0, 900.0])  # i, nJy: S/N of 40 to 250
UNLISTED = np.array([50.2 - 16.0, 49.7 - 16.0])  # 4.5 arcsec from the brightest
SIGMA = 3.0  # a change is a part of the error, and one error in 400 is larger than this


@pytest.fixture(scope="module")
def deblender() -> Deblender:
    return Deblender.load("lsst")


@pytest.fixture(scope="module")
def scene(deblender: Deblender) -> tuple[np.ndarray, np.ndarray]:
    """Image and variance of the listed galaxies."""
    return draw(deblender, CENTERS, FLUX, np.random.default_rng(0))


@pytest.fixture(scope="module")
def full(deblender: Deblender, scene: tuple[np.ndarray, np.ndarray]) -> DeblendResult:
    result = deblender.deblend_batch(scene[0], CENTERS, variance=scene[1], psf="nominal")
    assert (result.flags & int(Flag.NOT_CONVERGED | Flag.NEAR_RESIDUAL_PEAK) == 0).all()
    return result


def draw(deblender: Deblender, centers: np.ndarray, flux: np.ndarray,
         rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw galaxies of the model, with mean colours and shapes near the prior's mean, and sky noise."""
    bundle, folded = deblender.bundle, deblender.fold(None)
    anchor = np.rint(centers).astype(int)
    shape = bundle.start_shape + rng.normal(0, 0.3, (len(centers), bundle.n_shape))
    log_flux = np.log(flux)[:, None] + np.asarray(bundle.mean_color)
    latent = np.concatenate([log_flux, centers - anchor, shape], 1)
    coefficients = deblender.runtime.decode(latent)
    canvas = [np.zeros((len(bundle.bands), *(n + 2 * folded.half for n in SHAPE)), np.float32)]
    drawing.render(coefficients, folded, anchor, np.zeros(len(centers), bool), canvas, np.zeros(len(centers), np.int64))
    sigma = np.asarray(bundle.sky_sigma)[:, None, None]
    image = canvas[0][:, folded.half : -folded.half, folded.half : -folded.half]
    image = image + sigma * rng.standard_normal(image.shape)
    return image.astype(np.float32), np.broadcast_to(sigma**2, image.shape).astype(np.float32)


def assert_same(result: DeblendResult, full: DeblendResult, bands: slice | list[int] = slice(None)) -> None:
    change = np.abs(result.flux - full.flux)[:, bands] / result.flux_err[:, bands]
    assert (change < SIGMA).all(), change.round(1)


@pytest.mark.parametrize("flux", [3000.0, 200000.0])
def test_unlisted_sources_do_not_make_others_grow(deblender: Deblender, full: DeblendResult, flux: float) -> None:
    image, variance = draw(deblender, np.concatenate([CENTERS, [UNLISTED]]), np.append(FLUX, flux),
                           np.random.default_rng(0))
    complete = deblender.deblend_batch(image, np.concatenate([CENTERS, [UNLISTED]]), variance=variance, psf="nominal")
    result = deblender.deblend_batch(image, CENTERS, variance=variance, psf="nominal")
    change = np.abs(result.flux - complete.flux[:4]) / result.flux_err
    settled = (result.flags & int(Flag.NOT_CONVERGED)) == 0
    assert (change[settled] < 1).all(), change.round(1)
    assert settled.sum() >= 3
    assert (change < 2).all(), change.round(1)
    near = np.hypot(*(CENTERS - UNLISTED).T) * 0.2 < 3
    np.testing.assert_array_equal((result.flags & int(Flag.NEAR_RESIDUAL_PEAK)) > 0, near)
    assert result.n_source == 4
    assert [m.shape[0] for m in result.blend_flux_cov] == np.bincount(result.blend).tolist()
    peaks = result.residual_peaks(0)  # the unlisted source stays in the residual
    assert np.hypot(*(peaks[:, :2] - UNLISTED).T).min() < 1
    if flux > 1e5:  # without robust weights the test fails
        plain = deblender.deblend_batch(image, CENTERS, variance=variance, robust=False, psf="nominal")
        assert (np.abs(plain.flux - complete.flux[:4]) > 10 * plain.flux_err).any()


def test_sources_near_an_unlisted_one_are_flagged(deblender: Deblender) -> None:
    image, variance = draw(deblender, np.concatenate([CENTERS, CENTERS[:1] + 8]), np.append(FLUX, 20000.0),
                           np.random.default_rng(0))
    result = deblender.deblend_batch(image, CENTERS, variance=variance, psf="nominal")
    assert result.flags[0] & int(Flag.NEAR_RESIDUAL_PEAK)


@pytest.mark.parametrize("bands", ["grizy", "ugrzy", "r"])
def test_missing_bands(deblender: Deblender, scene: tuple[np.ndarray, np.ndarray], full: DeblendResult,
                       bands: str) -> None:
    used = ["ugrizy".index(b) for b in bands]
    result = deblender.deblend_batch(scene[0][used], CENTERS, variance=scene[1][used], bands=bands,
                                     psf=np.asarray(deblender.bundle.psf)[used])
    assert (result.flags & int(Flag.BAND_MISSING) != 0).all()
    assert np.isnan(np.delete(result.flux, used, 1)).all()
    assert_same(result, full, used)


def test_small_single_band_cutout(deblender: Deblender, scene: tuple[np.ndarray, np.ndarray],
                                  full: DeblendResult) -> None:
    area = (slice(2, 3), slice(35, 65), slice(35, 65))
    result = deblender.deblend_batch(scene[0][area], CENTERS[:1] - 35, variance=scene[1][area], bands="r",
                                     psf=np.asarray(deblender.bundle.psf)[2:3])
    assert result.flags[0] & int(Flag.NOT_CONVERGED) == 0
    assert abs(result.flux[0, 2] - full.flux[0, 2]) < SIGMA * result.flux_err[0, 2]


@pytest.mark.parametrize("case", ["pixels", "column", "core", "half", "nan", "variance"])
def test_masks(deblender: Deblender, scene: tuple[np.ndarray, np.ndarray], full: DeblendResult, case: str) -> None:
    image, variance = scene
    y, x = np.indices(SHAPE) - np.rint(CENTERS[0, ::-1])[:, None, None]
    scattered = np.random.default_rng(1).random(image.shape) < 0.1
    mask = {"column": x == 0, "core": x**2 + y**2 <= 9, "half": (x < 0) & (x > -25)}.get(case, scattered)
    if case == "nan":
        result = deblender.deblend_batch(np.where(mask, np.nan, image), CENTERS, variance=variance, psf="nominal")
    elif case == "variance":
        result = deblender.deblend_batch(image, CENTERS, variance=np.where(mask, np.inf, variance), psf="nominal")
    else:
        result = deblender.deblend_batch(np.where(mask, 1e5, image), CENTERS, variance=variance, mask=mask,
                                         psf="nominal")
    if case == "core":  # most of the source's light is hidden
        assert result.flags[0] & int(Flag.MASKED_CENTER)
        result = changed(result, "flux", 0, full.flux[0])
    assert_same(result, full)


@pytest.mark.parametrize("left", [10, 3, 0])
def test_edges(deblender: Deblender, scene: tuple[np.ndarray, np.ndarray], full: DeblendResult, left: int) -> None:
    corner = 50 - left
    image, variance = (a[:, :, corner:] for a in scene)
    result = deblender.deblend_batch(image, CENTERS - [corner, 0], variance=variance, psf="nominal")
    inside = CENTERS[:, 0] > corner - 0.5
    np.testing.assert_array_equal((result.flags & int(Flag.OFF_IMAGE)) == 0, inside)
    assert np.isnan(result.flux[~inside]).all()
    change = np.abs(result.flux - full.flux)[inside & (CENTERS[:, 0] >= 50)] / result.flux_err[
        inside & (CENTERS[:, 0] >= 50)]
    assert (change < SIGMA).all(), change.round(1)
