r"""The specification, in NumPy, of the linear algebra of blends: the joint step, joint fluxes, precisions.

Each function has the name and arguments of its launcher, less the device; arrays are NumPy's, outputs are written in
place. Rows of padding mean nothing.

For joint fluxes, in each band and blend, with u_i the unit-flux image of source i and r the residual,

    A_ij = sum_p w u_i u_j,    (A dF)_i = sum_p w u_i r,    F + dF,    covariance A^-1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.reference.pixels import _canvas, _on_canvas
from deblendrt.engine.units import DoubleArray, FloatArray, IntArray


def couplings(layout: Layout, images: FloatArray, slot: IntArray, inset: IntArray, weights: FloatArray,
              pairs: IntArray, out: FloatArray) -> None:
    """Weighted inner products of all derivative images of one source with all of another.

    The sum takes the canvas' pixels of even row and column, with the weight of the square of four pixels that begins
    there. Pixels count where both windows are, each cut to the source's extent.

    Parameters
    ----------
    layout : Layout
    images : float32 (n_slot, n_band, n_column, n_side^2)
        Derivative images at these pixels, from the first one in the window on; n_side = (window + 1) / 2.
    slot : int32 (n_source,)
        Row of each source in `images`.
    inset : int32 (n_source,) [pixel]
        Pixels between the edges of the basis' window and of each source's window.
    weights : float32 (n_pixel,) [nJy^-2]
        Flat images.
    pairs : int32 (n_pair, 2)
        Sources of one scene; -1 is padding.
    out : float32 (n_pair, n_band, n_column, n_column)
        By the columns of the first source, then of the second.
    """
    side = (layout.window + 1) // 2
    for p, (i, j) in enumerate(pairs):
        if i < 0:
            continue
        scene = layout.scene[i]
        n_y, n_x = layout.canvas_shape[scene]
        even = _canvas(layout, weights, scene)[:, : n_y // 2 * 2, : n_x // 2 * 2].astype(np.float64)
        weight = even.reshape(layout.n_band, n_y // 2, 2, n_x // 2, 2).sum((2, 4))
        drawn = []
        for k in (i, j):
            on_canvas = np.zeros((*images.shape[1:3], n_y // 2 + side, n_x // 2 + side))  # beyond the edges, too
            x, y = (layout.corner[k] + 1) // 2
            (u0, v0), (u1, v1) = ((layout.corner[k] + edge + 1) // 2
                                  for edge in (inset[k], layout.window - inset[k]))
            on_canvas[:, :, y : y + side, x : x + side] = images[slot[k]].reshape(*images.shape[1:3], side, side)
            inside = np.zeros(on_canvas.shape[2:])
            inside[v0:v1, u0:u1] = 1
            drawn.append((on_canvas * inside)[:, :, : n_y // 2, : n_x // 2])
        out[p] = np.einsum("bcyx,byx,bdyx->bcd", drawn[0], weight, drawn[1])


def joint_blocks(layout: Layout, inner: FloatArray, pairs: IntArray, alone: DoubleArray, damping: DoubleArray,
                 out: DoubleArray, *, flux_damped: float) -> None:
    """Blocks of the damped Gauss-Newton matrix, see `solve.joint_step`.

    Parameters
    ----------
    layout : Layout
    inner : float32 (n_pair, n_band, n_column, n_column)
        Result of `couplings`.
    pairs : int32 (n_pair, 2)
    alone : float64 (n_source, n_latent, n_latent)
        The prior's curvature and the outskirts' part, which are added to a source's own block.
    damping : float64 (n_blend,)
        lambda: an own block's diagonal is multiplied by 1 + lambda.
    out : float64 (n_pair, n_latent, n_latent)
        By relative flux, offset and shape.
    flux_damped : float
        lambda from which on fluxes are damped.
    """
    n_band = layout.n_band
    band = np.arange(n_band)
    for p, (i, j) in enumerate(pairs):
        if i < 0:
            continue
        block = np.zeros(out.shape[1:])
        products = inner[p].astype(np.float64)
        block[band, band] = products[:, 0, 0]
        block[:n_band, n_band:] = products[:, 0, 1:]
        block[n_band:, :n_band] = products[:, 1:, 0].T
        block[n_band:, n_band:] = products[:, 1:, 1:].sum(0)
        if i == j:
            block += alone[i]
            factor = damping[layout.blend[i]]
            first = 0 if factor >= flux_damped else n_band
            latent = np.arange(first, len(block))
            block[latent, latent] *= 1 + factor
        out[p] = block


def joint_solve(layout: Layout, blocks: DoubleArray, pairs: IntArray, pair_span: IntArray, target: DoubleArray,
                matrix_start: NDArray[np.int64], matrices: DoubleArray, out: DoubleArray, *, largest: int,
                ridge: float) -> None:
    """Solve for the step of every blend of at most `largest` sources.

    Parameters
    ----------
    layout : Layout
    blocks : float64 (n_pair, n_latent, n_latent)
        Result of `joint_blocks`.
    pairs : int32 (n_pair, 2)
        The first source is not after the second.
    pair_span : int32 (n_blend, 2)
        First pair of each blend, and the first behind its pairs.
    target : float64 (n_source, n_latent)
        -dL/dZ.
    matrix_start : int64 (n_blend,)
        First element of each blend's matrix in `matrices`; read for blends of at most `largest` sources only.
    matrices : float64 (n_element,)
        Scratch.
    out : float64 (n_source, n_latent)
    largest : int
    ridge : float
        Added to the diagonal of a matrix that was scaled to a diagonal of ones.
    """
    n_latent = target.shape[1]
    for blend, members in _blends(layout):
        n = len(members)
        if n > largest:
            continue
        matrix = np.zeros((n, n_latent, n, n_latent))
        for p in range(*pair_span[blend]):
            i, j = np.searchsorted(members, pairs[p])
            matrix[j, :, i] = blocks[p].T
            matrix[i, :, j] = blocks[p]
        flat = matrix.reshape(n * n_latent, -1)
        scale = 1 / np.sqrt(flat.diagonal())
        scaled = flat * scale[:, None] * scale + ridge * np.eye(len(scale))
        out[members] = (np.linalg.solve(scaled, target[members].ravel() * scale) * scale).reshape(n, n_latent)


def block_inverse(layout: Layout, blocks: DoubleArray, own: IntArray, out: DoubleArray, *, largest: int,
                  ridge: float) -> None:
    """Invert the own blocks of sources in blends of more than `largest`: `solve.curvature.inverse`.

    Parameters
    ----------
    layout : Layout
    blocks : float64 (n_pair, n_latent, n_latent)
        Symmetric, positive definite for a source with itself.
    own : int32 (n_source,)
        Pair of each source with itself.
    out : float64 (n_source, n_latent, n_latent)
        NaN where a block is not positive definite.
    largest : int
    ridge : float
        Added to the diagonal of a block that was scaled to a diagonal of ones.
    """
    for _, members in _blends(layout):
        for i in members if len(members) > largest else ():
            block = blocks[own[i]]
            with np.errstate(invalid="ignore", divide="ignore"):
                scale = 1 / np.sqrt(block.diagonal())
                scaled = block * scale[:, None] * scale + ridge * np.eye(len(block))
            try:
                root = np.linalg.inv(np.linalg.cholesky(scaled))
            except np.linalg.LinAlgError:
                root = np.full_like(scaled, np.nan)
            out[i] = root.T @ root * scale[:, None] * scale


def joint_conjugate(layout: Layout, blocks: DoubleArray, pairs: IntArray, partner_start: IntArray, partner: IntArray,
                    inverse: DoubleArray, target: DoubleArray, scratch: Sequence[DoubleArray], out: DoubleArray, *,
                    largest: int, n_iteration: int) -> None:
    """Preconditioned conjugate gradients from zero, of blends of more than `largest` sources.

    Parameters
    ----------
    layout : Layout
    blocks : float64 (n_pair, n_latent, n_latent)
        Result of `joint_blocks`.
    pairs : int32 (n_pair, 2)
    partner_start : int32 (n_source + 1,)
        First entry in `partner` of each place of `Layout.blend_source`.
    partner : int32 (n_entry,)
        Twice the number of the pair; plus one if the source is the pair's second.
    inverse : float64 (n_source, n_latent, n_latent)
        Result of `block_inverse`: the preconditioner.
    target : float64 (n_source, n_latent)
    scratch : three float64 (n_source, n_latent)
    out : float64 (n_source, n_latent)
    largest : int
    n_iteration : int
        Always all of them; a blend that has converged stops moving.
    """
    for blend, members in _blends(layout):
        if len(members) <= largest:
            continue
        first = layout.blend_start[blend]

        def matrix(v: DoubleArray, members: IntArray = members, first: int = first) -> DoubleArray:
            image = np.zeros_like(v)
            for m in range(len(members)):
                for entry in partner[partner_start[first + m] : partner_start[first + m + 1]]:
                    pair, second = divmod(int(entry), 2)
                    other = np.searchsorted(members, pairs[pair, 1 - second])
                    image[m] += (blocks[pair].T if second else blocks[pair]) @ v[other]
            return image

        step, rest = np.zeros((len(members), target.shape[1])), target[members].copy()
        direction = z = _apply(inverse[members], rest)
        before = (rest * z).sum()
        for _ in range(n_iteration):
            image = matrix(direction)
            alpha = _ratio(before, (direction * image).sum())
            step += alpha * direction
            rest -= alpha * image
            z = _apply(inverse[members], rest)
            following = (rest * z).sum()
            direction = z + _ratio(following, before) * direction
            before = following
        out[members] = step


def alike(layout: Layout, latent: DoubleArray, step: DoubleArray, out: DoubleArray) -> None:
    """Give sources of a blend that are the same in every number the mean of their steps.

    Parameters
    ----------
    layout : Layout
    latent, step : float64 (n_source, n_latent)
    out : float64 (n_source, n_latent)
    """
    for _, members in _blends(layout):
        same = ((layout.corner[members][:, None] == layout.corner[members]).all(2)
                & (latent[members][:, None] == latent[members]).all(2)) | np.eye(len(members), dtype=bool)
        for m, i in enumerate(members):
            out[i] = step[members[same[m]]].sum(0) / same[m].sum()


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
        Result of `columns`, and the same times the Gram matrix.
    wbar : float64 (n_source, n_band) [nJy^-2]
    curvature : float64 (n_source, n_latent, n_latent)
        Curvature of the prior.
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
        Sources of one scene, as `source_pairs` lists them; -1 is padding.
    out : float64 (n_pair, n_band)
    """
    for p, (i, j) in enumerate(pairs):
        if i < 0:
            continue
        weight = _canvas(layout, weights, layout.scene[i]).astype(np.float64)
        first, second = (_on_canvas(layout, stamps, cells, extended, k, weight.shape) for k in (i, j))
        out[p] = (first * weight * second).sum((1, 2))


def flux_solve(layout: Layout, values: DoubleArray, pairs: IntArray, pair_start: IntArray, target: DoubleArray,
               out_flux: DoubleArray, out_sigma: DoubleArray, *, ridge: float, largest: int) -> None:
    """Solve for the fluxes of every blend.

    Parameters
    ----------
    layout : Layout
    values : float64 (n_pair, n_band)
        Result of `normal`.
    pairs, pair_start : int32 (n_pair, 2), (n_blend + 1,)
        Result of `source_pairs`.
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
        weight = _canvas(layout, weights, layout.scene[i]).astype(np.float64)
        for c in range(stamps.shape[2]):
            for d in range(stamps.shape[2]):
                pair = [_column_on_canvas(layout, stamps, cells, extended, slot, k, e, weight.shape)
                        for k, e in ((i, c), (j, d))]
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
