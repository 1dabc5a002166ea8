"""Components have the Sersic index of their galaxy, and half of their light inside the half-light radius."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

galsim = pytest.importorskip("galsim")

from deblendrt.training import config  # noqa: E402
from deblendrt.training.simulation import components, population  # noqa: E402

SETTINGS = config.load("smoke.toml")


@pytest.fixture(scope="module")
def galaxies() -> population.Galaxies:
    drawn = population.draw(SETTINGS.population, SETTINGS.survey, 3, np.random.default_rng(0))
    return dataclasses.replace(drawn, bulge_half_light_radius=np.full(3, 0.4), disk_half_light_radius=np.full(3, 0.7))


@pytest.mark.parametrize("index", [0.5, 1.5, 2.0, 3.0, 6.0])
def test_half_light_radius(galaxies: population.Galaxies, index: float) -> None:
    wide = dataclasses.replace(galaxies, bulge_sersic=np.full(3, index), disk_sersic=np.full(3, index))
    for component, radius in (("bulge", 0.4), ("disk", 0.7)):
        profile = components.galsim_component(wide, 1, component)
        assert profile.original.n == index
        assert profile.original.flux == pytest.approx(1.0)
        assert profile.original.half_light_radius == pytest.approx(radius)


def test_defaults(galaxies: population.Galaxies) -> None:
    """Indices 4 and 1 are de Vaucouleurs and exponential profiles, to the bit."""
    for component, profile in (("bulge", galsim.DeVaucouleurs(half_light_radius=0.4, trunc=3.2)),
                               ("disk", galsim.Exponential(half_light_radius=0.7))):
        assert components.galsim_component(galaxies, 1, component).original == profile


def test_index_changes_the_map(galaxies: population.Galaxies) -> None:
    """The central pixel has more light for a higher index."""
    peaks = []
    for index in (1.0, 2.0, 4.0, 6.0):
        wide = dataclasses.replace(galaxies, bulge_sersic=np.full(3, index))
        peaks.append(components.component_map(wide, 1, "bulge", 31, 0.2, 1.0).max())
    assert (np.diff(peaks) > 0).all()
