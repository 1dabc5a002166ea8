"""The blends of the largest excess in hidden pixels: data, model and residual, and where the excess is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from perf.studies.sky import blends
from perf.studies.sky.blends import BANDS, Blend
from perf.studies.sky.hidden import LEVELS, SIZES, hide
from perf.studies.sky.solutions import Solution

COUNT = 10  # blends in the picture
NEAR = 3.0  # pixel: excess within this of a listed peak belongs to that source's core
DEFECT = 0.7  # share of the excess in one band from which the sentence names the band
RING = (2.0, 5.0)  # pixel: inside, a source too wide a model has too much light while its core has too little
UNLISTED = 5.0  # pixel: light left over farther than this from all peaks is no listed source's core
SHOWN = 8.0  # sigma: largest residual that the picture resolves


def excess(blend: Blend, model: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Chi2 above 1 of the significant pixels, hidden or not.

    Returns
    -------
    float64 (n_band, n_y, n_x)
    """
    counted = (blend.weight > 0) & (blends.significance(blend) > LEVELS[0])
    return np.where(counted, np.maximum(blend.weight * (blend.image - model) ** 2 - 1, 0), 0.0)


def described(blend: Blend, model: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """Where the excess of a blend is.

    Returns
    -------
    dict
        ``number``, ``n_peak``, ``chi2`` (mean of the significant pixels), ``kind`` of the largest
        excess in words, ``band`` of the largest share and this ``band_share``, ``core_share`` (within `NEAR` of a
        listed peak), ``place`` (x, y) [pixel] of the largest excess, ``source`` (the nearest to it), its ``distance``
        [pixel], ``ten_share`` (share of the excess in the ten worst pixels), and a ``sentence``.
    """
    over = excess(blend, model)
    total, plane = max(float(over.sum()), 1e-9), over.sum(0)
    counted = (blend.weight > 0) & (blends.significance(blend) > LEVELS[0])
    chi2 = float((blend.weight * (blend.image - model) ** 2)[counted].mean()) if counted.any() else float("nan")
    by_band = over.sum((1, 2)) / total
    y, x = np.mgrid[: plane.shape[0], : plane.shape[1]]
    distance = np.hypot(x - blend.peaks[:, 0, None, None], y - blend.peaks[:, 1, None, None])
    core = float(plane[distance.min(0) <= NEAR].sum() / total)
    place = np.unravel_index(plane.argmax(), plane.shape)
    source = int(distance[:, place[0], place[1]].argmin())
    ten = float(np.sort(plane.ravel())[-10:].sum() / total)
    far, b = float(distance[source, place[0], place[1]]), int(by_band.argmax())
    residual = (blend.image - model)[b] * (blend.weight[b] > 0)
    worst = float(residual[place])
    ring = (distance[source] > RING[0]) & (distance[source] < RING[1])
    if far > UNLISTED and worst > 0:
        kind = "light that no listed source has: an unlisted source, or a part of a large one"
    elif far < RING[0] and worst > 0 and residual[ring].mean() < 0:
        kind = f"source {source} is sharper than its model"
    elif ten > DEFECT:
        kind = "few pixels: defects, or a saturated core"
    else:
        kind = f"structure of source {source} that the model lacks"
    parts = [kind, f"{100 * core:.0f}% of the excess is within {NEAR:g} pixels of listed peaks",
             f"the largest is {far:.1f} pixels from source {source}, {'light left over' if worst > 0 else 'too much'}",
             f"ten pixels hold {100 * ten:.0f}%"]
    if by_band[b] > DEFECT:
        parts.append(f"{100 * by_band[b]:.0f}% is in {BANDS[b]} alone")
    return {"number": blend.number, "n_peak": len(blend.peaks), "chi2": chi2, "band": BANDS[b],
            "kind": kind, "band_share": float(by_band[b]), "core_share": core, "source": source, "distance": far,
            "ten_share": ten, "place": [int(place[1]), int(place[0])], "sentence": "; ".join(parts)}


def draw_worst(all_blends: Sequence[Blend], solution: Solution, path: Path) -> list[dict[str, Any]]:
    """Draw the blends of the largest total excess. Returns what `described` says of each, the worst first.

    Parameters
    ----------
    all_blends : sequence of Blend
    solution : Solution
    path : Path
        File of the picture.
    """
    models = solution.models[SIZES[-1]]
    total = [excess(blend, model).sum() for blend, model in zip(all_blends, models, strict=True)]
    chosen = np.argsort(total)[::-1][:COUNT]
    figure = Figure(figsize=(11, 2.9 * len(chosen)), layout="constrained", dpi=70)
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    found = []
    for k, row in zip(chosen, axes, strict=True):
        blend, model = all_blends[k], models[k]
        said = described(blend, model)
        b = BANDS.index(said["band"])
        data = blend.weight[b] > 0
        sigma = 1 / np.sqrt(np.median(blend.weight[b][data]))
        residual = np.where(data, (blend.image - model)[b] * np.sqrt(blend.weight[b]), np.nan)
        top = np.arcsinh(max(float(np.percentile(blend.image[b][data], 99.8)) / sigma, 10.0) / 2)
        frame: dict[str, Any] = {"origin": "lower", "interpolation": "nearest"}
        for axis, image in zip(row, (blend.image[b], model[b]), strict=False):
            axis.imshow(np.where(data, np.arcsinh(image / sigma / 2), np.nan), cmap="gray", vmin=-1, vmax=top, **frame)
        drawn = row[2].imshow(residual, cmap="RdBu_r", vmin=-SHOWN, vmax=SHOWN, **frame)
        figure.colorbar(drawn, ax=row[2], extend="both", label="sigma")
        row[2].contour(hide(blend, SIZES[-1]), levels=[0.5], colors="0.4", linewidths=0.5)
        for axis, title in zip(row, (f"blend {blend.number}, {said['band']}: data", "model", "residual"), strict=True):
            axis.set_title(title, fontsize=10)
            axis.tick_params(labelsize=7)
            axis.plot(*blend.peaks.T, "+", color="tab:orange", markersize=6)
            axis.plot(*said["place"], "o", markerfacecolor="none", color="tab:green", markersize=9)
        found.append(said)
    figure.savefig(path)
    return found
