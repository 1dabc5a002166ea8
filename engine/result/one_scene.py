"""The result of a single scene, cut out of the result of many scenes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.folded_bases import FoldedBases
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.result.fields import QUANTITIES
from deblendrt.engine.result.result import DeblendResult


def scene_result(result: DeblendResult, i_scene: int,
                 fold: Callable[[NDArray[np.float64] | None], FoldedBasis] | None = None) -> DeblendResult:
    """Return the result of one scene of several, as if the scene had been deblended alone.

    Parameters
    ----------
    result : DeblendResult
    i_scene : int
        Number of the scene; a negative number counts from the end.
    fold : callable, optional
        Function that folds the basis with PSF images. Default: the function of the whole result, which often keeps an
        engine alive.

    Returns
    -------
    DeblendResult
        Equal to the bit to the result of the scene deblended alone. Its arrays are copies.
    """
    rows = result.sources(i_scene)
    k = range(result.n_scene)[i_scene]
    values: dict[str, Any] = {
        q.name: getattr(result, q.name)[slice(k, k + 1) if q.axes[0] == "n_scene" else rows].copy()
        for q in QUANTITIES.values()}
    n_source = rows.stop - rows.start
    number = result.blend[rows]
    blends = np.unique(number[number >= 0])
    folded = FoldedBases(result.folded.fold if fold is None else fold)
    base = result.folded_index[rows].tolist()
    renumbered = {j: folded.add(result.folded.images[j]) for j in dict.fromkeys(base)}  # by first occurrence
    values |= {
        "source_id": np.arange(n_source), "scene_index": np.zeros(n_source, np.int64),
        "blend": np.where(number < 0, -1, np.searchsorted(blends, number)).astype(np.int64),
        "folded_index": np.array([renumbered[j] for j in base], np.int64)}
    return dataclasses.replace(
        result, **values, source_start=np.array([0, n_source], np.int64),
        blend_flux_cov=[result.blend_flux_cov[int(b)] for b in blends],
        scenes=[dataclasses.replace(result.scenes[k], name="0")], folded=folded)
