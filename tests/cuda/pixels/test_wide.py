"""The choice of windows: kernel against reference, reference against the engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import blends_only, layout_of, pad, toy_problem
from shim import ShimDevice
from toy_model import N_BAND

from deblendrt.cuda.kernels.pixels.launch import wide
from deblendrt.engine.compute import decoding, drawing
from deblendrt.engine.compute.reference import pixels as reference_pixels
from deblendrt.engine.solve import constants, curvature


@pytest.mark.parametrize("prefix", ["", "wide_"])
def test_reference_is_the_engine(request: pytest.FixtureRequest, prefix: str) -> None:
    problem, latent, _ = toy_problem(*map(request.getfixturevalue, (f"{prefix}toy_deblender", f"{prefix}toy_model")), 3)
    latent[::2, :N_BAND] -= 6.0  # faint
    coefficients = decoding.decode(problem, latent)
    smallest = np.where(np.arange(len(latent)) % 4 == 0, 0, -len(problem.folded.insets)).astype(np.int32)
    problem = dataclasses.replace(problem, smallest=smallest.astype(np.int8))
    expected = curvature.extents(problem, coefficients)
    assert set(expected.tolist()) == ({0, 1} if prefix else {-1, 0})  # there are outskirts, or a smaller window
    wbar = curvature.mean_weight(problem, problem.weight)
    out = np.full(len(pad(expected)), -7, np.int32)
    for window in range(1 + len(problem.folded.insets)):
        through = drawing.product(coefficients, problem.folded.of(0).at(-window).missed)
        reference_pixels.wide(layout_of(problem), *map(pad, (through, coefficients, wbar, smallest)), out,
                             window=window, threshold=constants.MAX_UNDRAWN**2)
    np.testing.assert_array_equal(out, pad(expected.astype(np.int32), -7))


@needs_shim
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize(("n_band", "n_basis"), [(3, 15), (6, 128), (2, 131)])
def test_kernel(n_band: int, n_basis: int, window: int) -> None:
    layout = blends_only([5, 0, 30])
    rng = np.random.default_rng(0)
    through, coefficients = rng.standard_normal((2, layout.n_source, n_band, n_basis)).astype(np.float32)
    wbar = rng.uniform(0, 1, (layout.n_source, n_band))
    smallest, before = -rng.integers(0, 4, layout.n_source, np.int32), np.full(layout.n_source, -7, np.int32)
    arguments = through, coefficients, wbar, smallest, before
    [(result, expected)] = both(wide, reference_pixels.wide, layout, *arguments, outputs=(4,), window=window,
                                threshold=2.0)
    np.testing.assert_array_equal(result, expected)
    assert set(result.tolist()) == ({-7, 0, 1} if window == 0 else {-7, -2, -1, 0})
    [one] = run(ShimDevice(), wide, blends_only([1]), *(a[:1] for a in arguments), outputs=(4,),
                window=window, threshold=2.0)
    assert one[0] == result[0]
