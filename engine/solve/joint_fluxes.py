r"""Joint linear fluxes: forced photometry of all sources of a blend with known shapes.

With u_i[b] the unit-flux image of source i in band b and r = y - m the residual of the present fluxes F,

    A_ij = sum_p w u_i u_j,    (A dF)_i = sum_p w u_i r,    F <- F + dF,    covariance A^-1

in every band. Fluxes are signed, and unbiased given the shapes. A sweep solves each blend with the present fluxes of
the other blends subtracted. A few sweeps make the fluxes joint over a scene.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import drawing
from deblendrt.engine.compute.problem import Canvases, Problem, where_measured
from deblendrt.engine.solve import constants, objective
from deblendrt.engine.units import DoubleArray, FloatArray


def blend_rows(problem: Problem) -> Iterator[list[NDArray[np.int64]]]:
    """Yield lists of blends, each blend as the rows of its sources; a list fills a tile of products."""
    order = np.argsort(problem.blend, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(problem.blend, minlength=problem.n_blend))[:-1])
    chunk: list[NDArray[np.int64]] = []
    for rows in members:
        chunk.append(rows)
        if sum(map(len, chunk)) >= drawing.TILE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def normal_matrices(problem: Problem, unit: FloatArray,
                    weights: Canvases) -> list[tuple[NDArray[np.int64], DoubleArray]]:
    """Compute A of every blend.

    Parameters
    ----------
    problem : Problem
    unit : float32 (n_source, n_band, n_basis)
        Coefficients at unit flux.
    weights : list of float32 (n_used, n_y, n_x)

    Returns
    -------
    list of (rows, float64 (n_band, n_member, n_member))
    """
    result = []
    for chunk in blend_rows(problem):
        every = np.concatenate(chunk)
        shape = [problem.data[s].shape for s in problem.scene[every]]
        images = drawing.placed(problem.used(unit[every]), problem.folded.take(every), problem.corner[every],
                            problem.extent[every], shape, problem.folded.half)
        for rows in chunk:
            stamps = list(itertools.islice(images, len(rows)))
            weight = weights[problem.scene[rows[0]]]
            matrix = np.zeros((len(weight), len(rows), len(rows)))
            for i, stamp in enumerate(stamps):
                weighted = stamp._replace(image=stamp.image * stamp.cut(weight))
                for j in range(i, len(rows)):
                    both = weighted.common(stamps[j])
                    if both is not None:
                        product = both[0] * both[1]
                        matrix[:, i, j] = matrix[:, j, i] = product.sum((1, 2), dtype=np.float64)
            result.append((rows, problem.spread(matrix[None])[0]))
    return result


def linear_fluxes(problem: Problem, unit: FloatArray, flux: DoubleArray, *, n_sweep: int,
                  error: float | None = None) -> tuple[DoubleArray, DoubleArray]:
    """Solve for the fluxes of all sources with given shapes.

    Parameters
    ----------
    problem : Problem
    unit : float32 (n_source, n_band, n_basis)
        Coefficients at unit flux.
    flux : float64 (n_source, n_band) [nJy]
        Fluxes at the start; may be zeros.
    n_sweep : int
    error : float, optional
        Relative error of the model of the given fluxes: the weights are robust around that model. Default: the weights
        are the plain inverse variance.

    Returns
    -------
    flux : float64 (n_source, n_band) [nJy]
        Zero where a band has no weight.
    sigma : float64 (n_source, n_band) [nJy]
        Marginal standard deviation; infinite where a band has no weight.
    """
    if problem.device is not None:
        from deblendrt.engine.compute.cuda import fluxes

        with problem.device.loaded(problem) as buffers:
            return fluxes.linear_fluxes(buffers, unit, flux, n_sweep, error, clip=constants.CLIP,
                                        ridge=constants.FLUX_RIDGE)
    problem = where_measured(problem)
    sigma = np.full(flux.shape, np.inf)
    matrices: list[tuple[NDArray[np.int64], DoubleArray]] = []
    weights: Canvases = []
    for _ in range(n_sweep):
        model = objective.render(problem, (flux[:, :, None] * unit).astype(np.float32))
        if not matrices:
            weights = problem.weight
            if error is not None:
                likely = objective.likelihood(problem, model, error=error)
                weights, _ = objective.weighted_residual(problem, likely, model)
            matrices = normal_matrices(problem, unit, weights)
        residual = [w * (y - m) for w, y, m in zip(weights, problem.data, model, strict=True)]
        rhs = (unit.astype(np.float64) * objective.project(problem, residual)).sum(2)
        flux = flux.copy()
        for rows, matrix in matrices:
            diagonal = matrix.diagonal(axis1=1, axis2=2)
            known = diagonal > 0
            scale = np.where(known, 1 / np.sqrt(np.where(known, diagonal, 1.0)), 0.0)
            scaled = matrix * scale[:, :, None] * scale[:, None, :] + constants.FLUX_RIDGE * np.eye(len(rows))
            scaled += np.where(known, 0.0, 1.0)[:, :, None] * np.eye(len(rows))
            inverse = np.linalg.inv(scaled)
            step = (inverse @ (scale * rhs[rows].T)[:, :, None])[:, :, 0] * scale
            flux[rows] += step.T
            variance = inverse.diagonal(axis1=1, axis2=2) * scale**2
            sigma[rows] = np.where(known, np.sqrt(np.maximum(variance, 0)), np.inf).T
    return flux, sigma
