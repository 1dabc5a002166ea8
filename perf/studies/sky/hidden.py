"""Hidden pixels: how well a model predicts pixels of a real blend that it was not given.

Blocks of 2x2 or 4x4 pixels, 5% of the footprint, the same in all bands, get weight 0. The score is the chi2 per hidden
pixel where the data are significant (`blends.significance`); 1 is perfect. The score measures interpolation too:
kriging without any source scores 2 to 3 on blocks of 2x2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import UNTRUSTED, Flag
from perf.report import median
from perf.studies.sky import blends
from perf.studies.sky.blends import Blend

SIZES = (2, 4)  # pixel: sides of the blocks
FRACTION = 0.05  # of the footprint
LEVELS = (5.0, 20.0)  # sigma: pixels above count
LEAST_VALUES = 10  # a blend with fewer hidden values above a level has no score at this level
SEED = 810_450_301


def hide(blend: Blend, size: int) -> NDArray[np.bool_]:
    """The hidden pixels of a blend; always the same for a blend and a size.

    Returns
    -------
    bool (n_y, n_x)
    """
    rng = np.random.default_rng([SEED, blend.number, size])
    footprint = (blend.weight > 0).any(0)
    chosen = np.zeros_like(footprint)
    windows = np.lib.stride_tricks.sliding_window_view(footprint, (size, size)).all((-2, -1))
    for y, x in rng.permutation(np.argwhere(windows)):
        if chosen.sum() >= FRACTION * footprint.sum():
            break
        chosen[y : y + size, x : x + size] = True
    return chosen


def given_weights(blend: Blend, size: int) -> NDArray[np.float64]:
    """Weights of a blend, 0 in its hidden pixels.

    Returns
    -------
    float64 (n_band, n_y, n_x) [nJy^-2]
    """
    return np.where(hide(blend, size), 0.0, blend.weight)


def score(all_blends: Sequence[Blend], size: int, models: Sequence[NDArray[np.floating[Any]]]) -> dict[str, Any]:
    """Chi2 per hidden pixel of models.

    Parameters
    ----------
    all_blends : sequence of Blend
    size : int [pixel]
        Side of the blocks that were hidden.
    models : sequence of float (n_band, n_y, n_x) [nJy]

    Returns
    -------
    dict
        ``median_5``, ``pooled_5``, ``n_5`` (blends with a score) and the same at 20 sigma; ``blends``: for each blend
        its number and its scores, NaN where it has none.
    """
    rows: dict[float, list[float]] = {level: [] for level in LEVELS}
    sums = {level: np.zeros(2) for level in LEVELS}
    for blend, model in zip(all_blends, models, strict=True):
        chi2 = blend.weight * (blend.image - model) ** 2
        hidden, significant = hide(blend, size), blends.significance(blend)
        for level in LEVELS:
            counted = (hidden & (significant > level)) & (blend.weight > 0)
            n = int(counted.sum())
            total = float(chi2[counted].sum())
            rows[level].append(total / n if n >= LEAST_VALUES else float("nan"))
            sums[level] += total, n
    found: dict[str, Any] = {}
    for level in LEVELS:
        scored = np.array(rows[level])
        found |= {f"median_{level:g}": median(scored), f"n_{level:g}": int(np.isfinite(scored).sum()),
                  f"pooled_{level:g}": float(sums[level][0] / max(sums[level][1], 1))}
    found["blends"] = [[blend.number, *scores] for blend, *scores in zip(all_blends, *rows.values(), strict=True)]
    return found


def measure(deblender: Deblender, all_blends: Sequence[Blend], size: int,
            options: Mapping[str, Any]) -> tuple[dict[str, Any], DeblendResult]:
    """Deblend with hidden pixels. Returns `score`'s figures, with shares of flags and the time, and the result."""
    result, seconds = blends.deblend(deblender, [b.image for b in all_blends],
                                     [given_weights(b, size) for b in all_blends], [b.peaks for b in all_blends],
                                     all_blends[0].psf, options)
    figures = score(all_blends, size, [result.model(k) for k in range(len(all_blends))])
    return figures | flag_score(result.flags) | {"ms_per_source": 1e3 * seconds}, result


def flag_score(flags: NDArray[np.int64]) -> dict[str, Any]:
    """Shares of the listed sources with flags: ``poor_fit``, ``not_converged``, ``either``, ``untrusted``."""
    listed = flags[(flags & Flag.FOUND) == 0]
    found = {name: float(((listed & int(flag)) != 0).mean()) for name, flag in (
        ("poor_fit", Flag.POOR_FIT), ("not_converged", Flag.NOT_CONVERGED),
        ("either", Flag.POOR_FIT | Flag.NOT_CONVERGED), ("untrusted", UNTRUSTED))}
    return {**found, "n_source": len(listed)}
