"""One step of Adam.

Moves 7 n_latent + n_band + 2 doubles a source.
"""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray, blocks_for
from deblendrt.cuda.layout import Layout


def adam(device: Device, layout: Layout, downhill: DeviceArray, floor: DeviceArray, offset0: DeviceArray,
         out_first: DeviceArray, out_second: DeviceArray, out_latent: DeviceArray, *, rate: float,
         share: tuple[float, float], correction: tuple[float, float], epsilon: float, max_drift: float) -> None:
    """`reference_steps.adam`."""
    n_source, n_latent = downhill.shape
    constants = (rate, *share, *correction, epsilon, max_drift)
    device.launch("adam", blocks_for(n_source * n_latent), (256,), layout.scene, downhill, floor, offset0, n_source,
                  layout.n_band, n_latent, *map(np.float64, constants), out_first, out_second, out_latent)


def cost(n_source: int, n_band: int, n_latent: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    return n_source * 8.0 * (7 * n_latent + n_band + 2), n_source * 14.0 * n_latent
