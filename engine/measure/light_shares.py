r"""Shares of the light of a scene: redistributed fluxes, blendedness, overlap.

With m_i the model image of source i and m = sum_i m_i, the source's share of a pixel's light is

    r_i[b, p] = max(m_i, 0) / sum_j max(m_j, 0)                 (0 where no source has light)

and its redistributed image takes this share of the light that the models leave unexplained,

    m_i + r_i (y - m)           in the scene's footprint, where the pixel has weight
    m_i                         elsewhere

This is r_i y where no model is negative. Where some source has light, the redistributed images of a footprint sum to
the data. The redistributed flux is a total flux, like the model's: F_i + sum_p r_i (y - m). Its error is the noise of
the pixels in this sum, sqrt(sum_p r_i^2 / w), without errors of the shares and of the model's light outside the
footprint. Light that no listed source explains is shared among the listed sources.

The footprint of a source is the area where its light is significant, all bands together: sum_b wbar_b m_i^2 >= 1. Here
wbar_b is the mean weight under the source, so that masks make no holes. A faint source has at least the core where its
light is half of its peak. The footprint of a scene is the union of its sources' footprints.

Blendedness (Bosch et al. 2018, PASJ 70, S5) is 1 - sum_p m_i^2 / sum_p m_i m over the source's window. Overlap is the
neighbours' light m - m_i in the source's footprint, its sum and its largest pixel, as in Rubin's deblender. Blendedness
and overlap follow from the models alone, in the whole window, on the image or off it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import canvases, drawing
from deblendrt.engine.compute.problem import Canvases, DoubleArray, FloatArray, Problem
from deblendrt.engine.result.fitted_scenes import FittedScenes
from deblendrt.engine.solve import constants

CORE = 0.5  # of the peak; serves sources without a significant pixel, of a total signal to noise below 6


@dataclasses.dataclass(frozen=True)
class Sharing:
    """The measurements of `share`.

    Attributes
    ----------
    redistributed_flux, redistributed_flux_err : float64 (n_source, n_band) [nJy]
        NaN in bands where the source has no weight.
    blendedness : float64 (n_source, n_band)
        NaN where a source has no light.
    flux_overlap : float64 (n_source, n_band) [nJy]
    max_overlap : float64 (n_source, n_band) [nJy]
        The largest overlap of one pixel.
    """

    redistributed_flux: DoubleArray
    redistributed_flux_err: DoubleArray
    blendedness: DoubleArray
    flux_overlap: DoubleArray
    max_overlap: DoubleArray


def share(problem: Problem, coefficients: FloatArray, flux: DoubleArray) -> Sharing:
    """Share the light of every scene among its sources.

    Parameters
    ----------
    problem : Problem
    coefficients : float32 (n_source, n_band, n_basis) [nJy]
        Coefficients of the model images, which have the MAP fluxes.
    flux : float64 (n_source, n_band) [nJy]
        Total fluxes of the model images.

    Returns
    -------
    Sharing
    """
    if problem.device is not None:
        from deblendrt.engine.measure import device_measures

        with problem.device.loaded(problem) as buffers:
            return Sharing(*device_measures.shared(buffers, coefficients, flux, CORE))
    model, light = _model_and_light(problem, coefficients)
    result = Sharing(*(np.empty((len(coefficients), problem.n_band)) for _ in dataclasses.fields(Sharing)))
    for i, (s, placed) in enumerate(zip(problem.scene, _placed(problem, coefficients), strict=True)):
        stamp, total, weight = placed.image, placed.cut(model[s]), placed.cut(problem.weight[s])
        part = np.maximum(stamp, 0) / placed.cut(light[s])
        noise = np.divide(part * part, weight, out=np.zeros_like(part), where=part > 0)
        gain = (part * (placed.cut(problem.data[s]) - total)).sum((1, 2), dtype=np.float64)
        result.redistributed_flux[i] = flux[i] + gain
        result.redistributed_flux_err[i] = np.sqrt(noise.sum((1, 2), dtype=np.float64))
        neighbours = (total - stamp) * footprint(stamp, weight)
        result.flux_overlap[i] = neighbours.sum((1, 2), dtype=np.float64)
        result.max_overlap[i] = neighbours.max((1, 2))
        result.blendedness[i] = _blendedness(stamp, total)
    result.redistributed_flux[~problem.measured] = np.nan
    result.redistributed_flux_err[~problem.measured] = np.nan
    return result


def footprint(stamp: FloatArray, weight: FloatArray) -> NDArray[np.bool_]:
    """Pixels where a source's light is significant.

    Parameters
    ----------
    stamp : float32 (n_band, window, window) [nJy]
    weight : float32 (n_band, window, window) [nJy^-2]
        Inverse variance, zero off the image; its mean is weighted by the square of the stamp.

    Returns
    -------
    bool (window, window)
    """
    square = stamp * stamp
    total = square.sum((1, 2), dtype=np.float64)
    mean = (weight * square).sum((1, 2), dtype=np.float64) / np.where(total > 0, total, 1.0)
    significance = (mean.astype(np.float32)[:, None, None] * square).sum(0)
    least = min(constants.SIGNIFICANT_LIGHT**2, CORE**2 * significance.max())
    return np.asarray((significance >= least) & (significance > 0))


def _model_and_light(problem: Problem, coefficients: FloatArray) -> tuple[Canvases, Canvases]:
    """Compute m, and sum_j max(m_j, 0), which is infinite where no light is redistributed."""
    model, light = [np.zeros_like(d) for d in problem.data], [np.zeros_like(d) for d in problem.data]
    covered = [np.zeros(d.shape[1:], bool) for d in problem.data]
    for s, placed in zip(problem.scene, _placed(problem, coefficients), strict=True):
        here = (slice(None), placed.y, placed.x)
        model[s][here] += placed.image
        light[s][here] += np.maximum(placed.image, 0)
        covered[s][here[1:]] |= footprint(placed.image, problem.weight[s][here])
    for given, weight, inside in zip(light, problem.weight, covered, strict=True):
        given[~(inside & (weight > 0) & (given > 0))] = np.inf
    return model, light


def _placed(problem: Problem, coefficients: FloatArray) -> Iterator[canvases.Placed]:
    shape = [problem.data[s].shape for s in problem.scene]
    return drawing.placed(coefficients, problem.folded, problem.corner, problem.extent, shape)


def _blendedness(stamp: FloatArray, total: FloatArray) -> DoubleArray:
    """1 - sum m_i^2 / sum m_i m, float64 (n_band,)."""
    own = (stamp * stamp).sum((1, 2), dtype=np.float64)
    everybody = (stamp * total).sum((1, 2), dtype=np.float64)
    known = everybody > 0
    return np.where(known, 1 - own / np.where(known, everybody, 1.0), np.nan)


def redistributed_image(result: FittedScenes, i_source: int) -> tuple[FloatArray, tuple[int, int]]:
    """Compute a source's redistributed image: the observed light, shared in proportion to the models.

    Parameters
    ----------
    result : FittedScenes
        With the images of its scenes.
    i_source : int
        Row; negative counts from the end.

    Returns
    -------
    image : float32 (n_band, window, window) [nJy]
        The model where the pixel is masked, off the image or outside the scene's footprint; zero for a source that was
        not fitted.
    corner : tuple of int [pixel]
        (x, y) on the scene's image of the first pixel; may lie off the image.
    """
    own, (x0, y0) = result.stamps(i_source)
    i = i_source % result.n_source
    if not result.fitted[i]:
        return own, (x0, y0)
    scene = result.scenes[result.scene_index[i]]
    model, light, covered = np.zeros_like(own), np.zeros_like(own), np.zeros(own.shape[1:], bool)
    rows = result.sources(int(result.scene_index[i]))
    for j in rows.start + np.flatnonzero(result.fitted[rows]):
        stamp, (x, y) = result.stamps(int(j))
        here = canvases.place(stamp, x - x0, y - y0, own.shape)
        if here.image.size:
            inside = footprint(stamp, scene.window(x, y, stamp.shape[1])[1])
            model[:, here.y, here.x] += here.image
            light[:, here.y, here.x] += np.maximum(here.image, 0)
            covered[here.y, here.x] |= canvases.place(inside, x - x0, y - y0, own.shape).image
    image, weight = scene.window(x0, y0, own.shape[1])
    image = result.without_sky(int(result.scene_index[i]), image, weight)
    light[~(covered & (weight > 0) & (light > 0))] = np.inf
    return own + np.maximum(own, 0) / light * (image - model), (x0, y0)
