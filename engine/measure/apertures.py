r"""Circular apertures: exact fractions of pixels, photometry of stamps, and the functional on basis coefficients.

Let A(x, y) be the area of a unit disc to the left of x and below y, and H(t) = pi / 2 + t sqrt(1 - t^2) + arcsin t the
area to the left of t. Then

    A(x, y) = (H(x) + H(y)) / 2 + x y - pi / 4              where x^2 + y^2 < 1
            = 0, H(x), H(y) or H(x) + H(y) - pi             elsewhere, by the signs of x and y

The fraction of a pixel inside the disc is the double difference of A over the pixel's corners. It is exact up to
rounding, 2e-12 of a pixel at a radius of 30 pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deblendrt.engine.compute import drawing
from deblendrt.engine.compute.matmul import matmul
from deblendrt.engine.units import DoubleArray, FloatArray


def circle(shape: tuple[int, int], center: ArrayLike, radius: float) -> DoubleArray:
    """Compute the fraction of each pixel that lies inside a circle.

    Parameters
    ----------
    shape : tuple of int
        Shape of the image, (n_y, n_x).
    center : float (..., 2) [pixel]
        Centre (x, y); may lie off the image. The centre of a pixel is at the integer.
    radius : float [pixel]

    Returns
    -------
    float64 (..., n_y, n_x)

    Raises
    ------
    ValueError
        `center` does not end in an axis of two, or `radius` is not a positive number.
    """
    middle = np.asarray(center, np.float64)
    if middle.shape[-1:] != (2,):
        raise ValueError(f"center: expected shape (..., 2), got {middle.shape}")
    if not 0 < radius < np.inf:
        raise ValueError(f"radius: expected a positive number of pixels, got {radius!r}")
    n_y, n_x = shape
    x = (np.arange(n_x + 1) - 0.5 - middle[..., :1]) / radius
    y = (np.arange(n_y + 1) - 0.5 - middle[..., 1:]) / radius
    corner = _area_below(x[..., None, :], y[..., :, None])
    fraction = np.diff(np.diff(corner, axis=-1), axis=-2) * radius**2
    return np.clip(fraction, 0.0, 1.0)


def _area_below(x: DoubleArray, y: DoubleArray) -> DoubleArray:
    """A(x, y), see the module."""
    left, below = _half_area(x), _half_area(y)
    outside = np.where(x < 0, np.where(y < 0, 0.0, left), np.where(y < 0, below, left + below - np.pi))
    return np.where(x * x + y * y < 1, 0.5 * (left + below) + x * y - np.pi / 4, outside)


def _half_area(t: DoubleArray) -> DoubleArray:
    """H(t), see the module."""
    inside = np.clip(t, -1.0, 1.0)
    return np.asarray(np.pi / 2 + inside * np.sqrt(1 - inside**2) + np.arcsin(inside))


def aperture_flux(image: ArrayLike, center: ArrayLike, radius: float,
                  variance: ArrayLike | None = None) -> tuple[DoubleArray, DoubleArray]:
    """Sum the light of an image inside a circle.

    Parameters
    ----------
    image : float (n_band, n_y, n_x) [nJy]
        A stamp or a cutout.
    center : float (2,) [pixel]
        Centre (x, y) on the image.
    radius : float [pixel]
    variance : float, optional [nJy^2]
        Variance of the pixels' noise, which is independent from pixel to pixel: a number, (n_band,), or like `image`.

    Returns
    -------
    flux : float64 (n_band,) [nJy]
        Light in the part of the circle that lies on the image.
    err : float64 (n_band,) [nJy]
        Standard error; NaN without `variance`.

    Raises
    ------
    ValueError
        An argument of the wrong shape, or a radius that is not positive.
    """
    pixels = np.asarray(image, np.float64)
    if pixels.ndim != 3:
        raise ValueError(f"image: expected shape (n_band, n_y, n_x), got {pixels.shape}")
    if np.shape(center) != (2,):
        raise ValueError(f"center: expected shape (2,), got {np.shape(center)}")
    fraction = circle((pixels.shape[1], pixels.shape[2]), center, radius)
    inside = fraction > 0  # a bad pixel outside must not spoil the sum
    share = fraction[inside]
    flux = (pixels[:, inside] * share).sum(1)
    if variance is None:
        return flux, np.full(len(pixels), np.nan)
    given = np.asarray(variance, np.float64)
    if given.shape not in ((), (len(pixels),), pixels.shape):
        raise ValueError(f"variance: expected a number, shape ({len(pixels)},) or {pixels.shape}, got {given.shape}")
    spread = np.broadcast_to(given[:, None, None] if given.ndim == 1 else given, pixels.shape)
    return flux, np.sqrt((spread[:, inside] * share**2).sum(1))


def aperture_functional(basis: FloatArray, center: DoubleArray, radius: float) -> DoubleArray:
    """Compute inner products of a circle around each source with the basis.

    An aperture flux is the sum of these products times the source's coefficients, over the basis.

    Parameters
    ----------
    basis : float32 (n_basis, size, size)
        Basis under the reference PSF.
    center : float64 (n_source, 2) [pixel]
        Centre (x, y) on the stamp: size // 2 plus the source's offset from its anchor pixel.
    radius : float [pixel]

    Returns
    -------
    float64 (n_source, n_basis)
        Precise to float32.
    """
    n_basis, size = basis.shape[0], basis.shape[1]
    columns = np.ascontiguousarray(basis.reshape(n_basis, -1).T)
    result = np.empty((len(center), n_basis))
    for rows, padded in drawing.tiles(len(center)):
        fraction = np.zeros((padded, size * size), np.float32)
        n = rows.stop - rows.start
        fraction[:n] = circle((size, size), center[rows], radius).reshape(n, -1)
        result[rows] = matmul(fraction[None], columns[None])[0, :n]
    return result
