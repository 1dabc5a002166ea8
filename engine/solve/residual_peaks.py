r"""Peaks of the residual, which unlisted sources leave, by a matched filter.

With r the residual, W the weights and g_b a Gaussian of the PSF's width in band b, a point source at p has the signal
to noise

    s_b(p) = sum_q W r g_b(q - p) / sqrt(sum_q W g_b(q - p)^2),        s = sqrt(sum_b max(s_b, 0)^2)

W counts 5% of the model as noise: the rings of a bright galaxy's misfit must not count as sources. Peaks in the wings
of a brighter peak do not count either: below S (1 + (d / FWHM)^2)^-2 at a distance d from a peak of signal to noise S.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.filters import Plane
from deblendrt.engine.solve import constants

PEAK_THRESHOLD = 7.0  # white noise in six bands exceeds this once in 1e8 pixels; correlated noise does more often


def residual_peaks(image: NDArray[np.float32], inverse_variance: NDArray[np.float32], model: NDArray[np.float32],
                   fwhm: NDArray[np.float64], listed: NDArray[np.float64], threshold: float = PEAK_THRESHOLD,
                   doubt: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
    """Peaks of a scene's residual, the most significant first.

    Parameters
    ----------
    image : float32 (n_band, n_y, n_x) [nJy]
    inverse_variance : float32 (n_band, n_y, n_x) [nJy^-2]
    model : float32 (n_band, n_y, n_x) [nJy]
    fwhm : float64 (n_band,) [pixel]
        FWHM of the PSFs.
    listed : float64 (n_source, 2) [pixel]
        Positions (x, y) of the sources in the model: no peak is reported within one FWHM of them.
    threshold : float
        Least significance.
    doubt : float32 (n_band, n_y, n_x) [nJy], optional
        Standard error of the model, which counts as noise; default 5% of the model.

    Returns
    -------
    float64 (n_peak, 3)
        x, y [pixel], significance. Peaks are at least one FWHM apart.
    """
    significance = np.sqrt(_square(image, inverse_variance, model, fwhm, doubt))
    n_y, n_x = significance.shape
    y, x = np.nonzero(significance > threshold)
    height = significance[y, x]
    highest = (inverse_variance[:, y, x] > 0).any(0)
    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        highest &= height >= significance[np.clip(y + dy, 0, n_y - 1), np.clip(x + dx, 0, n_x - 1)]
    y, x, height = y[highest], x[highest], height[highest].astype(np.float64)
    order = np.argsort(-height, kind="stable")
    apart = float(fwhm.mean())
    listed_x, listed_y = listed[np.isfinite(listed).all(1)].T
    peaks = np.empty((len(order), 3))
    n = 0
    for row, column, peak in zip(y[order].tolist(), x[order].tolist(), height[order].tolist(), strict=True):
        here_x = column + _vertex(significance[row], column)
        here_y = row + _vertex(significance[:, column], row)
        if (np.hypot(here_x - listed_x, here_y - listed_y) < apart).any():
            continue
        distance = np.hypot(here_x - peaks[:n, 0], here_y - peaks[:n, 1])
        wings = peaks[:n, 2] / (1 + (distance / apart) ** 2) ** 2
        if (distance >= apart).all() and peak > wings.max(initial=0.0):
            peaks[n] = here_x, here_y, peak
            n += 1
    return peaks[:n].copy()


def _square(image: NDArray[np.float32], inverse_variance: NDArray[np.float32], model: NDArray[np.float32],
            fwhm: NDArray[np.float64], doubt: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Square of the significance of a point source at every pixel, float32 (n_y, n_x)."""
    plane = Plane((image.shape[1], image.shape[2]), max(map(_half, fwhm), default=0))
    signal, power, square = (np.zeros(plane.n, np.float32) for _ in range(3))
    unit = plane.image
    for b, (data, weight, m, width) in enumerate(zip(image, inverse_variance, model, fwhm, strict=True)):
        if not weight.any():
            continue
        kernel = np.exp(-0.5 * (np.arange(_half(width) + 1) * 2.3548 / width) ** 2)
        np.multiply(constants.MODEL_ERROR, m, out=unit) if doubt is None else np.copyto(unit, doubt[b])
        np.square(unit, out=unit)
        np.multiply(unit, weight, out=unit)
        np.add(unit, 1, out=unit)
        np.divide(weight, unit, out=unit)
        plane.correlate(kernel**2, power)
        np.multiply(unit, data - m, out=unit)
        plane.correlate(kernel, signal)
        np.maximum(signal, 0, out=signal)
        np.maximum(power, np.finfo(np.float32).tiny, out=power)  # without weight the signal is zero as well
        np.divide(signal, power, out=power)  # before the square, which might overflow
        np.multiply(power, signal, out=power)
        np.add(square, power, out=square)
    return plane.rows(square)


def _half(fwhm: float) -> int:
    return int(np.ceil(1.3 * fwhm))  # three sigma


def _vertex(line: NDArray[np.float32], i: int) -> float:
    """Offset of a maximum from its pixel, by the parabola through its neighbours."""
    if not 0 < i < len(line) - 1:
        return 0.0
    before, peak, after = line[i - 1 : i + 2].tolist()
    bend = before - 2 * peak + after
    return min(max(0.5 * (before - after) / bend, -0.5), 0.5) if bend < 0 else 0.0
