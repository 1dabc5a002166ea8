"""chi2 of sources' own pixels: reads four images and the owners in a circle around each source once."""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout


def core_statistics(device: Device, layout: Layout, number: DeviceArray, centre: DeviceArray, owner: DeviceArray,
                    data: DeviceArray, weight: DeviceArray, weights: DeviceArray, model: DeviceArray,
                    out: DeviceArray, *, radius: float) -> None:
    """`reference_measures.core_statistics`."""
    device.launch("core_statistics", (layout.n_source,), (256,), layout.scene, number, centre, layout.canvas_start,
                  layout.canvas_shape, owner, data, weight, weights, model, layout.n_band, np.float64(radius), out)


def cost(n_source: int, n_band: int, radius: float) -> tuple[float, float]:
    """Bytes moved and flops."""
    n = n_source * np.pi * radius**2
    return 4.0 * n * (4 * n_band + 1), 4.0 * n * n_band
