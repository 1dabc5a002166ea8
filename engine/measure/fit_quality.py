"""The quality of a fit: chi2 of every source's own pixels, enclosed light, flags."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.problem import DoubleArray, FloatArray, Problem
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.result.rows import Rows
from deblendrt.engine.scene.flags import SUSPECT, Flag
from deblendrt.engine.solve import objective
from deblendrt.engine.solve.descent import Solution
from deblendrt.engine.units import to_magnitude

CORE_RADIUS = 7.0  # pixel: a source's chi2 counts the pixels that it owns within this radius
POOR_FIT_SIGMA, POOR_FIT_RATIO = 5.0, 1.2  # a fit is poor if chi2 / n is above 1 + 5 sqrt(2 / n) and above 1.2
MISFIT_SIGMA = 5.0  # a fit is poor above this `systematic_error.Misfit.significance`; sensitive for bright galaxies
CONVERGED = 0.5  # least expected decrease of the objective that is flagged; below it no parameter is off by its error
UNMODELLED_PIXELS = 8  # least number of core pixels without more than half of their weight that is flagged


def flag(rows: Rows, row: NDArray[np.int64], bundle: Bundle, n_lost: NDArray[np.int64], moving: NDArray[np.bool_],
         misfit: DoubleArray) -> None:
    """Set the flags that follow from the fit. All other quantities of the rows are written already.

    Parameters
    ----------
    rows : Rows
        Written in place.
    row : int64 (n_source,)
    bundle : Bundle
    n_lost : int64 (n_source,)
        See `core_statistics`.
    moving : bool (n_source,)
        Whether position or shape would still move.
    misfit : float64 (n_source,)
        Significance, see `systematic_error.misfit`.
    """
    count = np.maximum(rows.n_pixel[row], 1)
    reduced = rows.chi2[row] / count
    conditions = {
        Flag.POOR_FIT: ((reduced > 1 + POOR_FIT_SIGMA * np.sqrt(2 / count)) & (reduced > POOR_FIT_RATIO)
                        | (misfit > MISFIT_SIGMA)),
        Flag.UNMODELLED_FLUX: n_lost >= UNMODELLED_PIXELS,
        Flag.NOT_CONVERGED: moving,
        Flag.PRIOR_OUTLIER: rows.log_prior[row] < bundle.log_prob_percentiles["0.1"],
        Flag.OUTSIDE_PRIOR_FLUX: outside_population(bundle, rows.map_flux[row]) & ~rows.star[row],
    }
    for name, condition in conditions.items():
        rows.flag(row, name, condition)
    suspect = (rows.flags[row] & SUSPECT) > 0
    _, blend = np.unique(rows.blend[row], return_inverse=True)
    rows.flag(row, Flag.NEIGHBOUR_SUSPECT, np.bincount(blend, weights=suspect)[blend] > suspect)


def enclosed_fraction(problem: Problem, unit: FloatArray) -> DoubleArray:
    """Compute the fraction of each source's flux in its window and on the image, float64 (n_source, n_band)."""
    half = problem.folded.half
    on_image = []
    for d in problem.data:
        inside = np.zeros_like(d)
        inside[:, half : d.shape[1] - half, half : d.shape[2] - half] = 1
        on_image.append(inside)
    return (unit.astype(np.float64) * objective.project(problem, on_image)).sum(2)


def core_statistics(problem: Problem, solution: Solution) -> tuple[DoubleArray, NDArray[np.int64], NDArray[np.int64]]:
    """Sum chi2 over the pixels that each source owns within `CORE_RADIUS`.

    Returns
    -------
    chi2 : float64 (n_source,)
        Sum over all bands, with the full inverse variance.
    n_pixel : int64 (n_source,)
        Pixels with weight, counted in every band.
    n_lost : int64 (n_source,)
        Pixels where the robust bound took more than half of the weight in some band.
    """
    if problem.device is not None:
        from deblendrt.engine.measure import device_measures

        with problem.device.loaded(problem) as buffers:
            return device_measures.own_pixels(buffers, solution.state, CORE_RADIUS)
    chi2, n_pixel, n_lost = [], [], []
    for s in range(len(problem.data)):
        here = np.flatnonzero(problem.scene == s)
        owner = _core_owner(problem, s, here)
        inside = owner >= 0
        lost = np.asarray((solution.weights[s] < 0.5 * problem.weight[s]).any(0))
        weighted = (problem.weight[s] > 0).sum(0)

        def total(image: NDArray, owner: NDArray = owner, inside: NDArray = inside, n: int = len(here)) -> NDArray:
            return np.bincount(owner[inside], weights=image[inside], minlength=n)

        chi2.append(total(chi2_image(problem, solution, s)))
        n_pixel.append(total(weighted))
        n_lost.append(total(lost))
    return (np.concatenate(chi2), np.concatenate(n_pixel).astype(np.int64), np.concatenate(n_lost).astype(np.int64))


def chi2_image(problem: Problem, solution: Solution, s: int) -> DoubleArray:
    """Compute chi2 of every pixel of a scene, summed over bands."""
    t2 = problem.weight[s] * (problem.data[s] - solution.state.model[s]) ** 2
    return t2.sum(0, dtype=np.float64)


def _core_owner(problem: Problem, s: int, here: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the owner of each pixel of a scene; -1 beyond `CORE_RADIUS` from the owner's centre."""
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
    magnitude = to_magnitude(map_flux[:, bundle.reference_index])
    limits = bundle.training["population"]
    return np.asarray((magnitude < limits["magnitude_min"]) | (magnitude > limits["magnitude_max"]))
