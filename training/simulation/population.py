r"""The galaxy population, to the depth of LSST and HSC: bulge and disk galaxies with colours, and their structure.

The relations and their sources:

- counts: :math:`N(<i) \propto 10^{0.31\,(i-25)}`, 46 galaxies per arcmin\ :sup:`2` brighter than i = 25
  (LSST Science Book 2009, arXiv:0912.0201, section 3.7.1). A configured fraction is drawn uniform in magnitude instead.
- redshift: galaxies brighter than i follow :math:`p(z) \propto z^2 e^{-z/z_0}`, :math:`z_0 = 0.0417\,i - 0.744` (same
  book, section 3.7.2). Galaxies *at* i are a little farther: with the counts above, the same form with
  :math:`z_0 + 0.0417 / (0.31 \ln 10)` has their mean redshift. z0 is held above 0.02, z below 3.
- disk scale length along the major axis: :math:`p(r) \propto r\,e^{-(r/a)^{4/3}}`, whose median is 1.1355 a, with the
  median :math:`\ln(r_d/\mathrm{arcsec}) = -1.145 - 0.269\,(i_{814} - 23)` (Miller et al. 2013, MNRAS 429, 2858,
  appendix B).
  Radii below are of the circle of the same area.
- bulge size: a half-light radius equal to the disk scale length (same appendix), times a log-normal scatter of 0.4
  (ours: wider than any one survey's relation).
- ellipticity: the disk and bulge distributions of the same appendix. Bulge and disk share the position angle (ours),
  without structure.
- bulge fraction in i: in the same appendix 10% of the galaxies have B/T = 1 and the others B/T from |N(0, 0.1)|. Ours
  is wider: 7% with B/T = 1, 25% uniform in (0, 1), 68% |N(0, 0.1)|.
- colours: the extended templates of Coleman, Wu & Weedman (1980), which GalSim ships. Bulges lie between E and Sbc,
  disks between Sbc and Im (ours, without evolution). They are redshifted through the survey's bandpasses without
  intergalactic absorption, and every band has a scatter of 0.05 mag.
- structure: with a table `structure` in the configuration, see `deblendrt.training.simulation.structure`.
- profiles: Sersic indices from two lists of the configuration, each value equally likely, whatever radius, colour and
  magnitude (ours); by default 4 for bulges and 1 for disks.
- selection: galaxies whose mean surface brightness within the half-light radius is fainter than a configured limit are
  left out, since no catalogue lists them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import galsim
import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.units import AB_ZERO_POINT
from deblendrt.training.config import Population, Survey
from deblendrt.training.simulation.bandpass import filter_curve
from deblendrt.training.simulation.galaxies import Galaxies
from deblendrt.training.simulation.structure import add_structure

TEMPLATES = ("CWW_E_ext.sed", "CWW_Sbc_ext.sed", "CWW_Scd_ext.sed", "CWW_Im_ext.sed")
MAX_REDSHIFT = 3.0
GOLD_LIMIT = 25.3  # i magnitude of LSST's gold sample
EXPONENTIAL_HALF_LIGHT = 1.67835  # half-light radius over scale length of an exponential disk
MIN_HALF_LIGHT, MAX_HALF_LIGHT = 0.03, 5.0  # arcsec, half-light


@functools.lru_cache(maxsize=4)
def template_magnitudes(bandpass: str, bands: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return AB magnitudes of the templates through the bandpasses on a grid of redshifts.

    Parameters
    ----------
    bandpass : str
        Filter curves, see `deblendrt.training.simulation.bandpass`.
    bands : tuple of str

    Returns
    -------
    redshift : float64 (n_redshift,)
    magnitude : float64 (n_template, n_redshift, n_band)
        Its zero point is arbitrary for each template and redshift.
    """
    filters = [filter_curve(bandpass, band).withZeropoint("AB") for band in bands]
    redshift = np.linspace(0.0, MAX_REDSHIFT, 61)
    seds = [galsim.SED(t, wave_type="Ang", flux_type="flambda") for t in TEMPLATES]
    magnitude = np.array([[[sed.atRedshift(z).calculateMagnitude(f) for f in filters] for z in redshift]
                          for sed in seds])
    return redshift, magnitude


def _sample_pdf(pdf: NDArray[np.float64], grid: NDArray[np.float64], n: int,
                rng: np.random.Generator) -> NDArray[np.float64]:
    """Random values of a density on a grid, by its inverse cumulative distribution."""
    cumulative = np.concatenate([[0.0], np.cumsum((pdf[1:] + pdf[:-1]) / 2 * np.diff(grid))])
    return np.interp(rng.random(n) * cumulative[-1], cumulative, grid)


def disk_ellipticity_pdf(e: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the density of Miller et al. (2013), equation B4, unnormalised; e is |g|."""
    e_max, a, e_0 = 0.804, 0.2539, 0.0256
    return np.where(e < e_max, e * (1 - np.exp((e - e_max) / a)) / ((1 + e) * np.sqrt(e**2 + e_0**2)), 0.0)


def bulge_ellipticity_pdf(e: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the density of Miller et al. (2013), equation B5, unnormalised; e is |g|."""
    return e * np.exp(-2.368 * e - 6.691 * e**2)


def scale_length(magnitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """r_d of Miller et al. (2013), equation B3 [arcsec]."""
    return np.exp(-1.145 - 0.269 * (magnitude - 23.0))


def _magnitudes(config: Population, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    low, high = config.magnitude_min, config.magnitude_max
    u = rng.random(n)
    counts = high + np.log10(u + (1 - u) * 10 ** (-0.31 * (high - low))) / 0.31
    return np.where(rng.random(n) < config.uniform_fraction, rng.uniform(low, high, n), counts)


def _component_flux(template: NDArray[np.float64], redshift: NDArray[np.float64],
                    survey: Survey) -> NDArray[np.float64]:
    """Flux per band, relative to the reference band: a mixture of two neighbouring templates."""
    grid, magnitude = template_magnitudes(survey.bandpass, tuple(survey.bands))
    relative = 10 ** (-0.4 * (magnitude - magnitude[:, :, survey.reference_index, None]))
    low = np.clip(template.astype(int), 0, len(TEMPLATES) - 2)
    fraction = (template - low)[:, None]
    at = np.clip(redshift, 0.0, grid[-1]) / (grid[1] - grid[0])
    z = np.clip(at.astype(int), 0, len(grid) - 2)
    t = (at - z)[:, None]

    def interpolate(kind: NDArray[np.int_]) -> NDArray[np.float64]:
        return (1 - t) * relative[kind, z] + t * relative[kind, z + 1]

    return (1 - fraction) * interpolate(low) + fraction * interpolate(low + 1)


def draw(config: Population, survey: Survey, n: int, rng: np.random.Generator) -> Galaxies:
    """Draw random galaxies of the population.

    Parameters
    ----------
    config : Population
    survey : Survey
    n : int
    rng : numpy.random.Generator

    Returns
    -------
    Galaxies
        Exactly `n`, after the selection.
    """
    kept: list[Galaxies] = []
    while sum(map(len, kept)) < n:
        candidates = _draw_unselected(config, survey, n, rng)
        radius = candidates.half_light_radius
        brightness = candidates.magnitude + 2.5 * np.log10(2 * np.pi * radius**2)
        kept.append(candidates[brightness < config.surface_brightness_limit])
    fields: dict[str, Any] = {f.name: np.concatenate([getattr(k, f.name) for k in kept])[:n]
                              for f in dataclasses.fields(Galaxies) if f.name != "structure"}
    plain = Galaxies(**fields)
    if config.structure is None:
        return plain
    # after all other random numbers, so that structure changes nothing else of the galaxies
    colors = [_component_flux(rng.uniform(low, high, n), plain.redshift, survey)
              for low, high in ((0.3, 1.5), (2.0, 3.0), (0.0, 3.0))]  # bars, young knots, companions
    return add_structure(plain, config.structure, config.surface_brightness_limit, colors, survey.reference_index, rng)


def _draw_unselected(config: Population, survey: Survey, n: int, rng: np.random.Generator) -> Galaxies:
    magnitude = _magnitudes(config, n, rng)
    z_0 = np.maximum(0.0417 * magnitude - 0.744 + 0.0417 / (0.31 * np.log(10)), 0.02)
    redshift = np.minimum(rng.gamma(3.0, size=n) * z_0, MAX_REDSHIFT)

    grid = np.linspace(0, 0.95, 2000)
    disk_e = _sample_pdf(disk_ellipticity_pdf(grid), grid, n, rng)
    bulge_e = _sample_pdf(bulge_ellipticity_pdf(grid), grid, n, rng)
    angle = rng.uniform(0, np.pi, n)

    # r = a x with p(x) ~ x exp(-x^(4/3)): x^(4/3) is Gamma(3/2)
    major = scale_length(magnitude) / 1.1355 * rng.gamma(1.5, size=n) ** 0.75
    length = major * np.sqrt((1 - disk_e) / (1 + disk_e))
    disk_radius = np.clip(EXPONENTIAL_HALF_LIGHT * length, MIN_HALF_LIGHT, MAX_HALF_LIGHT)
    bulge_radius = np.clip(length * np.exp(0.4 * rng.standard_normal(n)), MIN_HALF_LIGHT, MAX_HALF_LIGHT)

    kind = rng.random(n)
    fraction = np.where(kind < 0.07, 1.0, np.where(kind < 0.32, rng.random(n),
                                                   np.minimum(np.abs(rng.normal(0, 0.1, n)), 1.0)))
    flux = 10 ** (0.4 * (AB_ZERO_POINT - magnitude))
    scatter = 10 ** (0.4 * rng.normal(0, 0.05, (n, len(survey.bands))))
    scatter[:, survey.reference_index] = 1.0
    bulge = _component_flux(rng.uniform(0, 1, n), redshift, survey)
    disk = _component_flux(rng.uniform(1, 3, n), redshift, survey)
    # last, and without a random number for a list of one index, so that the lists change nothing else of the galaxies
    bulge_n, disk_n = (rng.choice(indices, n) if len(indices) > 1 else np.full(n, indices[0])
                       for indices in (config.bulge_sersic, config.disk_sersic))
    return Galaxies(magnitude, redshift, fraction, bulge_radius, disk_radius, bulge_e, disk_e, angle,
                    (flux * fraction)[:, None] * bulge * scatter, (flux * (1 - fraction))[:, None] * disk * scatter,
                    bulge_n, disk_n)
