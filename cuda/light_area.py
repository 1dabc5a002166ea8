"""Areas of significant light: reads every stamp once, 3 flops a pixel and band."""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout


def light_area(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
               weight: DeviceArray, out: DeviceArray, *, threshold: float) -> None:
    """`reference_measures.light_area`."""
    device.launch("light_area", (layout.n_source,), (256,), layout.scene, extended, stamps, cells, weight,
                  layout.n_band, layout.window, layout.margin, layout.binning, layout.n_cell, np.float64(threshold),
                  out)


def cost(n_source: int, n_band: int, n_window_pixel: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    n = float(n_source * n_band * n_window_pixel)
    return 4.0 * n, 3.0 * n
