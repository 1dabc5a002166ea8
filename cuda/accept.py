"""Judge a step, blend by blend, and choose the next damping.

Moves 2 n_latent + 2 doubles a source and 6 a blend.
"""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout


def accept(device: Device, layout: Layout, loss: DeviceArray, log_prior: DeviceArray, trial_log_prior: DeviceArray,
           downhill: DeviceArray, step: DeviceArray, damping: DeviceArray, out_better: DeviceArray,
           out_left: DeviceArray, *, rejected_damping: float, min_damping: float) -> None:
    """`reference_steps.accept`."""
    # not named accept: a library's own symbol of that name loses to the C library's
    device.launch("accept:accept_step", (layout.n_blend,), (32,), layout.blend_start, layout.blend_source, loss,
                  log_prior, trial_log_prior, downhill, step, step.shape[1], np.float64(rejected_damping),
                  np.float64(min_damping), damping, out_better, out_left)


def cost(n_source: int, n_blend: int, n_latent: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    return n_source * 8.0 * (2 * n_latent + 2) + 52.0 * n_blend, n_source * 2.0 * n_latent
