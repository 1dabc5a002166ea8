"""Blocks of the precision matrix: kernel against reference, reference against the normal matrices."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import layout_of, normal_arguments, toy_problem, unit_coefficients
from shim import ShimDevice
from toy_model import ToyModel

from deblendrt.cuda.kernels.linear.launch import precision
from deblendrt.engine.compute.reference import linear as reference_linear
from deblendrt.engine.deblender import Deblender

FLOAT32 = 1e-6  # relative to the product of the norms: stamps, products and sums of 64 are rounded to float32
N_COLUMN = 3


@pytest.fixture(params=[False, True], ids=["compact", "extended"])
def arguments(request: pytest.FixtureRequest, toy_deblender: Deblender, wide_toy_deblender: Deblender,
              toy_model: ToyModel, wide_toy_model: ToyModel) -> tuple:
    """Columns are the unit images times a constant, sources in reverse order; two pairs of padding."""
    wide = request.param
    model, deblender = (wide_toy_model, wide_toy_deblender) if wide else (toy_model, toy_deblender)
    problem, latent, _ = toy_problem(deblender, model)
    if wide:
        problem.extent[::2] = 1
    layout = layout_of(problem)
    stamps, cells, extended, weights, pairs = normal_arguments(problem, layout, unit_coefficients(problem, latent))
    factor = np.random.default_rng(0).normal(size=(layout.n_source, 1, N_COLUMN, 1)).astype(np.float32)
    slot = np.arange(layout.n_source, dtype=np.int32)[::-1].copy()
    columns = [None if a is None else np.ascontiguousarray((a[:, :, None] * factor)[::-1]) for a in (stamps, cells)]
    out = np.full((len(pairs), layout.n_band, N_COLUMN, N_COLUMN), -7.0)
    return layout, (*columns, extended, slot, weights, pairs, out), (stamps, cells, extended, weights, pairs), factor


def test_reference_is_the_normal_matrix(arguments: tuple) -> None:
    layout, columns, plain, factor = arguments
    matrix = np.zeros((len(plain[-1]), layout.n_band))
    reference_linear.normal(layout, *plain, matrix)
    reference_linear.precision(layout, *columns)
    i, j = plain[-1][:-2].T
    factors = factor[i, 0, :, 0][:, :, None] * factor[j, 0, :, 0][:, None].astype(np.float64)
    expected = matrix[:-2, :, None, None] * factors[:, None]
    np.testing.assert_allclose(columns[-1][:-2], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@needs_shim
def test_kernel(arguments: tuple) -> None:
    layout, columns, _, _ = arguments
    pairs = columns[5]
    [(result, expected)] = both(precision, reference_linear.precision, layout, *columns, outputs=(6,))
    own = {int(i): expected[p].diagonal(axis1=1, axis2=2) for p, (i, j) in enumerate(pairs[:-2]) if i == j}
    for p, (i, j) in enumerate(pairs[:-2]):
        scale = np.sqrt(own[int(i)][:, :, None] * own[int(j)][:, None])
        assert (np.abs(result[p] - expected[p]) <= FLOAT32 * scale).all()
    assert (result[-2:] == -7).all()  # padding is left alone
    [single] = run(ShimDevice(), precision, layout, *columns[:5], pairs[1:2], columns[6][:1], outputs=(6,))
    np.testing.assert_array_equal(single[0], result[1])
