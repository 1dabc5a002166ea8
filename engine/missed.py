r"""What the list of sources lacks: peaks of the residual, by a matched filter.

With r the residual, W the weights and g_b a Gaussian of the PSF's width in band b, a point source at p has the signal
to noise

    s_b(p) = sum_q W r g_b(q - p) / sqrt(sum_q W g_b(q - p)^2),        s = sqrt(sum_b max(s_b, 0)^2)

W counts 5% of the model as noise, so that the rings of a bright galaxy's misfit are no sources. A peak in the wings of
a brighter one, below S (1 + (d / FWHM)^2)^-2 at a distance d of one with signal to noise S, is none either.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.objective import MODEL_ERROR
from deblendrt.engine.scene import Scene

THRESHOLD = 7.0  # pure noise in six bands exceeds it once in 1e8 pixels, correlated noise of coadds more often


def residual_peaks(scene: Scene, model: NDArray[np.float32], fwhm: NDArray[np.float64], listed: NDArray[np.float64],
                   threshold: float = THRESHOLD, doubt: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
    """Peaks of a scene's residual, the most significant first.

    Parameters
    ----------
    scene : Scene
    model : float32 (n_band, n_y, n_x) [nJy]
    fwhm : float64 (n_band,) [pixel]
        Of the PSFs.
    listed : float64 (n_source, 2) [pixel]
        (x, y) of the sources in the model: no peak is reported within one PSF FWHM of them.
    threshold : float
        Least significance.
    doubt : float32 (n_band, n_y, n_x) [nJy], optional
        Standard error of the model, which counts as noise; default 5% of it.

    Returns
    -------
    float64 (n_peak, 3)
        x, y [pixel], significance. Peaks are at least one FWHM apart.
    """
    square = np.zeros(scene.shape)
    doubt = MODEL_ERROR * model if doubt is None else doubt
    for image, weight, m, unsure, width in zip(scene.image, scene.inverse_variance, model, doubt, fwhm, strict=True):
        w = weight / (1 + weight * unsure**2)
        kernel = np.exp(-0.5 * (np.arange(-_half(width), _half(width) + 1) * 2.3548 / width) ** 2)
        signal, power = _filter(w * (image - m), kernel), _filter(w.astype(np.float64), kernel**2)
        square += np.maximum(signal, 0) ** 2 / np.where(power > 0, power, np.inf)
    significance = np.sqrt(square)
    padded = np.pad(significance, 1, constant_values=-1.0)
    n_y, n_x = scene.shape
    around = [padded[1 + dy : 1 + dy + n_y, 1 + dx : 1 + dx + n_x]
              for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dx or dy]
    usable = (scene.inverse_variance > 0).any(0)
    y, x = np.nonzero((significance > threshold) & (significance >= np.max(around, 0)) & usable)
    order = np.argsort(-significance[y, x], kind="stable")
    apart = float(fwhm.mean())
    taken = [position for position in listed if np.isfinite(position).all()]
    peaks: list[list[float]] = []
    for px, py in np.column_stack([x, y])[order].tolist():
        here = np.array([px + _vertex(significance[py], px), py + _vertex(significance[:, px], py)])
        wings = (s / (1 + ((here[0] - ax) ** 2 + (here[1] - ay) ** 2) / apart**2) ** 2 for ax, ay, s in peaks)
        if (all(np.hypot(*(here - other)) >= apart for other in taken)
                and significance[py, px] > max(wings, default=0.0)):
            taken.append(here)
            peaks.append([*here, significance[py, px]])
    return np.array(peaks).reshape(-1, 3)


def _half(fwhm: float) -> int:
    return int(np.ceil(1.3 * fwhm))  # three sigma


def _filter(image: NDArray[np.floating], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation with a separable kernel, zero beyond the edges."""
    half = len(kernel) // 2
    for axis in (0, 1):
        padded = np.pad(image, [(half, half) if k == axis else (0, 0) for k in (0, 1)])
        n = image.shape[axis]
        image = sum(factor * padded.take(range(i, i + n), axis) for i, factor in enumerate(kernel))
    return np.asarray(image, np.float64)


def _vertex(line: NDArray[np.float64], i: int) -> float:
    """Offset of a maximum from its pixel, by the parabola through its neighbours."""
    if not 0 < i < len(line) - 1:
        return 0.0
    before, peak, after = line[i - 1 : i + 2]
    bend = before - 2 * peak + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0
