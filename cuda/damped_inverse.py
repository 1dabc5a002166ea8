"""Inverse of the damped block of every source.

Moves 2 n_latent^2 + 2 n_latent doubles a source.
"""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout

RIDGE = 1e-6  # that of `engine.curvature.inverse`


def damped_inverse(device: Device, layout: Layout, block: DeviceArray, damping: DeviceArray, n_band: int,
                   out_inverse: DeviceArray, out_added: DeviceArray, *, ridge: float = RIDGE) -> None:
    """`reference_descent.damped_inverse`."""
    n_source, n_latent, _ = block.shape
    device.launch("damped_inverse", (n_source,), (64,), layout.blend, block, damping, n_band, n_latent,
                  np.float64(ridge), out_inverse, out_added, shared=8 * n_latent * (n_latent + 2))


def cost(n_source: int, n_latent: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    return n_source * 16.0 * n_latent * (n_latent + 1), n_source * 4 / 3 * n_latent**3
