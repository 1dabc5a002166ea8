"""What is recorded of a solved problem: photometry, quality of the fit, flags."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine import objective, photometry
from deblendrt.engine.bundle import Bundle
from deblendrt.engine.flags import Flag
from deblendrt.engine.objective import DoubleArray, FloatArray, Problem
from deblendrt.engine.result import DeblendResult
from deblendrt.engine.solver import Solution

SWEEPS = 2  # of the last joint linear solve, which starts at the MAP fluxes
CORE_RADIUS = 7.0  # pixel: chi2 of a source is taken over the pixels it owns within this radius
POOR_FIT_SIGMA, POOR_FIT_RATIO = 5.0, 1.2  # chi2 / n beyond 1 + 5 sqrt(2 / n), and beyond 1.2
CONVERGED = 1.0  # expected decrease of the objective: then no direction is off by more than 1.4 sigma
UNMODELLED_PIXELS = 8  # core pixels that lost more than half of their weight


def record(result: DeblendResult, members: list[int], rows: list[NDArray[np.int64]], problem: Problem,
           solution: Solution) -> None:
    """Write the rows of a solved problem into a result.

    Parameters
    ----------
    result : DeblendResult
        Changed in place.
    members : list of int
        Scenes of the problem.
    rows : list of int64 (n_fitted,)
        Per scene, which of its sources are in the problem.
    problem : Problem
    solution : Solution
    """
    state, n_band, bundle = solution.state, problem.n_band, problem.bundle
    row = np.concatenate([result.source_start[i] + r for i, r in zip(members, rows, strict=True)])
    map_flux = np.exp(state.latent[:, :n_band])
    unit = state.jacobian.mix.transpose(0, 2, 1) @ state.jacobian.maps
    flux, sigma = photometry.linear_fluxes(problem, unit, map_flux, n_sweep=SWEEPS,
                                           error=objective.MODEL_ERROR if problem.robust else None)
    result.latent[row] = state.latent
    result.position[row] = result.anchor[row] + state.latent[:, n_band : n_band + 2]
    result.map_flux[row] = map_flux
    result.flux[row] = np.where(problem.measured, flux, np.nan)
    result.flux_err[row] = np.where(problem.measured, sigma, np.nan)
    result.log_prior[row] = problem.runtime.log_prior(state.latent)[0]
    result.coefficients[row] = state.coefficients
    result.enclosed[row] = enclosed_fraction(problem, unit)
    chi2, n_pixel, n_lost = core_statistics(problem, solution)
    result.chi2[row], result.n_pixel[row] = chi2, n_pixel
    for s, i in enumerate(members):
        result.scene_chi2[i] = _chi2_image(problem, solution, s).sum(dtype=np.float64)
        result.objective[i] = solution.objective[s]
    count = np.maximum(n_pixel, 1)
    poor = (chi2 / count > 1 + POOR_FIT_SIGMA * np.sqrt(2 / count)) & (chi2 / count > POOR_FIT_RATIO)
    conditions = {
        Flag.POOR_FIT: poor,
        Flag.UNMODELLED_FLUX: n_lost >= UNMODELLED_PIXELS,
        Flag.NOT_CONVERGED: solution.expected_decrease > CONVERGED,
        Flag.PRIOR_OUTLIER: result.log_prior[row] < bundle.log_prob_percentiles["0.1"],
        Flag.OUTSIDE_PRIOR_FLUX: outside_population(bundle, map_flux),
    }
    for flag, condition in conditions.items():
        result.flags[row] |= np.where(condition, int(flag), 0)


def enclosed_fraction(problem: Problem, unit: FloatArray) -> DoubleArray:
    """Fraction of each source's flux inside its window and on the image, float64 (n_source, n_band)."""
    half = problem.folded.half
    on_image = []
    for d in problem.data:
        inside = np.zeros_like(d)
        inside[:, half : d.shape[1] - half, half : d.shape[2] - half] = 1
        on_image.append(inside)
    return (unit.astype(np.float64) * objective.project(problem, on_image)).sum(2)


def core_statistics(problem: Problem, solution: Solution) -> tuple[DoubleArray, NDArray[np.int64], NDArray[np.int64]]:
    """chi2 of the pixels that each source owns within `CORE_RADIUS`.

    Returns
    -------
    chi2 : float64 (n_source,)
        All bands, full weights.
    n_pixel : int64 (n_source,)
        Pixels with weight, all bands.
    n_lost : int64 (n_source,)
        Pixels where the robust bound took more than half of the weight in some band.
    """
    chi2, n_pixel, n_lost = [], [], []
    for s in range(len(problem.data)):
        here = np.flatnonzero(problem.scene == s)
        owner = _core_owner(problem, s, here)
        inside = owner >= 0
        lost = np.asarray((solution.weights[s] < 0.5 * problem.weight[s]).any(0))
        weighted = (problem.weight[s] > 0).sum(0)

        def total(image: NDArray, owner: NDArray = owner, inside: NDArray = inside, n: int = len(here)) -> NDArray:
            return np.bincount(owner[inside], weights=image[inside], minlength=n)

        chi2.append(total(_chi2_image(problem, solution, s)))
        n_pixel.append(total(weighted))
        n_lost.append(total(lost))
    return (np.concatenate(chi2), np.concatenate(n_pixel).astype(np.int64), np.concatenate(n_lost).astype(np.int64))


def _chi2_image(problem: Problem, solution: Solution, s: int) -> DoubleArray:
    """chi2 per pixel of a scene, summed over bands."""
    t2 = problem.weight[s] * (problem.data[s] - solution.state.model[s]) ** 2
    return t2.sum(0, dtype=np.float64)


def _core_owner(problem: Problem, s: int, here: NDArray[np.int64]) -> NDArray[np.int32]:
    """Owner of each pixel of a scene within `CORE_RADIUS` of its owner's centre, else -1."""
    owner = problem.partition[s].owner
    x, y = (problem.corner[here] + problem.folded.half + problem.offset0[here]).T
    iy, ix = np.nonzero(owner >= 0)
    own = owner[iy, ix]
    near = (iy - y[own]) ** 2 + (ix - x[own]) ** 2 <= CORE_RADIUS**2
    core = np.full(owner.shape, -1, np.int32)
    core[iy[near], ix[near]] = own[near]
    return core


def outside_population(bundle: Bundle, map_flux: DoubleArray) -> NDArray[np.bool_]:
    """Whether the reference magnitude lies outside the training population's range, bool (n_source,)."""
    magnitude = 31.4 - 2.5 * np.log10(map_flux[:, bundle.reference_index])
    limits = bundle.training["population"]
    return np.asarray((magnitude < limits["magnitude_min"]) | (magnitude > limits["magnitude_max"]))
