"""Coefficients of point sources and their derivatives, over those of galaxies.

Moves 8 bytes a source, and of a star the n_basis side^2 + n_basis doubles of the basis, which stay in the cache, and
the (3 + n_shape) n_component (n_basis + n_band) floats of its rows, less those of two offsets by band.
"""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout


def stars(device: Device, layout: Layout, latent: DeviceArray, star: DeviceArray, core: DeviceArray, sums: DeviceArray,
          psf_sigma: np.float64, out_maps: DeviceArray, out_d_maps: DeviceArray, out_mix: DeviceArray,
          out_d_mix: DeviceArray) -> None:
    """`reference_descent.stars`."""
    n_source, n_move, n_component, n_basis = out_d_maps.shape
    side, n_shape = core.shape[1], out_d_mix.shape[1]
    device.launch("stars", (n_source,), (32, 8), layout.scene, latent, star, core, sums, np.float64(psf_sigma), side,
                  out_mix.shape[2], latent.shape[1], n_component, n_basis, n_move, n_shape, out_maps, out_d_maps,
                  out_mix, out_d_mix, shared=8 * (4 * side + 3 * n_basis))


def cost(n_source: int, n_star: int, n_band: int, n_component: int, n_basis: int, n_shape: int,
         side: int) -> tuple[float, float]:
    """Bytes moved and flops."""
    rows = (3 + n_shape) * n_component * n_basis + (1 + n_shape) * n_component * n_band
    core = n_basis * (side**2 + 1)
    return 8.0 * n_source + 8.0 * core * (n_star > 0) + 4.0 * n_star * rows, 9.0 * n_star * core
