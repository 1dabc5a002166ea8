"""Coefficients from component maps, their mix and the fluxes: 4 n_basis (n_component + n_band) bytes a source."""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray


def combine(device: Device, latent: DeviceArray, maps: DeviceArray, mix: DeviceArray, out: DeviceArray) -> None:
    """`reference_latents.combine`."""
    n_source, n_band, n_basis = out.shape
    device.launch("combine", (n_source, n_band), (128,), latent, maps, mix, n_band, latent.shape[1], maps.shape[1],
                  n_basis, out)


def cost(n_source: int, n_band: int, n_component: int, n_basis: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    return 4.0 * n_source * n_basis * (n_component + n_band), 2.0 * n_source * n_basis * n_component * n_band
