r"""Pixels to coefficients and back: the two products every solver is made of.

    render:   m[b, p]  = sum_i (c_i[b] Phi[b])[p - p_i]          coefficients to a model image
    project:  g_i[b]   = Phi[b] v[b, p_i + .]                    an image to its inner products with the folded basis

They are adjoint: <render(c), v> = <c, project(v)>. The few sources that are extended have outskirts, a larger window
whose outer part is drawn from coarse cells. Rows come in tiles, so that a source's bits depend on nothing but
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.matmul import matmul
from deblendrt.engine.mixed import AnyBasis
from deblendrt.engine.outskirts import gather, spread
from deblendrt.engine.psf import FoldedBasis

FloatArray = NDArray[np.float32]

TILE = 32  # sources per matrix product: 50-60 GFLOP/s on one AVX-512 core against 20-30 at 8; 64 gains little more
ROUND = 8  # the last tile of a batch is padded to a multiple of this; a product of one row would take another path


def tiles(n: int) -> Iterator[tuple[slice, int]]:
    """Slices of at most `TILE` rows and the padded number of rows of each."""
    for start in range(0, n, TILE):
        stop = min(start + TILE, n)
        yield slice(start, stop), -(-(stop - start) // ROUND) * ROUND


def runs(folded: AnyBasis, n: int) -> Iterator[tuple[slice, int, FoldedBasis]]:
    """Tiles of sources that share a folded basis: rows, their padded number, the basis."""
    for start, stop, basis in folded.spans(n):
        for rows, padded in tiles(stop - start):
            yield slice(start + rows.start, start + rows.stop), padded, basis


def product(rows: FloatArray, table: FloatArray) -> FloatArray:
    """Rows of a tile of sources times one table per band.

    Parameters
    ----------
    rows : float32 (n_source, n_band, n_basis)
        At most `TILE` sources.
    table : float32 (n_band, n_basis, m)

    Returns
    -------
    float32 (n_source, n_band, m)
    """
    n, n_band, n_basis = rows.shape
    padded = np.zeros((n_band, -(-n // ROUND) * ROUND, n_basis), np.float32)
    padded[:, :n] = rows.transpose(1, 0, 2)
    return matmul(padded, table)[:, :n].transpose(1, 0, 2)


def stamps(coefficients: FloatArray, folded: FoldedBasis) -> FloatArray:
    """Stamps of a tile of sources.

    Parameters
    ----------
    coefficients : float32 (n_source, n_band, n_basis)
        At most `TILE` sources.
    folded : FoldedBasis

    Returns
    -------
    float32 (n_source, n_band, window, window)
    """
    return product(coefficients, folded.phi).reshape(*coefficients.shape[:2], folded.window, folded.window)


def extended_stamps(coefficients: FloatArray, folded: FoldedBasis) -> FloatArray:
    """Stamps of a tile of sources in the full window, with their outskirts.

    Parameters
    ----------
    coefficients : float32 (n_source, n_band, n_basis)
        At most `TILE` sources.
    folded : FoldedBasis

    Returns
    -------
    float32 (n_source, n_band, full_window, full_window)
    """
    return _with_outskirts(coefficients, stamps(coefficients, folded), folded)


def _with_outskirts(coefficients: FloatArray, inner: FloatArray, folded: FoldedBasis) -> FloatArray:
    """Outskirts around stamps (n_source, n_band, window, window) that are drawn already."""
    side = folded.full_window // folded.binning
    cells = product(coefficients, folded.outer).reshape(*coefficients.shape[:2], side, side)
    image = spread(cells, folded.binning)
    inside = slice(folded.margin, folded.margin + folded.window)
    image[:, :, inside, inside] = inner
    return image


def whole_stamps(coefficients: FloatArray, folded: FoldedBasis, extended: NDArray[np.bool_]) -> list[FloatArray]:
    """Stamps of a tile of sources, those of extended ones in the full window.

    Parameters
    ----------
    coefficients : float32 (n_source, n_band, n_basis)
        At most `TILE` sources.
    folded : FoldedBasis
    extended : bool (n_source,)

    Returns
    -------
    list of float32 (n_band, size, size)
    """
    image = stamps(coefficients, folded)
    whole = list(image)
    if extended.any():
        wide = _with_outskirts(coefficients[extended], image[extended], folded)
        for i, stamp in zip(np.flatnonzero(extended), wide, strict=True):
            whole[i] = stamp
    return whole


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


def placed(coefficients: FloatArray, folded: AnyBasis, corner: NDArray[np.int64], extended: NDArray[np.bool_],
           shape: list[tuple[int, ...]]) -> Iterator[Placed]:
    """Stamps of sources on their canvases, in the order of the sources.

    Parameters
    ----------
    coefficients : float32 (n_source, n_band, n_basis)
    folded : FoldedBasis or MixedBasis
    corner : int64 (n_source, 2) [pixel]
        (x, y) of each window's first pixel on its canvas.
    extended : bool (n_source,)
        Sources with outskirts.
    shape : list of tuple of int
        (..., n_y, n_x) of each source's canvas.

    Yields
    ------
    Placed
        Of images (n_band, height, width).
    """
    for rows, _, basis in runs(folded, len(coefficients)):
        images = whole_stamps(coefficients[rows], basis, extended[rows])
        for i, ((x, y), image) in enumerate(zip(corner[rows].tolist(), images, strict=True), rows.start):
            margin = basis.margin if extended[i] else 0
            yield place(image, x - margin, y - margin, shape[i])


def render(coefficients: FloatArray, folded: AnyBasis, corner: NDArray[np.int64], extended: NDArray[np.bool_],
           canvas: list[FloatArray], scene: NDArray[np.int64]) -> None:
    """Add the stamps of sources to images, in the order of the sources.

    Parameters
    ----------
    coefficients : float32 (n_source, n_band, n_basis)
    folded : FoldedBasis or MixedBasis
    corner : int64 (n_source, 2) [pixel]
        (x, y) of each window's first pixel on its canvas; windows lie inside, full windows need not.
    extended : bool (n_source,)
        Sources with outskirts.
    canvas : list of float32 (n_band, n_y, n_x)
        One per scene; added to in place.
    scene : int64 (n_source,)
        Index of each source's canvas.
    """
    shape = [canvas[s].shape for s in scene]
    for s, stamp in zip(scene, placed(coefficients, folded, corner, extended, shape), strict=True):
        canvas[s][:, stamp.y, stamp.x] += stamp.image


def project(image: list[FloatArray], folded: AnyBasis, corner: NDArray[np.int64], extended: NDArray[np.bool_],
            scene: NDArray[np.int64]) -> FloatArray:
    """Inner products of the sources' windows with the folded basis: the adjoint of `render`.

    Parameters
    ----------
    image : list of float32 (n_band, n_y, n_x)
        One per scene.
    folded : FoldedBasis or MixedBasis
    corner : int64 (n_source, 2) [pixel]
    extended : bool (n_source,)
    scene : int64 (n_source,)

    Returns
    -------
    float32 (n_source, n_band, n_basis)
    """
    result = np.empty((len(corner), folded.n_band, folded.n_basis), np.float32)
    for rows, padded, basis in runs(folded, len(corner)):
        n_band, n_pixel, _ = basis.phi_t.shape
        window = basis.window
        cut = np.zeros((n_band, padded, window, window), np.float32)
        for i, ((x, y), s) in enumerate(zip(corner[rows], scene[rows], strict=True)):
            cut[:, i] = image[s][:, y : y + window, x : x + window]
        product = matmul(cut.reshape(n_band, padded, n_pixel), basis.phi_t)
        result[rows] = product[:, : rows.stop - rows.start].transpose(1, 0, 2)
    wide = np.flatnonzero(extended)
    for rows, padded, basis in runs(folded.take(wide), len(wide)):
        cells = np.zeros((basis.n_band, padded, basis.outer.shape[2]), np.float32)
        for i, k in enumerate(wide[rows]):
            cells[:, i] = _outskirts_cells(image[scene[k]], basis, corner[k])
        product = matmul(cells, basis.outer_t)
        result[wide[rows]] += product[:, : rows.stop - rows.start].transpose(1, 0, 2)
    return result


def _outskirts_cells(image: FloatArray, folded: FoldedBasis, corner: NDArray[np.int64]) -> FloatArray:
    """Sums over the cells of a source's full window, its window left out, float32 (n_band, n_cell)."""
    margin = folded.margin
    x, y = (corner - margin).tolist()
    cut = window_of(image, x, y, folded.full_window)
    cut[:, margin : margin + folded.window, margin : margin + folded.window] = 0
    return gather(cut, folded.binning).reshape(folded.n_band, -1)
