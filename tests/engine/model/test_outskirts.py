"""Outskirts: the interpolation and its definition, its adjoint, and the way from core and cells to a stamp and back."""

from __future__ import annotations

import numpy as np
import pytest

from deblendrt.engine.model.outskirts import expand, gather, interpolate, split, spread

# Relative to the largest value: a pixel is a sum of 4 products, a cell a sum of (2 binning)^2 products.
ROUNDING = {np.float32: 3e-6, np.float64: 3e-15}


def definition(row: np.ndarray, binning: int) -> np.ndarray:
    """Interpolate linearly between the centres of cells, constant beyond the outermost centres."""
    centres = binning * np.arange(len(row)) + binning // 2
    return np.interp(np.arange(binning * len(row)), centres, row)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("binning", [1, 3, 5])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 2), (2, 3, 7, 7), (0, 3, 3)])
def test_spread_is_bilinear(shape: tuple[int, ...], binning: int, dtype: type) -> None:
    cells = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    expected = np.apply_along_axis(definition, -1, cells, binning) if cells.size else np.empty((0, 3, 3 * binning))
    along = interpolate(cells, binning)
    assert along.dtype == dtype
    np.testing.assert_allclose(along, expected, atol=ROUNDING[dtype])
    pixels = spread(cells, binning)
    assert pixels.shape == (*shape[:-2], shape[-2] * binning, shape[-1] * binning)
    assert pixels.dtype == dtype
    if cells.size:
        np.testing.assert_allclose(pixels, np.apply_along_axis(definition, -2, expected, binning), atol=ROUNDING[dtype])
    middle = slice(binning // 2, None, binning)
    np.testing.assert_array_equal(pixels[..., middle, middle], cells)  # a cell's centre keeps its bits


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("binning", [1, 3, 5])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 2), (2, 3, 7, 7)])
def test_gather_is_the_adjoint(shape: tuple[int, ...], binning: int, dtype: type) -> None:
    rng = np.random.default_rng(1)
    cells = rng.standard_normal(shape).astype(dtype)
    pixels = rng.standard_normal((*shape[:-2], shape[-2] * binning, shape[-1] * binning)).astype(dtype)
    before = pixels.copy()
    sums = gather(pixels, binning)
    assert sums.shape == shape
    assert sums.dtype == dtype
    np.testing.assert_array_equal(pixels, before)
    scale = np.linalg.norm(cells) * np.linalg.norm(pixels) * binning
    left, right = (spread(cells, binning) * pixels).sum(), (cells * sums).sum()
    assert abs(left - right) < ROUNDING[dtype] * scale
    if cells.size > 1:  # the comparison can fail
        assert abs(left - (cells * np.roll(sums, 1, -1)).sum()) > 1e-4 * scale


@pytest.mark.parametrize("function", [spread, gather])
def test_bits_do_not_depend_on_the_batch(function: object) -> None:
    values = np.random.default_rng(2).standard_normal((9, 2, 21, 15)).astype(np.float32)
    together = function(values, 3)  # type: ignore[operator]
    for i in range(len(values)):
        np.testing.assert_array_equal(function(values[i : i + 1], 3)[0], together[i])  # type: ignore[operator]
    turned = np.asfortranarray(values)
    np.testing.assert_array_equal(function(turned, 3), together)  # type: ignore[operator]


@pytest.mark.parametrize(("core_size", "binning", "n_cell"), [(9, 3, 7), (5, 5, 3), (15, 3, 5), (7, 1, 11), (3, 3, 1)])
def test_expand_and_split(core_size: int, binning: int, n_cell: int) -> None:
    rng = np.random.default_rng(3)
    core = rng.standard_normal((4, core_size, core_size))
    cells = rng.standard_normal((4, n_cell, n_cell))
    stamps = expand(core, cells, binning)
    size, margin = n_cell * binning, (n_cell * binning - core_size) // 2
    assert stamps.shape == (4, size, size)
    inside = slice(margin, margin + core_size)
    np.testing.assert_array_equal(stamps[:, inside, inside], core)
    coarse = stamps[:, binning // 2 :: binning, binning // 2 :: binning].copy()
    n_core = core_size // binning
    hidden = slice((n_cell - n_core) // 2, (n_cell + n_core) // 2)
    coarse[:, hidden, hidden] = core.reshape(4, n_core, binning, n_core, binning).mean((2, 4))
    outside = np.ones((size, size), bool)
    outside[inside, inside] = False
    np.testing.assert_allclose(stamps[:, outside], spread(coarse, binning)[:, outside], rtol=1e-12)
    again_core, again_cells = split(stamps, core_size, binning)
    assert not again_cells[:, hidden, hidden].any()
    np.testing.assert_array_equal(expand(again_core, again_cells, binning), stamps)


def test_a_core_without_outskirts() -> None:
    core = np.random.default_rng(4).standard_normal((4, 7, 7)).astype(np.float32)
    np.testing.assert_array_equal(expand(core, np.zeros((4, 0, 0), np.float32), 1), core)
