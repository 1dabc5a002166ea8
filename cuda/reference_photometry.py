r"""What the kernels of joint linear fluxes compute.

    A_ij = sum_p w u_i u_j,    (A dF)_i = sum_p w u_i r,    F + dF,    covariance A^-1

per band and blend, u_i the unit-flux image of source i, r the residual. Arguments as in `reference_steps`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.layout import Layout

DoubleArray = NDArray[np.float64]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


def normal(layout: Layout, stamps: FloatArray, cells: FloatArray | None, extended: IntArray, weights: FloatArray,
           pairs: IntArray, out: DoubleArray) -> None:
    """Entries of the normal matrices.

    Parameters
    ----------
    layout : Layout
    stamps : float32 (n_source, n_band, n_window_pixel)
        At unit flux.
    cells : float32 (n_source, n_band, n_cell), or None
        Outskirts, of use for extended sources only.
    extended : int32 (n_source,)
    weights : float32 (n_pixel,)
        Flat images.
    pairs : int32 (n_pair, 2)
        Sources of one scene, as of `normal.source_pairs`; -1 is padding.
    out : float64 (n_pair, n_band)
    """
    for p, (i, j) in enumerate(pairs):
        if i < 0:
            continue
        scene = layout.scene[i]
        shape = (layout.n_band, *layout.canvas_shape[scene])
        start = layout.canvas_start[scene]
        weight = weights[start : start + np.prod(shape)].reshape(shape).astype(np.float64)
        first, second = (_on_canvas(layout, stamps, cells, extended, k, shape) for k in (i, j))
        out[p] = (first * weight * second).sum((1, 2))


def _on_canvas(layout: Layout, stamps: FloatArray, cells: FloatArray | None, extended: IntArray, i: int,
               shape: tuple[Any, ...]) -> DoubleArray:
    """A source's image on its whole canvas."""
    window, margin = layout.window, layout.margin
    wide = np.zeros((layout.n_band, shape[1] + 2 * margin, shape[2] + 2 * margin))  # full windows may stick out
    x, y = layout.corner[i]
    if cells is not None and extended[i]:
        side = layout.full_window // layout.binning
        along = interpolation(side, layout.binning)
        outskirts = along @ cells[i].astype(np.float64).reshape(-1, side, side) @ along.T
        wide[:, y : y + layout.full_window, x : x + layout.full_window] = outskirts
    core = stamps[i].reshape(-1, window, window)
    wide[:, y + margin : y + margin + window, x + margin : x + margin + window] = core
    return wide[:, margin : margin + shape[1], margin : margin + shape[2]]


def interpolation(n_cell: int, binning: int) -> DoubleArray:
    """Linear from the centres of cells to pixels, constant beyond the outermost: float64 (n_cell binning, n_cell)."""
    centres = binning * np.arange(n_cell) + binning // 2
    pixels = np.arange(n_cell * binning)
    return np.stack([np.interp(pixels, centres, row) for row in np.eye(n_cell)], 1)


def flux_solve(layout: Layout, values: DoubleArray, pairs: IntArray, pair_start: IntArray, target: DoubleArray,
               out_flux: DoubleArray, out_sigma: DoubleArray, *, ridge: float, largest: int) -> None:
    """Solve for the fluxes of every blend.

    Parameters
    ----------
    layout : Layout
    values : float64 (n_pair, n_band)
        Of `normal`.
    pairs, pair_start : int32 (n_pair, 2), (n_blend + 1,)
        Of `normal.source_pairs`.
    target : float64 (n_source, n_band)
        sum_p w u r.
    out_flux : float64 (n_source, n_band) [nJy]
        The step is added.
    out_sigma : float64 (n_source, n_band) [nJy]
        Marginal standard deviation; infinite where a source has no weight, and its flux is kept.
    ridge : float
        Added to the matrix, of unit diagonal.
    largest : int
        Members of the largest blend.
    """
    for blend in range(layout.n_blend):
        members = layout.blend_source[layout.blend_start[blend] : layout.blend_start[blend + 1]]
        assert len(members) <= largest
        n = len(members)
        mine = slice(pair_start[blend], pair_start[blend + 1])
        i, j = np.searchsorted(members, pairs[mine]).T
        for b in range(layout.n_band):
            matrix = np.zeros((n, n))
            matrix[i, j] = matrix[j, i] = values[mine, b]
            diagonal = matrix.diagonal()
            known = diagonal > 0
            scale = np.where(known, 1 / np.sqrt(np.where(known, diagonal, 1.0)), 0.0)
            scaled = matrix * scale[:, None] * scale + np.diag(np.where(known, ridge, ridge + 1.0))
            inverse = np.linalg.inv(scaled)
            out_flux[members, b] += scale * (inverse @ (scale * target[members, b]))
            out_sigma[members, b] = np.where(known, np.sqrt(np.maximum(inverse.diagonal(), 0)) * scale, np.inf)


def flux_target(unit: FloatArray, projected: FloatArray, out: DoubleArray) -> None:
    """Right-hand sides of the fluxes.

    Parameters
    ----------
    unit : float32 (n_source, n_band, n_basis)
        Coefficients at unit flux.
    projected : float32 (n_source, n_band, n_basis)
        Inner products of the weighted residual with the basis.
    out : float64 (n_source, n_band)
    """
    out[...] = (unit.astype(np.float64) * projected).sum(2)


def flux_coefficients(unit: FloatArray, flux: DoubleArray, out: FloatArray) -> None:
    """Coefficients at given fluxes.

    Parameters
    ----------
    unit : float32 (n_source, n_band, n_basis)
    flux : float64 (n_source, n_band) [nJy]
    out : float32 (n_source, n_band, n_basis) [nJy]
    """
    out[...] = flux[:, :, None] * unit


def precision(layout: Layout, stamps: FloatArray, cells: FloatArray | None, extended: IntArray, slot: IntArray,
              weights: FloatArray, pairs: IntArray, out: DoubleArray) -> None:
    """Weighted inner products of all derivative images of one source with all of another.

    Parameters
    ----------
    layout : Layout
    stamps : float32 (n_slot, n_band, n_column, n_window_pixel)
    cells : float32 (n_slot, n_band, n_column, n_cell), or None
        Outskirts, of use for extended sources only.
    extended : int32 (n_source,)
    slot : int32 (n_source,)
        Row of each source in `stamps` and `cells`.
    weights : float32 (n_pixel,)
        Flat images.
    pairs : int32 (n_pair, 2)
        As of `normal`.
    out : float64 (n_pair, n_band, n_column, n_column)
        By the columns of the first source, then of the second.
    """
    for p, (i, j) in enumerate(pairs):
        if i < 0:
            continue
        scene = layout.scene[i]
        shape = (layout.n_band, *layout.canvas_shape[scene])
        start = layout.canvas_start[scene]
        weight = weights[start : start + np.prod(shape)].reshape(shape).astype(np.float64)
        for c in range(stamps.shape[2]):
            for d in range(stamps.shape[2]):
                pair = [_column_on_canvas(layout, stamps, cells, extended, slot, k, e, shape) for k, e in
                        ((i, c), (j, d))]
                out[p, :, c, d] = (pair[0] * weight * pair[1]).sum((1, 2))


def _column_on_canvas(layout: Layout, stamps: FloatArray, cells: FloatArray | None, extended: IntArray, slot: IntArray,
                      i: int, column: int, shape: tuple[Any, ...]) -> DoubleArray:
    """One derivative image of a source on its whole canvas."""
    own = np.zeros((i + 1, *stamps.shape[1::2]), np.float32)
    own[i] = stamps[slot[i], :, column]
    around = None
    if cells is not None:
        around = np.zeros((i + 1, *cells.shape[1::2]), np.float32)
        around[i] = cells[slot[i], :, column]
    return _on_canvas(layout, own, around, extended, i, shape)
