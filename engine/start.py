"""From checked scenes to a problem for the solver, and the latents that it starts from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine import objective, photometry
from deblendrt.engine.blends import partition
from deblendrt.engine.bundle import Bundle
from deblendrt.engine.flags import NOT_FITTED
from deblendrt.engine.objective import DoubleArray, Problem
from deblendrt.engine.psf import FoldedBasis
from deblendrt.engine.runtime import Runtime
from deblendrt.engine.scene import Scene

SWEEPS = 3  # of the joint linear solve
START_ERROR = 0.5  # relative error of a model of mean shapes, for the robust weights
FLOOR_SIGMA = 0.05  # log fluxes are held above this many standard deviations of the linear flux


def build_problem(scenes: list[Scene], folded: FoldedBasis, runtime: Runtime, bundle: Bundle, *, center_sigma: float,
                  robust: bool) -> tuple[Problem, list[NDArray[np.int64]]]:
    """Put the sources that can be fitted on padded canvases.

    Parameters
    ----------
    scenes : list of Scene
        Each with at least one source that can be fitted.
    folded : FoldedBasis
        Common to the scenes.
    runtime : Runtime
    bundle : Bundle
    center_sigma : float [pixel]
    robust : bool

    Returns
    -------
    problem : Problem
    rows : list of int64 (n_fitted,)
        Per scene, which of its sources are in the problem.
    """
    half, window = folded.half, folded.window
    border = ((0, 0), (half, half), (half, half))
    data, weight, parts, rows, blend, corner, offset = [], [], [], [], [], [], []
    n_blend = 0
    for scene in scenes:
        good = np.flatnonzero((scene.flags & NOT_FITTED) == 0)
        anchors = scene.anchors[good]  # a window's first pixel on the canvas is its anchor on the image
        data.append(np.pad(scene.image, border))
        weight.append(np.pad(scene.inverse_variance, border))
        part = partition(scene.centers[good] + half, anchors, window, (data[-1].shape[1], data[-1].shape[2]))
        parts.append(part)
        rows.append(good)
        blend.append(part.blend + n_blend)
        n_blend += part.n_blend
        corner.append(anchors)
        offset.append(scene.centers[good] - anchors)
    corners = np.concatenate(corner)
    scene_of = np.repeat(np.arange(len(scenes)), [len(r) for r in rows])
    measured = np.array([(weight[s][:, y : y + window, x : x + window] > 0).any((1, 2))
                         for s, (x, y) in zip(scene_of, corners, strict=True)])
    problem = Problem(runtime=runtime, bundle=bundle, folded=folded, data=data, weight=weight, partition=parts,
                      scene=scene_of, blend=np.concatenate(blend), n_blend=n_blend, corner=corners,
                      offset0=np.concatenate(offset), center_sigma=center_sigma, measured=measured, robust=robust)
    return problem, rows


def start_latents(problem: Problem, start: str) -> tuple[DoubleArray, DoubleArray]:
    """Where the descent starts, and the floor of its log fluxes.

    Parameters
    ----------
    problem : Problem
    start : {"linear", "encoder"}
        Shapes at the prior's mean, or from the deblending encoder. Fluxes come from a joint linear solve.

    Returns
    -------
    latent : float64 (n_source, n_latent)
    floor : float64 (n_source, n_band) [ln nJy]
    """
    n, n_band = problem.measured.shape
    latent = np.zeros((n, n_band + 2 + problem.bundle.n_shape))
    latent[:, n_band : n_band + 2] = problem.offset0
    latent[:, n_band + 2 :] = encoded_shapes(problem) if start == "encoder" else problem.bundle.start_shape
    unit = problem.runtime.decode(latent)  # log flux 0: unit flux
    flux, sigma = photometry.linear_fluxes(problem, unit, np.zeros((n, n_band)), n_sweep=SWEEPS)
    if problem.robust:  # again without the flux that the mean shapes leave wholly unexplained: unlisted stars
        flux, sigma = photometry.linear_fluxes(problem, unit, flux, error=START_ERROR, n_sweep=SWEEPS)
    lowest = FLOOR_SIGMA * np.where(problem.measured, sigma, 1.0)
    log_flux = np.log(np.maximum(flux, lowest))
    latent[:, :n_band] = log_flux
    latent[:, :n_band] = np.where(problem.measured, log_flux, objective.missing_color(problem, latent)[1])
    return latent, np.where(problem.measured, np.log(lowest), -np.inf)


def encoded_shapes(problem: Problem) -> DoubleArray:
    """Shapes that the deblending encoder suggests, float64 (n_source, n_shape)."""
    size = problem.bundle.encoder_cutout_size
    first = problem.folded.half - size // 2
    n, n_band = problem.measured.shape
    cutouts = np.empty((n, n_band, size, size), np.float32)
    log_noise = np.zeros((n, n_band))
    for i, (s, (x, y)) in enumerate(zip(problem.scene, problem.corner, strict=True)):
        area = (slice(None), slice(y + first, y + first + size), slice(x + first, x + first + size))
        weight = problem.weight[s][area]
        cutouts[i] = problem.data[s][area] * np.sqrt(weight)
        mean = weight.sum((1, 2), dtype=np.float64) / np.maximum((weight > 0).sum((1, 2)), 1)
        log_noise[i] = np.where(mean > 0, -0.5 * np.log(np.where(mean > 0, mean, 1.0)), 0.0)
    fwhm = np.where(problem.measured, problem.folded.fwhm, 0.0)
    summary = np.concatenate([fwhm, log_noise], 1)
    return problem.runtime.encode(cutouts, problem.offset0, summary)[:, n_band + 2 :].astype(np.float64)
