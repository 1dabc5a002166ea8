"""Filters along both axes of an image that is zero beyond its edges, in float32.

As many zeros as the filter reaches follow every row of the image; they also precede the next row. A shift along either
axis is then a shift of the flat array, and a filter is a few operations on whole arrays, in blocks that the cache
holds. The filter along rows overwrites the zeros. The filter along columns never mixes columns, so the overwritten
values do not reach the image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.units import FloatArray

FILTER_BLOCK = 32768  # values of a flat array that are filtered at a time


class Plane:
    """An image with room for its filters.

    Parameters
    ----------
    shape : (int, int)
        (n_y, n_x).
    reach : int [pixel]
        Half-width of the widest filter.

    Attributes
    ----------
    image : float32 (n_y, n_x)
        A view, to be written.
    """

    def __init__(self, shape: tuple[int, int], reach: int) -> None:
        n_y, n_x = shape
        self.reach, self.shape = reach, shape
        self.pitch = n_x + reach
        self.n = n_y * self.pitch
        self._source = np.zeros(self.n + 2 * reach, np.float32)
        self.image = self.rows(self._source[reach:])
        self._between = np.zeros(self.n + 2 * reach * self.pitch, np.float32)
        self._spare = np.empty(min(self.n, FILTER_BLOCK), np.float32)

    def rows(self, flat: FloatArray) -> FloatArray:
        """View a flat array as an image, float32 (n_y, n_x), without the zeros that follow its rows."""
        return flat[: self.n].reshape(self.shape[0], self.pitch)[:, : self.shape[1]]

    def correlate(self, kernel: NDArray[np.float64], out: FloatArray) -> None:
        """Correlate `image` with a symmetric separable kernel.

        Parameters
        ----------
        kernel : float64 (n,)
            Values at distances of 0, 1, ... pixels, at most `reach`.
        out : float32 (n_y * pitch,)
            `rows` makes an image of it.
        """
        edge = self.reach * self.pitch
        self._taps(self._source, kernel, 1, self._between[edge : edge + self.n])
        self._taps(self._between, kernel, self.pitch, out)

    def _taps(self, source: FloatArray, kernel: NDArray[np.float64], stride: int, out: FloatArray) -> None:
        middle, *taps = kernel.tolist()
        for start in range(0, self.n, FILTER_BLOCK):
            total = out[start : start + FILTER_BLOCK]
            n, here = len(total), start + self.reach * stride
            pair = self._spare[:n]
            np.multiply(source[here : here + n], middle, out=total)
            for k, tap in enumerate(taps, 1):
                before, after = here - k * stride, here + k * stride
                np.add(source[before : before + n], source[after : after + n], out=pair)
                np.multiply(pair, tap, out=pair)
                np.add(total, pair, out=total)


def brightest(image: FloatArray, reach: int) -> FloatArray:
    """Compute the largest value within `reach` pixels along both axes; the image is zero beyond its edges.

    Parameters
    ----------
    image : float32 (n_band, n_y, n_x)
    reach : int [pixel]

    Returns
    -------
    float32 (n_band, n_y, n_x)
    """
    _, n_y, n_x = image.shape
    pitch = n_x + reach
    n = n_y * pitch
    edge = reach * pitch  # rows of zeros above and below
    source = np.zeros(n + 2 * edge + 2 * reach, np.float32)
    inside = source[edge + reach :][:n].reshape(n_y, pitch)[:, :n_x]
    spare = np.empty((2, len(source)), np.float32)
    result = np.empty_like(image, order="C")
    for band, out in zip(image, result, strict=True):
        inside[...] = band
        along = _running(source, 2 * reach + 1, 1, spare)
        both = _running(along[: n + 2 * edge], 2 * reach + 1, pitch, spare[::-1])
        out[...] = both[:n].reshape(n_y, pitch)[:, :n_x]
    return result


def _running(source: FloatArray, size: int, stride: int, spare: FloatArray) -> FloatArray:
    """Compute the largest of each value and the `size` - 1 values that follow it at a stride, in two spare arrays."""
    width = 1
    k = 0
    while width < size:
        step = min(width, size - width)
        n = len(source) - step * stride
        source = np.maximum(source[:n], source[step * stride :], out=spare[k][:n])
        width += step
        k = 1 - k
    return source
