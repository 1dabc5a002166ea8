"""The population's marginals against the relations that its documentation cites."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("galsim")

from tolerances import SAMPLE_SIGMA

from deblendrt.training import config
from deblendrt.training.simulation import population

N = 20000
SETTINGS = config.load("smoke.toml")
# a population that keeps every galaxy, without a uniform share
OPEN = dataclasses.replace(SETTINGS.population, uniform_fraction=0.0, surface_brightness_limit=99.0)


def draw(spec: config.Population, n: int = N, seed: int = 0) -> population.Galaxies:
    return population.draw(spec, SETTINGS.survey, n, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def galaxies() -> population.Galaxies:
    return draw(OPEN)


def at(magnitude: float) -> population.Galaxies:
    """Galaxies of one magnitude."""
    return draw(dataclasses.replace(OPEN, magnitude_min=magnitude - 0.01, magnitude_max=magnitude + 0.01))


def test_counts(galaxies: population.Galaxies) -> None:
    low, high = OPEN.magnitude_min, OPEN.magnitude_max
    assert galaxies.magnitude.min() >= low
    assert galaxies.magnitude.max() <= high
    for m in (20.0, 22.0, 24.0, 25.0, 26.0):
        expected = (10 ** (0.31 * m) - 10 ** (0.31 * low)) / (10 ** (0.31 * high) - 10 ** (0.31 * low))
        fraction = (galaxies.magnitude < m).mean()
        assert abs(fraction - expected) < SAMPLE_SIGMA * np.sqrt(expected / N)


def test_a_share_is_uniform_in_magnitude() -> None:
    low, high = OPEN.magnitude_min, OPEN.magnitude_max
    magnitude = draw(dataclasses.replace(OPEN, uniform_fraction=1.0)).magnitude
    assert abs(magnitude.mean() - (low + high) / 2) < SAMPLE_SIGMA * (high - low) / np.sqrt(12 * N)
    half = draw(dataclasses.replace(OPEN, uniform_fraction=0.5)).magnitude
    bright = (low + high) / 2
    expected = 0.25 + 0.5 * 10 ** (-0.31 * (high - bright))
    assert abs((half < bright).mean() - expected) < 0.02


@pytest.mark.parametrize("magnitude", [21.0, 23.0, 25.0])
def test_sizes(magnitude: float) -> None:
    """The median scale length along the major axis follows the relation."""
    sample = at(magnitude)
    q = (1 - sample.disk_ellipticity) / (1 + sample.disk_ellipticity)
    major = sample.disk_half_light_radius / population.EXPONENTIAL_HALF_LIGHT / np.sqrt(q)
    assert np.median(major) == pytest.approx(np.exp(-1.145 - 0.269 * (magnitude - 23)), rel=0.03)
    bulge, disk = sample.bulge_half_light_radius, sample.disk_half_light_radius / population.EXPONENTIAL_HALF_LIGHT
    ratio = np.log(bulge / disk)
    assert abs(np.median(ratio)) < 0.04  # MIN_HALF_LIGHT raises the smallest bulges
    assert ratio.std() == pytest.approx(0.4, rel=0.05)


def test_redshifts() -> None:
    for magnitude in (22.0, 25.0):
        z_0 = 0.0417 * magnitude - 0.744 + 0.0417 / (0.31 * np.log(10))
        redshift = at(magnitude).redshift
        assert redshift.mean() == pytest.approx(3 * z_0, rel=0.03)
        assert (redshift > 0).all()
        assert (redshift <= population.MAX_REDSHIFT).all()


def test_ellipticities_and_angles(galaxies: population.Galaxies) -> None:
    grid = np.linspace(0, 0.95, 4000)
    for values, pdf in ((galaxies.disk_ellipticity, population.disk_ellipticity_pdf),
                        (galaxies.bulge_ellipticity, population.bulge_ellipticity_pdf)):
        assert values.min() >= 0
        assert values.max() < 0.95
        density = pdf(grid)
        for power in (1, 2):
            expected = (grid**power * density).sum() / density.sum()
            assert (values**power).mean() == pytest.approx(expected, rel=0.03)
    angle = galaxies.position_angle
    assert abs(np.exp(2j * angle).mean()) < SAMPLE_SIGMA / np.sqrt(N)


def test_fluxes(galaxies: population.Galaxies) -> None:
    reference = SETTINGS.survey.reference_index
    expected = 10 ** (0.4 * (31.4 - galaxies.magnitude))
    np.testing.assert_allclose(galaxies.flux[:, reference], expected, rtol=1e-10)
    np.testing.assert_allclose(galaxies.bulge_flux[:, reference], expected * galaxies.bulge_fraction, rtol=1e-10)
    assert (galaxies.bulge_flux >= 0).all()
    assert (galaxies.disk_flux >= 0).all()
    assert (galaxies.flux > 0).all()
    color = -2.5 * np.log10(galaxies.flux[:, :-1] / galaxies.flux[:, 1:])  # u-g ... z-y
    median = np.median(color, axis=0)
    assert (median > -0.2).all()
    assert (median < 1.5).all()
    g_r = color[:, 1]
    red = g_r[galaxies.bulge_fraction == 1].mean()
    assert red > g_r[galaxies.bulge_fraction < 0.2].mean() + 0.1  # bulges are red


def test_bulge_fractions(galaxies: population.Galaxies) -> None:
    fraction = galaxies.bulge_fraction
    assert (fraction >= 0).all()
    assert (fraction <= 1).all()
    assert (fraction == 1).mean() == pytest.approx(0.07, abs=0.01)
    # the uniform 25%, and the upper part of the half-normal distribution
    assert ((fraction > 0.5) & (fraction < 1)).mean() == pytest.approx(0.125, abs=0.012)


def test_sersic_indices(galaxies: population.Galaxies) -> None:
    """Longer lists change only the indices, which are drawn last."""
    assert (galaxies.bulge_sersic == 4).all()
    assert (galaxies.disk_sersic == 1).all()
    bulge, disk = [2.0, 4.0, 6.0], [0.5, 1.0]
    wide = draw(dataclasses.replace(OPEN, bulge_sersic=bulge, disk_sersic=disk))
    for values, indices in ((wide.bulge_sersic, bulge), (wide.disk_sersic, disk)):
        share = (values[:, None] == indices).mean(0)
        assert np.abs(share - 1 / len(indices)).max() < SAMPLE_SIGMA * np.sqrt(0.25 / N)
    assert abs(np.corrcoef(wide.bulge_sersic, wide.disk_sersic)[0, 1]) < SAMPLE_SIGMA / np.sqrt(N)
    for f in dataclasses.fields(wide):
        if "sersic" not in f.name:
            np.testing.assert_array_equal(getattr(wide, f.name), getattr(galaxies, f.name))


def test_seeds() -> None:
    a, b, c = draw(OPEN, 100, seed=1), draw(OPEN, 100, seed=1), draw(OPEN, 100, seed=2)
    for f in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, f.name), getattr(b, f.name))
    assert not np.array_equal(a.magnitude, c.magnitude)


def test_selection() -> None:
    spec = dataclasses.replace(SETTINGS.population, surface_brightness_limit=24.0)
    for n in (1, 500):
        chosen = draw(spec, n)
        assert len(chosen) == n
        brightness = chosen.magnitude + 2.5 * np.log10(2 * np.pi * chosen.half_light_radius**2)
        assert (brightness < 24.0).all()
    part = chosen[np.array([3, 1])]
    assert len(part) == 2
    np.testing.assert_array_equal(part.flux, chosen.flux[[3, 1]])
