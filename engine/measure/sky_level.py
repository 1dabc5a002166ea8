"""The sky that a scene's images still hold: measured in the residual, and its effect on the sources' fluxes.

The level of a band is the median of means over blocks of `SKY_BLOCK` x `SKY_BLOCK` pixels, and its error comes from the
blocks' scatter. Blocks hold the noise's correlation between pixels, and a median over blocks resists unlisted sources.
Pixels with model light above `QUIET_LIGHT` do not count: there the fit has absorbed the sky.

A sky of s per pixel moves the flux of a source with the unit image t, the weights W and the flux error e by about

    s e^2 sum(W t)

With the error of a free shape this counts that a galaxy swells in a sky that is too high.

The flag is not `SUSPECT`: the fit is a good one of the data that were given, and a neighbour gains no doubt by it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.problem import Canvases, DoubleArray, FloatArray, Problem
from deblendrt.engine.solve import objective
from deblendrt.engine.solve.descent import Solution

SKY_BLOCK = 8  # pixel: side of a block, longer than the correlation of a coadd's noise
# sigma per pixel. Galaxies swell in a sky of +0.3 sigma: in 6 cutouts of 71 x 71 pixels 3% of the bands have no level
# then, with a limit of 0.1 72%.
QUIET_LIGHT = 0.2
MIN_BLOCKS = 16  # fewer blocks give no level: their scatter is too uncertain
SKY_SIGNIFICANCE = 5.0  # a level below this many errors counts as zero
SKY_SHIFT = 0.5  # errors: a source whose flux moves by more in some band is flagged


def levels(problem: Problem, model: Canvases, s: int) -> tuple[DoubleArray, DoubleArray]:
    """Measure the sky in the residual of a scene, data - model.

    Returns
    -------
    level, error : float64 (n_used,) [nJy per pixel]
        NaN in bands with fewer than `MIN_BLOCKS` blocks.
    """
    area = (slice(None), *problem.area[s])
    weight, image = problem.weight[s][area], model[s][area]
    quiet = np.where(np.abs(image) * np.sqrt(weight) < QUIET_LIGHT, weight, 0)
    residual = np.where(quiet > 0, problem.data[s][area] - image, 0)
    total = _blocks(quiet)
    mean = _blocks(quiet * residual) / np.where(total > 0, total, np.nan)
    n_pixel = _blocks((quiet > 0).astype(np.float32))
    level, error = np.full((2, len(weight)), np.nan)
    for b in range(len(weight)):
        of_blocks = mean[b][n_pixel[b] >= SKY_BLOCK**2 / 2]
        if len(of_blocks) < MIN_BLOCKS:
            continue
        level[b] = np.median(of_blocks)
        scatter = 1.4826 * np.median(np.abs(of_blocks - level[b]))
        error[b] = 1.2533 * scatter / np.sqrt(len(of_blocks))
    return level, error


def flux_shift(problem: Problem, solution: Solution, unit: FloatArray, flux_err: NDArray[np.float64]) -> DoubleArray:
    """Estimate by how much the sky of the scenes moves the fluxes, float64 (n_source, n_band) [nJy].

    Parameters
    ----------
    problem : Problem
    solution : Solution
    unit : float32 (n_source, n_band, n_basis)
        Coefficients of the sources at a flux of one.
    flux_err : float64 (n_source, n_band) [nJy]

    Returns
    -------
    float64 (n_source, n_band) [nJy]
        Zero where the scene has no significant sky.
    """
    sky = np.zeros((len(problem.data), problem.weight[0].shape[0]))
    for s in range(len(sky)):
        level, error = levels(problem, solution.state.model, s)
        sky[s] = np.where(np.abs(level) > SKY_SIGNIFICANCE * error, level, 0.0)
    if not sky.any():
        return np.zeros_like(flux_err)
    by_source = problem.spread(sky[problem.scene])
    per_sky = (unit.astype(np.float64) * objective.project(problem, problem.weight)).sum(2)
    return np.where(np.isfinite(flux_err), by_source * per_sky * flux_err**2, 0.0)


def _blocks(image: FloatArray) -> DoubleArray:
    """Sum an image over blocks of pixels, float64 (n_band, n_block_y, n_block_x); the rest at the end is left out."""
    n_band, n_y, n_x = image.shape
    y, x = n_y // SKY_BLOCK, n_x // SKY_BLOCK
    cut = image[:, : y * SKY_BLOCK, : x * SKY_BLOCK].reshape(n_band, y, SKY_BLOCK, x, SKY_BLOCK)
    return np.asarray(cut.sum((2, 4), dtype=np.float64))
