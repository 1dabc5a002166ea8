"""Joint linear fluxes: one sweep is `flux_coefficients`, render, residual, project, `flux_target`, `flux_solve`.

`flux_solve` moves 8 bytes per pair and 32 per source, and band, and takes n^3 flops of a blend of n; the others read
or write two rows of coefficients.
"""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray, blocks_for
from deblendrt.cuda.layout import Layout

SHARED = 48 * 1024  # byte: what a block has without asking


def flux_solve(device: Device, layout: Layout, values: DeviceArray, pairs: DeviceArray, pair_start: DeviceArray,
               target: DeviceArray, out_flux: DeviceArray, out_sigma: DeviceArray, *, ridge: float,
               largest: int) -> None:
    """`reference_photometry.flux_solve`; `largest` is the number of members of the largest blend, at most 76."""
    shared = 8 * largest * (largest + 4)
    if shared > SHARED:
        raise ValueError(f"flux_solve: a blend of {largest} sources")
    device.launch("flux_solve", (layout.n_blend, layout.n_band), (64,), layout.blend_start, layout.blend_source,
                  pair_start, pairs, values, target, layout.n_band, np.float64(ridge), out_flux, out_sigma,
                  shared=shared)


def flux_target(device: Device, unit: DeviceArray, projected: DeviceArray, out: DeviceArray) -> None:
    """`reference_photometry.flux_target`."""
    n_source, n_band, n_basis = unit.shape
    device.launch("flux_solve:flux_target", blocks_for(n_source * n_band, 8), (32, 8), unit, projected,
                  n_source * n_band, n_basis, out)


def flux_coefficients(device: Device, unit: DeviceArray, flux: DeviceArray, out: DeviceArray) -> None:
    """`reference_photometry.flux_coefficients`."""
    n_source, n_band, n_basis = unit.shape
    device.launch("flux_solve:flux_coefficients", blocks_for(n_source * n_band, 8), (32, 8), unit, flux,
                  n_source * n_band, n_basis, out)


def cost(n_source: int, n_pair: int, n_band: int, mean_cube: float) -> tuple[float, float]:
    """Bytes moved and flops of `flux_solve`; `mean_cube` is the mean over sources of the square of the blend's size."""
    return n_band * (8.0 * n_pair + 32.0 * n_source), n_band * n_source * mean_cube
