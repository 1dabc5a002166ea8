"""The `Layout` of a problem: its geometry as the kernels read it, padded so that problems of like size share memory.

Padded sizes are made here and nowhere else: whole numbers of eighths of powers of two, so that at most an eighth is
wasted and a stream of batches of like size meets the same few sizes again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.layout import PIXEL_TILE, ROW_TILE, Layout
from deblendrt.engine.compute.problem import Problem

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
    margin = int(folded.margin)

    def drawn(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        rows = np.flatnonzero(chosen)
        return {"row_tile": row_tiles(basis[:n], rows, n_source),
                **pixel_tiles(problem, rows, np.full(len(rows), margin), int(folded.half))}

    fixed: dict[str, Any] = {
        "n_source": n_source, "n_band": problem.n_band, "n_blend": n_blend, "n_pixel": padded(int(start[-1])),
        "window": int(folded.window), "margin": margin, "binning": int(folded.of(0).binning) if n else 1,
        "canvas_start": filled(start[:-1], padded(n_scene), 0, np.int64),
        "canvas_shape": filled(shapes[:, 1:], padded(n_scene), 0),
        "scene": scene, "corner": corner, "basis": basis, "blend": blend,
        "blend_start": np.concatenate([[0], np.cumsum(size)]).astype(np.int32),
        "blend_source": filled(np.argsort(problem.blend, kind="stable"), n_source, -1),
        "pixel_start": pixel_start, "blend_pixel": blend_pixel, "blend_scene": blend_scene,
    }
    return Layout(**fixed, **drawn(np.ones(n, bool))), Layout(**fixed, **drawn(size[problem.blend] > 1))


def filled(values: NDArray[Any], length: int, value: Any, dtype: Any = np.int32) -> NDArray[Any]:
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


def pixel_tiles(problem: Problem, rows: NDArray[np.int64], margin: NDArray[np.int64],
                border: int) -> dict[str, NDArray[np.int32]]:
    """The squares that images are summed in, and the sources that touch each.

    Parameters
    ----------
    problem : Problem
    rows : int64 (n_row,)
        Sources that are drawn.
    margin : int64 (n_row,) [pixel]
        By how much each source's light exceeds its window.
    border : int [pixel]
        Of every canvas, that no square covers.

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
