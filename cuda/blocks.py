"""Gauss-Newton blocks of single sources: 8 n_band n_column n_basis bytes, 2 n_band n_column^2 n_basis flops."""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray

TILE = 32  # as in blocks.cu


def blocks(device: Device, columns: DeviceArray, through: DeviceArray, wbar: DeviceArray, curvature: DeviceArray,
           out: DeviceArray) -> None:
    """`reference_latents.blocks`."""
    n_source, n_band, n_column, n_basis = columns.shape
    device.launch("blocks", (n_source,), (256,), columns, through, wbar, curvature, n_band, n_column, n_basis, out,
                  shared=8 * n_column * (TILE + 1))


def cost(n_source: int, n_band: int, n_column: int, n_basis: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    rows = float(n_source * n_band * n_column * n_basis)
    n_latent = n_band + n_column - 1
    return 8.0 * rows + 16.0 * n_source * n_latent**2, 2.0 * rows * n_column
