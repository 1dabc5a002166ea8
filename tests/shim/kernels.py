"""A kernel beside its reference: both on the same arrays, through the shim and in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shim import ShimDevice, missing

from deblendrt.cuda.driver.device import Device
from deblendrt.cuda.layout import Layout

needs_shim = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def both(kernel: Callable[..., None], reference: Callable[..., None], layout: Layout, *arguments: Any,
         outputs: tuple[int, ...], **options: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Run a launcher twice, with blocks in either order, and its reference.

    Parameters
    ----------
    kernel, reference : callable
        (device, layout, *arguments, **options), and the same without the device.
    layout : Layout
        All arrays are NumPy's, those of the arguments too.
    outputs : tuple of int
        Which of the arguments are written to. They are not touched: copies are.

    Returns
    -------
    list of (result, expected)
        Results of the kernel and of the reference, for each output.
    """
    expected = copied(arguments)
    reference(layout, *expected, **options)
    results = [run(ShimDevice(reverse=reverse), kernel, layout, *arguments, outputs=outputs, **options)
               for reverse in (False, True)]
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
    return list(zip(results[0], (expected[k] for k in outputs), strict=True))


def run(device: Device, kernel: Callable[..., None], layout: Layout, *arguments: Any, outputs: tuple[int, ...],
        **options: Any) -> list[np.ndarray]:
    """Results of a launcher on a device, as NumPy arrays."""
    uploaded = [[device.upload(a) for a in argument] if isinstance(argument, list) else
                device.upload(argument) if isinstance(argument, np.ndarray) else argument for argument in arguments]
    kernel(device, layout.on(device.upload), *uploaded, **options)
    return [np.stack([device.download(a) for a in out]) if isinstance(out, list) else device.download(out)
            for out in (uploaded[k] for k in outputs)]


def copied(arguments: tuple[Any, ...]) -> list[Any]:
    """Arguments whose arrays are copies."""
    return [[a.copy() for a in argument] if isinstance(argument, list) else
            argument.copy() if isinstance(argument, np.ndarray) else argument for argument in arguments]
