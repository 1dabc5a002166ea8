"""Detection of sources with SEP (SourceExtractor's algorithms; extra ``detect``), for images without a catalogue.

The detection image is the sum over bands of the image in units of its noise, divided by sqrt(n_band). Pure noise keeps
unit variance, and a band in which a galaxy is faint costs little. The list is incomplete: a source that is hidden in
the profile of a brighter neighbour is not found.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The 3x3 pyramid of SourceExtractor's default.conv. The contrast is finer than SourceExtractor's default of 0.005,
# which joins pairs of unequal galaxies in deep ground-based coadds.
FILTER = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=np.float32)
DEBLEND_LEVELS = 64
DEBLEND_CONTRAST = 0.001
WINDOW_SIGMA = 2.0  # pixel, about the sigma of the PSF
MAX_RECENTRING = 1.5  # pixel


def detect(
    image: NDArray,
    variance: NDArray | None = None,
    mask: NDArray | None = None,
    threshold: float = 3.0,
    min_area: int = 5,
) -> NDArray[np.float64]:
    """Return the positions of sources in a scene, brightest first.

    Parameters
    ----------
    image : float (n_band, n_y, n_x) [any flux unit]
    variance : float (n_band, n_y, n_x) or (n_band,), optional [image's unit squared]
        Variance of the noise. By default it is measured from the image.
    mask : bool (n_band, n_y, n_x) or (n_y, n_x), optional
        True means bad. A pixel that is bad in some bands is searched in the others.
    threshold : float [sigma per pixel of the filtered detection image]
    min_area : int [pixel]

    Returns
    -------
    float64 (n_source, 2) [pixel]
        (x, y), 0-based.
    """
    try:
        import sep
    except ImportError as error:
        raise ImportError('detection needs SEP: pip install "deblendrt[detect]"') from error
    image = np.asarray(image)
    if image.ndim != 3:
        raise ValueError(f"image: expected (n_band, n_y, n_x), got shape {image.shape}")
    bad = np.zeros(image.shape, dtype=bool) | ~np.isfinite(image)
    if mask is not None:
        bad |= np.asarray(mask, dtype=bool)
    total = np.zeros(image.shape[1:], dtype=np.float64)
    n_good = np.zeros(image.shape[1:], dtype=np.int64)
    for b in range(len(image)):
        if bad[b].all():
            continue
        pixels = np.ascontiguousarray(np.where(bad[b], 0.0, image[b]), dtype=np.float32)
        background = sep.Background(pixels, mask=bad[b], bw=64, bh=64)
        if variance is None:
            sigma = np.full(pixels.shape, background.globalrms)
        else:
            with np.errstate(invalid="ignore"):
                sigma = np.sqrt(np.broadcast_to(np.asarray(variance[b]), pixels.shape))
        good = ~bad[b] & np.isfinite(sigma) & (sigma > 0)
        # A small cutout is full of galaxy light, which the mesh background would subtract.
        level = background.back() if min(pixels.shape) >= 128 else 0.0
        total[good] += ((pixels - level)[good]) / sigma[good]
        n_good[good] += 1
    signal = np.ascontiguousarray(total / np.sqrt(np.maximum(n_good, 1)), dtype=np.float32)
    objects = sep.extract(
        signal,
        threshold,
        err=1.0,
        mask=n_good == 0,
        minarea=min_area,
        filter_kernel=FILTER,
        deblend_nthresh=DEBLEND_LEVELS,
        deblend_cont=DEBLEND_CONTRAST,
    )
    centers = np.column_stack([objects["x"], objects["y"]]).astype(np.float64)
    if len(centers):
        # Gaussian-windowed centroids scatter a third less than barycentres, but drift towards bright neighbours.
        x, y, _ = sep.winpos(signal, centers[:, 0].copy(), centers[:, 1].copy(), np.full(len(centers), WINDOW_SIGMA))
        windowed = np.column_stack([x, y])
        steady = np.hypot(*(windowed - centers).T) < MAX_RECENTRING
        centers[steady] = windowed[steady]
    order = np.argsort(-objects["flux"], kind="stable")
    return centers[order]
