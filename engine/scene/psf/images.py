"""PSF images: their checks, centre, normalisation, content hash and width."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

NORM_TOLERANCE = 1e-3
"""A larger deviation of a PSF's sum from one is reported. This is far above float32 rounding and below calibration
errors."""

CENTRED = 0.02
"""Largest distance [pixel] of the centroid from the middle of a PSF image that is taken as it is. PSFs of HSC coadds,
which are centred by their pipeline's measure, are off by 0.01 at most."""

KOLMOGOROV_FWHM = 2.9207  # FWHM of the transform of exp(-k^(5/3)); Fried 1966, as 0.9759 times 2.9929
OFF_IMAGE_SHARE = 0.25  # of the side: a centroid farther from the middle leaves half of the PSF's wings out
_MARGIN = 8  # pixel of zeros around an image that is shifted: the shift is periodic


class CentredPsf(NamedTuple):
    """A PSF image with its centroid on the middle pixel.

    Attributes
    ----------
    image : float64 (q, q)
        q odd; not normalized.
    shift : float64 (2,), or None [pixel]
        (x, y) by which the image was moved; None if it was centred.
    """

    image: NDArray[np.float64]
    shift: NDArray[np.float64] | None


def psf_centroid(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centroid of a PSF image, weighted by a Gaussian of about the PSF's own width.

    The weight moves with the centroid until both agree. Noise and cut wings far from the core, which dominate an
    unweighted centroid, do not matter.

    Parameters
    ----------
    image : float64 (n_y, n_x)
        Finite, with a positive peak.

    Returns
    -------
    float64 (2,) [pixel]
        (x, y), 0 in the first pixel.
    """
    n_y, n_x = image.shape
    peak = np.unravel_index(np.argmax(image), image.shape)
    x, y = float(peak[1]), float(peak[0])
    sigma = max(np.sqrt(np.count_nonzero(image > 0.5 * image[peak]) / np.pi) / 1.1774, 0.8)  # half of the FWHM
    columns, rows = np.arange(n_x), np.arange(n_y)
    for _ in range(50):
        across, along = (np.exp(-0.5 * ((axis - c) / sigma) ** 2) for axis, c in ((columns, x), (rows, y)))
        weighted = image * along[:, None] * across
        total = weighted.sum()
        if not total > 0:
            break
        # For a Gaussian PSF of the weight's width the weighted centroid goes half of the way.
        step_x = 2 * (weighted.sum(0) @ columns / total - x)
        step_y = 2 * (weighted.sum(1) @ rows / total - y)
        x, y = min(max(x + step_x, 0.0), n_x - 1.0), min(max(y + step_y, 0.0), n_y - 1.0)
        if abs(step_x) + abs(step_y) < 1e-6:
            break
    return np.array([x, y])


def centred_psf(image: NDArray[np.float64], name: str = "psf") -> CentredPsf:
    """Bring a PSF image to an odd-sized square with the PSF's centroid on the middle pixel.

    An odd-sized image whose centroid is within `CENTRED` of the middle keeps its values. Other images are moved by a
    phase in Fourier space, which is exact for a PSF that its pixels sample well.

    Parameters
    ----------
    image : float (n_y, n_x)
    name : str
        Name of the image, for messages.

    Returns
    -------
    CentredPsf

    Raises
    ------
    ValueError
        The image is not two-dimensional, not finite or without positive values, or its centroid is far from its middle.
    """
    given = np.asarray(image, np.float64)
    if given.ndim != 2 or min(given.shape) < 1:
        raise ValueError(f"{name}: expected an image (q, q), got shape {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    if not (given.max() > 0 and given.sum() > 0):
        raise ValueError(f"{name}: expected an image with a positive sum, got the sum {given.sum():g}")
    n_y, n_x = given.shape
    centre, middle = psf_centroid(given), np.array([n_x - 1, n_y - 1]) / 2
    offset = centre - middle
    odd = n_y % 2 == 1 and n_x % 2 == 1
    if odd and np.hypot(*offset) <= CENTRED:
        side = max(n_y, n_x)
        return CentredPsf(given if n_y == n_x else _embedded(given, side, (0, 0)), None)
    if (np.abs(offset) > OFF_IMAGE_SHARE * np.array([n_x, n_y])).any():
        corner = np.minimum(centre, [n_x, n_y] - centre).max() < OFF_IMAGE_SHARE * min(n_x, n_y)
        raise ValueError(f"{name}: expected a PSF near the middle of its image, got the centroid ({centre[0]:.1f}, "
                         f"{centre[1]:.1f}) in {n_x} x {n_y} pixels"
                         + ("; np.fft.fftshift moves a PSF from the corner to the middle" if corner else ""))
    # Whole pixels are moved by the place in a larger image, which loses nothing; the phase moves the rest.
    whole = np.floor(centre + 0.5).astype(int)
    reach = int(max(np.maximum(whole, [n_x - 1, n_y - 1] - whole)))
    half = reach + _MARGIN
    place = (half - whole[1], half - whole[0])
    moved = _moved(_embedded(given, 2 * half + 1, place), whole - centre)
    inside = slice(_MARGIN, 2 * half + 1 - _MARGIN)
    return CentredPsf(np.ascontiguousarray(moved[inside, inside]), middle - centre)


def _embedded(image: NDArray[np.float64], side: int, place: tuple[int, int]) -> NDArray[np.float64]:
    """Return a square of zeros with the image at a place (row, column); (0, 0) in a larger square is the middle."""
    n_y, n_x = image.shape
    row, column = ((side - n_y) // 2, (side - n_x) // 2) if place == (0, 0) else place
    square = np.zeros((side, side))
    square[row : row + n_y, column : column + n_x] = image
    return square


def _moved(image: NDArray[np.float64], shift: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an odd-sized square image moved by (x, y) [pixel], periodically."""
    n = len(image)
    x, y = (np.exp(-2j * np.pi * frequency * s)
            for frequency, s in ((np.fft.rfftfreq(n), shift[0]), (np.fft.fftfreq(n), shift[1])))
    return np.fft.irfft2(np.fft.rfft2(image) * y[:, None] * x, s=(n, n))


def kolmogorov_psf(fwhm: float) -> NDArray[np.float64]:
    """Return the PSF of atmospheric turbulence with a given width: the transform of exp(-(k / k0)^(5/3)).

    Parameters
    ----------
    fwhm : float [pixel]
        Full width at half maximum, as measured on stars.

    Returns
    -------
    float64 (q, q)
        Sum one, q odd. The image reaches 6 FWHM, beyond which lie 0.3% of the light.
    """
    half = int(np.ceil(6 * max(fwhm, 2.0) - 1e-3))
    n = 4 * half + 1  # the transform is periodic: copies of the wings lie far outside the part that is kept
    transform = np.zeros((n, n // 2 + 1))
    for y in (-1, 0, 1):  # samples of a narrow PSF hold aliases
        for x in (-1, 0, 1):
            k = 2 * np.pi * np.hypot(np.fft.fftfreq(n)[:, None] + y, np.fft.rfftfreq(n) + x)
            transform += np.exp(-((k * fwhm / KOLMOGOROV_FWHM) ** (5 / 3)))
    image = np.fft.fftshift(np.fft.irfft2(transform, s=(n, n)))
    middle = slice(n // 2 - half, n // 2 + half + 1)
    cut = image[middle, middle]
    return np.asarray(cut / cut.sum())


def normalize_psf(psf: ArrayLike, name: str = "psf") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check PSF images and scale each to a sum of one.

    Parameters
    ----------
    psf : float (n_band, q, q)
        Effective PSF images (pixel included), q odd, centred on the middle pixel.
    name : str
        Name of the argument, for messages.

    Returns
    -------
    psf : float64 (n_band, q, q)
        A copy.
    norm : float64 (n_band,)
        The sums of the given images.

    Raises
    ------
    ValueError
        An image is not square, even-sized, not finite, or has no positive sum.
    """
    array = np.array(psf, dtype=np.float64, order="C")
    if array.ndim != 3 or array.shape[1] != array.shape[2] or array.shape[1] % 2 == 0:
        raise ValueError(f"{name}: expected shape (n_band, q, q) with q odd, got {array.shape}")
    finite = np.isfinite(array).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity in band(s) {np.flatnonzero(~finite)}")
    norm = array.sum(axis=(1, 2))
    if not (norm > 0).all():
        raise ValueError(f"{name}: expected images with a positive sum, got sums {norm}")
    array /= norm[:, None, None]
    return array, norm


def psf_key(psf: ArrayLike) -> str:
    """Return the content hash of PSF images, the key of a folded basis.

    Parameters
    ----------
    psf : float (n_band, q, q)

    Returns
    -------
    str
        Equal for equal shapes and float64 values, in any memory layout.
    """
    array = np.ascontiguousarray(psf, dtype="<f8")
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    digest.update(array.data)
    return digest.hexdigest()


def psf_fwhm(psf: ArrayLike) -> float:
    """Return the full width at half maximum of a PSF image: the diameter of a circle with the area above half the peak.

    Trigonometric interpolation refines the image, so that the peak may lie between pixels.

    Parameters
    ----------
    psf : float (q, q)

    Returns
    -------
    float [pixel]
        For Gaussians exact to 0.5% at FWHM of 3 pixels and more, and to 2% at 2.5 pixels. For an ellipse this is the
        geometric mean of the axes.
    """
    image = np.asarray(psf, dtype=np.float64)
    if image.ndim != 2 or 0 in image.shape or not np.isfinite(image).all() or image.max() <= 0:
        raise ValueError(f"psf: expected one finite image (q, q) with a positive peak, got shape {image.shape}")
    zoom = 8
    fine = _refinement(image.shape[0], zoom) @ image @ _refinement(image.shape[1], zoom).T
    excess = fine - 0.5 * fine.max()
    slope = np.hypot(*np.gradient(fine))
    # A pixel on the contour counts in part. With whole pixels the error is 2% at a FWHM of 3 pixels.
    inside = np.clip(0.5 + excess / np.maximum(slope, np.finfo(np.float64).tiny), 0.0, 1.0)
    return 2.0 * float(np.sqrt(inside.sum() / np.pi)) / zoom


def _refinement(n: int, zoom: int) -> NDArray[np.float64]:
    """Return the trigonometric interpolation of n samples to n * zoom as a matrix (n * zoom, n)."""
    frequency = np.fft.rfftfreq(n)
    weight = np.where((frequency == 0) | (frequency == 0.5), 1.0, 2.0) / n
    lag = np.arange(n * zoom)[:, None] / zoom - np.arange(n)
    matrix = np.zeros((n * zoom, n))
    for f, factor in zip(frequency, weight, strict=True):
        matrix += factor * np.cos(2 * np.pi * f * lag)
    return matrix
