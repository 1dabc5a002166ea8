"""BFGS update of the prior's curvature.

Moves 2 n_latent^2 + 4 n_latent doubles a source.
"""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout


def secant(device: Device, layout: Layout, latent: DeviceArray, trial_latent: DeviceArray,
           prior_gradient: DeviceArray, trial_gradient: DeviceArray, out_curvature: DeviceArray) -> None:
    """`reference_steps.secant`."""
    n_source, n_latent = latent.shape
    device.launch("secant", (n_source,), (128,), layout.scene, out_curvature, latent, trial_latent, prior_gradient,
                  trial_gradient, n_latent, shared=8 * n_latent * (n_latent + 3))


def cost(n_source: int, n_latent: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    return n_source * 8.0 * n_latent * (2 * n_latent + 4), n_source * 8.0 * n_latent**2
