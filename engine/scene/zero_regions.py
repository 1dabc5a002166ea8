"""Regions of exact zeros in noisy images: pixels without data, such as the filling of cutouts beyond an image's edge.

Noise is exactly zero in single pixels at most. A connected region of `LEAST_REGION` zeros in an image whose other
pixels are noisy is therefore no data. Images without noise keep their zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.scene.arguments import GivenPixels
from deblendrt.engine.scene.images import unmasked

LEAST_REGION = 16  # pixels, connected along rows and columns
# In images of few counts, zero is a value as others are: regions of zeros are chance. If more than a tenth of the other
# pixels share a value, larger regions alone are no data, and none if more than half of them do.
COARSE_SHARE, COARSEST_SHARE, LEAST_COARSE_REGION = 0.1, 0.5, 1000
SAMPLE_PIXELS = 1_000_000  # pixels of a band that are looked at for noise
LEAST_PAIRS = 32  # pairs of pixels that tell whether a band is noisy
# Share of neighbouring second differences of one sign: 0.27 in white noise, 0.52 in noise smoothed with a sigma of one
# pixel, above 0.8 in the wings of PSFs and galaxies without noise.
SMOOTH_SHARE = 0.65
LEAST_NOISE = 0.01  # of the stated noise; less is rounding


def zero_regions(pixels: GivenPixels, sky: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Find the pixels of a scene that are zero because there are no data.

    Parameters
    ----------
    pixels : GivenPixels
    sky : float64 (n_given,) [nJy]
        Noise of a pixel where the scene has no variance; NaN if it is not known.

    Returns
    -------
    bool (n_given, n_y, n_x), or None
        None if there is no such pixel.
    """
    zero = [band == 0 for band in pixels.image]
    if not any(np.count_nonzero(band) >= LEAST_REGION for band in zero):
        return None
    noisy = [_is_noisy(pixels, b, band, sky[b]) for b, band in enumerate(zero)]
    found = np.zeros(pixels.image.shape, bool)
    for b, band in enumerate(zero):
        # A band of zeros alone says nothing about noise: the other bands do.
        if np.count_nonzero(band) >= LEAST_REGION and (any(noisy) if noisy[b] is None else noisy[b]):
            found[b] = large_regions(band, _least_region(pixels.image[b], band))
    return found if found.any() else None


def large_regions(marked: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    """Return the pixels of connected regions of at least `least` marked pixels, bool (n_y, n_x).

    Pixels are connected along rows and columns. Runs of pixels along rows are joined to the runs of the next row.

    Parameters
    ----------
    marked : bool (n_y, n_x)
    least : int
    """
    n_y, n_x = marked.shape
    edges = np.diff(marked.astype(np.int8), axis=1, prepend=0, append=0)
    row, first = np.nonzero(edges == 1)
    stop = np.nonzero(edges == -1)[1]
    width = n_x + 1
    below = (row + 1) * width
    low = np.searchsorted(row * width + stop, below + first, side="right")
    count = np.maximum(np.searchsorted(row * width + first, below + stop, side="left") - low, 0)
    upper = np.repeat(np.arange(len(row)), count)
    lower = np.arange(len(upper)) - np.repeat(np.cumsum(count) - count, count) + low[upper]
    label = np.arange(len(row))
    while True:  # roots join smaller roots until no pair of runs has different labels
        a, b = label[upper], label[lower]
        if (a == b).all():
            break
        np.minimum.at(label, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(label, jumped := label[label]):
            label = jumped
    large = np.bincount(label, weights=stop - first, minlength=len(row))[label] >= least
    steps = np.zeros((n_y, n_x + 1), np.int8)
    steps[row[large], first[large]] = 1
    steps[row[large], stop[large]] = -1
    return np.cumsum(steps, axis=1, dtype=np.int8)[:, :n_x] > 0


def _least_region(image: NDArray[np.generic], zero: NDArray[np.bool_]) -> int:
    """Return the least number of zeros in a region without data; more pixels than the image has if zeros are data."""
    step = max(1, image.size // SAMPLE_PIXELS)
    others = image[::step][~zero[::step]]
    share = np.unique(others, return_counts=True)[1].max(initial=0) / max(len(others), 1)
    if len(others) < LEAST_PAIRS or share <= COARSE_SHARE:
        return LEAST_REGION
    return LEAST_COARSE_REGION if share <= COARSEST_SHARE else image.size + 1


def _is_noisy(pixels: GivenPixels, b: int, zero: NDArray[np.bool_], sky: float) -> bool | None:
    """Return whether the pixels of a band that are not zero are noisy; None if they are too few to tell."""
    step = max(1, zero.size // SAMPLE_PIXELS)
    rows = slice(None, None, step)
    with np.errstate(over="ignore", invalid="ignore"):
        values = pixels.image[b][rows].astype(np.float64)
        bent = values[:, 1:-1] - 0.5 * (values[:, :-2] + values[:, 2:])
        usable = unmasked(pixels, b)[rows] & ~zero[rows] & np.isfinite(values)
        product = bent[:, :-1] * bent[:, 1:]
    pairs = usable[:, :-3] & usable[:, 1:-2] & usable[:, 2:-1] & usable[:, 3:] & (product != 0)
    if np.count_nonzero(pairs) < LEAST_PAIRS:
        return None
    noise = float(np.median(np.abs(bent[:, :-1][pairs]))) * pixels.factor[b]
    if pixels.variance is not None:
        spread = np.broadcast_to(pixels.variance[b], zero.shape)[rows][usable].astype(np.float64)
        valid = spread[(spread > 0) & np.isfinite(spread)] * pixels.variance_factor[b]
        sky = float(np.sqrt(np.median(valid))) if len(valid) else np.nan
    return bool(np.mean(product[pairs] > 0) < SMOOTH_SHARE and not noise < LEAST_NOISE * sky)
