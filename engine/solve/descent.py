r"""Descent to the MAP solution in a fixed number of iterations.

Gauss-Newton (default). With J the factored derivative of the coefficients, Phi the folded basis and W the weights,

    (J' Phi W Phi' J + P + lambda D) step = -dL/dZ

P is the prior's curvature (a secant estimate) and D the diagonal; `coupling` solves it for all sources of a blend at
once. Fluxes step linearly, F <- F (1 + d). A step is kept, blend by blend, if L falls; lambda grows where L falls by
less than expected. A rejected step spends an iteration. Blends that are still moving at the end, those of bright
galaxies mostly, go on without the others, round by round and with what they have learnt, so that latency stays bounded.

Adam is the published method (Biswas et al. 2025): 200 iterations, rate 0.075, times 0.8 every 30.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.problem import Canvases, DoubleArray, Problem, State, where_measured
from deblendrt.engine.solve import constants, objective
from deblendrt.engine.solve.adam import adam
from deblendrt.engine.solve.curvature import columns, extents, outskirts, rim_weight
from deblendrt.engine.solve.further_rounds import Progress, in_rounds
from deblendrt.engine.solve.joint_step import joint_step
from deblendrt.engine.solve.prior import prior_curvature, secant


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
        Of all blends; Gauss-Newton goes on with those that are still moving.

    Returns
    -------
    Solution
    """
    if problem.device is not None:
        return problem.device.solve(problem, latent, floor, solver, n_iteration)
    run: dict[str, Callable[..., tuple[Problem, State]]] = {"gauss_newton": gauss_newton, "adam": adam}
    measured, state = run[solver](where_measured(problem), latent, floor, n_iteration)
    problem = dataclasses.replace(problem, extent=measured.extent)
    if measured.bands is not None:
        state = dataclasses.replace(state, model=objective.render(problem, state.coefficients))
    likely = objective.likelihood(problem, state.model)
    weights, residual = objective.weighted_residual(problem, likely, state.model)
    downhill = objective.pull(state, objective.project(problem, residual)) + state.prior_gradient
    return Solution(problem, state, downhill, weights, residual, objective.by_scene(problem, likely, state))


def gauss_newton(problem: Problem, latent: DoubleArray, floor: DoubleArray, n_iteration: int) -> tuple[Problem, State]:
    """Damped Gauss-Newton (module docstring); parameters as in `solve`."""
    state: State | None = None

    def run(*arguments: Any) -> tuple[Problem, Progress]:
        nonlocal state
        changed, state, progress = descend(*arguments)
        return changed, progress

    problem, latent, further = in_rounds(run, problem, latent, floor, n_iteration)
    return problem, objective.evaluate(problem, latent) if further or state is None else state


def descend(problem: Problem, latent: DoubleArray, floor: DoubleArray, tempers: list[float],
            first_damping: DoubleArray | None = None,
            curvature: DoubleArray | None = None) -> tuple[Problem, State, Progress]:
    """Damped Gauss-Newton steps, one for each tau.

    Parameters
    ----------
    problem : Problem
    latent : float64 (n_source, n_latent)
    floor : float64 (n_source, n_band) [ln nJy]
    tempers : list of float
        tau of `temper`, falling to 0.
    first_damping : float64 (n_source,), optional
        Equal in a blend.
    curvature : float64 (n_source, n_latent, n_latent), optional

    Returns
    -------
    problem : Problem
    state : State
    progress : Progress
    """
    state = objective.evaluate(problem, latent)
    damping: DoubleArray = np.full(problem.n_blend, constants.FIRST_DAMPING)
    left: DoubleArray = np.zeros(problem.n_blend)
    if first_damping is not None:
        damping[problem.blend] = first_damping
    curvature = prior_curvature(problem) if curvature is None else curvature
    for before, tau in zip([tempers[0] if tempers else 0.0, *tempers], tempers, strict=False):
        if before > tau == 0.0:  # the shapes are known now
            problem, state = extend(problem, state)
        likely = objective.likelihood(problem, state.model, temper=tau)
        weights, residual, before_step = objective.weigh(problem, likely, state)
        downhill = objective.pull(state, objective.project(problem, residual)) + state.prior_gradient
        step = newton_step(problem, state, weights, downhill, damping[problem.blend], curvature)
        trial = objective.evaluate(problem, move(problem, state.latent, step, floor))
        decrease = before_step - objective.by_blend(problem, likely, trial)
        expected = 0.5 * (downhill * step).sum(1)
        left = np.bincount(problem.blend, weights=expected, minlength=problem.n_blend).astype(float)
        damping = damped(damping, decrease, left)
        curvature = secant(curvature, trial.latent - state.latent, state.prior_gradient - trial.prior_gradient)
        state = _choose(problem, (decrease > 0)[problem.blend], trial, state)
    return problem, state, Progress(state.latent, extents(problem, state.coefficients), left, damping, curvature)


def damped(damping: DoubleArray, decrease: DoubleArray, expected: DoubleArray) -> DoubleArray:
    """The next damping: up where L fell by less than a quarter of what was expected, down where by more than half.

    Parameters
    ----------
    damping, decrease, expected : float64 (n_blend,)

    Returns
    -------
    float64 (n_blend,)
    """
    rejected = np.maximum(damping * constants.REJECTED_FACTOR, constants.REJECTED_DAMPING)
    following = np.select(
        [~(decrease > 0), decrease < constants.POOR_DECREASE * expected, decrease < constants.GOOD_DECREASE * expected],
        [rejected, damping * constants.POOR_FACTOR, damping], damping * constants.GOOD_FACTOR)
    return np.asarray(np.clip(following, constants.MIN_DAMPING, constants.MAX_DAMPING), np.float64)


def extend(problem: Problem, state: State) -> tuple[Problem, State]:
    """Draw sources as far as their light goes from here on."""
    extent = extents(problem, state.coefficients)
    if (extent == problem.extent).all():
        return problem, state
    problem = dataclasses.replace(problem, extent=extent)
    return problem, dataclasses.replace(state, model=objective.render(problem, state.coefficients))


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
    by_coefficient = problem.used(columns(state))
    alone = curvature + outskirts(problem, by_coefficient, rim_weight(problem, weights))
    step = joint_step(problem, by_coefficient, weights, downhill, alone, damping)
    return _alike(np.column_stack([problem.blend, problem.corner, state.latent]), step)


def _alike(source: DoubleArray, step: DoubleArray) -> DoubleArray:
    """Steps of sources that are the same in every number made the same: rounding would drive them apart."""
    _, number, count = np.unique(source, axis=0, return_inverse=True, return_counts=True)
    if (count == 1).all():
        return step
    total = np.zeros((len(count), step.shape[1]))
    np.add.at(total, number.ravel(), step)
    return total[number.ravel()] / count[number.ravel()][:, None]


def move(problem: Problem, latent: DoubleArray, step: DoubleArray, floor: DoubleArray) -> DoubleArray:
    """Take a step, shortened to its limits; the flux part is relative and linear."""
    n_band = problem.n_band
    moved = latent.copy()
    factor = np.clip(1 + step[:, :n_band], constants.MIN_FLUX_FACTOR, constants.MAX_FLUX_FACTOR)
    moved[:, :n_band] = np.maximum(latent[:, :n_band] + np.log(factor), floor)
    offset = step[:, n_band : n_band + 2]
    moved[:, n_band : n_band + 2] += np.clip(offset, -constants.MAX_OFFSET_STEP, constants.MAX_OFFSET_STEP)
    _hold_offset(problem, moved)
    shape = step[:, n_band + 2 :]
    length = np.sqrt((shape**2).sum(1, keepdims=True))
    moved[:, n_band + 2 :] += shape * np.minimum(1.0, constants.MAX_SHAPE_STEP / np.maximum(length, 1e-12))
    return moved


def _hold_offset(problem: Problem, latent: DoubleArray) -> None:
    """Keep offsets within `constants.MAX_DRIFT` of the caller's centre, in place."""
    offset = latent[:, problem.n_band : problem.n_band + 2]
    np.clip(offset, problem.offset0 - constants.MAX_DRIFT, problem.offset0 + constants.MAX_DRIFT, out=offset)


def _choose(problem: Problem, better: NDArray[np.bool_], trial: State, state: State) -> State:
    """The trial where it is better, the old state elsewhere."""
    if better.all():
        return trial

    def pick(a: NDArray, b: NDArray) -> NDArray:
        return np.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    jacobian = type(state.jacobian)(*(pick(a, b) for a, b in zip(trial.jacobian, state.jacobian, strict=True)))
    coefficients = pick(trial.coefficients, state.coefficients)
    n = np.bincount(problem.scene, minlength=len(problem.data))
    n_better = np.bincount(problem.scene, weights=better, minlength=len(n)).astype(np.int64)
    model = [new if k else old for new, old, k in zip(trial.model, state.model, n_better.tolist(), strict=True)]
    mixed = np.flatnonzero((n_better > 0) & (n_better < n))
    for s, canvas in zip(mixed.tolist(), objective.render(problem, coefficients, mixed), strict=True):
        model[s] = canvas
    return State(pick(trial.latent, state.latent), jacobian, coefficients, model,
                 pick(trial.log_prior, state.log_prior), pick(trial.prior_gradient, state.prior_gradient))
