"""From checked scenes to a problem for the solver, and the latents from which it starts.

Shapes start at the prior's mean or come from the deblending encoder. The encoder sees every source several times. From
the second time on, the light of the other sources, as last encoded, is subtracted. Fluxes come from joint linear
solves.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import decoding, drawing
from deblendrt.engine.compute.device_protocol import ComputeDevice
from deblendrt.engine.compute.folded_bases import AnyBasis
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.networks import Runtime
from deblendrt.engine.scene.blends import MIN_BLEND_RADIUS, Partition, partition
from deblendrt.engine.scene.flags import NOT_FITTED
from deblendrt.engine.scene.patches import Part
from deblendrt.engine.scene.scene import Scene
from deblendrt.engine.solve import constants, joint_fluxes, objective
from deblendrt.engine.solve.curvature import extents, mean_weight
from deblendrt.engine.solve.prior import missing_color
from deblendrt.engine.units import DoubleArray, FloatArray


def build_problem(scenes: list[Scene], folded: AnyBasis, runtime: Runtime, bundle: Bundle, *, center_sigma: float,
                  robust: bool, part: Part | None = None,
                  device: ComputeDevice | None = None) -> tuple[Problem, list[NDArray[np.int64]]]:
    """Make the problem of some scenes, with the sources that can be fitted, on padded canvases.

    Parameters
    ----------
    scenes : list of Scene
        Each with at least one source that can be fitted.
    folded : FoldedBasis or MixedBasis
        Basis of the sources that can be fitted, scene after scene.
    runtime : Runtime
        Networks on the CPU. A device uses networks of its own.
    bundle : Bundle
    center_sigma : float [pixel]
    robust : bool
    part : Part, optional
        Given if the only scene is a part of a larger image.
    device : ComputeDevice, optional
        Device that computes instead of NumPy.

    Returns
    -------
    problem : Problem
    rows : list of int64 (n_fitted,)
        Sources of every scene that are in the problem.
    """
    runtime = runtime if device is None else device.runtime
    half, window = folded.half, folded.window
    border = ((0, 0), (half, half), (half, half))
    data, weight = [], []
    for scene in scenes:
        image, inverse_variance = scene.images.arrays()
        data.append(np.pad(image, border))
        weight.append(np.pad(inverse_variance, border))
    rows = [np.flatnonzero((scene.flags & NOT_FITTED) == 0) for scene in scenes]
    # a window's first pixel on the canvas is its anchor on the image
    corner = np.concatenate([scene.anchors[good] for scene, good in zip(scenes, rows, strict=True)])
    centers = np.concatenate([scene.centers[good] for scene, good in zip(scenes, rows, strict=True)])
    star = np.concatenate([scene.star[good] for scene, good in zip(scenes, rows, strict=True)])
    scene_of = np.repeat(np.arange(len(scenes)), [len(r) for r in rows])
    measured = np.array([(weight[s][:, y : y + window, x : x + window] > 0).any((1, 2))
                         for s, (x, y) in zip(scene_of, corner, strict=True)])
    smallest = np.zeros(len(corner), np.int8)
    if folded.insets:
        core = slice(folded.insets[-1], window - folded.insets[-1])
        seen = np.array([(weight[s][:, y : y + window, x : x + window][:, core, core] > 0).any((1, 2))
                         for s, (x, y) in zip(scene_of, corner, strict=True)])
        smallest = np.where((seen == measured).all(1), -len(folded.insets), 0).astype(np.int8)
    mean_galaxy = np.concatenate([np.zeros(folded.n_band + 2), bundle.start_shape])[None]
    coefficients = runtime.decode(mean_galaxy)
    squares = [
        drawing.stamps(coefficients, basis)[0].astype(np.float64) ** 2 for _, basis in folded.groups(len(corner))
    ]
    profile = [(square / square.sum((1, 2), keepdims=True)).astype(np.float32) for square in squares]
    problem = Problem(runtime=runtime, bundle=bundle, folded=folded, data=data, weight=weight, partition=[],
                      scene=scene_of, blend=np.zeros(0, np.int64), n_blend=0, corner=corner,
                      offset0=centers - corner, center_sigma=center_sigma, measured=measured, robust=robust,
                      star=star, extent=np.zeros(len(corner), np.int8), smallest=smallest, profile=profile,
                      own=np.ones(len(corner), bool) if part is None else part.own[rows[0]],
                      area=[(slice(half, -half), slice(half, -half))] * len(scenes) if part is None else [
                          (slice(y.start + half, y.stop + half), slice(x.start + half, x.stop + half))
                          for y, x in [part.area]], device=device)
    return find_blends(problem, np.full(len(corner), MIN_BLEND_RADIUS)), rows


def find_blends(problem: Problem, radius: DoubleArray) -> Problem:
    """Divide a problem into blends by the radii of its sources.

    Parameters
    ----------
    problem : Problem
    radius : float64 (n_source,) [pixel]

    Returns
    -------
    Problem
    """
    parts: list[Partition] = []
    blend = np.empty(len(problem.scene), np.int64)
    n_blend = 0
    for s, data in enumerate(problem.data):
        here = np.flatnonzero(problem.scene == s)
        centers = problem.corner[here] + problem.offset0[here] + problem.folded.half
        margin = np.where(problem.extended[here], problem.folded.margin, 0)
        part = partition(centers, radius[here], problem.corner[here] - margin[:, None],
                         problem.folded.window + 2 * margin, data.shape[1:3])
        parts.append(part)
        blend[here] = part.blend + n_blend
        n_blend += part.n_blend
    return dataclasses.replace(problem, partition=parts, blend=blend, n_blend=n_blend)


def light_radius(problem: Problem, coefficients: FloatArray) -> DoubleArray:
    """Compute the radius of a circle with each source's `light_area`.

    Parameters
    ----------
    problem : Problem
    coefficients : float32 (n_source, n_band, n_basis) [nJy]

    Returns
    -------
    float64 (n_source,) [pixel]
        At least `MIN_BLEND_RADIUS`, at most half the source's window.
    """
    area = light_area(problem, coefficients)
    largest = problem.folded.half + np.where(problem.extended, problem.folded.margin, 0)
    return np.clip(np.sqrt(area / np.pi), MIN_BLEND_RADIUS, largest)


def light_area(problem: Problem, coefficients: FloatArray) -> DoubleArray:
    """Measure the area where each source's light is significant, all bands together, on the image or off it.

    Parameters
    ----------
    problem : Problem
    coefficients : float32 (n_source, n_band, n_basis) [nJy]

    Returns
    -------
    float64 (n_source,) [pixel^2]
    """
    if problem.device is not None:
        from deblendrt.engine.compute.cuda import fluxes

        with problem.device.loaded(problem) as buffers:
            return fluxes.light_areas(buffers, coefficients, constants.SIGNIFICANT_LIGHT)
    weight = mean_weight(problem, problem.weight)
    area = np.empty(len(coefficients))
    noise = np.sqrt(weight).astype(np.float32)[:, :, None, None]
    for i, stamp in enumerate(drawing.each_stamp(coefficients, problem.folded, problem.extent)):
        significance = noise[i] * stamp
        np.square(significance, out=significance)
        area[i] = np.count_nonzero(significance.sum(0) > constants.SIGNIFICANT_LIGHT**2)
    return area


def start_latents(problem: Problem, start: str) -> tuple[Problem, DoubleArray, DoubleArray]:
    """Find the start of the descent, and divide the problem into blends by the light of that start.

    Parameters
    ----------
    problem : Problem
    start : {"linear", "encoder"}
        Shapes from the prior's mean, or from the encoder where its cutout can be filled.

    Returns
    -------
    problem : Problem
    latent : float64 (n_source, n_latent)
    floor : float64 (n_source, n_band) [ln nJy]
        Log fluxes are held above it; minus infinity in bands without weight.
    """
    n, n_band = problem.measured.shape
    latent = np.zeros((n, n_band + 2 + problem.bundle.n_shape))
    latent[:, n_band : n_band + 2] = problem.offset0
    latent[:, n_band + 2 :] = problem.bundle.start_shape
    flux: DoubleArray = np.zeros((n, n_band))
    problem = dataclasses.replace(problem, extent=problem.smallest)
    models: FloatArray | None = None
    for _ in range(constants.ENCODINGS if start == "encoder" else 1):
        if start == "encoder":
            shape, known = encoded_shapes(problem, models)
            latent[known, n_band + 2 :] = shape[known]
        latent[problem.star, n_band + 2 :] = 0.0
        latent[:, :n_band] = 0.0
        unit = decoding.decode(problem, latent)  # log flux 0: unit flux
        if models is None or not problem.robust:
            flux, sigma = joint_fluxes.linear_fluxes(problem, unit, flux, n_sweep=constants.START_SWEEPS)
        if problem.robust:  # unlisted stars lose weight: no source's shape explains their flux
            flux, sigma = joint_fluxes.linear_fluxes(problem, unit, flux, error=constants.START_ERROR,
                                                     n_sweep=constants.START_SWEEPS)
        lowest = constants.FLOOR_SIGMA * np.where(problem.measured, sigma, 1.0)
        log_flux = np.log(np.maximum(flux, lowest))
        latent[:, :n_band] = log_flux
        latent[:, :n_band] = np.where(problem.measured, log_flux, missing_color(problem, latent)[1])
        coefficients = models = decoding.decode(problem, latent)
        problem = dataclasses.replace(problem, extent=extents(problem, coefficients))
    divided = find_blends(problem, light_radius(problem, coefficients))
    return divided, latent, np.where(problem.measured, np.log(lowest), -np.inf)


def encoded_shapes(problem: Problem, coefficients: FloatArray | None) -> tuple[DoubleArray, NDArray[np.bool_]]:
    """Run the deblending encoder on cutouts of all sources.

    Parameters
    ----------
    problem : Problem
    coefficients : float32 (n_source, n_band, n_basis) [nJy], optional
        Present models: the light of the other sources is subtracted from every cutout. Default: nothing is subtracted.

    Returns
    -------
    shape : float64 (n_source, n_shape)
    known : bool (n_source,)
        Whether the `coverage` of `filled_cutout` reaches `constants.ENCODER_COVERAGE`.
    """
    size = problem.bundle.encoder_cutout_size
    first = problem.folded.half - size // 2
    n, n_band = problem.measured.shape
    cutouts = np.empty((n, n_band, size, size), np.float32)
    log_noise = np.empty((n, n_band))
    coverage = np.empty(n)
    data = problem.data
    if coefficients is not None:
        data = [y - m for y, m in zip(data, objective.render(problem, coefficients), strict=True)]
    inside = slice(first, first + size)
    for rows, basis in drawing.runs(problem.folded, n):
        own = None if coefficients is None else drawing.stamps(coefficients[rows], basis)[:, :, inside, inside]
        for i in range(rows.start, rows.stop):
            s, (x, y) = problem.scene[i], problem.corner[i]
            area = (slice(None), slice(y + first, y + first + size), slice(x + first, x + first + size))
            seen = data[s][area] if own is None else data[s][area] + own[i - rows.start]
            cutouts[i], log_noise[i], coverage[i] = filled_cutout(seen, problem.weight[s][area], problem.bundle)
    fwhm = np.broadcast_to(problem.folded.fwhm, (n, n_band))
    latent = problem.runtime.encode(cutouts, problem.offset0, np.concatenate([fwhm, log_noise], 1))
    return latent[:, n_band + 2 :].astype(np.float64), coverage >= constants.ENCODER_COVERAGE


def filled_cutout(data: FloatArray, weight: FloatArray, bundle: Bundle) -> tuple[FloatArray, DoubleArray, float]:
    """Fill a cutout, in units of its noise: the encoder needs every pixel in every band.

    A pixel that a band lacks is filled from the other bands, with the population's mean colours. A pixel that all bands
    lack is filled with the pixel opposite to it, as galaxies look the same from both sides, or else with the mean of
    its neighbours.

    Parameters
    ----------
    data, weight : float32 (n_band, size, size) [nJy], [nJy^-2]
        Centred on a source.
    bundle : Bundle

    Returns
    -------
    cutout : float32 (n_band, size, size)
    log_noise : float64 (n_band,) [ln nJy]
    coverage : float
        Fraction of the pixels that are known in some band, or whose opposite pixel is.
    """
    measured = weight > 0
    if measured.all():
        return data * np.sqrt(weight), -0.5 * np.log(weight.mean((1, 2), dtype=np.float64)), 1.0
    count = measured.sum((1, 2))
    present = count > 0
    mean = weight.sum((1, 2), dtype=np.float64) / np.maximum(count, 1)
    sigma = np.where(present, 1 / np.sqrt(np.where(present, mean, 1.0)), np.asarray(bundle.sky_sigma))
    color = np.exp(np.asarray(bundle.mean_color, np.float32))[:, None, None]
    scaled = weight * color**2
    total = scaled.sum(0)
    light = (scaled * data / color).sum(0) / np.where(total > 0, total, 1)  # in the reference band
    known = total > 0
    opposite = known[::-1, ::-1] & ~known
    light[opposite] = light[::-1, ::-1][opposite]
    known = known | opposite
    coverage = float(known.mean())
    for _ in range(constants.MAX_HOLE):
        if known.all():
            break
        near, n_near = (_neighbours(a) for a in (np.where(known, light, 0), known.astype(np.float32)))
        light = np.where(known | (n_near == 0), light, near / np.maximum(n_near, 1))
        known = known | (n_near > 0)
    # a missing band has the noise of the bands that fill it, or its nominal noise if that is more
    deepest = float(total.max())
    sigma = np.where(present | (deepest == 0), sigma, np.maximum(sigma, color[:, 0, 0] / np.sqrt(max(deepest, 1e-30))))
    filled = color * light / sigma[:, None, None]
    return np.where(measured, data * np.sqrt(weight), filled).astype(np.float32), np.log(sigma), coverage


def _neighbours(image: FloatArray) -> FloatArray:
    """Sum over the 3 x 3 pixels around every pixel."""
    padded = np.pad(image, 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return np.asarray(rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:], np.float32)
