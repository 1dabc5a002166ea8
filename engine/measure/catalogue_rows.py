"""What is recorded of a solved problem: photometry with errors, shapes, quality of the fit, flags."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import drawing
from deblendrt.engine.compute.problem import DoubleArray, FloatArray, Problem
from deblendrt.engine.measure import adaptive_moments, apertures, fit_quality, systematic_error, uncertainty
from deblendrt.engine.measure.light_shares import share
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.solve import constants, joint_fluxes
from deblendrt.engine.solve.descent import Solution

PER_SCENE = ("scene_chi2", "scene_n_pixel", "objective")
NOT_COPIED = ("source_start", "scene_index", "folded_index", "row", *PER_SCENE)


def record(result: DeblendResult, members: list[int], rows: list[NDArray[np.int64]],
           solution: Solution) -> dict[int, FloatArray]:
    """Write the rows of a solved problem into a result.

    Parameters
    ----------
    result : DeblendResult
        Changed in place.
    members : list of int
        Scenes of the problem.
    rows : list of int64 (n_fitted,)
        Per scene, which of its sources are in the problem.
    solution : Solution

    Returns
    -------
    dict of int to float32 (n_member, n_band, n_member, n_band) [nJy^2]
        Covariance of the fluxes of each blend, by the result's row of its first member, which is also what is written
        as the blend's number: it depends on no other scene.
    """
    problem, state = solution.problem, solution.state
    n_band, measured = problem.n_band, problem.measured
    row = np.concatenate([result.source_start[i] + r for i, r in zip(members, rows, strict=True)])
    map_flux = np.exp(state.latent[:, :n_band])
    unit = state.jacobian.mix.transpose(0, 2, 1) @ state.jacobian.maps
    flux, fixed_shape_err = joint_fluxes.linear_fluxes(problem, unit, map_flux, n_sweep=constants.FINAL_SWEEPS,
                                                     error=constants.MODEL_ERROR if problem.robust else None)
    result.latent[row] = state.latent
    result.coefficients[row] = state.coefficients
    result.extent[row] = problem.extent
    result.position[row] = result.anchor[row] + state.latent[:, n_band : n_band + 2]
    result.map_flux[row] = map_flux
    result.flux[row] = np.where(measured, flux, np.nan)
    result.log_prior[row] = np.where(problem.star, np.nan, problem.runtime.log_prior(state.latent)[0])
    result.enclosed[row] = fit_quality.enclosed_fraction(problem, unit)
    shared = share(problem, state.coefficients, map_flux)
    for name in ("redistributed_flux", "blendedness", "flux_overlap", "max_overlap"):
        getattr(result, name)[row] = getattr(shared, name)
    blends, remaining = _measure(result, row, solution)
    by_shape = np.maximum(result.flux_err[row] ** 2 - fixed_shape_err**2, 0.0)
    result.redistributed_flux_err[row] = np.sqrt(shared.redistributed_flux_err**2 + by_shape)
    chi2, n_pixel, n_lost = fit_quality.core_statistics(problem, solution)
    result.chi2[row], result.n_pixel[row] = chi2, n_pixel
    for s, i in enumerate(members):
        result.scene_chi2[i] = fit_quality.chi2_image(problem, solution, s)[problem.area[s]].sum(dtype=np.float64)
        result.objective[i] = solution.objective[s]
    misfit = systematic_error.misfit(problem, solution)
    result.flux_sys_err[row] = np.where(measured, systematic_error.flux_error(misfit, map_flux, problem.bundle), np.nan)
    fit_quality.flag(result, row, problem.bundle, n_lost, remaining, misfit.significance)
    return blends


def keep(result: DeblendResult, before: DeblendResult) -> dict[int, FloatArray]:
    """Copy the rows of scenes that an earlier result holds: those whose `Scene` is the very same object.

    Parameters
    ----------
    result : DeblendResult
        Changed in place.
    before : DeblendResult
        Of as many scenes.

    Returns
    -------
    dict
        As from `record`.
    """
    same = [k for k, scene in enumerate(result.scenes) if before.scenes[k] is scene]
    if not same:
        return {}
    new, old = (np.concatenate([np.arange(r.source_start[k], r.source_start[k + 1]) for k in same])
                for r in (result, before))
    for field in dataclasses.fields(DeblendResult):
        value = getattr(result, field.name)
        if isinstance(value, np.ndarray) and field.name not in NOT_COPIED:
            value[new] = getattr(before, field.name)[old]
    for name in PER_SCENE:
        getattr(result, name)[same] = getattr(before, name)[same]
    number, first = np.unique(result.blend[new], return_index=True)
    blends = {int(new[i]): before.blend_flux_cov[k] for k, i in zip(number, first, strict=True) if k >= 0}
    rows_of = dict(zip(number.tolist(), new[first].tolist(), strict=True)) | {-1: -1}
    result.blend[new] = [rows_of[k] for k in result.blend[new].tolist()]
    return blends


def _measure(result: DeblendResult, row: NDArray[np.int64],
             solution: Solution) -> tuple[dict[int, FloatArray], DoubleArray]:
    """Write what has an error from the posterior covariance.

    Returns
    -------
    blends : dict
        See `record`.
    remaining : float64 (n_source,)
        `uncertainty.remaining_step`.
    """
    problem, state = solution.problem, solution.state
    n_band, bundle = problem.n_band, problem.bundle
    band = np.arange(n_band)
    moved = slice(n_band, bundle.n_latent)
    unit = uncertainty.unit_columns(state)
    offset = state.latent[:, n_band : n_band + 2]
    center = bundle.stamp_size // 2 + offset
    circle = apertures.aperture_functional(bundle.basis, center, 0.5 * result.aperture_diameter / bundle.pixel_scale)
    in_aperture = np.einsum("nbck,nk->nbc", unit, circle, optimize=False)  # of each column
    in_aperture[:, :, 1:3] = 0.0  # the aperture moves with the source
    light = _reference_images(problem, state.coefficients)
    moments = adaptive_moments.adaptive_moments(light, center, bundle.basis)
    gradient = adaptive_moments.ellipticity_gradient(moments.moments, moments.gradient)
    by_move = np.einsum("nek,nck->nec", gradient, unit[:, bundle.reference_index, 1:], optimize=False)
    result.moments[row] = moments.moments
    result.ellipticity[row] = adaptive_moments.ellipticity(moments.moments)
    result.aperture_flux[row] = result.flux[row] * in_aperture[:, :, 0]
    downhill = solution.downhill.copy()
    downhill[:, :n_band] /= np.exp(state.latent[:, :n_band])
    blends: dict[int, FloatArray] = {}
    remaining = np.empty(len(row))
    for blend in uncertainty.laplace(problem, solution):
        first = int(row[blend.rows[0]])
        missing = ~problem.measured[blend.rows]
        fluxes = blend.matrix[:, :n_band, :, :n_band].astype(np.float32)
        fluxes[missing] = np.nan
        fluxes[:, :, missing] = np.nan
        blends[first] = fluxes
        remaining[blend.rows] = uncertainty.remaining_step(blend, downhill[blend.rows], n_band)
        for a, i in enumerate(blend.rows):
            own, r = blend.own(a), row[i]
            result.blend[r] = first
            measured = problem.measured[i]
            result.flux_cov[r] = np.where(measured[:, None] & measured, own[:n_band, :n_band], np.nan)
            result.flux_err[r] = np.sqrt(result.flux_cov[r][band, band])
            result.position_err[r] = np.sqrt(own.diagonal()[n_band : n_band + 2])
            by_latent = np.zeros((n_band, len(own)))
            by_latent[band, band] = in_aperture[i, :, 0]
            by_latent[:, moved] = in_aperture[i, :, 1:]
            variance = ((by_latent @ own) * by_latent).sum(1)
            result.aperture_flux_err[r] = np.where(measured, np.sqrt(variance), np.nan)
            variance = ((by_move[i] @ own[moved, moved]) * by_move[i]).sum(1)
            result.ellipticity_err[r] = np.sqrt(variance)
    return blends, remaining


def _reference_images(problem: Problem, coefficients: FloatArray) -> FloatArray:
    """Models in the reference band under the reference PSF, float32 (n_source, stamp_size, stamp_size) [nJy]."""
    bundle = problem.bundle
    size = bundle.stamp_size
    flat = np.empty((len(coefficients), size * size), np.float32)
    basis = bundle.basis.reshape(1, bundle.n_basis, -1)
    for rows, _ in drawing.tiles(len(coefficients)):
        flat[rows] = drawing.product(coefficients[rows, bundle.reference_index, None], basis)[:, 0]
    return flat.reshape(-1, size, size)
