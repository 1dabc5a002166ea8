r"""The ellipticities of `perf.studies.shear`, and the response of a model image to shear.

Response. A shear g1 of the sky changes an image I under a Gaussian PSF of standard deviation s to

    I - g1 [ (x d/dx - y d/dy) I + s^2 (d^2/dx^2 - d^2/dy^2) I ]  +  O(g1^2).

In Fourier space the bracket is G (kx d/dkx - ky d/dky) (I / G), with G the PSF's transform, so nothing is deconvolved.
The derivatives are taken in Fourier space. The change of the adaptive moments follows by central differences.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import galsim
import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.measure import adaptive_moments
from perf import metrics
from perf.studies.shear import scenes as ring

STAMP = 63  # pixel, for moments of images
MAX_ELLIPTICITY = 2.0  # of regauss; a larger value counts as a failure, as in the HSC survey's catalogue
STEP = 0.01  # of shear

FloatArray = NDArray[np.float64]


def moments(images: NDArray[Any], center: FloatArray) -> FloatArray:
    """Adaptive moments, by the engine's function.

    Parameters
    ----------
    images : float (n, size, size)
    center : float64 (n, 2) [pixel]
        (x, y) at which the iteration begins.

    Returns
    -------
    float64 (n, 3) [pixel^2]
        xx, yy, xy; NaN if not converged.
    """
    no_basis = np.zeros((1, *images.shape[1:]), np.float32)  # its derivatives are not used
    return adaptive_moments.adaptive_moments(images, center, no_basis).moments


def first_ellipticity(moments: FloatArray, psf_variance: float = 0.0) -> FloatArray:
    """e1 = (xx - yy) / (xx + yy) of moments (n, 3), less those of a round PSF; float64 (n,)."""
    return adaptive_moments.ellipticity(np.asarray(moments - [psf_variance, psf_variance, 0.0]))[:, 0]


def reference_image(pairs: ring.Pairs, row: int, offset: FloatArray, angle: int, shear: float, psf_sigma: float,
                    band: int) -> FloatArray:
    """A noiseless galaxy under the reference PSF.

    Parameters
    ----------
    pairs : Pairs
    row : int
        Row of `pairs.galaxies`.
    offset : float64 (2,) [pixel]
        (x, y) of the centre relative to the central pixel.
    angle : int [degree]
    shear : float
    psf_sigma : float [pixel]
    band : int

    Returns
    -------
    float64 (STAMP, STAMP) [nJy]
    """
    one = pairs.galaxies[row : row + 1]
    one = dataclasses.replace(one, bulge_flux=one.bulge_flux[:, [band]], disk_flux=one.disk_flux[:, [band]])
    kernel = galsim.Gaussian(sigma=psf_sigma * pairs.depth.pixel_scale)
    return ring.draw(one, 0, offset, angle, shear, (kernel,), "no_pixel", pairs.depth.pixel_scale, STAMP)[0]


def model_images(deblender: Deblender, result: Any, band: int) -> tuple[FloatArray, FloatArray]:
    """Images of all sources of a result under the reference PSF, from which ``result.ellipticity`` is measured.

    Returns
    -------
    image : float64 (n, stamp_size, stamp_size) [nJy]
    center : float64 (n, 2) [pixel]
        (x, y) on the stamp.
    """
    basis = deblender.bundle.basis
    image = (result.coefficients[:, band] @ basis.reshape(len(basis), -1)).reshape(-1, *basis.shape[1:])
    return image.astype(np.float64), result.position - result.anchor + basis.shape[2] // 2


def model_response(images: FloatArray, center: FloatArray, psf_sigma: float) -> FloatArray:
    """Derivative of e1 with respect to a shear g1 of the sky, under a Gaussian PSF.

    Parameters
    ----------
    images : float64 (n, size, size)
        Noiseless images under the PSF.
    center : float64 (n, 2) [pixel]
    psf_sigma : float [pixel]

    Returns
    -------
    float64 (n,)
    """
    size = images.shape[-1]
    k = 2j * np.pi * np.fft.fftfreq(size)
    transform = np.fft.fft2(images)

    def derivative(factor: NDArray[np.complex128]) -> FloatArray:
        return np.fft.ifft2(transform * factor).real

    d = np.arange(size) - center[:, :, None]
    change = -(d[:, 0, None, :] * derivative(k[None]) - d[:, 1, :, None] * derivative(k[:, None])
               + psf_sigma**2 * derivative(k[None] ** 2 - k[:, None] ** 2))
    ahead, back = (first_ellipticity(moments(images + sign * STEP * change, center)) for sign in (1, -1))
    return (ahead - back) / (2 * STEP)


def regauss(image: NDArray[Any], psf: NDArray[Any], sky_variance: float, center: FloatArray) -> tuple[float, float]:
    """PSF-corrected e1 of the object at a position, by re-Gaussianisation, and its resolution.

    Parameters
    ----------
    image : float (n_y, n_x)
    psf : float (size, size)
    sky_variance : float
    center : float64 (2,) [pixel]
        (x, y).

    Returns
    -------
    e1, resolution : float
        NaN if HSM fails.
    """
    nearest = np.rint(center)
    found = galsim.hsm.EstimateShear(
        galsim.Image(np.ascontiguousarray(metrics.stamp(image, nearest, STAMP), np.float64)), galsim.Image(psf),
        sky_var=sky_variance, strict=False,
        guess_centroid=galsim.PositionD(*(center - nearest + STAMP // 2 + 1)))
    failed = found.error_message or np.hypot(found.corrected_e1, found.corrected_e2) > MAX_ELLIPTICITY
    return (np.nan, np.nan) if failed else (found.corrected_e1, found.resolution_factor)
