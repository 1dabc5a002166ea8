"""Misfit and visible light of sources.

`misfit` reads four images of a source's square once, `visible` its stamp and the weights in its footprint.
"""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout


def misfit(device: Device, layout: Layout, stamps: DeviceArray, latent: DeviceArray, data: DeviceArray,
           weight: DeviceArray, model: DeviceArray, edges: DeviceArray, out: DeviceArray, *, half: int,
           square: int) -> None:
    """`reference_measures.misfit`; 80 half^2 bytes of shared memory."""
    device.launch("misfit", (layout.n_source,), (256,), layout.scene, layout.corner, layout.canvas_start,
                  layout.canvas_shape, stamps, latent, data, weight, model, edges, len(edges), layout.n_band,
                  latent.shape[1], layout.window, half, square, out, shared=(8 + 8 + 4) * (2 * half) ** 2)


def visible(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
            footprints: DeviceArray, weight: DeviceArray, out: DeviceArray) -> None:
    """`reference_measures.visible`."""
    device.launch("misfit:visible", (layout.n_source, layout.n_band), (256,), layout.scene, layout.corner, extended,
                  layout.canvas_start, layout.canvas_shape, stamps, cells, footprints, weight, layout.n_band,
                  layout.window, layout.margin, layout.binning, layout.n_cell, footprints.shape[1], out)


def cost(n_source: int, n_band: int, half: int, n_window_pixel: int) -> tuple[float, float]:
    """Bytes moved and flops, of both."""
    n = float(n_source * n_band)
    return 4.0 * n * (4 * (2 * half) ** 2 + 2 * n_window_pixel), n * (9 * (2 * half) ** 2 + n_window_pixel)
