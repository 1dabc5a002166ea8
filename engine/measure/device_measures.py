"""Measures of single sources on a device: shares of the light, misfits, chi2 of their own pixels."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import DeviceArray
from deblendrt.cuda.kernels.measures import launch as measures_launch
from deblendrt.cuda.kernels.measures.launch import core_statistics, light, misfit, share, visible
from deblendrt.cuda.kernels.pixels.launch import render, residual
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.cuda.buffers import Buffers
from deblendrt.engine.compute.cuda.layouts import filled, pixel_tiles
from deblendrt.engine.compute.problem import DoubleArray, FloatArray, State
from deblendrt.engine.solve import constants


def shared(buffers: Buffers, coefficients: FloatArray, flux: DoubleArray, core: float) -> tuple[DoubleArray, ...]:
    """Measure `light_shares.share` for the problem that the buffers hold.

    Parameters
    ----------
    buffers : Buffers
    coefficients : float32 (n_source, n_band, n_basis) [nJy]
    flux : float64 (n_source, n_band) [nJy]
    core : float
        Share of the peak's significance from which a pixel belongs to a footprint.

    Returns
    -------
    tuple of float64 (n_source, n_band)
        The fields of `light_shares.Sharing`, in their order.
    """
    device, problem = buffers.device, buffers.problem
    buffers.put(coefficients, buffers.state.coefficients)
    buffers.stamp(buffers.state.coefficients)
    drawn = (buffers.stamps, buffers.cells, buffers.extended)
    every = whole_canvases(buffers)
    model, bright = (device.empty(every.n_pixel, np.float32) for _ in range(2))
    inside = _footprints(buffers, core)
    render(device, every, *drawn, None, model)
    light(device, every, *drawn, inside, buffers.weight, bright)
    out = device.empty((every.n_source, every.n_band, 6), np.float64)
    share(device, every, *drawn, inside, buffers.data, buffers.weight, model, bright, out)
    gain, noise, overlap, own, everybody, largest = np.moveaxis(buffers.fetch(out), 2, 0)
    known = everybody > 0
    return (np.where(problem.measured, flux + gain, np.nan), np.where(problem.measured, np.sqrt(noise), np.nan),
            np.where(known, 1 - own / np.where(known, everybody, 1.0), np.nan), overlap.copy(), largest.copy())


def misfits(buffers: Buffers, state: State, half: int, square: int, ring_edges: tuple[float, ...],
            core: float) -> tuple[DoubleArray, DoubleArray, DoubleArray]:
    """Measure `systematic_error.misfit` for the problem that the buffers hold.

    Parameters
    ----------
    buffers : Buffers
    state : State
    half, square : int [pixel]
        Half the side of the area in which misfits count, and the side of its squares.
    ring_edges : tuple of float [pixel]
    core : float
        As in `shared`.

    Returns
    -------
    excess, significance : float64 (n_source, 2)
        `systematic_error.excess` in squares and in rings.
    hidden : float64 (n_source, n_band) [nJy]
        Light outside the source's footprint or without weight, of either sign.
    """
    device, problem, every = buffers.device, buffers.problem, buffers.every
    half = min(half, problem.folded.half) // square * square
    redraw(buffers, state)
    out, seen = (device.empty((every.n_source, n), np.float64) for n in (4, every.n_band))
    misfit(device, every, buffers.stamps, buffers.state.latent, buffers.data, buffers.weight, buffers.state.model,
           device.upload(np.array(ring_edges)), out, half=half, square=square)
    visible(device, every, buffers.stamps, buffers.cells, buffers.extended, _footprints(buffers, core), buffers.weight,
            seen)
    power, found = np.moveaxis(buffers.fetch(out).reshape(-1, 2, 2), 2, 0)  # squares, rings
    some = np.where(power > 0, power, 1.0)
    excess, significance = np.where(power > 0, [found / some, found / np.sqrt(2 * some)], 0.0)
    hidden = np.exp(state.latent[:, : every.n_band]) - buffers.fetch(seen)
    return excess, significance, hidden


def own_pixels(buffers: Buffers, state: State,
               radius: float) -> tuple[DoubleArray, NDArray[np.int64], NDArray[np.int64]]:
    """Measure `fit_quality.core_statistics` for the problem that the buffers hold.

    Parameters
    ----------
    buffers : Buffers
    state : State
    radius : float [pixel]
        Around a source's centre.

    Returns
    -------
    chi2 : float64 (n_source,)
    n_pixel, n_lost : int64 (n_source,)
    """
    device, problem, every = buffers.device, buffers.problem, buffers.every
    redraw(buffers, state)
    residual(device, every, buffers.data, buffers.weight, buffers.state.model, 0.0, constants.MODEL_ERROR,
             constants.CLIP, int(problem.robust), buffers.weights, buffers.residual)
    owner = np.concatenate([part.owner.ravel() for part in problem.partition])
    number = np.arange(len(problem.scene)) - np.searchsorted(problem.scene, problem.scene)
    centre = filled(problem.corner + problem.folded.half + problem.offset0, every.n_source, 0, np.float64)
    out = device.empty((every.n_source, 3), np.float64)
    core_statistics(device, every, device.upload(filled(number, every.n_source, 0)), device.upload(centre),
                    device.upload(filled(owner, -(-every.n_pixel // every.n_band), -1)), buffers.data, buffers.weight,
                    buffers.weights, buffers.state.model, out, radius=radius)
    chi2, n_pixel, n_lost = buffers.fetch(out).T
    return chi2.copy(), n_pixel.astype(np.int64), n_lost.astype(np.int64)


def redraw(buffers: Buffers, state: State) -> None:
    """Upload a state's latents and coefficients, and draw its stamps and model images."""
    buffers.put(state.latent, buffers.state.latent)
    buffers.put(state.coefficients, buffers.state.coefficients)
    buffers.run("draw", lambda: buffers.draw(buffers.state))


def _footprints(buffers: Buffers, core: float) -> DeviceArray:
    """Find the footprints of the stamps that the buffers hold, int32 (n_source, n_word)."""
    device, every = buffers.device, buffers.every
    out = device.empty((every.n_source, measures_launch.n_word(every)), np.int32)
    measures_launch.footprint(device, every, buffers.stamps, buffers.cells, buffers.extended, buffers.weight, out,
                              significant=constants.SIGNIFICANT_LIGHT, core=core)
    return out


def whole_canvases(buffers: Buffers) -> Layout:
    """Return the buffers' layout with tiles that also cover the canvases' borders: models have light there."""
    problem = buffers.problem
    margin = np.where(problem.extended, buffers.host.margin, 0)
    tiles = pixel_tiles(problem, np.arange(len(problem.scene)), margin, 0)
    on_device: dict[str, Any] = {name: buffers.device.upload(values) for name, values in tiles.items()}
    return dataclasses.replace(buffers.every, **on_device)
