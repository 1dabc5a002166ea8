r"""Uncertainties: the Laplace approximation of the posterior around the MAP solution, blend by blend.

With D the derivatives of the model image by every source's fluxes, offset and shape, W the weights and P the curvature
of the priors on offset and shape,

    covariance = (D' W D + P)^-1

over all sources of a blend at once, with exact pixel weights. It has cross blocks between neighbours and between bands.
The errors of the fluxes include the uncertainty of the shapes; with shapes held fixed they would be 1.5 times too
small. The reported fluxes come from linear solves without a prior (`joint_fluxes`), so P has no flux part.

The shape part of P is the curvature of -log p under the flow at the solution, by central differences of the exported
gradient. Directions of negative curvature count as flat. The errors are calibrated in simulations
(`perf/results/accuracy.md`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import canvases
from deblendrt.engine.compute.problem import Problem, where_measured
from deblendrt.engine.solve import joint_fluxes
from deblendrt.engine.solve.curvature import assembled, by_latent, covariance_of, derivative_images, unit_columns
from deblendrt.engine.solve.descent import Solution
from deblendrt.engine.solve.detail import BlendCovariance
from deblendrt.engine.solve.joint_step import inner_products
from deblendrt.engine.solve.prior import prior_precision
from deblendrt.engine.units import DoubleArray, FloatArray


def laplace(problem: Problem, solution: Solution,
            chosen: NDArray[np.bool_] | None = None) -> Iterator[BlendCovariance]:
    """Yield the covariances of blends.

    Parameters
    ----------
    problem : Problem
    solution : Solution
    chosen : bool (n_source,), optional
        Sources of the blends; default: all.

    Yields
    ------
    BlendCovariance
    """
    chosen = np.ones(len(problem.scene), bool) if chosen is None else chosen
    if not chosen.any():
        return
    unit = unit_columns(solution.state)
    prior = prior_precision(problem, solution.state.latent)
    for rows, precision in likelihood_precisions(problem, solution, unit, chosen):
        member = np.arange(len(rows))
        precision[member, :, member] += prior[rows]
        n = len(rows) * precision.shape[1]
        yield BlendCovariance(rows, covariance_of(precision.reshape(1, n, n)).reshape(precision.shape))


def likelihood_precisions(problem: Problem, solution: Solution,
                          unit: FloatArray,
                          chosen: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.int64], DoubleArray]]:
    """Yield the sources of every chosen blend and D' W D of the blend, see `likelihood_precision`."""
    if problem.device is not None:
        from deblendrt.engine.measure import device_precision

        with problem.device.loaded(problem) as buffers:
            precisions = list(device_precision.likelihood_precisions(buffers, solution.weights, unit))
        yield from precisions
        return
    measured = where_measured(problem)
    weights = solution.weights if measured.bands is None else [w[measured.bands] for w in solution.weights]
    for chunk in joint_fluxes.blend_rows(problem):
        chunk = [rows for rows in chunk if chosen[rows[0]]]
        if not chunk:
            continue
        every = np.concatenate(chunk)
        drawn = derivative_images(measured, measured.used(unit[every]), every)
        for rows in chunk:
            yield rows, likelihood_precision(measured, weights[measured.scene[rows[0]]], drawn, rows)


def likelihood_precision(problem: Problem, weight: FloatArray, drawn: dict[int, canvases.Placed],
                         rows: NDArray[np.int64]) -> DoubleArray:
    """Compute D' W D of a blend.

    Parameters
    ----------
    problem : Problem
    weight : float32 (n_used, n_y, n_x)
        Robust weights W of the blend's scene.
    drawn : dict of int to Placed
        Derivative images of the blend's sources, (n_used, n_column, height, width).
    rows : int64 (n_member,)

    Returns
    -------
    float64 (n_member, n_latent, n_member, n_latent)
    """
    pairs, inner = [], []
    for i, j, product in inner_products(rows, drawn, weight):
        pairs.append((i, j))
        inner.append(product)
    return assembled(rows, np.array(pairs), by_latent(problem.spread(np.array(inner, np.float64))))


def remaining_step(covariance: BlendCovariance, downhill: DoubleArray, n_band: int) -> DoubleArray:
    """Compute half the squared distance of each source of a blend from the minimum, in units of its errors.

    Only positions and shapes count. The reported fluxes are solved for at the end, and a negative flux stays below the
    floor of the descent.

    Parameters
    ----------
    covariance : BlendCovariance
    downhill : float64 (n_member, n_latent)
        Minus the gradient of L; its flux part is the derivative by flux.
    n_band : int

    Returns
    -------
    float64 (n_member,)
        For a source alone in its blend: the decrease of L that a Newton step of its position and shape promises.
    """
    step = np.einsum("aibj,bj->ai", covariance.matrix, downhill, optimize=False)[:, n_band:]
    return np.array([0.5 * s @ np.linalg.solve(covariance.own(a)[n_band:, n_band:], s) for a, s in enumerate(step)])
