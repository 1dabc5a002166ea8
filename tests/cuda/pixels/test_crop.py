"""Kernels that copy: rounding to float32, and cropping."""

from __future__ import annotations

import numpy as np
from kernels import needs_shim
from shim import ShimDevice

from deblendrt.cuda.kernels.pixels.launch import crop
from deblendrt.cuda.kernels.steps.launch import narrow


@needs_shim
def test_crop() -> None:
    device = ShimDevice()
    canvas = np.random.default_rng(0).random((3, 20, 31)).astype(np.float32)
    out = device.empty((3, 10, 21), np.float32)
    crop(device, device.upload(canvas), 5, out)
    np.testing.assert_array_equal(device.download(out), canvas[:, 5:-5, 5:-5])


@needs_shim
def test_narrow() -> None:
    device = ShimDevice()
    values = np.random.default_rng(0).normal(size=(7, 301))
    out = device.empty(values.shape, np.float32)
    narrow(device, device.upload(values), out)
    np.testing.assert_array_equal(device.download(out), values.astype(np.float32))
