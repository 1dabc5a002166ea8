"""`joint_fluxes.linear_fluxes` on a device."""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.kernels.linear.launch import flux_coefficients, flux_solve, flux_target, normal, source_pairs
from deblendrt.cuda.kernels.pixels.launch import residual
from deblendrt.engine.compute.cuda.descent import Descent
from deblendrt.engine.compute.cuda.layouts import filled, padded
from deblendrt.engine.compute.problem import DoubleArray, FloatArray
from deblendrt.engine.solve import constants


def linear_fluxes(descent: Descent, unit: FloatArray, flux: DoubleArray, n_sweep: int,
                  error: float | None) -> tuple[DoubleArray, DoubleArray]:
    """See `joint_fluxes.linear_fluxes`; of the problem that a descent holds.

    Parameters
    ----------
    descent : Descent
    unit : float32 (n_source, n_band, n_basis)
    flux : float64 (n_source, n_band) [nJy]
    n_sweep : int
    error : float, optional

    Returns
    -------
    flux, sigma : float64 (n_source, n_band) [nJy]
    """
    device, problem, every = descent.device, descent.problem, descent.every
    n, n_band = every.n_source, every.n_band
    pairs, pair_start = source_pairs(descent.host, filled(problem.extended, n, 0))
    largest = int(np.diff(descent.host.blend_start).max(initial=1))
    n_pair = padded(len(pairs))
    on_pairs = device.upload(filled(pairs, n_pair, -1))
    on_start = device.upload(pair_start)
    values = device.empty((n_pair, n_band), np.float64)
    on_flux, sigma, target = (device.empty((n, n_band), np.float64) for _ in range(3))
    on_unit, coefficients = descent.trial.coefficients, descent.state.coefficients
    descent.put(unit, on_unit)
    descent.put(flux, on_flux)
    descent.put(np.full(flux.shape, np.inf), sigma)
    model, plain = descent.state.model, (0.0, 0.0, constants.CLIP, 0)
    weights = descent.weight if error is None else descent.weights
    for sweep in range(n_sweep):
        flux_coefficients(device, on_unit, on_flux, coefficients)
        descent.draw(descent.state)
        if sweep == 0:
            if error is not None:
                residual(device, every, descent.data, descent.weight, model, 0.0, error, constants.CLIP,
                         int(problem.robust), weights, descent.residual)
            descent.stamp(every, on_unit)
            normal(device, every, descent.stamps, descent.cells, descent.extended, weights, on_pairs, values)
        residual(device, every, descent.data, weights, model, *plain, descent.image, descent.residual)
        descent.project(every, descent.residual, descent.d_coefficients)
        flux_target(device, on_unit, descent.d_coefficients, target)
        flux_solve(device, every, values, on_pairs, on_start, target, on_flux, sigma, ridge=constants.FLUX_RIDGE,
                   largest=largest)
    return descent.fetch(on_flux), descent.fetch(sigma)
