"""The places of sources on their image: anchor pixels, windows and close pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLOSE_PAIR_SEPARATION = 1.0  # pixel: the fluxes of a pair inside one core of the reference PSF are degenerate


def anchor_pixels(centers: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return the pixels in which the centres lie.

    Parameters
    ----------
    centers : float64 (n_source, 2) [pixel]
    shape : tuple of int
        (n_y, n_x) of the image.

    Returns
    -------
    int64 (n_source, 2)
        (x, y), rounded and clipped to the image; zero if the centre is not finite.
    """
    last = np.maximum(np.array(shape[::-1]) - 1, 0)
    return np.clip(np.rint(np.where(np.isfinite(centers), centers, 0)), 0, last).astype(np.int64)


def too_close(centers: NDArray[np.float64], separation: float = CLOSE_PAIR_SEPARATION) -> NDArray[np.bool_]:
    """Return which sources have a neighbour nearer than `separation`.

    Parameters
    ----------
    centers : float64 (n_source, 2) [pixel]
        Centres that are not finite have no neighbours.
    separation : float [pixel]

    Returns
    -------
    bool (n_source,)
    """
    close = np.zeros(len(centers), bool)
    finite = np.flatnonzero(np.isfinite(centers).all(1))
    if len(finite) < 2:
        return close
    # Equal positions are removed first, because the sweep over them would be quadratic.
    points, inverse, count = np.unique(centers[finite], axis=0, return_inverse=True, return_counts=True)
    near = count > 1
    # Sweep along the longer axis: compare each point with its k-th successor, until no successor is near enough.
    points_swept = points[:, ::-1] if np.ptp(points[:, 1]) > np.ptp(points[:, 0]) else points
    order = np.argsort(points_swept[:, 0], kind="stable")
    swept = points_swept[order]
    first = np.arange(len(swept))
    for step in range(1, len(swept)):
        first = first[: np.searchsorted(first, len(swept) - step)]
        first = first[swept[first + step, 0] - swept[first, 0] < separation]
        if not len(first):
            break
        pair = first[((swept[first + step] - swept[first]) ** 2).sum(1) < separation**2]
        near[order[pair]] = near[order[pair + step]] = True
    close[finite] = near[inverse.reshape(-1)]
    return close


class Windows:
    """The windows of sources, cut to the image.

    Parameters
    ----------
    centers : float64 (n_source, 2) [pixel]
    shape : tuple of int
        (n_y, n_x) of the image.
    half : int [pixel]
        A window has 2 half + 1 pixels a side around its anchor pixel.

    Attributes
    ----------
    anchor : int64 (n_source, 2)
    low, high : int64 (n_source, 2)
        First pixel (x, y) of the window on the image, and the pixel after the last.
    on_image : bool (n_source,)
        Whether the centre lies in a pixel of the image, borders included.
    cut : bool (n_source,)
        Whether the window sticks out of the image.
    """

    def __init__(self, centers: NDArray[np.float64], shape: tuple[int, int], half: int) -> None:
        n_y, n_x = shape
        self.anchor = anchor_pixels(centers, shape)
        inside = (centers >= -0.5) & (centers <= np.array([n_x, n_y]) - 0.5)
        self.on_image = np.asarray(inside.all(1) & (n_x * n_y > 0))
        low, high = self.anchor - half, self.anchor + half + 1
        self.cut = ((low < 0) | (high > np.array([n_x, n_y]))).any(1)
        self.low, self.high = np.maximum(low, 0), np.minimum(high, np.array([n_x, n_y]))

    def counts(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the number of True pixels in every window, from an integral image.

        Parameters
        ----------
        mask : bool (n_y, n_x)

        Returns
        -------
        int64 (n_source,)
        """
        if not mask.any():
            return np.zeros(len(self.anchor), np.int64)
        if mask.all():
            return (self.high - self.low).prod(1)
        total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32 if mask.size < 2**31 else np.int64)
        np.cumsum(mask, axis=0, out=total[1:, 1:])
        np.cumsum(total[1:, 1:], axis=1, out=total[1:, 1:])
        (x0, y0), (x1, y1) = self.low.T, self.high.T
        return (total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]).astype(np.int64)
