"""Keeping the rows of blends that got better."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import both, needs_shim
from problems import blends_only
from shim import ShimDevice

from deblendrt.cuda.kernels.steps.launch import choose
from deblendrt.engine.compute.reference import steps as reference_steps


@needs_shim
@pytest.mark.parametrize("n_array", [1, 8, 11])
def test_kernel(n_array: int) -> None:
    """Rows of all lengths: rows of multiples of 16 bytes take a path of their own."""
    layout = blends_only([1, 3, 0, 2, 5])
    rng = np.random.default_rng(n_array)
    shapes = [(), (18,), (2, 128), (12, 2, 15), (3,), (2, 3), (6, 16), (1,), (1030,), (5, 4), (7,)][:n_array]
    kinds = [np.float64, np.float32, np.float32, np.float32, np.int32][: n_array + 1]
    arrays = [rng.integers(0, 99, (2, layout.n_source, *shape)).astype(kinds[k % len(kinds)])
              for k, shape in enumerate(shapes)]
    sources, targets = [a[0].copy() for a in arrays], [a[1].copy() for a in arrays]
    better = np.array([1, 0, 1, 1, 0], np.int32)
    device = ShimDevice()
    chosen = np.isin(layout.blend, [0, 2, 3])
    uploaded = [[device.upload(a) for a in arrays] for arrays in (sources, targets)]
    choose(device, layout.on(device.upload), device.upload(better), *uploaded)
    expected = [a.copy() for a in targets]
    reference_steps.choose(layout, better, sources, expected)
    for k, target in enumerate(uploaded[1]):
        result = device.download(target)
        np.testing.assert_array_equal(result, expected[k])
        np.testing.assert_array_equal(result[chosen], sources[k][chosen])
        np.testing.assert_array_equal(result[~chosen], targets[k][~chosen])
    assert len(device.launched) == -(-n_array // 8)


@needs_shim
def test_order_of_blocks() -> None:
    layout = blends_only([2, 2])
    rows = np.arange(4.0)
    [(result, expected)] = both(choose, reference_steps.choose, layout, np.array([0, 1], np.int32), [rows], [-rows],
                                outputs=(2,))
    np.testing.assert_array_equal(result, np.stack(expected))


@needs_shim
def test_mistakes() -> None:
    device = ShimDevice()
    layout = blends_only([2])
    better = device.upload(np.ones(1, np.int32))
    on_device = layout.on(device.upload)
    for source, target in (((2, 3), (2, 4)), ((3,), (3,))):
        with pytest.raises(ValueError, match="choose"):
            choose(device, on_device, better, [device.empty(source, np.float32)], [device.empty(target, np.float32)])
    with pytest.raises(ValueError, match="rows of 6 bytes"):
        choose(device, on_device, better, *([device.empty((2, 3), np.int16)] for _ in range(2)))
