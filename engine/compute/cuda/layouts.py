"""The `Layout` of a problem: its geometry as the kernels read it, padded so that problems of like size share memory.

All padded sizes come from `padded`: powers of two in steps of an eighth. At most an eighth is wasted, and batches of
like size meet the same few sizes again.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.kernels.linear.launch import source_pairs
from deblendrt.cuda.layout import PIXEL_TILE, ROW_TILE, Layout
from deblendrt.engine.compute.problem import Problem

LEAST = 64  # smallest padded size
HELD = 256  # sources whose derivative images are held at once: 280 kB each of 59 pixels, 6 bands and 13 columns


def padded(n: int) -> int:
    """Return the padded size for n: at least `LEAST`, and at most an eighth above n."""
    if n <= LEAST:
        return LEAST
    step = 1 << max(int(n - 1).bit_length() - 4, 0)
    return -(-n // step) * step


@dataclasses.dataclass(frozen=True)
class SourcePairs:
    """Pairs of sources of one blend whose windows overlap, as the kernels of the joint step read them.

    Derivative images of all sources at once would take more memory than all other arrays. They are drawn in chunks of
    whole blends, and every source of a chunk has a slot for its images. Arrays are int32 unless said; lengths are
    padded.

    Attributes
    ----------
    n_slot : int
    n_large : int
        Blends that conjugate gradients solve.
    n_element : int
        Elements of all dense matrices.
    slot : (n_source,)
    table : (n_source,)
        Four times the folded basis, plus two if the window's first row is odd on its canvas, plus one if its first
        column is: the first index of `Tables.halved`.
    row_tile : (n_chunk, n_row_tile, ROW_TILE)
        Sources of each chunk that are multiplied with a table together; -1 is padding.
    pair : (n_chunk, n_pair, 2)
        The first source is not after the second; each source with itself is among them; -1 is padding.
    pair_span : (n_blend, 2)
        First pair of each blend, and the first behind its pairs.
    own : (n_source,)
        Pair of each source with itself.
    partner_start : (n_source + 1,), partner : (n_entry,)
        `partner` lists the pairs of each source of a large blend: twice the pair's number, plus one if the source is
        the second of the pair. `partner_start` has the first entry of each place of `Layout.blend_source`.
    matrix_start : int64 (n_blend,)
        First element of each blend's dense matrix.
    """

    n_slot: int
    n_large: int
    n_element: int
    slot: Any
    table: Any
    row_tile: Any
    pair: Any
    pair_span: Any
    own: Any
    partner_start: Any
    partner: Any
    matrix_start: Any

    def on(self, move: Callable[[NDArray[Any]], Any]) -> SourcePairs:
        """Return a copy with every array moved, as by a device's `upload`."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{k: move(v) for k, v in arrays.items() if not isinstance(v, int)})


def arrays_of(part: Layout | SourcePairs) -> dict[str, Any]:
    """Arrays of a layout or of pairs, by name."""
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {name: value for name, value in values.items() if not isinstance(value, int)}


def make_pairs(layout: Layout, n_psf: int, n_latent: int, largest: int) -> SourcePairs:
    """Find the pairs of sources of every blend.

    Parameters
    ----------
    layout : Layout
        Its arrays are NumPy's.
    n_psf : int
        Number of folded bases.
    n_latent : int
    largest : int
        Largest number of sources of a blend that a dense system solves.

    Returns
    -------
    SourcePairs
        Its arrays are NumPy's.
    """
    n_source, start = layout.n_source, np.asarray(layout.blend_start, np.int64)
    size = np.diff(start)
    pairs, pair_start = source_pairs(layout, np.zeros(n_source, np.int32))
    n_slot = min(n_source, max(HELD, padded(int(size.max(initial=1)))))
    bounds = [0]  # blends
    while bounds[-1] < len(size):
        bounds.append(max(int(np.searchsorted(start, start[bounds[-1]] + n_slot, side="right")) - 1, bounds[-1] + 1))
    chunks = list(itertools.pairwise(bounds))
    odd = layout.corner % 2
    table = (4 * layout.basis + 2 * odd[:, 1] + odd[:, 0]).astype(np.int32)
    slot, own = np.zeros(n_source, np.int32), np.zeros(n_source, np.int32)
    pair_span = np.zeros((len(size), 2), np.int32)
    n_pair = padded(max(int(pair_start[b] - pair_start[a]) for a, b in chunks))
    pair = np.full((len(chunks), n_pair, 2), -1, np.int32)
    tiles = []
    for k, (a, b) in enumerate(chunks):
        rows = np.asarray(layout.blend_source[start[a] : start[b]], np.int64)
        slot[rows] = np.arange(len(rows))
        tiles.append(row_tiles(table, rows, n_slot, 4 * n_psf))
        pair[k, : pair_start[b] - pair_start[a]] = pairs[pair_start[a] : pair_start[b]]
        span = np.stack([pair_start[a:b], pair_start[a + 1 : b + 1]], 1)
        pair_span[a:b] = span + k * n_pair - pair_start[a]
    first, second = pair.reshape(-1, 2).T
    number = np.flatnonzero(first >= 0)
    first, second = first[number], second[number]
    alone = first == second
    own[first[alone]] = number[alone]
    place = np.zeros(n_source, np.int64)
    place[layout.blend_source[: start[-1]]] = np.arange(start[-1])
    to = np.concatenate([place[first], place[second[~alone]]])
    entry = np.concatenate([2 * number, 2 * number[~alone] + 1])
    order = np.argsort(to, kind="stable")
    order = order[(size > largest)[layout.blend[layout.blend_source[to[order]]]]]
    matrix = np.where(size <= largest, size * n_latent, 0) ** 2
    return SourcePairs(
        n_slot, int((size > largest).sum()), padded(int(matrix.sum())), slot, table, np.stack(tiles), pair, pair_span,
        own, np.searchsorted(to[order], np.arange(n_source + 1)).astype(np.int32),
        filled(entry[order], padded(len(order)), -1), np.cumsum([0, *matrix[:-1]]))


def make_layout(problem: Problem) -> Layout:
    """Make the layout of a problem.

    Parameters
    ----------
    problem : Problem

    Returns
    -------
    Layout
        Its arrays are NumPy's, padded.
    """
    n, n_scene = len(problem.scene), len(problem.data)
    n_source, n_blend = padded(n), padded(problem.n_blend)
    shapes = np.array([d.shape for d in problem.data], np.int64).reshape(-1, 3)
    start = np.concatenate([[0], np.cumsum(shapes.prod(1))])
    folded = problem.folded
    basis = np.zeros(n_source, np.int32)
    for k, (members, _) in enumerate(folded.groups(n)):
        basis[members] = k
    scene = filled(problem.scene, n_source, -1)
    corner = filled(problem.corner, n_source, 0)
    blend = filled(problem.blend, n_source, -1)
    size = np.bincount(problem.blend, minlength=n_blend)
    blend_pixel, pixel_start, blend_scene = _owned(problem, n_blend)
    margin = int(folded.margin)

    rows = np.arange(n)
    tiles: dict[str, Any] = pixel_tiles(problem, rows, np.full(n, margin), int(folded.half))
    return Layout(
        n_source=n_source, n_band=problem.n_band, n_blend=n_blend, n_pixel=padded(int(start[-1])),
        window=int(folded.window), margin=margin, binning=int(folded.of(0).binning) if n else 1,
        canvas_start=filled(start[:-1], padded(n_scene), 0, np.int64),
        canvas_shape=filled(shapes[:, 1:], padded(n_scene), 0),
        scene=scene, corner=corner, basis=basis, blend=blend,
        blend_start=np.concatenate([[0], np.cumsum(size)]).astype(np.int32),
        blend_source=filled(np.argsort(problem.blend, kind="stable"), n_source, -1),
        pixel_start=pixel_start, blend_pixel=blend_pixel, blend_scene=blend_scene,
        row_tile=row_tiles(basis, rows, n_source, int(basis.max(initial=0)) + 1), **tiles)


def filled(values: NDArray[Any], length: int, value: Any, dtype: Any = np.int32) -> NDArray[Any]:
    """Return values with a constant behind them, up to a length."""
    result = np.full((length, *values.shape[1:]), value, dtype)
    result[: len(values)] = values
    return result


def row_tiles(table: NDArray[np.int32], rows: NDArray[np.int64], n_source: int, n_table: int) -> NDArray[np.int32]:
    """Cut rows into tiles of one table each, int32 (n_tile, ROW_TILE).

    The number of tiles is enough for any `n_source` sources, so that it does not depend on the rows.
    """
    number = table[rows]
    tiles = np.full((-(-n_source // ROW_TILE) + n_table - 1, ROW_TILE), -1, np.int32)
    filled = 0
    for k in np.unique(number):
        members = rows[number == k]
        n_tile = -(-len(members) // ROW_TILE)
        tiles[filled : filled + n_tile].reshape(-1)[: len(members)] = members
        filled += n_tile
    return tiles


def pixel_tiles(problem: Problem, rows: NDArray[np.int64], margin: NDArray[np.int64],
                border: int) -> dict[str, NDArray[np.int32]]:
    """Cut canvases into square tiles, and list the sources that touch each tile.

    Parameters
    ----------
    problem : Problem
    rows : int64 (n_row,)
        Sources that are drawn.
    margin : int64 (n_row,) [pixel]
        Distance that each source's light reaches beyond its window.
    border : int [pixel]
        Width of the edge of every canvas that no tile covers.

    Returns
    -------
    dict
        `pixel_tile`, `tile_start` and `tile_source` of a `Layout`, padded.
    """
    inside = np.array([d.shape[1:] for d in problem.data], np.int64).reshape(-1, 2) - 2 * border
    counts = -(-inside // PIXEL_TILE)
    first = np.concatenate([[0], np.cumsum(counts.prod(1))])
    scene = np.repeat(np.arange(len(inside)), counts.prod(1))
    y, x = np.divmod(np.arange(first[-1]) - first[scene], counts[scene, 1])
    tiles = np.stack([scene, y * PIXEL_TILE + border, x * PIXEL_TILE + border], 1)

    scene = problem.scene[rows]
    extent = inside[scene][:, ::-1]  # width, height
    corner = problem.corner[rows] - margin[:, None] - border
    low = np.clip(corner, 0, extent) // PIXEL_TILE
    high = -(-np.clip(corner + problem.folded.window + 2 * margin[:, None], 0, extent) // PIXEL_TILE)
    across, down = np.maximum(high - low, 0).T
    which = np.repeat(np.arange(len(rows)), across * down)
    k = np.arange(len(which)) - np.repeat(np.cumsum(across * down) - across * down, across * down)
    x, y = low[which, 0] + k % across[which], low[which, 1] + k // across[which]
    touched = first[scene[which]] + y * counts[scene[which], 1] + x
    tile_start = np.full(padded(len(tiles)) + 1, len(touched), np.int32)
    tile_start[: len(tiles) + 1] = np.concatenate([[0], np.cumsum(np.bincount(touched, minlength=len(tiles)))])
    sources = rows[which[np.argsort(touched, kind="stable")]]
    return {"pixel_tile": filled(tiles, padded(len(tiles)), -1), "tile_start": tile_start,
            "tile_source": filled(sources, padded(len(sources)), -1)}


def _owned(problem: Problem, n_blend: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Return `blend_pixel`, `pixel_start` and `blend_scene` of a layout."""
    pixels, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    blend_scene, half = np.full(n_blend, -1, np.int32), int(problem.folded.half)
    before = 0
    for s, part in enumerate(problem.partition):
        inside = np.flatnonzero(np.pad(part.owner[half:-half, half:-half], half, constant_values=-1).ravel() >= 0)
        blend = part.blend[part.owner.ravel()[inside]]
        pixels.append(inside[np.argsort(blend, kind="stable")])
        counts.append(np.bincount(blend, minlength=part.n_blend))
        blend_scene[before : before + part.n_blend] = s
        before += part.n_blend
    owned = np.concatenate(pixels)
    start = np.zeros(n_blend + 1, np.int32)
    start[1 : before + 1] = np.cumsum(np.concatenate(counts))
    start[before + 1 :] = len(owned)
    return filled(owned, padded(len(owned)), 0), start, blend_scene
