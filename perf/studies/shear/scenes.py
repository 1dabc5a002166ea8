"""Scenes for the ring test: the same galaxies and the same noise under several shears, at two position angles.

A target, and in blends a neighbour, come from the training population. Each is turned by 0 or 90 degrees together with
all positions, and then sheared. The shear acts on the profiles but not on the positions, so only the response of shapes
is measured. Gaussian noise has the variance of sky and sources. Its standard normal deviates depend on the galaxy and
the angle only, not on shear, PSF or neighbour.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import galsim
import numpy as np
from numpy.typing import NDArray

from deblendrt.training import config
from deblendrt.training.simulation import blend_scenes, components, population, survey
from perf import scenes

SEED = 20_261_122
MAX_PAIRS = 4000
SIZE = 101  # pixel
ANGLES = (0, 90)  # degrees
SEPARATION = (1.0, 3.0)  # arcsec
FAINTER = (0.0, 2.0)  # mag, of the neighbour
MAGNITUDES = (20.0, 24.5)  # i, of the target
UNIFORM_FRACTION = 0.3  # of the targets are uniform in magnitude, the others follow the sky's counts

FloatArray = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Targets and neighbours.

    Attributes
    ----------
    galaxies : Galaxies
        Rows 2 k and 2 k + 1 are target and neighbour of pair k.
    center : float64 (n, 2, 2) [pixel]
        (x, y) of target and neighbour relative to the image's central pixel.
    psf, elliptical_psf : Psf
    depth : Depth
    """

    galaxies: population.Galaxies
    center: FloatArray
    psf: survey.Psf
    elliptical_psf: survey.Psf
    depth: survey.Depth

    def __len__(self) -> int:
        return len(self.center)


def draw_pairs(n: int, psf_ellipticity: float) -> Pairs:
    """The first `n` of `MAX_PAIRS` targets, each with a neighbour at a random position.

    Parameters
    ----------
    n : int
    psf_ellipticity : float
        e1 = (a^2 - b^2) / (a^2 + b^2) of the elliptical PSF.
    """
    if not 1 <= n <= MAX_PAIRS:
        raise ValueError(f"n: expected 1 to {MAX_PAIRS}, got {n}")
    rng = np.random.default_rng(SEED)
    spec = config.Survey(**scenes.RECIPE["survey"])
    depth = survey.depth(spec)
    limits = dict(scenes.RECIPE["population"])
    targets = population.draw(config.Population(**limits | {
        "magnitude_min": MAGNITUDES[0], "magnitude_max": MAGNITUDES[1], "uniform_fraction": UNIFORM_FRACTION}),
        spec, MAX_PAIRS, rng)
    pool = population.draw(config.Population(**limits | {
        "magnitude_min": MAGNITUDES[0], "magnitude_max": MAGNITUDES[1] + FAINTER[1], "uniform_fraction": 0.5}),
        spec, 20000, rng)
    order = np.argsort(pool.magnitude)
    wanted = targets.magnitude + rng.uniform(*FAINTER, MAX_PAIRS)
    nearest = np.minimum(np.searchsorted(pool.magnitude[order], wanted), len(pool) - 1)
    neighbours = pool[order[nearest]]
    both = population.Galaxies(**{
        f.name: np.stack([getattr(targets, f.name), getattr(neighbours, f.name)], 1)
        .reshape(2 * MAX_PAIRS, *getattr(targets, f.name).shape[1:]) for f in dataclasses.fields(population.Galaxies)
        if getattr(targets, f.name) is not None})
    target = rng.uniform(-0.5, 0.5, (MAX_PAIRS, 2))
    distance = rng.uniform(*SEPARATION, MAX_PAIRS) / depth.pixel_scale
    direction = rng.uniform(0, 2 * np.pi, MAX_PAIRS)
    neighbour = target + distance[:, None] * np.stack([np.cos(direction), np.sin(direction)], 1)
    elliptical = survey.psf_from_fwhm(depth.psf_fwhm, depth.pixel_scale,
                                   ellipticity=(galsim.Shear(e1=psf_ellipticity).g1, 0.0))
    return Pairs(both[: 2 * n], np.stack([target, neighbour], 1)[:n], survey.nominal_psf(depth), elliptical, depth)


def turned(center: FloatArray, angle: int) -> FloatArray:
    """Positions turned about the origin by 0 or 90 degrees, from +x towards +y."""
    return center if angle == 0 else np.stack([-center[..., 1], center[..., 0]], -1)


def draw(galaxies: population.Galaxies, i: int, center: FloatArray, angle: int, shear: float,
         kernels: tuple[Any, ...], method: str, pixel_scale: float, size: int = SIZE) -> NDArray[np.float64]:
    """Draw a galaxy, turned, sheared by g1 and then convolved, in every band.

    Parameters
    ----------
    galaxies : Galaxies
    i : int
    center : float64 (2,) [pixel]
        (x, y) relative to the image's central pixel. It is not turned here.
    angle : int [degree]
    shear : float
        g1.
    kernels : tuple of galsim.GSObject (n_band,)
    method : str
        GalSim's drawing method: "auto", or "no_pixel" for kernels that include the pixel.
    pixel_scale : float [arcsec]
    size : int [pixel]

    Returns
    -------
    float64 (n_band, size, size) [nJy]
    """
    total = np.zeros((len(kernels), size, size))
    for component, flux in zip(galaxies.components, galaxies[i : i + 1].component_flux[0], strict=True):
        if flux.max() <= blend_scenes.NEGLIGIBLE * galaxies.flux[i].max():
            continue
        profile = components.galsim_component(galaxies, i, component).rotate(angle * galsim.degrees).shear(g1=shear)
        drawn: dict[Any, NDArray[np.float64]] = {}
        for band, kernel in enumerate(kernels):
            if kernel not in drawn:
                drawn[kernel] = galsim.Convolve(profile, kernel).drawImage(
                    nx=size, ny=size, scale=pixel_scale, offset=tuple(center), method=method, dtype=np.float64).array
            total[band] += flux[band] * drawn[kernel]
    return total


def observed(pairs: Pairs, k: int, angle: int, shear: float, psf: survey.Psf) -> NDArray[np.float64]:
    """Noiseless images of target and neighbour of pair k, float64 (2, n_band, SIZE, SIZE) [nJy]."""
    center = turned(pairs.center[k], angle)
    return np.stack([draw(pairs.galaxies, 2 * k + j, center[j], angle, shear, psf.profiles, "auto",
                          pairs.depth.pixel_scale) for j in (0, 1)])


def deviates(pairs: Pairs, k: int, angle: int) -> FloatArray:
    """Standard normal noise of pair k at an angle, float64 (n_band, SIZE, SIZE)."""
    return np.random.default_rng([SEED, 1, k, angle]).standard_normal((len(pairs.depth.bands), SIZE, SIZE))


def exposed(image: FloatArray, noise: FloatArray,
            depth: survey.Depth) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An image with the noise of sky and sources, and its variance; float32 (n_band, n_y, n_x)."""
    variance = (depth.sky_sigma**2)[:, None, None] + np.maximum(image, 0) / depth.counts_per_njy[:, None, None]
    return (image + np.sqrt(variance) * noise).astype(np.float32), variance.astype(np.float32)
