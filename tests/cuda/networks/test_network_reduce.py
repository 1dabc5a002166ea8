"""Sums and softmaxes along an axis against their references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shim import ShimDevice, missing
from tolerances import FLOAT32, relative_error

from deblendrt.cuda.kernels.networks.launch import network_softmax, network_sum
from deblendrt.engine.compute.reference import networks as reference_networks

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
Array = np.ndarray[Any, Any]


def draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("function", ["network_sum", "network_softmax"])
@pytest.mark.parametrize("shape", [(7, 2, 6), (300, 3, 1), (1, 40, 5)])
def test_reduce(function: str, shape: tuple[int, int, int]) -> None:
    x = 5 * draw(3, *shape)
    expected = np.empty((shape[0], 1 if function == "network_sum" else shape[1], shape[2]))
    getattr(reference_networks, function)(x.astype(np.float64), expected)
    kernel: Callable[..., None] = {"network_sum": network_sum, "network_softmax": network_softmax}[function]
    results = []
    for reverse in (False, True):
        device = ShimDevice(reverse=reverse)
        out = device.empty(expected.shape, np.float32)
        kernel(device, device.upload(x), out)
        results.append(device.download(out))
    assert relative_error(results[0], expected) < FLOAT32
    np.testing.assert_array_equal(*results)
