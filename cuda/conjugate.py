"""Preconditioned conjugate gradient, with scalars of its own for each blend.

The start moves n_latent^2 + 4 n_latent doubles a source; a step, of sources in blends of several, 2 n_latent^2 +
12 n_latent.
"""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout


def conjugate_start(device: Device, layout: Layout, inverse: DeviceArray, target: DeviceArray,
                    out_solution: DeviceArray, out_rest: DeviceArray, out_direction: DeviceArray,
                    out_rz: DeviceArray) -> None:
    """`reference_descent.conjugate_start`."""
    device.launch("conjugate:conjugate_start", (layout.n_blend,), (256,), layout.blend_start, layout.blend_source,
                  inverse, target, target.shape[1], out_solution, out_rest, out_direction, out_rz)


def conjugate_step(device: Device, layout: Layout, inverse: DeviceArray, curvature: DeviceArray, added: DeviceArray,
                   out_pulled: DeviceArray, out_solution: DeviceArray, out_rest: DeviceArray,
                   out_direction: DeviceArray, out_rz: DeviceArray) -> None:
    """`reference_descent.conjugate_step`."""
    device.launch("conjugate:conjugate_step", (layout.n_blend,), (256,), layout.blend_start, layout.blend_source,
                  inverse, curvature, added, added.shape[1], out_pulled, out_solution, out_rest, out_direction, out_rz)


def cost(n_source: int, n_joint: int, n_latent: int, n_step: int) -> tuple[float, float]:
    """Bytes moved and flops of a start and its steps; `n_joint` sources are in blends of several."""
    square = n_latent**2
    n_byte = n_source * (square + 4.0 * n_latent) + n_step * n_joint * (2.0 * square + 12.0 * n_latent)
    return 8.0 * n_byte, 2.0 * square * (n_source + 2.0 * n_step * n_joint)
