"""Sums of stamps into the images of scenes, weighted if asked.

Reads every stamp once and writes every pixel once, after its background and weight if there are any.
"""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import PIXEL_TILE, Layout


def render(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
           background: DeviceArray | None, weight: DeviceArray | None, out: DeviceArray) -> None:
    """`reference.render`."""
    device.launch("render", (len(layout.pixel_tile), layout.n_band), (PIXEL_TILE, PIXEL_TILE), layout.pixel_tile,
                  layout.tile_start, layout.tile_source, layout.corner, extended, layout.canvas_start,
                  layout.canvas_shape, stamps, cells, background, weight, layout.n_band, layout.window, layout.margin,
                  layout.binning, layout.n_cell, out)


def cost(n_source: int, n_band: int, n_window_pixel: int, n_pixel: int, n_image: int = 1) -> tuple[float, float]:
    """Bytes moved and flops; `n_image` counts the output, the background and the weight."""
    stamps = float(n_source * n_band * n_window_pixel)
    return 4.0 * (stamps + n_image * n_pixel), stamps
