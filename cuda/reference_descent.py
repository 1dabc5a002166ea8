"""What the kernels of a descent's linear algebra and of its prior compute.

Each function has the name and arguments of its launcher, less the device; arrays are NumPy's, outputs are written in
place. Rows of padding are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.layout import Layout

DoubleArray = NDArray[np.float64]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


def prior_terms(layout: Layout, latent: DoubleArray, log_prob: FloatArray, flow_gradient: FloatArray,
                measured: IntArray, offset0: DoubleArray, star: IntArray, mean_color: DoubleArray,
                color_sigma: DoubleArray, center_sigma: np.float64, out_log_prior: DoubleArray,
                out_gradient: DoubleArray, *, slack: float = 0.1) -> None:
    """Log prior of every source, up to constants, and its gradient: `engine.objective.prior`.

    Parameters
    ----------
    layout : Layout
    latent : float64 (n_source, n_latent)
    log_prob : float32 (n_source,)
        Of the shapes of galaxies, from the flow.
    flow_gradient : float32 (n_source, n_latent)
        Of `log_prob` by the latents.
    measured : int32 (n_source, n_band)
        Whether the source has any weight in the band.
    offset0 : float64 (n_source, 2) [pixel]
        The caller's centre relative to the anchor pixel.
    star : int32 (n_source,)
        Whose shapes are idle, under N(0, 1), whatever the flow says.
    mean_color, color_sigma : float64 (n_band,) [ln nJy]
        Of the population, for bands that are not measured.
    center_sigma : float64 [pixel]
    out_log_prior : float64 (n_source,)
    out_gradient : float64 (n_source, n_latent)
    slack : float
        Added to `color_sigma`.
    """
    n_band = layout.n_band
    rows = np.flatnonzero(layout.scene >= 0)
    z, has, is_star = latent[rows], measured[rows] != 0, star[rows] != 0
    idle = z[:, n_band + 2 :]
    value = np.where(is_star, -0.5 * (idle**2).sum(1), log_prob[rows].astype(np.float64))
    gradient = np.where(is_star[:, None], 0.0, flow_gradient[rows].astype(np.float64))
    gradient[is_star, n_band + 2 :] = -idle[is_star]

    offset = (z[:, n_band : n_band + 2] - offset0[rows]) / center_sigma
    value -= 0.5 * (offset**2).sum(1)
    gradient[:, n_band : n_band + 2] -= offset / center_sigma

    count = np.maximum(has.sum(1, keepdims=True), 1)
    level = np.where(has, z[:, :n_band] - mean_color, 0.0).sum(1, keepdims=True) / count
    color = np.where(has, 0.0, z[:, :n_band] - (level + mean_color))
    sigma = color_sigma + slack
    value -= 0.5 * ((color / sigma) ** 2).sum(1)
    through = (color / sigma**2).sum(1, keepdims=True) / count  # the expectation moves with the measured bands
    gradient[:, :n_band] += np.where(has, through, -color / sigma**2)
    out_log_prior[rows], out_gradient[rows] = value, gradient


def stars(layout: Layout, latent: DoubleArray, star: IntArray, core: DoubleArray, sums: DoubleArray,
          psf_sigma: np.float64, out_maps: FloatArray, out_d_maps: FloatArray, out_mix: FloatArray,
          out_d_mix: FloatArray) -> None:
    """Overwrite the rows of stars with those of the reference PSF at its offset: `engine.decoding.decode_jacobian`.

    Parameters
    ----------
    layout : Layout
    latent : float64 (n_source, n_latent)
    star : int32 (n_source,)
    core : float64 (n_basis, side, side)
        Basis where the reference PSF has light, its middle the anchor pixel; side is odd.
    sums : float64 (n_basis,)
        Of the whole functions.
    psf_sigma : float64 [pixel]
        Of the Gaussian that the reference PSF is.
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


def damped_inverse(layout: Layout, block: DoubleArray, damping: DoubleArray, n_band: int, out_inverse: DoubleArray,
                   out_added: DoubleArray, *, ridge: float = 1e-6) -> None:
    """Damp the blocks of all sources and invert them: `engine.curvature.inverse`.

    Parameters
    ----------
    layout : Layout
    block : float64 (n_source, n_latent, n_latent)
        Symmetric, positive definite.
    damping : float64 (n_blend,)
    n_band : int
        So many first latents are fluxes, which are not damped.
    out_inverse : float64 (n_source, n_latent, n_latent)
        NaN where the damped block is not positive definite.
    out_added : float64 (n_source, n_latent)
        What was added to the diagonal.
    ridge : float
        Added to the diagonal of a block that was scaled to a diagonal of ones.
    """
    one = np.eye(block.shape[1])
    for i in np.flatnonzero(layout.blend >= 0):
        added = damping[layout.blend[i]] * block[i].diagonal()
        added[:n_band] = 0.0
        damped = block[i] + np.diag(added)
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = 1 / np.sqrt(damped.diagonal())
            scaled = damped * scale[:, None] * scale + ridge * one
        try:
            root = np.linalg.inv(np.linalg.cholesky(scaled))
        except np.linalg.LinAlgError:
            root = np.full_like(one, np.nan)
        out_inverse[i], out_added[i] = root.T @ root * scale[:, None] * scale, added


def conjugate_start(layout: Layout, inverse: DoubleArray, target: DoubleArray, out_solution: DoubleArray,
                    out_rest: DoubleArray, out_direction: DoubleArray, out_rz: DoubleArray) -> None:
    """Where the conjugate gradient starts; a source alone in its blend is solved by its block.

    Parameters
    ----------
    layout : Layout
    inverse : float64 (n_source, n_latent, n_latent)
        Preconditioner, symmetric.
    target : float64 (n_source, n_latent)
    out_solution, out_rest, out_direction : float64 (n_source, n_latent)
        The last two are 0 for a source alone.
    out_rz : float64 (n_blend,)
        Of the rest and the preconditioned rest; kept where a blend has no members.
    """
    for blend, members in _blends(layout):
        z = _apply(inverse[members], target[members])
        if len(members) == 1:
            out_solution[members], out_rest[members], out_direction[members], out_rz[blend] = z, 0.0, 0.0, 0.0
            continue
        out_solution[members], out_rest[members], out_direction[members] = 0.0, target[members], z
        out_rz[blend] = (target[members] * z).sum()


def conjugate_step(layout: Layout, inverse: DoubleArray, curvature: DoubleArray, added: DoubleArray,
                   out_pulled: DoubleArray, out_solution: DoubleArray, out_rest: DoubleArray,
                   out_direction: DoubleArray, out_rz: DoubleArray) -> None:
    """One iteration of `engine.conjugate.conjugate_gradient`, of blends of more than one source.

    Parameters
    ----------
    layout : Layout
    inverse, curvature : float64 (n_source, n_latent, n_latent)
        Preconditioner, and the prior's part of the matrix; symmetric.
    added : float64 (n_source, n_latent)
        The damping's part, a diagonal.
    out_pulled : float64 (n_source, n_latent)
        Likelihood's part of the matrix times the direction. Scratch afterwards: the preconditioned rest.
    out_solution, out_rest, out_direction : float64 (n_source, n_latent)
        Updated.
    out_rz : float64 (n_blend,)
        Updated.
    """
    for blend, members in _blends(layout):
        if len(members) == 1:
            continue
        direction, before = out_direction[members], out_rz[blend]
        image = out_pulled[members] + _apply(curvature[members], direction) + added[members] * direction
        alpha = _ratio(before, (direction * image).sum())
        out_solution[members] += alpha * direction
        out_rest[members] -= alpha * image
        z = _apply(inverse[members], out_rest[members])
        out_rz[blend] = (out_rest[members] * z).sum()
        out_direction[members] = z + _ratio(out_rz[blend], before) * direction
        out_pulled[members] = z


def _blends(layout: Layout) -> Iterator[tuple[int, IntArray]]:
    for blend in range(layout.n_blend):
        members = layout.blend_source[layout.blend_start[blend] : layout.blend_start[blend + 1]]
        if len(members):
            yield blend, members


def _apply(block: DoubleArray, v: DoubleArray) -> DoubleArray:
    return np.asarray((block @ v[:, :, None])[:, :, 0])


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0
