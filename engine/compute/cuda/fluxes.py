"""Joint linear fluxes and areas of significant light on a device."""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.kernels.linear.launch import flux_coefficients, flux_solve, flux_target, normal, source_pairs
from deblendrt.cuda.kernels.measures.launch import light_area
from deblendrt.cuda.kernels.pixels.launch import mean_weight, residual
from deblendrt.engine.compute.cuda.buffers import Buffers
from deblendrt.engine.compute.cuda.layouts import filled, padded
from deblendrt.engine.compute.problem import DoubleArray, FloatArray


def linear_fluxes(buffers: Buffers, unit: FloatArray, flux: DoubleArray, n_sweep: int,
                  error: float | None, *, clip: float, ridge: float) -> tuple[DoubleArray, DoubleArray]:
    """Compute `joint_fluxes.linear_fluxes` for the problem that the buffers hold.

    Parameters
    ----------
    buffers : Buffers
    unit : float32 (n_source, n_band, n_basis)
    flux : float64 (n_source, n_band) [nJy]
    n_sweep : int
    error : float, optional
    clip : float [sigma]
        Bound of the robust weights.
    ridge : float
        Added to the diagonal of the matrices, which are scaled to unit diagonal.

    Returns
    -------
    flux, sigma : float64 (n_source, n_band) [nJy]
    """
    device, problem, every = buffers.device, buffers.problem, buffers.every
    n, n_band = every.n_source, every.n_band
    pairs, pair_start = source_pairs(buffers.host, filled(problem.extended, n, 0))
    largest = int(np.diff(buffers.host.blend_start).max(initial=1))
    n_pair = padded(len(pairs))
    on_pairs = device.upload(filled(pairs, n_pair, -1))
    on_start = device.upload(pair_start)
    values = device.empty((n_pair, n_band), np.float64)
    on_flux, sigma, target = (device.empty((n, n_band), np.float64) for _ in range(3))
    on_unit, coefficients = buffers.trial.coefficients, buffers.state.coefficients
    buffers.put(unit, on_unit)
    buffers.put(flux, on_flux)
    buffers.put(np.full(flux.shape, np.inf), sigma)
    model, plain = buffers.state.model, (0.0, 0.0, clip, 0)
    weights = buffers.weight if error is None else buffers.weights
    for sweep in range(n_sweep):
        flux_coefficients(device, on_unit, on_flux, coefficients)
        buffers.draw(buffers.state)
        if sweep == 0:
            if error is not None:
                residual(device, every, buffers.data, buffers.weight, model, 0.0, error, clip,
                         int(problem.robust), weights, buffers.residual)
            buffers.stamp(on_unit)
            normal(device, every, buffers.stamps, buffers.cells, buffers.extended, weights, on_pairs, values)
        residual(device, every, buffers.data, weights, model, *plain, buffers.image, buffers.residual)
        buffers.project(buffers.residual, buffers.d_coefficients)
        flux_target(device, on_unit, buffers.d_coefficients, target)
        flux_solve(device, every, values, on_pairs, on_start, target, on_flux, sigma, ridge=ridge,
                   largest=largest)
    return buffers.fetch(on_flux), buffers.fetch(sigma)


def light_areas(buffers: Buffers, coefficients: FloatArray, significant: float) -> DoubleArray:
    """Compute `start.light_area` for the problem that the buffers hold.

    Parameters
    ----------
    buffers : Buffers
    coefficients : float32 (n_source, n_band, n_basis) [nJy]
    significant : float [sigma]
        Least signal of a pixel, all bands together.

    Returns
    -------
    float64 (n_source,) [pixel^2]
    """
    device, every = buffers.device, buffers.every
    buffers.put(coefficients, buffers.state.coefficients)
    buffers.stamp(buffers.state.coefficients)
    mean_weight(device, every, buffers.weight, buffers.tables.profile, buffers.inset, buffers.wbar)
    out = device.empty(every.n_source, np.int32)
    light_area(device, every, buffers.stamps, buffers.cells, buffers.extended, buffers.wbar, out,
               threshold=significant**2)
    return buffers.fetch(out).astype(np.float64)
