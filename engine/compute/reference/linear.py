r"""The specification, in NumPy, of the linear algebra of blends: blocks, inverses, conjugate gradients, joint
fluxes, precisions.

Each function has the name and arguments of its launcher, less the device; arrays are NumPy's, outputs are written in
place. Rows of padding mean nothing.

    A_ij = sum_p w u_i u_j,    (A dF)_i = sum_p w u_i r,    F + dF,    covariance A^-1

per band and blend, u_i the unit-flux image of source i, r the residual.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.reference.pixels import _on_canvas

DoubleArray = NDArray[np.float64]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


def damped_inverse(layout: Layout, block: DoubleArray, damping: DoubleArray, n_band: int, out_inverse: DoubleArray,
                   out_added: DoubleArray, *, ridge: float = 1e-6) -> None:
    """Damp the blocks of all sources and invert them: `engine.curvature.inverse`.

    Parameters
    ----------
    layout : Layout
    block : float64 (n_source, n_latent, n_latent)
        Symmetric, positive definite.
    damping : float64 (n_blend,)
    n_band : int
        So many first latents are fluxes, which are not damped.
    out_inverse : float64 (n_source, n_latent, n_latent)
        NaN where the damped block is not positive definite.
    out_added : float64 (n_source, n_latent)
        What was added to the diagonal.
    ridge : float
        Added to the diagonal of a block that was scaled to a diagonal of ones.
    """
    one = np.eye(block.shape[1])
    for i in np.flatnonzero(layout.blend >= 0):
        added = damping[layout.blend[i]] * block[i].diagonal()
        added[:n_band] = 0.0
        damped = block[i] + np.diag(added)
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = 1 / np.sqrt(damped.diagonal())
            scaled = damped * scale[:, None] * scale + ridge * one
        try:
            root = np.linalg.inv(np.linalg.cholesky(scaled))
        except np.linalg.LinAlgError:
            root = np.full_like(one, np.nan)
        out_inverse[i], out_added[i] = root.T @ root * scale[:, None] * scale, added


def conjugate_start(layout: Layout, inverse: DoubleArray, target: DoubleArray, out_solution: DoubleArray,
                    out_rest: DoubleArray, out_direction: DoubleArray, out_rz: DoubleArray) -> None:
    """Where the conjugate gradient starts; a source alone in its blend is solved by its block.

    Parameters
    ----------
    layout : Layout
    inverse : float64 (n_source, n_latent, n_latent)
        Preconditioner, symmetric.
    target : float64 (n_source, n_latent)
    out_solution, out_rest, out_direction : float64 (n_source, n_latent)
        The last two are 0 for a source alone.
    out_rz : float64 (n_blend,)
        Of the rest and the preconditioned rest; kept where a blend has no members.
    """
    for blend, members in _blends(layout):
        z = _apply(inverse[members], target[members])
        if len(members) == 1:
            out_solution[members], out_rest[members], out_direction[members], out_rz[blend] = z, 0.0, 0.0, 0.0
            continue
        out_solution[members], out_rest[members], out_direction[members] = 0.0, target[members], z
        out_rz[blend] = (target[members] * z).sum()


def conjugate_step(layout: Layout, inverse: DoubleArray, curvature: DoubleArray, added: DoubleArray,
                   out_pulled: DoubleArray, out_solution: DoubleArray, out_rest: DoubleArray,
                   out_direction: DoubleArray, out_rz: DoubleArray) -> None:
    """One iteration of `engine.conjugate.conjugate_gradient`, of blends of more than one source.

    Parameters
    ----------
    layout : Layout
    inverse, curvature : float64 (n_source, n_latent, n_latent)
        Preconditioner, and the prior's part of the matrix; symmetric.
    added : float64 (n_source, n_latent)
        The damping's part, a diagonal.
    out_pulled : float64 (n_source, n_latent)
        Likelihood's part of the matrix times the direction. Scratch afterwards: the preconditioned rest.
    out_solution, out_rest, out_direction : float64 (n_source, n_latent)
        Updated.
    out_rz : float64 (n_blend,)
        Updated.
    """
    for blend, members in _blends(layout):
        if len(members) == 1:
            continue
        direction, before = out_direction[members], out_rz[blend]
        image = out_pulled[members] + _apply(curvature[members], direction) + added[members] * direction
        alpha = _ratio(before, (direction * image).sum())
        out_solution[members] += alpha * direction
        out_rest[members] -= alpha * image
        z = _apply(inverse[members], out_rest[members])
        out_rz[blend] = (out_rest[members] * z).sum()
        out_direction[members] = z + _ratio(out_rz[blend], before) * direction
        out_pulled[members] = z


def _blends(layout: Layout) -> Iterator[tuple[int, IntArray]]:
    for blend in range(layout.n_blend):
        members = layout.blend_source[layout.blend_start[blend] : layout.blend_start[blend + 1]]
        if len(members):
            yield blend, members


def _apply(block: DoubleArray, v: DoubleArray) -> DoubleArray:
    return np.asarray((block @ v[:, :, None])[:, :, 0])


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0


def blocks(columns: FloatArray, through: FloatArray, wbar: DoubleArray, curvature: DoubleArray,
           out: DoubleArray) -> None:
    """Gauss-Newton blocks of single sources.

    Parameters
    ----------
    columns, through : float32 (n_source, n_band, n_column, n_basis) [nJy]
        Of `columns`, and these times the Gram matrix.
    wbar : float64 (n_source, n_band) [nJy^-2]
    curvature : float64 (n_source, n_latent, n_latent)
        Of the prior.
    out : float64 (n_source, n_latent, n_latent)
    """
    n_band = wbar.shape[1]
    inner = np.einsum("nbck,nbdk,nb->nbcd", through.astype(np.float64), columns, wbar)
    band = np.arange(n_band)
    out[...] = curvature
    out[:, band, band] += inner[:, :, 0, 0]
    out[:, :n_band, n_band:] += inner[:, :, 0, 1:]
    out[:, n_band:, :n_band] += inner[:, :, 0, 1:].transpose(0, 2, 1)
    out[:, n_band:, n_band:] += inner[:, :, 1:, 1:].sum(1)


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
