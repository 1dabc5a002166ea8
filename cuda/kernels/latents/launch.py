"""Launchers of the kernels between latents and coefficients."""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.driver.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout

MOST_COMPONENTS = 4


def combine(device: Device, latent: DeviceArray, maps: DeviceArray, mix: DeviceArray, out: DeviceArray) -> None:
    """Compute coefficients from component maps, mix and fluxes: 4 n_basis (n_component + n_band) bytes a source.

    Specification: `reference.latents.combine`.
    """
    n_source, n_band, n_basis = out.shape
    device.launch("combine", (n_source, n_band), (128,), latent, maps, mix, n_band, latent.shape[1], maps.shape[1],
                  n_basis, out)


def pull(device: Device, layout: Layout, maps: DeviceArray, d_maps: DeviceArray, mix: DeviceArray, d_mix: DeviceArray,
         coefficients: DeviceArray, latent: DeviceArray, d_coefficients: DeviceArray, add: DeviceArray | None,
         out: DeviceArray) -> None:
    """Compute J^T g. Reads each source's derivatives, its coefficients and g once.

    Specification: `reference.latents.pull`.
    """
    _, n_component, n_basis = maps.shape
    n_band, n_shape, n_latent = mix.shape[2], d_mix.shape[1], latent.shape[1]
    if n_component > MOST_COMPONENTS:
        raise ValueError(f"pull: at most {MOST_COMPONENTS} components, got {n_component}")
    device.launch("pull", (layout.row_tile.size,), (128,), layout.row_tile, maps, d_maps, mix, d_mix, coefficients,
                  latent, d_coefficients, add, n_band, n_shape, n_component, n_basis, out,
                  shared=4 * (n_band + 2 * n_component * n_band + n_latent))


def columns(device: Device, maps: DeviceArray, d_maps: DeviceArray, mix: DeviceArray, d_mix: DeviceArray,
            coefficients: DeviceArray, latent: DeviceArray, out: DeviceArray) -> None:
    """Compute the coefficients' derivatives from their factors: writes 4 n_band (n_shape + 3) n_basis bytes a source.

    Specification: `reference.latents.columns`.
    """
    n_source, n_component, n_basis = maps.shape
    n_band, n_shape = mix.shape[2], d_mix.shape[1]
    device.launch("columns", (n_source, n_band), (128,), maps, d_maps, mix, d_mix, coefficients, latent, n_band,
                  n_shape, n_component, n_basis, out)


def stars(device: Device, layout: Layout, latent: DeviceArray, star: DeviceArray, core: DeviceArray, sums: DeviceArray,
          psf_sigma: np.float64, out_maps: DeviceArray, out_d_maps: DeviceArray, out_mix: DeviceArray,
          out_d_mix: DeviceArray) -> None:
    """Overwrite the maps, mixes and derivatives of stars with those of point sources.

    Moves 8 bytes a source. A star also reads the n_basis (side^2 + 1) doubles of the basis, which stay in the cache,
    and writes (3 + n_shape) n_component n_basis + (1 + n_shape) n_component n_band floats.

    Specification: `reference.latents.stars`.
    """
    n_source, n_move, n_component, n_basis = out_d_maps.shape
    side, n_shape = core.shape[1], out_d_mix.shape[1]
    device.launch("stars", (n_source,), (32, 8), layout.scene, latent, star, core, sums, np.float64(psf_sigma), side,
                  out_mix.shape[2], latent.shape[1], n_component, n_basis, n_move, n_shape, out_maps, out_d_maps,
                  out_mix, out_d_mix, shared=8 * (4 * side + 3 * n_basis))
