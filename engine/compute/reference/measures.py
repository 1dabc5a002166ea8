r"""The specification, in NumPy, of the kernels that measure a solution source by source.

Each function has the name and arguments of its launcher, less the device; arrays are NumPy's, outputs are written in
place. Rows of padding mean nothing.

Common arguments are `stamps`, float32 (n_source, n_band, n_window_pixel), the outskirts `cells`, float32 (n_source,
n_band, n_cell) or None, which are drawn for sources with `extended`, int32 (n_source,), set, and flat images, float32
(n_pixel,). A footprint has a bit for each pixel of a source's window (the full window of an extended source) that lies
on the canvas, row by row, 32 in a word, the lowest bit first.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.reference.pixels import _canvas, _on_canvas
from deblendrt.engine.units import DoubleArray, FloatArray, IntArray


class Covered(NamedTuple):
    """A source and its part of a canvas: row, scene, y, x."""

    i: int
    scene: int
    y: slice
    x: slice

    def of(self, layout: Layout, image: NDArray[Any]) -> NDArray[Any]:
        """The part of a flat image, (n_band, height, width)."""
        return _canvas(layout, image, self.scene)[:, self.y, self.x]


def footprint(layout: Layout, stamps: FloatArray, cells: FloatArray | None, extended: IntArray, weight: FloatArray,
              out: IntArray, *, significant: float, core: float) -> None:
    """Pixels where a source's light is significant.

    Parameters
    ----------
    layout : Layout
    stamps, cells, extended
        Model images [nJy].
    weight : float32 (n_pixel,) [nJy^-2]
    out : int32 (n_source, n_word)
        n_word as of `kernels.measures.launch.n_word`. Words without a pixel are not written.
    significant : float
        A pixel counts from this signal to noise on, all bands together,
    core : float
        or from this share of the peak's signal to noise on.
    """
    for here, stamp in _drawn(layout, stamps, cells, extended):
        square = stamp * stamp
        total = square.sum((1, 2), dtype=np.float64)
        mean = (here.of(layout, weight) * square).sum((1, 2), dtype=np.float64) / np.where(total > 0, total, 1.0)
        significance = (mean.astype(np.float32)[:, None, None] * square).sum(0)
        inside = (significance >= min(significant**2, core**2 * significance.max())) & (significance > 0)
        words = packed(inside)
        out[here.i, : len(words)] = words


def packed(inside: NDArray[np.bool_]) -> IntArray:
    """Pack a footprint (height, width) into words, in whole blocks of 256 pixels."""
    bits = np.zeros(-(-inside.size // 256) * 256, bool)
    bits[: inside.size] = inside.ravel()
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)


def unpacked(words: IntArray, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Unpack the words of a footprint, bool (height, width)."""
    bits = np.unpackbits(words.astype("<i4").view(np.uint8), bitorder="little")
    return bits[: shape[0] * shape[1]].reshape(shape).astype(bool)


def light(layout: Layout, stamps: FloatArray, cells: FloatArray | None, extended: IntArray, footprints: IntArray,
          weight: FloatArray, out: FloatArray) -> None:
    """The sum of the positive light of all sources in the scene's footprint where there is weight; zero elsewhere.

    Parameters
    ----------
    layout : Layout
    stamps, cells, extended
    footprints : int32 (n_source, n_word)
    weight : float32 (n_pixel,)
    out : float32 (n_pixel,)
    """
    covered = np.zeros(layout.n_pixel, bool)
    total = np.zeros(layout.n_pixel, np.float32)
    for here, stamp in _drawn(layout, stamps, cells, extended):
        here.of(layout, total)[...] += np.maximum(stamp, 0)
        here.of(layout, covered)[...] |= unpacked(footprints[here.i], stamp.shape[1:])
    for s in np.unique(layout.pixel_tile[:, 0]):
        if s >= 0:
            inside = _canvas(layout, covered, s) & (_canvas(layout, weight, s) > 0)
            _canvas(layout, out, s)[...] = np.where(inside, _canvas(layout, total, s), 0)


def share(layout: Layout, stamps: FloatArray, cells: FloatArray | None, extended: IntArray, footprints: IntArray,
          data: FloatArray, weight: FloatArray, model: FloatArray, light: FloatArray, out: DoubleArray) -> None:
    """Share the light of a scene among its sources, see engine/measure/light_shares.py.

    Parameters
    ----------
    layout : Layout
    stamps, cells, extended
    footprints : int32 (n_source, n_word)
    data, weight, model, light : float32 (n_pixel,)
        `light` is the result of `light`.
    out : float64 (n_source, n_band, 6)
        sum r (y - m), sum r^2 / w, the neighbours' light m - m_i in the footprint, sum m_i^2, sum m_i m, the
        neighbours' largest pixel.
    """
    for here, stamp in _drawn(layout, stamps, cells, extended):
        total, given = here.of(layout, model), here.of(layout, light)
        part = np.divide(np.maximum(stamp, 0), given, out=np.zeros_like(stamp), where=given > 0)
        noise = np.divide(part * part, here.of(layout, weight), out=np.zeros_like(part), where=part > 0)
        residual = np.where(part > 0, here.of(layout, data) - total, 0)
        neighbours = np.where(unpacked(footprints[here.i], stamp.shape[1:]), total - stamp, 0)
        for k, values in enumerate((part * residual, noise, neighbours, stamp * stamp, stamp * total)):
            out[here.i, :, k] = values.sum((1, 2), dtype=np.float64)
        out[here.i, :, 5] = neighbours.max((1, 2))


def misfit(layout: Layout, stamps: FloatArray, latent: DoubleArray, data: FloatArray, weight: FloatArray,
           model: FloatArray, edges: DoubleArray, out: DoubleArray, *, half: int, square: int) -> None:
    """Sum residuals weighted with sources' own light, see engine/measure/systematic_error.py.

    Parameters
    ----------
    layout : Layout
    stamps : float32 (n_source, n_band, n_window_pixel) [nJy]
    latent : float64 (n_source, n_latent)
        The offset [pixel] follows the log fluxes.
    data, weight, model : float32 (n_pixel,)
    edges : float64 (n_edge,) [pixel]
        Edges of the rings.
    out : float64 (n_source, 4)
        sum v^2 and sum (u^2 - v) over squares, the same over rings.
    half : int [pixel]
        The sums cover the square [-half, half) around the central pixel, which lies in the window.
    square : int [pixel]
        Side of the squares, divides 2 half.
    """
    grid, n = np.arange(-half, half), 2 * half // square
    for i in np.flatnonzero(layout.scene >= 0).tolist():
        inside = slice(layout.window // 2 - half, layout.window // 2 + half)
        x, y = layout.corner[i] + inside.start
        here = Covered(i, int(layout.scene[i]), slice(y, y + 2 * half), slice(x, x + 2 * half))
        own = np.maximum(stamps[i].reshape(-1, layout.window, layout.window)[:, inside, inside], 0)
        total = here.of(layout, model)
        light = own * np.divide(own, np.maximum(total, own), out=np.zeros_like(own), where=own > 0)
        weighted = here.of(layout, weight) * light
        u = (weighted * (here.of(layout, data) - total)).sum(0, dtype=np.float64)
        v = (weighted * light).sum(0, dtype=np.float64)
        dx, dy = latent[i, layout.n_band : layout.n_band + 2]
        radius = np.hypot(grid - dx, (grid - dy)[:, None])
        rings = [(radius >= low) & (radius < high) for low, high in itertools.pairwise(edges)]
        groups = [[image.reshape(n, square, n, square).sum((1, 3)) for image in (u, v)],
                  [np.array([image[ring].sum() for ring in rings]) for image in (u, v)]]
        out[i] = [value for a, b in groups for value in ((b * b).sum(), (a * a - b).sum())]


def visible(layout: Layout, stamps: FloatArray, cells: FloatArray | None, extended: IntArray, footprints: IntArray,
            weight: FloatArray, out: DoubleArray) -> None:
    """Light in the footprint where there is weight.

    Parameters
    ----------
    layout : Layout
    stamps, cells, extended
    footprints : int32 (n_source, n_word)
    weight : float32 (n_pixel,)
    out : float64 (n_source, n_band)
    """
    for here, stamp in _drawn(layout, stamps, cells, extended):
        seen = (here.of(layout, weight) > 0) & unpacked(footprints[here.i], stamp.shape[1:])
        out[here.i] = (stamp * seen).sum((1, 2), dtype=np.float64)


def core_statistics(layout: Layout, number: IntArray, centre: DoubleArray, owner: IntArray, data: FloatArray,
                    weight: FloatArray, weights: FloatArray, model: FloatArray, out: DoubleArray, *,
                    radius: float) -> None:
    """chi2 of the pixels that each source owns within a radius, summed over bands.

    Parameters
    ----------
    layout : Layout
    number : int32 (n_source,)
        Number of each source in its scene, as the owners are numbered.
    centre : float64 (n_source, 2) [pixel]
        (x, y) on the canvas.
    owner : int32 (n_pixel / n_band,)
        Owner of each pixel, canvas after canvas; -1: none.
    data, weight, weights, model : float32 (n_pixel,)
        `weight` is the inverse variance, `weights` are the robust weights.
    out : float64 (n_source, 3)
        chi2, pixels with weight counted in every band, pixels that lost more than half of their weight in some band.
    radius : float [pixel]
    """
    for i in np.flatnonzero(layout.scene >= 0).tolist():
        s = int(layout.scene[i])
        height, width = layout.canvas_shape[s]
        start = layout.canvas_start[s] // layout.n_band
        own = owner[start : start + height * width].reshape(height, width) == number[i]
        y, x = np.mgrid[:height, :width]
        own &= (y - centre[i, 1]) ** 2 + (x - centre[i, 0]) ** 2 <= radius**2
        given, left, seen, light = (_canvas(layout, image, s)[:, own] for image in (weight, weights, data, model))
        out[i] = ((given * (seen - light) ** 2).sum(dtype=np.float64), (given > 0).sum(),
                  (left < 0.5 * given).any(0).sum())


def light_area(layout: Layout, stamps: FloatArray, cells: FloatArray | None, extended: IntArray, weight: DoubleArray,
               out: IntArray, *, threshold: float) -> None:
    """Number of pixels where a source's light is significant, on its canvas or off it.

    Parameters
    ----------
    layout : Layout
    stamps, cells, extended
    weight : float64 (n_source, n_band) [nJy^-2]
        Mean weight under the source.
    out : int32 (n_source,)
    threshold : float
        Bound on the squared signal to noise of a pixel, all bands together.
    """
    full = layout.full_window
    alone = dataclasses.replace(layout, corner=np.full_like(layout.corner, layout.margin))  # nothing sticks out
    for i in np.flatnonzero(layout.scene >= 0).tolist():
        image = _on_canvas(alone, stamps, cells, extended, i, (layout.n_band, full, full)).astype(np.float32)
        out[i] = ((weight[i, :, None, None] * image.astype(np.float64) ** 2).sum(0) > threshold).sum()


def _drawn(layout: Layout, stamps: FloatArray, cells: FloatArray | None,
           extended: IntArray) -> Iterator[tuple[Covered, FloatArray]]:
    """Every source with its image on its canvas, float32 (n_band, height, width)."""
    for i in np.flatnonzero(layout.scene >= 0).tolist():
        s = int(layout.scene[i])
        height, width = layout.canvas_shape[s]
        margin = layout.margin if cells is not None and extended[i] else 0
        x, y = layout.corner[i] - margin
        size = layout.window + 2 * margin
        here = Covered(i, s, slice(max(y, 0), min(y + size, height)), slice(max(x, 0), min(x + size, width)))
        image = _on_canvas(layout, stamps, cells, extended, i, (layout.n_band, height, width))
        yield here, image[:, here.y, here.x].astype(np.float32)
