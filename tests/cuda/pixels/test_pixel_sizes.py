"""Kernels on pixels at sizes that no model has: none a multiple of a tile, several bases, padding of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels import both, needs_shim, run
from layouts import random_layout
from shim import ShimDevice

from deblendrt.cuda.kernels.pixels import launch
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.reference import pixels as reference

FLOAT32 = 3e-6  # of the largest value: sums of some hundred products in float32
SCENES = ((33, 20, 3), (17, 45, 0), (21, 19, 70))
SIZES = {  # number of basis functions, layout
    "narrow": (5, {"n_band": 1, "window": 3, "n_padding": 0}),
    "several bases": (131, {"n_band": 2, "window": 13, "n_psf": 3}),
    "outskirts": (17, {"n_band": 3, "window": 15, "margin": 9, "binning": 3, "n_psf": 2}),
    "wide": (130, {"n_band": 2, "window": 17, "margin": 6, "binning": 1}),
}


@pytest.fixture(params=SIZES)
def case(request: pytest.FixtureRequest) -> tuple[Layout, int]:
    n_basis, options = SIZES[request.param]
    return random_layout(0, SCENES, **options), n_basis


def numbers(layout: Layout, *shape: int) -> np.ndarray:
    """Random numbers; rows of sources of padding, and pixels of padding, are not numbers."""
    values = np.random.default_rng(shape).normal(size=shape).astype(np.float32)
    if shape[0] == layout.n_source:
        values[layout.scene < 0] = np.nan
    if shape[0] == layout.n_pixel:
        values[int((layout.n_band * layout.canvas_shape.astype(np.int64).prod(1)).sum()) :] = np.nan
    return values


def table(layout: Layout, *shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=(int(layout.basis.max()) + 1, layout.n_band, *shape)).astype("f4")


def close(result: np.ndarray, expected: np.ndarray, tolerance: float = FLOAT32) -> None:
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance * np.nanmax(np.abs(expected)))


def extended_of(layout: Layout) -> np.ndarray:
    return (np.arange(layout.n_source) % 3 > 0).astype(np.int32) * (layout.margin > 0)


def inset_of(layout: Layout) -> np.ndarray:
    return np.where(extended_of(layout) > 0, 0, np.arange(layout.n_source) % 4).astype(np.int32)


def projected(layout: Layout, n_basis: int, image: np.ndarray) -> tuple[Any, ...]:
    """Arguments of `project`."""
    n_cell, out = layout.n_cell, numbers(layout, layout.n_source, layout.n_band, n_basis)
    scratch = np.full((launch.runs(layout.n_window_pixel, n_basis)[0], *out.shape), np.nan, np.float32)
    return (image, table(layout, layout.n_window_pixel, n_basis), table(layout, n_cell, n_basis) if n_cell else None,
            extended_of(layout), inset_of(layout), numbers(
                layout, layout.n_source, layout.n_band, n_cell) if n_cell else None, scratch, out)


@needs_shim
@pytest.mark.parametrize("n_row", [1, 3])
def test_product(case: tuple[Layout, int], n_row: int) -> None:
    layout, n_basis = case
    n = layout.n_source
    for n_column in (n_basis, layout.n_window_pixel):
        rows = numbers(layout, n, layout.n_band, n_row, n_basis)
        out = numbers(layout, n, layout.n_band, n_row, n_column)
        [(result, expected)] = both(launch.product, reference.product, layout, rows, table(layout, n_basis, n_column),
                                    out, outputs=(2,))
        close(result, expected)


@needs_shim
def test_render(case: tuple[Layout, int]) -> None:
    layout, _ = case
    stamps = numbers(layout, layout.n_source, layout.n_band, layout.n_window_pixel)
    cells = numbers(layout, layout.n_source, layout.n_band, layout.n_cell) if layout.n_cell else None
    background, out = numbers(layout, layout.n_pixel), numbers(layout, layout.n_pixel)
    [(result, expected)] = both(launch.render, reference.render, layout, stamps, cells, extended_of(layout), background,
                                out, outputs=(4,))
    close(result, expected)


@needs_shim
def test_project(case: tuple[Layout, int]) -> None:
    layout, n_basis = case
    arguments = projected(layout, n_basis, numbers(layout, layout.n_pixel))
    [(result, expected)] = both(launch.project, reference.project, layout, *arguments, outputs=(7,))
    close(result, expected)


@needs_shim
def test_likelihood_and_mean_weight(case: tuple[Layout, int]) -> None:
    layout, _ = case
    n_pixel = layout.n_pixel
    data, model, trial = (np.roll(3 * numbers(layout, n_pixel), k) for k in range(3))
    weight, out = numbers(layout, n_pixel) ** 2, numbers(layout, n_pixel)
    constants = (0.1, 0.2, 2.0, 1)
    for result, expected in both(launch.residual, reference.residual, layout, data, weight, model, *constants, out,
                                 out, outputs=(7, 8)):
        close(result, expected, 1e-5)
    losses = np.full((layout.n_blend, 2), np.nan)
    finite = (np.nan_to_num(image) for image in (data, weight, model, trial))
    [(result, expected)] = both(launch.loss, reference.loss, layout, *finite, *constants, losses, outputs=(8,))
    close(result, expected, 1e-5)
    profile, wbar = table(layout, layout.n_window_pixel) ** 2, np.full((layout.n_source, layout.n_band), np.nan)
    [(result, expected)] = both(launch.mean_weight, reference.mean_weight, layout, weight, profile,
                                inset_of(layout), wbar, outputs=(3,))
    close(result, expected)


@needs_shim
def test_bits_do_not_depend_on_the_batch() -> None:
    """A scene's numbers, alone and behind another scene that moves its rows to other places of other tiles."""
    n_basis, options = SIZES["outskirts"]
    results = []
    for scenes in ((SCENES[2],), SCENES):
        layout = random_layout(0, scenes, **{**options, "n_psf": 1})
        n, n_canvas = SCENES[2][2], layout.n_band * SCENES[2][0] * SCENES[2][1]
        first, start = int(np.argmax(layout.scene == len(scenes) - 1)), int(layout.canvas_start[-1])
        image = np.zeros(layout.n_pixel, np.float32)
        image[start : start + n_canvas] = np.random.default_rng(1).normal(size=n_canvas)
        arguments = list(projected(layout, n_basis, image))
        arguments[3] = np.zeros_like(arguments[3])
        arguments[3][first : first + n : 2] = 1
        arguments[4] = np.zeros_like(arguments[4])
        arguments[4][first + 1 : first + n : 2] = 3
        [rows] = run(ShimDevice(), launch.project, layout, *arguments, outputs=(7,))
        stamps = np.zeros((layout.n_source, layout.n_band, 1, layout.n_window_pixel), np.float32)
        [stamps] = run(ShimDevice(), launch.product, layout, rows[:, :, None], table(layout, n_basis,
                       layout.n_window_pixel), stamps, outputs=(2,))
        [drawn] = run(ShimDevice(), launch.render, layout, stamps[:, :, 0], None, arguments[3], None, image,
                      outputs=(4,))
        results.append((rows[first : first + n], stamps[first : first + n], drawn[start : start + n_canvas]))
    for alone, together in zip(*results, strict=True):
        np.testing.assert_array_equal(alone, together)
