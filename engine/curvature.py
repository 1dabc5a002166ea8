"""The curvature of the objective by single sources: no pixels involved.

With J the derivatives of a source's coefficients, G_b the Gram matrix of the folded basis and wbar_b the mean weight
under the source, its Gauss-Newton block is H = sum_b wbar_b J_b' G_b J_b + P, P the prior's curvature. The solver
preconditions with it and steps with it where a source is alone; errors use exact weights, see `uncertainty`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine import ops
from deblendrt.engine.objective import Canvases, DoubleArray, FloatArray, Problem, State

EXTENDED = 0.3  # pulls in scenes with a large galaxy are a third wider at 1


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
    for members, basis in problem.folded.groups(len(rows)):
        wide = problem.extended[members]
        for chosen, gram in ((members[~wide], basis.gram), (members[wide], basis.full_gram)):
            if len(chosen):
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
    block[:, n_band + 2 :, n_band + 2 :] = np.where(problem.star[:, None, None], np.eye(len(shape)), shape)
    block[:, [n_band, n_band + 1], [n_band, n_band + 1]] = problem.center_sigma**-2
    band = np.arange(n_band)
    missing = 1 / (np.asarray(problem.bundle.color_sigma) + 0.1) ** 2
    # 1e-3 (30 in ln flux) keeps the block of a flux at its floor regular
    block[:, band, band] = np.where(problem.measured, 1e-3, missing)
    # a missing band follows the mean of the measured ones, see `objective.missing_color`
    n_measured = np.maximum(problem.measured.sum(1), 1)[:, None]
    pulled = np.where(problem.measured, 0.0, missing)
    through = problem.measured / n_measured
    cross = pulled[:, :, None] * through[:, None, :]
    block[:, :n_band, :n_band] += (pulled.sum(1)[:, None, None] * through[:, :, None] * through[:, None, :]
                                   - cross - cross.transpose(0, 2, 1))
    return block


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
    expected = apply_blocks(curvature, step)
    before, after = (step * expected).sum(1), (step * change).sum(1)
    good = (after > 0.1 * before) & (after < 100 * before) & (before > 1e-10)
    removed = expected[:, :, None] * expected[:, None, :] / np.where(good, before, 1.0)[:, None, None]
    added = change[:, :, None] * change[:, None, :] / np.where(good, after, 1.0)[:, None, None]
    return np.where(good[:, None, None], curvature - removed + added, curvature)


def mean_weight(problem: Problem, weights: Canvases) -> DoubleArray:
    """Mean weight under a source, float64 (n_source, n_band): weighted by the square of the mean galaxy's image."""
    window = problem.folded.window
    result = np.empty((len(problem.scene), problem.n_band))
    for (members, _), profile in zip(problem.folded.groups(len(result)), problem.profile, strict=True):
        for i in members:
            s, (x, y) = problem.scene[i], problem.corner[i]
            result[i] = (weights[s][:, y : y + window, x : x + window] * profile).sum((1, 2))
    return result


def extended_sources(problem: Problem, coefficients: FloatArray) -> NDArray[np.bool_]:
    """Whose light outside the window has a signal to noise of `EXTENDED`, all bands together, bool (n_source,)."""
    weight = mean_weight(problem, problem.weight)
    square = np.empty(weight.shape)
    for rows, _, basis in ops.runs(problem.folded, len(coefficients)):
        outside = (basis.full_gram - basis.gram).astype(np.float32)
        square[rows] = (ops.product(coefficients[rows], outside) * coefficients[rows]).sum(2, dtype=np.float64)
    return np.asarray((weight * square).sum(1) > EXTENDED**2)


def apply_blocks(block: DoubleArray, v: DoubleArray) -> DoubleArray:
    """Product of each source's block with its vector, float64 (n_source, m)."""
    return (block @ v[:, :, None])[:, :, 0]


def inverse(block: DoubleArray) -> DoubleArray:
    """Inverse of symmetric positive blocks, scaled to unit diagonal first."""
    scale = 1 / np.sqrt(block.diagonal(axis1=1, axis2=2))
    scaled = block * scale[:, :, None] * scale[:, None, :]
    # 1e-6 of ridge: the blocks were summed in float32
    scaled += 1e-6 * np.eye(block.shape[1])
    return np.linalg.inv(scaled) * scale[:, :, None] * scale[:, None, :]
