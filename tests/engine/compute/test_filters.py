"""Filters along both axes against their definition, at edges and with kernels of several lengths."""

from __future__ import annotations

import numpy as np
import pytest

from deblendrt.engine.compute import filters
from deblendrt.engine.compute.filters import Plane, brightest

SHAPES = [(1, 1), (3, 40), (40, 3), (23, 31), (200, 190)]


def windows(image: np.ndarray, reach: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(np.pad(image, reach), (2 * reach + 1, 2 * reach + 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_correlation(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    plane = Plane(shape, 5)
    found = []
    for reach in (0, 3, 5):  # one after another on the same plane
        image, kernel = rng.standard_normal(shape), rng.random(reach + 1)
        out = np.empty(plane.n, np.float32)
        plane.image[...] = image
        plane.correlate(kernel, out)
        whole = np.concatenate([kernel[:0:-1], kernel])
        expected = np.einsum("yxij,i,j->yx", windows(image, reach), whole, whole)
        np.testing.assert_allclose(plane.rows(out), expected, atol=1e-5)
        found.append(plane.rows(out))
    monkeypatch.setattr(filters, "FILTER_BLOCK", 777)
    small = Plane(shape, 5)
    small.image[...] = image
    small.correlate(kernel, out)
    np.testing.assert_array_equal(small.rows(out), found[-1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reach", [0, 1, 4, 9])
def test_brightest(shape: tuple[int, int], reach: int) -> None:
    image = (np.random.default_rng(1).standard_normal((2, *shape)) - 1).astype(np.float32)
    expected = [windows(band, reach).max((2, 3)) for band in image]
    np.testing.assert_array_equal(brightest(image, reach), expected)
