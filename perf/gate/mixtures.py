"""Galaxies as mixtures of Gaussians, drawn with NumPy alone: neither GalSim nor a model under test draws them.

A galaxy is a bulge and a disk. Each is a sum of Gaussians that approximates de Vaucouleurs' or the exponential profile
(Hogg & Lang 2013, PASP 125, 719, arXiv:1210.6563: the variants cut at 8 and 4 half-light radii, as in SDSS). Both are
convolved with a PSF that is a sum of two round Gaussians. The Gaussians of a profile share their axis ratio and angle,
so the profile's Fourier transform is a function of one variable,

    f(k) = sum_m a_m exp(-v_m q / 2),    q = k^T S k,    S the matrix of second moments at unit half-light radius,

which is looked up in a table. PSF and position are products along x and y. A galaxy in six bands takes some 3 ms. The
PSF includes the pixel, and nothing else integrates over pixels, so the images are exact.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# amplitude and variance, in units of the untruncated profile's half-light radius squared
EXPONENTIAL = ((2.34853813e-3, 3.07995260e-2, 2.23364214e-1, 1.17949102, 4.33873750, 5.99820770),
               (1.20078965e-3, 8.84526493e-3, 3.91463084e-2, 1.39976817e-1, 4.60962500e-1, 1.50159566))
DE_VAUCOULEURS = ((4.26347652e-2, 2.40127183e-1, 6.85907632e-1, 1.51937350, 2.83627243, 4.46467501, 5.72440830,
                   5.60989349),
                  (2.23759216e-4, 1.00220099e-3, 4.18731126e-3, 1.69432589e-2, 6.84850479e-2, 2.87207080e-1,
                   1.33320254, 8.40215071))
FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))
WING_SHARE, WING_WIDTH = 0.1, 2.0  # the PSF's second Gaussian: its share of the light, its width relative to the first
SIDES = (64, 128, 256)  # pixel: sides of the periodic field that a galaxy is drawn in
REACH = 4.5  # standard deviations of the widest Gaussian that must lie in the field
TABLE = np.linspace(0.0, 12.0, 4001)  # sqrt(q) in units of 1 / half-light radius, beyond it the narrowest part alone


@dataclasses.dataclass(frozen=True)
class Galaxy:
    """A bulge and a disk.

    Attributes
    ----------
    x, y : float [pixel]
    bulge_flux, disk_flux : float64 (n_band,) [nJy]
    bulge_radius, disk_radius : float [pixel]
        Half-light radius of the circle of the same area.
    bulge_axis_ratio, disk_axis_ratio : float
        Minor over major axis.
    angle : float [rad]
        Of the major axis, from +x towards +y.
    """

    x: float
    y: float
    bulge_flux: FloatArray
    disk_flux: FloatArray
    bulge_radius: float
    disk_radius: float
    bulge_axis_ratio: float
    disk_axis_ratio: float
    angle: float

    @property
    def flux(self) -> FloatArray:
        """Total flux, float64 (n_band,) [nJy]."""
        return self.bulge_flux + self.disk_flux


def mixture(profile: tuple[tuple[float, ...], tuple[float, ...]]) -> tuple[FloatArray, FloatArray]:
    """Amplitudes of sum one, and variances in units of the mixture's own half-light radius squared."""
    amplitude, variance = (np.array(values) for values in profile)
    amplitude /= amplitude.sum()
    low, high = 0.1, 10.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        inside = (amplitude * (1 - np.exp(-0.5 * middle**2 / variance))).sum()
        low, high = (middle, high) if inside < 0.5 else (low, middle)
    return amplitude, variance / low**2


@functools.lru_cache(maxsize=2)
def _table(bulge: bool) -> FloatArray:
    amplitude, variance = mixture(DE_VAUCOULEURS if bulge else EXPONENTIAL)
    return (amplitude * np.exp(-0.5 * variance * TABLE[:, None] ** 2)).sum(1)


def _transform(root_q: FloatArray, bulge: bool) -> FloatArray:
    """f at sqrt(q). Compact bulges reach past the table; there the Gaussians are summed."""
    result = np.interp(root_q, TABLE, _table(bulge))
    beyond = root_q > TABLE[-1]
    if beyond.any():
        amplitude, variance = mixture(DE_VAUCOULEURS if bulge else EXPONENTIAL)
        result[beyond] = (amplitude * np.exp(-0.5 * variance * root_q[beyond, None] ** 2)).sum(1)
    return result


def psf_sigma(fwhm: FloatArray) -> FloatArray:
    """Standard deviation of the narrow Gaussian of a PSF, in the unit of its FWHM. The wings change it by under 1%."""
    return np.asarray(fwhm, np.float64) / FWHM_PER_SIGMA


def psf_images(fwhm: FloatArray, size: int) -> FloatArray:
    """Images of effective PSFs, which include the pixel.

    Parameters
    ----------
    fwhm : float64 (n_band,) [pixel]
    size : int [pixel]
        Odd.

    Returns
    -------
    float64 (n_band, size, size)
        Sum one.
    """
    offset = np.arange(size) - size // 2
    images = np.zeros((len(fwhm), size, size))
    for image, sigma in zip(images, psf_sigma(fwhm), strict=True):
        for share, width in ((1 - WING_SHARE, sigma), (WING_SHARE, WING_WIDTH * sigma)):
            line = np.exp(-0.5 * (offset / width) ** 2) / (np.sqrt(2 * np.pi) * width)
            image += share * line[:, None] * line
    return images / images.sum((1, 2), keepdims=True)


@functools.lru_cache(maxsize=16)
def _frequencies(side: int, fwhm: tuple[float, ...]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """k along x and y [rad / pixel], and the PSFs' transforms, float64 (n_band, side, side // 2 + 1)."""
    k_x, k_y = 2 * np.pi * np.fft.rfftfreq(side), 2 * np.pi * np.fft.fftfreq(side)
    square = k_x**2 + k_y[:, None] ** 2
    psf = [(1 - WING_SHARE) * np.exp(-0.5 * sigma**2 * square)
           + WING_SHARE * np.exp(-0.5 * (WING_WIDTH * sigma) ** 2 * square) for sigma in psf_sigma(np.array(fwhm))]
    return np.asarray(k_x, np.float64), np.asarray(k_y, np.float64), np.array(psf)


def draw(galaxy: Galaxy, fwhm: tuple[float, ...]) -> tuple[FloatArray, tuple[int, int]]:
    """Draw a galaxy under the PSF.

    Parameters
    ----------
    galaxy : Galaxy
    fwhm : tuple of float (n_band,) [pixel]

    Returns
    -------
    image : float64 (n_band, side, side) [nJy]
    corner : tuple of int [pixel]
        (x, y) of its first pixel.
    """
    widest = np.sqrt((WING_WIDTH * psf_sigma(np.array(max(fwhm)))) ** 2 + max(
        radius**2 / ratio * mixture(profile)[1][-1] for radius, ratio, profile, flux in (
            (galaxy.bulge_radius, galaxy.bulge_axis_ratio, DE_VAUCOULEURS, galaxy.bulge_flux),
            (galaxy.disk_radius, galaxy.disk_axis_ratio, EXPONENTIAL, galaxy.disk_flux)) if flux.any()))
    side = next((n for n in SIDES if n >= 2 * REACH * widest), SIDES[-1])
    k_x, k_y, psf = _frequencies(side, fwhm)
    along = np.cos(galaxy.angle) * k_x + np.sin(galaxy.angle) * k_y[:, None]
    across = np.cos(galaxy.angle) * k_y[:, None] - np.sin(galaxy.angle) * k_x
    light: FloatArray = np.zeros((len(fwhm), *along.shape))
    for flux, radius, ratio, bulge in ((galaxy.bulge_flux, galaxy.bulge_radius, galaxy.bulge_axis_ratio, True),
                                       (galaxy.disk_flux, galaxy.disk_radius, galaxy.disk_axis_ratio, False)):
        if flux.any():
            root_q = radius * np.sqrt(along**2 / ratio + across**2 * ratio)
            light += flux[:, None, None] * _transform(root_q, bulge)
    corner = tuple(int(np.rint(at)) - side // 2 for at in (galaxy.x, galaxy.y))
    phase = np.exp(-1j * k_x * (galaxy.x - corner[0])) * np.exp(-1j * k_y * (galaxy.y - corner[1]))[:, None]
    return np.fft.irfft2(light * psf * phase, s=(side, side)), (corner[0], corner[1])
