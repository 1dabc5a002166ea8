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

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import canvases, decoding, drawing
from deblendrt.engine.compute.problem import Problem, State, where_measured
from deblendrt.engine.solve import joint_fluxes
from deblendrt.engine.solve.curvature import assembled, by_latent, columns
from deblendrt.engine.solve.descent import Solution
from deblendrt.engine.solve.joint_step import inner_products
from deblendrt.engine.units import DoubleArray, FloatArray

# Step of the shape latents for central differences, about the width of a posterior. Pulls on simulated blends are the
# same from 0.05 to 1.
PRIOR_STEP = 0.3
COVARIANCE_RIDGE = 3e-6  # of the unit diagonal: blocks are summed in float32


@dataclasses.dataclass(frozen=True)
class BlendCovariance:
    """Posterior covariance of one blend.

    Attributes
    ----------
    rows : int64 (n_member,)
        Sources of the blend.
    matrix : float64 (n_member, n_latent, n_member, n_latent)
        Covariance of fluxes (nJy), offset (pixel) and shape. Fluxes of bands without weight have variance one.
    """

    rows: NDArray[np.int64]
    matrix: DoubleArray

    def own(self, member: int) -> DoubleArray:
        """Return a source's covariance, its neighbours marginalised, float64 (n_latent, n_latent)."""
        return self.matrix[member, :, member]


def laplace(problem: Problem, solution: Solution) -> Iterator[BlendCovariance]:
    """Yield the covariances of all blends.

    Parameters
    ----------
    problem : Problem
    solution : Solution

    Yields
    ------
    BlendCovariance
    """
    unit = unit_columns(solution.state)
    prior = prior_precision(problem, solution.state.latent)
    for rows, precision in likelihood_precisions(problem, solution, unit):
        member = np.arange(len(rows))
        precision[member, :, member] += prior[rows]
        n = len(rows) * precision.shape[1]
        flat = precision.reshape(n, n)
        scale = 1 / np.sqrt(flat.diagonal())
        scaled = flat * scale[:, None] * scale
        covariance = np.linalg.inv(scaled + COVARIANCE_RIDGE * np.eye(n)) * scale[:, None] * scale
        yield BlendCovariance(rows, (0.5 * (covariance + covariance.T)).reshape(precision.shape))


def unit_columns(state: State) -> FloatArray:
    """Compute the derivatives of every band's coefficients by flux, offset and shape.

    Returns
    -------
    float32 (n_source, n_band, 1 + 2 + n_shape, n_basis)
    """
    result = columns(state)
    n_band = state.coefficients.shape[1]
    result[:, :, 0] /= np.exp(state.latent[:, :n_band]).astype(np.float32)[:, :, None]
    return result


def prior_precision(problem: Problem, latent: DoubleArray) -> DoubleArray:
    """Compute the curvature P of the priors; it is one for the fluxes of bands without weight.

    Parameters
    ----------
    problem : Problem
    latent : float64 (n_source, n_latent)

    Returns
    -------
    float64 (n_source, n_latent, n_latent)
    """
    n_band, n = problem.n_band, len(latent)
    shape = slice(n_band + 2, latent.shape[1])
    hessian = np.empty((n, latent.shape[1], latent.shape[1] - n_band - 2))
    for k in range(hessian.shape[2]):
        step = np.zeros(latent.shape[1])
        step[n_band + 2 + k] = PRIOR_STEP
        ahead, back = (decoding.log_prior(problem, latent + sign * step)[1] for sign in (1, -1))
        hessian[:, :, k] = (back - ahead) / (2 * PRIOR_STEP)
    curvature = hessian[:, shape]
    values, vectors = np.linalg.eigh(0.5 * (curvature + curvature.transpose(0, 2, 1)))
    block = np.zeros((n, latent.shape[1], latent.shape[1]))
    block[:, shape, shape] = (vectors * np.maximum(values, 0.0)[:, None, :]) @ vectors.transpose(0, 2, 1)
    block[:, [n_band, n_band + 1], [n_band, n_band + 1]] = problem.center_sigma**-2
    band = np.arange(n_band)
    block[:, band, band] = np.where(problem.measured, 0.0, 1.0)
    return block


def likelihood_precisions(problem: Problem, solution: Solution,
                          unit: FloatArray) -> Iterator[tuple[NDArray[np.int64], DoubleArray]]:
    """Yield the sources of every blend and D' W D of the blend, see `likelihood_precision`."""
    if problem.device is not None:
        from deblendrt.engine.measure import device_precision

        with problem.device.loaded(problem) as buffers:
            precisions = list(device_precision.likelihood_precisions(buffers, solution.weights, unit))
        yield from precisions
        return
    measured = where_measured(problem)
    weights = solution.weights if measured.bands is None else [w[measured.bands] for w in solution.weights]
    for chunk in joint_fluxes.blend_rows(problem):
        drawn = derivative_images(measured, measured.used(unit), np.concatenate(chunk))
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


def derivative_images(problem: Problem, unit: FloatArray, rows: NDArray[np.int64]) -> dict[int, canvases.Placed]:
    """Draw the derivatives of the model image by each source's parameters, where there may be weight.

    Parameters
    ----------
    problem : Problem
    unit : float32 (n_source, n_used, n_column, n_basis)
        See `unit_columns`.
    rows : int64 (n_member,)
        Sources.

    Returns
    -------
    dict of int to Placed
        Images (n_used, n_column, height, width) by the number of the source.
    """
    drawn: dict[int, canvases.Placed] = {}
    extent = problem.extent[rows]
    first = drawing.corners(problem.folded, problem.corner[rows], extent)
    for members, basis in problem.folded.take(rows).groups(len(rows)):
        for k in np.unique(extent[members]).tolist():
            here = members[extent[members] == k]
            n_band, n_column = unit.shape[1:3]
            # every column is drawn as if it were a source
            lines = unit[rows[here]].transpose(0, 2, 1, 3).reshape(-1, n_band, unit.shape[3])
            images = drawing.window_stamps(lines, basis.at(k))
            images = images.reshape(len(here), n_column, n_band, *images.shape[2:]).swapaxes(1, 2)
            cells = drawing.outskirts_cells(lines, basis).reshape(len(here), n_column, n_band, -1).swapaxes(
                1, 2) if k > 0 else [None] * len(here)
            for i, image, outer, (x, y) in zip(rows[here].tolist(), images, cells, first[here].tolist(), strict=True):
                shape = problem.data[problem.scene[i]].shape
                drawn[i] = canvases.place(image, x, y, shape) if outer is None else canvases.on_canvas(
                    image, outer, basis, x, y, shape, problem.folded.half)
    return drawn


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
