r"""From latents to coefficients: galaxies by the bundle's graphs, stars by the reference PSF itself.

A star is the reference PSF, a Gaussian g, at the source's offset, projected on the basis and scaled to unit flux,

    c(dx, dy)[k] = <phi_k, g(. - dx, . - dy)> / sum_l <phi_l, g> <phi_l, 1>

with a free flux in every band. The basis was made for galaxies down to a tenth of an arcsecond; it draws a star to
0.08% of its L2 norm at any offset. The shape latents of a star have no effect and an N(0, 1) prior.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.networks import FactoredJacobian
from deblendrt.engine.units import DoubleArray, FloatArray

if TYPE_CHECKING:
    from deblendrt.engine.compute.problem import Problem

STAR_HALF = 8  # sigma of the reference PSF: the Gaussian is cut here, at 1e-14 of its peak


def star_core(bundle: Bundle) -> tuple[DoubleArray, DoubleArray]:
    """Return the tables with which a bundle draws point sources.

    Parameters
    ----------
    bundle : Bundle

    Returns
    -------
    basis : float64 (n_basis, 2 half + 1, 2 half + 1)
        The basis around the anchor pixel, where the reference PSF has light.
    sums : float64 (n_basis,)
        Sums of the whole functions.
    """
    middle = bundle.stamp_size // 2
    half = min(int(np.ceil(STAR_HALF * bundle.reference_psf_sigma)), middle)
    inside = slice(middle - half, middle + half + 1)
    return bundle.basis[:, inside, inside].astype(np.float64), bundle.basis_sum


def point_sources(bundle: Bundle, offset: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Compute the unit-flux coefficients of stars, and their derivatives by the offset.

    Parameters
    ----------
    bundle : Bundle
    offset : float64 (n_source, 2) [pixel]
        Offset (x, y) from the anchor pixel.

    Returns
    -------
    coefficients : float64 (n_source, n_basis)
    by_offset : float64 (n_source, 2, n_basis) [1 / pixel]
    """
    sigma = bundle.reference_psf_sigma
    basis, sums = star_core(bundle)
    half = basis.shape[1] // 2
    distance = np.arange(-half, half + 1) - offset[:, :, None]
    profile = np.exp(-0.5 * (distance / sigma) ** 2)
    slope = profile * distance / sigma**2
    (x, y), (x_slope, y_slope) = profile.transpose(1, 0, 2), slope.transpose(1, 0, 2)

    def project(along_x: DoubleArray, along_y: DoubleArray) -> DoubleArray:
        return np.einsum("kij,ni,nj->nk", basis, along_y, along_x, optimize=False)

    raw, by_offset = project(x, y), np.stack([project(x_slope, y), project(x, y_slope)], 1)
    flux = (raw * sums).sum(1)[:, None]
    flux_slope = (by_offset * sums).sum(2)[:, :, None]
    return raw / flux, by_offset / flux[:, None] - raw[:, None] * flux_slope / flux[:, None] ** 2


def decode_jacobian(problem: Problem, latent: DoubleArray) -> FactoredJacobian:
    """Compute the coefficients' derivatives in factored form; every component of a star is the whole star."""
    jacobian = problem.runtime.decode_jacobian(latent)
    star = np.flatnonzero(problem.star)
    if len(star):
        maps, d_maps, mix, d_mix = jacobian
        n_band = problem.n_band
        maps[star], d_maps[star], mix[star], d_mix[star] = 0.0, 0.0, 1 / mix.shape[1], 0.0
        unit, by_offset = point_sources(problem.bundle, latent[star, n_band : n_band + 2])
        maps[star] = unit[:, None]
        d_maps[star, :2] = by_offset[:, :, None]
    return jacobian


def decode(problem: Problem, latent: DoubleArray) -> FloatArray:
    """Compute the coefficients, float32 (n_source, n_band, n_basis) [nJy]."""
    coefficients = problem.runtime.decode(latent)
    star = np.flatnonzero(problem.star)
    if len(star):
        n_band = problem.n_band
        unit, _ = point_sources(problem.bundle, latent[star, n_band : n_band + 2])
        coefficients[star] = np.exp(latent[star, :n_band])[:, :, None] * unit[:, None]
    return coefficients


def decode_pullback(problem: Problem, latent: DoubleArray, d_coefficients: FloatArray) -> DoubleArray:
    """Compute J^T d_coefficients, float64 (n_source, n_latent)."""
    pulled = problem.runtime.decode_pullback(latent, d_coefficients).astype(np.float64)
    star = np.flatnonzero(problem.star)
    if len(star):
        n_band = problem.n_band
        unit, by_offset = point_sources(problem.bundle, latent[star, n_band : n_band + 2])
        scaled = np.exp(latent[star, :n_band])[:, :, None] * d_coefficients[star]
        pulled[star] = 0.0
        pulled[star, :n_band] = (scaled * unit[:, None]).sum(2)
        pulled[star, n_band : n_band + 2] = np.einsum("nbk,nok->no", scaled, by_offset, optimize=False)
    return pulled


def log_prior(problem: Problem, latent: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Log prior of the shapes, float64 (n_source,), and its gradient by the latents, float64 (n_source, n_latent)."""
    log_prob, gradient = (a.astype(np.float64) for a in problem.runtime.log_prior(latent))
    star: NDArray[np.int64] = np.flatnonzero(problem.star)
    if len(star):
        idle = latent[star, problem.n_band + 2 :]
        log_prob[star] = -0.5 * (idle**2).sum(1)
        gradient[star] = 0.0
        gradient[star, problem.n_band + 2 :] = -idle
    return log_prob, gradient
