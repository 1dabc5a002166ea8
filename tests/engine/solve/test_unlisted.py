"""Peaks of the residual: unlisted sources are found, noise is not."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import SAMPLE_SIGMA
from toy_model import SKY_SIGMA, ToyModel
from toy_scenes import VARIANCE, make_scene

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.solve.unlisted import residual_peaks

SHAPE = (90, 100)
ANCHORS = [[20, 20], [26, 24], [60, 30], [75, 70], [30, 65], [52, 50], [85, 15], [10, 78]]
UNLISTED = [3, 5]


@pytest.fixture(scope="module")
def field(toy_deblender: Deblender, toy_model: ToyModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return make_scene(toy_deblender, toy_model, ANCHORS, SHAPE, seed=5)


def test_a_quarter_of_the_list_deleted(toy_deblender: Deblender, field: tuple[np.ndarray, ...]) -> None:
    image, centers, flux = field
    listed = np.delete(np.arange(len(centers)), UNLISTED)
    result = toy_deblender.deblend_batch(image, centers[listed], variance=VARIANCE, psf="nominal")
    peaks = result.residual_peaks(0)
    assert (np.diff(peaks[:, 2]) <= 0).all()
    for center in centers[UNLISTED]:
        assert np.hypot(*(peaks[:, :2] - center).T).min() < 0.7
    assert len(peaks) == len(UNLISTED)
    far = np.hypot(*(centers[listed, None] - centers[UNLISTED]).transpose(2, 0, 1)).min(1) > 15
    assert far.sum() >= 4
    pull = (result.flux - flux[listed]) / result.flux_err
    assert (np.abs(pull[far]) < SAMPLE_SIGMA).all()

    complete = toy_deblender.deblend_batch(image, centers[listed], variance=VARIANCE, find_missed=True, psf="nominal")
    n = len(listed)
    np.testing.assert_array_equal(complete.center[:n], centers[listed])
    assert complete.n_source == len(centers)
    assert (complete.flags[:n] & Flag.FOUND == 0).all()
    assert (complete.flags[n:] & Flag.FOUND != 0).all()
    for center, true in zip(centers[UNLISTED], flux[UNLISTED], strict=True):
        i = n + int(np.hypot(*(complete.position[n:] - center).T).argmin())
        assert (np.abs(complete.flux[i] - true) < SAMPLE_SIGMA * complete.flux_err[i]).all()
    assert len(complete.residual_peaks(0)) == 0


def test_complete_lists_stay_as_they_are(toy_deblender: Deblender, field: tuple[np.ndarray, ...]) -> None:
    image, centers, _ = field
    plain = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf="nominal")
    searched = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, find_missed=True, psf="nominal")
    np.testing.assert_array_equal(searched.flux, plain.flux)
    assert searched.n_source == len(centers)


def test_found_sources_follow_those_of_their_scene(toy_deblender: Deblender, field: tuple[np.ndarray, ...]) -> None:
    image, centers, _ = field
    result = toy_deblender.deblend_batch([image, image[:, :40], image], [centers[:3], centers[:2], centers[:0]],
                                         variance=VARIANCE, find_missed=True, psf="nominal")
    for k, given in enumerate((centers[:3], centers[:2], centers[:0])):
        rows = result.sources(k)
        np.testing.assert_array_equal(result.center[rows][: len(given)], given)
        found = (result.flags[rows] & Flag.FOUND) != 0
        np.testing.assert_array_equal(found, np.arange(len(found)) >= len(given))
    assert len(ANCHORS) - 1 <= np.diff(result.source_start)[2] <= len(ANCHORS) + 1


def test_noise_and_masks_have_no_peaks() -> None:
    rng = np.random.default_rng(0)
    sigma = np.array(SKY_SIGMA)[:, None, None]
    image = (sigma * rng.standard_normal((3, 300, 300))).astype(np.float32)
    weight = np.broadcast_to(sigma**-2, image.shape).astype(np.float32)
    image[:, 100:110, 50:60] += 50 * sigma.astype(np.float32)
    weight = weight.copy()
    weight[:, 95:115, 45:65] = 0
    image[weight == 0] = 0
    assert len(residual_peaks(image, weight, np.zeros_like(image), np.full(3, 4.0), np.zeros((0, 2)))) == 0
    weak = residual_peaks(image, weight, np.zeros_like(image), np.full(3, 4.0), np.zeros((0, 2)), threshold=4.0)
    assert 0 < len(weak) < 200  # the threshold decides


def test_significance_is_that_of_a_point_source() -> None:
    y, x = np.mgrid[:41, :41]
    psf = np.exp(-0.5 * ((x - 20) ** 2 + (y - 20) ** 2) / (4.0 / 2.3548) ** 2)
    image = (100 * psf / psf.sum()).astype(np.float32)[None]
    weight = np.ones_like(image)
    nothing = np.zeros_like(image)
    peaks = residual_peaks(image, weight, nothing, np.array([4.0]), np.zeros((0, 2)), threshold=3.0)
    np.testing.assert_allclose(peaks, [[20, 20, 100 * np.sqrt((psf**2).sum()) / psf.sum()]], rtol=1e-3)
    beside = residual_peaks(image, weight, nothing, np.array([4.0]), np.array([[22.0, 20.0]]), threshold=3.0)
    assert not len(beside)
