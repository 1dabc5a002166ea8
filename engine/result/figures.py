"""Figures of a result: an overview of a scene, and a row of panels per source (extra ``plot``).

All colour panels of a scene share one palette, so that brightness and colour compare from panel to panel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.files.atomic_write import in_place_of
from deblendrt.engine.result.colors import Palette, band_noise, palette, reference_band
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.units import to_magnitude

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from deblendrt.engine.result.result import DeblendResult

MIN_PANEL = 25  # pixel, width of a source's panels
MAX_PANEL = 61
MAX_DRAWN = 1500  # pixel per axis of the overview; larger scenes are binned
DPI = 110
MARKER = "#7df9a6"
REJECT = "#ff7b72"


def plot_overview(result: DeblendResult, i_scene: int = 0, title: str | None = None) -> Figure:
    """Draw a scene, its model and the residual.

    Parameters
    ----------
    result : DeblendResult
    i_scene : int
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
        Four panels: image, model, residual in the same colours, and residual over noise in one band. A circle
        marks a source; a cross marks a source that was not fitted.
    """
    scene = result.scenes[i_scene]
    model, residual = result.model(i_scene), result.residual(i_scene)
    colors, band = palette(result, i_scene), reference_band(result, i_scene)
    n_y, n_x = scene.shape
    given, inverse_variance = scene.images.arrays()
    given = result.without_sky(i_scene, given, inverse_variance)
    factor = -(-max(n_y, n_x) // MAX_DRAWN)
    select = np.arange(result.n_source)[result.sources(i_scene)]
    fitted = result.fitted[select]

    panel_width = 5.2
    figure = _figure((2 * panel_width + 0.8, 2 * panel_width * np.clip(n_y / n_x, 0.3, 3) + 0.9))
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    extent = (-0.5, n_x // factor * factor - 0.5, -0.5, n_y // factor * factor - 0.5)
    frame: dict[str, Any] = {"origin": "lower", "interpolation": "nearest", "extent": extent}
    colored = {
        axes[0, 0]: (given, f"image ({colors.names})"),
        axes[0, 1]: (model, f"model of {fitted.sum()} sources"),
        axes[1, 0]: (residual, "image - model"),
    }
    for axis, (image, label) in colored.items():
        axis.imshow(colors(_binned(image, factor)), **frame)
        axis.set_title(label, fontsize=11)
    weight = inverse_variance[band]
    pull = _binned(np.where(weight > 0, residual[band] * np.sqrt(weight), np.nan), factor) * factor
    drawn = axes[1, 1].imshow(pull, cmap="RdBu_r", vmin=-5, vmax=5, **frame)
    axes[1, 1].set_facecolor("0.6")  # grey where no pixel has weight
    axes[1, 1].set_title(f"(image - model) / sigma in {result.bands[band]}", fontsize=11)
    figure.colorbar(drawn, ax=axes[1, 1], fraction=0.046, pad=0.02, extend="both")

    _mark_sources(axes[0, 0], result, select, fitted, numbered=len(select) <= 60)
    _mark_sources(axes[1, 0], result, select, fitted, numbered=False)
    for axis in axes.flat:
        axis.set(xlim=(-0.5, n_x - 0.5), ylim=(-0.5, n_y - 0.5))
    for axis in axes[1]:
        axis.set_xlabel("x [pixel]")
    for axis in axes[:, 0]:
        axis.set_ylabel("y [pixel]")
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _mark_sources(axis: Any, result: DeblendResult, select: NDArray, fitted: NDArray, numbered: bool) -> None:
    """Draw a circle at each source's fitted position, a cross at each unfitted source, and the sources' numbers."""
    from matplotlib import patheffects

    place = np.where(np.isfinite(result.position[select]), result.position[select], result.center[select])
    known = np.isfinite(place).all(axis=1)
    style = {"s": 60 if len(select) <= 200 else 12, "linewidths": 0.8, "alpha": 0.85}
    axis.scatter(*place[known & fitted].T, marker="o", facecolors="none", edgecolors=MARKER, **style)
    axis.scatter(*place[known & ~fitted].T, marker="x", color=REJECT, **style)
    outline = [patheffects.withStroke(linewidth=1.5, foreground="black")]
    for number in np.flatnonzero(known) if numbered else ():
        text = axis.annotate(
            str(number), place[number], xytext=(4, 4), textcoords="offset points", annotation_clip=True
        )
        text.set(color=MARKER, fontsize=7, path_effects=outline)


def brightest_sources(result: DeblendResult, i_scene: int = 0, limit: int = 40) -> NDArray[np.int64]:
    """Return the rows of the scene's `limit` brightest sources in the reference band, in catalogue order.

    Unfitted sources count as the faintest.
    """
    select = np.arange(result.n_source)[result.sources(i_scene)]
    flux = result.flux[select, reference_band(result, i_scene)]
    order = np.argsort(-np.where(np.isfinite(flux), flux, -np.inf), kind="stable")[:limit]
    return np.sort(select[order])


def plot_sources(
    result: DeblendResult, sources: Sequence[int] | NDArray | None = None, title: str | None = None
) -> Figure:
    """Draw each source alone: its image, its model, and both residuals.

    Parameters
    ----------
    result : DeblendResult
    sources : sequence of int, optional
        Rows of the result's table; default: the 40 brightest sources of the first scene.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
        Four panels per source: the image, the source's model, the image minus all other sources, and the residual.
    """
    chosen = [int(i) for i in (brightest_sources(result) if sources is None else sources)]
    n_column = 1 if len(chosen) <= 4 else 2 if len(chosen) <= 16 else 3
    n_row = max(1, -(-len(chosen) // n_column))
    figure = _figure((6.4 * n_column, 1.98 * n_row + (0.6 if title else 0.2)))
    blocks = np.atleast_2d(figure.subfigures(n_row, n_column, squeeze=False))
    residuals = {k: result.residual(k) for k in sorted({int(result.scene_index[i]) for i in chosen})}
    palettes = {k: palette(result, k) for k in residuals}
    noises = {k: band_noise(result.scenes[k].inverse_variance) for k in residuals}
    for block, i in zip(blocks.flat, chosen, strict=False):
        k = int(result.scene_index[i])
        _draw_source(block, result, i, residuals[k], palettes[k], noises[k])
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _draw_source(block: Any, result: DeblendResult, i: int, residual: NDArray, colors: Palette, noise: NDArray) -> None:
    k = int(result.scene_index[i])
    scene = result.scenes[k]
    axes = block.subplots(1, 4)
    block.suptitle(source_title(result, i), fontsize=8.5, x=0.01, ha="left")
    for axis in axes:
        axis.set(xticks=[], yticks=[], facecolor="0.25")  # grey where there is no image
    if not result.fitted[i]:
        axes[0].text(0.5, 0.5, "not fitted", transform=axes[0].transAxes, color="white", fontsize=8, ha="center")
        return
    x, y = (int(v) for v in result.anchor[i])
    stamp, corner = result.stamps(i)
    half = _panel_half(stamp, noise)
    n_y, n_x = scene.shape
    x0, x1, y0, y1 = max(x - half, 0), min(x + half + 1, n_x), max(y - half, 0), min(y + half + 1, n_y)
    box = (slice(None), slice(y0, y1), slice(x0, x1))
    own = _placed(stamp, (x0 - corner[0], y0 - corner[1]), (y1 - y0, x1 - x0))
    given = scene.images.cut(*box[1:]).image
    panels = {"image": given, "model": own, "others removed": residual[box] + own, "residual": residual[box]}
    for axis, (label, image) in zip(axes, panels.items(), strict=True):
        extent = (x0 - 0.5, x1 - 0.5, y0 - 0.5, y1 - 0.5)
        axis.imshow(colors(image), origin="lower", interpolation="nearest", extent=extent)
        axis.set(xlim=(x - half - 0.5, x + half + 0.5), ylim=(y - half - 0.5, y + half + 0.5))
        axis.set_xlabel(label, fontsize=7, labelpad=2)
    rows = result.sources(k)
    others = np.delete(result.position[rows], i - rows.start, axis=0)
    axes[0].plot(*others.T, marker=".", linestyle="none", color="white", markersize=2.5)
    axes[0].plot(*result.position[i], marker="+", color=MARKER, markersize=7, markeredgewidth=0.9)


def _placed(stamp: NDArray, start: tuple[int, int], shape: tuple[int, int]) -> NDArray:
    """Return the part of `stamp` from pixel `start` (x, y) on, as (n_band, *shape); zero outside of the stamp."""
    image = np.zeros((len(stamp), *shape), stamp.dtype)
    (x, y), (n_y, n_x) = start, shape
    part = stamp[:, max(y, 0) : max(y + n_y, 0), max(x, 0) : max(x + n_x, 0)]
    top, left = max(-y, 0), max(-x, 0)
    image[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    return image


def source_title(result: DeblendResult, i: int) -> str:
    """Return one line: the number in the scene, flux, magnitude and flags of a source."""
    k = int(result.scene_index[i])
    band = reference_band(result, k)
    flux, error = float(result.flux[i, band]), float(result.flux_err[i, band])
    text = f"{i - int(result.source_start[k])}"
    if np.isfinite(flux):
        magnitude = f"{to_magnitude(flux):.2f} mag" if flux > 0 else "flux < 0"
        digits = 1 if error < 3 else 0
        text += f"   {result.bands[band]} {flux:,.{digits}f} ± {error:,.{digits}f} nJy ({magnitude})"
    names = flag_names(int(result.flags[i]))
    shown = names[:3] + ([f"+{len(names) - 3}"] if len(names) > 3 else [])
    return text + ("   " + ", ".join(shown) if shown else "")


def flag_names(value: int) -> list[str]:
    """Return the names of the flags that are set in `value`."""
    return [flag.name for flag in Flag if flag.value & value and flag.name is not None]


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with in_place_of(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI)


def _figure(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "deblendrt[plot]"') from error
    # pyplot would keep a global list of figures, need a display, and be unsafe in threads.
    return Figure(figsize=size, layout="constrained")


def _panel_half(stamp: NDArray, sigma: NDArray) -> int:
    """Return half the width of a source's panels: the radius at which its model is below the noise, and some sky."""
    signal = np.max(stamp / np.where(np.isfinite(sigma), sigma, np.inf)[:, None, None], axis=0)
    center = stamp.shape[-1] // 2
    rows, columns = np.nonzero(signal > 0.5)
    reach = max(np.abs(rows - center).max(), np.abs(columns - center).max()) if len(rows) else 0
    return int(np.clip(1.25 * reach, MIN_PANEL // 2, MAX_PANEL // 2))


def _binned(image: NDArray, factor: int) -> NDArray:
    """Return means over squares of `factor` pixels of the last two axes, without an incomplete last row or column."""
    if factor == 1:
        return image
    n_y, n_x = (n // factor for n in image.shape[-2:])
    cut = image[..., : n_y * factor, : n_x * factor]
    means: NDArray = cut.reshape(*image.shape[:-2], n_y, factor, n_x, factor).mean(axis=(-3, -1))
    return means
