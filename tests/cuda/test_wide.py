"""Which sources are drawn with outskirts: kernel against reference, reference against the engine."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import blends_only, layout_of, pad, toy_problem
from shim import ShimDevice
from toy_model import N_BAND, ToyModel

from deblendrt.cuda import reference_steps
from deblendrt.cuda.wide import wide
from deblendrt.engine import curvature, decoding, ops
from deblendrt.engine.deblender import Deblender


def test_reference_is_the_engine(wide_toy_deblender: Deblender, wide_toy_model: ToyModel) -> None:
    problem, latent, _ = toy_problem(wide_toy_deblender, wide_toy_model, 3)
    latent[::2, :N_BAND] -= 6.0  # faint
    coefficients = decoding.decode(problem, latent)
    expected = curvature.extents(problem, coefficients) > 0
    assert expected.any()
    assert not expected.all()
    outside = (problem.folded.full_gram - problem.folded.gram).astype(np.float32)
    through = ops.product(coefficients, outside)
    wbar = curvature.mean_weight(problem, problem.weight)
    out = pad(np.zeros(len(latent), np.int32))
    out[1] = 1
    reference_steps.wide(layout_of(problem), *map(pad, (through, coefficients, wbar)), out,
                         threshold=curvature.EXTENDED**2)
    np.testing.assert_array_equal(out != 0, pad(expected | (np.arange(len(latent)) == 1)))


@needs_shim
@pytest.mark.parametrize(("n_band", "n_basis"), [(3, 15), (6, 128), (2, 131)])
def test_kernel(n_band: int, n_basis: int) -> None:
    layout = blends_only([5, 0, 30])
    rng = np.random.default_rng(0)
    through, coefficients = rng.standard_normal((2, layout.n_source, n_band, n_basis)).astype(np.float32)
    wbar = rng.uniform(0, 1, (layout.n_source, n_band))
    already = (rng.random(layout.n_source) < 0.2).astype(np.int32)
    arguments = through, coefficients, wbar, already
    [(result, expected)] = both(wide, reference_steps.wide, layout, *arguments, outputs=(3,), threshold=2.0)
    np.testing.assert_array_equal(result, expected)
    assert already.sum() < result.sum() < len(result)
    [one] = run(ShimDevice(), wide, blends_only([1]), *(a[:1] for a in arguments), outputs=(3,), threshold=2.0)
    assert one[0] == result[0]
