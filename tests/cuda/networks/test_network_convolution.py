"""Convolutions against their reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shim import ShimDevice, missing
from tolerances import FLOAT32, relative_error

from deblendrt.cuda.kernels.networks.launch import network_convolution
from deblendrt.engine.compute.reference import networks as reference_networks

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
Array = np.ndarray[Any, Any]


def draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("n_source", "n_in", "side", "n_out", "size", "stride", "pad"), [
    (3, 2, 9, 5, 3, 2, 1), (2, 6, 11, 33, 5, 2, 2), (1, 1, 6, 1, 1, 1, 0), (2, 3, 8, 4, 3, 1, 0)])
def test_convolution(n_source: int, n_in: int, side: int, n_out: int, size: int, stride: int, pad: int) -> None:
    x, kernel, bias = draw(0, n_source, n_in, side, side + 1), draw(1, n_in * size**2, n_out), draw(2, n_out)
    shape = [(n + 2 * pad - size) // stride + 1 for n in (side, side + 1)]
    geometry = {"size": (size, size), "stride": (stride, stride), "pad": (pad, pad)}
    expected = np.empty((n_source, n_out, *shape))
    reference_networks.network_convolution(x.astype(np.float64), kernel, bias, out=expected, **geometry)
    results = []
    for reverse in (False, True):
        device = ShimDevice(reverse=reverse)
        out = device.empty(expected.shape, np.float32)
        network_convolution(device, device.upload(x), device.upload(kernel), device.upload(bias), out=out, **geometry)
        results.append(device.download(out))
    assert relative_error(results[0], expected) < FLOAT32
    np.testing.assert_array_equal(*results)
    alone = ShimDevice()
    out = alone.empty((1, *expected.shape[1:]), np.float32)
    network_convolution(alone, alone.upload(x[-1:]), alone.upload(kernel), alone.upload(bias), out=out, **geometry)
    np.testing.assert_array_equal(results[0][-1:], alone.download(out))
