"""Launchers of the kernels on pixels: products with the folded basis, sums of stamps, the likelihood."""

from __future__ import annotations

import math

import numpy as np

from deblendrt.cuda.driver.device import Device, DeviceArray, blocks_for
from deblendrt.cuda.layout import PIXEL_TILE, ROW_TILE, Layout

TILE_COLUMNS, GEMM_THREADS = 128, 128  # as in gemm.cuh
N_PART = 8  # 64 sources of 6 bands make 48 blocks, 1024 sources 768: a GPU holds some 400 at a time
STEP = 16  # pixel: TILE_INNER of gemm.cuh; the length of a run is a multiple of it


def product(device: Device, layout: Layout, rows: DeviceArray, table: DeviceArray, out: DeviceArray, *,
            chosen: DeviceArray | None = None, slot: DeviceArray | None = None, accumulate: bool = False) -> None:
    """Multiply rows of sources with one table per folded basis and band: nine tenths of all arithmetic.

    Moves 4 n_band n_row (n_inner + n_column) bytes a source and each table once for every 64 sources (from the
    second-level cache, mostly), for 2 n_band n_row n_inner n_column flops a source.

    Specification: `reference.pixels.product`.
    """
    _, n_band, n_row, n_inner = rows.shape
    n_column = table.shape[-1]
    grid = (-(-n_column // TILE_COLUMNS), layout.row_tile.size // ROW_TILE, n_band * n_row)
    device.launch("product", grid, (GEMM_THREADS,), layout.row_tile, layout.basis, chosen, slot, rows, table, n_band,
                  n_row, n_inner, n_column, int(accumulate), out)


def runs(n_pixel: int, n_basis: int) -> tuple[int, int]:
    """Number and length [pixel] of the runs that a window is cut into; their sums fit into memory for stamps."""
    most = max(1, min(N_PART, n_pixel // n_basis))
    length = -(-n_pixel // (most * STEP)) * STEP
    return -(-n_pixel // length), length


def project(device: Device, layout: Layout, image: DeviceArray, phi_t: DeviceArray, outer_t: DeviceArray | None,
            extended: DeviceArray, inset: DeviceArray, cells: DeviceArray | None, scratch: DeviceArray,
            out: DeviceArray) -> None:
    """Multiply windows of images with the folded basis.

    A window is cut into runs of pixels, which different blocks multiply, so that few sources fill a GPU, too. The runs
    depend on the model's sizes alone: a source's bits must not depend on the batch.

    Reads each window once for every 128 basis functions, and writes and reads each run's sums: 4 n_band (n_window_pixel
    + (2 n_part + 1) n_basis) bytes and 2 n_band n_window_pixel n_basis flops a source. The cache serves overlapping
    windows, and the runs' sums of up to some 1000 sources.

    Specification: `reference.pixels.project`; `cells` and `scratch` are overwritten.
    """
    n_source, n_band, n_basis = out.shape
    n_part, length = runs(layout.n_window_pixel, n_basis)
    if scratch.size < n_part * out.size and n_part > 1:
        raise ValueError(f"scratch: expected at least {n_part * out.size} elements, got {scratch.size}")
    target = scratch if n_part > 1 else out
    places = (layout.scene, layout.corner, layout.canvas_start, layout.canvas_shape)
    grid = (-(-n_basis // TILE_COLUMNS), layout.row_tile.size // ROW_TILE, n_band * n_part)
    device.launch("project", grid, (GEMM_THREADS,), layout.row_tile, layout.basis, *places, inset, image, phi_t,
                  n_source, n_band, n_basis, layout.window, length, target)
    if n_part > 1:
        device.launch("project:add_parts", (layout.row_tile.size,), (256,), layout.row_tile, scratch, n_source,
                      n_band * n_basis, n_part, out)
    if cells is not None and outer_t is not None:
        device.launch("project:gather_cells", (layout.row_tile.size, n_band), (256,), layout.row_tile, extended,
                      *places, image, n_band, layout.window, layout.margin, layout.binning, cells)
        product(device, layout, cells.reshape(n_source, n_band, 1, -1), outer_t, out.reshape(n_source, n_band, 1, -1),
                chosen=extended, accumulate=True)


def render(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
           background: DeviceArray | None, out: DeviceArray) -> None:
    """Sums of stamps into the images of scenes.

    Reads every stamp once and writes every pixel once, after its background if there is any.

    Specification: `reference.pixels.render`.
    """
    device.launch("render", (len(layout.pixel_tile), layout.n_band), (PIXEL_TILE, PIXEL_TILE), layout.pixel_tile,
                  layout.tile_start, layout.tile_source, layout.corner, extended, layout.canvas_start,
                  layout.canvas_shape, stamps, cells, background, layout.n_band, layout.window, layout.margin,
                  layout.binning, layout.n_cell, out)


def residual(device: Device, layout: Layout, data: DeviceArray, weight: DeviceArray, model: DeviceArray, temper: float,
             error: float, clip: float, robust: int, out_weights: DeviceArray, out_residual: DeviceArray) -> None:
    """Robust weights and the weighted residual of the tiles' pixels: 20 bytes and some 15 flops a pixel and band.

    Specification: `reference.pixels.residual`; `out_weights` may be `weight`.
    """
    device.launch("residual", (len(layout.pixel_tile), layout.n_band), (PIXEL_TILE, PIXEL_TILE), layout.pixel_tile,
                  layout.canvas_start, layout.canvas_shape, data, weight, model, float(temper), float(error),
                  float(clip), robust, out_weights, out_residual)


def loss(device: Device, layout: Layout, data: DeviceArray, weight: DeviceArray, model: DeviceArray, trial: DeviceArray,
         temper: float, error: float, clip: float, robust: int, out: DeviceArray) -> None:
    """The loss of blends before and after a step: 16 bytes and some 25 flops an owned pixel and band.

    Specification: `reference.pixels.loss`.
    """
    device.launch("loss", (layout.n_blend,), (256,), layout.pixel_start, layout.blend_pixel, layout.blend_scene,
                  layout.canvas_start, layout.canvas_shape, data, weight, model, trial, float(temper), float(error),
                  float(clip), robust, layout.n_band, out)


def mean_weight(device: Device, layout: Layout, weights: DeviceArray, profile: DeviceArray, inset: DeviceArray,
                out: DeviceArray) -> None:
    """Mean weights under sources: 4 bytes and 2 flops a pixel of a window and band; the profile comes from the cache.

    Specification: `reference.pixels.mean_weight`.
    """
    device.launch("mean_weight", (layout.n_source, layout.n_band), (128,), layout.scene, layout.corner, layout.basis,
                  layout.canvas_start, layout.canvas_shape, weights, profile, inset, layout.n_band, layout.window, out)


def crop(device: Device, canvas: DeviceArray, border: int, out: DeviceArray) -> None:
    """Copy the middle of a canvas.

    Parameters
    ----------
    device : Device
    canvas : float32 (n_band, n_y + 2 border, n_x + 2 border)
    border : int [pixel]
    out : float32 (n_band, n_y, n_x)
    """
    n_band, height, width = canvas.shape
    grid = (*blocks_for(out.shape[1] * out.shape[2]), n_band)
    device.launch("crop", grid, (256,), canvas, height, width, border, out)


def reach(device: Device, layout: Layout, extent: DeviceArray, insets: DeviceArray, used: DeviceArray,
          out_extended: DeviceArray, out_inset: DeviceArray, out_n_used: DeviceArray) -> None:
    """Look up the windows of the sources' extents: 16 bytes a source.

    Specification: `reference.pixels.reach`.
    """
    n_source = len(extent)
    device.launch("trim:reach", blocks_for(n_source), (256,), extent, insets, used, n_source, out_extended,
                  out_inset, out_n_used)


def trim_basis(device: Device, layout: Layout, n_used: DeviceArray, rows: DeviceArray, out: DeviceArray) -> None:
    """Specification: `reference.pixels.trim_basis`; in place if `out` is `rows`."""
    n_basis = rows.shape[-1]
    device.launch("trim:trim_basis", (len(rows),), (128,), n_used, rows, math.prod(rows.shape[1:-1]), n_basis, out)


def trim_stamps(device: Device, layout: Layout, inset: DeviceArray, out_stamps: DeviceArray) -> None:
    """Specification: `reference.pixels.trim_stamps`."""
    n_row = math.prod(out_stamps.shape[1:-1])
    device.launch("trim:trim_stamps", (len(out_stamps), n_row), (256,), inset, n_row, layout.window, out_stamps)


def wide(device: Device, layout: Layout, through: DeviceArray, coefficients: DeviceArray, wbar: DeviceArray,
         smallest: DeviceArray, out_extent: DeviceArray, *, window: int, threshold: float) -> None:
    """Find sources whose light outside a window matters.

    Moves 8 n_band n_basis bytes a source.

    Specification: `reference.pixels.wide`.
    """
    n_source, n_band, n_basis = coefficients.shape
    device.launch("wide", (n_source,), (128,), layout.scene, through, coefficients, wbar, smallest, n_band,
                  n_basis, window, np.float64(threshold), out_extent)
