"""Shares of sources in the light of a scene.

`light` reads every stamp and the weights once and writes an image; `share` reads every stamp and four images under it.
"""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import PIXEL_TILE, Layout


def light(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
          footprints: DeviceArray, weight: DeviceArray, out: DeviceArray) -> None:
    """`reference_measures.light`."""
    device.launch("share:light", (len(layout.pixel_tile), layout.n_band), (PIXEL_TILE, PIXEL_TILE), layout.pixel_tile,
                  layout.tile_start, layout.tile_source, layout.scene, layout.corner, extended, layout.canvas_start,
                  layout.canvas_shape, stamps, cells, footprints, weight, layout.n_band, layout.window, layout.margin,
                  layout.binning, layout.n_cell, footprints.shape[1], out)


def share(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
          footprints: DeviceArray, data: DeviceArray, weight: DeviceArray, model: DeviceArray, light: DeviceArray,
          out: DeviceArray) -> None:
    """`reference_measures.share`."""
    device.launch("share", (layout.n_source, layout.n_band), (256,), layout.scene, layout.corner, extended,
                  layout.canvas_start, layout.canvas_shape, stamps, cells, footprints, data, weight, model, light,
                  layout.n_band, layout.window, layout.margin, layout.binning, layout.n_cell, footprints.shape[1], out)


def cost(n_source: int, n_band: int, n_window_pixel: int, n_pixel: int) -> tuple[float, float]:
    """Bytes moved and flops, of both."""
    n = float(n_source * n_band * n_window_pixel)
    return 4.0 * (6 * n + 2 * n_pixel), 14.0 * n
