"""The secant update: kernel against reference, reference against the engine's."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import blends_only
from shim import ShimDevice

from deblendrt.cuda.kernels.prior.launch import secant
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.reference import prior as reference_prior
from deblendrt.engine.solve import curvature, prior
from deblendrt.engine.solve.device_descent import SECANT_BOUNDS


def draw(layout: Layout, n_latent: int, seed: int = 0) -> list[np.ndarray]:
    """Steps with changes in proportion, against the curvature, far out of proportion, and no steps at all."""
    rng = np.random.default_rng(seed)
    n = layout.n_source
    root = rng.standard_normal((n, n_latent, 2 * n_latent))
    matrix = root @ root.transpose(0, 2, 1)
    latent, step, gradient = rng.standard_normal((3, n, n_latent))
    step[3::7] = 0.0
    change = curvature.apply_blocks(matrix, step) * rng.uniform(0.5, 2, (n, 1)) + 0.1 * rng.standard_normal(step.shape)
    change[1::7] *= -1
    change[2::7] *= 1e3
    return [latent, latent + step, gradient, gradient - change, matrix]


def test_reference_is_the_engine() -> None:
    layout = blends_only([1] * 30)
    latent, trial, gradient, trial_gradient, matrix = draw(layout, 8)
    expected = prior.secant(matrix, trial - latent, gradient - trial_gradient)
    updated = (expected != matrix).any((1, 2))
    assert updated.any()
    assert not updated.all()
    result = matrix.copy()
    reference_prior.secant(layout, latent, trial, gradient, trial_gradient, result, **SECANT_BOUNDS)
    np.testing.assert_array_equal(result[~updated], matrix[~updated])
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12 * np.abs(matrix).max())


@needs_shim
@pytest.mark.parametrize("n_latent", [8, 18, 43])
def test_kernel(n_latent: int) -> None:
    layout = blends_only([3, 1, 0, 9, 1])
    [(result, expected)] = both(secant, reference_prior.secant, layout, *draw(layout, n_latent), outputs=(4,),
                                **SECANT_BOUNDS)
    np.testing.assert_allclose(result, expected, rtol=1e-11, atol=1e-12 * np.abs(expected).max())
    np.testing.assert_array_equal(result == draw(layout, n_latent)[4], expected == draw(layout, n_latent)[4])


@needs_shim
def test_bits_do_not_depend_on_the_batch() -> None:
    layout = blends_only([1] * 9)
    arguments = draw(layout, 18)
    [together] = run(ShimDevice(), secant, layout, *arguments, outputs=(4,), **SECANT_BOUNDS)
    for i in range(9):
        [alone] = run(ShimDevice(), secant, blends_only([1]), *(a[i : i + 1] for a in arguments), outputs=(4,),
                      **SECANT_BOUNDS)
        np.testing.assert_array_equal(alone[0], together[i])
