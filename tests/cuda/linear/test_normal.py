"""Normal matrices: kernel against reference, reference against the engine; the list of pairs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import N_PADDING, layout_of, normal_arguments, pad, toy_problem, unit_coefficients
from shim import ShimDevice
from toy_model import N_BAND, ToyModel

from deblendrt.cuda.kernels.linear.launch import normal, source_pairs
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.compute.reference import linear as reference_linear
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.solve.joint_fluxes import normal_matrices

FLOAT32 = 1e-6  # relative to the product of the diagonals' roots: stamps and products of three rounded to float32


@pytest.fixture(scope="module")
def compact(toy_deblender: Deblender, toy_model: ToyModel) -> tuple[Problem, np.ndarray]:
    mask = np.random.default_rng(0).random((N_BAND, 48, 52)) < 0.1
    problem, latent, _ = toy_problem(toy_deblender, toy_model, 2, mask=[mask, mask])
    return problem, unit_coefficients(problem, latent)


@pytest.fixture(scope="module")
def extended(wide_toy_deblender: Deblender, wide_toy_model: ToyModel) -> tuple[Problem, np.ndarray]:
    """Some sources have outskirts, which stick out of the canvas. All sources of a scene are one blend."""
    problem, latent, _ = toy_problem(wide_toy_deblender, wide_toy_model, 2)
    some = np.arange(len(latent)) % 3 > 0
    problem = dataclasses.replace(problem, extent=some.astype(np.int8), blend=problem.scene, n_blend=2)
    return problem, unit_coefficients(problem, latent)


@pytest.mark.parametrize("which", ["compact", "extended"])
def test_reference_is_the_engine(which: str, request: pytest.FixtureRequest) -> None:
    problem, unit = request.getfixturevalue(which)
    layout = layout_of(problem)
    arguments = normal_arguments(problem, layout, unit)
    pairs, start = source_pairs(layout, arguments[2])
    out = np.full((len(arguments[4]), N_BAND), np.nan)
    reference_linear.normal(layout, *arguments, out)
    blends = normal_matrices(problem, unit, problem.weight)
    assert max(len(rows) for rows, _ in blends) > 2
    for rows, matrix in blends:
        mine = slice(start[problem.blend[rows[0]]], start[problem.blend[rows[0]] + 1])
        i, j = np.searchsorted(rows, pairs[mine]).T
        result = np.zeros_like(matrix)
        result[:, i, j] = result[:, j, i] = out[mine].T
        root = np.sqrt(matrix.diagonal(axis1=1, axis2=2))
        assert (np.abs(result - matrix) <= FLOAT32 * root[:, :, None] * root[:, None]).all()


@needs_shim
@pytest.mark.parametrize("which", ["compact", "extended"])
def test_kernel(which: str, request: pytest.FixtureRequest) -> None:
    problem, unit = request.getfixturevalue(which)
    layout = layout_of(problem)
    arguments = normal_arguments(problem, layout, unit)
    pairs = arguments[4]
    out = np.full((len(pairs), N_BAND), -7.0)
    [(result, expected)] = both(normal, reference_linear.normal, layout, *arguments, out, outputs=(5,))
    diagonal = np.zeros((layout.n_source, N_BAND))
    diagonal[pairs[:-2][pairs[:-2, 0] == pairs[:-2, 1], 0]] = expected[:-2][pairs[:-2, 0] == pairs[:-2, 1]]
    scale = np.sqrt(diagonal[pairs[:-2, 0]] * diagonal[pairs[:-2, 1]])
    assert (np.abs(result - expected)[:-2] <= FLOAT32 * scale).all()
    assert (result[-2:] == -7).all()  # padding is left alone
    # bits depend on the pair alone, and all pairs of windows that do not meet are zero
    [single] = run(ShimDevice(), normal, layout, *arguments[:4], pairs[3:4], out[:1], outputs=(5,))
    np.testing.assert_array_equal(single[0], result[3])
    [reverse] = run(ShimDevice(), normal, layout, *arguments[:4], pairs[:-2][::-1].copy(), out[:-2], outputs=(5,))
    np.testing.assert_array_equal(reverse[::-1], result[:-2])


def test_pairs(compact: tuple[Problem, np.ndarray], extended: tuple[Problem, np.ndarray]) -> None:
    for problem, _ in (compact, extended):
        layout = layout_of(problem)
        for flags in (np.zeros(layout.n_source, np.int32), pad(problem.extended.astype(np.int32)),
                      np.ones(layout.n_source, np.int32)):
            pairs, start = source_pairs(layout, flags)
            assert pairs.dtype == start.dtype == np.int32
            assert len(start) == layout.n_blend + 1
            expected = []
            for blend in range(problem.n_blend):
                rows = np.flatnonzero(problem.blend == blend)
                for i in rows:
                    for j in rows[rows >= i]:
                        reach = [layout.window / 2 + layout.margin * flags[k] for k in (i, j)]
                        if (np.abs(problem.corner[i] - problem.corner[j]) < sum(reach)).all():
                            expected.append((i, j))
                assert start[blend + 1] == len(expected)
            assert pairs.tolist() == [list(p) for p in expected]
            assert (start[-N_PADDING:] == len(expected)).all()


@needs_shim
def test_windows_that_do_not_meet(compact: tuple[Problem, np.ndarray]) -> None:
    problem, unit = compact
    problem = dataclasses.replace(problem, corner=problem.corner.copy())
    problem.corner[0], problem.corner[1] = [0, 0], [problem.folded.window, 3]
    layout = layout_of(problem)
    arguments = normal_arguments(problem, layout, unit)[:4]
    pair = np.array([[0, 1]], np.int32)
    [(result, expected)] = both(normal, reference_linear.normal, layout, *arguments, pair, np.ones((1, N_BAND)),
                                outputs=(5,))
    assert not result.any()
    assert not expected.any()
