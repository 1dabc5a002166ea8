"""Accuracy of results on the scenes of `perf.gate.cases`, reported beside every time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perf.gate.cases import CaseScene

Judged = Sequence[tuple[list[CaseScene], Any]]
FLUX_BANDS = ("r", "i")
CLIPS = {"flux_error": 50.0, "flux_error_sigma": 5.0, "color_error": 0.5}  # per cent, sigma, mag
HASHED = ("flux", "flux_err", "position", "flags")


def figures(judged: Judged, suspect: int = 0) -> dict[str, float]:
    """Accuracy figures of the sources of all calls.

    Parameters
    ----------
    judged : sequence of (scenes, result)
    suspect : int
        Bits of `flags` that mark a fit as not to be trusted.

    Returns
    -------
    dict of str to float
        For r and i, if observed: ``flux_error_<band>`` [per cent] and ``flux_error_sigma_<band>``, medians of the
        absolute difference to the true flux, and ``beyond_3_sigma_<band>`` [per cent of sources]. ``color_error``
        [mag], median in g - r. Each of these errors also as a mean, ``mean_...``, with errors clipped at `CLIPS`: with
        some tens of sources the median jumps from one source to the next. ``model_error`` [sigma], the median over
        scenes of the root mean square of model minus noiseless image in the reference band. ``suspect`` and ``failed``
        [per cent of sources].
    """
    flux, error, truth, flags, model = [], [], [], [], []
    bands = judged[0][0][0].bands
    for scenes, result in judged:
        column = [list(result.bands).index(band) for band in bands]
        flux.append(np.asarray(result.flux)[:, column])
        error.append(np.asarray(result.flux_err)[:, column])
        flags.append(np.asarray(result.flags))
        b = bands.index("i")
        for k, scene in enumerate(scenes):
            truth.append(scene.flux)
            difference = (result.model(k)[column[b]] - scene.truth[b]).astype(np.float64)
            model.append(np.sqrt((difference**2 / scene.variance[b]).mean()))
    found, sigma, true, flag = (np.concatenate(parts) for parts in (flux, error, truth, flags))
    fitted = np.isfinite(found).all(1)
    summary = {"failed": 100.0 * float(1 - fitted.mean()), "suspect": 100.0 * float(((flag & suspect) != 0).mean()),
               "model_error": float(np.median(model))}
    found, sigma, true = found[fitted], sigma[fitted], true[fitted]
    for band in FLUX_BANDS:
        if band in bands and len(found):
            b = bands.index(band)
            off = np.abs(found[:, b] - true[:, b])
            summary |= _typical("flux_error", 100.0 * off / true[:, b], f"_{band}")
            summary |= _typical("flux_error_sigma", off / sigma[:, b], f"_{band}")
            summary[f"beyond_3_sigma_{band}"] = 100.0 * float((off > 3 * sigma[:, b]).mean())
    if {"g", "r"} <= set(bands):
        g, r = bands.index("g"), bands.index("r")
        positive = (found[:, g] > 0) & (found[:, r] > 0)
        ratio = found[positive, g] / found[positive, r] * true[positive, r] / true[positive, g]
        if len(ratio):
            summary |= _typical("color_error", np.abs(2.5 * np.log10(ratio)))
    return summary


def _typical(name: str, error: NDArray[np.float64], suffix: str = "") -> dict[str, float]:
    """Median and clipped mean of errors."""
    return {f"{name}{suffix}": float(np.median(error)),
            f"mean_{name}{suffix}": float(np.minimum(error, CLIPS[name]).mean())}


def objective(judged: Judged) -> float:
    """Objective L per source, over all scenes."""
    total = sum(float(np.sum(result.objective)) for _, result in judged)
    return total / sum(scene.n_source for scenes, _ in judged for scene in scenes)


def result_hash(judged: Judged) -> str:
    """SHA-256 of the bits of `HASHED`; two results with the same hash are identical."""
    found = hashlib.sha256()
    for _, result in judged:
        for name in HASHED:
            values: NDArray[Any] | None = getattr(result, name, None)
            if values is not None:
                found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()
