"""What is measured source by source after a fit, on a device: `light_shares.share` and others."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import DeviceArray
from deblendrt.cuda.kernels.measures import launch as measures_launch
from deblendrt.cuda.kernels.measures.launch import core_statistics, light, light_area, misfit, share, visible
from deblendrt.cuda.kernels.pixels.launch import mean_weight, render, residual
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.cuda.descent import Descent
from deblendrt.engine.compute.cuda.layouts import filled, pixel_tiles
from deblendrt.engine.compute.problem import DoubleArray, FloatArray, State
from deblendrt.engine.measure import fit_quality, light_shares, systematic_error
from deblendrt.engine.solve import constants


def shared(descent: Descent, coefficients: FloatArray, flux: DoubleArray) -> light_shares.Sharing:
    """See `light_shares.share`; of the problem that a descent holds.

    Parameters
    ----------
    descent : Descent
    coefficients : float32 (n_source, n_band, n_basis) [nJy]
    flux : float64 (n_source, n_band) [nJy]

    Returns
    -------
    Sharing
    """
    device, problem = descent.device, descent.problem
    descent.put(coefficients, descent.state.coefficients)
    descent.stamp(descent.every, descent.state.coefficients)
    drawn = (descent.stamps, descent.cells, descent.extended)
    every = whole_canvases(descent)
    model, bright = (device.empty(every.n_pixel, np.float32) for _ in range(2))
    inside = _footprints(descent)
    render(device, every, *drawn, None, model)
    light(device, every, *drawn, inside, descent.weight, bright)
    out = device.empty((every.n_source, every.n_band, 6), np.float64)
    share(device, every, *drawn, inside, descent.data, descent.weight, model, bright, out)
    gain, noise, overlap, own, everybody, largest = np.moveaxis(descent.fetch(out), 2, 0)
    known = everybody > 0
    return light_shares.Sharing(
        redistributed_flux=np.where(problem.measured, flux + gain, np.nan),
        redistributed_flux_err=np.where(problem.measured, np.sqrt(noise), np.nan),
        blendedness=np.where(known, 1 - own / np.where(known, everybody, 1.0), np.nan),
        flux_overlap=overlap.copy(), max_overlap=largest.copy())


def misfits(descent: Descent, state: State) -> systematic_error.Misfit:
    """See `systematic_error.misfit`; of the problem that a descent holds.

    Parameters
    ----------
    descent : Descent
    state : State

    Returns
    -------
    Misfit
    """
    device, problem, every = descent.device, descent.problem, descent.every
    half = min(systematic_error.MISFIT_HALF, problem.folded.half) // systematic_error.SQUARE * systematic_error.SQUARE
    redraw(descent, state)
    out, seen = (device.empty((every.n_source, n), np.float64) for n in (4, every.n_band))
    misfit(device, every, descent.stamps, descent.state.latent, descent.data, descent.weight, descent.state.model,
           device.upload(np.array(systematic_error.RING_EDGES)), out, half=half, square=systematic_error.SQUARE)
    visible(device, every, descent.stamps, descent.cells, descent.extended, _footprints(descent), descent.weight, seen)
    power, found = np.moveaxis(descent.fetch(out).reshape(-1, 2, 2), 2, 0)  # squares, rings
    some = np.where(power > 0, power, 1.0)
    square, significance = np.where(power > 0, [found / some, found / np.sqrt(2 * some)], 0.0)
    hidden = np.exp(state.latent[:, : every.n_band]) - descent.fetch(seen)
    return systematic_error.summary(square, significance, hidden)


def own_pixels(descent: Descent, state: State) -> tuple[DoubleArray, NDArray[np.int64], NDArray[np.int64]]:
    """See `fit_quality.core_statistics`; of the problem that a descent holds.

    Parameters
    ----------
    descent : Descent
    state : State

    Returns
    -------
    chi2 : float64 (n_source,)
    n_pixel, n_lost : int64 (n_source,)
    """
    device, problem, every = descent.device, descent.problem, descent.every
    redraw(descent, state)
    residual(device, every, descent.data, descent.weight, descent.state.model, 0.0, constants.MODEL_ERROR,
             constants.CLIP, int(problem.robust), descent.weights, descent.residual)
    owner = np.concatenate([part.owner.ravel() for part in problem.partition])
    number = np.arange(len(problem.scene)) - np.searchsorted(problem.scene, problem.scene)
    centre = filled(problem.corner + problem.folded.half + problem.offset0, every.n_source, 0, np.float64)
    out = device.empty((every.n_source, 3), np.float64)
    core_statistics(device, every, device.upload(filled(number, every.n_source, 0)), device.upload(centre),
                    device.upload(filled(owner, -(-every.n_pixel // every.n_band), -1)), descent.data, descent.weight,
                    descent.weights, descent.state.model, out, radius=fit_quality.CORE_RADIUS)
    chi2, n_pixel, n_lost = descent.fetch(out).T
    return chi2.copy(), n_pixel.astype(np.int64), n_lost.astype(np.int64)


def light_areas(descent: Descent, coefficients: FloatArray) -> DoubleArray:
    """See `start.light_area`; of the problem that a descent holds.

    Parameters
    ----------
    descent : Descent
    coefficients : float32 (n_source, n_band, n_basis) [nJy]

    Returns
    -------
    float64 (n_source,) [pixel^2]
    """
    device, every = descent.device, descent.every
    descent.put(coefficients, descent.state.coefficients)
    descent.stamp(every, descent.state.coefficients)
    mean_weight(device, every, descent.weight, descent.tables.profile, descent.inset, descent.wbar)
    out = device.empty(every.n_source, np.int32)
    light_area(device, every, descent.stamps, descent.cells, descent.extended, descent.wbar, out,
               threshold=constants.SIGNIFICANT_LIGHT**2)
    return descent.fetch(out).astype(np.float64)


def redraw(descent: Descent, state: State) -> None:
    """Put a state's latents and coefficients on the device, and draw its stamps and model images."""
    descent.put(state.latent, descent.state.latent)
    descent.put(state.coefficients, descent.state.coefficients)
    descent.run("draw", lambda: descent.draw(descent.state))


def _footprints(descent: Descent) -> DeviceArray:
    """Footprints of the stamps that a descent holds, int32 (n_source, n_word)."""
    device, every = descent.device, descent.every
    out = device.empty((every.n_source, measures_launch.n_word(every)), np.int32)
    measures_launch.footprint(device, every, descent.stamps, descent.cells, descent.extended, descent.weight, out,
                         significant=constants.SIGNIFICANT_LIGHT, core=light_shares.CORE)
    return out


def whole_canvases(descent: Descent) -> Layout:
    """The layout of a descent with tiles that cover the canvases' borders too, where models have light as well."""
    problem = descent.problem
    margin = np.where(problem.extended, descent.host.margin, 0)
    tiles = pixel_tiles(problem, np.arange(len(problem.scene)), margin, 0)
    on_device: dict[str, Any] = {name: descent.device.upload(values) for name, values in tiles.items()}
    return dataclasses.replace(descent.every, **on_device)
