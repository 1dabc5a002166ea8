"""Footprints of sources: reads every stamp three times and the weights under it once, 3 flops each."""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout

BLOCK = 256  # pixels that are packed at once, as in footprint.cu


def footprint(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
              weight: DeviceArray, out: DeviceArray, *, significant: float, core: float) -> None:
    """`reference_measures.footprint`."""
    device.launch("footprint", (layout.n_source,), (BLOCK,), layout.scene, layout.corner, extended,
                  layout.canvas_start, layout.canvas_shape, stamps, cells, weight, layout.n_band, layout.window,
                  layout.margin, layout.binning, layout.n_cell, float(significant), float(core), out.shape[1], out,
                  shared=np.dtype(np.float32).itemsize * layout.n_band)


def n_word(layout: Layout) -> int:
    """32-bit words of a footprint."""
    return -(-(layout.full_window**2) // BLOCK) * (BLOCK // 32)


def cost(n_source: int, n_band: int, n_window_pixel: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    n = float(n_source * n_band * n_window_pixel)
    return 4.0 * 4 * n, 9.0 * n
