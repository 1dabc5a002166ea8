r"""Descent to the MAP solution in a fixed number of iterations.

Gauss-Newton (default). With J the factored derivative of the coefficients, Phi the folded basis and W the weights,

    (J' Phi W Phi' J + P + lambda D) step = -dL/dZ

P is the prior's curvature (a secant estimate) and D the diagonal, but 0 for fluxes: the model is linear in them, and
damping them made the shapes wait. The matrix is applied, never formed: `push` to coefficients, render, weigh, project,
`pull`. A fixed number of conjugate-gradient iterations, one set of scalars per blend, solves it, preconditioned with
the blocks of single sources, H_i = sum_b wbar_b J_b' G_b J_b + P + lambda D, which need no pixels (G the Gram matrix,
wbar the mean weight under a galaxy). A source alone in its blend takes the block's solution. Fluxes step linearly,
F <- F (1 + d). A step is kept, blend by blend, if L falls; else the damping lambda grows. A rejected step spends an
iteration.

Adam is the published method (Biswas et al. 2025): 200 iterations, rate 0.075, times 0.8 every 30.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine import objective, ops
from deblendrt.engine.objective import Canvases, DoubleArray, FloatArray, Problem, State

N_CONJUGATE = 4  # conjugate-gradient iterations per step
MAX_SHAPE_STEP = 3.0  # prior standard deviations
MAX_OFFSET_STEP, MAX_DRIFT = 0.3, 0.75  # pixel per step, and in all from the caller's centre
MIN_FLUX_FACTOR, MAX_FLUX_FACTOR = 0.3, 3.0
FIRST_DAMPING, MIN_DAMPING = 1e-2, 1e-4
FIRST_TEMPER, LAST_TEMPER, TEMPERED = 0.3, 2e-3, 0.6
EXTENDED = 0.3  # pulls in scenes with a large galaxy are a third wider at 1
ITERATIONS = {"gauss_newton": 15, "adam": 200}


@dataclasses.dataclass(frozen=True)
class Solution:
    """Where a solver stopped.

    Attributes
    ----------
    problem : Problem
        As solved: which sources are extended may have changed.
    state : State
    downhill : float64 (n_source, n_latent)
        Minus the gradient of L, its flux part relative.
    weights, residual : list of float32 (n_band, n_y, n_x)
        Robust weights W, and W (y - m).
    objective : float64 (n_scene,)
    """

    problem: Problem
    state: State
    downhill: DoubleArray
    weights: Canvases
    residual: Canvases
    objective: DoubleArray


def solve(problem: Problem, latent: DoubleArray, floor: DoubleArray, solver: str, n_iteration: int) -> Solution:
    """Run a solver from a start.

    Parameters
    ----------
    problem : Problem
    latent : float64 (n_source, n_latent)
    floor : float64 (n_source, n_band) [ln nJy]
        Log fluxes are held above it.
    solver : {"gauss_newton", "adam"}
    n_iteration : int

    Returns
    -------
    Solution
    """
    run: dict[str, Callable[..., tuple[Problem, State]]] = {"gauss_newton": gauss_newton, "adam": adam}
    problem, state = run[solver](problem, latent, floor, n_iteration)
    likely = objective.likelihood(problem, state.model)
    weights, residual = objective.weighted_residual(problem, likely, state.model)
    downhill = objective.pull(state, objective.project(problem, residual)) + state.prior_gradient
    per_blend = objective.by_blend(problem, likely, state)
    scene_of_blend = np.repeat(np.arange(len(problem.data)), [p.n_blend for p in problem.partition])
    total = np.bincount(scene_of_blend, weights=per_blend, minlength=len(problem.data)).astype(float)
    return Solution(problem, state, downhill, weights, residual, total)


def gauss_newton(problem: Problem, latent: DoubleArray, floor: DoubleArray, n_iteration: int) -> tuple[Problem, State]:
    """Damped Gauss-Newton (module docstring); parameters as in `solve`."""
    state = objective.evaluate(problem, latent)
    damping = np.full(problem.n_blend, FIRST_DAMPING)
    curvature = prior_curvature(problem)
    for iteration in range(n_iteration):
        tau = temper(iteration, n_iteration)
        if iteration == int(TEMPERED * n_iteration):  # the shapes are known now
            problem, state = extend(problem, state)
        likely = objective.likelihood(problem, state.model, temper=tau)
        weights, residual = objective.weighted_residual(problem, likely, state.model)
        downhill = objective.pull(state, objective.project(problem, residual)) + state.prior_gradient
        step = newton_step(problem, state, weights, downhill, damping[problem.blend], curvature)
        trial = objective.evaluate(problem, move(problem, state.latent, step, floor))
        better = objective.by_blend(problem, likely, trial) < objective.by_blend(problem, likely, state)
        damping = np.where(better, np.maximum(damping * 0.25, MIN_DAMPING), damping * 8.0)
        curvature = secant(curvature, trial.latent - state.latent, state.prior_gradient - trial.prior_gradient)
        state = _choose(problem, better[problem.blend], trial, state)
    return problem, state


def extend(problem: Problem, state: State) -> tuple[Problem, State]:
    """Draw sources that turned out large with their outskirts from here on."""
    extended = problem.extended | extended_sources(problem, state.coefficients)
    if (extended == problem.extended).all():
        return problem, state
    problem = dataclasses.replace(problem, extended=extended)
    return problem, dataclasses.replace(state, model=objective.render(problem, state.coefficients))


def secant(curvature: DoubleArray, step: DoubleArray, change: DoubleArray) -> DoubleArray:
    """BFGS update of the prior's curvature from what its gradient did along a step, tried or taken.

    The population's mean curvature is only a start: the flow is sharper in places, and its dependence on the fluxes
    couples them to the shapes. With the mean alone the last iterations were slow.

    Parameters
    ----------
    curvature : float64 (n_source, n_latent, n_latent)
        Symmetric, positive definite.
    step : float64 (n_source, n_latent)
    change : float64 (n_source, n_latent)
        Of the gradient of -log p along the step.

    Returns
    -------
    float64 (n_source, n_latent, n_latent)
        Unchanged where the curvature along the step is negative or out of proportion.
    """
    expected = _apply_blocks(curvature, step)
    before, after = (step * expected).sum(1), (step * change).sum(1)
    good = (after > 0.1 * before) & (after < 100 * before) & (before > 1e-10)
    removed = expected[:, :, None] * expected[:, None, :] / np.where(good, before, 1.0)[:, None, None]
    added = change[:, :, None] * change[:, None, :] / np.where(good, after, 1.0)[:, None, None]
    return np.where(good[:, None, None], curvature - removed + added, curvature)


def temper(iteration: int, n_iteration: int) -> float:
    """tau of the tempered likelihood: geometric from `FIRST_TEMPER` to `LAST_TEMPER`, then 0.

    It is 0 from iteration `TEMPERED` * n_iteration on, so that the last iterations descend the objective itself.
    """
    tempered = int(TEMPERED * n_iteration)
    return FIRST_TEMPER * (LAST_TEMPER / FIRST_TEMPER) ** (iteration / tempered) if iteration < tempered else 0.0


def adam(problem: Problem, latent: DoubleArray, floor: DoubleArray, n_iteration: int) -> tuple[Problem, State]:
    """Adam with the published step sizes; parameters as in `solve`."""
    n_band = problem.n_band
    first, second = np.zeros_like(latent), np.zeros_like(latent)
    for iteration in range(n_iteration):
        coefficients = problem.runtime.decode(latent)
        if iteration == int(TEMPERED * n_iteration):
            problem = dataclasses.replace(problem, extended=problem.extended | extended_sources(problem, coefficients))
        model = objective.render(problem, coefficients)
        likely = objective.likelihood(problem, model, error=temper(iteration, n_iteration))
        _, residual = objective.weighted_residual(problem, likely, model)
        pulled = problem.runtime.decode_pullback(latent, objective.project(problem, residual))
        uphill = -(pulled + objective.prior(problem, latent)[1])
        first += 0.1 * (uphill - first)
        second += 0.001 * (uphill**2 - second)
        rate = 0.075 * 0.8 ** (iteration // 30)
        corrected = np.sqrt(second / (1 - 0.999 ** (iteration + 1))) + 1e-8
        latent = latent - rate * first / (1 - 0.9 ** (iteration + 1)) / corrected
        latent[:, :n_band] = np.maximum(latent[:, :n_band], floor)
        _hold_offset(problem, latent)
    return problem, objective.evaluate(problem, latent)


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
    block = blocks(problem, state, mean_weight(problem, weights), curvature)
    added = damping[:, None] * block.diagonal(axis1=1, axis2=2)
    added[:, : problem.n_band] = 0.0
    inverse = _inverse(block + added[:, :, None] * np.eye(block.shape[1]))
    step = _apply_blocks(inverse, downhill)
    size = np.bincount(problem.blend, minlength=problem.n_blend)[problem.blend]
    rows = np.flatnonzero(size > 1)
    if not len(rows):
        return step
    curvature = curvature[rows]
    part = State(state.latent[rows], type(state.jacobian)(*(a[rows] for a in state.jacobian)),
                 state.coefficients[rows], [], state.log_prior[rows], state.prior_gradient[rows])
    corner, extended, scene = problem.corner[rows], problem.extended[rows], problem.scene[rows]

    def matrix(v: DoubleArray) -> DoubleArray:
        image = [np.zeros_like(d) for d in problem.data]
        ops.render(objective.push(part, v), problem.folded, corner, extended, image, scene)
        for plane, w in zip(image, weights, strict=True):
            plane *= w
        pulled = objective.pull(part, ops.project(image, problem.folded, corner, extended, scene))
        return pulled + _apply_blocks(curvature, v) + added[rows] * v

    step[rows] = conjugate_gradient(matrix, lambda r: _apply_blocks(inverse[rows], r), downhill[rows],
                                    problem.blend[rows], N_CONJUGATE)
    return step


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


def blocks(problem: Problem, state: State, wbar: DoubleArray, curvature: DoubleArray) -> DoubleArray:
    """Gauss-Newton blocks H_i of single sources, prior curvature included, by relative flux, offset and shape.

    Parameters
    ----------
    problem : Problem
    state : State
    wbar : float64 (n_source, n_band) [nJy^-2]
    curvature : float64 (n_source, n_latent, n_latent)
        Of the prior.

    Returns
    -------
    float64 (n_source, n_latent, n_latent)
    """
    rows = columns(state)
    _, n_band, n_column, n_basis = rows.shape
    n_move = n_column - 1
    by_band = np.ascontiguousarray(rows.transpose(1, 0, 2, 3))
    through = np.empty_like(rows)
    for chosen, gram in ((~problem.extended, problem.folded.gram), (problem.extended, problem.folded.full_gram)):
        if chosen.any():
            flat = by_band[:, chosen].reshape(n_band, -1, n_basis)
            product = ops.matmul(flat, gram.astype(np.float32)).reshape(n_band, -1, 1 + n_move, n_basis)
            through[chosen] = product.transpose(1, 0, 2, 3)
    inner = (through @ rows.transpose(0, 1, 3, 2)).astype(np.float64) * wbar[:, :, None, None]
    block = curvature.copy()
    band = np.arange(n_band)
    block[:, band, band] += inner[:, :, 0, 0]
    block[:, :n_band, n_band:] += inner[:, :, 0, 1:]
    block[:, n_band:, :n_band] += inner[:, :, 0, 1:].transpose(0, 2, 1)
    block[:, n_band:, n_band:] += inner[:, :, 1:, 1:].sum(1)
    return block


def columns(state: State) -> FloatArray:
    """Derivatives of the coefficients of each band, by relative flux, offset and shape.

    Returns
    -------
    float32 (n_source, n_band, 1 + 2 + n_shape, n_basis) [nJy]
    """
    maps, d_maps, mix, d_mix = state.jacobian
    n, n_band, n_basis = state.coefficients.shape
    n_move = d_maps.shape[1]
    flux = np.exp(state.latent[:, :n_band]).astype(np.float32)
    rows = np.empty((n, n_band, 1 + n_move, n_basis), np.float32)
    rows[:, :, 0] = state.coefficients
    moved = mix.transpose(0, 2, 1) @ d_maps.transpose(0, 2, 1, 3).reshape(n, mix.shape[1], -1)
    rows[:, :, 1:] = moved.reshape(n, n_band, n_move, n_basis)
    rows[:, :, 3:] += d_mix.transpose(0, 3, 1, 2) @ maps[:, None]
    rows[:, :, 1:] *= flux[:, :, None, None]
    return rows


def prior_curvature(problem: Problem) -> DoubleArray:
    """Curvature of the prior: the population's mean for the shape, exact for offsets and missing bands.

    Returns
    -------
    float64 (n_source, n_latent, n_latent)
    """
    n, n_band = problem.measured.shape
    shape = np.asarray(problem.bundle.prior_curvature)
    n_latent = n_band + 2 + len(shape)
    block = np.zeros((n, n_latent, n_latent))
    block[:, n_band + 2 :, n_band + 2 :] = shape
    block[:, [n_band, n_band + 1], [n_band, n_band + 1]] = problem.center_sigma**-2
    band = np.arange(n_band)
    missing = 1 / (np.asarray(problem.bundle.color_sigma) + 0.1) ** 2
    # 1e-3 (30 in ln flux) keeps the block of a flux at its floor regular
    block[:, band, band] = np.where(problem.measured, 1e-3, missing)
    return block


def mean_weight(problem: Problem, weights: Canvases) -> DoubleArray:
    """Mean weight under a source, float64 (n_source, n_band): weighted by the square of the mean galaxy's image."""
    window = problem.folded.window
    result = np.empty((len(problem.scene), problem.n_band))
    for i, (s, (x, y)) in enumerate(zip(problem.scene, problem.corner, strict=True)):
        result[i] = (weights[s][:, y : y + window, x : x + window] * problem.profile).sum((1, 2))
    return result


def extended_sources(problem: Problem, coefficients: FloatArray) -> NDArray[np.bool_]:
    """Whose light outside the window has a signal to noise of `EXTENDED`, all bands together, bool (n_source,)."""
    weight = mean_weight(problem, problem.weight)
    outside = (problem.folded.full_gram - problem.folded.gram).astype(np.float32)
    square = np.empty(weight.shape)
    for rows, padded in ops.tiles(len(coefficients)):
        tile = np.zeros((problem.n_band, padded, coefficients.shape[2]), np.float32)
        tile[:, : rows.stop - rows.start] = coefficients[rows].transpose(1, 0, 2)
        light = (ops.matmul(tile, outside) * tile).sum(2, dtype=np.float64)
        square[rows] = light[:, : rows.stop - rows.start].T
    return np.asarray((weight * square).sum(1) > EXTENDED**2)


def move(problem: Problem, latent: DoubleArray, step: DoubleArray, floor: DoubleArray) -> DoubleArray:
    """Take a step, shortened to its limits; the flux part is relative and linear."""
    n_band = problem.n_band
    moved = latent.copy()
    factor = np.clip(1 + step[:, :n_band], MIN_FLUX_FACTOR, MAX_FLUX_FACTOR)
    moved[:, :n_band] = np.maximum(latent[:, :n_band] + np.log(factor), floor)
    moved[:, n_band : n_band + 2] += np.clip(step[:, n_band : n_band + 2], -MAX_OFFSET_STEP, MAX_OFFSET_STEP)
    _hold_offset(problem, moved)
    shape = step[:, n_band + 2 :]
    length = np.sqrt((shape**2).sum(1, keepdims=True))
    moved[:, n_band + 2 :] += shape * np.minimum(1.0, MAX_SHAPE_STEP / np.maximum(length, 1e-12))
    return moved


def _hold_offset(problem: Problem, latent: DoubleArray) -> None:
    """Keep offsets within MAX_DRIFT of the caller's centre, in place."""
    offset = latent[:, problem.n_band : problem.n_band + 2]
    np.clip(offset, problem.offset0 - MAX_DRIFT, problem.offset0 + MAX_DRIFT, out=offset)


def _apply_blocks(block: DoubleArray, v: DoubleArray) -> DoubleArray:
    return (block @ v[:, :, None])[:, :, 0]


def _inverse(block: DoubleArray) -> DoubleArray:
    """Inverse of symmetric positive blocks, scaled to unit diagonal first."""
    scale = 1 / np.sqrt(block.diagonal(axis1=1, axis2=2))
    scaled = block * scale[:, :, None] * scale[:, None, :]
    # 1e-6 of ridge: the blocks were summed in float32
    scaled += 1e-6 * np.eye(block.shape[1])
    return np.linalg.inv(scaled) * scale[:, :, None] * scale[:, None, :]


def _choose(problem: Problem, better: NDArray[np.bool_], trial: State, state: State) -> State:
    """The trial where it is better, the old state elsewhere."""
    if better.all():
        return trial

    def pick(a: NDArray, b: NDArray) -> NDArray:
        return np.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    jacobian = type(state.jacobian)(*(pick(a, b) for a, b in zip(trial.jacobian, state.jacobian, strict=True)))
    coefficients = pick(trial.coefficients, state.coefficients)
    # rendering a scene whose sources all moved repeats the trial's bits, so nothing depends on the other scenes
    return State(pick(trial.latent, state.latent), jacobian, coefficients, objective.render(problem, coefficients),
                 pick(trial.log_prior, state.log_prior), pick(trial.prior_gradient, state.prior_gradient))
