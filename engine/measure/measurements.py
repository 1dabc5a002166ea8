"""The measurements of a solved problem: photometry with errors, shapes, quality of the fit, flags.

`record` calls the functions that measure, and writes each quantity to the rows. A new quantity needs its entry in
`deblendrt.engine.result.fields`, a function in this folder, and a line here that writes what the function returns.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import drawing
from deblendrt.engine.compute.problem import DoubleArray, FloatArray, Problem
from deblendrt.engine.measure import (
    adaptive_moments,
    apertures,
    fit_quality,
    fitted_sky,
    sky_level,
    systematic_error,
    uncertainty,
)
from deblendrt.engine.measure.light_shares import share
from deblendrt.engine.result.rows import Rows
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.solve import constants, curvature, joint_fluxes, objective
from deblendrt.engine.solve.descent import Solution
from deblendrt.engine.solve.detail import BlendCovariance, DetailFit


def record(rows: Rows, members: list[int], fitted: list[NDArray[np.int64]], solution: Solution,
           detail: DetailFit | None = None, sky: DoubleArray | None = None) -> Solution:
    """Measure a solved problem and write its rows.

    Parameters
    ----------
    rows : Rows
        Written in place.
    members : list of int
        Scenes of the problem.
    fitted : list of int64 (n_fitted,)
        For each scene: numbers of its sources that are in the problem.
    solution : Solution
    detail : DetailFit, optional
        Replaces the solution of the blends that it solved.
    sky : float64 (n_scene, n_band) [nJy per pixel], optional
        The fitted sky of each scene, which the problem's data lack; NaN where none was fitted.

    Returns
    -------
    Solution
        The solution that was measured, detail included.
    """
    problem, state = solution.problem, solution.state
    n_band, measured = problem.n_band, problem.measured
    row = np.concatenate([rows.source_start[i] + f for i, f in zip(members, fitted, strict=True)])
    map_flux = np.exp(state.latent[:, :n_band])
    unit = state.jacobian.mix.transpose(0, 2, 1) @ state.jacobian.maps
    flux, fixed_shape_err = joint_fluxes.linear_fluxes(problem, unit, map_flux, n_sweep=constants.FINAL_SWEEPS,
                                                       error=constants.MODEL_ERROR if problem.robust else None)
    offset, model_flux, final = state.latent[:, n_band : n_band + 2].copy(), map_flux.copy(), solution
    if detail is not None:
        solved = detail.solved
        offset += detail.move
        flux[solved], fixed_shape_err[solved] = detail.flux[solved], detail.fixed_shape_err[solved]
        model_flux[solved] = detail.flux[solved]
        final = _with_detail(solution, detail)
    coefficients = final.state.coefficients
    rows.write(row, latent=state.latent, coefficients=coefficients, extent=problem.extent, map_flux=map_flux,
               position=rows.anchor[row] + offset,
               flux=np.where(measured, flux, np.nan),
               log_prior=np.where(problem.star, np.nan, problem.runtime.log_prior(state.latent)[0]),
               enclosed=fit_quality.enclosed_fraction(problem, unit))
    shared = share(problem, coefficients, model_flux)
    rows.write(row, redistributed_flux=shared.redistributed_flux, blendedness=shared.blendedness,
               flux_overlap=shared.flux_overlap, max_overlap=shared.max_overlap)
    blends: Iterable[BlendCovariance] = itertools.chain(
        uncertainty.laplace(problem, solution, None if detail is None else ~detail.solved),
        [] if detail is None else detail.blends)
    penalty = np.zeros(len(members))
    if sky is not None:
        fitted_by, blends = fitted_sky.marginalise(solution, sky, blends)
        rows.sky[members], penalty = np.nan_to_num(sky), fitted_by.penalty
        error = np.sqrt(fitted_by.covariance.diagonal(axis1=1, axis2=2))
        rows.sky_err[members] = np.where(np.isfinite(sky), error, np.nan)
    remaining = _write_with_errors(rows, row, solution, detail, coefficients, offset, blends)
    by_shape = np.maximum(rows.flux_err[row] ** 2 - fixed_shape_err**2, 0.0)
    rows.write(row, redistributed_flux_err=np.sqrt(shared.redistributed_flux_err**2 + by_shape))
    chi2, n_pixel, n_lost = fit_quality.core_statistics(problem, final)
    rows.write(row, chi2=chi2, n_pixel=n_pixel, reduced_chi2=chi2 / np.where(n_pixel > 0, n_pixel, np.nan))
    for s, i in enumerate(members):
        rows.scene_chi2[i] = fit_quality.chi2_image(problem, final, s)[problem.area[s]].sum(dtype=np.float64)
        rows.objective[i] = solution.objective[s] + penalty[s]
    misfit = systematic_error.misfit(problem, final)
    own = systematic_error.flux_error(misfit, map_flux, problem.bundle)
    hidden = systematic_error.from_neighbours(problem, map_flux, rows.flux_err[row], shared.flux_overlap)
    swapped = systematic_error.from_sharing(map_flux, shared.flux_overlap, problem.bundle)
    rows.write(row, flux_sys_err=np.where(measured, np.hypot(np.hypot(own, hidden), swapped), np.nan))
    shift = np.abs(sky_level.flux_shift(problem, final, unit, rows.flux_err[row]))
    rows.flag(row, Flag.SKY_OFFSET, (shift > sky_level.SKY_SHIFT * rows.flux_err[row]).any(1))
    moving = ~(remaining < fit_quality.CONVERGED)
    if detail is not None:  # its solve takes the last step of offset and shape
        moving[list(detail.lines)] = False
        moving |= detail.off_center
    fit_quality.flag(rows, row, problem.bundle, n_lost, moving, misfit.significance)
    return final


def _with_detail(solution: Solution, detail: DetailFit) -> Solution:
    """Return the solution with the model of the detail, and the robust weights around that model."""
    problem = solution.problem
    likely = objective.likelihood(problem, detail.model)
    weights, residual = objective.weighted_residual(problem, likely, detail.model)
    state = dataclasses.replace(solution.state, coefficients=detail.coefficients, model=detail.model)
    return dataclasses.replace(solution, state=state, weights=weights, residual=residual)


def _write_with_errors(rows: Rows, row: NDArray[np.int64], solution: Solution, detail: DetailFit | None,
                       coefficients: FloatArray, offset: DoubleArray,
                       blends: Iterable[BlendCovariance]) -> DoubleArray:
    """Write the quantities whose errors come from the posterior covariance, and the covariances of the blends.

    Returns
    -------
    float64 (n_source,)
        `uncertainty.remaining_step`.
    """
    problem, state = solution.problem, solution.state
    n_band, bundle = problem.n_band, problem.bundle
    band = np.arange(n_band)
    moved = slice(n_band, bundle.n_latent)
    unit = curvature.unit_columns(state)
    center = bundle.stamp_size // 2 + offset
    circle = apertures.aperture_functional(bundle.basis, center, 0.5 * rows.aperture_diameter / bundle.pixel_scale)
    in_aperture = np.einsum("nbck,nk->nbc", unit, circle, optimize=False)  # aperture sum of each column
    in_aperture[:, :, 1:3] = 0.0  # the aperture moves with the source
    light = _reference_images(problem, coefficients)
    moments = adaptive_moments.adaptive_moments(light, center, bundle.basis)
    gradient = adaptive_moments.ellipticity_gradient(moments.moments, moments.gradient)
    by_move = np.einsum("nek,nck->nec", gradient, unit[:, bundle.reference_index, 1:], optimize=False)
    rows.write(row, moments=moments.moments, ellipticity=adaptive_moments.ellipticity(moments.moments),
               aperture_flux=rows.flux[row] * in_aperture[:, :, 0])
    lines: dict[int, FloatArray] = {} if detail is None else detail.lines
    for i in lines:
        in_light = (coefficients[i].astype(np.float64) * circle[i]).sum(1)
        rows.aperture_flux[row[i]] = np.where(problem.measured[i], in_light, np.nan)
    downhill = solution.downhill.copy()
    downhill[:, :n_band] /= np.exp(state.latent[:, :n_band])
    remaining = np.empty(len(row))
    for blend in blends:
        number = int(row[blend.rows[0]])
        missing = ~problem.measured[blend.rows]
        fluxes = blend.matrix[:, :n_band, :, :n_band].astype(np.float32)
        fluxes[missing] = np.nan
        fluxes[:, :, missing] = np.nan
        rows.covariances[number] = fluxes
        remaining[blend.rows] = uncertainty.remaining_step(blend, downhill[blend.rows], n_band)
        for a, i in enumerate(blend.rows):
            own, r = blend.own(a), row[i]
            rows.blend[r] = number
            measured = problem.measured[i]
            rows.flux_cov[r] = np.where(measured[:, None] & measured, own[:n_band, :n_band], np.nan)
            rows.flux_err[r] = np.sqrt(rows.flux_cov[r][band, band])
            rows.position_err[r] = np.sqrt(own.diagonal()[n_band : n_band + 2])
            by_latent = np.zeros((n_band, len(own)))
            by_latent[band, band] = in_aperture[i, :, 0]
            by_latent[:, moved] = in_aperture[i, :, 1:]
            by_shape, covariance = by_move[i], own
            if a in blend.with_detail:
                every = blend.with_detail[a]
                by_latent = np.hstack([by_latent, lines[i] @ circle[i]])
                variance = np.einsum("bp,bpq,bq->b", by_latent, every, by_latent, optimize=False)
                covariance = every[bundle.reference_index]
                by_shape = np.hstack([by_shape, gradient[i] @ lines[i][bundle.reference_index].T])
            else:
                variance = ((by_latent @ own) * by_latent).sum(1)
            rows.aperture_flux_err[r] = np.where(measured, np.sqrt(variance), np.nan)
            variance = ((by_shape @ covariance[n_band:, n_band:]) * by_shape).sum(1)
            rows.ellipticity_err[r] = np.sqrt(variance)
    return remaining


def _reference_images(problem: Problem, coefficients: FloatArray) -> FloatArray:
    """Draw models in the reference band under the reference PSF, float32 (n_source, stamp_size, stamp_size) [nJy]."""
    bundle = problem.bundle
    size = bundle.stamp_size
    flat = np.empty((len(coefficients), size * size), np.float32)
    basis = bundle.basis.reshape(1, bundle.n_basis, -1)
    for rows, _ in drawing.tiles(len(coefficients)):
        flat[rows] = drawing.product(coefficients[rows, bundle.reference_index, None], basis)[:, 0]
    return flat.reshape(-1, size, size)
