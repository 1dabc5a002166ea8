"""Launchers of the kernels that take a step, judge it and keep it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deblendrt.cuda.driver.device import Argument, Device, DeviceArray, blocks_for
from deblendrt.cuda.layout import Layout

ARRAYS_AT_ONCE = 8  # arrays per launch; a state has as many


def move(device: Device, layout: Layout, latent: DeviceArray, step: DeviceArray, floor: DeviceArray,
         offset0: DeviceArray, out: DeviceArray, *, min_flux_factor: float, max_flux_factor: float,
         max_offset_step: float, max_drift: float, max_shape_step: float) -> None:
    """Take a step, shortened to its limits.

    Moves 3 n_latent + n_band + 2 doubles a source; the arithmetic costs nothing in comparison.

    Specification: `reference.steps.move`; `out` may be `latent`.
    """
    n_source, n_latent = latent.shape
    limits = (min_flux_factor, max_flux_factor, max_offset_step, max_drift, max_shape_step)
    device.launch("move", blocks_for(n_source * n_latent), (256,), layout.scene, latent, step, floor, offset0,
                  n_source, layout.n_band, n_latent, *map(np.float64, limits), out)


def accept(device: Device, layout: Layout, loss: DeviceArray, log_prior: DeviceArray, trial_log_prior: DeviceArray,
           downhill: DeviceArray, step: DeviceArray, damping: DeviceArray, out_better: DeviceArray,
           out_left: DeviceArray, *, rejected_damping: float, min_damping: float, max_damping: float,
           rejected_factor: float, poor_decrease: float, poor_factor: float, good_decrease: float,
           good_factor: float) -> None:
    """Judge a step, blend by blend, and choose the next damping.

    Moves 2 n_latent + 2 doubles a source and 6 a blend.

    Specification: `reference.steps.accept`.
    """
    constants = (rejected_damping, min_damping, max_damping, rejected_factor, poor_decrease, poor_factor, good_decrease,
                 good_factor)
    # the kernel is not named accept: the tests' shim would call the C library's accept
    device.launch("accept:accept_step", (layout.n_blend,), (32,), layout.blend_start, layout.blend_source, loss,
                  log_prior, trial_log_prior, downhill, step, step.shape[1], *map(np.float64, constants), damping,
                  out_better, out_left)


def choose(device: Device, layout: Layout, better: DeviceArray, sources: Sequence[DeviceArray],
           targets: Sequence[DeviceArray]) -> None:
    """Keep the rows of blends that got better.

    Moves twice the bytes of the chosen rows.

    Specification: `reference.steps.choose`.
    """
    pairs = list(zip(sources, targets, strict=True))
    for start in range(0, len(pairs), ARRAYS_AT_ONCE):
        arguments: list[Argument] = []
        for source, target in pairs[start : start + ARRAYS_AT_ONCE]:
            if source.shape != target.shape or source.dtype != target.dtype or len(source) != layout.n_source:
                raise ValueError(f"choose: {source.shape} {source.dtype} to {target.shape} {target.dtype}")
            arguments += [source, target, _words(source, target)]
        missing = ARRAYS_AT_ONCE - len(arguments) // 3
        device.launch("choose", (layout.n_source,), (128,), layout.blend, better, *arguments,
                      *[None, None, 0] * missing)


def _words(source: DeviceArray, target: DeviceArray) -> int:
    """Return the number of words of 16 bytes of a row, or minus the number of words of 4 bytes."""
    row = source.nbytes // max(len(source), 1)
    if row % 16 == 0 and source.pointer % 16 == 0 and target.pointer % 16 == 0:
        return row // 16
    if row % 4:
        raise ValueError(f"choose: rows of {row} bytes")
    return -(row // 4)


def adam(device: Device, layout: Layout, downhill: DeviceArray, floor: DeviceArray, offset0: DeviceArray,
         out_first: DeviceArray, out_second: DeviceArray, out_latent: DeviceArray, *, rate: float,
         share: tuple[float, float], correction: tuple[float, float], epsilon: float, max_drift: float) -> None:
    """One step of Adam.

    Moves 7 n_latent + n_band + 2 doubles a source.

    Specification: `reference.steps.adam`.
    """
    n_source, n_latent = downhill.shape
    constants = (rate, *share, *correction, epsilon, max_drift)
    device.launch("adam", blocks_for(n_source * n_latent), (256,), layout.scene, downhill, floor, offset0, n_source,
                  layout.n_band, n_latent, *map(np.float64, constants), out_first, out_second, out_latent)


def narrow(device: Device, values: DeviceArray, out: DeviceArray) -> None:
    """Round to float32.

    Parameters
    ----------
    device : Device
    values : float64
    out : float32
        Same shape as `values`.
    """
    device.launch("narrow", blocks_for(values.size), (256,), values, out, np.int64(values.size))
