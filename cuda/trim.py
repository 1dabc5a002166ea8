"""Keep to sources' smaller windows: 12 bytes a coefficient and pixel at most, of sources that have one."""

from __future__ import annotations

import math

from deblendrt.cuda.device import Device, DeviceArray, blocks_for
from deblendrt.cuda.layout import Layout


def reach(device: Device, layout: Layout, extent: DeviceArray, insets: DeviceArray, used: DeviceArray,
          out_extended: DeviceArray, out_inset: DeviceArray, out_n_used: DeviceArray, out_chosen: DeviceArray) -> None:
    """`reference_trim.reach`."""
    n_source = len(extent)
    device.launch("trim:reach", blocks_for(n_source), (256,), extent, insets, used, n_source, len(insets), out_extended,
                  out_inset, out_n_used, out_chosen)


def trim_basis(device: Device, layout: Layout, n_used: DeviceArray, rows: DeviceArray, out: DeviceArray) -> None:
    """`reference_trim.trim_basis`; in place if `out` is `rows`."""
    n_basis = rows.shape[-1]
    device.launch("trim:trim_basis", (len(rows),), (128,), n_used, rows, math.prod(rows.shape[1:-1]), n_basis, out)


def trim_stamps(device: Device, layout: Layout, inset: DeviceArray, out_stamps: DeviceArray) -> None:
    """`reference_trim.trim_stamps`."""
    n_row = math.prod(out_stamps.shape[1:-1])
    device.launch("trim:trim_stamps", (len(out_stamps), n_row), (256,), inset, n_row, layout.window, out_stamps)


def cost(n_source: int, n_row: int, n_basis: int, n_window_pixel: int) -> tuple[float, float]:
    """Bytes moved and flops, of sources that have a smaller window."""
    return 4.0 * n_source * n_row * (2 * n_basis + n_window_pixel), 0.0
