r"""Simulated blended scenes with their truth, on which accuracy is measured.

    image[b] = sum_i sum_m flux[i, m, b] (PSF_b * profile[i, m])(p - centre_i)  +  noise

with sub-pixel centres and without a background. The noise of the full exposure is Gaussian for the sky and Poisson for
the sources: variance = sky_sigma^2 + image / counts_per_njy. It is exact, since the noiseless image is known.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import galsim
import numpy as np
from numpy.typing import ArrayLike, NDArray

from deblendrt.training import config
from deblendrt.training.simulation import components, population
from deblendrt.training.simulation.survey import Depth, Psf

BLEND_SPREAD = 2.4  # arcsec
BLEND_SEPARATION = 0.6  # arcsec, 3/4 of the seeing: catalogues seldom list closer pairs as two sources
NEGLIGIBLE = 1e-7  # share of the total flux below which a component is not drawn


@dataclasses.dataclass(frozen=True)
class SimulatedScene:
    """A scene with its truth.

    Attributes
    ----------
    image, variance : float32 (n_band, n_y, n_x) [nJy, nJy^2]
    psf : float64 (n_band, size, size)
        Effective, sum one.
    centers : float64 (n_source, 2) [pixel]
        (x, y), 0-based, a pixel's centre at the integer.
    truth : float32 (n_source, n_band, n_y, n_x) [nJy]
        Every source on its own: convolved with the PSF, without noise.
    flux : float64 (n_source, n_band) [nJy]
        True total flux.
    """

    image: NDArray[np.float32]
    variance: NDArray[np.float32]
    psf: NDArray[np.float64]
    centers: NDArray[np.float64]
    truth: NDArray[np.float32]
    flux: NDArray[np.float64]


def draw_source(galaxies: population.Galaxies, i: int, center: ArrayLike, psf: Psf, shape: tuple[int, int],
                pixel_scale: float) -> NDArray[np.float32]:
    """Draw one galaxy through the PSF of every band, without noise.

    A component is drawn once for each distinct PSF, and scaled to the flux of each band.

    Parameters
    ----------
    galaxies : Galaxies
    i : int
    center : float (2,) [pixel]
    psf : Psf
    shape : (int, int)
        (n_y, n_x).
    pixel_scale : float [arcsec]

    Returns
    -------
    float32 (n_band, n_y, n_x) [nJy]
    """
    n_y, n_x = shape
    x, y = np.asarray(center, np.float64)
    offset = (x - (n_x - 1) / 2, y - (n_y - 1) / 2)
    total = np.zeros((len(psf.profiles), n_y, n_x))
    fluxes = galaxies[i : i + 1].component_flux[0]
    for component, flux in zip(galaxies.components, fluxes, strict=True):
        if flux.max() <= NEGLIGIBLE * fluxes.sum(0).max():
            continue
        profile = components.galsim_component(galaxies, i, component, pixel_scale)
        drawn: dict[Any, NDArray[np.float64]] = {}
        for band, kernel in enumerate(psf.profiles):
            if kernel not in drawn:
                drawn[kernel] = galsim.Convolve(profile, kernel).drawImage(
                    nx=n_x, ny=n_y, scale=pixel_scale, offset=offset, dtype=np.float64).array
            total[band] += flux[band] * drawn[kernel]
    return total.astype(np.float32)


def simulate_scene(galaxies: population.Galaxies, indices: ArrayLike, positions: ArrayLike, psf: Psf, depth: Depth,
                   shape: tuple[int, int], rng: np.random.Generator, *, noise: bool = True) -> SimulatedScene:
    """Simulate a scene of given galaxies at given positions.

    Parameters
    ----------
    galaxies : Galaxies
    indices : int (n_source,)
        Rows of `galaxies`.
    positions : float (n_source, 2) [pixel]
        (x, y) of the centres.
    psf : Psf
    depth : Depth
    shape : (int, int)
        (n_y, n_x).
    rng : numpy.random.Generator
    noise : bool
        Without it the image is the noiseless sum. The variance is the same.
    """
    indices, positions = np.asarray(indices, int), np.asarray(positions, np.float64)
    if positions.shape != (len(indices), 2):
        raise ValueError(f"positions: expected ({len(indices)}, 2), got {positions.shape}")
    truth = np.zeros((len(indices), len(depth.bands), *shape), np.float32)
    for row, (index, center) in enumerate(zip(indices, positions, strict=True)):
        truth[row] = draw_source(galaxies, int(index), center, psf, shape, depth.pixel_scale)
    # images drawn by FFT have values down to -1e-6 of the peak, and no Poisson rate is negative
    mean = np.maximum(truth.sum(0, dtype=np.float64), 0.0)
    counts, sigma = depth.counts_per_njy[:, None, None], depth.sky_sigma[:, None, None]
    image = rng.poisson(mean * counts) / counts + sigma * rng.standard_normal(mean.shape) if noise else mean
    return SimulatedScene(image.astype(np.float32), (sigma**2 + mean / counts).astype(np.float32), psf.image,
                          positions, truth, galaxies.flux[indices])


def without_structure(cfg: config.Config) -> config.Config:
    """The configuration with a population of plain bulges and disks: one angle, one centre, indices from the lists."""
    return dataclasses.replace(cfg, population=dataclasses.replace(cfg.population, structure=None))


def natural_population(cfg: config.Config, n: int, rng: np.random.Generator,
                       magnitude_limit: float = population.GOLD_LIMIT) -> population.Galaxies:
    """Galaxies with the counts of the sky, to a magnitude limit; no share of them is uniform in magnitude."""
    natural = dataclasses.replace(cfg.population, magnitude_max=magnitude_limit, uniform_fraction=0.0)
    return population.draw(natural, cfg.survey, n, rng)


def blend_positions(n_source: int, shape: tuple[int, int], rng: np.random.Generator, *, spread: float,
                    min_separation: float, margin: float) -> NDArray[np.float64]:
    """Draw random positions around the image's centre, no two closer than a limit.

    Each position is drawn from a round Gaussian, and drawn again if it is too close to an earlier position or in the
    margin.

    Parameters
    ----------
    n_source : int
    shape : (int, int)
        (n_y, n_x).
    rng : numpy.random.Generator
    spread : float [pixel]
        Standard deviation along each axis.
    min_separation, margin : float [pixel]

    Returns
    -------
    float64 (n_source, 2) [pixel]
        (x, y).
    """
    middle = (np.array([shape[1], shape[0]]) - 1) / 2
    positions: list[NDArray[np.float64]] = []
    for _ in range(10000):
        if len(positions) == n_source:
            break
        new = middle + spread * rng.standard_normal(2)
        inside = np.all(np.abs(new - middle) <= middle - margin)
        if inside and all(np.hypot(*(new - old)) >= min_separation for old in positions):
            positions.append(new)
    else:
        raise ValueError(f"n_source: {n_source} sources {min_separation} pixels apart do not fit in shape {shape}")
    return np.array(positions).reshape(-1, 2)


def random_blend_scene(galaxies: population.Galaxies, psf: Psf, depth: Depth, rng: np.random.Generator, *,
                       shape: tuple[int, int] = (101, 101), n_source: tuple[int, int] = (2, 8),
                       spread: float = BLEND_SPREAD, min_separation: float = BLEND_SEPARATION, margin: float = 13.0,
                       noise: bool = True) -> SimulatedScene:
    """Simulate a random blend.

    The number of galaxies is uniform in `n_source`. They are drawn without replacement from `galaxies` (see
    `natural_population`), and their positions by `blend_positions`. At the default spread of 2.4 arcsec, five galaxies
    have their nearest neighbours at about 1.7 arcsec, twice the seeing: blends are more crowded than the average sky.

    Parameters
    ----------
    galaxies : Galaxies
    psf : Psf
    depth : Depth
    rng : numpy.random.Generator
    shape : (int, int)
        (n_y, n_x).
    n_source : (int, int)
        Smallest and largest number of galaxies, both included.
    spread, min_separation : float [arcsec]
    margin : float [pixel]
        Smallest distance of a centre from the image's edge.
    noise : bool
    """
    n = int(rng.integers(n_source[0], n_source[1] + 1))
    indices = rng.choice(len(galaxies), n, replace=False)
    positions = blend_positions(n, shape, rng, spread=spread / depth.pixel_scale,
                                min_separation=min_separation / depth.pixel_scale, margin=margin)
    return simulate_scene(galaxies, indices, positions, psf, depth, shape, rng, noise=noise)
