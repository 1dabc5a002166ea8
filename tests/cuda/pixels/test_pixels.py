"""Kernels on pixels against their references, and the references against the engine."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import toy_problem
from shim import ShimDevice
from toy_model import N_BAND, ToyModel

from deblendrt.cuda.kernels.pixels import launch
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute import decoding, drawing
from deblendrt.engine.compute.cuda.layouts import make_layout, row_tiles
from deblendrt.engine.compute.problem import Problem, State
from deblendrt.engine.compute.reference import pixels as reference
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.solve import constants, curvature, objective

FLOAT32 = 2e-6  # of the largest value: sums of some hundred products in float32
CLIP = constants.CLIP


class Case(NamedTuple):
    problem: Problem
    layout: Any
    coefficients: np.ndarray
    extended: np.ndarray

    def flat(self, canvases: list[np.ndarray]) -> np.ndarray:
        image = np.zeros(self.layout.n_pixel, np.float32)
        image[: sum(c.size for c in canvases)] = np.concatenate([c.ravel() for c in canvases])
        return image

    def padded(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, np.zeros((self.layout.n_source - len(rows), *rows.shape[1:]), rows.dtype)])

    def tables(self, name: str) -> np.ndarray | None:
        array = getattr(self.problem.folded.of(0), name).astype(np.float32)[None]
        return array if array.size else None

    @property
    def inside(self) -> np.ndarray:
        """1 where there are data, 0 on the borders of the canvases, which images of the model leave out."""
        half = self.problem.folded.half
        return self.flat([np.pad(d[:, half:-half, half:-half] * 0 + 1, ((0, 0), (half, half), (half, half)))
                          for d in self.problem.data])

    @property
    def inset(self) -> np.ndarray:
        """Inset of each source's window."""
        inset = np.array([0, *self.problem.folded.insets], np.int32)
        return self.padded(inset[-np.minimum(self.problem.extent, 0)])

    @property
    def n(self) -> int:
        return len(self.problem.scene)

    @property
    def cells(self) -> np.ndarray | None:
        shape = (self.layout.n_source, N_BAND, self.layout.n_cell)
        return np.full(shape, np.nan, np.float32) if self.layout.n_cell else None


@pytest.fixture(scope="module", params=[False, True], ids=["compact", "extended"])
def case(request: pytest.FixtureRequest, toy_deblender: Deblender, wide_toy_deblender: Deblender, toy_model: ToyModel,
         wide_toy_model: ToyModel) -> Case:
    """Two scenes with masks; of the wide model, two thirds of the sources are extended and stick out."""
    mask = np.random.default_rng(0).random((N_BAND, 48, 52)) < 0.1
    deblender, model = (wide_toy_deblender, wide_toy_model) if request.param else (toy_deblender, toy_model)
    problem, latent, _ = toy_problem(deblender, model, 2, mask=[mask, mask])
    if request.param:
        problem = dataclasses.replace(problem, extent=(np.arange(len(latent)) % 3 > 0).astype(np.int8))
    else:
        problem = dataclasses.replace(problem, extent=-(np.arange(len(latent)) % 2).astype(np.int8))
    every = make_layout(problem)
    extended = np.zeros(every.n_source, np.int32)
    extended[: len(latent)] = problem.extended
    return Case(problem, every, decoding.decode(problem, latent), extended)


def close(result: np.ndarray, expected: np.ndarray, tolerance: float = FLOAT32) -> None:
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def stamps_of(case: Case) -> tuple[np.ndarray, np.ndarray | None]:
    """By the reference."""
    rows = case.padded(case.coefficients)[:, :, None]
    stamps = np.zeros((*rows.shape[:3], case.layout.n_window_pixel), np.float32)
    reference.product(case.layout, rows, case.tables("phi"), stamps)
    reference.trim_stamps(case.layout, case.inset, stamps)
    cells = case.cells
    if cells is not None:
        cells = np.zeros_like(cells)[:, :, None]
        reference.product(case.layout, rows, case.tables("outer"), cells, chosen=case.extended)
        cells = cells[:, :, 0]
    return stamps[:, :, 0], cells


def test_references_are_the_engine(case: Case) -> None:
    problem, layout = case.problem, case.layout
    stamps, cells = stamps_of(case)
    whole = problem.extent >= 0
    close(stamps[: case.n][whole], drawing.stamps(case.coefficients[whole], problem.folded.of(0)).reshape(
        whole.sum(), N_BAND, -1))
    image = np.zeros(layout.n_pixel, np.float32)
    reference.render(layout, stamps, cells, case.extended, None, image)
    model = objective.render(problem, case.coefficients)
    close(image * case.inside, case.flat(model) * case.inside)
    projected = np.zeros((layout.n_source, N_BAND, layout_n_basis(case)), np.float32)
    image = case.flat(model)
    reference.project(layout, image, case.tables("phi_t"), case.tables("outer_t"), case.extended, case.inset,
                      case.cells, stamps, projected)
    close(projected[: case.n], objective.project(problem, model))
    for temper, robust in ((0.0, 1), (0.1, 1), (0.1, 0)):
        engine = dataclasses.replace(problem, robust=bool(robust))
        likely = objective.likelihood(engine, model, temper=temper)
        weights, rest = objective.weighted_residual(engine, likely, model)
        out = [np.zeros(layout.n_pixel, np.float32) for _ in range(2)]
        data, weight = case.flat(problem.data), case.flat(problem.weight)
        error = max(temper, constants.MODEL_ERROR)
        reference.residual(layout, data, weight, image, temper, error, CLIP, robust, *out)
        close(out[0] * case.inside, case.flat(weights) * case.inside, 1e-5)
        close(out[1] * case.inside, case.flat(rest) * case.inside, 1e-5)
        trial = [0.9 * m for m in model]
        losses = np.zeros((layout.n_blend, 2))
        reference.loss(layout, data, weight, image, case.flat(trial), temper, error, CLIP, robust, losses)
        none = np.zeros(case.n)
        for k, m in enumerate((model, trial)):
            state = State(none, None, case.coefficients, m, none, none)  # type: ignore[arg-type]
            close(losses[: problem.n_blend, k], objective.by_blend(engine, likely, state), 1e-5)
    wbar = np.zeros((layout.n_source, N_BAND))
    profile = np.stack(problem.profile).reshape(1, N_BAND, -1)
    reference.mean_weight(layout, case.flat(problem.weight), profile, case.inset, wbar)
    close(wbar[: case.n], curvature.mean_weight(problem, problem.weight))


def layout_n_basis(case: Case) -> int:
    return case.coefficients.shape[2]


@needs_shim
def test_product(case: Case) -> None:
    rng = np.random.default_rng(0)
    n, n_basis = case.layout.n_source, layout_n_basis(case)
    for n_row, table in ((1, case.tables("phi")), (5, case.tables("gram")), (1, case.tables("outer"))):
        if table is None:
            continue
        rows = rng.normal(size=(n, N_BAND, n_row, n_basis)).astype(np.float32)
        out = rng.normal(size=(n, N_BAND, n_row, table.shape[-1])).astype(np.float32)
        for options in ({}, {"accumulate": True}, {"chosen": (np.arange(n) % 2).astype(np.int32)},
                        {"slot": np.arange(n, dtype=np.int32)[::-1].copy()}):
            device_options = {k: ShimDevice().upload(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
            expected = out.copy()
            reference.product(case.layout, rows, table, expected, **options)
            results = [run(ShimDevice(reverse=r), launch.product, case.layout, rows, table, out, outputs=(2,),
                           **device_options)[0] for r in (False, True)]
            np.testing.assert_array_equal(*results)
            close(results[0], expected)


@needs_shim
def test_product_of_several_bases_and_rows_alone() -> None:
    """Tiles of two bases; a row's bits do not depend on the rows beside it."""
    rng = np.random.default_rng(1)
    n, n_inner, n_column = 150, 37, 141
    basis = rng.integers(0, 2, n).astype(np.int32)
    rows = rng.normal(size=(n, 2, 1, n_inner)).astype(np.float32)
    table = rng.normal(size=(2, 2, n_inner, n_column)).astype(np.float32)
    every = plain_layout(n, basis, row_tiles(basis, np.arange(n), n, 2))
    few = plain_layout(n, basis, row_tiles(basis, np.array([3, 77]), n, 2))
    out = np.full((n, 2, 1, n_column), np.nan, np.float32)
    expected = out.copy()
    reference.product(every, rows, table, expected)
    [result] = run(ShimDevice(), launch.product, every, rows, table, out, outputs=(2,))
    close(result, expected)
    [alone] = run(ShimDevice(), launch.product, few, rows, table, out, outputs=(2,))
    np.testing.assert_array_equal(alone[[3, 77]], result[[3, 77]])
    assert np.isnan(np.delete(alone, [3, 77], 0)).all()


def plain_layout(n: int, basis: np.ndarray, row_tile: np.ndarray) -> Any:
    none = np.zeros(0, np.int32)
    return Layout(n, 2, 0, 0, 1, 0, 1, none, none, none, none, basis, row_tile, *[none] * 9)


@needs_shim
def test_render(case: Case) -> None:
    stamps, cells = stamps_of(case)
    rng = np.random.default_rng(0)
    background = rng.normal(size=case.layout.n_pixel).astype(np.float32)
    out = np.zeros(case.layout.n_pixel, np.float32)
    for before in (None, background):
        [(result, expected)] = both(launch.render, reference.render, case.layout, stamps, cells, case.extended, before,
                                    out, outputs=(4,))
        close(result, expected)


@needs_shim
def test_project(case: Case) -> None:
    image = np.random.default_rng(0).normal(size=case.layout.n_pixel).astype(np.float32)
    out = np.zeros((case.layout.n_source, N_BAND, layout_n_basis(case)), np.float32)
    tables = case.tables("phi_t"), case.tables("outer_t")
    stamps, _ = stamps_of(case)
    [(result, expected)] = both(launch.project, reference.project, case.layout, image, *tables, case.extended,
                                case.inset, case.cells, stamps, out, outputs=(7,))
    close(result, expected)


@needs_shim
def test_project_is_the_adjoint_of_render(case: Case) -> None:
    rng = np.random.default_rng(0)
    device, layout = ShimDevice(), case.layout
    on_device = layout.on(device.upload)
    rows = case.padded(rng.normal(size=case.coefficients.shape).astype(np.float32))
    image = (case.inside * rng.normal(size=layout.n_pixel)).astype(np.float32)
    put, extended = device.upload, device.upload(case.extended)
    stamps = device.empty((layout.n_source, N_BAND, 1, layout.n_window_pixel), np.float32)
    cells = None if case.cells is None else device.empty((layout.n_source, N_BAND, 1, layout.n_cell), np.float32)
    launch.product(device, on_device, put(rows[:, :, None]), put(case.tables("phi")), stamps)
    if cells is not None:
        launch.product(device, on_device, put(rows[:, :, None]), put(case.tables("outer")), cells, chosen=extended)
    drawn = put(np.zeros(layout.n_pixel, np.float32))
    launch.render(device, on_device, stamps, cells, extended, None, drawn)
    back = put(np.zeros_like(rows))
    outer_t = case.tables("outer_t")
    launch.project(device, on_device, put(image), put(case.tables("phi_t")), None if outer_t is None else put(outer_t),
                    extended, put(case.inset), cells, stamps, back)
    left = (device.download(drawn).astype(np.float64) * image).sum()
    right = (rows.astype(np.float64) * device.download(back)).sum()
    assert abs(left - right) < 1e-5 * np.linalg.norm(device.download(drawn)) * np.linalg.norm(image)


@needs_shim
@pytest.mark.parametrize(("temper", "robust"), [(0.0, 1), (0.1, 1), (0.1, 0), (0.0, 0)])
def test_residual_and_loss(case: Case, temper: float, robust: int) -> None:
    layout, problem = case.layout, case.problem
    model = objective.render(problem, case.coefficients)
    data, weight, image = (case.flat(c) for c in (problem.data, problem.weight, model))
    data[::97] += 50  # light that no source explains
    options = (temper, max(temper, 0.05), CLIP, robust)
    out = np.zeros_like(data)
    for result, expected in both(launch.residual, reference.residual, layout, data, weight, image, *options, out, out,
                                 outputs=(7, 8)):
        close(result, expected, 1e-5)
    losses = np.full((layout.n_blend, 2), -7.0)
    [(result, expected)] = both(
        launch.loss, reference.loss, layout, data, weight, image, (0.9 * image), *options, losses, outputs=(8,)
    )
    close(result, expected, 1e-5)
    assert (result[problem.n_blend :] == -7).all()


@needs_shim
def test_mean_weight(case: Case) -> None:
    profile = np.stack(case.problem.profile).reshape(1, N_BAND, -1)
    out = np.full((case.layout.n_source, N_BAND), -7.0)
    [(result, expected)] = both(launch.mean_weight, reference.mean_weight, case.layout,
                                case.flat(case.problem.weight), profile, case.inset, out, outputs=(3,))
    close(result, expected)
    assert (result[case.n :] == -7).all()
