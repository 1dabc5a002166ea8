"""Stamps on canvases: where they lie, what of them is seen, and what they cover."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.model.outskirts import gather, spread

FloatArray = NDArray[np.float32]


class Placed(NamedTuple):
    """A source's stamp on its canvas, cut at the canvas' edges.

    Attributes
    ----------
    image : float32 (..., height, width)
    y, x : slice
        Where it lies.
    """

    image: NDArray[Any]
    y: slice
    x: slice

    def cut(self, canvas: NDArray[Any]) -> NDArray[Any]:
        """The canvas under the stamp, (..., height, width)."""
        return canvas[..., self.y, self.x]

    def common(self, other: Placed) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Both images where they overlap, or None."""
        y = slice(max(self.y.start, other.y.start), min(self.y.stop, other.y.stop))
        x = slice(max(self.x.start, other.x.start), min(self.x.stop, other.x.stop))
        if y.start >= y.stop or x.start >= x.stop:
            return None
        mine, theirs = (p.image[..., y.start - p.y.start : y.stop - p.y.start,
                                x.start - p.x.start : x.stop - p.x.start] for p in (self, other))
        return mine, theirs


def place(image: NDArray[Any], x: int, y: int, shape: tuple[int, ...]) -> Placed:
    """Cut a stamp at the edges of its canvas.

    Parameters
    ----------
    image : float32 (..., height, width)
    x, y : int [pixel]
        Of its first pixel on the canvas; may lie off it.
    shape : tuple of int
        (..., n_y, n_x) of the canvas.

    Returns
    -------
    Placed
    """
    height, width = image.shape[-2:]
    y0, y1 = (min(max(edge, 0), shape[-2]) for edge in (y, y + height))
    x0, x1 = (min(max(edge, 0), shape[-1]) for edge in (x, x + width))
    return Placed(image[..., y0 - y : y1 - y, x0 - x : x1 - x], slice(y0, y1), slice(x0, x1))


def window_of(image: FloatArray, x: int, y: int, size: int) -> FloatArray:
    """A copy of a window of an image, zero off the image.

    Parameters
    ----------
    image : float32 (n_band, n_y, n_x)
    x, y : int [pixel]
        Of the window's first pixel; may lie off the image.
    size : int [pixel]

    Returns
    -------
    float32 (n_band, size, size)
    """
    cut = np.zeros((len(image), size, size), np.float32)
    here = place(cut, x, y, image.shape)
    here.image[...] = here.cut(image)
    return cut


def on_canvas(window: FloatArray, cells: FloatArray, folded: FoldedBasis, x: int, y: int,
              shape: tuple[int, ...], border: int = 0) -> Placed:
    """What a canvas sees of a stamp in the full window.

    Parameters
    ----------
    window : float32 (..., window, window)
        Its core.
    cells : float32 (..., n_cell)
    folded : FoldedBasis
    x, y : int [pixel]
        Of the full window's first pixel on the canvas.
    shape : tuple of int
        (..., n_y, n_x) of the canvas.
    border : int [pixel]
        Of the canvas, left out.

    Returns
    -------
    Placed
    """
    rows, columns = (_seen(first, size, folded, border) for first, size in zip((y, x), shape[-2:], strict=True))
    side = folded.full_window // folded.binning
    near = cells.reshape(*cells.shape[:-1], side, side)[..., rows.cells, columns.cells]
    image = spread(near, folded.binning)[..., rows.cut, columns.cut]
    image[..., rows.core, columns.core] = window[..., rows.of_window, columns.of_window]
    return Placed(image, rows.on_canvas, columns.on_canvas)


def with_outskirts(window: FloatArray, cells: FloatArray, folded: FoldedBasis) -> FloatArray:
    """A stamp in the full window.

    Parameters
    ----------
    window : float32 (..., window, window)
        Its core.
    cells : float32 (..., n_cell)
    folded : FoldedBasis

    Returns
    -------
    float32 (..., full_window, full_window)
    """
    return on_canvas(window, cells, folded, 0, 0, (folded.full_window, folded.full_window)).image


def add_outskirts(cells: FloatArray, folded: FoldedBasis, x: int, y: int, canvas: FloatArray, border: int) -> None:
    """Add what a source has outside its window, (n_band, n_cell), to a canvas; (x, y) is the full window's corner."""
    window = np.zeros((len(cells), folded.window, folded.window), np.float32)
    here = on_canvas(window, cells, folded, x, y, canvas.shape, border)
    here.cut(canvas)[...] += here.image


def outskirts_sums(image: FloatArray, folded: FoldedBasis, corner: NDArray[np.int64], border: int) -> FloatArray:
    """Sums over the cells of a source's full window, its window left out, float32 (n_band, n_cell)."""
    side, binning = folded.full_window // folded.binning, folded.binning
    x, y = (corner - folded.margin).tolist()
    rows, columns = (_seen(first, size, folded, border) for first, size in zip((y, x), image.shape[1:], strict=True))
    height, width = ((seen.cells.stop - seen.cells.start) * binning for seen in (rows, columns))
    spread_out = np.zeros((len(image), height, width), np.float32)
    cut = spread_out[:, rows.cut, columns.cut]
    cut[...] = image[:, rows.on_canvas, columns.on_canvas]
    cut[:, rows.core, columns.core] = 0
    cells = np.zeros((len(image), side, side), np.float32)
    cells[:, rows.cells, columns.cells] = gather(spread_out, binning)
    return cells.reshape(len(image), -1)


class _Seen(NamedTuple):
    """What a canvas sees of a full window, along one axis.

    Attributes
    ----------
    on_canvas : slice
        Where it lies on the canvas.
    cells : slice
        Cells that its pixels need.
    cut : slice
        Of what these cells spread to, its pixels.
    core, of_window : slice
        Of its pixels, those of the window; and these in the window.
    """

    on_canvas: slice
    cells: slice
    cut: slice
    core: slice
    of_window: slice


def _seen(first: int, size: int, folded: FoldedBasis, border: int) -> _Seen:
    """Of a full window that begins at a pixel of an axis."""
    binning, margin = folded.binning, folded.margin
    start = min(max(border - first, 0), folded.full_window)
    stop = max(min(size - border - first, folded.full_window), start)
    cell = max(start // binning - 1, 0)
    last = min(max((stop - 1) // binning + 2, cell + 1), folded.full_window // binning)
    inner = max(start, margin)
    end = max(min(stop, margin + folded.window), inner)
    return _Seen(slice(first + start, first + stop), slice(cell, last),
                 slice(start - cell * binning, stop - cell * binning), slice(inner - start, end - start),
                 slice(inner - margin, end - margin))
