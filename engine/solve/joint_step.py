r"""The damped Gauss-Newton step of whole blends, neighbours' couplings included.

All sources of a blend are solved for at once. With A_i the derivatives of the model image by source i's relative
fluxes, offset and shape, W the weights, P the curvature of the prior, and D the diagonal of H + P,

    H_ij = sum_p A_i[p]' W[p] A_j[p],     (H + P + lambda D) step = -dL/dZ

Fluxes are not damped at first, D is 0 for them: the model is linear in the fluxes, and damped fluxes delay the shapes.
They are damped after the second rejected step in a row (`constants.FLUX_DAMPED`). Coincident sources need that: their
fluxes are nearly free against each other.

The sum takes every second pixel along both axes, with the weight of four pixels. Light behind a PSF is smooth: with a
PSF of 3.5 pixels (FWHM) the sum is right to 0.3%, more than a step needs. The gradient takes every pixel.

Blends of up to `constants.MAX_DENSE` sources are solved as one dense system, larger blends by conjugate gradients on
the blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import canvases
from deblendrt.engine.compute.matmul import matmul
from deblendrt.engine.compute.problem import Canvases, Problem
from deblendrt.engine.solve import constants
from deblendrt.engine.solve.curvature import apply_blocks, by_latent, inverse
from deblendrt.engine.units import DoubleArray, FloatArray

HELD_DERIVATIVES = 128  # sources whose derivative images are held at once: 60 kB each, so that the cache holds them
ON_ONE_THREAD = 200_000  # multiplications; NumPy's BLAS splits larger products over threads: other bits


@dataclasses.dataclass(frozen=True)
class Couplings:
    """Blocks of H between two sources of a blend, and of every source with itself.

    Attributes
    ----------
    first, second : int64 (n_pair,)
        Numbers of the sources, in the order of the blend.
    block : float64 (n_pair, n_latent, n_latent)
        H_ij.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    block: DoubleArray


def joint_step(problem: Problem, columns: FloatArray, weights: Canvases, downhill: DoubleArray,
               alone: DoubleArray, damping: DoubleArray) -> DoubleArray:
    """Solve for the step of every blend.

    Parameters
    ----------
    problem : Problem
    columns : float32 (n_source, n_used, n_column, n_basis) [nJy]
        Derivatives of the coefficients, see `curvature.columns`.
    weights : list of float32 (n_used, n_y, n_x) [nJy^-2]
    downhill : float64 (n_source, n_latent)
        -dL/dZ, its flux part relative.
    alone : float64 (n_source, n_latent, n_latent)
        Parts of the diagonal blocks that are no sums over pixels of windows: the prior's curvature and the outskirts.
    damping : float64 (n_source,)
        lambda.

    Returns
    -------
    float64 (n_source, n_latent)
    """
    size = np.bincount(problem.blend, minlength=problem.n_blend)
    order = np.argsort(problem.blend, kind="stable")
    blends = [rows for rows in np.split(order, np.cumsum(size)[:-1]) if len(rows)]
    near = couplings(problem, columns, weights, blends)
    own = near.first == near.second
    diagonal = alone.copy()
    diagonal[near.first[own]] += near.block[own]
    parameter = np.arange(diagonal.shape[1])
    damped = (parameter >= problem.n_band) | (damping[:, None] >= constants.FLUX_DAMPED)
    diagonal[:, parameter, parameter] *= 1 + damping[:, None] * damped
    apart = Couplings(near.first[~own], near.second[~own], near.block[~own])
    step = np.empty_like(downhill)
    for n in sorted({len(rows) for rows in blends if len(rows) <= constants.MAX_DENSE}):
        chosen = np.array([rows for rows in blends if len(rows) == n])
        step[chosen] = _dense(chosen, diagonal, apart, downhill)
    large = [rows for rows in blends if len(rows) > constants.MAX_DENSE]
    if large:
        rows = np.concatenate(large)
        step[rows] = _conjugate(rows, problem.blend[rows], diagonal, apart, downhill)
    return step


def _dense(blends: NDArray[np.int64], diagonal: DoubleArray, apart: Couplings, target: DoubleArray) -> DoubleArray:
    """Solve blends of n sources each for their steps, (n_blend, n, n_latent)."""
    n_blend, n = blends.shape
    n_latent = target.shape[1]
    blend, place = np.full(len(target), -1), np.zeros(len(target), np.int64)
    blend[blends], place[blends] = np.arange(n_blend)[:, None], np.arange(n)
    blocks = np.zeros((n_blend, n, n_latent, n, n_latent))
    members = np.arange(n)
    blocks[:, members, :, members] = diagonal[blends.T]
    here = np.flatnonzero(blend[apart.first] >= 0)
    k, a, b = blend[apart.first[here]], place[apart.first[here]], place[apart.second[here]]
    blocks[k, a, :, b] = apart.block[here]
    blocks[k, b, :, a] = apart.block[here].transpose(0, 2, 1)
    matrix = blocks.reshape(n_blend, n * n_latent, n * n_latent)
    scale = 1 / np.sqrt(matrix.diagonal(axis1=1, axis2=2))
    matrix *= scale[:, :, None]
    matrix *= scale[:, None, :]
    matrix += constants.JOINT_RIDGE * np.eye(n * n_latent)
    rest = (target[blends].reshape(n_blend, -1) * scale)[:, :, None]
    return (np.linalg.solve(matrix, rest)[:, :, 0] * scale).reshape(n_blend, n, n_latent)


def _conjugate(rows: NDArray[np.int64], group: NDArray[np.int64], diagonal: DoubleArray, apart: Couplings,
               target: DoubleArray) -> DoubleArray:
    """Solve large blends for their steps, (n_row, n_latent); the sources' own blocks are the preconditioner."""
    here = np.isin(apart.first, rows)
    number = np.zeros(len(target), np.int64)
    number[rows] = np.arange(len(rows))
    first, second, block = number[apart.first[here]], number[apart.second[here]], apart.block[here]
    # every source has a term of its own, so that no sum is empty
    to = np.concatenate([np.arange(len(rows)), first, second])
    order = np.argsort(to, kind="stable")
    begin = np.searchsorted(to[order], np.arange(len(rows)))
    turned = np.ascontiguousarray(block.transpose(0, 2, 1))

    def matrix(v: DoubleArray) -> DoubleArray:
        terms = np.concatenate([apply_blocks(diagonal[rows], v), apply_blocks(block, v[second]),
                                apply_blocks(turned, v[first])])
        return np.asarray(np.add.reduceat(terms[order], begin, axis=0))

    inverted = inverse(diagonal[rows])
    return conjugate_gradient(matrix, lambda r: apply_blocks(inverted, r), target[rows], group, constants.N_CONJUGATE)


def conjugate_gradient(matrix: Callable[[DoubleArray], DoubleArray], precondition: Callable[[DoubleArray], DoubleArray],
                       target: DoubleArray, group: NDArray[np.int64], n_iteration: int) -> DoubleArray:
    """Solve by preconditioned conjugate gradients from zero; every group of rows has scalars of its own.

    Parameters
    ----------
    matrix, precondition : callable
        float64 (n, m) to float64 (n, m), symmetric and positive definite.
    target : float64 (n, m)
    group : int64 (n,)
    n_iteration : int
        All iterations are taken; a group that has converged stops moving.

    Returns
    -------
    float64 (n, m)
    """
    def dot(a: DoubleArray, b: DoubleArray) -> DoubleArray:
        return np.bincount(group, weights=(a * b).sum(1)).astype(float)

    def ratio(a: DoubleArray, b: DoubleArray) -> DoubleArray:
        safe = b > 0
        return np.where(safe, a / np.where(safe, b, 1.0), 0.0)[group][:, None]

    solution = np.zeros_like(target)
    rest = target.copy()
    z = precondition(rest)
    direction = z
    rz = dot(rest, z)
    for _ in range(n_iteration):
        image = matrix(direction)
        alpha = ratio(rz, dot(direction, image))
        solution += alpha * direction
        rest -= alpha * image
        z = precondition(rest)
        following = dot(rest, z)
        direction = z + ratio(following, rz) * direction
        rz = following
    return solution


def couplings(problem: Problem, columns: FloatArray, weights: Canvases,
              blends: list[NDArray[np.int64]]) -> Couplings:
    """Compute H_ij of all pairs of sources of a blend whose windows overlap.

    Parameters
    ----------
    problem : Problem
    columns : float32 (n_source, n_used, n_column, n_basis) [nJy]
    weights : list of float32 (n_used, n_y, n_x) [nJy^-2]
    blends : list of int64 (n_member,)
        Sources of every blend.

    Returns
    -------
    Couplings
    """
    quarter = [_summed(w) for w in weights]
    pairs: list[tuple[int, int]] = []
    inner: list[FloatArray] = []
    for held in _chunks(blends):
        drawn = _drawn(problem, columns, np.concatenate(held))
        for members in held:
            for i, j, product in inner_products(members, drawn, quarter[problem.scene[members[0]]]):
                pairs.append((i, j))
                inner.append(product)
    block = by_latent(problem.spread(np.array(inner, np.float64)))
    first, second = np.array(pairs, np.int64).T
    return Couplings(first, second, block)


def inner_products(members: NDArray[np.int64], drawn: dict[int, canvases.Placed],
                   weight: FloatArray) -> Iterator[tuple[int, int, FloatArray]]:
    """Yield weighted inner products of the images of overlapping sources, and of every source with itself.

    Parameters
    ----------
    members : int64 (n_member,)
        Sources of a scene.
    drawn : dict of int to Placed
        Images of the sources, (n_used, n_column, height, width).
    weight : float32 (n_used, n_y, n_x)

    Yields
    ------
    i, j : int
        Sources; j is not before i in `members`.
    product : float32 (n_used, n_column, n_column)
    """
    stamps = [drawn[i] for i in members.tolist()]
    for a, (i, stamp) in enumerate(zip(members.tolist(), stamps, strict=True)):
        weighted = stamp._replace(image=stamp.image * stamp.cut(weight)[:, None])
        for j, other in zip(members[a:].tolist(), stamps[a:], strict=True):
            both = weighted.common(other)
            if both is not None:
                left, right = (image.reshape(*image.shape[:2], -1) for image in both)
                right = right.transpose(0, 2, 1)
                if left.shape[1] ** 2 * left.shape[2] > ON_ONE_THREAD:
                    yield i, j, matmul(np.ascontiguousarray(left), np.ascontiguousarray(right))
                else:
                    yield i, j, left @ right  # without copies


def _chunks(blends: list[NDArray[np.int64]]) -> Iterator[list[NDArray[np.int64]]]:
    held: list[NDArray[np.int64]] = []
    for rows in blends:
        held.append(rows)
        if sum(map(len, held)) >= HELD_DERIVATIVES:
            yield held
            held = []
    if held:
        yield held


def _summed(weight: FloatArray) -> FloatArray:
    """Sum over squares of 2 x 2 pixels. The last row or column is left out if their number is odd."""
    n_y, n_x = (size // 2 * 2 for size in weight.shape[1:])
    rows = weight[:, 0:n_y:2, :n_x] + weight[:, 1:n_y:2, :n_x]
    return rows[:, :, ::2] + rows[:, :, 1::2]


def _drawn(problem: Problem, columns: FloatArray, rows: NDArray[np.int64]) -> dict[int, canvases.Placed]:
    """Draw derivative images (n_used, n_column, height, width) of sources at even rows and columns of the canvas."""
    drawn: dict[int, canvases.Placed] = {}
    n_column = columns.shape[2]
    extent = np.minimum(problem.extent[rows], 0)  # `curvature.outskirts` adds the rest
    for members, basis in problem.folded.take(rows).groups(len(rows)):
        for k in np.unique(extent[members]).tolist():
            window = basis.at(k)
            of_size = rows[members[extent[members] == k]]
            corner = problem.corner[of_size] + window.inset
            for x, y in np.unique(corner % 2, axis=0).tolist():
                here = (corner % 2 == (x, y)).all(1)
                lines = columns[of_size[here], :, :, : window.n_used].transpose(1, 0, 2, 3)
                table, height, width = window.halved(y, x)
                images = table(lines.reshape(len(lines), -1, window.n_used))
                images = images.reshape(len(lines), -1, n_column, height, width)
                first = ((corner[here] + 1) // 2).tolist()
                for i, image, (u, v) in zip(of_size[here].tolist(), images.swapaxes(0, 1), first, strict=True):
                    n_y, n_x = problem.data[problem.scene[i]].shape[1:]
                    drawn[i] = canvases.place(image, u, v, (n_y // 2, n_x // 2))
    return drawn
