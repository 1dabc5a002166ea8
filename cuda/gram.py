"""Gram matrices of the rows of tables.

Reads a table n_row / 16 times, from cache mostly, and takes n_row^2 n_column flops of a table, in float64.
"""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray


def gram(device: Device, rows: DeviceArray, out: DeviceArray) -> None:
    """`reference_fold.gram`."""
    n_table, n_row, n_column = rows.shape
    tiles = -(-n_row // 16)
    device.launch("gram", (tiles, tiles, n_table), (256,), rows, n_row, n_column, out)


def cost(n_table: int, n_row: int, n_column: int) -> tuple[float, float]:
    """Bytes moved, if every table is read once, and flops."""
    return 4.0 * n_table * n_row * (n_column + n_row), float(n_table) * n_row**2 * n_column
