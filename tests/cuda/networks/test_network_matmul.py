"""Matrix products against their reference, with every tile and every order of strides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shim import ShimDevice, missing
from tolerances import FLOAT32, relative_error

from deblendrt.cuda.driver.device import DeviceArray
from deblendrt.cuda.kernels.networks import launch as networks_launch
from deblendrt.cuda.kernels.networks.launch import network_matmul
from deblendrt.engine.compute.reference import networks as reference_networks

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
Array = np.ndarray[Any, Any]


def strides(array: Array) -> tuple[int, ...]:
    return tuple(s // array.itemsize for s in array.strides)


def product(a: Array, w: Array, bias: Array | None, *, reverse: bool = False) -> Array:
    """The kernel's product of (possibly transposed) arrays."""
    device = ShimDevice(reverse=reverse)

    def uploaded(view: Array) -> DeviceArray:
        return device.upload(view.base if view.base is not None else view)

    out = device.empty((*a.shape[:2], w.shape[2]), np.float32)
    network_matmul(device, (*a.shape, w.shape[2]), uploaded(a), strides(a), uploaded(w), strides(w),
                   None if bias is None else device.upload(bias), out, strides(device.download(out)))
    return device.download(out)


def draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SHAPES = [(1, 3, 10, 320), (1, 45, 37, 70), (5, 20, 33, 65), (3, 6, 2, 128), (4, 3, 21, 128), (1, 150, 17, 66),
          (1, 33, 256, 1), (5, 6, 128, 2), (2, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transposed", ["", "a", "w"])
def test_product(shape: tuple[int, int, int, int], transposed: str) -> None:
    n_batch, n_row, n_sum, n_column = shape
    a, w, bias = draw(0, n_batch, n_row, n_sum), draw(1, n_batch, n_sum, n_column), draw(2, n_column)
    if transposed == "a":
        a = draw(0, n_batch, n_sum, n_row).transpose(0, 2, 1)
    if transposed == "w":
        w = draw(1, n_batch, n_column, n_sum).transpose(0, 2, 1)
    expected = np.empty((n_batch, n_row, n_column))
    reference_networks.network_matmul(a.astype(np.float64), w.astype(np.float64), bias, expected)
    result = product(a, w, bias)
    assert relative_error(result, expected) < FLOAT32
    np.testing.assert_array_equal(result, product(a, w, bias, reverse=True))


def test_bits_of_a_product_do_not_depend_on_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    a, w = draw(0, 1, 300, 71), draw(1, 1, 71, 130)
    few = product(a, w, None)
    monkeypatch.setattr(networks_launch, "ENOUGH_BLOCKS", 1)
    np.testing.assert_array_equal(few, product(a, w, None))  # large tiles
    np.testing.assert_array_equal(few[:, 7:10], product(a[:, 7:10].copy(), w, None))  # thin tiles
