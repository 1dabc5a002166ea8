"""Robust weights and the weighted residual of the tiles' pixels: 20 bytes and some 15 flops a pixel and band."""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import PIXEL_TILE, Layout


def residual(device: Device, layout: Layout, data: DeviceArray, weight: DeviceArray, model: DeviceArray, temper: float,
             error: float, clip: float, robust: int, out_weights: DeviceArray, out_residual: DeviceArray) -> None:
    """`reference.residual`; `out_weights` may be `weight`."""
    device.launch("residual", (len(layout.pixel_tile), layout.n_band), (PIXEL_TILE, PIXEL_TILE), layout.pixel_tile,
                  layout.canvas_start, layout.canvas_shape, data, weight, model, float(temper), float(error),
                  float(clip), robust, out_weights, out_residual)


def cost(n_pixel: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    return 20.0 * n_pixel, 15.0 * n_pixel
