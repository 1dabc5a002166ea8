"""Rows of sources times one table per folded basis and band: nine tenths of all arithmetic.

Moves 4 n_band n_row (n_inner + n_column) bytes a source and each table once for every 64 sources (from the second-level
cache, mostly), for 2 n_band n_row n_inner n_column flops a source.
"""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import ROW_TILE, Layout

TILE_COLUMNS, THREADS = 128, 128  # as in gemm.cuh


def product(device: Device, layout: Layout, rows: DeviceArray, table: DeviceArray, out: DeviceArray, *,
            chosen: DeviceArray | None = None, accumulate: bool = False) -> None:
    """`reference.product`."""
    _, n_band, n_row, n_inner = rows.shape
    n_column = table.shape[-1]
    grid = (-(-n_column // TILE_COLUMNS), layout.row_tile.size // ROW_TILE, n_band * n_row)
    device.launch("product", grid, (THREADS,), layout.row_tile, layout.basis, chosen, rows, table, n_band, n_row,
                  n_inner, n_column, int(accumulate), out)


def cost(n_source: int, n_band: int, n_row: int, n_inner: int, n_column: int) -> tuple[float, float]:
    """Bytes moved, tables not counted, and flops."""
    cells = float(n_source * n_band * n_row)
    return 4.0 * cells * (n_inner + n_column), 2.0 * cells * n_inner * n_column
