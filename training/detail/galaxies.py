"""Isolated galaxies to learn detail from: images of real galaxies, seen by the survey, and population draws."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import galsim
import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from deblendrt.training.config import Config
from deblendrt.training.simulation import blend_scenes, population
from deblendrt.training.simulation.survey import GSPARAMS, Depth, Psf

CUTOUT = 95  # pixel: side of the drawn images
TAPER = 0.15  # share of half a stamp's side over which it falls to zero: the edge of a stamp is not the galaxy's
SIZE_FACTOR = (0.8, 2.5)  # real galaxies are drawn larger, too: catalogues of stamps have mostly small galaxies


@dataclasses.dataclass(frozen=True)
class RealGalaxy:
    """An image of a galaxy with high resolution.

    Attributes
    ----------
    image : float64 (n_y, n_x)
        Background subtracted; any unit.
    pixel_scale : float [arcsec]
    psf_fwhm : float [arcsec]
        FWHM of a Gaussian that is deconvolved; 0: the PSF is much narrower than the survey's.
    """

    image: NDArray[np.float64]
    pixel_scale: float
    psf_fwhm: float


def read_galaxies(where: Path) -> list[RealGalaxy]:
    """Read all galaxy stamps of a FITS file, or of a folder of FITS files.

    Every two-dimensional image of the file, or of every ``*.fits`` file of the folder, is a galaxy. Its header has
    ``PIXSCALE`` (arcsec) and may have ``PSF_FWHM`` (arcsec).

    Parameters
    ----------
    where : Path

    Returns
    -------
    list of RealGalaxy
        In the order of the file's HDUs; file after file, by name.

    Raises
    ------
    ValueError
        No stamp, a stamp without ``PIXSCALE``, or a stamp that is not finite.
    """
    where = Path(where)
    found = []
    for path in [where] if where.is_file() else sorted(where.glob("*.fits")):
        with fits.open(path) as file:
            for k, unit in enumerate(file):
                if unit.data is None or not unit.is_image:
                    continue
                name = f"{path.name}[{k}]"
                if unit.data.ndim != 2 or not np.isfinite(unit.data).all():
                    raise ValueError(f"{name}: expected a finite image of two dimensions, got {unit.data.shape}")
                scale = unit.header.get("PIXSCALE")
                if not isinstance(scale, int | float) or not scale > 0:
                    raise ValueError(f"{name}: expected the keyword PIXSCALE with the pixel scale in arcsec, "
                                     f"got {scale!r}")
                found.append(RealGalaxy(unit.data.astype(np.float64), float(scale),
                                        float(unit.header.get("PSF_FWHM", 0.0))))
    if not found:
        raise ValueError(f"{where}: no FITS image of a galaxy")
    return found


def profile(galaxy: RealGalaxy, factor: float, turn: float, mirror: bool) -> galsim.GSObject:
    """Return the galaxy's profile of unit flux, magnified by a factor, turned and mirrored."""
    n_y, n_x = galaxy.image.shape
    y, x = np.mgrid[:n_y, :n_x]
    radius = np.hypot((x - (n_x - 1) / 2) / (n_x / 2), (y - (n_y - 1) / 2) / (n_y / 2))
    image = galaxy.image * np.clip((1 - radius) / TAPER, 0, 1)
    found = galsim.InterpolatedImage(galsim.Image(image[:, ::-1] if mirror else image, scale=galaxy.pixel_scale),
                                     flux=1.0, gsparams=GSPARAMS, normalization="flux")
    if galaxy.psf_fwhm > 0:
        found = galsim.Convolve(found, galsim.Deconvolve(galsim.Gaussian(fwhm=galaxy.psf_fwhm)))
    return found.dilate(factor).rotate(turn * galsim.radians)


def draw_real(galaxies: list[RealGalaxy], settings: Config, psf: Psf, depth: Depth, snr: tuple[float, float], n: int,
              rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Draw real galaxies with random magnification, turn, centre, colours and signal to noise.

    Returns
    -------
    images, variances : float32 (n, n_band, CUTOUT, CUTOUT) [nJy], [nJy^2]
    centers : float64 (n, 2) [pixel]
    """
    fluxes = population.draw(settings.population, settings.survey, n, rng).flux
    images, variances, centers = [], [], []
    for k in range(n):
        factor = float(np.exp(rng.uniform(*np.log(SIZE_FACTOR))))
        shape = profile(galaxies[k % len(galaxies)], factor, float(rng.uniform(0, 2 * np.pi)), bool(rng.random() < 0.5))
        offset = rng.uniform(-0.5, 0.5, 2)
        unit = np.array([galsim.Convolve(shape, kernel).drawImage(
            nx=CUTOUT, ny=CUTOUT, scale=depth.pixel_scale, offset=tuple(offset), dtype=np.float64).array
            for kernel in psf.profiles])
        image, variance = _expose(unit * fluxes[k][:, None, None], depth, snr, rng)
        images.append(image)
        variances.append(variance)
        centers.append(CUTOUT // 2 + offset)
    return np.array(images), np.array(variances), np.array(centers)


def draw_population(settings: Config, psf: Psf, depth: Depth, snr: tuple[float, float], n: int,
                    rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Draw galaxies of the training population with random signal to noise; see `draw_real`."""
    galaxies = population.draw(settings.population, settings.survey, n, rng)
    images, variances, centers = [], [], []
    for k in range(n):
        center = CUTOUT // 2 + rng.uniform(-0.5, 0.5, 2)
        drawn = blend_scenes.draw_source(galaxies, k, center, psf, (CUTOUT, CUTOUT), depth.pixel_scale)
        image, variance = _expose(np.maximum(drawn, 0).astype(np.float64), depth, snr, rng)
        images.append(image)
        variances.append(variance)
        centers.append(center)
    return np.array(images), np.array(variances), np.array(centers)


def _expose(mean: NDArray[np.float64], depth: Depth, snr: tuple[float, float],
            rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale an image to a random signal to noise against the sky, all bands together, and add the sky's noise."""
    sigma = depth.sky_sigma[:, None, None]
    now = np.sqrt(((mean / sigma) ** 2).sum())
    mean = mean * float(np.exp(rng.uniform(*np.log(snr)))) / now
    image = mean + sigma * rng.standard_normal(mean.shape)
    return image.astype(np.float32), np.broadcast_to(sigma**2, mean.shape).astype(np.float32)


