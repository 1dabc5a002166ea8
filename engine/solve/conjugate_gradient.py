"""Conjugate gradients with scalars of their own for each blend, and the Gauss-Newton step as devices take it.

A device never forms the matrix of `coupling`, it applies it: `push` to coefficients, render, weigh, project, `pull`. A
fixed number of conjugate-gradient iterations solves it, preconditioned with the blocks of single sources, which need no
pixels (`curvature.blocks`). A source alone in its blend takes the block's solution. Here in NumPy, as the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import drawing
from deblendrt.engine.compute.problem import Canvases, DoubleArray, Problem, State
from deblendrt.engine.solve import objective
from deblendrt.engine.solve.curvature import apply_blocks, blocks, inverse, mean_weight, rim_weight

N_DEVICE_CONJUGATE = 4  # iterations per step of a device


def conjugate_gradient(matrix: Callable[[DoubleArray], DoubleArray], precondition: Callable[[DoubleArray], DoubleArray],
                       target: DoubleArray, group: NDArray[np.int64], n_iteration: int) -> DoubleArray:
    """Preconditioned conjugate gradient from zero, with scalars of their own for each group of rows.

    Parameters
    ----------
    matrix, precondition : callable
        float64 (n, m) to float64 (n, m), symmetric and positive definite.
    target : float64 (n, m)
    group : int64 (n,)
    n_iteration : int
        Always all of them; a group that has converged stops moving.

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


def newton_step(problem: Problem, state: State, weights: Canvases, downhill: DoubleArray,
                damping: DoubleArray, curvature: DoubleArray) -> DoubleArray:
    """Solve for the damped Gauss-Newton step, its flux part relative.

    Parameters
    ----------
    problem : Problem
    state : State
    weights : list of float32 (n_band, n_y, n_x)
    downhill : float64 (n_source, n_latent)
        -dL/dZ.
    damping : float64 (n_source,)
    curvature : float64 (n_source, n_latent, n_latent)
        Of the prior.

    Returns
    -------
    float64 (n_source, n_latent)
    """
    block, outskirts = blocks(problem, state, mean_weight(problem, weights), rim_weight(problem, weights), curvature)
    added = damping[:, None] * block.diagonal(axis1=1, axis2=2)
    added[:, : problem.n_band] = 0.0
    inverted = inverse(block + added[:, :, None] * np.eye(block.shape[1]))
    step = apply_blocks(inverted, downhill)
    size = np.bincount(problem.blend, minlength=problem.n_blend)[problem.blend]
    rows = np.flatnonzero(size > 1)
    if not len(rows):
        return step
    part = State(state.latent[rows], type(state.jacobian)(*(a[rows] for a in state.jacobian)),
                 state.coefficients[rows], [], state.log_prior[rows], state.prior_gradient[rows])
    # the outskirts of single sources are in their blocks alone
    folded, corner, extent, scene = (problem.folded.take(rows), problem.corner[rows],
                                     np.minimum(problem.extent[rows], 0), problem.scene[rows])
    alone = curvature[rows] + outskirts[rows]
    drawn, weighted = ([np.zeros_like(d) for d in problem.data] for _ in range(2))
    inside = (slice(None), *[slice(problem.folded.half, -problem.folded.half)] * 2)  # there is no weight beyond

    def matrix(v: DoubleArray) -> DoubleArray:
        for image in drawn:
            image.fill(0)
        drawing.render(problem.used(objective.push(part, v)), folded, corner, extent, drawn, scene)
        for image, w, product in zip(drawn, weights, weighted, strict=True):
            np.multiply(image[inside], w[inside], out=product[inside])
        pulled = objective.pull(part, problem.spread(drawing.project(weighted, folded, corner, extent, scene)))
        return pulled + apply_blocks(alone, v) + added[rows] * v

    step[rows] = conjugate_gradient(matrix, lambda r: apply_blocks(inverted[rows], r), downhill[rows],
                                    problem.blend[rows], N_DEVICE_CONJUGATE)
    return step
