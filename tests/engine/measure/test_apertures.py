"""Circular apertures against areas known in closed form, and the functional against photometry of the image."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import FLOAT32, SAMPLE_SIGMA
from toy_model import STAMP, ToyModel

from deblendrt.engine.measure.apertures import aperture_flux, aperture_functional, circle

ROUNDING = 1e-12  # of a pixel: the double difference of areas of up to 450 pixels


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0, 3.7, 12.0])
@pytest.mark.parametrize("center", [(20, 15), (20.3, 14.9), (19.5, 15.5)])
def test_area_of_a_circle_on_the_image(radius: float, center: tuple[float, float]) -> None:
    fraction = circle((31, 41), center, radius)
    assert fraction.shape == (31, 41)
    assert abs(fraction.sum() / (np.pi * radius**2) - 1) < ROUNDING
    assert fraction.min() >= 0
    assert fraction.max() <= 1
    y, x = np.indices(fraction.shape)
    distance = np.hypot(x - center[0], y - center[1])
    assert (fraction[distance > radius + np.sqrt(0.5)] < ROUNDING).all()
    assert (fraction[distance < radius - np.sqrt(0.5)] > 1 - ROUNDING).all()


def test_pixels_against_subpixels() -> None:
    center, radius, n = np.array([5.21, 3.93]), 2.6, 200
    y, x = ((np.indices((8 * n, 11 * n)) + 0.5) / n - 0.5)
    inside = np.hypot(x - center[0], y - center[1]) < radius
    counted = inside.reshape(8, n, 11, n).mean((1, 3))
    np.testing.assert_allclose(circle((8, 11), center, radius), counted, atol=2 / n)
    assert np.abs(circle((8, 11), center, radius) - counted).mean() < 0.1 / n


def test_simple_shares() -> None:
    quarter = circle((1, 1), (-0.5, -0.5), 1.0)  # the circle's centre on the pixel's corner
    assert abs(quarter[0, 0] - np.pi / 4) < ROUNDING
    whole = circle((1, 1), (0, 0), 100.0)
    assert abs(whole[0, 0] - 1) < 1e-11  # differences of areas of 10^4 pixels
    assert circle((3, 3), (50.0, 1.0), 2.0).max() == 0


def test_many_centers_are_each_alone() -> None:
    center = np.random.default_rng(0).uniform(-2, 14, (5, 2))
    together = circle((12, 13), center, 2.2)
    np.testing.assert_array_equal(together, [circle((12, 13), c, 2.2) for c in center])


def test_flux_of_a_gaussian() -> None:
    y, x = np.indices((61, 61))
    r2 = (x - 30.2) ** 2 + (y - 29.7) ** 2
    image = np.stack([np.exp(-r2 / (2 * s**2)) / (2 * np.pi * s**2) for s in (3.0, 5.0)])
    flux, err = aperture_flux(image, (30.2, 29.7), 6.0)
    # a fraction of a pixel stands for the same fraction of its light: second order in 1 / sigma
    np.testing.assert_allclose(flux, 1 - np.exp(-18 / np.array([3.0, 5.0]) ** 2), rtol=3e-3)
    assert np.isnan(err).all()


def test_error_is_the_scatter() -> None:
    rng = np.random.default_rng(1)
    sigma, n = np.array([1.0, 4.0]), 4000
    image = rng.normal(0, 1, (n, 2, 9, 9)) * sigma[:, None, None]
    flux = np.array([aperture_flux(i, (4.3, 3.9), 2.5)[0] for i in image])
    err = aperture_flux(image[0], (4.3, 3.9), 2.5, variance=sigma**2)[1]
    assert (np.abs(flux.std(0) / err - 1) < SAMPLE_SIGMA / np.sqrt(2 * n)).all()
    planes = np.broadcast_to(sigma[:, None, None] ** 2, (2, 9, 9))
    np.testing.assert_array_equal(aperture_flux(image[0], (4.3, 3.9), 2.5, variance=planes)[1], err)
    single = aperture_flux(image[0, :1], (4.3, 3.9), 2.5, variance=1.0)[1]
    np.testing.assert_array_equal(single, err[:1])


def test_bad_pixels_outside_do_not_matter() -> None:
    image, variance = np.ones((1, 9, 9)), np.ones((1, 9, 9))
    image[0, 0, 0], variance[0, 8, 8] = np.nan, np.inf
    flux, err = aperture_flux(image, (4, 4), 2.0, variance=variance)
    assert abs(flux[0] - 4 * np.pi) < ROUNDING * 10
    assert np.isfinite(err).all()
    image[0, 4, 4] = np.nan
    assert np.isnan(aperture_flux(image, (4, 4), 2.0)[0]).all()


def test_functional_is_photometry_of_the_image(toy_model: ToyModel) -> None:
    rng = np.random.default_rng(2)
    basis = toy_model.phi.reshape(-1, STAMP, STAMP)
    n = 70  # more than two tiles, the last not full
    coefficients = rng.standard_normal((n, 2, len(basis)))
    center = STAMP // 2 + rng.uniform(-0.5, 0.5, (n, 2))
    functional = aperture_functional(basis, center, 3.3)
    assert functional.shape == (n, len(basis))
    assert functional.dtype == np.float64
    image = np.einsum("nbk,kyx->nbyx", coefficients, basis.astype(float))
    expected = np.array([aperture_flux(i, c, 3.3)[0] for i, c in zip(image, center, strict=True)])
    actual = (coefficients * functional[:, None]).sum(2)
    assert np.abs(actual - expected).max() < FLOAT32 * np.abs(image).sum((2, 3)).max()
    assert aperture_functional(basis, center[:0], 3.3).shape == (0, len(basis))


@pytest.mark.parametrize("n", [1, 2, 31, 33])
def test_functional_does_not_depend_on_the_batch(toy_model: ToyModel, n: int) -> None:
    basis = toy_model.phi.reshape(-1, STAMP, STAMP)
    center = STAMP // 2 + np.random.default_rng(3).uniform(-0.5, 0.5, (40, 2))
    np.testing.assert_array_equal(aperture_functional(basis, center[:n], 2.0),
                                  aperture_functional(basis, center, 2.0)[:n])


def test_mistakes_are_named() -> None:
    image = np.ones((2, 9, 9))
    for call in (lambda: circle((9, 9), (4, 4), 0.0), lambda: aperture_flux(image, (4, 4), -1.0),
                 lambda: circle((9, 9), (4, 4), np.inf)):
        with pytest.raises(ValueError, match="radius: expected a positive number of pixels"):
            call()
    with pytest.raises(ValueError, match="center: expected shape"):
        circle((9, 9), (4, 4, 4), 1.0)
    with pytest.raises(ValueError, match="center: expected shape"):
        aperture_flux(image, [(4, 4)], 1.0)
    with pytest.raises(ValueError, match="image: expected shape"):
        aperture_flux(image[0], (4, 4), 1.0)
    with pytest.raises(ValueError, match="variance: expected a number"):
        aperture_flux(image, (4, 4), 1.0, variance=np.ones(3))
