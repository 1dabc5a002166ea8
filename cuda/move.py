"""Take a step, shortened to its limits.

Moves 3 n_latent + n_band + 2 doubles a source; the arithmetic is nothing beside them.
"""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray, blocks_for
from deblendrt.cuda.layout import Layout


def move(device: Device, layout: Layout, latent: DeviceArray, step: DeviceArray, floor: DeviceArray,
         offset0: DeviceArray, out: DeviceArray, *, min_flux_factor: float, max_flux_factor: float,
         max_offset_step: float, max_drift: float, max_shape_step: float) -> None:
    """`reference_steps.move`; `out` may be `latent`."""
    n_source, n_latent = latent.shape
    limits = (min_flux_factor, max_flux_factor, max_offset_step, max_drift, max_shape_step)
    device.launch("move", blocks_for(n_source * n_latent), (256,), layout.scene, latent, step, floor, offset0,
                  n_source, layout.n_band, n_latent, *map(np.float64, limits), out)


def cost(n_source: int, n_band: int, n_latent: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    return n_source * 8.0 * (3 * n_latent + n_band + 2), n_source * 3.0 * n_latent
