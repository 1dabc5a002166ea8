r"""The specification, in NumPy, of the kernels between latents and coefficients.

Each function has the name and arguments of its launcher, less the device; arrays are NumPy's, outputs are written in
place. Rows of padding mean nothing.

    c[b] = exp(log_flux[b]) sum_m mix[m, b] maps[m]

The flux part of a step is relative, d ln(flux). `pull` does not write rows of sources that the layout's `row_tile`
lacks. Shapes: maps float32 (n_source, n_component, n_basis), d_maps (n_source, 2 + n_shape, n_component,
n_basis), mix (n_source, n_component, n_band), d_mix (n_source, n_shape, n_component, n_band), latent and step float64
(n_source, n_latent), coefficients float32 (n_source, n_band, n_basis) [nJy].
"""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.layout import Layout
from deblendrt.engine.units import DoubleArray, FloatArray, IntArray


def stars(layout: Layout, latent: DoubleArray, star: IntArray, core: DoubleArray, sums: DoubleArray,
          psf_sigma: np.float64, out_maps: FloatArray, out_d_maps: FloatArray, out_mix: FloatArray,
          out_d_mix: FloatArray) -> None:
    """Overwrite the rows of stars with the reference PSF at its offset: `compute.decoding.decode_jacobian`.

    Parameters
    ----------
    layout : Layout
    latent : float64 (n_source, n_latent)
    star : int32 (n_source,)
    core : float64 (n_basis, side, side)
        Basis where the reference PSF has light, its middle the anchor pixel; side is odd.
    sums : float64 (n_basis,)
        Sums of the whole functions.
    psf_sigma : float64 [pixel]
        Sigma of the Gaussian reference PSF.
    out_maps : float32 (n_source, n_component, n_basis)
        Every component is the star.
    out_d_maps : float32 (n_source, 2 + n_shape, n_component, n_basis)
        By offset [1 / pixel] and by shape, 0.
    out_mix : float32 (n_source, n_component, n_band)
    out_d_mix : float32 (n_source, n_shape, n_component, n_band)
    """
    half = core.shape[1] // 2
    for i in np.flatnonzero((layout.scene >= 0) & (star != 0)):
        distance = np.arange(-half, half + 1) - latent[i, layout.n_band : layout.n_band + 2, None]
        x, y = np.exp(-0.5 * (distance / psf_sigma) ** 2)
        x_slope, y_slope = np.array([x, y]) * distance / psf_sigma**2
        raw, by_x, by_y = (core @ along_x @ along_y for along_x, along_y in ((x, y), (x_slope, y), (x, y_slope)))
        flux = raw @ sums
        out_maps[i], out_mix[i], out_d_maps[i], out_d_mix[i] = raw / flux, 1 / out_mix.shape[1], 0.0, 0.0
        for axis, slope in enumerate((by_x, by_y)):
            out_d_maps[i, axis] = slope / flux - raw * (slope @ sums) / flux**2


def combine(latent: DoubleArray, maps: FloatArray, mix: FloatArray, out: FloatArray) -> None:
    """Write the coefficients to float32 (n_source, n_band, n_basis) [nJy]."""
    out[...] = np.einsum("nb,nmb,nmk->nbk", _flux(latent, mix), mix, maps)


def pull(layout: Layout, maps: FloatArray, d_maps: FloatArray, mix: FloatArray, d_mix: FloatArray,
         coefficients: FloatArray, latent: DoubleArray, d_coefficients: FloatArray, add: DoubleArray | None,
         out: DoubleArray) -> None:
    """Write J^T g, plus `add`, to float64 (n_source, n_latent); g is `d_coefficients`."""
    rows = layout.row_tile[layout.row_tile >= 0]
    scaled = _flux(latent, mix)[:, :, None] * d_coefficients
    moves = np.einsum("ndmk,nmb,nbk->nd", d_maps, mix, scaled)
    moves[:, 2:] += np.einsum("nsmb,nmk,nbk->ns", d_mix, maps, scaled)
    fluxes = (coefficients.astype(np.float64) * d_coefficients).sum(2)
    result = np.concatenate([fluxes, moves], 1)
    out[rows] = (result if add is None else result + add)[rows]


def columns(maps: FloatArray, d_maps: FloatArray, mix: FloatArray, d_mix: FloatArray, coefficients: FloatArray,
            latent: DoubleArray, out: FloatArray) -> None:
    """Write derivatives by relative flux, offset and shape to (n_source, n_band, 3 + n_shape, n_basis) [nJy]."""
    flux = _flux(latent, mix)[:, :, None, None]
    out[:, :, 0] = coefficients
    out[:, :, 1:] = flux * np.einsum("nmb,ndmk->nbdk", mix, d_maps)
    out[:, :, 3:] += flux * np.einsum("nsmb,nmk->nbsk", d_mix, maps)


def _flux(latent: DoubleArray, mix: FloatArray) -> DoubleArray:
    return np.asarray(np.exp(latent[:, : mix.shape[2]]))
