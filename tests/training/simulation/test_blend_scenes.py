"""Simulated scenes: geometry, fluxes, noise."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("galsim")
pytest.importorskip("galcheat")

from deblendrt.training import config
from deblendrt.training.simulation import blend_scenes, population, survey

SPEC = config.Survey("LSST", ["g", "r", "i"], "i", 0.2, "LSST_{band}.dat")
SHAPE = (51, 61)


@pytest.fixture(scope="module")
def depth():
    return survey.depth(SPEC)


@pytest.fixture(scope="module")
def psf(depth):
    return survey.nominal_psf(depth)


def make_galaxies(n):
    """Small round galaxies of known flux, half bulge and half disk."""
    flux = np.outer(1 + np.arange(n), [800.0, 1000.0, 1100.0])
    radius = np.full(n, 0.3)
    return population.Galaxies(
        magnitude=np.full(n, 24.0), redshift=np.ones(n), bulge_fraction=np.full(n, 0.5), bulge_half_light_radius=radius,
        disk_half_light_radius=radius, bulge_ellipticity=np.zeros(n), disk_ellipticity=np.zeros(n),
        position_angle=np.zeros(n), bulge_flux=flux / 2, disk_flux=flux / 2,
        bulge_sersic=np.full(n, 4.0), disk_sersic=np.ones(n))


def simulate_two(psf, depth, *, noise, seed=0, shape=SHAPE):
    return blend_scenes.simulate_scene(make_galaxies(3), [2, 0], [[25.3, 24.6], [35.0, 28.0]], psf, depth, shape,
                                   np.random.default_rng(seed), noise=noise)


def test_shapes_and_types(psf, depth):
    scene = simulate_two(psf, depth, noise=True)
    assert scene.image.shape == scene.variance.shape == (3, *SHAPE)
    assert scene.truth.shape == (2, 3, *SHAPE)
    assert scene.image.dtype == scene.variance.dtype == scene.truth.dtype == np.float32
    np.testing.assert_allclose(scene.flux[:, 1], [3000.0, 1000.0])


def test_noiseless_scene_is_the_sum_of_its_sources(psf, depth):
    scene = simulate_two(psf, depth, noise=False)
    np.testing.assert_allclose(scene.image, scene.truth.sum(0), atol=1e-3)
    assert np.all(scene.variance > (depth.sky_sigma**2)[:, None, None] * 0.999)


def test_flux_lands_in_the_image(psf, depth):
    # 1%: wings of a de Vaucouleurs profile beyond 2.4 arcsec, and 0.5% of the flux in the PSF's far wings
    scene = simulate_two(psf, depth, noise=False)
    np.testing.assert_allclose(scene.truth.sum((2, 3)), scene.flux, rtol=0.01)


def test_positions_are_x_y_with_integer_at_the_pixel_centre(psf, depth):
    scene = simulate_two(psf, depth, noise=False)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for truth, (center_x, center_y) in zip(scene.truth[:, 1].astype(float), scene.centers, strict=True):
        near = truth * (np.hypot(x - center_x, y - center_y) < 8)
        # the pixelated edge of the truncation moves the centroid by up to a few thousandths of a pixel
        assert (near * x).sum() / near.sum() == pytest.approx(center_x, abs=0.01)
        assert (near * y).sum() / near.sum() == pytest.approx(center_y, abs=0.01)


def test_noise_has_the_stated_variance(psf, depth):
    scenes = [simulate_two(psf, depth, noise=True, seed=k) for k in range(12)]
    chi = np.array([(s.image - s.truth.sum(0, dtype=float)) / np.sqrt(s.variance) for s in scenes])
    n = chi[:, 0].size
    for band in range(3):
        assert abs(chi[:, band].mean()) < 5 / np.sqrt(n)
        assert abs((chi[:, band] ** 2).mean() - 1) < 5 * np.sqrt(2 / n)
    bright = scenes[0].truth.sum(0) > 20 * np.asarray(depth.sky_sigma)[:, None, None]
    assert abs((chi[:, bright] ** 2).mean() - 1) < 5 * np.sqrt(2 / chi[:, bright].size)


def test_seeded(psf, depth):
    np.testing.assert_array_equal(simulate_two(psf, depth, noise=True, seed=5).image,
                                  simulate_two(psf, depth, noise=True, seed=5).image)


def test_bands_that_share_a_psf_are_drawn_alike(psf, depth):
    same = survey.psf_from_fwhm([0.8, 0.8, 0.8], 0.2)
    truth = simulate_two(same, depth, noise=False).truth
    np.testing.assert_allclose(truth[:, 0] / 800, truth[:, 1] / 1000, rtol=1e-5, atol=1e-7)


def test_positions_of_wrong_shape_raise(psf, depth):
    with pytest.raises(ValueError, match="positions"):
        blend_scenes.simulate_scene(make_galaxies(3), [0, 1], [[1.0, 2.0]], psf, depth, SHAPE, np.random.default_rng(0))


def test_blend_positions_keep_apart_and_inside():
    rng = np.random.default_rng(0)
    for n in (1, 8, 12):
        positions = blend_scenes.blend_positions(n, (61, 101), rng, spread=12.0, min_separation=3.0, margin=13.0)
        assert positions.shape == (n, 2)
        separation = np.hypot(*(positions[:, None] - positions[None]).T) + 1e9 * np.eye(n)
        assert separation.min() >= 3.0
        assert np.all((positions >= 13.0) & (positions <= np.array([100, 60]) - 13.0))


def test_positions_that_do_not_fit_raise():
    with pytest.raises(ValueError, match="n_source"):
        blend_scenes.blend_positions(60, (31, 31), np.random.default_rng(0), spread=3.0, min_separation=5.0,
                                     margin=10.0)


def test_random_blend_scene(psf, depth):
    pool = make_galaxies(20)
    rng = np.random.default_rng(1)
    counts = {len(blend_scenes.random_blend_scene(pool, psf, depth, rng, shape=(45, 45), n_source=(2, 4), margin=10.0)
                  .centers) for _ in range(12)}
    assert counts == {2, 3, 4}


def test_natural_population_follows_the_counts():
    settings = config.load("smoke.toml")
    galaxies = blend_scenes.natural_population(settings, 4000, np.random.default_rng(0))
    assert galaxies.magnitude.max() <= population.GOLD_LIMIT
    # 10^(0.31 m) without the galaxies below the surface brightness limit, most within two magnitudes of the limit
    faint = (galaxies.magnitude > population.GOLD_LIMIT - 2).mean()
    assert 0.6 < faint < 0.85
