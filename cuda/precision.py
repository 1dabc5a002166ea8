"""Inner products of the derivative images of pairs of sources: the blocks of a blend's precision matrix.

A pair reads 4 (2 n_column + 1) bytes per common pixel and band, for 2 n_column^2 flops.
"""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout

TILE = 64  # pixels, as in precision.cu


def precision(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
              slot: DeviceArray, weights: DeviceArray, pairs: DeviceArray, out: DeviceArray) -> None:
    """`reference_photometry.precision`."""
    n_column = stamps.shape[2]
    device.launch("precision", (len(pairs), layout.n_band), (256,), pairs, slot, layout.scene, layout.corner, extended,
                  layout.canvas_start, layout.canvas_shape, stamps, cells, weights, layout.n_band, n_column,
                  layout.window, layout.margin, layout.binning, layout.n_cell, out,
                  shared=8 * n_column * (TILE + 1))


def cost(n_pair: int, n_band: int, n_column: int, n_pixel: float) -> tuple[float, float]:
    """Bytes moved and flops; `n_pixel` is what a pair has in common on average."""
    return 4.0 * (2 * n_column + 1) * n_pair * n_band * n_pixel, 2.0 * n_column**2 * n_pair * n_band * n_pixel
