"""Inverses of damped blocks: kernel against reference, reference against the solver's."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import blends_only
from shim import ShimDevice

from deblendrt.cuda.kernels.linear.launch import damped_inverse
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.reference import linear as reference_linear
from deblendrt.engine.solve import curvature

N_BAND = 3
OUTPUTS = 3, 4
SIZES = [3, 1, 0, 4, 1]


def draw(layout: Layout, n_latent: int) -> list[np.ndarray]:
    """Blocks of all scales, some of nearly dependent columns."""
    rng = np.random.default_rng(n_latent)
    n = layout.n_source
    root = rng.standard_normal((n, n_latent, 2 * n_latent)) * 10.0 ** rng.uniform(-3, 3, (n, n_latent, 1))
    root[1::3, 0] = root[1::3, 1] * (1 + 1e-2 * rng.standard_normal((len(root[1::3]), 2 * n_latent)))
    return [root @ root.transpose(0, 2, 1), 10.0 ** rng.uniform(-4, 1, layout.n_blend)]


def room(layout: Layout, n_latent: int) -> list[np.ndarray]:
    """For the outputs."""
    return [np.full((layout.n_source, n_latent, n_latent), 7.0), np.full((layout.n_source, n_latent), 7.0)]


def check(inverse: np.ndarray, expected: np.ndarray, block: np.ndarray) -> None:
    """In units of the diagonal."""
    scale = np.sqrt(block.diagonal(axis1=1, axis2=2))
    unit = scale[:, :, None] * scale[:, None, :]
    size = np.abs(expected * unit).max((1, 2), keepdims=True)
    np.testing.assert_allclose(inverse * unit / size, expected * unit / size, rtol=0, atol=1e-10)


def test_reference_is_the_solver() -> None:
    layout = blends_only([3, 1, 4, 1, 9])
    block, damping = draw(layout, 8)
    added = damping[layout.blend][:, None] * block.diagonal(axis1=1, axis2=2)
    added[:, :N_BAND] = 0.0
    expected = curvature.inverse(block + added[:, :, None] * np.eye(8))
    out = room(layout, 8)
    reference_linear.damped_inverse(layout, block, damping, N_BAND, *out)
    check(out[0], expected, block)
    np.testing.assert_array_equal(out[1], added)


@needs_shim
@pytest.mark.parametrize("n_latent", [5, 8, 18, 43, 64])
def test_kernel(n_latent: int) -> None:
    layout = blends_only(SIZES)
    block, damping = draw(layout, n_latent)
    (inverse, expected), added = both(damped_inverse, reference_linear.damped_inverse, layout, block, damping, N_BAND,
                                      *room(layout, n_latent), outputs=OUTPUTS)
    check(inverse, expected, block)
    np.testing.assert_array_equal(*added)
    real = layout.blend >= 0
    assert (inverse[~real] == 7.0).all()
    np.testing.assert_array_equal(inverse[real], inverse[real].transpose(0, 2, 1))


@needs_shim
def test_blocks_that_are_not_positive() -> None:
    layout = blends_only([1] * 6)
    block, damping = draw(layout, 8)
    block[1, 2, 2] = -1.0
    block[2] = 0.0
    block[3, 6, 7] = block[3, 7, 6] = 3 * np.sqrt(block[3, 6, 6] * block[3, 7, 7])
    block[4, 0, 0] = np.nan
    block[5, 0, 1] = block[5, 1, 0] = 3 * np.sqrt(block[5, 0, 0] * block[5, 1, 1])
    (inverse, expected), _ = both(damped_inverse, reference_linear.damped_inverse, layout, block, damping * 0.1,
                                  N_BAND, *room(layout, 8), outputs=OUTPUTS)
    np.testing.assert_array_equal(np.isnan(inverse).all((1, 2)), np.arange(6) > 0)
    np.testing.assert_array_equal(np.isnan(expected).all((1, 2)), np.arange(6) > 0)


@needs_shim
def test_bits_do_not_depend_on_the_batch() -> None:
    layout = blends_only([1] * 5)
    block, damping = draw(layout, 18)
    together = run(ShimDevice(), damped_inverse, layout, block, damping, N_BAND, *room(layout, 18), outputs=OUTPUTS)
    for i in range(5):
        blend = layout.blend[i]
        alone = run(ShimDevice(), damped_inverse, blends_only([1]), block[i : i + 1], damping[blend : blend + 1],
                    N_BAND, *(a[:1] for a in room(layout, 18)), outputs=OUTPUTS)
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a[0], b[i])
