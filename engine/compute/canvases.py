"""Stamps on canvases: cut at the edges, with and without outskirts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.model.outskirts import gather, spread
from deblendrt.engine.units import FloatArray


class Placed(NamedTuple):
    """A source's stamp on its canvas, cut at the canvas' edges.

    Attributes
    ----------
    image : float32 (..., height, width)
    y, x : slice
        Rows and columns of the canvas under the stamp.
    """

    image: NDArray[Any]
    y: slice
    x: slice

    def cut(self, canvas: NDArray[Any]) -> NDArray[Any]:
        """View the canvas under the stamp, (..., height, width)."""
        return canvas[..., self.y, self.x]

    def common(self, other: Placed) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """View both stamps where they overlap; None if they do not."""
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
        The stamp's first pixel on the canvas; may lie off the canvas.
    shape : tuple of int
        Shape of the canvas, (..., n_y, n_x).

    Returns
    -------
    Placed
    """
    height, width = image.shape[-2:]
    y0, y1 = (min(max(edge, 0), shape[-2]) for edge in (y, y + height))
    x0, x1 = (min(max(edge, 0), shape[-1]) for edge in (x, x + width))
    return Placed(image[..., y0 - y : y1 - y, x0 - x : x1 - x], slice(y0, y1), slice(x0, x1))


def window_of(image: FloatArray, x: int, y: int, size: int) -> FloatArray:
    """Copy a window of an image; it is zero off the image.

    Parameters
    ----------
    image : float32 (n_band, n_y, n_x)
    x, y : int [pixel]
        The window's first pixel; may lie off the image.
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
    """Draw the part of a stamp with outskirts that lies on a canvas.

    Parameters
    ----------
    window : float32 (..., window, window)
        The stamp in its window.
    cells : float32 (..., n_cell)
        Its outskirts.
    folded : FoldedBasis
    x, y : int [pixel]
        The full window's first pixel on the canvas.
    shape : tuple of int
        Shape of the canvas, (..., n_y, n_x).
    border : int [pixel]
        Width of the canvas' border, in which nothing is drawn.

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
    """Draw a stamp with outskirts in the full window.

    Parameters
    ----------
    window : float32 (..., window, window)
        The stamp in its window.
    cells : float32 (..., n_cell)
        Its outskirts.
    folded : FoldedBasis

    Returns
    -------
    float32 (..., full_window, full_window)
    """
    return on_canvas(window, cells, folded, 0, 0, (folded.full_window, folded.full_window)).image


def add_outskirts(cells: FloatArray, folded: FoldedBasis, x: int, y: int, canvas: FloatArray, border: int) -> None:
    """Add a source's outskirts, (n_band, n_cell), to a canvas; (x, y) is the full window's first pixel."""
    window = np.zeros((len(cells), folded.window, folded.window), np.float32)
    here = on_canvas(window, cells, folded, x, y, canvas.shape, border)
    here.cut(canvas)[...] += here.image


def outskirts_sums(image: FloatArray, folded: FoldedBasis, corner: NDArray[np.int64], border: int) -> FloatArray:
    """Sum an image over the cells of a source's full window, its window left out; float32 (n_band, n_cell)."""
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
    """The part of a full window that lies on a canvas, along one axis.

    Attributes
    ----------
    on_canvas : slice
        Pixels of the canvas that the part covers.
    cells : slice
        Cells from which the part's pixels are interpolated.
    cut : slice
        The part within the pixels that these cells cover.
    core, of_window : slice
        The pixels that the window covers, counted in the part and in the window.
    """

    on_canvas: slice
    cells: slice
    cut: slice
    core: slice
    of_window: slice


def _seen(first: int, size: int, folded: FoldedBasis, border: int) -> _Seen:
    """Find the part of a full window whose first pixel is `first` on an axis of a canvas."""
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
