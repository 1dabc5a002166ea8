"""Launchers of the prior's terms and curvature."""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.driver.device import Device, DeviceArray, blocks_for
from deblendrt.cuda.layout import Layout

N_ROW = 4  # sources of a block


def prior_terms(device: Device, layout: Layout, latent: DeviceArray, log_prob: DeviceArray, flow_gradient: DeviceArray,
                measured: DeviceArray, offset0: DeviceArray, star: DeviceArray, mean_color: DeviceArray,
                color_sigma: DeviceArray, center_sigma: np.float64, out_log_prior: DeviceArray,
                out_gradient: DeviceArray, *, slack: float) -> None:
    """Log prior of every source and its gradient: the flow's or a star's, offsets, missing bands.

    Moves 2 n_latent + 3 doubles, n_latent + 1 floats and n_band + 2 integers a source.

    Specification: `reference.prior.prior_terms`.
    """
    n_source, n_latent = latent.shape
    n_band = layout.n_band
    device.launch("prior_terms", blocks_for(n_source, N_ROW), (32, N_ROW), layout.scene, latent, log_prob,
                  flow_gradient, measured, offset0, star, mean_color, color_sigma, np.float64(center_sigma),
                  np.float64(slack), n_source, n_band, n_latent, out_log_prior, out_gradient,
                  shared=8 * N_ROW * (n_latent + n_band))


def secant(device: Device, layout: Layout, latent: DeviceArray, trial_latent: DeviceArray,
           prior_gradient: DeviceArray, trial_gradient: DeviceArray, out_curvature: DeviceArray, *,
           min_ratio: float, max_ratio: float, min_curvature: float) -> None:
    """BFGS update of the prior's curvature.

    Moves 2 n_latent^2 + 4 n_latent doubles a source.

    Specification: `reference.prior.secant`.
    """
    n_source, n_latent = latent.shape
    device.launch("secant", (n_source,), (128,), layout.scene, out_curvature, latent, trial_latent, prior_gradient,
                  trial_gradient, n_latent, *map(np.float64, (min_ratio, max_ratio, min_curvature)),
                  shared=8 * n_latent * (n_latent + 3))
