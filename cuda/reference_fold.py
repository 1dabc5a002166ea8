r"""What the kernels that fold a basis compute, in float64.

    whole[b, k] = D_b * phi[k]  on the full window,    G[b] = Phi[b] Phi[b]^T
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


def fold(basis: FloatArray, kernel: FloatArray, scratch: FloatArray, out_phi: FloatArray, out_phi_t: FloatArray,
         out_outer: FloatArray | None, out_outer_t: FloatArray | None, out_gram: FloatArray,
         out_full_gram: FloatArray, *, window: int, full_window: int, binning: int) -> None:
    """Convolve a basis with the difference kernels of one PSF and cut it to windows and cells.

    Parameters
    ----------
    basis : float32 (s, s, n_basis)
        The basis functions run along the last axis, unlike everywhere else.
    kernel : float32 (n_band, n, n)
        On a circular grid that holds the full window; with a stamp at its first pixels, the full window of the
        convolution is at its first pixels too.
    scratch : float32 (n_at_once, n_basis, full_window^2)
        For the full window of so many bands at a time.
    out_phi, out_phi_t : float32 (n_band, n_basis, window^2), (n_band, window^2, n_basis)
    out_outer, out_outer_t : float32 (n_band, n_basis, n_cell), (n_band, n_cell, n_basis), or None
        At the centres of cells; None without outskirts.
    out_gram, out_full_gram : float32 (n_band, n_basis, n_basis)
        Of the window and of the full window.
    window, full_window, binning : int [pixel]
    """
    size, n_basis = basis.shape[1:]
    n_band = len(kernel)
    whole = np.zeros((n_band, n_basis, full_window, full_window))
    wide = np.tile(kernel.astype(np.float64), (1, 2, 2))  # wide[n + y - i] is kernel[(y - i) mod n]
    n = kernel.shape[1]
    for i in range(size):
        for j in range(size):
            moved = wide[:, n - i : n - i + full_window, n - j : n - j + full_window]
            whole += basis[i, j].astype(np.float64)[:, None, None] * moved[:, None]
    inside = slice((full_window - window) // 2, (full_window + window) // 2)
    out_phi[...] = whole[:, :, inside, inside].reshape(n_band, n_basis, -1)
    out_phi_t[...] = out_phi.transpose(0, 2, 1)
    gram(whole[:, :, inside, inside].reshape(n_band, n_basis, -1), out_gram)
    gram(whole.reshape(n_band, n_basis, -1), out_full_gram)
    if out_outer is not None and out_outer_t is not None:
        centres = slice(binning // 2, None, binning)
        out_outer[...] = whole[:, :, centres, centres].reshape(n_band, n_basis, -1)
        out_outer_t[...] = out_outer.transpose(0, 2, 1)


def gram(rows: NDArray[np.floating], out: FloatArray) -> None:
    """Inner products of rows.

    Parameters
    ----------
    rows : float32 (n_table, n_row, n_column)
    out : float32 (n_table, n_row, n_row)
    """
    wide = rows.astype(np.float64)
    out[...] = wide @ wide.transpose(0, 2, 1)
