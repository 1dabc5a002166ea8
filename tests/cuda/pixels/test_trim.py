"""Smaller windows: kernels against references, and references against the engine's windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kernels import both, needs_shim
from layouts import random_layout
from problems import toy_problem
from toy_model import N_BAND, ToyModel

from deblendrt.cuda.kernels.pixels import launch
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute import decoding, drawing
from deblendrt.engine.compute.reference import pixels as reference
from deblendrt.engine.deblender import Deblender

SIZES = {"one row": (7, (2, 5)), "some rows": (31, (3, 2, 15)), "many functions": (13, (2, 131))}


@pytest.fixture
def layout() -> Layout:
    return random_layout(0, [(40, 45, 9)], window=31)


def insets_of(n: int, window: int) -> np.ndarray:
    return (np.arange(n) % 5 * (window // 9 + 1) % (window // 2 + 1)).astype(np.int32)


@needs_shim
@pytest.mark.parametrize("n_window", [1, 4])
def test_reach(layout: Layout, n_window: int) -> None:
    n = 300  # more than a block
    extent = np.random.default_rng(0).integers(1 - n_window, 2, n).astype(np.int32)
    insets, used = np.arange(n_window, dtype=np.int32) * 5, 128 - 32 * np.arange(n_window, dtype=np.int32)
    nothing = [np.full(n, -7, np.int32) for _ in range(3)]
    for result, expected in both(launch.reach, reference.reach, layout, extent, insets, used, *nothing,
                                 outputs=(3, 4, 5)):
        np.testing.assert_array_equal(result, expected)


@needs_shim
@pytest.mark.parametrize("size", SIZES)
def test_trim_basis(layout: Layout, size: str) -> None:
    shape = SIZES[size][1]
    rows = np.random.default_rng(0).normal(size=(layout.n_source, *shape)).astype(np.float32)
    rows[-1] = np.nan
    used = (np.arange(layout.n_source) * 7 % (shape[-1] + 1)).astype(np.int32)
    [(result, expected)] = both(launch.trim_basis, reference.trim_basis, layout, used, rows, np.full_like(rows, -7),
                                outputs=(2,))
    np.testing.assert_array_equal(result, expected)
    assert (result == 0).any()


@needs_shim
@pytest.mark.parametrize("size", SIZES)
def test_trim_stamps(layout: Layout, size: str) -> None:
    window, shape = SIZES[size]
    sized = dataclasses.replace(layout, window=window)
    stamps = np.random.default_rng(0).normal(size=(layout.n_source, *shape[:-1], window**2)).astype(np.float32)
    inset = insets_of(layout.n_source, window)
    [(result, expected)] = both(launch.trim_stamps, reference.trim_stamps, sized, inset, stamps, outputs=(1,))
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal((result != 0).sum(-1).max(axis=tuple(range(1, result.ndim - 1))),
                                  (window - 2 * inset) ** 2)


def test_references_are_the_engine(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, latent, _ = toy_problem(toy_deblender, toy_model)
    basis, coefficients = problem.folded.of(0), decoding.decode(problem, latent)
    assert basis.nested
    n, window = len(coefficients), basis.at(-1)
    layout = dataclasses.replace(random_layout(0, [(40, 45, n)], n_padding=0), window=basis.window)
    trimmed = np.empty_like(coefficients)
    reference.trim_basis(layout, np.full(n, window.n_used, np.int32), coefficients, trimmed)
    stamps = np.ascontiguousarray(drawing.product(trimmed, basis.phi))
    reference.trim_stamps(layout, np.full(n, window.inset, np.int32), stamps)
    expected = np.zeros((n, N_BAND, basis.window, basis.window), np.float32)
    inside = slice(window.inset, window.inset + window.size)
    expected[:, :, inside, inside] = drawing.window_stamps(coefficients, window)
    np.testing.assert_allclose(stamps.reshape(expected.shape), expected, atol=2e-6 * np.abs(expected).max())
