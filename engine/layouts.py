"""The `Layout` of a problem: its geometry as the kernels read it, padded so that problems of like size share memory.

Padded sizes are made here and nowhere else: whole numbers of eighths of powers of two, so that at most an eighth is
wasted and a stream of batches of like size meets the same few sizes again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.layout import PIXEL_TILE, ROW_TILE, Layout
from deblendrt.engine.objective import Problem

LEAST = 64


def padded(n: int) -> int:
    """The next size that buffers are made for: of at least `LEAST`, with three leading bits and zeros."""
    if n <= LEAST:
        return LEAST
    step = 1 << max(int(n - 1).bit_length() - 4, 0)
    return -(-n // step) * step


def make_layout(problem: Problem) -> tuple[Layout, Layout]:
    """Where everything of a problem lies.

    Parameters
    ----------
    problem : Problem

    Returns
    -------
    every : Layout
        Of NumPy arrays, padded.
    joint : Layout
        The same in which only sources of blends of several are drawn; padded alike.
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
    canvases = shapes[:, 1:]
    tiles, first_tile = _tiles(canvases, int(folded.half))
    margin = int(folded.margin)
    full = int(folded.window) + 2 * margin

    def drawn(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        rows = np.flatnonzero(chosen)
        entry, source = _touched(problem, canvases, first_tile, rows, margin, full)
        tile_start = np.zeros(padded(len(tiles)) + 1, np.int32)
        tile_start[1 : len(tiles) + 1] = np.cumsum(np.bincount(entry, minlength=len(tiles)))
        tile_start[len(tiles) + 1 :] = len(entry)
        order = np.argsort(entry, kind="stable")
        return {"row_tile": row_tiles(basis[:n], rows, n_source), "tile_start": tile_start,
                "tile_source": filled(source[order], padded(len(source)), -1)}

    fixed: dict[str, Any] = {
        "n_source": n_source, "n_band": problem.n_band, "n_blend": n_blend, "n_pixel": padded(int(start[-1])),
        "window": int(folded.window), "margin": margin, "binning": int(folded.of(0).binning) if n else 1,
        "canvas_start": filled(start[:-1], padded(n_scene), 0, np.int64),
        "canvas_shape": filled(canvases, padded(n_scene), 0),
        "scene": scene, "corner": corner, "basis": basis, "pixel_tile": filled(tiles, padded(len(tiles)), -1),
        "blend": blend,
        "blend_start": np.concatenate([[0], np.cumsum(size)]).astype(np.int32),
        "blend_source": filled(np.argsort(problem.blend, kind="stable"), n_source, -1),
        "pixel_start": pixel_start, "blend_pixel": blend_pixel, "blend_scene": blend_scene,
    }
    return Layout(**fixed, **drawn(np.ones(n, bool))), Layout(**fixed, **drawn(size[problem.blend] > 1))


def filled(values: NDArray[Any], length: int, value: int, dtype: Any = np.int32) -> NDArray[Any]:
    """Values, and a constant behind them."""
    result = np.full((length, *values.shape[1:]), value, dtype)
    result[: len(values)] = values
    return result


def row_tiles(basis: NDArray[np.int32], rows: NDArray[np.int64], n_source: int) -> NDArray[np.int32]:
    """Rows in tiles of one basis each; as many tiles as any choice of sources can need."""
    number = basis[rows]
    n_basis = int(basis.max(initial=0)) + 1
    table = np.full((-(-n_source // ROW_TILE) + n_basis - 1, ROW_TILE), -1, np.int32)
    filled = 0
    for k in np.unique(number):
        members = rows[number == k]
        n_tile = -(-len(members) // ROW_TILE)
        table[filled : filled + n_tile].reshape(-1)[: len(members)] = members
        filled += n_tile
    return table


def _tiles(canvases: NDArray[np.int64], border: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Scene, y, x of the squares that cover the canvases inside their borders, and each canvas' first."""
    counts = -(-(canvases - 2 * border) // PIXEL_TILE)
    first = np.concatenate([[0], np.cumsum(counts.prod(1))])
    scene = np.repeat(np.arange(len(canvases)), counts.prod(1))
    k = np.arange(first[-1]) - first[scene]
    across = counts[scene, 1]
    return np.stack([scene, k // across * PIXEL_TILE + border, k % across * PIXEL_TILE + border], 1), first


def _touched(problem: Problem, canvases: NDArray[np.int64], first_tile: NDArray[np.int64], rows: NDArray[np.int64],
             margin: int, full: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a tile and a source whose full window touches it, by source."""
    scene, border = problem.scene[rows], int(problem.folded.half)
    inside = canvases[scene][:, ::-1] - 2 * border  # width, height
    corner = problem.corner[rows] - margin - border
    low = np.clip(corner, 0, inside) // PIXEL_TILE
    high = -(-np.clip(corner + full, 0, inside) // PIXEL_TILE)
    extent = np.maximum(high - low, 0)
    count = extent.prod(1)
    which = np.repeat(np.arange(len(rows)), count)
    k = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    x, y = low[which, 0] + k % extent[which, 0], low[which, 1] + k // extent[which, 0]
    across = -(-inside[:, 0] // PIXEL_TILE)
    return first_tile[scene[which]] + y * across[which] + x, rows[which]


def _owned(problem: Problem, n_blend: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """`blend_pixel`, `pixel_start`, `blend_scene` of a layout."""
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
