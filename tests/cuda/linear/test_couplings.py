"""Inner products of derivative images at every second pixel: kernel against reference, reference against the solver."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import flat, layout_of, pad, toy_problem
from shim import ShimDevice
from toy_model import ToyModel

from deblendrt.cuda.kernels.linear.launch import couplings
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.cuda.layouts import make_pairs
from deblendrt.engine.compute.cuda.model import _halved
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.compute.reference import linear as reference
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.solve import constants, curvature, joint_step, objective

FLOAT32 = 2e-6  # relative to the product of the norms: images, products and sums of 64 are rounded to float32


@pytest.fixture(params=[0, -1], ids=["window", "smaller"])
def case(request: pytest.FixtureRequest, toy_deblender: Deblender, toy_model: ToyModel) -> tuple[Problem, Any, Layout,
                                                                                                 list[Any]]:
    """A problem, its columns, its layout and arguments of `couplings`; slots in reverse order, two pairs of padding."""
    problem, latent, _ = toy_problem(toy_deblender, toy_model, 2)
    problem.extent[::2] = max(request.param, -len(problem.folded.insets))
    layout = layout_of(problem)
    n = len(problem.scene)
    columns = curvature.columns(objective.evaluate(problem, latent))
    pairs = make_pairs(layout, 1, problem.bundle.n_latent, constants.MAX_DENSE)
    insets = np.array([0, *problem.folded.insets])[-np.minimum(problem.extent, 0)]
    used = np.array([problem.folded.of(i).at(min(k, 0)).n_used for i, k in enumerate(problem.extent)])
    trimmed = np.where(np.arange(columns.shape[-1]) < used[:, None, None, None], columns, 0)
    tables = _halved(problem.folded.of(0))[pairs.table[:n]]
    images = np.einsum("nbck,nbkp->nbcp", trimmed, tables).astype(np.float32)
    slot = np.arange(layout.n_source, dtype=np.int32)[::-1].copy()
    pair = pairs.pair.reshape(-1, 2)
    pair = np.concatenate([pair[pair[:, 0] >= 0], np.full((2, 2), -1, np.int32)])
    n_column = columns.shape[2]
    out = np.full((len(pair), layout.n_band, n_column, n_column), -7, np.float32)
    return problem, columns, layout, [np.ascontiguousarray(pad(images)[::-1]), slot, pad(insets.astype(np.int32)),
                                      flat(layout, problem.weight), pair, out]


def norms(layout: Layout, arguments: list[Any]) -> np.ndarray:
    """Products of the norms of both images, float64 (n_pair, n_band, n_column, n_column), the padding left out."""
    pair, out = arguments[4][:-2], arguments[5]
    own = {int(i): np.sqrt(out[p].diagonal(axis1=1, axis2=2).astype(np.float64))
           for p, (i, j) in enumerate(pair) if i == j}
    return np.array([own[i][:, :, None] * own[j][:, None] for i, j in pair.tolist()])


def test_reference_is_the_solver(case: tuple[Problem, Any, Layout, list[Any]]) -> None:
    problem, columns, layout, arguments = case
    reference.couplings(layout, *arguments)
    blends = [np.flatnonzero(problem.blend == b) for b in range(problem.n_blend)]
    expected = joint_step.couplings(problem, columns, problem.weight, [rows for rows in blends if len(rows)])
    found = curvature.by_latent(arguments[5][:-2].astype(np.float64))
    scale = {int(i): np.sqrt(expected.block[p].diagonal()) for p, i in enumerate(expected.first)
             if i == expected.second[p]}
    number = {pair: p for p, pair in enumerate(map(tuple, arguments[4][:-2].tolist()))}
    assert len(expected.first) > 2 * problem.n_blend
    for i, j, block in zip(expected.first.tolist(), expected.second.tolist(), expected.block, strict=True):
        mine = found[number.pop((i, j))]
        assert (np.abs(mine - block) <= FLOAT32 * scale[i][:, None] * scale[j]).all()
    assert not any(found[p].any() for p in number.values())  # pairs whose smaller windows are apart


@needs_shim
def test_kernel(case: tuple[Problem, Any, Layout, list[Any]]) -> None:
    _, _, layout, arguments = case
    [(result, expected)] = both(couplings, reference.couplings, layout, *arguments, outputs=(5,))
    arguments[5] = expected
    assert (np.abs(result[:-2] - expected[:-2]) <= FLOAT32 * norms(layout, arguments)).all()
    assert (result[-2:] == -7).all()
    [single] = run(ShimDevice(), couplings, layout, *arguments[:4], arguments[4][1:2], arguments[5][:1], outputs=(5,))
    np.testing.assert_array_equal(single[0], result[1])


@needs_shim
def test_canvases_of_odd_sizes(case: tuple[Problem, Any, Layout, list[Any]]) -> None:
    """The last row and column of an odd canvas have no square of four pixels."""
    _, _, layout, arguments = case
    shape = layout.canvas_shape - (1 - layout.canvas_shape % 2)
    odd = dataclasses.replace(layout, canvas_shape=shape.astype(np.int32))
    arguments[3] = np.abs(np.random.default_rng(0).standard_normal(layout.n_pixel)).astype(np.float32)
    [(result, expected)] = both(couplings, reference.couplings, odd, *arguments, outputs=(5,))
    arguments[5] = expected
    assert (np.abs(result[:-2] - expected[:-2]) <= FLOAT32 * norms(odd, arguments)).all()
