r"""From coefficients to pixels and back.

    render:   m[b, p]  = sum_i (c_i[b] Phi[b])[p - p_i]          coefficients to a model image
    project:  g_i[b]   = Phi[b] v[b, p_i + .]                    an image to its inner products with the folded basis

The two operations are adjoint: <render(c), v> = <c, project(v)>. The *extent* of a source says in which window it is
drawn: 0 the window of the basis, -k the k-th smaller window, 1 the full window, whose outer part (the outskirts) is
drawn from coarse cells. Sources are drawn in padded tiles, so that the bits of a source depend on that source alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.canvases import Placed, add_outskirts, on_canvas, outskirts_sums, place, with_outskirts
from deblendrt.engine.compute.folded_bases import AnyBasis
from deblendrt.engine.compute.folded_basis import FoldedBasis, Window
from deblendrt.engine.compute.matmul import matmul
from deblendrt.engine.units import FloatArray

HELD_STAMPS = 128  # sources whose stamps are held at once, when stamps are asked for one by one
TILE = 32  # sources per matrix product: 50-60 GFLOP/s on one AVX-512 core against 20-30 at 8; 64 gains little more
ROUND = 8  # rows of the last tile are padded to a multiple of 8: a product of one row gives other bits


def tiles(n: int) -> Iterator[tuple[slice, int]]:
    """Yield slices of at most `TILE` rows, each with its padded number of rows."""
    for start in range(0, n, TILE):
        stop = min(start + TILE, n)
        yield slice(start, stop), -(-(stop - start) // ROUND) * ROUND


def runs(folded: AnyBasis, n: int) -> Iterator[tuple[slice, FoldedBasis]]:
    """Yield tiles of consecutive sources that share a folded basis: their rows, and the basis."""
    for start, stop, basis in folded.spans(n):
        for rows, _ in tiles(stop - start):
            yield slice(start + rows.start, start + rows.stop), basis


def product(rows: FloatArray, table: FloatArray) -> FloatArray:
    """Multiply the coefficients of a tile of sources by a table of every band.

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
    """Draw the stamps of a tile of sources.

    Parameters
    ----------
    coefficients : float32 (n_source, n_band, n_basis)
        At most `TILE` sources.
    folded : FoldedBasis

    Returns
    -------
    float32 (n_source, n_band, window, window)
    """
    return window_stamps(coefficients, folded.at(0))


def window_stamps(coefficients: FloatArray, window: Window) -> FloatArray:
    """Draw the stamps of a tile of sources in one window, float32 (n_source, n_band, size, size)."""
    flat = window.draw(coefficients[:, :, : window.n_used].transpose(1, 0, 2)).transpose(1, 0, 2)
    return flat.reshape(*flat.shape[:2], window.size, window.size)


def extended_stamps(coefficients: FloatArray, folded: FoldedBasis) -> FloatArray:
    """Draw the stamps of a tile of sources in the full window, with their outskirts.

    Parameters
    ----------
    coefficients : float32 (n_source, n_band, n_basis)
        At most `TILE` sources.
    folded : FoldedBasis

    Returns
    -------
    float32 (n_source, n_band, full_window, full_window)
    """
    return with_outskirts(stamps(coefficients, folded), outskirts_cells(coefficients, folded), folded)


def outskirts_cells(coefficients: FloatArray, folded: FoldedBasis) -> FloatArray:
    """Compute the outskirts of a tile of sources, float32 (n_source, n_band, n_cell)."""
    return folded.draw_outer(coefficients.transpose(1, 0, 2)).transpose(1, 0, 2)


def windows(folded: AnyBasis, extent: NDArray[np.int8]) -> Iterator[tuple[NDArray[np.int64], FoldedBasis, Window]]:
    """Yield tiles of sources with one basis and one window, the smallest windows first.

    Parameters
    ----------
    folded : FoldedBasis or MixedBasis
    extent : int8 (n_source,)

    Yields
    ------
    rows : int64 (n_member,)
    basis : FoldedBasis
    window : Window
    """
    drawn = np.minimum(extent, 0)  # a source with outskirts is drawn in the basis' window, too
    for k in np.unique(drawn).tolist():
        rows = np.flatnonzero(drawn == k)
        for tile, basis in runs(folded.take(rows), len(rows)):
            yield rows[tile], basis, basis.at(k)


def each_stamp(coefficients: FloatArray, folded: AnyBasis, extent: NDArray[np.int8]) -> Iterator[FloatArray]:
    """Yield the stamps of sources, each in its own window, in the order of the sources.

    Parameters
    ----------
    coefficients : float32 (n_source, n_band, n_basis)
    folded : FoldedBasis or MixedBasis
    extent : int8 (n_source,)

    Yields
    ------
    float32 (n_band, size, size)
    """
    for window, cells, basis in _each(coefficients, folded, extent):
        yield window if cells is None else with_outskirts(window, cells, basis)


def _each(coefficients: FloatArray, folded: AnyBasis,
          extent: NDArray[np.int8]) -> Iterator[tuple[FloatArray, FloatArray | None, FoldedBasis]]:
    """Yield for every source, in order: the stamp in its window, the cells of its outskirts or None, the basis."""
    for start in range(0, len(coefficients), HELD_STAMPS):
        held = slice(start, start + HELD_STAMPS)
        part, reach = coefficients[held], extent[held]
        drawn: dict[int, tuple[FloatArray, FloatArray | None, FoldedBasis]] = {}
        for rows, basis, window in windows(folded.take(held), reach):
            images = window_stamps(part[rows], window)
            cells: dict[int, FloatArray] = {}
            wide = rows[reach[rows] > 0].tolist()
            if wide:
                cells = dict(zip(wide, outskirts_cells(part[wide], basis), strict=True))
            drawn |= {i: (image, cells.get(i), basis) for i, image in zip(rows.tolist(), images, strict=True)}
        yield from (drawn[i] for i in range(len(part)))


def corners(folded: AnyBasis, corner: NDArray[np.int64], extent: NDArray[np.int8]) -> NDArray[np.int64]:
    """Compute the first pixel (x, y) of every source's stamp on its canvas, int64 (n_source, 2) [pixel]."""
    inset = np.array([-folded.margin, 0, *folded.insets])
    return corner + inset[1 - extent][:, None]


def placed(coefficients: FloatArray, folded: AnyBasis, corner: NDArray[np.int64], extent: NDArray[np.int8],
           shape: list[tuple[int, ...]], border: int = 0) -> Iterator[Placed]:
    """Yield the stamps of sources on their canvases, in the order of the sources.

    Parameters
    ----------
    coefficients : float32 (n_source, n_band, n_basis)
    folded : FoldedBasis or MixedBasis
    corner : int64 (n_source, 2) [pixel]
        (x, y) of each window's first pixel on its canvas.
    extent : int8 (n_source,)
        Window in which each source is drawn, see the module.
    shape : list of tuple of int
        Shape of each source's canvas, (..., n_y, n_x).
    border : int [pixel]
        Width of the canvases' borders, in which no outskirts are drawn.

    Yields
    ------
    Placed
        Images are (n_band, height, width).
    """
    first = corners(folded, corner, extent).tolist()
    for (window, cells, basis), (x, y), size in zip(_each(coefficients, folded, extent), first, shape, strict=True):
        yield place(window, x, y, size) if cells is None else on_canvas(window, cells, basis, x, y, size, border)


def render(coefficients: FloatArray, folded: AnyBasis, corner: NDArray[np.int64], extent: NDArray[np.int8],
           canvas: list[FloatArray], scene: NDArray[np.int64], border: int = 0) -> None:
    """Add the stamps of sources to images: small windows first, and in the order of the sources.

    Parameters
    ----------
    coefficients : float32 (n_source, n_band, n_basis)
    folded : FoldedBasis or MixedBasis
    corner : int64 (n_source, 2) [pixel]
        (x, y) of each window's first pixel on its canvas.
    extent : int8 (n_source,)
        Window in which each source is drawn, see the module.
    canvas : list of float32 (n_band, n_y, n_x)
        One per scene; added to in place.
    scene : int64 (n_source,)
        Number of each source's canvas.
    border : int [pixel]
        Width of the canvases' borders, in which no outskirts are drawn.
    """
    for rows, _, window in windows(folded, extent):
        image = window.draw(coefficients[rows, :, : window.n_used].transpose(1, 0, 2))
        image = image.reshape(*image.shape[:2], window.size, window.size)
        place_of = zip(scene[rows].tolist(), (corner[rows] + window.inset).tolist(), strict=True)
        for i, (s, (x, y)) in enumerate(place_of):
            here = place(image[:, i], x, y, canvas[s].shape)
            canvas[s][:, here.y, here.x] += here.image
    wide = np.flatnonzero(extent > 0)
    for chosen, basis in runs(folded.take(wide), len(wide)):
        rows = wide[chosen]
        cells = basis.draw_outer(coefficients[rows].transpose(1, 0, 2))
        for i, s, (x, y) in zip(range(len(rows)), scene[rows].tolist(), corner[rows].tolist(), strict=True):
            add_outskirts(cells[:, i], basis, x - basis.margin, y - basis.margin, canvas[s], border)


def project(image: list[FloatArray], folded: AnyBasis, corner: NDArray[np.int64], extent: NDArray[np.int8],
            scene: NDArray[np.int64], border: int = 0) -> FloatArray:
    """Compute inner products of the sources' windows with the folded basis: the adjoint of `render`.

    Parameters
    ----------
    image : list of float32 (n_band, n_y, n_x)
        One per scene.
    folded : FoldedBasis or MixedBasis
    corner : int64 (n_source, 2) [pixel]
    extent : int8 (n_source,)
    scene : int64 (n_source,)
    border : int [pixel]
        Width of the images' borders, which outskirts leave out.

    Returns
    -------
    float32 (n_source, n_band, n_basis)
    """
    result = np.zeros((len(corner), folded.n_band, folded.n_basis), np.float32)
    for rows, basis, window in windows(folded, extent):
        size = window.size
        cut = np.empty((basis.n_band, len(rows), size, size), np.float32)
        place_of = zip(scene[rows].tolist(), (corner[rows] + window.inset).tolist(), strict=True)
        for i, (s, (x, y)) in enumerate(place_of):
            cut[:, i] = image[s][:, y : y + size, x : x + size]
        products = window.gather(cut.reshape(basis.n_band, len(rows), size * size))
        result[rows, :, : window.n_used] = products.transpose(1, 0, 2)
    wide = np.flatnonzero(extent > 0)
    for chosen, basis in runs(folded.take(wide), len(wide)):
        rows = wide[chosen]
        cells = np.empty((basis.n_band, len(rows), basis.outer.shape[2]), np.float32)
        for i, k in enumerate(rows):
            cells[:, i] = outskirts_sums(image[scene[k]], basis, corner[k], border)
        result[rows] += basis.gather_outer(cells).transpose(1, 0, 2)
    return result
