r"""The descent to the MAP solution, in a bounded number of iterations.

Gauss-Newton is the default. An iteration (`descend`) takes these steps for all blends at once:

    weigh      robust weights W, weighted residual W (y - m), L of every blend     `objective.weigh`
    project    inner products of the weighted residual with the folded basis       `objective.project`
    pull       minus the gradient of L by the latents, -dL/dZ                      `objective.pull`
    step       (J' Phi W Phi' J + P + lambda D) step = -dL/dZ                      `newton_step`
    move       the step, shortened to its limits: the trial                        `move`
    draw       the trial's model image, prior and derivatives                      `objective.evaluate`
    accept     the trial replaces the state of every blend whose L fell            `accept`

J is the derivative of the coefficients by the latents, Phi the folded basis, P the curvature of the prior (a secant
estimate) and D the diagonal of the matrix. Fluxes step linearly, F <- F (1 + d). lambda grows where L falls by less
than expected (`damped`). A rejected step counts as an iteration.

Some blends still move after these iterations, mostly blends of bright galaxies. They go on without the others
(`further_rounds`), with the damping and the curvature that they have reached.

The other solver is `adam`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.problem import Canvases, Problem, State, where_measured
from deblendrt.engine.solve import constants, objective
from deblendrt.engine.solve.adam import adam
from deblendrt.engine.solve.curvature import columns, extents, outskirts, rim_weight
from deblendrt.engine.solve.further_rounds import Progress, in_rounds
from deblendrt.engine.solve.joint_step import joint_step
from deblendrt.engine.solve.prior import prior_curvature, secant
from deblendrt.engine.units import DoubleArray


@dataclasses.dataclass(frozen=True)
class Solution:
    """The state where a solver stopped.

    Attributes
    ----------
    problem : Problem
        The problem with the windows (`extent`) that the solver chose.
    state : State
    downhill : float64 (n_source, n_latent)
        Minus the gradient of L, its flux part relative.
    weights, residual : list of float32 (n_band, n_y, n_x)
        Robust weights W, and W (y - m).
    objective : float64 (n_scene,)
        L of every scene.
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
        Iterations of all blends. Gauss-Newton adds iterations for blends that still move.

    Returns
    -------
    Solution
    """
    if problem.device is not None:
        from deblendrt.engine.solve import device_descent

        with problem.device.loaded(problem) as buffers:
            extent, state, downhill, weights, residual = device_descent.solve(buffers, latent, floor, solver,
                                                                              n_iteration)
        problem = dataclasses.replace(problem, extent=extent)
        likely = objective.likelihood(problem, state.model)
        return Solution(problem, state, downhill, weights, residual, objective.by_scene(problem, likely, state))
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
    """Run damped Gauss-Newton with its further rounds; parameters as in `solve`."""
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
    """Take damped Gauss-Newton steps, one for each tau.

    Parameters
    ----------
    problem : Problem
    latent : float64 (n_source, n_latent)
    floor : float64 (n_source, n_band) [ln nJy]
    tempers : list of float
        tau of every iteration, see `objective.temper`; falls to 0.
    first_damping : float64 (n_source,), optional
        lambda at the start, equal for all sources of a blend.
    curvature : float64 (n_source, n_latent, n_latent), optional
        Curvature of the prior at the start; default `prior_curvature`.

    Returns
    -------
    problem : Problem
    state : State
    progress : Progress
    """
    state = objective.evaluate(problem, latent)
    damping: DoubleArray = np.full(problem.n_blend, constants.FIRST_DAMPING)
    expected: DoubleArray = np.zeros(problem.n_blend)
    if first_damping is not None:
        damping[problem.blend] = first_damping
    curvature = prior_curvature(problem) if curvature is None else curvature
    for before, tau in zip([tempers[0] if tempers else 0.0, *tempers], tempers, strict=False):
        if before > tau == 0.0:  # the shapes are known from here on
            problem, state = extend(problem, state)
        likely = objective.likelihood(problem, state.model, temper=tau)
        weights, residual, loss = objective.weigh(problem, likely, state)
        downhill = objective.pull(state, objective.project(problem, residual)) + state.prior_gradient
        step = newton_step(problem, state, weights, downhill, damping[problem.blend], curvature)
        trial = objective.evaluate(problem, move(problem, state.latent, step, floor))
        decrease = loss - objective.by_blend(problem, likely, trial)
        expected = np.bincount(problem.blend, 0.5 * (downhill * step).sum(1), problem.n_blend).astype(float)
        damping = damped(damping, decrease, expected)
        curvature = secant(curvature, trial.latent - state.latent, state.prior_gradient - trial.prior_gradient)
        state = accept(problem, (decrease > 0)[problem.blend], trial, state)
    return problem, state, Progress(state.latent, extents(problem, state.coefficients), expected, damping, curvature)


def extend(problem: Problem, state: State) -> tuple[Problem, State]:
    """Choose the sources' windows anew, by their present light."""
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
        lambda.
    curvature : float64 (n_source, n_latent, n_latent)
        Curvature of the prior.

    Returns
    -------
    float64 (n_source, n_latent)
    """
    by_coefficient = problem.used(columns(state))
    alone = curvature + outskirts(problem, by_coefficient, rim_weight(problem, weights))
    step = joint_step(problem, by_coefficient, weights, downhill, alone, damping)
    return _alike(np.column_stack([problem.blend, problem.corner, state.latent]), step)


def _alike(source: DoubleArray, step: DoubleArray) -> DoubleArray:
    """Give identical sources of a blend the mean of their steps: rounding errors would drive them apart."""
    _, number, count = np.unique(source, axis=0, return_inverse=True, return_counts=True)
    if (count == 1).all():
        return step
    total = np.zeros((len(count), step.shape[1]))
    np.add.at(total, number.ravel(), step)
    return total[number.ravel()] / count[number.ravel()][:, None]


def move(problem: Problem, latent: DoubleArray, step: DoubleArray, floor: DoubleArray) -> DoubleArray:
    """Return the latents after a step, shortened to its limits. The flux part of the step is relative and linear."""
    n_band = problem.n_band
    moved = latent.copy()
    factor = np.clip(1 + step[:, :n_band], constants.MIN_FLUX_FACTOR, constants.MAX_FLUX_FACTOR)
    moved[:, :n_band] = np.maximum(latent[:, :n_band] + np.log(factor), floor)
    offset = moved[:, n_band : n_band + 2]
    offset += np.clip(step[:, n_band : n_band + 2], -constants.MAX_OFFSET_STEP, constants.MAX_OFFSET_STEP)
    np.clip(offset, problem.offset0 - constants.MAX_DRIFT, problem.offset0 + constants.MAX_DRIFT, out=offset)
    shape = step[:, n_band + 2 :]
    length = np.sqrt((shape**2).sum(1, keepdims=True))
    moved[:, n_band + 2 :] += shape * np.minimum(1.0, constants.MAX_SHAPE_STEP / np.maximum(length, 1e-12))
    return moved


def damped(damping: DoubleArray, decrease: DoubleArray, expected: DoubleArray) -> DoubleArray:
    """Choose the next damping from the decrease of L and the decrease that the step promised.

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


def accept(problem: Problem, better: NDArray[np.bool_], trial: State, state: State) -> State:
    """Replace the state by the trial for the sources of blends whose L fell.

    Parameters
    ----------
    problem : Problem
    better : bool (n_source,)
    trial, state : State

    Returns
    -------
    State
    """
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
