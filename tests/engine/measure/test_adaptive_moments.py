"""Adaptive moments against Gaussians, GalSim's HSM and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import GRADIENT
from toy_model import STAMP, ToyModel

from deblendrt.engine.measure.adaptive_moments import adaptive_moments, ellipticity, ellipticity_gradient

SIZE = 53
MIDDLE = np.array([SIZE // 2, SIZE // 2], float)
HSM = 5e-6  # HSM stops at a tolerance (1e-9 of e and of x / sigma), and its float64 sums skip weights below e^-25


def gaussians(moments: np.ndarray, center: np.ndarray, size: int = SIZE) -> np.ndarray:
    y, x = np.indices((size, size))
    dx, dy = x - center[:, 0, None, None], y - center[:, 1, None, None]
    xx, yy, xy = moments.T[:, :, None, None]
    return np.exp(-0.5 * (yy * dx**2 + xx * dy**2 - 2 * xy * dx * dy) / (xx * yy - xy**2))


def random_moments(n: int, rng: np.random.Generator, sigma: tuple[float, float]) -> np.ndarray:
    size, length, angle = rng.uniform(*sigma, n) ** 2, rng.uniform(0, 0.5, n), rng.uniform(0, np.pi, n)
    e1, e2 = length * np.cos(2 * angle), length * np.sin(2 * angle)
    return np.stack([size * (1 + e1), size * (1 - e1), size * e2], 1)


def test_a_gaussian_has_its_own_covariance() -> None:
    rng = np.random.default_rng(0)
    n = 70  # more than two tiles, the last not full
    moments, center = random_moments(n, rng, (2.0, 4.0)), MIDDLE + rng.uniform(-1, 1, (n, 2))
    image = 1e3 * gaussians(moments, center)
    shapes = adaptive_moments(image, np.tile(MIDDLE, (n, 1)), np.ones((1, SIZE, SIZE), np.float32))
    assert shapes.converged.all()
    np.testing.assert_allclose(shapes.moments, moments, atol=1e-6)  # well sampled, and the stamp cuts little
    np.testing.assert_allclose(shapes.center, center, atol=1e-6)
    xx, yy, xy = moments.T
    np.testing.assert_allclose(ellipticity(shapes.moments), np.stack([xx - yy, 2 * xy], 1) / (xx + yy)[:, None],
                               atol=1e-6)


@pytest.mark.parametrize("kind", ["Exponential", "DeVaucouleurs"])
@pytest.mark.parametrize("radius", [0.1, 0.8, 2.0, 4.0, 8.0])
def test_galaxies_against_hsm(kind: str, radius: float) -> None:
    galsim = pytest.importorskip("galsim")
    rng = np.random.default_rng(1)
    for axis_ratio in (1.0, 0.6, 0.3):
        offset = rng.uniform(-0.5, 0.5, 2)
        galaxy = getattr(galsim, kind)(half_light_radius=radius, flux=100.0)
        galaxy = galaxy.shear(q=axis_ratio, beta=rng.uniform(0, 180) * galsim.degrees).shift(*offset)
        image = galsim.Convolve(galaxy, galsim.Gaussian(sigma=1.0)).drawImage(
            nx=SIZE, ny=SIZE, scale=1.0, method="no_pixel", dtype=float)
        expected = image.FindAdaptiveMom(precision=1e-9, hsmparams=galsim.hsm.HSMParams(max_mom2_iter=4000))
        shapes = adaptive_moments(image.array[None], MIDDLE[None], np.ones((1, SIZE, SIZE), np.float32))
        assert shapes.converged.all()
        xx, yy, xy = shapes.moments[0]
        e = ellipticity(shapes.moments)[0]
        assert abs((xx * yy - xy**2) ** 0.25 / expected.moments_sigma - 1) < HSM
        assert abs(e[0] - expected.observed_e1) < HSM
        assert abs(e[1] - expected.observed_e2) < HSM
        assert abs(shapes.center[0, 0] + 1 - expected.moments_centroid.x) < HSM * expected.moments_sigma
        assert abs(shapes.center[0, 1] + 1 - expected.moments_centroid.y) < HSM * expected.moments_sigma


def galaxy_coefficients(model: ToyModel, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of a galaxy that is nearly Gaussian, and the basis."""
    rng = np.random.default_rng(4)
    basis = model.phi.reshape(-1, STAMP, STAMP)
    moments = random_moments(n, rng, (1.4, 2.0))
    image = gaussians(moments, STAMP // 2 + rng.uniform(-0.4, 0.4, (n, 2)), STAMP)
    flat = basis.reshape(len(basis), -1).astype(float)
    coefficients = image.reshape(n, -1) @ flat.T
    return 1e4 * (coefficients + 0.01 * rng.standard_normal(coefficients.shape)), basis


def test_gradient_by_finite_differences(toy_model: ToyModel) -> None:
    n = 4
    coefficients, basis = galaxy_coefficients(toy_model, n)
    start = np.full((n, 2), STAMP // 2, float)

    def moments(c: np.ndarray) -> np.ndarray:
        shapes = adaptive_moments(np.einsum("nk,kyx->nyx", c, basis.astype(float)), start, basis)
        assert shapes.converged.all()
        return shapes.moments

    shapes = adaptive_moments(np.einsum("nk,kyx->nyx", coefficients, basis.astype(float)), start, basis)
    e_gradient = ellipticity_gradient(shapes.moments, shapes.gradient)
    step = 1.0  # the coefficients are 1e4
    for k in range(len(basis)):
        shift = step * np.eye(len(basis))[k]
        up, down = moments(coefficients + shift), moments(coefficients - shift)
        scale = np.abs(shapes.gradient).max((1, 2), keepdims=True)[:, 0]
        assert (np.abs((up - down) / (2 * step) - shapes.gradient[:, :, k]) < GRADIENT * scale).all()
        numeric = (ellipticity(up) - ellipticity(down)) / (2 * step)
        assert (np.abs(numeric - e_gradient[:, :, k]) < GRADIENT * np.abs(e_gradient).max()).all()


def test_moments_do_not_depend_on_the_flux(toy_model: ToyModel) -> None:
    coefficients, basis = galaxy_coefficients(toy_model, 3)
    start = np.full((3, 2), STAMP // 2, float)
    image = np.einsum("nk,kyx->nyx", coefficients, basis.astype(float))
    one, other = adaptive_moments(image, start, basis), adaptive_moments(1e-6 * image, start, basis)
    np.testing.assert_allclose(other.moments, one.moments, rtol=1e-9)
    np.testing.assert_allclose(1e-6 * other.gradient, one.gradient, rtol=1e-9)
    along = (one.gradient * coefficients[:, None]).sum(2)  # a brighter galaxy has the same shape
    assert (np.abs(along) < 1e-4 * np.abs(one.gradient * coefficients[:, None]).sum(2)).all()


@pytest.mark.parametrize("n", [1, 2, 31, 33])
def test_bits_do_not_depend_on_the_batch(toy_model: ToyModel, n: int) -> None:
    coefficients, basis = galaxy_coefficients(toy_model, 40)
    image = np.einsum("nk,kyx->nyx", coefficients, basis.astype(float))
    start = np.full((40, 2), STAMP // 2, float)
    whole, part = adaptive_moments(image, start, basis), adaptive_moments(image[:n], start[:n], basis)
    for a, b in zip(part, whole, strict=True):
        np.testing.assert_array_equal(a, b[:n])


def test_what_has_no_shape_is_not_converged() -> None:
    good = gaussians(np.array([[4.0, 3.0, 0.5]]), MIDDLE[None])[0]
    pixel = np.zeros((SIZE, SIZE))
    pixel[26, 26] = 1
    line = np.zeros((SIZE, SIZE))
    line[26] = 1
    noise = np.random.default_rng(0).standard_normal((SIZE, SIZE))
    image = np.stack([0 * good, -good, pixel, line, noise, good * np.nan, good])
    shapes = adaptive_moments(image, np.tile(MIDDLE, (7, 1)), np.ones((2, SIZE, SIZE), np.float32))
    assert shapes.converged.tolist() == [False] * 6 + [True]
    for values in (shapes.moments, shapes.center, shapes.gradient):
        assert np.isnan(values[:6]).all()
        assert np.isfinite(values[6]).all()
    alone = adaptive_moments(image[6:], MIDDLE[None], np.ones((2, SIZE, SIZE), np.float32))
    np.testing.assert_array_equal(alone.moments, shapes.moments[6:])


def test_light_beyond_the_stamp_is_missed_but_converges() -> None:
    y, x = np.indices((SIZE, SIZE))
    scale = np.array([2.0, 4.0, 8.0, 16.0])  # half-light radii are 1.68 times larger
    image = np.exp(-np.hypot(x - 26, y - 26) / scale[:, None, None])
    shapes = adaptive_moments(image, np.tile(MIDDLE, (4, 1)), np.ones((1, SIZE, SIZE), np.float32))
    assert shapes.converged.all()
    relative = np.sqrt(shapes.moments[:, 0]) / scale
    assert relative[1] == pytest.approx(relative[0], rel=0.02)
    assert (np.diff(relative[1:]) < 0).all()


def test_no_source() -> None:
    shapes = adaptive_moments(np.zeros((0, SIZE, SIZE)), np.zeros((0, 2)), np.ones((5, SIZE, SIZE), np.float32))
    assert [a.shape for a in shapes] == [(0, 3), (0, 2), (0,), (0, 3, 5)]
