"""SEP, the algorithms of Source Extractor, on the exchanged scenes, in its own environment.

    python -m perf.peers.sep

The recipe is that of SEP's documentation. Sources are detected on the sum of the bands, weighted for the best
signal-to-noise ratio, and split by multi-threshold deblending. Every band is measured in the Kron ellipse ("equivalent
to FLUX_AUTO"), with the segments of other sources masked. SEP accepts no positions: a given position gets the nearest
detection, each detection goes to one position at most, and a position without a detection gets an aperture. A pixel
belongs to one source, so the model of a source is the image in its segment.
"""

from __future__ import annotations

import numpy as np
import sep
from numpy.typing import NDArray

from perf.peers import exchange

THRESHOLD = 1.5  # sigma; other settings of the detection are sep's defaults
MATCH = 4.0  # pixel: a position gets no detection farther away
KRON_REACH, KRON_FACTOR, SMALLEST_RADIUS = 6.0, 2.5, 1.75  # from its documentation; the last is in pixels
APERTURE = 5.0  # pixel: radius at positions without a detection
HOW = ("its documentation's recipe: extract on the bands' weighted sum (1.5 sigma, its own settings otherwise), fluxes "
       "in Kron ellipses with the other segments masked, not corrected for what is outside; a given position gets the "
       "nearest detection within 4 pixels, or else an aperture of 5 pixels' radius; model images: the pixels of the "
       "segment; no PSF and no model")


def match(centers: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of the detection that each position gets, nearest pairs first; -1 for none.

    Parameters
    ----------
    centers, found : float64 (n_source, 2), (n_found, 2) [pixel]
    """
    distance = np.hypot(*(centers[:, None] - found).transpose(2, 0, 1))
    number = np.full(len(centers), -1)
    for i, j in zip(*np.unravel_index(np.argsort(distance, axis=None), distance.shape), strict=True):
        if distance[i, j] <= MATCH and number[i] < 0 and j not in number:
            number[i] = j
    return number


def _kron_fluxes(images: NDArray[np.float64], detection: NDArray[np.float64], segments: NDArray[np.int32],
                 found: NDArray[np.void]) -> NDArray[np.float64]:
    """Flux (n_band, n_found) in the Kron ellipse of each detection, but at least in a small circle."""
    label = np.arange(1, len(found) + 1, dtype=np.int32)
    place, masked = (found["x"], found["y"]), {"segmap": segments, "seg_id": label}
    ellipse = (found["a"], found["b"], np.clip(found["theta"], -np.pi / 2, np.pi / 2))
    radius, _ = sep.kron_radius(detection, *place, *ellipse, KRON_REACH, **masked)
    radius = np.where(np.isfinite(radius), radius, 0.0)
    small = radius * np.sqrt(found["a"] * found["b"]) < SMALLEST_RADIUS
    of_ellipse = [sep.sum_ellipse(image, *place, *ellipse, KRON_FACTOR * radius, subpix=1, **masked)[0]
                  for image in images]
    of_circle = [sep.sum_circle(image, *place, SMALLEST_RADIUS, subpix=1, **masked)[0] for image in images]
    return np.where(small, of_circle, of_ellipse)


def deblend(scene: exchange.GivenScene) -> exchange.Model:
    """Detect, match and measure. The time leaves out the drawing of the models."""
    start = exchange.clock()
    images = scene.image.astype(np.float64)
    noise = np.sqrt(np.median(scene.variance, (1, 2)))
    weights = (1 / noise**2)[:, None, None]
    detection = (weights * images).sum(0)
    error = np.sqrt((weights**2 * scene.variance).sum(0), dtype=np.float64)
    found, segments = sep.extract(detection, THRESHOLD, err=error, segmentation_map=True)
    number = match(scene.centers, np.stack([found["x"], found["y"]], 1))
    matched = number >= 0
    flux = np.zeros((len(number), len(images)))
    if matched.any():
        flux[matched] = _kron_fluxes(images, detection, segments, found).T[number[matched]]
    x, y = scene.centers[~matched].T
    flux[~matched] = np.stack([sep.sum_circle(image, x, y, APERTURE)[0] for image in images], 1)
    seconds = exchange.clock() - start
    row, column = np.indices(detection.shape)
    masks = [segments == j + 1 if j >= 0 else np.hypot(column - x, row - y) <= APERTURE
             for j, (x, y) in zip(number, scene.centers, strict=True)]
    return exchange.Model(flux, scene.image * np.array(masks)[:, None], seconds, exchange.NO_TIME, -1, "",
                          int((~matched).sum()))


if __name__ == "__main__":
    exchange.serve(deblend, sep.__version__, HOW)
