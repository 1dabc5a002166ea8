r"""Unlisted sources: found in the residual of the start, fitted with the listed sources, left out of the result.

Without them, a galaxy near an unlisted source grows until it covers that source's light. The prior hardly resists: the
light is worth thousands of sigma, an unusual shape costs about ten. A bound on single pixels does not help, as the
light is faint in every pixel.

Peaks in the residual of the start are fitted as further sources. They stay if they lower the objective. Models are
rough at the start: half of the brightest light within `constants.PEAK_REACH` counts as noise. Three in two hundred
simulated blends with complete lists have a peak. Of galaxies deleted from the lists, the search finds all at 3 arcsec
from listed sources, 85% between 2 and 3 arcsec, and half between 1 and 2. The other deleted galaxies show in the
residual of the fit. Sources near any peak are flagged.

Peaks are found by a matched filter (`residual_peaks`). With r the residual, W the weights and g_b a Gaussian of the
PSF's width in band b, a point source at p has the signal to noise

    s_b(p) = sum_q W r g_b(q - p) / sqrt(sum_q W g_b(q - p)^2),        s = sqrt(sum_b max(s_b, 0)^2)

W counts 5% of the model as noise: the rings of a bright galaxy's misfit must not count as sources. Peaks in the wings
of a brighter peak do not count either. Near a peak of signal to noise S, at the distance d, these are peaks below
S (1 + (d / FWHM)^2)^-2.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import decoding
from deblendrt.engine.compute.filters import Plane, brightest
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.scene.patches import Part
from deblendrt.engine.scene.scene import Scene, with_sources
from deblendrt.engine.solve import constants, objective
from deblendrt.engine.solve.descent import Solution
from deblendrt.engine.units import DoubleArray, FloatArray


def peaks(scenes: list[Scene], problem: Problem, latent: DoubleArray) -> list[NDArray[np.float64]]:
    """Find the peaks of the residual at the start of a descent.

    Parameters
    ----------
    scenes : list of Scene
        Scenes of the problem.
    problem : Problem
    latent : float64 (n_source, n_latent)

    Returns
    -------
    list of float64 (n_peak, 3)
        For each scene: x, y [pixel], and 1 for a star.
    """
    model = objective.render(problem, decoding.decode(problem, latent))
    fwhm = np.atleast_2d(problem.folded.fwhm).mean(0)
    reach = int(np.ceil(constants.PEAK_REACH * fwhm.mean()))
    found = []
    for s, scene in enumerate(scenes):
        image, weight, m = (_inner(problem, canvases[s]) for canvases in (problem.data, problem.weight, model))
        near = residual_peaks(image, weight, m, fwhm, scene.centers, constants.UNLISTED_THRESHOLD,
                              np.float32(constants.START_ERROR) * brightest(m, reach))
        listed = scene.centers[np.isfinite(scene.centers).all(1)]
        apart = np.hypot(*(near[:, None, :2] - listed).transpose(2, 0, 1)).min(1, initial=np.inf)
        found.append(near[(near[:, 2] < constants.BLINDING_PEAK) | (apart > reach)])
        for peak in found[-1]:
            peak[2] = (peak[2] > constants.STAR_SIGNIFICANCE
                       and concentration(image, weight, m, fwhm, peak[:2]) > constants.STAR_CONCENTRATION)
    return found


def _inner(problem: Problem, canvas: FloatArray) -> FloatArray:
    """View a canvas without its border."""
    half = problem.folded.half
    return canvas[:, half:-half, half:-half]


def concentration(image: FloatArray, inverse_variance: FloatArray, model: FloatArray, fwhm: DoubleArray,
                  position: DoubleArray) -> float:
    """Ratio of the residual's light within 0.5 and 1.5 FWHM of a peak, in its clearest band; 1 for a Gaussian PSF."""
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
    """Find the peaks of the residual of a solution, float64 (n_peak, 2) for each scene."""
    problem = solution.problem
    fwhm = np.atleast_2d(problem.folded.fwhm).mean(0)
    found = []
    for s, scene in enumerate(scenes):
        image, weight, m = (_inner(problem, canvases[s])
                            for canvases in (problem.data, problem.weight, solution.state.model))
        found.append(residual_peaks(image, weight, m, fwhm, scene.centers)[:, :2])
    return found


def with_peaks(scene: Scene, found: NDArray[np.float64], window_half: int,
               part: Part | None) -> tuple[Scene, Part | None]:
    """Add peaks to the end of a scene's list, and to its `Part` if the scene is a part of an image."""
    more = with_sources(scene, found[:, :2], window_half)
    more = dataclasses.replace(more, star=np.append(scene.star, found[:, 2] > 0))
    if part is not None:
        added = len(found)
        part = dataclasses.replace(part, scene=more, rows=np.append(part.rows, np.full(added, -1)),
                                   own=np.append(part.own, np.zeros(added, bool)))
    return more, part


def residual_peaks(image: NDArray[np.float32], inverse_variance: NDArray[np.float32], model: NDArray[np.float32],
                   fwhm: NDArray[np.float64], listed: NDArray[np.float64], threshold: float = constants.PEAK_THRESHOLD,
                   doubt: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
    """Find the peaks of a scene's residual, the most significant first.

    Parameters
    ----------
    image : float32 (n_band, n_y, n_x) [nJy]
    inverse_variance : float32 (n_band, n_y, n_x) [nJy^-2]
    model : float32 (n_band, n_y, n_x) [nJy]
    fwhm : float64 (n_band,) [pixel]
        FWHM of the PSFs.
    listed : float64 (n_source, 2) [pixel]
        Positions (x, y) of the sources in the model: no peak is reported within one FWHM of them.
    threshold : float
        Least significance of a peak.
    doubt : float32 (n_band, n_y, n_x) [nJy], optional
        Standard error of the model, which counts as noise; default 5% of the model.

    Returns
    -------
    float64 (n_peak, 3)
        x, y [pixel], significance. Peaks are at least one FWHM apart.
    """
    significance = np.sqrt(_square(image, inverse_variance, model, fwhm, doubt))
    n_y, n_x = significance.shape
    y, x = np.nonzero(significance > threshold)
    height = significance[y, x]
    highest = (inverse_variance[:, y, x] > 0).any(0)
    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        highest &= height >= significance[np.clip(y + dy, 0, n_y - 1), np.clip(x + dx, 0, n_x - 1)]
    y, x, height = y[highest], x[highest], height[highest].astype(np.float64)
    order = np.argsort(-height, kind="stable")
    apart = float(fwhm.mean())
    listed_x, listed_y = listed[np.isfinite(listed).all(1)].T
    peaks = np.empty((len(order), 3))
    n = 0
    for row, column, peak in zip(y[order].tolist(), x[order].tolist(), height[order].tolist(), strict=True):
        here_x = column + _vertex(significance[row], column)
        here_y = row + _vertex(significance[:, column], row)
        if (np.hypot(here_x - listed_x, here_y - listed_y) < apart).any():
            continue
        distance = np.hypot(here_x - peaks[:n, 0], here_y - peaks[:n, 1])
        wings = peaks[:n, 2] / (1 + (distance / apart) ** 2) ** 2
        if (distance >= apart).all() and peak > wings.max(initial=0.0):
            peaks[n] = here_x, here_y, peak
            n += 1
    return peaks[:n].copy()


def _square(image: NDArray[np.float32], inverse_variance: NDArray[np.float32], model: NDArray[np.float32],
            fwhm: NDArray[np.float64], doubt: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Compute s^2, the squared significance of a point source at every pixel; float32 (n_y, n_x)."""
    plane = Plane((image.shape[1], image.shape[2]), max(map(_half, fwhm), default=0))
    signal, power, square = (np.zeros(plane.n, np.float32) for _ in range(3))
    unit = plane.image
    for b, (data, weight, m, width) in enumerate(zip(image, inverse_variance, model, fwhm, strict=True)):
        if not weight.any():
            continue
        kernel = np.exp(-0.5 * (np.arange(_half(width) + 1) * 2.3548 / width) ** 2)
        np.multiply(constants.MODEL_ERROR, m, out=unit) if doubt is None else np.copyto(unit, doubt[b])
        np.square(unit, out=unit)
        np.multiply(unit, weight, out=unit)
        np.add(unit, 1, out=unit)
        np.divide(weight, unit, out=unit)
        plane.correlate(kernel**2, power)
        np.multiply(unit, data - m, out=unit)
        plane.correlate(kernel, signal)
        np.maximum(signal, 0, out=signal)
        np.maximum(power, np.finfo(np.float32).tiny, out=power)  # without weight the signal is zero as well
        np.divide(signal, power, out=power)  # before the square, which might overflow
        np.multiply(power, signal, out=power)
        np.add(square, power, out=square)
    return plane.rows(square)


def _half(fwhm: float) -> int:
    return int(np.ceil(1.3 * fwhm))  # three sigma


def _vertex(line: NDArray[np.float32], i: int) -> float:
    """Offset of a maximum from its pixel, by the parabola through its neighbours."""
    if not 0 < i < len(line) - 1:
        return 0.0
    before, peak, after = line[i - 1 : i + 2].tolist()
    bend = before - 2 * peak + after
    return min(max(0.5 * (before - after) / bend, -0.5), 0.5) if bend < 0 else 0.0
