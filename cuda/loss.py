"""The loss of blends before and after a step: 16 bytes and some 25 flops an owned pixel and band."""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout


def loss(device: Device, layout: Layout, data: DeviceArray, weight: DeviceArray, model: DeviceArray, trial: DeviceArray,
         temper: float, error: float, clip: float, robust: int, out: DeviceArray) -> None:
    """`reference.loss`."""
    device.launch("loss", (layout.n_blend,), (256,), layout.pixel_start, layout.blend_pixel, layout.blend_scene,
                  layout.canvas_start, layout.canvas_shape, data, weight, model, trial, float(temper), float(error),
                  float(clip), robust, layout.n_band, out)


def cost(n_pixel: int) -> tuple[float, float]:
    """Bytes moved and flops, of owned pixels of all bands."""
    return 16.0 * n_pixel, 25.0 * n_pixel
