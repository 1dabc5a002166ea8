r"""Folding: the convolution of the basis with PSFs, by difference kernels.

The basis phi[k] is defined under a narrow reference PSF, a Gaussian of `reference_sigma` pixels sampled at pixel
centres. The observed, effective PSF of band b is P_b = D_b * R, so

    Phi[b, k] = D_b * phi[k],        D_b^ = P_b^ / R^, its modulus cut to gain_cap
    G[b]      = Phi[b] Phi[b]^T      (sum over the window's pixels)

with * the convolution, R the reference PSF and ^ the Fourier transform on a zero-padded grid. G are the Gram matrices.
Phi is cut to a window that exceeds the stamp by `pad` pixels on every side. All sources that share a PSF share one
folded basis.

R^ is the transform of the *sampled* Gaussian, aliases included. The relative L2 error on GalSim exponentials of
half-light radius 1.5 pixel is 4e-5 under Gaussian PSFs of FWHM 3 and 2.4 pixels; with the continuous transform it is
4e-5 and 6e-4.

Accuracy, relative L2 of a folded image against GalSim's under Gaussian PSFs of FWHM 3 to 6 pixels: 1e-7 to 1e-5 for
Gaussians and exponentials that fit their stamp, 1e-4 for a de Vaucouleurs profile, whose cusp is beyond Nyquist. Real
PSFs are limited by the size of their own image, not by the kernel: a Kolmogorov PSF of FWHM 3.5 pixels, cut to
25 / 41 / 61 pixels and normalised, gives 1e-2 / 4e-3 / 2e-3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deblendrt.engine.compute.folded_basis import NESTED, FoldedBasis, smaller_window
from deblendrt.engine.compute.matmul import matmul
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.scene.psf.images import normalize_psf, psf_fwhm, psf_key

PAD = 5  # pixel around the stamp for light that the PSF spreads; the kernel itself is not cut

GAIN_CAP = 2.0
"""Largest |D^|. Every PSF wider than the reference has |D^| <= 1, so the cap acts on noise and on narrower PSFs only.
Gaussian PSF of FWHM 2 pixels (the reference has 2.35), cap 1 / 2 / 5: relative L2 error of a compact exponential
12% / 0.7% / 0.1%, but the basis' own truncation error and the edge of large stamps grow with the cap."""

NARROW_RESIDUAL = 0.01
"""Kernel residual above which a PSF is called narrow: white noise of 1e-3 of the peak in a measured PSF leaves 1e-3 to
5e-3, a Gaussian of FWHM 2.2 pixels 8e-4, 2.1 pixels 1.3e-2, 2.0 pixels 4e-2."""


def reference_transform(n: int, sigma: float) -> NDArray[np.float64]:
    """Fourier transform of the sampled Gaussian reference PSF along one axis.

    A sum over aliases (Poisson) stays positive where the transform is below rounding; an FFT would not.

    Parameters
    ----------
    n : int
        Length of the grid.
    sigma : float [pixel]

    Returns
    -------
    float64 (n,)
        One at zero frequency.
    """
    k = 2 * np.pi * np.fft.fftfreq(n)[:, None] + 2 * np.pi * np.arange(-3, 4)
    transform = np.exp(-0.5 * (sigma * k) ** 2).sum(1)
    return transform / transform[0]


@dataclass(frozen=True, eq=False)
class Folding:
    """Difference kernels of PSFs, and the windows to which the convolved basis is cut.

    Attributes
    ----------
    transform : complex128 (n_band, n, n // 2 + 1)
        Transforms of the difference kernels on an n x n grid. The kernels' origin is at (pad, pad), so that a stamp at
        the grid's first pixels is convolved to a full window at the grid's first pixels.
    window, full_window, binning : int [pixel]
    fwhm, residual, narrow, norm : (n_band,)
        As in `FoldedBasis`.
    """

    transform: NDArray[np.complex128]
    window: int
    full_window: int
    binning: int
    fwhm: NDArray[np.float64]
    residual: NDArray[np.float64]
    narrow: NDArray[np.bool_]
    norm: NDArray[np.float64]


def folding(size: int, psf: ArrayLike, reference_sigma: float = 1.0, pad: int = 5, gain_cap: float = GAIN_CAP, *,
            window: int | None = None, binning: int = 1) -> Folding:
    """Compute the difference kernels for stamps of a given size; parameters as in `fold`.

    Returns
    -------
    Folding
    """
    if pad < 0 or not gain_cap >= 1 or not reference_sigma > 0:
        raise ValueError("fold: expected pad >= 0, gain_cap >= 1 and reference_sigma > 0, "
                         f"got {pad}, {gain_cap} and {reference_sigma}")
    image, norm = normalize_psf(psf)
    n_band, q = image.shape[:2]
    pad = -(-pad // binning) * binning
    full = size + 2 * pad
    window = full if window is None else window
    if window > full or window % 2 == 0 or binning % 2 == 0 or (window < full and full % binning):
        raise ValueError(f"fold: expected an odd window of at most {full} pixels and an odd binning that divides the "
                         f"stamp, got {window} and {binning}")
    # The grid holds stamp and PSF. The kernel rings beyond it, at frequencies that galaxies lack.
    n = _fast_length(max(size + q, full))
    padded = np.zeros((n_band, n, n))
    padded[:, :q, :q] = image
    target = np.fft.rfft2(np.roll(padded, (pad - q // 2, pad - q // 2), axis=(1, 2)))
    axis = reference_transform(n, reference_sigma)
    reference = axis[:, None] * axis[: n // 2 + 1]
    kernel = target / reference
    modulus = np.abs(kernel)
    np.multiply(kernel, gain_cap / modulus, out=kernel, where=modulus > gain_cap)
    # Half-plane sums count conjugate pairs once: weights restore Parseval's identity.
    pairs = np.full(n // 2 + 1, 2.0)
    pairs[0] = 1.0
    if n % 2 == 0:
        pairs[-1] = 1.0
    power = (pairs * np.abs(target) ** 2).sum(axis=(1, 2))
    residual = np.sqrt((pairs * np.abs(kernel * reference - target) ** 2).sum(axis=(1, 2)) / power)
    fwhm = np.array([psf_fwhm(band) for band in image])
    narrow = residual > NARROW_RESIDUAL
    for array in (fwhm, residual, narrow, norm):
        array.flags.writeable = False
    return Folding(kernel, window, full, binning, fwhm, residual, narrow, norm)


def fold(basis: ArrayLike, psf: ArrayLike, reference_sigma: float = 1.0, pad: int = 5, gain_cap: float = GAIN_CAP, *,
         window: int | None = None, binning: int = 1) -> FoldedBasis:
    """Convolve the basis with the difference kernel of every band.

    Parameters
    ----------
    basis : float (n_basis, s, s)
        Basis under the reference PSF, s odd.
    psf : float (n_band, q, q)
        Effective PSF images, q odd; normalised here.
    reference_sigma : float [pixel]
    pad : int [pixel]
        Least distance from the stamp's edge to the full window's edge, for light that the PSF carries over the edge.
    gain_cap : float
        Largest modulus of the kernel's transform, at least one.
    window : int, optional [pixel]
        Side of the window of single pixels, odd. Cells cover the full window outside it. Default: the full window.
    binning : int [pixel]
        Side of the cells, odd.

    Returns
    -------
    FoldedBasis
    """
    stamps = np.asarray(basis)
    if stamps.ndim != 3 or stamps.shape[1] != stamps.shape[2] or stamps.shape[1] % 2 == 0:
        raise ValueError(f"basis: expected shape (n_basis, s, s) with s odd, got {stamps.shape}")
    how = folding(stamps.shape[1], psf, reference_sigma, pad, gain_cap, window=window, binning=binning)
    n_basis, n_band, n = len(stamps), len(how.norm), how.transform.shape[1]
    full, window = how.full_window, how.window
    outskirts = window < full

    # float32 transforms: 3e-7 of the result's maximum, the rounding of phi itself, at half the time. Rows outside the
    # stamp (forward) and outside the window (back) are never transformed.
    rows = np.fft.rfft(stamps.astype(np.float32), n=n, axis=2)
    transform = np.fft.fft(rows, n=n, axis=1)
    phi = np.empty((n_band, n_basis, window * window), np.float32)
    n_cell = (full // binning) ** 2 if outskirts else 0
    outer = np.empty((n_band, n_basis, n_cell), np.float32)
    gram = np.empty((n_band, n_basis, n_basis))
    full_gram = np.empty_like(gram)
    inside = slice((full - window) // 2, (full + window) // 2)
    for b in range(n_band):
        product = np.fft.ifft(transform * how.transform[b].astype(np.complex64), axis=1)[:, :full]
        whole = np.fft.irfft(product, n=n, axis=2)[:, :, :full].astype(np.float32)
        phi[b] = whole[:, inside, inside].reshape(n_basis, -1)
        gram[b] = matmul(phi[b : b + 1], np.ascontiguousarray(phi[b : b + 1].transpose(0, 2, 1)))[0]
        full_gram[b] = gram[b]
        if outskirts:
            outer[b] = whole[:, binning // 2 :: binning, binning // 2 :: binning].reshape(n_basis, -1)
            flat = whole.reshape(1, n_basis, -1)
            full_gram[b] = matmul(flat, np.ascontiguousarray(flat.transpose(0, 2, 1)))[0]
    nested = tuple(smaller_window(phi, full_gram, window, size, n) for size, n in NESTED if size < window)
    for array in (phi, gram, outer, full_gram):
        array.flags.writeable = False
    return FoldedBasis(phi, gram, outer, full_gram, how.fwhm, window, window // 2, full, binning,
                       how.residual, how.narrow, how.norm, nested)


def window_side(bundle: Bundle) -> int:
    """Side of the window of a source without outskirts [pixel]."""
    return bundle.stamp_size + (0 if bundle.outskirts.size else 2 * PAD)


def fold_bundle(bundle: Bundle, images: NDArray[np.float64] | None) -> FoldedBasis:
    """Fold a bundle's basis with PSF images.

    Parameters
    ----------
    bundle : Bundle
    images : float64 (n_band, q, q), or None
        None: the bundle's nominal PSFs.

    Returns
    -------
    FoldedBasis
    """
    images = np.asarray(bundle.psf, np.float64) if images is None else images
    # Bands without data have the PSF of another band: an alert's single PSF is folded once, not six times.
    first, same = np.unique([psf_key(image) for image in images], return_index=True, return_inverse=True)[1:]
    folded = fold(bundle.full_basis, images[first], bundle.reference_psf_sigma, PAD, window=window_side(bundle),
                  binning=bundle.outskirts_binning)
    return folded.in_bands(same)


def _fast_length(n: int) -> int:
    """Smallest even length of at least n without prime factors above 5."""
    length = n + n % 2
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2
