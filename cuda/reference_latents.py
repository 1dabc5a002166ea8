r"""What the kernels on factored derivatives compute: `deblendrt.engine.objective.push`, `pull` and their like.

    c[b] = exp(log_flux[b]) sum_m mix[m, b] maps[m]

Each function has the name and arguments of its launcher, less the device; arrays are NumPy's, outputs are written in
place. A step's flux part is relative, d ln(flux). ``push`` and ``pull`` leave sources alone that the layout's
`row_tile` lacks. Shapes: maps float32 (n_source, n_component, n_basis), d_maps (n_source, 2 + n_shape, n_component,
n_basis), mix (n_source, n_component, n_band), d_mix (n_source, n_shape, n_component, n_band), latent and step float64
(n_source, n_latent), coefficients float32 (n_source, n_band, n_basis) [nJy].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.layout import Layout

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]


def combine(latent: DoubleArray, maps: FloatArray, mix: FloatArray, out: FloatArray) -> None:
    """Coefficients, into float32 (n_source, n_band, n_basis) [nJy]."""
    out[...] = np.einsum("nb,nmb,nmk->nbk", _flux(latent, mix), mix, maps)


def push(layout: Layout, maps: FloatArray, d_maps: FloatArray, mix: FloatArray, d_mix: FloatArray,
         coefficients: FloatArray, latent: DoubleArray, step: DoubleArray, out: FloatArray) -> None:
    """J v: change of the coefficients along a step, into float32 (n_source, n_band, n_basis) [nJy]."""
    rows = layout.row_tile[layout.row_tile >= 0]
    n_band = mix.shape[2]
    along = np.einsum("nd,ndmk->nmk", step[:, n_band:], d_maps)
    along_mix = np.einsum("ns,nsmb->nmb", step[:, n_band + 2 :], d_mix)
    change = np.einsum("nmb,nmk->nbk", mix, along) + np.einsum("nmb,nmk->nbk", along_mix, maps)
    out[rows] = (coefficients * step[:, :n_band, None] + _flux(latent, mix)[:, :, None] * change)[rows]


def pull(layout: Layout, maps: FloatArray, d_maps: FloatArray, mix: FloatArray, d_mix: FloatArray,
         coefficients: FloatArray, latent: DoubleArray, d_coefficients: FloatArray, add: DoubleArray | None,
         out: DoubleArray) -> None:
    """J^T g, the adjoint of `push`, into float64 (n_source, n_latent), plus `add`, alike."""
    rows = layout.row_tile[layout.row_tile >= 0]
    scaled = _flux(latent, mix)[:, :, None] * d_coefficients
    moves = np.einsum("ndmk,nmb,nbk->nd", d_maps, mix, scaled)
    moves[:, 2:] += np.einsum("nsmb,nmk,nbk->ns", d_mix, maps, scaled)
    fluxes = (coefficients.astype(np.float64) * d_coefficients).sum(2)
    result = np.concatenate([fluxes, moves], 1)
    out[rows] = (result if add is None else result + add)[rows]


def columns(maps: FloatArray, d_maps: FloatArray, mix: FloatArray, d_mix: FloatArray, coefficients: FloatArray,
            latent: DoubleArray, out: FloatArray) -> None:
    """Derivatives by relative flux, offset and shape, into float32 (n_source, n_band, 3 + n_shape, n_basis) [nJy]."""
    flux = _flux(latent, mix)[:, :, None, None]
    out[:, :, 0] = coefficients
    out[:, :, 1:] = flux * np.einsum("nmb,ndmk->nbdk", mix, d_maps)
    out[:, :, 3:] += flux * np.einsum("nsmb,nmk->nbsk", d_mix, maps)


def blocks(columns: FloatArray, through: FloatArray, wbar: DoubleArray, curvature: DoubleArray,
           out: DoubleArray) -> None:
    """Gauss-Newton blocks of single sources.

    Parameters
    ----------
    columns, through : float32 (n_source, n_band, n_column, n_basis) [nJy]
        Of `columns`, and these times the Gram matrix.
    wbar : float64 (n_source, n_band) [nJy^-2]
    curvature : float64 (n_source, n_latent, n_latent)
        Of the prior.
    out : float64 (n_source, n_latent, n_latent)
    """
    n_band = wbar.shape[1]
    inner = np.einsum("nbck,nbdk,nb->nbcd", through.astype(np.float64), columns, wbar)
    band = np.arange(n_band)
    out[...] = curvature
    out[:, band, band] += inner[:, :, 0, 0]
    out[:, :n_band, n_band:] += inner[:, :, 0, 1:]
    out[:, n_band:, :n_band] += inner[:, :, 0, 1:].transpose(0, 2, 1)
    out[:, n_band:, n_band:] += inner[:, :, 1:, 1:].sum(1)


def _flux(latent: DoubleArray, mix: FloatArray) -> DoubleArray:
    return np.asarray(np.exp(latent[:, : mix.shape[2]]))
