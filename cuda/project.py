"""Windows of images times the folded basis.

A window is cut into runs of pixels that different blocks multiply, so that few sources fill a GPU, too; how, depends on
the model's sizes alone, as a source's bits may not depend on the batch.

Reads each window once for every 128 basis functions and writes and reads each run's sums: 4 n_band (n_window_pixel +
(2 n_part + 1) n_basis) bytes and 2 n_band n_window_pixel n_basis flops a source; overlapping windows come from the
cache, and the runs' sums of up to some 1000 sources, too.
"""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import ROW_TILE, Layout
from deblendrt.cuda.product import THREADS, TILE_COLUMNS, product

N_PART = 8  # 64 sources of 6 bands make 48 blocks, 1024 sources 768: a GPU holds some 400 at a time
STEP = 16  # pixel: TILE_INNER of gemm.cuh, of which a run is a multiple


def runs(n_pixel: int, n_basis: int) -> tuple[int, int]:
    """Number and length [pixel] of the runs that a window is cut into; their sums fit into memory for stamps."""
    most = max(1, min(N_PART, n_pixel // n_basis))
    length = -(-n_pixel // (most * STEP)) * STEP
    return -(-n_pixel // length), length


def project(device: Device, layout: Layout, image: DeviceArray, phi_t: DeviceArray, outer_t: DeviceArray | None,
            extended: DeviceArray, inset: DeviceArray, cells: DeviceArray | None, scratch: DeviceArray,
            out: DeviceArray) -> None:
    """`reference.project`; `cells` and `scratch` are overwritten."""
    n_source, n_band, n_basis = out.shape
    n_part, length = runs(layout.n_window_pixel, n_basis)
    if scratch.size < n_part * out.size and n_part > 1:
        raise ValueError(f"scratch: expected at least {n_part * out.size} elements, got {scratch.size}")
    target = scratch if n_part > 1 else out
    places = (layout.scene, layout.corner, layout.canvas_start, layout.canvas_shape)
    grid = (-(-n_basis // TILE_COLUMNS), layout.row_tile.size // ROW_TILE, n_band * n_part)
    device.launch("project", grid, (THREADS,), layout.row_tile, layout.basis, *places, inset, image, phi_t, n_source,
                  n_band, n_basis, layout.window, length, target)
    if n_part > 1:
        device.launch("project:add_parts", (layout.row_tile.size,), (256,), layout.row_tile, scratch, n_source,
                      n_band * n_basis, n_part, out)
    if cells is not None and outer_t is not None:
        device.launch("project:gather_cells", (layout.row_tile.size, n_band), (256,), layout.row_tile, extended,
                      *places, image, n_band, layout.window, layout.margin, layout.binning, cells)
        product(device, layout, cells.reshape(n_source, n_band, 1, -1), outer_t, out.reshape(n_source, n_band, 1, -1),
                chosen=extended, accumulate=True)


def cost(n_source: int, n_band: int, n_pixel: int, n_basis: int) -> tuple[float, float]:
    """Bytes moved, tables not counted, and flops; of sources that are not extended."""
    n_part, _ = runs(n_pixel, n_basis)
    sums = (2 * n_part + 1 if n_part > 1 else 1) * n_basis
    return 4.0 * n_source * n_band * (n_pixel + sums), 2.0 * n_source * n_band * n_pixel * n_basis
