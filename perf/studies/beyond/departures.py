"""Galaxies and data on which the model was not trained: the cases of `perf.studies.beyond`.

All cases share positions, fluxes, sizes, orientations and seeds of the noise, so a case differs from the control only
in the property that its name says. Half of the galaxies are alone in their scene. The other half are in blends of four,
placed as in the test scenes. All galaxies of a case are of its kind.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import galsim
import numpy as np
from numpy.typing import NDArray

from deblendrt.training import config
from deblendrt.training.simulation import blend_scenes, components, population, survey
from perf import metrics, scenes

FloatArray = NDArray[np.float64]
Components = list[tuple[Any, FloatArray]]  # a profile of unit flux, and its flux in every band [nJy]

SEED = 810_450_239
N_ALONE, N_BLEND, BLEND_SIZE = 36, 9, 4
ALONE, BLEND = (81, 81), (101, 101)  # pixel
MAGNITUDES = (19.0, 24.5)  # i, drawn uniform
TRUNCATION = 8.0  # half-light radii: of Sersic profiles, as of the bulges in training
IMAGE_SIZE = 161  # pixel: an analytic image, 10 half-light radii of the disk wide


@dataclasses.dataclass(frozen=True)
class Field:
    """A scene of a case, as the deblender gets it, and its truth.

    Attributes
    ----------
    image, variance : float32 (n_band, n_y, n_x) [nJy, nJy^2]
    mask : bool (n_y, n_x)
    psf : float64 (n_band, size, size)
    centers : float64 (n_source, 2) [pixel]
    flux, snr : float64 (n_source, n_band) [nJy]
        True fluxes, and their S/N as in `perf.metrics`.
    """

    image: NDArray[np.float32]
    variance: NDArray[np.float32]
    mask: NDArray[np.bool_]
    psf: NDArray[np.float64]
    centers: FloatArray
    flux: FloatArray
    snr: FloatArray


@dataclasses.dataclass(frozen=True)
class GalaxyLayout:
    """Galaxies of a scene by row of the pool, and their positions; the same in every case."""

    number: int
    shape: tuple[int, int]
    rows: NDArray[np.int64]
    centers: FloatArray


@dataclasses.dataclass(frozen=True)
class Departure:
    """A kind of galaxy or of data.

    Attributes
    ----------
    name, about : str
    galaxy : callable
        Maps galaxies, row and generator to components.
    disturb : callable, optional
        Maps a field, its noiseless image and a generator to a field.
    bands : str, optional
        Bands that the deblender gets; default all.
    options : dict
        Options of `deblend_batch`.
    unlisted : bool
        Whether every scene has one more galaxy, which the list lacks.
    """

    name: str
    about: str
    galaxy: Callable[[population.Galaxies, int, np.random.Generator], Components]
    disturb: Callable[[Field, FloatArray, np.random.Generator], Field] | None = None
    bands: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    unlisted: bool = False


@functools.lru_cache(maxsize=1)
def sky() -> tuple[population.Galaxies, survey.Psf, survey.Depth]:
    """The pool of galaxies, the true PSF and the depth."""
    spec = config.Survey(**scenes.RECIPE["survey"])
    recipe = scenes.RECIPE["population"] | {"magnitude_min": MAGNITUDES[0], "magnitude_max": MAGNITUDES[1],
                                            "uniform_fraction": 1.0}
    pool = population.draw(config.Population(**recipe), spec, 400, np.random.default_rng([SEED, 0]))
    depth = survey.depth(spec)
    return pool, survey.nominal_psf(depth), depth


def layouts(scale: float = 1.0) -> list[GalaxyLayout]:
    """Layouts of isolated galaxies, then of blends; `scale` is the fraction of each to use."""
    pool, _, depth = sky()
    rng = np.random.default_rng([SEED, 1])
    order = rng.permutation(len(pool))
    found, used = [], 0
    for number in range(N_ALONE + N_BLEND):
        alone = number < N_ALONE
        shape, n = (ALONE, 1) if alone else (BLEND, BLEND_SIZE)
        if alone:
            centers = (np.array(shape[::-1]) - 1) / 2 + rng.uniform(-0.5, 0.5, (1, 2))
        else:
            centers = blend_scenes.blend_positions(n, shape, rng, spread=blend_scenes.BLEND_SPREAD / depth.pixel_scale,
                                                   min_separation=blend_scenes.BLEND_SEPARATION / depth.pixel_scale,
                                                   margin=13.0)
        found.append(GalaxyLayout(number, shape, order[used : used + n], centers))
        used += n
    return [layout for layout in found
            if (layout.number if layout.number < N_ALONE else (layout.number - N_ALONE) * BLEND_SIZE) < scale * N_ALONE]


def make_field(case: Departure, layout: GalaxyLayout) -> Field:
    """Draw a scene of a case."""
    pool, psf, depth = sky()
    counts, sigma = depth.counts_per_njy[:, None, None], depth.sky_sigma[:, None, None]
    fluxes, snr, mean = [], [], np.zeros((len(depth.bands), *layout.shape))
    for k, (row, center) in enumerate(zip(layout.rows, layout.centers, strict=True)):
        parts = case.galaxy(pool, int(row), np.random.default_rng([SEED, 2, layout.number, k]))
        truth = _draw(parts, center, psf, layout.shape, depth.pixel_scale)
        flux = np.sum([f for _, f in parts], axis=0)
        error = [metrics.isolated_error(truth[None, b], flux[None, b], depth.sky_sigma[b], depth.counts_per_njy[b])[0]
                 for b in range(len(flux))]
        fluxes.append(flux)
        snr.append(flux / np.array(error))
        mean += truth
    if case.unlisted:
        mean += _unlisted(layout)
    mean = np.maximum(mean, 0.0)
    rng = np.random.default_rng([SEED, 3, layout.number])
    noise = np.sqrt(sigma**2 + mean / counts) * rng.standard_normal(mean.shape)
    field = Field((mean + noise).astype(np.float32), (sigma**2 + mean / counts).astype(np.float32),
                  np.zeros(layout.shape, bool), psf.image, layout.centers, np.array(fluxes), np.array(snr))
    return field if case.disturb is None else case.disturb(field, mean, np.random.default_rng([SEED, 4, layout.number]))


def _draw(parts: Components, center: FloatArray, psf: survey.Psf, shape: tuple[int, int],
          pixel_scale: float) -> FloatArray:
    """Noiseless image of one galaxy, float64 (n_band, n_y, n_x) [nJy]."""
    offset = tuple(center - (np.array(shape[::-1]) - 1) / 2)
    image = np.zeros((len(psf.profiles), *shape))
    for profile, flux in parts:
        if flux.max() <= blend_scenes.NEGLIGIBLE * max(f.max() for _, f in parts):
            continue
        for band, kernel in enumerate(psf.profiles):
            drawn = galsim.Convolve(profile, kernel).drawImage(nx=shape[1], ny=shape[0], scale=pixel_scale,
                                                               offset=offset, dtype=np.float64)
            image[band] += flux[band] * drawn.array
    return image


def _unlisted(layout: GalaxyLayout) -> FloatArray:
    """Image of an ordinary galaxy 1.5 to 3 arcsec from the scene's first, 0.5 to 3 mag fainter or brighter."""
    pool, psf, depth = sky()
    rng = np.random.default_rng([SEED, 5, layout.number])
    radius, angle = rng.uniform(1.5, 3.0) / depth.pixel_scale, rng.uniform(0, 2 * np.pi)
    step = rng.choice([-1, 1]) * rng.uniform(0.5, 3.0)
    wanted = pool.magnitude[layout.rows[0]] + step
    row = int(np.argmin(np.abs(pool.magnitude - wanted)))
    parts = [(profile, flux * 10 ** (0.4 * (pool.magnitude[row] - wanted)))
             for profile, flux in bulge_and_disk(pool, row, rng)]
    center = layout.centers[0] + radius * np.array([np.cos(angle), np.sin(angle)])
    return _draw(parts, center, psf, layout.shape, depth.pixel_scale)


# --- galaxies


def bulge_and_disk(galaxies: population.Galaxies, i: int, rng: np.random.Generator) -> Components:
    """A bulge and a disk, as in training."""
    return [(components.galsim_component(galaxies, i, "bulge"), galaxies.bulge_flux[i]),
            (components.galsim_component(galaxies, i, "disk"), galaxies.disk_flux[i])]


def sersic(n: float) -> Callable[[population.Galaxies, int, np.random.Generator], Components]:
    """A Sersic profile with the galaxy's flux, half-light radius and the disk's ellipticity."""
    def galaxy(galaxies: population.Galaxies, i: int, rng: np.random.Generator) -> Components:
        radius = float(galaxies.half_light_radius[i])
        profile = galsim.Sersic(n, half_light_radius=radius, trunc=TRUNCATION * radius)
        return [(_turned(galaxies, i, profile), galaxies.flux[i])]
    return galaxy


def clumpy(galaxies: population.Galaxies, i: int, rng: np.random.Generator) -> Components:
    """A galaxy with 10 to 30% of its light in 5 to 20 knots, distributed like the disk."""
    share, n_knot = rng.uniform(0.1, 0.3), int(rng.integers(5, 21))
    knots = galsim.RandomKnots(n_knot, half_light_radius=float(galaxies.disk_half_light_radius[i]),
                               rng=galsim.BaseDeviate(int(rng.integers(1, 2**30))))
    smooth = [(profile, (1 - share) * flux) for profile, flux in bulge_and_disk(galaxies, i, rng)]
    return [*smooth, (_turned(galaxies, i, knots), share * galaxies.flux[i])]


def ring(galaxies: population.Galaxies, i: int, rng: np.random.Generator) -> Components:
    """A galaxy with 30% of its disk's light in a ring at 1 to 2 half-light radii, whose width is a tenth of that."""
    radius = rng.uniform(1.0, 2.0)

    def surface(r: FloatArray, _angle: FloatArray) -> FloatArray:
        disk, band = np.exp(-1.678 * r), np.exp(-0.5 * ((r - radius) / (0.1 * radius)) ** 2)
        return 0.7 * disk / disk.sum() + 0.3 * band / band.sum()
    return _with_disk(galaxies, i, surface)


def arms(galaxies: population.Galaxies, i: int, rng: np.random.Generator) -> Components:
    """A disk with two logarithmic spiral arms, pitch 12 to 30 degrees, of contrast 0.6 to 0.9."""
    pitch, contrast, turn = rng.uniform(12, 30), rng.uniform(0.6, 0.9), rng.uniform(0, 2 * np.pi)

    def surface(r: FloatArray, angle: FloatArray) -> FloatArray:
        phase = 2 * (angle - np.log(np.maximum(r, 0.05)) / np.tan(np.radians(pitch)) - turn)
        grown = contrast / (1 + np.exp(-(r - 0.4) / 0.1))  # no arms in the middle
        return np.exp(-1.678 * r) * (1 + grown * np.cos(phase))
    return _with_disk(galaxies, i, surface)


def gradient(galaxies: population.Galaxies, i: int, rng: np.random.Generator) -> Components:
    """Half bulge, half disk in i. The bulge is redder and the disk bluer by 0.3 mag per band than the templates."""
    _, _, depth = sky()
    steps = np.arange(len(depth.bands)) - depth.bands.index("i")
    total = galaxies.flux[i, depth.bands.index("i")]
    radius = float(galaxies.disk_half_light_radius[i])
    bulge = galsim.DeVaucouleurs(half_light_radius=0.5 * radius, trunc=0.5 * radius * TRUNCATION)
    shape = galaxies.flux[i] / total
    parts = [(bulge, 10 ** (0.12 * steps)), (galsim.Exponential(half_light_radius=radius), 10 ** (-0.12 * steps))]
    return [(_turned(galaxies, i, profile), 0.5 * total * shape * color) for profile, color in parts]


def _turned(galaxies: population.Galaxies, i: int, profile: Any) -> Any:
    return profile.shear(g=float(galaxies.disk_ellipticity[i]), beta=float(galaxies.position_angle[i]) * galsim.radians)


def _with_disk(galaxies: population.Galaxies, i: int,
               surface: Callable[[FloatArray, FloatArray], FloatArray]) -> Components:
    """The galaxy with a disk of surface brightness `surface`(radius in half-light radii, angle)."""
    grid = (np.arange(IMAGE_SIZE) - IMAGE_SIZE // 2) * 10 / IMAGE_SIZE
    x, y = np.meshgrid(grid, grid)
    image = surface(np.hypot(x, y), np.arctan2(y, x)) * (np.hypot(x, y) < grid[-1])
    scale = float(galaxies.disk_half_light_radius[i]) * 10 / IMAGE_SIZE
    disk = galsim.InterpolatedImage(galsim.Image(image / image.sum(), scale=scale), gsparams=survey.GSPARAMS)
    return [(components.galsim_component(galaxies, i, "bulge"), galaxies.bulge_flux[i]),
            (_turned(galaxies, i, disk), galaxies.disk_flux[i])]


# --- data


def given_psf(fwhm: float = 1.0, ellipticity: float = 0.0) -> Callable[..., Field]:
    """The deblender is given a PSF wider by a factor, or sheared."""
    def disturb(field: Field, mean: FloatArray, rng: np.random.Generator) -> Field:
        return dataclasses.replace(field, psf=_other_psf(fwhm, ellipticity))
    return disturb


@functools.lru_cache(maxsize=8)
def _other_psf(fwhm: float, ellipticity: float) -> NDArray[np.float64]:
    depth = sky()[2]
    return survey.psf_from_fwhm(fwhm * depth.psf_fwhm, depth.pixel_scale, ellipticity=(ellipticity, 0.0)).image


def moved_centers(field: Field, mean: FloatArray, rng: np.random.Generator) -> Field:
    """The given centres are half a pixel off, in any direction."""
    angle = rng.uniform(0, 2 * np.pi, len(field.centers))
    return dataclasses.replace(field, centers=field.centers + 0.5 * np.column_stack([np.cos(angle), np.sin(angle)]))


def correlated_noise(field: Field, mean: FloatArray, rng: np.random.Generator) -> Field:
    """The noise has a correlation of 0.20 between neighbouring pixels; the variance of a pixel is as given."""
    kernel = np.array([0.1, 1.0, 0.1]) / np.sqrt(1.02)
    noise = np.pad(rng.standard_normal(mean.shape), [(0, 0), (1, 1), (1, 1)])
    for axis in (1, 2):
        n = mean.shape[axis]
        noise = sum(k * noise.take(range(j, j + n), axis) for j, k in enumerate(kernel))
    return dataclasses.replace(field, image=(mean + np.sqrt(field.variance) * noise).astype(np.float32))


def masked_cores(field: Field, mean: FloatArray, rng: np.random.Generator) -> Field:
    """Pixels within two pixels of a centre are masked, as if saturated."""
    y, x = np.indices(field.mask.shape)
    mask = field.mask.copy()
    for cx, cy in field.centers:
        mask |= np.hypot(x - cx, y - cy) <= 2.0
    return dataclasses.replace(field, mask=mask)


def offset_background(field: Field, mean: FloatArray, rng: np.random.Generator) -> Field:
    """A tenth of the sky noise is added or subtracted, at random, in each band of each scene."""
    depth = sky()[2]
    level = 0.1 * depth.sky_sigma * rng.choice([-1, 1], len(depth.bands))
    return dataclasses.replace(field, image=field.image + level[:, None, None].astype(np.float32))


def _departures() -> Sequence[Departure]:
    same = bulge_and_disk
    neighbour = "a galaxy that the list lacks, 1.5-3 arcsec from one of the scene's, 0.5-3 mag fainter or brighter"
    return (
        Departure("control", "bulge and disk galaxies of the training population, data as given", same),
        *(Departure(f"Sersic n = {n:g}", "one Sersic profile instead of bulge and disk", sersic(n))
          for n in (0.5, 1, 2, 4, 6)),
        Departure("clumpy", "10-30% of the light in 5-20 knots", clumpy),
        Departure("ring", "30% of the disk's light in a ring", ring),
        Departure("spiral arms", "two arms of contrast 0.6-0.9", arms),
        Departure("colour gradient", "red bulge and blue disk, 0.3 mag per band beyond the templates", gradient),
        Departure("PSF 3% too wide", "the given PSF's FWHM times 1.03", same, given_psf(1.03)),
        Departure("PSF 3% too narrow", "the given PSF's FWHM times 0.97", same, given_psf(0.97)),
        Departure("PSF ellipticity wrong", "the given PSF sheared by 0.02", same, given_psf(1.0, 0.02)),
        Departure("centres off, prior 0.2", "given centres 0.5 pixel off, center_sigma 0.2", same, moved_centers,
             options={"center_sigma": 0.2}),
        Departure("centres off, prior 0.5", "given centres 0.5 pixel off, center_sigma 0.5", same, moved_centers,
             options={"center_sigma": 0.5}),
        Departure("unlisted neighbour", neighbour, same, unlisted=True),
        Departure("unlisted, find_missed", neighbour + "; find_missed=True", same, unlisted=True,
             options={"find_missed": True}),
        Departure("correlated noise", "a correlation of 0.20 between neighbouring pixels, not told", same,
                  correlated_noise),
        Departure("cores masked", "every pixel within 2 of a centre masked, in all bands", same, masked_cores),
        Departure("z missing", "five bands given", same, bands="ugriy"),
        Departure("only r", "one band given", same, bands="r"),
        Departure("background off", "0.1 sky sigma per pixel added or subtracted", same, offset_background),
    )


DEPARTURES = _departures()
