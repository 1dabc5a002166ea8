r"""The specification, in NumPy, of the kernels that take a step, judge it and keep it.

Each function has the name and arguments of its launcher, less the device; arrays are NumPy's, outputs are written in
place. Rows of padding mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.layout import Layout
from deblendrt.engine.units import DoubleArray, IntArray


def move(layout: Layout, latent: DoubleArray, step: DoubleArray, floor: DoubleArray, offset0: DoubleArray,
         out: DoubleArray, *, min_flux_factor: float, max_flux_factor: float, max_offset_step: float,
         max_drift: float, max_shape_step: float) -> None:
    """Take a step, shortened to its limits; the flux part is relative and linear.

    Parameters
    ----------
    layout : Layout
    latent, step : float64 (n_source, n_latent)
    floor : float64 (n_source, n_band) [ln nJy]
        Log fluxes are held above it; may be minus infinity.
    offset0 : float64 (n_source, 2) [pixel]
        The caller's centre relative to the anchor pixel.
    out : float64 (n_source, n_latent)
        May be `latent`.
    min_flux_factor, max_flux_factor : float
    max_offset_step, max_drift : float [pixel]
        Per step, and in all from `offset0`.
    max_shape_step : float
        Longest step of a shape.
    """
    n_band = layout.n_band
    moved = latent.copy()
    factor = np.clip(1 + step[:, :n_band], min_flux_factor, max_flux_factor)
    moved[:, :n_band] = np.maximum(latent[:, :n_band] + np.log(factor), floor)
    moved[:, n_band : n_band + 2] += np.clip(step[:, n_band : n_band + 2], -max_offset_step, max_offset_step)
    _hold_offset(n_band, moved, offset0, max_drift)
    shape = step[:, n_band + 2 :]
    length = np.sqrt((shape**2).sum(1, keepdims=True))
    moved[:, n_band + 2 :] += shape * np.minimum(1.0, max_shape_step / np.maximum(length, 1e-12))
    out[...] = moved


def _hold_offset(n_band: int, latent: DoubleArray, offset0: DoubleArray, max_drift: float) -> None:
    offset = latent[:, n_band : n_band + 2]
    np.clip(offset, offset0 - max_drift, offset0 + max_drift, out=offset)


def accept(layout: Layout, loss: DoubleArray, log_prior: DoubleArray, trial_log_prior: DoubleArray,
           downhill: DoubleArray, step: DoubleArray, damping: DoubleArray, out_better: IntArray, out_left: DoubleArray,
           *, rejected_damping: float, min_damping: float, max_damping: float, rejected_factor: float,
           poor_decrease: float, poor_factor: float, good_decrease: float, good_factor: float) -> None:
    """Judge a step, blend by blend, and choose the next damping.

    Parameters
    ----------
    layout : Layout
    loss : float64 (n_blend, 2)
        Loss of the pixels of each blend, before the step and after it.
    log_prior, trial_log_prior : float64 (n_source,)
    downhill, step : float64 (n_source, n_latent)
    damping : float64 (n_blend,)
        Replaced by the next damping; not changed for blends without members.
    out_better : int32 (n_blend,)
        1 where L fell; 0 where a blend has no members.
    out_left : float64 (n_blend,)
        Decrease of L that was expected; 0 where a blend has no members.
    rejected_damping, min_damping, max_damping : float
        Least damping after a rejected step, least and largest ever.
    rejected_factor : float
        Multiplies the damping where L did not fall.
    poor_decrease, poor_factor : float
        The factor multiplies the damping if L fell by less than this share of the expected decrease.
    good_decrease, good_factor : float
        The same if L fell by at least this share.
    """
    for blend in range(layout.n_blend):
        members = layout.blend_source[layout.blend_start[blend] : layout.blend_start[blend + 1]]
        out_better[blend], out_left[blend] = 0, 0.0
        if not len(members):
            continue
        decrease = loss[blend, 0] - log_prior[members].sum() - (loss[blend, 1] - trial_log_prior[members].sum())
        expected = 0.5 * (downhill[members] * step[members]).sum()
        if not decrease > 0:
            damping[blend] = max(damping[blend] * rejected_factor, rejected_damping)
        elif decrease < poor_decrease * expected:
            damping[blend] *= poor_factor
        elif not decrease < good_decrease * expected:
            damping[blend] *= good_factor
        damping[blend] = min(max(damping[blend], min_damping), max_damping)
        out_better[blend], out_left[blend] = decrease > 0, expected


def choose(layout: Layout, better: IntArray, sources: Sequence[NDArray[Any]], targets: Sequence[NDArray[Any]]) -> None:
    """Copy the rows of sources whose blends got better.

    Parameters
    ----------
    layout : Layout
    better : int32 (n_blend,)
    sources, targets : sequence of arrays (n_source, ...)
        Pairs of equal shape and type. Rows of a multiple of 4 bytes; of 16 bytes is faster.
    """
    chosen = (layout.blend >= 0) & (better[layout.blend] != 0)
    for source, target in zip(sources, targets, strict=True):
        target[chosen] = source[chosen]


def adam(layout: Layout, downhill: DoubleArray, floor: DoubleArray, offset0: DoubleArray, out_first: DoubleArray,
         out_second: DoubleArray, out_latent: DoubleArray, *, rate: float, share: tuple[float, float],
         correction: tuple[float, float], epsilon: float, max_drift: float) -> None:
    """One step of Adam.

    Parameters
    ----------
    layout : Layout
    downhill : float64 (n_source, n_latent)
        Minus the gradient of L.
    floor : float64 (n_source, n_band) [ln nJy]
    offset0 : float64 (n_source, 2) [pixel]
    out_first, out_second : float64 (n_source, n_latent)
        Running means of the gradient and of its square; updated, as is `out_latent`.
    out_latent : float64 (n_source, n_latent)
    rate : float
    share : (float, float)
        1 - beta of the two means.
    correction : (float, float)
        1 - beta^t of the two means.
    epsilon : float
    max_drift : float [pixel]
    """
    uphill = -downhill
    out_first += share[0] * (uphill - out_first)
    out_second += share[1] * (uphill**2 - out_second)
    out_latent -= rate * out_first / correction[0] / (np.sqrt(out_second / correction[1]) + epsilon)
    out_latent[:, : layout.n_band] = np.maximum(out_latent[:, : layout.n_band], floor)
    _hold_offset(layout.n_band, out_latent, offset0, max_drift)
