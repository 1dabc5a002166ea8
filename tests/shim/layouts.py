"""Random layouts: scenes of any size, windows and bases of any number, every kind of padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deblendrt.cuda.layout import PIXEL_TILE, ROW_TILE, Layout


def random_layout(seed: int, scenes: Sequence[tuple[int, int, int]], *, n_band: int = 2, window: int = 7,
                  margin: int = 0, binning: int = 1, n_psf: int = 1, n_padding: int = 2) -> Layout:
    """Sources at random places of scenes, in random blends that own random pixels.

    Parameters
    ----------
    seed : int
        Every scene is drawn by itself: its sources do not depend on the scenes around it.
    scenes : sequence of (height, width, n_source)
        Canvases that hold a window.
    n_band, window, margin, binning : int
    n_psf : int
        Bases, one for each source at random.
    n_padding : int
        Sources, blends, tiles of either kind, and pixels, behind the others.

    Returns
    -------
    Layout
        Its arrays are NumPy's.
    """
    full = window + 2 * margin
    scene, corner, basis, blend, blend_scene, pixels, tiles, touched = ([] for _ in range(8))
    for s, (height, width, n) in enumerate(scenes):
        rng = np.random.default_rng([seed, height, width, n])
        first, n_before, n_blend = sum(len(c) for c in corner), len(blend_scene), max(1, n // 2) if n else 0
        scene += [s] * n
        corner.append(np.stack([rng.integers(0, [width - window + 1, height - window + 1]) for _ in range(n)])
                      if n else np.zeros((0, 2), int))
        basis += rng.integers(0, n_psf, n).tolist()
        blend += (n_before + np.concatenate([np.arange(n_blend), rng.integers(0, max(n_blend, 1), n - n_blend)])
                  ).tolist()
        blend_scene += [s] * n_blend
        owner = rng.integers(-1, n_blend, height * width)
        pixels += [np.flatnonzero(owner == k) for k in range(n_blend)]
        for y in range(0, height, PIXEL_TILE):
            for x in range(0, width, PIXEL_TILE):
                low = corner[-1] - margin
                touches = (low < [x + PIXEL_TILE, y + PIXEL_TILE]).all(1) & (low + full > [x, y]).all(1)
                tiles.append([s, y, x])
                touched.append(first + np.flatnonzero(touches))
    n_source, n_blend = len(scene), len(blend_scene)
    row_tile = [np.flatnonzero(np.array(basis, int) == k) for k in range(n_psf)]
    row_tile = [rows[i : i + ROW_TILE] for rows in row_tile for i in range(0, len(rows), ROW_TILE)]
    sizes = [n_band * height * width for height, width, _ in scenes]
    more = [-1] * n_padding
    return Layout(
        n_source=n_source + n_padding, n_band=n_band, n_blend=n_blend + n_padding, n_pixel=sum(sizes) + n_padding,
        window=window, margin=margin, binning=binning,
        canvas_start=np.cumsum([0, *sizes])[:-1].astype(np.int64), canvas_shape=_whole([s[:2] for s in scenes]),
        scene=_whole(scene + more), corner=_whole(np.concatenate([*corner, np.zeros((n_padding, 2), int)])),
        basis=_whole(basis + [0] * n_padding),
        row_tile=_whole([[*rows, *[-1] * (ROW_TILE - len(rows))] for rows in row_tile] + [[-1] * ROW_TILE] * n_padding),
        pixel_tile=_whole(tiles + [[-1] * 3] * n_padding), tile_start=_starts(touched, n_padding),
        tile_source=_joined(touched), blend=_whole(blend + more),
        blend_start=_starts([np.flatnonzero(np.array(blend) == k) for k in range(n_blend)], n_padding),
        blend_source=_whole(np.argsort(np.array(blend, int), kind="stable").tolist() + more),
        pixel_start=_starts(pixels, n_padding), blend_pixel=_joined(pixels), blend_scene=_whole(blend_scene + more))


def _whole(values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, int), *parts]).astype(np.int32)


def _starts(parts: list[np.ndarray], n_padding: int) -> np.ndarray:
    return np.cumsum([0, *(len(p) for p in parts), *[0] * n_padding]).astype(np.int32)
