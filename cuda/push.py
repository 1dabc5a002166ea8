"""J v, the change of the coefficients along a step: reads the 4 (n_shape + 2) n_component n_basis bytes of derivatives
of each source once, and two rows of coefficients."""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout

MOST_COMPONENTS = 4


def push(device: Device, layout: Layout, maps: DeviceArray, d_maps: DeviceArray, mix: DeviceArray, d_mix: DeviceArray,
         coefficients: DeviceArray, latent: DeviceArray, step: DeviceArray, out: DeviceArray) -> None:
    """`reference_latents.push`."""
    _, n_component, n_basis = maps.shape
    n_band, n_shape, n_latent = mix.shape[2], d_mix.shape[1], latent.shape[1]
    if n_component > MOST_COMPONENTS:
        raise ValueError(f"push: at most {MOST_COMPONENTS} components, got {n_component}")
    device.launch("push", (layout.row_tile.size,), (128,), layout.row_tile, maps, d_maps, mix, d_mix, coefficients,
                  latent, step, n_band, n_shape, n_component, n_basis, out,
                  shared=4 * (n_latent + n_band + 2 * n_component * n_band))


def cost(n_source: int, n_band: int, n_shape: int, n_component: int, n_basis: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    derivatives = float((n_shape + 2) * n_component * n_basis)
    return (4.0 * n_source * (derivatives + 2 * n_band * n_basis),
            2.0 * n_source * (derivatives + 2 * n_component * n_band * n_basis))
