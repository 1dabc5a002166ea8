r"""Star or galaxy: both models are fitted to a source, and their evidences are compared.

A source of kind "auto" is first fitted as a galaxy, together with all other sources. Then the models of the other
sources are subtracted from the image around it. A star is fitted to the rest. The galaxy is fitted to the rest as well,
from its first fit on. For both kinds k,

    P(star) = f Z_star / (f Z_star + (1 - f) Z_galaxy),      f = star_fraction,
    ln Z_k = -L_k + 1/2 g' A^-1 g - 1/2 ln det A + n_k/2 ln 2 pi

This is the Laplace approximation of the integral of exp(-L) over all parameters. L is the objective and g its downhill
gradient where the fit stopped, one Newton step short of the minimum. A is the posterior precision of `uncertainty`. In
both kinds, fluxes have the same flat (improper) prior and positions the same Gaussian prior, so both priors cancel. n_k
is the number of other parameters: the shape latents of a galaxy, whose density under the flow is normalised; 0 for a
star.

Neither model is exact. Model errors of the same size for both kinds count as noise. Without them, the high S/N of a
bright source would make a wrong answer look certain:

- Every pixel has the weight w / (1 + w (e m)^2 + w (e' n)^2), with m the source's model and n the model of all others.
  e is the decoder's error; e' is larger, since neighbours may have been fitted as the wrong kind. With e' = e, the mean
  -ln P(truth) of sources in simulated blends was 1.2 instead of 0.6.
- The PSF of band b may be wider than given, by a factor 1 + d_b, and it may have heavier wings, as a mixture of widths
  has. To first order this adds d_b t_b + h_b t'_b to the model, where t is the first derivative of the star's image by
  ln(width) and t' the second. d and h are Gaussian around zero, with an error of each band and an error common to all
  (`PSF_ERRORS`). They join the parameters in g and A; both kinds use the star's t. Without d, and with a PSF 3% too
  wide, two thirds of the stars brighter than i = 23 (23 of 34, alone) were called galaxies.
- Pixels count within `RADIUS` PSF widths (FWHM) of the centre: farther out lie a PSF's wings and neighbours' misfit.
  Without this limit and without h, the unlisted star of a DC2 coadd (S/N 33,000) was called a galaxy: the given PSF
  image has other wings than the star.
- The decoder never saw shapes that are less probable than 99.9% of the population. With such a shape it may follow the
  image of a bright star better than the star model with a wrong PSF image does. A source with such a shape is called a
  galaxy only if the galaxy's objective is less than a third of the star's. (For the DC2 star above it is 1 / 1.7.)

The likelihood is the robust likelihood of `objective`, with these weights. The flux components of g come from the
likelihood alone: the model is linear in the fluxes, but the flow's slope is by ln(flux). It would pull a source whose
flux is at its floor.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import canvases, drawing
from deblendrt.engine.compute.device_protocol import ComputeDevice
from deblendrt.engine.compute.problem import DoubleArray, FloatArray, Problem
from deblendrt.engine.measure import uncertainty
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.networks import Runtime
from deblendrt.engine.result.fitted_scenes import FittedScenes
from deblendrt.engine.scene.images import ReadyImages
from deblendrt.engine.scene.scene import Scene
from deblendrt.engine.solve import constants, curvature, descent
from deblendrt.engine.solve.descent import Solution
from deblendrt.engine.solve.prior import prior_precision
from deblendrt.engine.solve.start import build_problem, start_latents

KIND_MODEL_ERROR, NEIGHBOUR_ERROR = 0.02, 0.1  # e, e'
PSF_ERRORS = ((0.01, 0.02), (0.01, 0.01))  # of d, of h: error of each band, error common to all bands
RADIUS = 1.6  # in units of the mean FWHM
CONVINCING = 3.0  # least ratio of the objectives, star over galaxy, for a galaxy of an impossible shape
CERTAIN = 30.0  # ln(Z_star / Z_galaxy) of sources that are called stars by `CONVINCING`
N_ITERATION = 4  # iterations of each of the two fits
SOURCES_AT_ONCE = drawing.TILE


def star_probability(result: FittedScenes, rows: NDArray[np.int64], runtime: Runtime, bundle: Bundle,
                     device: ComputeDevice | None, *,
                     center_sigma: float, star_fraction: float, n_threads: int) -> DoubleArray:
    """Compute the probability of each source to be a star.

    Parameters
    ----------
    result : FittedScenes
    rows : int64 (n_row,)
        Sources that were fitted as galaxies, ascending.
    runtime : Runtime
    bundle : Bundle
    device : ComputeDevice, optional
        Device that computes instead of NumPy.
    center_sigma : float [pixel]
    star_fraction : float
        Prior probability of a star.
    n_threads : int

    Returns
    -------
    float64 (n_row,)
    """
    chunks: list[NDArray[np.int64]] = []
    for k in np.unique(result.folded_index[rows]):
        same = np.flatnonzero(result.folded_index[rows] == k)
        chunks += [same[i : i + SOURCES_AT_ONCE] for i in range(0, len(same), SOURCES_AT_ONCE)]

    model = functools.lru_cache(maxsize=2)(result.model)  # the chunks of a scene follow each other

    def ratio(chunk: NDArray[np.int64]) -> DoubleArray:
        return log_evidence_ratio(result, rows[chunk], model, runtime, bundle, device, center_sigma)

    with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:
        ratios = list(pool.map(ratio, chunks))
    log_odds = np.empty(len(rows))
    for chunk, log_ratio in zip(chunks, ratios, strict=True):
        log_odds[chunk] = log_ratio + np.log(star_fraction / (1 - star_fraction))
    return np.asarray(0.5 * (1 + np.tanh(0.5 * log_odds)))


def log_evidence_ratio(result: FittedScenes, rows: NDArray[np.int64], model: Callable[[int], FloatArray],
                       runtime: Runtime, bundle: Bundle, device: ComputeDevice | None,
                       center_sigma: float) -> DoubleArray:
    """Compute ln(Z_star / Z_galaxy) of sources that share a folded basis, float64 (n_row,)."""
    n_band = len(result.bands)
    alone = scenes_alone(result, rows, model)
    folded = result.folded[result.folded_index[rows[0]]]
    widening: list[FloatArray] = []
    evidence, objective = [], []
    for star in (True, False):
        scenes = [dataclasses.replace(scene, star=np.array([star])) for scene in alone]
        problem, _ = build_problem(scenes, folded, runtime, bundle, center_sigma=center_sigma, robust=True,
                                   device=device)
        problem, latent, floor = start_latents(problem, "linear")
        latent[:, n_band : n_band + 2] = problem.offset0 + result.position[rows] - result.center[rows]
        if not star:
            latent[:, :n_band] = result.latent[rows, :n_band]
            latent[:, n_band + 2 :] = result.latent[rows, n_band + 2 :]
        solution = descent.solve(problem, latent, floor, "gauss_newton", N_ITERATION)
        if star:
            center = problem.corner + folded.half + solution.state.latent[:, n_band : n_band + 2]
            for star_image, (x, y) in zip(solution.state.model, center, strict=True):
                first = widened(star_image, x, y)
                widening.append(np.stack([first, widened(first, x, y)], 1))
        evidence.append(log_evidence(problem, solution, widening))
        objective.append(solution.objective)
    impossible = solution.state.log_prior < bundle.log_prob_percentiles["0.1"]
    return np.where(impossible & (objective[0] < CONVINCING * objective[1]), CERTAIN, evidence[0] - evidence[1])


def scenes_alone(result: FittedScenes, rows: NDArray[np.int64], model: Callable[[int], FloatArray]) -> list[Scene]:
    """Cut out each source without the models of all others; its weights include model errors.

    Parameters
    ----------
    result : FittedScenes
    rows : int64 (n_row,)
        Sources that were fitted.
    model : callable
        Number of a scene to its model image.

    Returns
    -------
    list of Scene
        One source each, with weight within `RADIUS`.
    """
    scenes: list[Scene] = []
    for i in rows.tolist():
        scene = result.scenes[result.scene_index[i]]
        folded = result.folded[result.folded_index[i]]
        half = min(int(np.ceil(RADIUS * folded.fwhm.mean())), folded.half)
        size, (x, y) = 2 * half + 1, (result.anchor[i] - half).tolist()
        center = result.center[[i]] - [x, y]
        distance = np.hypot(*(np.mgrid[:size, :size] - center[0, ::-1, None, None]))
        inside = slice(folded.half - half, folded.half + half + 1)
        own = drawing.stamps(result.coefficients[[i]], folded)[0][:, inside, inside]
        others = canvases.window_of(model(int(result.scene_index[i])), x, y, size) - own
        image, w = scene.window(x, y, size)
        image = result.without_sky(int(result.scene_index[i]), image, w)
        w = w / (1 + w * ((np.float32(KIND_MODEL_ERROR) * own) ** 2 + (np.float32(NEIGHBOUR_ERROR) * others) ** 2))
        w[:, distance > RADIUS * folded.fwhm.mean()] = 0
        scenes.append(dataclasses.replace(
            scene, images=ReadyImages(np.where(w > 0, image - others, np.float32(0)), w), centers=center,
            flags=np.zeros(1, np.int64), star=np.zeros(1, bool), auto=np.zeros(1, bool)))
    return scenes


def widened(star: FloatArray, x: float, y: float) -> FloatArray:
    """Compute the derivative of a star's image m by ln(PSF width), -(2 m + (p - p_star) . grad m).

    Parameters
    ----------
    star : float32 (n_band, n_y, n_x)
    x, y : float [pixel]
        Position of the star.

    Returns
    -------
    float32 (n_band, n_y, n_x)
    """
    _, n_y, n_x = star.shape
    by_y, by_x = np.gradient(star, axis=(1, 2))
    return np.asarray(-(2 * star + (np.arange(n_x) - x) * by_x + (np.arange(n_y) - y)[:, None] * by_y), np.float32)


def log_evidence(problem: Problem, solution: Solution, widening: list[FloatArray]) -> DoubleArray:
    """Compute ln Z of sources that are alone in their scenes, without terms that both kinds have in common.

    Parameters
    ----------
    problem : Problem
    solution : Solution
    widening : list of float32 (n_band, 2, n_y, n_x)
        t and t', per scene.

    Returns
    -------
    float64 (n_source,)
    """
    state, n_band = solution.state, problem.n_band
    unit = curvature.unit_columns(state)
    prior = prior_precision(problem, state.latent)
    downhill = solution.downhill.copy()
    downhill[:, :n_band] -= state.prior_gradient[:, :n_band]
    downhill[:, :n_band] /= np.exp(state.latent[:, :n_band])
    result = -solution.objective
    result += np.where(problem.star, 0.0, 0.5 * problem.bundle.n_shape * np.log(2 * np.pi))
    window = problem.folded.window
    band = np.arange(n_band)
    for i, (x, y) in enumerate(problem.corner):
        inside = (..., slice(y, y + window), slice(x, x + window))
        weight, rest = (image[i][inside].reshape(n_band, 1, -1) for image in (solution.weights, solution.residual))
        images = drawing.stamps(unit[i].transpose(1, 0, 2), problem.folded.of(i)).transpose(1, 0, 2, 3)
        t = widening[i][inside].reshape(n_band, len(PSF_ERRORS), -1).astype(np.float64)
        by_column = (t * weight) @ images.reshape(n_band, unit.shape[2], -1).transpose(0, 2, 1)
        by_itself = (t * weight) @ t.transpose(0, 2, 1)
        # parameters: the latents, then d of every band, then h
        row = np.array([i])
        drawn = curvature.derivative_images(problem, unit[row], row)
        own = prior[i] + uncertainty.likelihood_precision(problem, solution.weights[i], drawn, row)[0, :, 0]
        n_latent = len(own)
        precision = np.zeros((n_latent + n_band * t.shape[1],) * 2)
        precision[:n_latent, :n_latent] = own
        for k, (of_band, common) in enumerate(PSF_ERRORS):
            rows = n_latent + k * n_band + band
            precision[np.ix_(rows, rows)] = np.linalg.inv(of_band**2 * np.eye(n_band) + common**2)
            precision[rows, band] = precision[band, rows] = by_column[:, k, 0]
            precision[rows, n_band:n_latent] = by_column[:, k, 1:]
            precision[n_band:n_latent, rows] = by_column[:, k, 1:].T
            for m in range(t.shape[1]):
                precision[rows, n_latent + m * n_band + band] += by_itself[:, k, m]
        gradient = np.concatenate([downhill[i], (t * rest).sum(2).T.ravel()])
        scale = 1 / np.sqrt(precision.diagonal())
        scaled = precision * scale[:, None] * scale + constants.COVARIANCE_RIDGE * np.eye(len(scale))
        result[i] += 0.5 * (gradient * scale) @ np.linalg.solve(scaled, gradient * scale)
        result[i] -= 0.5 * np.linalg.slogdet(scaled)[1] - np.log(scale).sum()
    return result
