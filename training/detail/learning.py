r"""The covariance of detail, learnt by expectation maximisation under a Student prior.

The engine fits isolated galaxies without detail. Around each MAP solution, with the first n_function basis functions as
modes, `deblendrt.engine.solve.detail` gives the matrix D' W D and the gradient. Fluxes, offset and shape are
marginalised: a galaxy is then a matrix H and a vector g on the coefficients w of its detail, relative to its fluxes.
With w ~ N(0, lambda S),

    E:  C = (H + (lambda S)^-1)^-1,   m = C g,   lambda = (nu + m' S^-1 m) / (nu + gamma),
    M:  S = mean of (m m' + C) / lambda,

gamma as in `deblendrt.engine.solve.detail`. S is averaged over the eight symmetries of the square, and its off-diagonal
part is shrunk as if `PSEUDO_COUNT` galaxies had none.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.scene.scene import make_scenes
from deblendrt.engine.solve import constants, descent, detail
from deblendrt.engine.solve.curvature import unit_columns
from deblendrt.engine.solve.prior import prior_precision
from deblendrt.engine.solve.start import build_problem, start_latents

PSEUDO_COUNT = 20
FIRST_SIGMA = 0.1  # of the rms of a function's coefficient
AT_ONCE = 32  # galaxies fitted at once


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Information of the images about the detail of galaxies, all else marginalised.

    Attributes
    ----------
    precision : float64 (n, n_function, n_function)
        H.
    pull : float64 (n, n_function)
        g.
    coefficients : float64 (n, n_function)
        MAP coefficients of unit flux, in the reference band.
    """

    precision: NDArray[np.float64]
    pull: NDArray[np.float64]
    coefficients: NDArray[np.float64]


def statistics(deblender: Deblender, images: NDArray[np.float32], variances: NDArray[np.float32],
               centers: NDArray[np.float64], psf: NDArray[np.float64], n_function: int) -> Statistics:
    """Fit isolated galaxies, and collect H and g.

    Parameters
    ----------
    deblender : Deblender
    images, variances : float32 (n, n_band, n_y, n_x)
    centers : float64 (n, 2)
    psf : float64 (n_band, q, q)
    n_function : int

    Returns
    -------
    Statistics
    """
    bundle = deblender.bundle
    modes = np.eye(n_function, bundle.n_basis, dtype=np.float32)
    learning = dataclasses.replace(bundle, detail_shared=modes, detail_band=modes[:0])
    precisions, pulls, coefficients = [], [], []
    for start in range(0, len(images), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        scenes = make_scenes(list(images[part]), list(centers[part, None]), bundle_bands=bundle.bands,
                             bundle_pixel_scale=bundle.pixel_scale, window_half=deblender.window // 2,
                             variance=list(variances[part]), psf=psf, bundle_sky_sigma=bundle.sky_sigma)
        problem, _ = build_problem(scenes, deblender.fold(psf), deblender.runtime, learning,
                                   center_sigma=constants.CENTER_SIGMA, robust=True)
        problem, latent, floor = start_latents(problem, "encoder")
        solution = descent.solve(problem, latent, floor, "gauss_newton", constants.ITERATIONS["gauss_newton"])
        found = detail.information(solution.problem, solution)
        prior = prior_precision(solution.problem, solution.state.latent)
        unit = unit_columns(solution.state)
        for i, (matrix, gradient) in enumerate(found):
            n_latent = prior.shape[1]
            if len(gradient) == n_latent:
                continue  # too faint for detail
            known = matrix[:n_latent, :n_latent] + prior[i]
            through = np.linalg.solve(known, matrix[:n_latent, n_latent:])
            precisions.append(matrix[n_latent:, n_latent:] - matrix[n_latent:, :n_latent] @ through)
            pulls.append(gradient[n_latent:] - through.T @ gradient[:n_latent])
            coefficients.append(unit[i, bundle.reference_index, 0, :n_function])
    return Statistics(np.array(precisions), np.array(pulls), np.array(coefficients, np.float64))


def learn(found: Statistics, turns: NDArray[np.float64], n_iteration: int = 10) -> tuple[NDArray[np.float64], float]:
    """Learn S.

    Parameters
    ----------
    found : Statistics
    turns : float64 (8, n_function, n_function)
        The square's symmetries, as matrices on coefficients: ``c @ R``.
    n_iteration : int

    Returns
    -------
    covariance : float64 (n_function, n_function)
    evidence : float
        Mean log evidence of a galaxy, relative to a galaxy without detail.
    """
    rms = np.sqrt((found.coefficients**2).mean(0))
    covariance = np.diag((FIRST_SIGMA * rms) ** 2)
    scale = np.ones(len(found.pull))
    for _ in range(n_iteration):
        factor = root(covariance)
        total = np.zeros_like(covariance)
        for i in range(len(scale)):
            mean, spread, scale[i] = posterior(found, i, factor, scale[i])
            total += (np.outer(mean, mean) + spread) / scale[i]
        covariance = np.mean([turn.T @ total @ turn for turn in turns], 0) / len(scale)
        shrink = len(scale) / (len(scale) + PSEUDO_COUNT)
        covariance = shrink * covariance + (1 - shrink) * np.diag(covariance.diagonal())
    return covariance, evidence(found, covariance)


def posterior(found: Statistics, i: int, factor: NDArray[np.float64],
              scale: float) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Mean and covariance of the detail of galaxy i, and its next scale."""
    inner = factor.T @ found.precision[i] @ factor
    spread = np.linalg.inv(inner + np.eye(len(inner)) / scale)
    u = spread @ (factor.T @ found.pull[i])
    return factor @ u, factor @ spread @ factor.T, detail.next_scale(u, spread, scale)


def evidence(found: Statistics, covariance: NDArray[np.float64]) -> float:
    """Mean over galaxies of log p(image | S, lambda) - log p(image | no detail), lambda after two updates."""
    factor, total = root(covariance), 0.0
    for i in range(len(found.pull)):
        scale = 1.0
        for _ in range(2):
            scale = posterior(found, i, factor, scale)[2]
        inner = np.eye(len(factor)) + scale * factor.T @ found.precision[i] @ factor
        pulled = factor.T @ found.pull[i]
        total += 0.5 * scale * pulled @ np.linalg.solve(inner, pulled) - 0.5 * np.linalg.slogdet(inner)[1]
    return total / len(found.pull)


def root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """A matrix L with L L' = S."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 1e-12 * values[-1]))


def leading_modes(covariance: NDArray[np.float64], gram: NDArray[np.float64], n_mode: int,
                  n_basis: int) -> NDArray[np.float64]:
    """Leading modes of a covariance in the metric of the images.

    Parameters
    ----------
    covariance, gram : float64 (n_function, n_function)
    n_mode, n_basis : int

    Returns
    -------
    float64 (n_mode, n_basis)
        Rows; the largest first.
    """
    factor = root(covariance)
    _, vectors = np.linalg.eigh(factor.T @ gram @ factor)
    modes = np.zeros((n_mode, n_basis))
    modes[:, : len(factor)] = (factor @ vectors[:, ::-1][:, :n_mode]).T
    return modes
