r"""The prior of every source: log p, its gradient and its curvature.

    log p(z) = log flow(z)  -  |offset - offset0|^2 / 2 sigma_c^2  -  sum_missing (color - expected)^2 / 2 sigma_b^2

The flow is the prior of a galaxy's shape. The shape of a star has an N(0, 1) prior. offset0 is the centre that the
caller gave. The last sum keeps the fluxes of bands without weight finite: the expected flux has the population's mean
colour relative to the mean of the measured bands.
"""

from __future__ import annotations

import numpy as np

from deblendrt.engine.compute import decoding
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.solve import constants
from deblendrt.engine.solve.curvature import apply_blocks
from deblendrt.engine.units import DoubleArray


def prior_terms(problem: Problem, latent: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Evaluate the log prior of every source, up to constants, and its gradient by the latents.

    Parameters
    ----------
    problem : Problem
    latent : float64 (n_source, n_latent)

    Returns
    -------
    log_prior : float64 (n_source,)
    gradient : float64 (n_source, n_latent)
    """
    n_band = problem.n_band
    log_prior, gradient = decoding.log_prior(problem, latent)
    offset = (latent[:, n_band : n_band + 2] - problem.offset0) / problem.center_sigma
    log_prior -= 0.5 * (offset**2).sum(1)
    gradient[:, n_band : n_band + 2] -= offset / problem.center_sigma
    color, _ = missing_color(problem, latent)
    sigma = np.asarray(problem.bundle.color_sigma) + constants.COLOR_SLACK
    log_prior -= 0.5 * ((color / sigma) ** 2).sum(1)
    gradient[:, :n_band] -= color / sigma**2
    n_measured = np.maximum(problem.measured.sum(1, keepdims=True), 1)
    through = (color / sigma**2).sum(1, keepdims=True) / n_measured  # the expected flux moves with the measured bands
    gradient[:, :n_band] += np.where(problem.measured, through, 0.0)
    return log_prior, gradient


def missing_color(problem: Problem, latent: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Compare the fluxes of bands without weight with the fluxes that the measured bands suggest.

    Parameters
    ----------
    problem : Problem
    latent : float64 (n_source, n_latent)

    Returns
    -------
    difference : float64 (n_source, n_band)
        ln flux minus the expected ln flux; 0 in measured bands.
    expectation : float64 (n_source, n_band)
        Expected ln flux: the band's mean colour, plus the mean of (ln flux - mean colour) over the measured bands.
    """
    log_flux = latent[:, : problem.n_band]
    color = np.asarray(problem.bundle.mean_color)
    n = np.maximum(problem.measured.sum(1, keepdims=True), 1)
    level = np.where(problem.measured, log_flux - color, 0.0).sum(1, keepdims=True) / n
    expectation = level + color
    return np.where(problem.measured, 0.0, log_flux - expectation), expectation


def prior_curvature(problem: Problem) -> DoubleArray:
    """Compute the prior's curvature at the start: a population mean for shapes, exact for offsets and missing bands.

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
    missing = 1 / (np.asarray(problem.bundle.color_sigma) + constants.COLOR_SLACK) ** 2
    block[:, band, band] = np.where(problem.measured, constants.FREE_FLUX_CURVATURE, missing)
    # a missing band follows the mean of the measured bands, see `missing_color`
    n_measured = np.maximum(problem.measured.sum(1), 1)[:, None]
    pulled = np.where(problem.measured, 0.0, missing)
    through = problem.measured / n_measured
    cross = pulled[:, :, None] * through[:, None, :]
    block[:, :n_band, :n_band] += (pulled.sum(1)[:, None, None] * through[:, :, None] * through[:, None, :]
                                   - cross - cross.transpose(0, 2, 1))
    return block


def secant(curvature: DoubleArray, step: DoubleArray, change: DoubleArray) -> DoubleArray:
    """Update the prior's curvature (BFGS) by the change of its gradient along a step; rejected steps serve as well.

    The population's mean curvature is only a start: the flow is sharper in places, and it couples the shapes to the
    fluxes. With the mean alone the last iterations were slow.

    Parameters
    ----------
    curvature : float64 (n_source, n_latent, n_latent)
        Symmetric, positive definite.
    step : float64 (n_source, n_latent)
    change : float64 (n_source, n_latent)
        Change of the gradient of -log p along the step.

    Returns
    -------
    float64 (n_source, n_latent, n_latent)
        Unchanged where the new curvature along the step is negative or out of proportion.
    """
    expected = apply_blocks(curvature, step)
    before, after = (step * expected).sum(1), (step * change).sum(1)
    good = ((after > constants.MIN_SECANT_RATIO * before) & (after < constants.MAX_SECANT_RATIO * before)
            & (before > constants.MIN_SECANT_CURVATURE))
    removed = expected[:, :, None] * expected[:, None, :] / np.where(good, before, 1.0)[:, None, None]
    added = change[:, :, None] * change[:, None, :] / np.where(good, after, 1.0)[:, None, None]
    return np.where(good[:, None, None], curvature - removed + added, curvature)


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
        step[n_band + 2 + k] = constants.PRIOR_STEP
        ahead, back = (decoding.log_prior(problem, latent + sign * step)[1] for sign in (1, -1))
        hessian[:, :, k] = (back - ahead) / (2 * constants.PRIOR_STEP)
    curvature = hessian[:, shape]
    values, vectors = np.linalg.eigh(0.5 * (curvature + curvature.transpose(0, 2, 1)))
    block = np.zeros((n, latent.shape[1], latent.shape[1]))
    block[:, shape, shape] = (vectors * np.maximum(values, 0.0)[:, None, :]) @ vectors.transpose(0, 2, 1)
    block[:, [n_band, n_band + 1], [n_band, n_band + 1]] = problem.center_sigma**-2
    band = np.arange(n_band)
    block[:, band, band] = np.where(problem.measured, 0.0, 1.0)
    return block
