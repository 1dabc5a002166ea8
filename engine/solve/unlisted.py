"""Sources that the list lacks, as neighbours of the listed ones: fitted with them, and left out of the result.

Without them a galaxy near an unlisted source grows to cover its light, which the prior hardly resists: thousands of
sigma stand against the ten or so of an unusual shape. No bound on single pixels helps, as the light that is covered is
faint everywhere. So peaks in the residual of the start, models of the encoder's shapes, are fitted like galaxies of the
list, and stay if they lower the objective. Models are rough at the start: half of the brightest light within `REACH`
counts as noise. On complete lists of simulated blends three scenes in two hundred have such a peak; of deleted galaxies
all are found that are 3 arcsec from listed ones, 85% between 2 and 3, half between 1 and 2. The rest shows in the
residual of the fit; sources near any peak are flagged.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import decoding
from deblendrt.engine.compute.filters import brightest
from deblendrt.engine.compute.problem import DoubleArray, FloatArray, Problem
from deblendrt.engine.scene.patches import Part
from deblendrt.engine.scene.scene import Scene, with_sources
from deblendrt.engine.solve import constants, objective, residual_peaks
from deblendrt.engine.solve.descent import Solution

UNLISTED_THRESHOLD = 10.0  # fainter ones do their neighbours little harm, and misfits of the start are many
GAIN = 25.0  # by which each must lower the objective: one that was none raised it by 15
REACH = 2.0  # PSF FWHM
BLINDING = 3000.0  # significance: the misfit of such a one is noise to those within reach, who do better without
NEAR = 3.0  # arcsec
BRIGHT, POINT = 100.0, 0.8  # significance, concentration: stars have 0.9 under Kolmogorov PSFs, small galaxies 0.7


def peaks(scenes: list[Scene], problem: Problem, latent: DoubleArray) -> list[NDArray[np.float64]]:
    """Peaks of the residual at the start of a descent.

    Parameters
    ----------
    scenes : list of Scene
        Of the problem.
    problem : Problem
    latent : float64 (n_source, n_latent)

    Returns
    -------
    list of float64 (n_peak, 3)
        Per scene, x, y [pixel], and 1 for a star.
    """
    model = objective.render(problem, decoding.decode(problem, latent))
    fwhm = np.atleast_2d(problem.folded.fwhm).mean(0)
    reach = int(np.ceil(REACH * fwhm.mean()))
    found = []
    for s, scene in enumerate(scenes):
        image, weight, m = (_inner(problem, canvases[s]) for canvases in (problem.data, problem.weight, model))
        near = residual_peaks.residual_peaks(image, weight, m, fwhm, scene.centers, UNLISTED_THRESHOLD,
                                             np.float32(constants.START_ERROR) * brightest(m, reach))
        listed = scene.centers[np.isfinite(scene.centers).all(1)]
        apart = np.hypot(*(near[:, None, :2] - listed).transpose(2, 0, 1)).min(1, initial=np.inf)
        found.append(near[(near[:, 2] < BLINDING) | (apart > reach)])
        for peak in found[-1]:
            peak[2] = peak[2] > BRIGHT and concentration(image, weight, m, fwhm, peak[:2]) > POINT
    return found


def _inner(problem: Problem, canvas: FloatArray) -> FloatArray:
    """A canvas without its border, a view."""
    half = problem.folded.half
    return canvas[:, half:-half, half:-half]


def concentration(image: FloatArray, inverse_variance: FloatArray, model: FloatArray, fwhm: DoubleArray,
                  position: DoubleArray) -> float:
    """Light of the residual within half a FWHM over that within one and a half, in the clearest band; Gaussians: 1."""
    x, y = position
    row, column = np.indices(image.shape[1:])
    distance = np.hypot(row - y, column - x)
    inner, outer = (distance <= factor * fwhm.mean() for factor in (0.5, 1.5))
    residual = np.where(inverse_variance > 0, image - model, 0)
    light = residual[:, outer].sum(1)
    weight = inverse_variance[:, outer].mean(1)
    band = int(np.argmax(light * np.sqrt(weight)))
    point = np.exp(-4 * np.log(2) * (distance / fwhm[band]) ** 2)
    return float(residual[band, inner].sum() / max(light[band], 1e-30) * point[outer].sum() / point[inner].sum())


def left(scenes: list[Scene], solution: Solution) -> list[NDArray[np.float64]]:
    """Peaks of the residual of a solution; as `peaks`."""
    problem = solution.problem
    fwhm = np.atleast_2d(problem.folded.fwhm).mean(0)
    found = []
    for s, scene in enumerate(scenes):
        image, weight, m = (_inner(problem, canvases[s])
                            for canvases in (problem.data, problem.weight, solution.state.model))
        found.append(residual_peaks.residual_peaks(image, weight, m, fwhm, scene.centers)[:, :2])
    return found


def with_peaks(scene: Scene, found: NDArray[np.float64], window_half: int,
               part: Part | None) -> tuple[Scene, Part | None]:
    """A scene, and the part that it is, with what was found at the end of its list."""
    more = with_sources(scene, found[:, :2], window_half)
    more = dataclasses.replace(more, star=np.append(scene.star, found[:, 2] > 0))
    if part is not None:
        added = len(found)
        part = dataclasses.replace(part, scene=more, rows=np.append(part.rows, np.full(added, -1)),
                                   own=np.append(part.own, np.zeros(added, bool)))
    return more, part
