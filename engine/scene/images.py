"""The pixels of a scene: references to the caller's arrays, and the image and inverse variance made from them.

A result keeps its scenes, and the caller keeps the images. A scene therefore refers to the caller's arrays, and makes
the image in float32 nJy and the inverse variance at each access.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.scene.arguments import GivenPixels

FILL_SIGMA = 1e8  # brighter pixels are fill values: stars saturate below 1e6. Squares in float32 overflow at 1e19
ESTIMATE_PIXELS = 1_000_000  # pixels for an estimated variance; its relative error is then 0.2%

Plane: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class ReadyImages:
    """An image and its inverse variance in the model's bands.

    Attributes
    ----------
    image : float32 (n_band, n_y, n_x) [nJy]
        Zero where `inverse_variance` is zero.
    inverse_variance : float32 (n_band, n_y, n_x) [nJy^-2]
    """

    image: NDArray[np.float32]
    inverse_variance: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_band, n_y, n_x)."""
        return self.image.shape

    def arrays(self) -> Plane:
        """Return image and inverse variance, float32 (n_band, n_y, n_x) each."""
        return self.image, self.inverse_variance

    def by_band(self) -> Iterator[Plane]:
        """Yield image and inverse variance, float32 (n_y, n_x) each, band after band."""
        return zip(self.image, self.inverse_variance, strict=True)

    def cut(self, y: slice, x: slice) -> ReadyImages:
        """Return a rectangle of the images, as views."""
        return ReadyImages(self.image[:, y, x], self.inverse_variance[:, y, x])


@dataclass(frozen=True, eq=False)
class GivenImages:
    """The caller's arrays, and how they become an image and its inverse variance in the model's bands.

    Attributes
    ----------
    pixels : GivenPixels
        References to the caller's arrays. The variance is never None: it is estimated if the caller gives none.
    target : int64 (n_given,)
        Index of every given band among the model's bands.
    n_band : int
        Number of the model's bands.
    clean : bool
        Whether no pixel of a given band is dropped: every inverse variance is above zero.
    """

    pixels: GivenPixels
    target: NDArray[np.int64]
    n_band: int
    clean: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_band, n_y, n_x)."""
        return (self.n_band, *self.pixels.image.shape[1:])

    @property
    def image(self) -> NDArray[np.float32]:
        """Image, float32 (n_band, n_y, n_x) [nJy], zero without weight; read-only if it is the caller's array."""
        given = self.pixels.image
        if (self.clean and len(self.target) == self.n_band and (np.diff(self.target) == 1).all()
                and given.dtype == np.float32 and given.dtype.isnative and given.flags.c_contiguous
                and (self.pixels.factor == 1).all() and self.pixels.background is None):
            view = given.view()
            view.flags.writeable = False
            return view
        image = np.zeros(self.shape, np.float32)
        for b, t in enumerate(self.target):
            image[t] = _values(self.pixels, b) if self.clean else checked_band(self.pixels, b).image
        return image

    @property
    def inverse_variance(self) -> NDArray[np.float32]:
        """Inverse variance, float32 (n_band, n_y, n_x) [nJy^-2]; read-only if it is a number per band."""
        variance = self.pixels.variance
        if self.clean and variance is not None and variance.shape[1:] == (1, 1):
            number = np.zeros((self.n_band, 1, 1), np.float32)
            for b, t in enumerate(self.target):
                number[t] = 1 / _variance(self.pixels, b)
            return np.broadcast_to(number, self.shape)
        weight = np.zeros(self.shape, np.float32)
        for b, t in enumerate(self.target):
            weight[t] = 1 / _variance(self.pixels, b) if self.clean else checked_band(self.pixels, b).inverse_variance
        return weight

    def arrays(self) -> Plane:
        """Return image and inverse variance, float32 (n_band, n_y, n_x) each."""
        if self.clean:
            return self.image, self.inverse_variance
        image, weight = np.zeros(self.shape, np.float32), np.zeros(self.shape, np.float32)
        for b, t in enumerate(self.target):
            band = checked_band(self.pixels, b)
            image[t], weight[t] = band.image, band.inverse_variance
        return image, weight

    def by_band(self) -> Iterator[Plane]:
        """Yield image and inverse variance, float32 (n_y, n_x) each, band after band, which bounds the memory."""
        given = {int(t): b for b, t in enumerate(self.target)}
        for t in range(self.n_band):
            if t in given:
                band = checked_band(self.pixels, given[t])
                yield band.image, band.inverse_variance
            else:
                empty = np.broadcast_to(np.float32(0), self.shape[1:])
                yield empty, empty

    def cut(self, y: slice, x: slice) -> GivenImages:
        """Return a rectangle of the images; its arrays are views."""
        pixels = self.pixels
        variance, background = (values if values is None or values.shape[1:] == (1, 1) else values[:, y, x]
                                for values in (pixels.variance, pixels.background))
        return dataclasses.replace(self, pixels=dataclasses.replace(
            pixels, image=pixels.image[:, y, x], masks=[mask[:, y, x] for mask in pixels.masks], variance=variance,
            background=background))


Images: TypeAlias = ReadyImages | GivenImages


class CheckedBand(NamedTuple):
    """One band of a scene after the checks of its pixels.

    Attributes
    ----------
    image, inverse_variance : float32 (n_y, n_x) [nJy], [nJy^-2]
        Zero where a pixel is dropped.
    not_finite, bad_variance : bool (n_y, n_x)
        Unmasked pixels without a valid image value (not finite, or a fill value), and without a valid variance.
    """

    image: NDArray[np.float32]
    inverse_variance: NDArray[np.float32]
    not_finite: NDArray[np.bool_]
    bad_variance: NDArray[np.bool_]


def checked_band(pixels: GivenPixels, b: int) -> CheckedBand:
    """Convert one given band, and drop the pixels that cannot be used.

    Parameters
    ----------
    pixels : GivenPixels
        The variance must be there.
    b : int
        Index of the given band.

    Returns
    -------
    CheckedBand
    """
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        values, variance = _values(pixels, b), _variance(pixels, b)
        single, inverse = values.astype(np.float32), (1 / variance).astype(np.float32)
        usable, finite = unmasked(pixels, b), np.isfinite(single)
        known = (variance > 0) & np.isfinite(inverse)
        significance = np.abs(np.where(finite, values, 0.0)) * np.sqrt(np.where(known, inverse, np.float32(0)))
    finite &= significance < FILL_SIGMA
    weight = np.where(usable & finite & known, inverse, np.float32(0))
    return CheckedBand(np.where(weight > 0, single, np.float32(0)), weight, usable & ~finite, usable & ~known)


def with_variance(pixels: GivenPixels, sky: NDArray[np.float64]) -> GivenPixels:
    """Return the arrays with a variance: the given variance, or else the sky's, estimated from the image in every band.

    Parameters
    ----------
    pixels : GivenPixels
    sky : float64 (n_given,) [nJy]
        Noise of a pixel for a band in which no estimate is possible. NaN means unknown: the band is then not used.

    Returns
    -------
    GivenPixels
    """
    if pixels.variance is not None:
        return pixels
    variance = np.empty((len(pixels.image), 1, 1))
    for b in range(len(variance)):
        with np.errstate(over="ignore", invalid="ignore"):
            values = _values(pixels, b)
            finite = np.isfinite(values.astype(np.float32))
            estimate = estimate_variance(values, unmasked(pixels, b) & finite)
        estimate = sky[b] ** 2 if np.isnan(estimate) else estimate
        variance[b] = np.inf if np.isnan(estimate) else estimate
    return dataclasses.replace(pixels, variance=variance, variance_factor=np.ones(len(variance)))


def estimate_variance(image: NDArray[np.float64], usable: NDArray[np.bool_]) -> float:
    """Estimate the variance of the sky in one band from the differences of neighbouring pixels.

    sigma = 1.4826 MAD(y[p] - y[p']) / sqrt(2): sources change the median of the absolute differences little. Noise
    that is correlated between pixels, as in a resampled coadd, is underestimated. The photon noise of the sources is
    not included.

    Parameters
    ----------
    image : float64 (n_y, n_x)
    usable : bool (n_y, n_x)

    Returns
    -------
    float
        NaN if there are fewer than 16 differences, or more than half of them are equal.
    """
    step = max(1, image.size // ESTIMATE_PIXELS)
    first, right = (slice(None, None, step), slice(None, -1)), (slice(None, None, step), slice(1, None))
    upper, lower = slice(None, -1, step), slice(1, None, step)
    difference = np.concatenate([
        (image[right] - image[first])[usable[right] & usable[first]],
        (image[lower] - image[upper])[usable[lower] & usable[upper]],
    ])
    if difference.size < 16:
        return np.nan
    deviation = 1.4826 * float(np.median(np.abs(difference - np.median(difference))))
    return 0.5 * deviation**2 if deviation > 0 else np.nan


def unmasked(pixels: GivenPixels, b: int) -> NDArray[np.bool_]:
    """Return the pixels of a given band that no mask covers, bool (n_y, n_x)."""
    usable = np.ones(pixels.image.shape[1:], bool)
    for mask in pixels.masks:
        usable &= ~mask[b % len(mask)]
    return usable


def _values(pixels: GivenPixels, b: int) -> NDArray[np.float64]:
    """Return a given band without background, float64 (n_y, n_x) [nJy]."""
    values = pixels.image[b].astype(np.float64) * pixels.factor[b]
    if pixels.background is not None:
        values -= pixels.background[b].astype(np.float64) * pixels.background_factor[b]
    return np.asarray(values)


def _variance(pixels: GivenPixels, b: int) -> NDArray[np.float64]:
    """Return the variance of a given band, float64 (n_y, n_x) or (1, 1) [nJy^2]."""
    assert pixels.variance is not None
    return np.asarray(pixels.variance[b].astype(np.float64) * pixels.variance_factor[b])
