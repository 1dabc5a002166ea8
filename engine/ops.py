r"""Pixels to coefficients and back: the two products every solver is made of.

    render:   m[b, p]  = sum_i (c_i[b] Phi[b])[p - p_i]          coefficients to a model image
    project:  g_i[b]   = Phi[b] v[b, p_i + .]                    an image to its inner products with the folded basis

They are adjoint: <render(c), v> = <c, project(v)>. Rows come in tiles, so that a source's bits depend on nothing but
itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.matmul import matmul
from deblendrt.engine.psf import FoldedBasis

FloatArray = NDArray[np.float32]

TILE = 32  # sources per matrix product: 50-60 GFLOP/s on one AVX-512 core against 20-30 at 8; 64 gains little more
ROUND = 8  # the last tile of a batch is padded to a multiple of this; a product of one row would take another path


def tiles(n: int) -> Iterator[tuple[slice, int]]:
    """Slices of at most `TILE` rows and the padded number of rows of each."""
    for start in range(0, n, TILE):
        stop = min(start + TILE, n)
        yield slice(start, stop), -(-(stop - start) // ROUND) * ROUND


def stamps(coefficients: FloatArray, folded: FoldedBasis) -> FloatArray:
    """Stamps of a tile of sources.

    Parameters
    ----------
    coefficients : float32 (n_source, n_band, n_basis)
        At most `TILE` sources.
    folded : FoldedBasis

    Returns
    -------
    float32 (n_source, n_band, window, window)
    """
    n, n_band, n_basis = coefficients.shape
    padded = np.zeros((n_band, -(-n // ROUND) * ROUND, n_basis), np.float32)
    padded[:, :n] = coefficients.transpose(1, 0, 2)
    image = matmul(padded, folded.phi)[:, :n].reshape(n_band, n, folded.window, folded.window)
    return image.transpose(1, 0, 2, 3)


def render(coefficients: FloatArray, folded: FoldedBasis, corner: NDArray[np.int64], canvas: list[FloatArray],
           scene: NDArray[np.int64]) -> None:
    """Add the stamps of sources to images, in the order of the sources.

    Parameters
    ----------
    coefficients : float32 (n_source, n_band, n_basis)
    folded : FoldedBasis
    corner : int64 (n_source, 2) [pixel]
        (x, y) of each window's first pixel on its canvas; windows lie inside.
    canvas : list of float32 (n_band, n_y, n_x)
        One per scene; added to in place.
    scene : int64 (n_source,)
        Index of each source's canvas.
    """
    window = folded.window
    for rows, _ in tiles(len(coefficients)):
        image = stamps(coefficients[rows], folded)
        for stamp, (x, y), s in zip(image, corner[rows], scene[rows], strict=True):
            canvas[s][:, y : y + window, x : x + window] += stamp


def project(image: list[FloatArray], folded: FoldedBasis, corner: NDArray[np.int64],
            scene: NDArray[np.int64]) -> FloatArray:
    """Inner products of the sources' windows with the folded basis: the adjoint of `render`.

    Parameters
    ----------
    image : list of float32 (n_band, n_y, n_x)
        One per scene.
    folded : FoldedBasis
    corner : int64 (n_source, 2) [pixel]
    scene : int64 (n_source,)

    Returns
    -------
    float32 (n_source, n_band, n_basis)
    """
    n_band, n_pixel, n_basis = folded.phi_t.shape
    window = folded.window
    result = np.empty((len(corner), n_band, n_basis), np.float32)
    for rows, padded in tiles(len(corner)):
        cut = np.zeros((n_band, padded, window, window), np.float32)
        for i, ((x, y), s) in enumerate(zip(corner[rows], scene[rows], strict=True)):
            cut[:, i] = image[s][:, y : y + window, x : x + window]
        product = matmul(cut.reshape(n_band, padded, n_pixel), folded.phi_t)
        result[rows] = product[:, : rows.stop - rows.start].transpose(1, 0, 2)
    return result
