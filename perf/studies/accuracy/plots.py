"""The figure of pulls and coverage, beside those of right, Gaussian errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from perf import metrics
from perf.studies.accuracy.uncertainty import Pulls

RANGE = 6.0  # of the histograms; pulls outside are counted in the last bins
N_BIN = 36
GRID = np.linspace(0.0, 4.0, 161)
BAND_COLORS = {"u": "#5e3c99", "g": "#2b83ba", "r": "#3a9a4b", "i": "#c9a227", "z": "#e66101", "y": "#b2182b"}


def draw(quantities: Mapping[str, tuple[Pulls, NDArray[np.bool_]]], band: str, path: Path) -> None:
    """Draw the histograms of the flux pulls per band, and the coverage of every quantity.

    Parameters
    ----------
    quantities : mapping of str to (Pulls, bool (n_source,))
        The pulls, and which sources are trusted. "Flux" must be among the keys.
    band : str
        The band in which quantities other than the flux are shown.
    path : Path
        PNG.
    """
    figure = Figure(figsize=(13, 7.2), layout="constrained")
    pulls, good = quantities["Flux"]
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.35))
    panels = upper.subplots(1, len(pulls.labels), sharey=True)
    for axis, label, pull in zip(panels, pulls.labels, pulls.pull.T, strict=True):
        _histogram(axis, label, pull, good)
    fullest = np.isfinite(pulls.pull).sum(0).max() * 2 * RANGE / N_BIN / np.sqrt(2 * np.pi)
    panels[0].set_ylim(0.5, max(2.0, 2.5 * fullest))
    axes = lower.subplots(1, 3, sharey=True)
    for axis, keep, title in ((axes[0], np.ones_like(good), "flux, all sources"),
                              (axes[1], good, "flux, trusted sources")):
        for label, pull in zip(pulls.labels, pulls.pull.T, strict=True):
            axis.plot(GRID, metrics.coverage(pull[keep], GRID), lw=1.3, color=BAND_COLORS.get(label), label=label)
        _finish(axis, title)
    for name, (found, keep) in quantities.items():
        pull = found.pull[keep]
        pull = (pull[:, found.labels.index(band)] if band in found.labels else pull).ravel()
        axes[2].plot(GRID, metrics.coverage(pull, GRID), lw=1.3, label=name[0].lower() + name[1:])
    _finish(axes[2], f"trusted sources, fluxes in {band}")
    axes[0].set_ylabel("fraction of truths inside")
    figure.savefig(path, dpi=100)


def _histogram(axis: Any, label: str, pull: NDArray[np.float64], good: NDArray[np.bool_]) -> None:
    edges = np.linspace(-RANGE, RANGE, N_BIN + 1)
    width = edges[1] - edges[0]
    finite = np.isfinite(pull)
    for keep, style in ((finite, {"color": "0.75", "label": "all"}),
                        (finite & good, {"histtype": "step", "color": "C0", "lw": 1.3, "label": "trusted"})):
        axis.hist(np.clip(pull[keep], edges[0], edges[-1]), edges, **style)
    middle = np.linspace(-RANGE, RANGE, 200)
    scale = (finite & good).sum() * width / np.sqrt(2 * np.pi)
    axis.semilogy(middle, scale * np.exp(-(middle**2) / 2), "k", lw=0.9, label="Gaussian")
    axis.set(title=f"{label}, {finite.sum()} sources", xlim=(-RANGE, RANGE),
             xlabel="flux pull")
    if axis.get_subplotspec().is_first_col():
        axis.set_ylabel("sources")
        axis.legend(fontsize=7, loc="upper left")


def _finish(axis: Any, title: str) -> None:
    axis.plot(GRID, metrics.gaussian_coverage(GRID), "k--", lw=1.0, label="Gaussian")
    axis.set(title=title, xlabel="reported errors from the measurement", xlim=(0, GRID[-1]), ylim=(0, 1.005))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")
