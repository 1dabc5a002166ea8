r"""The specification, in NumPy, of the prior's terms and curvature.

Each function has the name and arguments of its launcher, less the device; arrays are NumPy's, outputs are written in
place. Rows of padding mean nothing.
"""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.layout import Layout
from deblendrt.engine.units import DoubleArray, FloatArray, IntArray


def prior_terms(layout: Layout, latent: DoubleArray, log_prob: FloatArray, flow_gradient: FloatArray,
                measured: IntArray, offset0: DoubleArray, star: IntArray, mean_color: DoubleArray,
                color_sigma: DoubleArray, center_sigma: np.float64, out_log_prior: DoubleArray,
                out_gradient: DoubleArray, *, slack: float) -> None:
    """Log prior of every source, up to constants, and its gradient: `solve.prior.prior_terms`.

    Parameters
    ----------
    layout : Layout
    latent : float64 (n_source, n_latent)
    log_prob : float32 (n_source,)
        Log probability of the shapes of galaxies, from the flow.
    flow_gradient : float32 (n_source, n_latent)
        Gradient of `log_prob` by the latents.
    measured : int32 (n_source, n_band)
        Whether the source has any weight in the band.
    offset0 : float64 (n_source, 2) [pixel]
        The caller's centre relative to the anchor pixel.
    star : int32 (n_source,)
        Not 0 for stars, whose shapes have an N(0, 1) prior instead of the flow.
    mean_color, color_sigma : float64 (n_band,) [ln nJy]
        Mean and scatter of the population's colours, for bands without weight.
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


def secant(layout: Layout, latent: DoubleArray, trial_latent: DoubleArray, prior_gradient: DoubleArray,
           trial_gradient: DoubleArray, out_curvature: DoubleArray, *, min_ratio: float, max_ratio: float,
           min_curvature: float) -> None:
    """BFGS update of the prior's curvature from the change of its gradient along a step.

    Parameters
    ----------
    layout : Layout
    latent, trial_latent : float64 (n_source, n_latent)
        Before the step, and after it.
    prior_gradient, trial_gradient : float64 (n_source, n_latent)
        Gradients of log p at these latents.
    out_curvature : float64 (n_source, n_latent, n_latent)
        Symmetric, positive definite; updated, but not where the curvature along the step is negative or out of
        proportion.
    min_ratio, max_ratio : float
        Bounds of the new curvature along the step, in units of the old one.
    min_curvature : float
        Bound of the old curvature along the step.
    """
    step, change = trial_latent - latent, prior_gradient - trial_gradient
    expected = (out_curvature @ step[:, :, None])[:, :, 0]
    before, after = (step * expected).sum(1), (step * change).sum(1)
    good = (after > min_ratio * before) & (after < max_ratio * before) & (before > min_curvature) & (layout.scene >= 0)
    for i in np.flatnonzero(good):
        out_curvature[i] += (np.outer(change[i], change[i]) / after[i]
                             - np.outer(expected[i], expected[i]) / before[i])
