"""Find sources whose light outside a window matters.

Moves 8 n_band n_basis bytes a source.
"""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout


def wide(device: Device, layout: Layout, through: DeviceArray, coefficients: DeviceArray, wbar: DeviceArray,
         smallest: DeviceArray, out_extent: DeviceArray, *, window: int, threshold: float) -> None:
    """`reference_steps.wide`."""
    n_source, n_band, n_basis = coefficients.shape
    device.launch("wide", (n_source,), (128,), layout.scene, through, coefficients, wbar, smallest, n_band,
                  n_basis, window, np.float64(threshold), out_extent)


def cost(n_source: int, n_band: int, n_basis: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    return n_source * 8.0 * n_band * (n_basis + 1), n_source * 2.0 * n_band * n_basis
