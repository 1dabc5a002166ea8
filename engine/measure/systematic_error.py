r"""Systematic errors of fluxes, from the misfit of a source's model and from light that no pixel shows.

`flux_err` is the error of a model that can draw the galaxy. `flux_sys_err` is for models that cannot.

Let r be the residual, w the inverse variance and m the source's model times its share of the light of all models. For
a group of pixels,

    u = sum_{b,p} w m r,        v = sum_{b,p} w m^2

Bands are summed: a feature that a model cannot draw is missing in most bands. Under noise alone the expectation of u^2
is v, or less, as the fit follows some of the noise. If the model has a relative error e, of random sign in each group,
the expectation is v + e^2 v^2. The moment estimator of e^2 and its significance are

    e^2 = sum (u^2 - v) / sum v^2,        z = sum (u^2 - v) / sqrt(2 sum v^2)

The sums run over groups of two kinds. Squares of 2 x 2 pixels are sensitive to clumps, arms and centres, rings about
the source to wrong profiles and PSFs. The larger result counts.

Light far below the noise, on masked pixels or off the image shows no misfit. Let F be the MAP flux, and h the part of
it outside the source's footprint (`light_shares.footprint`) or without weight. Then

    flux_sys_err^2 = (c e F)^2 + (q h)^2 + (floor F)^2,        e = 0 unless z > 3

c, q and floor are calibrated on galaxies and data on which the model was not trained (`perf/results/beyond.md`).

A faint source in the light of a bright galaxy takes up the misfit of the galaxy's wings, so no residual shows it. See
`from_neighbours`. Real neighbours differ from their models in shape as well, and the light changes hands where they
overlap. See `from_sharing`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import canvases, drawing
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.measure import light_shares
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.solve.descent import Solution
from deblendrt.engine.units import DoubleArray

MISFIT_HALF = 24  # pixel: half the side of the square around a source in which misfits count
SQUARE = 2  # pixel: misfits of a PSF's size average out in squares of 3 or more
RING_EDGES = (0.0, 1.5, 3.0, 4.5, 6.5, 9.0, 13.0, 18.0, 24.0)  # pixel
SIGNIFICANT_MISFIT = 3.0  # z from which a misfit counts as an error
SCALE = 1.0  # c
HIDDEN = 0.1  # q
FLOOR = 0.002  # relative error of the bundled model on bright isolated galaxies of its population, beside flux_err
# The model of a bright galaxy (i = 18, S/N in the thousands) misses its true light by 0.1-0.6% at 1.5 half-light radii
# and by up to 5% at 3, where the misfit is below a pixel's noise. On 60 galaxies of i = 23 beside 20 galaxies of
# i = 18, the width of the pulls falls from 1.8 to 0.93, and the share beyond 3 sigma from 8 to 0%.
WING_ERROR = 0.03  # relative, of the light of much brighter neighbours beneath a source
WING_SIGMA = 2.0  # flux_err: most of a flux that a hidden misfit takes or gives
MUCH_BRIGHTER = 10.0  # times the source's flux; for nearly equal neighbours flux_err covers the misfit


@dataclasses.dataclass(frozen=True)
class Misfit:
    """Misfit and hidden light of sources.

    Attributes
    ----------
    error : float64 (n_source,)
        e; 0 where the misfit is not significant.
    significance : float64 (n_source,)
        z; 0 for a source without light or weight.
    hidden : float64 (n_source, n_band) [nJy]
        h.
    """

    error: DoubleArray
    significance: DoubleArray
    hidden: DoubleArray


def misfit(problem: Problem, solution: Solution) -> Misfit:
    """Measure every source's misfit and hidden light.

    Parameters
    ----------
    problem : Problem
    solution : Solution
        Solution of the problem.

    Returns
    -------
    Misfit
    """
    state, folded, n_band = solution.state, problem.folded, problem.n_band
    if problem.device is not None:
        from deblendrt.engine.measure import device_measures

        with problem.device.loaded(problem) as buffers:
            return summary(*device_measures.misfits(buffers, state, MISFIT_HALF, SQUARE, RING_EDGES,
                                                     light_shares.CORE))
    half = min(MISFIT_HALF, folded.half) // SQUARE * SQUARE
    grid = np.arange(-half, half)
    shape = [problem.data[s].shape for s in problem.scene]
    images = drawing.placed(state.coefficients, folded, problem.corner, problem.extent, shape)
    square, significance = np.empty((len(shape), 2)), np.empty((len(shape), 2))
    hidden = np.exp(state.latent[:, :n_band])
    for i, (s, placed) in enumerate(zip(problem.scene, images, strict=True)):
        x, y = (problem.corner[i] + folded.half - half).tolist()
        here = (slice(None), slice(y, y + 2 * half), slice(x, x + 2 * half))  # a canvas holds every window
        own = np.zeros((n_band, 2 * half, 2 * half), np.float32)
        seen = canvases.place(placed.image, placed.x.start - x, placed.y.start - y, own.shape)
        np.maximum(seen.image, 0, out=seen.cut(own))
        model = state.model[s][here]
        light = own * np.divide(own, np.maximum(model, own), out=np.zeros_like(own), where=own > 0)
        weighted = problem.weight[s][here] * light
        u = (weighted * (problem.data[s][here] - model)).sum(0, dtype=np.float64)
        v = (weighted * light).sum(0, dtype=np.float64)
        dx, dy = state.latent[i, n_band : n_band + 2]
        ring = np.searchsorted(RING_EDGES, np.hypot(grid - dx, (grid - dy)[:, None]).ravel(), side="right") - 1
        under = placed.cut(problem.weight[s])
        visible = (under > 0) & light_shares.footprint(placed.image, under)
        hidden[i] -= (placed.image * visible).sum((1, 2), dtype=np.float64)
        square[i, 0], significance[i, 0] = excess(_squares(u), _squares(v))
        square[i, 1], significance[i, 1] = excess(_rings(u, ring), _rings(v, ring))
    return summary(square, significance, hidden)


def summary(square: DoubleArray, significance: DoubleArray, hidden: DoubleArray) -> Misfit:
    """Choose the larger misfit of each source.

    Parameters
    ----------
    square, significance : float64 (n_source, n_kind)
        Results of `excess` for squares and rings.
    hidden : float64 (n_source, n_band) [nJy]
        h, of either sign.

    Returns
    -------
    Misfit
    """
    error = np.sqrt(np.where(significance > SIGNIFICANT_MISFIT, square, 0.0).max(1))
    return Misfit(error, significance.max(1), np.maximum(hidden, 0.0))


def excess(u: DoubleArray, v: DoubleArray) -> tuple[float, float]:
    """Estimate e^2 over groups of pixels.

    Parameters
    ----------
    u, v : float64 (n_group,)
        See the module.

    Returns
    -------
    square : float
        e^2, unbiased, so of either sign.
    significance : float
        z.
    """
    power, found = float((v * v).sum()), float((u * u - v).sum())
    return (found / power, found / np.sqrt(2 * power)) if power > 0 else (0.0, 0.0)


def _squares(image: DoubleArray) -> DoubleArray:
    """Sums over squares with sides of `SQUARE` pixels, flat."""
    n = len(image) // SQUARE
    return np.asarray(image.reshape(n, SQUARE, n, SQUARE).sum((1, 3)).ravel())


def _rings(image: DoubleArray, ring: NDArray[np.int64]) -> DoubleArray:
    """Sums over rings, without the pixels beyond the last edge."""
    return np.asarray(np.bincount(ring, image.ravel(), len(RING_EDGES))[:-1], np.float64)


def flux_error(found: Misfit, map_flux: DoubleArray, bundle: Bundle) -> DoubleArray:
    """Compute the systematic error of every flux.

    Parameters
    ----------
    found : Misfit
    map_flux : float64 (n_source, n_band) [nJy]
    bundle : Bundle
        Its manifest may state another floor, ``training.flux_floor``.

    Returns
    -------
    float64 (n_source, n_band) [nJy]
    """
    floor = bundle.training.get("flux_floor", FLOOR)
    return np.hypot(map_flux * np.hypot(SCALE * found.error, floor)[:, None], HIDDEN * found.hidden)


def from_neighbours(problem: Problem, map_flux: DoubleArray, flux_err: DoubleArray,
                    flux_overlap: DoubleArray) -> DoubleArray:
    """Compute the error of every flux from the hidden misfit of a much brighter neighbour beneath the source.

    Parameters
    ----------
    problem : Problem
    map_flux, flux_err, flux_overlap : float64 (n_source, n_band) [nJy]
        The overlap is `light_shares.Sharing.flux_overlap`.

    Returns
    -------
    float64 (n_source, n_band) [nJy]
        0 for sources whose blend has no much brighter source.
    """
    brightest = np.zeros((problem.n_blend, problem.n_band))
    np.maximum.at(brightest, problem.blend, map_flux)
    beside = brightest[problem.blend] > MUCH_BRIGHTER * map_flux
    return np.where(beside, np.minimum(WING_ERROR * np.maximum(flux_overlap, 0.0), WING_SIGMA * flux_err), 0.0)


def from_sharing(map_flux: DoubleArray, flux_overlap: DoubleArray, bundle: Bundle) -> DoubleArray:
    """Compute the error of every flux from light that went to the wrong one of two overlapping sources.

    The error is k sqrt(F o), with the flux F and the neighbours' light o beneath the source. k comes from the bundle's
    manifest, ``training.shared_light_error``. It is calibrated on galaxies of known flux beside real galaxies, where no
    residual shows the error; among simulated galaxies it is near zero.

    Parameters
    ----------
    map_flux, flux_overlap : float64 (n_source, n_band) [nJy]
        The overlap is `light_shares.Sharing.flux_overlap`.
    bundle : Bundle
        Without the entry the error is 0.

    Returns
    -------
    float64 (n_source, n_band) [nJy]
    """
    error = bundle.training.get("shared_light_error", 0.0)
    return np.asarray(error * np.sqrt(map_flux * np.maximum(flux_overlap, 0.0)))
