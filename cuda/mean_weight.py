"""Mean weights under sources: 4 bytes and 2 flops a pixel of a window and band; the profile comes from the cache."""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout


def mean_weight(device: Device, layout: Layout, weights: DeviceArray, profile: DeviceArray, inset: DeviceArray,
                out: DeviceArray) -> None:
    """`reference.mean_weight`."""
    device.launch("mean_weight", (layout.n_source, layout.n_band), (128,), layout.scene, layout.corner, layout.basis,
                  layout.canvas_start, layout.canvas_shape, weights, profile, inset, layout.n_band, layout.window, out)


def cost(n_source: int, n_band: int, n_window_pixel: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    return 4.0 * n_source * n_band * n_window_pixel, 2.0 * n_source * n_band * n_window_pixel
