r"""The specification, in NumPy, of the kernels on pixels: products with the folded basis, sums of stamps, the
likelihood.

Each function has the name and arguments of its launcher, less the device; arrays are NumPy's, outputs are written in
place. Rows of padding mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.layout import PIXEL_TILE, Layout
from deblendrt.engine.units import DoubleArray, FloatArray, IntArray


def product(layout: Layout, rows: FloatArray, table: FloatArray, out: FloatArray, *, chosen: IntArray | None = None,
            slot: IntArray | None = None, accumulate: bool = False) -> None:
    """Multiply the rows of each source with the table of its folded basis.

    Parameters
    ----------
    layout : Layout
        Sources that its `row_tile` lacks are left alone.
    rows : float32 (n_source, n_band, n_row, n_inner)
    table : float32 (n_psf, n_band, n_inner, n_column)
    out : float32 (n_source, n_band, n_row, n_column)
    chosen : int32 (n_source,), optional
        Only sources where it is not 0.
    slot : int32 (n_source,), optional
        Row of each source in `out`; by default the source's number.
    accumulate : bool
        Add to `out`.
    """
    for i in _drawn(layout):
        if chosen is None or chosen[i]:
            result = rows[i].astype(np.float64) @ table[layout.basis[i]]
            to = i if slot is None else slot[i]
            out[to] = out[to] + result if accumulate else result


def render(layout: Layout, stamps: FloatArray, cells: FloatArray | None, extended: IntArray,
           background: FloatArray | None, out: FloatArray) -> None:
    """Sum stamps into the images of scenes.

    Parameters
    ----------
    layout : Layout
        Sources that its `tile_source` lacks are left out.
    stamps : float32 (n_source, n_band, n_window_pixel)
    cells : float32 (n_source, n_band, n_cell), or None
        Outskirts, of use for extended sources only.
    extended : int32 (n_source,)
    background : float32 (n_pixel,), or None
        Added before.
    out : float32 (n_pixel,)
        Written where the layout has tiles.
    """
    for s, whole in _canvases(layout, out):
        image = np.empty_like(whole)
        image[...] = 0 if background is None else _canvas(layout, background, s)
        margin = layout.margin
        wide = np.zeros((len(image), *(n + 2 * margin for n in image.shape[1:])))
        for i in np.flatnonzero(layout.scene == s):
            if i in layout.tile_source:
                x, y = layout.corner[i]
                if cells is not None and extended[i]:
                    outer = _spread(layout, cells[i])
                    inside = slice(margin, margin + layout.window)
                    outer[:, inside, inside] = 0
                    wide[:, y : y + layout.full_window, x : x + layout.full_window] += outer
                core = (slice(None), slice(y + margin, y + margin + layout.window),
                        slice(x + margin, x + margin + layout.window))
                wide[core] += stamps[i].reshape(-1, layout.window, layout.window)
        image += wide[:, margin : margin + image.shape[1], margin : margin + image.shape[2]]
        _copy_tiles(layout, s, image, whole)


def project(layout: Layout, image: FloatArray, phi_t: FloatArray, outer_t: FloatArray | None, extended: IntArray,
            inset: IntArray, cells: FloatArray | None, scratch: FloatArray, out: FloatArray) -> None:
    """Multiply the windows of images with the folded basis: the adjoint of `product` and `render`.

    Parameters
    ----------
    layout : Layout
    image : float32 (n_pixel,)
    phi_t : float32 (n_psf, n_band, n_window_pixel, n_basis)
    outer_t : float32 (n_psf, n_band, n_cell, n_basis), or None
    extended : int32 (n_source,)
    inset : int32 (n_source,) [pixel]
        By how much sources' windows are smaller on every side.
    cells : float32 (n_source, n_band, n_cell), or None
        Overwritten, for extended sources.
    scratch : float32
        Memory for sums of parts of windows. `kernels.pixels.launch.runs` gives their number; each part takes the size
        of `out`. Memory for stamps, (n_source, n_band, n_window_pixel), is enough.
    out : float32 (n_source, n_band, n_basis)
    """
    window, margin = layout.window, layout.margin
    for i in _drawn(layout):
        canvas = _canvas(layout, image, layout.scene[i]).astype(np.float64)
        wide = np.pad(canvas, ((0, 0), (margin, margin), (margin, margin)))
        x, y = layout.corner[i]
        full = wide[:, y : y + layout.full_window, x : x + layout.full_window].copy()
        inside = slice(margin, margin + window)
        core = np.zeros((len(canvas), window, window))
        within = (slice(None), *[slice(inset[i], window - inset[i])] * 2)
        core[within] = full[:, inside, inside][within]
        result = (core.reshape(len(canvas), 1, -1) @ phi_t[layout.basis[i]])[:, 0]
        if cells is not None and outer_t is not None and extended[i]:
            full[:, inside, inside] = 0
            along = interpolation(layout.full_window // layout.binning, layout.binning)
            cells[i] = (along.T @ full @ along).reshape(len(canvas), -1)
            result += (cells[i][:, None].astype(np.float64) @ outer_t[layout.basis[i]])[:, 0]
        out[i] = result


def residual(layout: Layout, data: FloatArray, weight: FloatArray, model: FloatArray, temper: float, error: float,
             clip: float, robust: int, out_weights: FloatArray, out_residual: FloatArray) -> None:
    """Robust weights W and W (y - m), of the likelihood around a model.

    Parameters
    ----------
    layout : Layout
    data, weight, model : float32 (n_pixel,)
    temper, error : float
        tau and e of `deblendrt.engine.solve.objective`, e at least tau.
    clip : float
        Residuals beyond so many sigma lose weight.
    robust : int
        0: they do not.
    out_weights, out_residual : float32 (n_pixel,)
        Written where the layout has tiles. `out_weights` may be `weight`.
    """
    tempered, bound = _likelihood(weight, model, temper, error, clip)
    r = data.astype(np.float64) - model
    t2 = tempered * r**2
    beyond = (t2 > bound) & bool(robust)
    robust_weight = np.where(beyond, tempered * bound / np.where(beyond, t2, 1), tempered)
    for s, weights in _canvases(layout, out_weights):
        _copy_tiles(layout, s, _canvas(layout, robust_weight, s), weights)
        _copy_tiles(layout, s, _canvas(layout, robust_weight * r, s), _canvas(layout, out_residual, s))


def loss(layout: Layout, data: FloatArray, weight: FloatArray, model: FloatArray, trial: FloatArray, temper: float,
         error: float, clip: float, robust: int, out: DoubleArray) -> None:
    """The loss of the pixels that each blend owns, of a model and of a trial, under the likelihood around the model.

    Parameters
    ----------
    layout : Layout
    data, weight, model, trial : float32 (n_pixel,)
    temper, error, clip, robust
        As in `residual`.
    out : float64 (n_blend, 2)
    """
    tempered, bound = _likelihood(weight, model, temper, error, clip)
    for which, image in enumerate((model, trial)):
        t2 = tempered * (data.astype(np.float64) - image) ** 2
        beyond = (t2 > bound) & bool(robust)
        every = np.where(beyond, 0.5 * bound * (1 + np.log(np.where(beyond, t2, bound) / bound)), 0.5 * t2)
        for blend in range(layout.n_blend):
            s = layout.blend_scene[blend]
            if s >= 0:
                pixels = layout.blend_pixel[layout.pixel_start[blend] : layout.pixel_start[blend + 1]]
                out[blend, which] = _canvas(layout, every, s).reshape(layout.n_band, -1)[:, pixels].sum()


def mean_weight(layout: Layout, weights: FloatArray, profile: FloatArray, inset: IntArray, out: DoubleArray) -> None:
    """Mean weight under each source.

    Parameters
    ----------
    layout : Layout
    weights : float32 (n_pixel,)
    profile : float32 (n_psf, n_band, n_window_pixel)
        Sum one in the whole window.
    inset : int32 (n_source,) [pixel]
        By how much sources' windows are smaller on every side.
    out : float64 (n_source, n_band)
    """
    for i in np.flatnonzero(layout.scene >= 0):
        x, y = layout.corner[i]
        inside = (slice(None), *[slice(inset[i], layout.window - inset[i])] * 2)
        under = _canvas(layout, weights, layout.scene[i])[:, y : y + layout.window, x : x + layout.window]
        share = profile[layout.basis[i]].reshape(under.shape)
        out[i] = (under[inside].astype(np.float64) * share[inside]).sum((1, 2))


def _likelihood(weight: FloatArray, model: FloatArray, temper: float, error: float,
                clip: float) -> tuple[DoubleArray, DoubleArray]:
    """Tempered weight, and the square of the bound on residuals in units of the tempered noise."""
    significance = weight.astype(np.float64) * model.astype(np.float64) ** 2
    noise = 1 + temper**2 * significance
    return weight / noise, clip**2 * (1 + error**2 * significance) / noise


def _drawn(layout: Layout) -> NDArray[Any]:
    return layout.row_tile[layout.row_tile >= 0]


def _canvases(layout: Layout, image: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    for s in np.unique(layout.pixel_tile[:, 0]):
        if s >= 0:
            yield int(s), _canvas(layout, image, s)


def _copy_tiles(layout: Layout, s: int, image: NDArray[Any], out: NDArray[Any]) -> None:
    for _, y, x in layout.pixel_tile[layout.pixel_tile[:, 0] == s]:
        here = (slice(None), slice(y, y + PIXEL_TILE), slice(x, x + PIXEL_TILE))
        out[here] = image[here]


def _canvas(layout: Layout, image: NDArray[Any], s: int) -> NDArray[Any]:
    """A view of one scene's canvas."""
    shape = (layout.n_band, *layout.canvas_shape[s])
    start = layout.canvas_start[s]
    return image[start : start + int(np.prod(shape))].reshape(shape)


def _spread(layout: Layout, cells: FloatArray) -> DoubleArray:
    """Interpolate outskirts to the pixels of the full window, float64 (n_band, full_window, full_window)."""
    side = layout.full_window // layout.binning
    along = interpolation(side, layout.binning)
    return np.asarray(along @ cells.astype(np.float64).reshape(-1, side, side) @ along.T)


def _on_canvas(layout: Layout, stamps: FloatArray, cells: FloatArray | None, extended: IntArray, i: int,
               shape: tuple[Any, ...]) -> DoubleArray:
    """A source's image on its whole canvas."""
    window, margin = layout.window, layout.margin
    wide = np.zeros((layout.n_band, shape[1] + 2 * margin, shape[2] + 2 * margin))  # full windows may stick out
    x, y = layout.corner[i]
    if cells is not None and extended[i]:
        wide[:, y : y + layout.full_window, x : x + layout.full_window] = _spread(layout, cells[i])
    core = stamps[i].reshape(-1, window, window)
    wide[:, y + margin : y + margin + window, x + margin : x + margin + window] = core
    return wide[:, margin : margin + shape[1], margin : margin + shape[2]]


def interpolation(n_cell: int, binning: int) -> DoubleArray:
    """Linear from the centres of cells to pixels, constant beyond the outermost: float64 (n_cell binning, n_cell)."""
    centres = binning * np.arange(n_cell) + binning // 2
    pixels = np.arange(n_cell * binning)
    return np.stack([np.interp(pixels, centres, row) for row in np.eye(n_cell)], 1)


def wide(layout: Layout, through: FloatArray, coefficients: FloatArray, wbar: DoubleArray, smallest: IntArray,
         out_extent: IntArray, *, window: int, threshold: float) -> None:
    """Let sources whose light outside a window has at most a given chi2, all bands together, be drawn in it.

    To be called for each window, the largest first.

    Parameters
    ----------
    layout : Layout
    through : float32 (n_source, n_band, n_basis) [nJy]
        Coefficients times the Gram matrices of the light that the window misses.
    coefficients : float32 (n_source, n_band, n_basis) [nJy]
    wbar : float64 (n_source, n_band) [nJy^-2]
        Mean inverse variance under each source.
    smallest : int32 (n_source,)
        The least extent of each source.
    out_extent : int32 (n_source,)
        See `reach`. Set where the window is enough; 1 where the basis' own window is not enough.
    window : int
        0 the basis' own, k the k-th smaller one.
    threshold : float
        Square of a signal to noise.
    """
    square = (through * coefficients).sum(2, dtype=np.float64)
    enough = (wbar * square).sum(1) <= threshold
    real = layout.scene >= 0
    out_extent[real & enough] = np.maximum(-window, smallest)[real & enough]
    if window == 0:
        out_extent[real & ~enough] = 1


def reach(layout: Layout, extent: IntArray, insets: IntArray, used: IntArray, out_extended: IntArray,
          out_inset: IntArray, out_n_used: IntArray) -> None:
    """Look up the windows of the sources' extents.

    Parameters
    ----------
    layout : Layout
    extent : int32 (n_source,)
        1 with outskirts, 0 the basis' own window, -k the k-th smaller one.
    insets, used : int32 (n_window,)
        By how much each window is smaller on every side [pixel], and the number of functions in it; the own first.
    out_extended, out_inset, out_n_used : int32 (n_source,)
        Whether the source has outskirts; the entries of `insets` and `used` for its window.
    """
    window = np.maximum(-extent, 0)
    out_extended[:] = extent > 0
    out_inset[:] = insets[window]
    out_n_used[:] = used[window]


def trim_basis(layout: Layout, n_used: IntArray, rows: FloatArray, out: FloatArray) -> None:
    """Copy coefficients, 0 for functions that are not used.

    Parameters
    ----------
    layout : Layout
    n_used : int32 (n_source,)
    rows, out : float32 (n_source, ..., n_basis)
    """
    unused = np.arange(rows.shape[-1]) >= n_used[:, None]
    out[:] = np.where(unused.reshape(len(rows), *[1] * (rows.ndim - 2), -1), 0, rows)


def trim_stamps(layout: Layout, inset: IntArray, out_stamps: FloatArray) -> None:
    """Set pixels outside of smaller windows to 0.

    Parameters
    ----------
    layout : Layout
    inset : int32 (n_source,) [pixel]
    out_stamps : float32 (n_source, ..., n_window_pixel)
    """
    for stamp, cut in zip(out_stamps, inset, strict=True):
        images = stamp.reshape(-1, layout.window, layout.window)
        inside = slice(cut, layout.window - cut)
        kept = images[:, inside, inside].copy()
        images[:] = 0
        images[:, inside, inside] = kept
