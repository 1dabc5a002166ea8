"""The accuracy metrics on hand-made cases; each metric can fail."""

from __future__ import annotations

import numpy as np
import pytest

from perf import metrics


def gaussian(center, sigma, shape=(45, 45)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)


def test_cosine():
    image = gaussian((22, 22), 2.0)
    assert metrics.cosine(3 * image, image) == pytest.approx(1.0)
    assert metrics.cosine(np.zeros_like(image), image) == 0.0
    # two Gaussians a distance d apart: exp(-d^2 / (4 sigma^2))
    assert metrics.cosine(gaussian((24, 22), 2.0), image) == pytest.approx(np.exp(-0.25), rel=1e-4)


def test_ssim_is_one_for_equal_images_and_blind_to_flux():
    image = gaussian((22, 22), 2.0)
    assert metrics.ssim(image, image) == pytest.approx(1.0)
    assert metrics.ssim(5 * image, image) == pytest.approx(1.0)
    assert np.isnan(metrics.ssim(np.zeros_like(image), image))


def test_ssim_of_one_window_from_the_definition():
    rng = np.random.default_rng(0)
    p, t = rng.random((2, 7, 7))
    p, t = p / p.max(), t / t.max()
    c = np.cov(p.ravel(), t.ravel())
    expected = ((2 * p.mean() * t.mean() + 1e-4) * (2 * c[0, 1] + 9e-4)
                / ((p.mean() ** 2 + t.mean() ** 2 + 1e-4) * (c[0, 0] + c[1, 1] + 9e-4)))
    assert metrics.ssim(p, t) == pytest.approx(expected)


def test_ssim_falls_with_distortion():
    image = gaussian((22, 22), 2.0)
    values = [metrics.ssim(gaussian((22 + d, 22), 2.0), image) for d in (0, 0.5, 1, 2)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.95


def test_stamp_pads_with_zero_off_the_image():
    image = np.arange(30.0).reshape(5, 6)
    np.testing.assert_array_equal(metrics.stamp(image, (2.4, 1.6), 3), image[1:4, 1:4])
    cut = metrics.stamp(image, (0, 0), 3)
    np.testing.assert_array_equal(cut[1:, 1:], image[:2, :2])
    assert not cut[0].any()
    assert not metrics.stamp(image, (50, 50), 3).any()


def test_place_inverts_stamp():
    image = np.arange(30.0).reshape(5, 6)
    cut = metrics.stamp(image, (1, 3), 5)
    placed = metrics.place(cut, (-1, 1), image.shape)
    np.testing.assert_array_equal(placed[1:, :4], image[1:, :4])
    assert not placed[0].any()
    assert not placed[:, 4:].any()


def test_aperture_weights_area():
    weights = metrics.aperture_weights((21, 31), (14.3, 10.7), 3.0)
    assert weights.sum() == pytest.approx(np.pi * 9, rel=0.01)  # 10x10 subpixels: 0.1 pixel along the rim
    y, x = np.mgrid[:21, :31]
    assert (weights * x).sum() / weights.sum() == pytest.approx(14.3, abs=0.02)
    assert (weights * y).sum() / weights.sum() == pytest.approx(10.7, abs=0.02)


def test_blendedness():
    apart = np.array([gaussian((10, 22), 1.5), gaussian((34, 22), 1.5)])
    np.testing.assert_allclose(metrics.blendedness(apart), 0, atol=1e-6)
    twins = np.array([gaussian((22, 22), 1.5)] * 2)
    np.testing.assert_allclose(metrics.blendedness(twins), 0.5)


def test_noise_floor_is_unbiased_and_its_error_right():
    rng = np.random.default_rng(0)
    flux = np.array([300.0, 100.0])
    truth = flux[:, None, None] * np.array([gaussian((20, 22), 2.0), gaussian((24, 22), 2.0)])
    variance = np.full((45, 45), 0.25)
    solved = []
    for _ in range(200):
        image = truth.sum(0) + 0.5 * rng.standard_normal((45, 45))
        fitted, error = metrics.noise_floor(image, variance, truth, flux)
        solved.append(fitted)
    pull = (np.array(solved) - flux) / error
    assert np.all(np.abs(pull.mean(0)) < 5 / np.sqrt(200))
    np.testing.assert_allclose(pull.std(0), 1.0, atol=0.2)
    assert np.all(error > metrics.isolated_error(truth, flux, 0.5, np.inf))


def test_isolated_error_of_a_gaussian():
    # sky only: sigma_sky * sqrt(4 pi sigma^2)
    truth = 50.0 * gaussian((22, 22), 2.0)[None]
    assert metrics.isolated_error(truth, [50.0], 0.3, np.inf)[0] == pytest.approx(0.3 * np.sqrt(16 * np.pi), rel=1e-4)


def test_color_error():
    true = np.array([[1.0, 2.0], [1.0, 1.0]])
    measured = np.array([[2.0, 2.0], [-1.0, 1.0]])
    error = metrics.color_error(measured, true, 0, 1)
    assert error[0] == pytest.approx(2.5 * np.log10(2))
    assert np.isnan(error[1])


def test_pull_width():
    rng = np.random.default_rng(0)
    true = np.full((4000, 2), 100.0)
    flux = true + rng.standard_normal((4000, 2)) * [1.0, 3.0]
    flux[0] = np.nan
    np.testing.assert_allclose(metrics.pull_width(flux, np.ones((4000, 2)), true), [1.0, 3.0], rtol=0.06)
