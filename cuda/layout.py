"""The geometry of a batch: places of scenes, sources and blends in memory.

The image of a scene, (n_band, height, width), is its *canvas*. All canvases lie behind one another in one flat buffer.
Sums are gathers over sorted lists, never atomics, so that a scene's bits do not depend on the rest of the batch. All
arrays may be padded, so that batches of like size share buffers and recordings. Sources and tiles of scene -1 and
blends without members are padding: kernels skip them, and their rows of an output mean nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

ROW_TILE = 64  # sources that share the reading of a basis
PIXEL_TILE = 16  # pixel: side of the squares that canvases are summed in


@dataclasses.dataclass(frozen=True)
class Layout:
    """Geometry of a batch. Arrays are int32 unless said, on the device or, for the references, NumPy's.

    Attributes
    ----------
    n_source, n_band, n_blend : int
        Padded numbers.
    n_pixel : int
        Elements of a flat image buffer, padded.
    window, margin, binning : int [pixel]
        Side of a source's window; distance between the edges of window and full window, 0 without outskirts; side of a
        cell.
    canvas_start : int64 (n_scene,)
        First element of each scene's canvas.
    canvas_shape : (n_scene, 2)
        Height, width.
    scene : (n_source,)
        Scene of each source.
    corner : (n_source, 2) [pixel]
        (x, y) of each window's first pixel on its canvas. Windows lie inside; full windows may stick out.
    basis : (n_source,)
        Folded basis of each source, the first index of the tables.
    row_tile : (n_row_tile, ROW_TILE)
        Sources that are multiplied with a table together, all of one basis; -1 is padding. A source that is drawn
        occurs once, other sources do not occur.
    pixel_tile : (n_pixel_tile, 3)
        Scene, and y, x of the first pixel, of squares that cover the canvases without their borders, which have no
        weight. Scene -1 is padding.
    tile_start : (n_pixel_tile + 1,)
        First entry of each tile in `tile_source`.
    tile_source : (n_entry,)
        Sources whose full window touches the tile, ascending.
    blend : (n_source,)
        Blend of each source; padding: -1.
    blend_start : (n_blend + 1,), blend_source : (n_source,)
        Sources of each blend, ascending.
    pixel_start : (n_blend + 1,), blend_pixel : (n_owned,)
        Pixels inside the border that the sources of each blend own, as y * width + x on the canvas, ascending.
    blend_scene : (n_blend,)
        Scene of each blend.
    """

    n_source: int
    n_band: int
    n_blend: int
    n_pixel: int
    window: int
    margin: int
    binning: int
    canvas_start: Any
    canvas_shape: Any
    scene: Any
    corner: Any
    basis: Any
    row_tile: Any
    pixel_tile: Any
    tile_start: Any
    tile_source: Any
    blend: Any
    blend_start: Any
    blend_source: Any
    pixel_start: Any
    blend_pixel: Any
    blend_scene: Any

    @property
    def full_window(self) -> int:
        """Side of the full window [pixel]."""
        return self.window + 2 * self.margin

    @property
    def n_window_pixel(self) -> int:
        """Pixels of a window."""
        return self.window**2

    @property
    def n_cell(self) -> int:
        """Cells of a full window; 0 without outskirts."""
        return (self.full_window // self.binning) ** 2 if self.margin else 0

    def on(self, move: Callable[[np.ndarray], Any]) -> Layout:
        """Return a copy with every array moved, as by a device's `upload`."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{k: move(v) for k, v in arrays.items() if not isinstance(v, int)})
