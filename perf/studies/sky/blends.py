"""Real blends of HSC-COSMOS: their images, a subset by part, and calls of the engine on them.

A folder ``hsc_blends`` holds ``*.npz`` files with ``images`` and ``weights`` (5, n_y, n_x; grizy, zero point 27),
``peaks`` (n, 2; x, y) and ``psfs`` (5, 41, 41). Weights are inverse variances, 0 outside the footprint. Of the sorted
files the even ones serve for choices ("tuning"), the odd ones for the figures that are quoted ("test").
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult

BANDS = ("g", "r", "i", "z", "y")
NJY = 10 ** (0.4 * (31.4 - 27.0))  # nJy of one image unit
MAX_PEAKS = 14
PARTS = ("all", "tuning", "test")
SMOOTHING = 1.2  # pixel: sigma of the Gaussian under which the significance of a pixel is measured


@dataclass(frozen=True)
class Blend:
    """One real blend.

    Attributes
    ----------
    number : int
        Place in the sorted list of files.
    image : float64 (n_band, n_y, n_x) [nJy]
    weight : float64 (n_band, n_y, n_x) [nJy^-2]
        Inverse variance; 0 where there is no data.
    peaks : float64 (n_source, 2) [pixel]
        (x, y).
    psf : float64 (n_band, size, size)
    """

    number: int
    image: NDArray[np.float64]
    weight: NDArray[np.float64]
    peaks: NDArray[np.float64]
    psf: NDArray[np.float64]


def read_blends(folder: Path, part: str = "all", *, max_peaks: int = MAX_PEAKS) -> list[Blend]:
    """The blends of a folder.

    Parameters
    ----------
    folder : Path
        Has the ``.npz`` files, or a folder ``hsc_blends`` with them.
    part : {"all", "tuning", "test"}
    max_peaks : int
        Blends with more peaks are left out.

    Raises
    ------
    ValueError
        The folder has no blends, or `part` is unknown.
    """
    if part not in PARTS:
        raise ValueError(f"part: expected one of {PARTS}, got {part!r}")
    inner = folder / "hsc_blends"
    paths = sorted((inner if inner.is_dir() else folder).glob("*.npz"))
    found = []
    for number, path in enumerate(paths):
        if part != "all" and (number % 2 == 0) != (part == "tuning"):
            continue
        with np.load(path, allow_pickle=False) as file:
            if "peaks" not in file or len(file["peaks"]) > max_peaks:
                continue
            found.append(Blend(number, file["images"] * NJY, file["weights"].astype(np.float64) / NJY**2,
                               file["peaks"].astype(np.float64), file["psfs"].astype(np.float64)))
    if not found:
        raise ValueError(f"folder: expected blends as .npz files with peaks, found none in {folder}")
    return found


def deblend(deblender: Deblender, images: Sequence[NDArray[np.float64]], weights: Sequence[NDArray[np.float64]],
            centers: Sequence[NDArray[np.float64]], psf: NDArray[np.float64],
            options: Mapping[str, Any]) -> tuple[DeblendResult, float]:
    """Deblend scenes in one call. Returns the result and the processor time per listed source [s].

    Parameters
    ----------
    images, weights : sequence of float64 (n_band, n_y, n_x) [nJy, nJy^-2]
        Pixels of weight 0 are masked.
    centers : sequence of float64 (n_source, 2) [pixel]
    psf : float64 (n_band, size, size)
    options : mapping
        Further arguments of `Deblender.deblend_batch`.
    """
    masks = [weight == 0 for weight in weights]
    variances = [1 / np.where(mask, 1.0, weight) for weight, mask in zip(weights, masks, strict=True)]
    start = time.process_time()
    result = deblender.deblend_batch(list(images), list(centers), variance=variances, mask=masks, psf=psf, bands=BANDS,
                                     **options)
    return result, (time.process_time() - start) / sum(map(len, centers))


def smoothed(image: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """An image convolved with a Gaussian of unit sum; 0 off the image.

    Parameters
    ----------
    image : float64 (..., n_y, n_x)
    sigma : float [pixel]
    """
    half = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (-1, -2):
        image = np.apply_along_axis(lambda row: np.convolve(row, kernel)[half : half + len(row)], axis, image)
    return image


def significance(blend: Blend) -> NDArray[np.float64]:
    """Signal to noise of the data in every pixel under a Gaussian of sigma `SMOOTHING`, all bands together.

    Negative signals of a band count as 0.

    Returns
    -------
    float64 (n_y, n_x)
    """
    signal = smoothed(blend.image * blend.weight, SMOOTHING)
    # the variance of `signal`: the square of a Gaussian is a narrower one, of sum 1 / (4 pi sigma^2)
    variance = smoothed(blend.weight, SMOOTHING / np.sqrt(2)) / (4 * np.pi * SMOOTHING**2)
    squared = np.maximum(signal, 0) ** 2 / np.where(variance > 0, variance, np.inf)
    return np.sqrt(squared.sum(0))
