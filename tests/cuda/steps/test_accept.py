"""Judging steps: kernel against reference, reference against the solver's damping."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import blends_only
from shim import ShimDevice

from deblendrt.cuda.kernels.steps.launch import accept
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.reference import steps as reference_steps
from deblendrt.engine.solve import descent
from deblendrt.engine.solve.device_descent import ACCEPT_RULE

SIZES = [1, 3, 0, 64, 2, 1, 33, 0]


def draw(layout: Layout, n_latent: int, seed: int = 0) -> list[np.ndarray]:
    """Losses that fall by all shares of the expected decrease, and losses that rise."""
    rng = np.random.default_rng(seed)
    n, n_blend = layout.n_source, layout.n_blend
    downhill, step = rng.standard_normal((2, n, n_latent))
    step += 0.5 * downhill
    log_prior, trial = rng.standard_normal((2, n))
    expected = np.bincount(layout.blend[layout.blend >= 0], 0.5 * (downhill * step).sum(1)[layout.blend >= 0], n_blend)
    prior = np.bincount(layout.blend[layout.blend >= 0], (trial - log_prior)[layout.blend >= 0], n_blend)
    before = rng.uniform(10, 1000, n_blend)
    share = rng.choice([-0.5, 0.1, 0.4, 0.9], n_blend)
    loss = np.stack([before, before + prior - share * expected], 1)
    damping = 10.0 ** rng.uniform(-4, 1, n_blend)
    damping[::7] = 9e3  # near the largest
    return [loss, log_prior, trial, downhill, step, damping, np.full(n_blend, 7, np.int32), np.full(n_blend, np.nan)]


def test_reference_is_the_solver() -> None:
    layout = blends_only(np.random.default_rng(0).integers(1, 6, 40))
    loss, log_prior, trial, downhill, step, damping, better, left = draw(layout, 8)
    total = [loss[:, k] - np.bincount(layout.blend, p) for k, p in enumerate((log_prior, trial))]
    expected = np.bincount(layout.blend, 0.5 * (downhill * step).sum(1))
    following = descent.damped(damping, total[0] - total[1], expected)
    ratio = (following / damping)[damping < 100]
    assert {0.25, 1.0, 4.0, 8.0} <= set(ratio.round(12))  # every outcome is here
    reference_steps.accept(layout, loss, log_prior, trial, downhill, step, damping, better, left, **ACCEPT_RULE)
    np.testing.assert_array_equal(damping, following)
    np.testing.assert_array_equal(better, total[0] > total[1])
    np.testing.assert_allclose(left, expected, rtol=1e-12)


@needs_shim
@pytest.mark.parametrize("n_latent", [8, 18, 43])
def test_kernel(n_latent: int) -> None:
    layout = blends_only(SIZES)
    damping, better, left = both(accept, reference_steps.accept, layout, *draw(layout, n_latent), outputs=(5, 6, 7),
                                 **ACCEPT_RULE)
    np.testing.assert_array_equal(*damping)
    np.testing.assert_array_equal(*better)
    np.testing.assert_allclose(*left, rtol=1e-12, atol=1e-12)
    assert not better[0][[2, 7]].any()


@needs_shim
def test_not_a_number_is_not_better() -> None:
    layout = blends_only([1, 1])
    arguments = draw(layout, 8)
    arguments[0][0, 1] = np.nan
    damping, better, _ = both(accept, reference_steps.accept, layout, *arguments, outputs=(5, 6, 7), **ACCEPT_RULE)
    assert better[0][0] == 0
    np.testing.assert_array_equal(*damping)


@needs_shim
def test_bits_do_not_depend_on_the_batch() -> None:
    many, one = blends_only(SIZES), blends_only([64])
    arguments = draw(many, 18)
    mine = many.blend_source[many.blend_start[3] : many.blend_start[4]]
    alone = [a[mine] if len(a) == many.n_source else a[3:4] for a in arguments]
    results = [run(ShimDevice(), accept, layout, *a, outputs=(5, 6, 7), **ACCEPT_RULE)
               for layout, a in ((many, arguments), (one, alone))]
    for together, single in zip(*results, strict=True):
        np.testing.assert_array_equal(together[3:4], single)
