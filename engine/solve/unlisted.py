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
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.scene.patches import Part, adopt_rows
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
    half = problem.folded.half
    model = objective.render(problem, decoding.decode(problem, latent))
    fwhm = np.atleast_2d(problem.folded.fwhm).mean(0)
    reach = int(np.ceil(REACH * fwhm.mean()))
    found = []
    for scene, padded in zip(scenes, model, strict=True):
        m = padded[:, half:-half, half:-half]
        near = residual_peaks.residual_peaks(scene, m, fwhm, scene.centers, UNLISTED_THRESHOLD,
                                     np.float32(constants.START_ERROR) * brightest(m, reach))
        listed = scene.centers[np.isfinite(scene.centers).all(1)]
        apart = np.hypot(*(near[:, None, :2] - listed).transpose(2, 0, 1)).min(1, initial=np.inf)
        found.append(near[(near[:, 2] < BLINDING) | (apart > reach)])
        for peak in found[-1]:
            peak[2] = peak[2] > BRIGHT and concentration(scene, m, fwhm, peak[:2]) > POINT
    return found


def concentration(scene: Scene, model: FloatArray, fwhm: DoubleArray, position: DoubleArray) -> float:
    """Light of the residual within half a FWHM over that within one and a half, in the clearest band; Gaussians: 1."""
    x, y = position
    row, column = np.indices(scene.shape)
    distance = np.hypot(row - y, column - x)
    inner, outer = (distance <= factor * fwhm.mean() for factor in (0.5, 1.5))
    residual = np.where(scene.inverse_variance > 0, scene.image - model, 0)
    light = residual[:, outer].sum(1)
    weight = scene.inverse_variance[:, outer].mean(1)
    band = int(np.argmax(light * np.sqrt(weight)))
    point = np.exp(-4 * np.log(2) * (distance / fwhm[band]) ** 2)
    return float(residual[band, inner].sum() / max(light[band], 1e-30) * point[outer].sum() / point[inner].sum())


def left(scenes: list[Scene], solution: Solution) -> list[NDArray[np.float64]]:
    """Peaks of the residual of a solution; as `peaks`."""
    problem, half = solution.problem, solution.problem.folded.half
    fwhm = np.atleast_2d(problem.folded.fwhm).mean(0)
    return [residual_peaks.residual_peaks(scene, m[:, half:-half, half:-half], fwhm, scene.centers)[:, :2]
            for scene, m in zip(scenes, solution.state.model, strict=True)]


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


def adopt_listed(result: DeblendResult, i_scene: int, solved: DeblendResult, i_solved: int,
                 blends: dict[int, NDArray[np.float32]], pixel_scale: float) -> dict[int, NDArray[np.float32]]:
    """Write the listed sources of a solved scene into the result, those near others flagged; as `adopt_rows`."""
    rows, of_solved = (np.arange(r.n_source)[r.sources(i)] for r, i in ((result, i_scene), (solved, i_solved)))
    flag_near(solved, [i_solved], [solved.center[of_solved[len(rows) :]]], pixel_scale)
    result.scene_chi2[i_scene] = solved.scene_chi2[i_solved]
    result.objective[i_scene] = solved.objective[i_solved]
    return adopt_rows(result, rows, solved, of_solved[: len(rows)], blends)


def flag_near(result: DeblendResult, members: list[int], found_in: list[NDArray[np.float64]],
              pixel_scale: float) -> None:
    """Flag the sources with a peak (x, y) of the residual nearby."""
    for i, found in zip(members, found_in, strict=True):
        rows = result.sources(i)
        if len(found):
            distance = np.hypot(*(result.center[rows, None] - found).transpose(2, 0, 1)).min(1)
            result.flags[rows] |= np.where(distance * pixel_scale < NEAR, int(Flag.NEAR_RESIDUAL_PEAK), 0)
