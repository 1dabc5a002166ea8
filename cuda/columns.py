"""Derivatives of the coefficients: writes 4 n_band (n_shape + 3) n_basis bytes a source, reads its factored ones."""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray


def columns(device: Device, maps: DeviceArray, d_maps: DeviceArray, mix: DeviceArray, d_mix: DeviceArray,
            coefficients: DeviceArray, latent: DeviceArray, out: DeviceArray) -> None:
    """`reference_latents.columns`."""
    n_source, n_component, n_basis = maps.shape
    n_band, n_shape = mix.shape[2], d_mix.shape[1]
    device.launch("columns", (n_source, n_band), (128,), maps, d_maps, mix, d_mix, coefficients, latent, n_band,
                  n_shape, n_component, n_basis, out)


def cost(n_source: int, n_band: int, n_shape: int, n_component: int, n_basis: int) -> tuple[float, float]:
    """Bytes moved and flops; bands find the derivatives in the cache."""
    rows = float(n_band * (n_shape + 3) * n_basis)
    return (4.0 * n_source * (rows + (n_shape + 2) * n_component * n_basis), 4.0 * n_source * n_component * rows)
