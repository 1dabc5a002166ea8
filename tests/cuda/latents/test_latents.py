"""Kernels on factored derivatives against their references, and the references against the engine."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from kernels import needs_shim
from shim import ShimDevice

from deblendrt.cuda.kernels.latents import launch as latents_launch
from deblendrt.cuda.kernels.linear import launch as linear_launch
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.cuda.layouts import row_tiles
from deblendrt.engine.compute.problem import State
from deblendrt.engine.compute.reference import latents as reference_latents
from deblendrt.engine.compute.reference import linear as reference_linear
from deblendrt.engine.measure import uncertainty
from deblendrt.engine.model.networks import FactoredJacobian
from deblendrt.engine.solve import curvature, objective

SPECIFICATION = {"combine": reference_latents, "pull": reference_latents,
                 "columns": reference_latents, "blocks": reference_linear}
FLOAT32 = 3e-6  # of the largest value of a row


class Case(NamedTuple):
    jacobian: FactoredJacobian
    latent: np.ndarray
    step: np.ndarray
    coefficients: np.ndarray
    g: np.ndarray
    layout: Layout
    few: Layout


@pytest.fixture(params=[(9, 3, 3, 2, 15), (5, 6, 10, 2, 128), (3, 2, 40, 4, 131)],
                ids=["toy", "lsst", "many"])
def case(request: pytest.FixtureRequest) -> Case:
    n, n_band, n_shape, n_component, n_basis = request.param
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=(n, *shape)).astype(np.float32)

    jacobian = FactoredJacobian(draw(n_component, n_basis), draw(n_shape + 2, n_component, n_basis),
                                draw(n_component, n_band), draw(n_shape, n_component, n_band))
    latent, step = (rng.normal(size=(n, n_band + 2 + n_shape)) for _ in range(2))
    coefficients = objective.mix_coefficients(latent[:, :n_band], jacobian.maps, jacobian.mix)
    return Case(jacobian, latent, step, coefficients, draw(n_band, n_basis), layout_of(n, np.arange(n)),
                layout_of(n, np.array([1])))


def layout_of(n: int, rows: np.ndarray) -> Layout:
    none = np.zeros(0, np.int32)
    tiles = row_tiles(np.zeros(n, np.int32), rows, n, 1)
    return Layout(n, 1, 0, 0, 1, 0, 1, none, none, none, none, none, tiles, *[none] * 9)


def close(result: np.ndarray, expected: np.ndarray) -> None:
    scale = np.abs(expected).reshape(len(expected), -1).max(1).reshape(-1, *[1] * (expected.ndim - 1))
    assert (np.abs(result - expected) <= FLOAT32 * scale).all()


def on_shim(kernel: Any, layout: Layout | None, *arguments: Any) -> np.ndarray:
    """The last argument, after a launch in both orders of blocks."""
    results = []
    for reverse in (False, True):
        device = ShimDevice(reverse=reverse)
        uploaded = [device.upload(a) if isinstance(a, np.ndarray) else a for a in arguments]
        kernel(device, *([] if layout is None else [layout.on(device.upload)]), *uploaded)
        results.append(device.download(uploaded[-1]))
    np.testing.assert_array_equal(*results)
    return results[0]


def arguments(case: Case) -> dict[str, tuple[Any, ...]]:
    n, n_band, n_basis = case.coefficients.shape
    n_column = case.jacobian.d_maps.shape[1] + 1
    add = np.random.default_rng(1).normal(size=case.latent.shape)
    state = (*case.jacobian, case.coefficients, case.latent)
    zeros = np.zeros(case.coefficients.shape, np.float32)
    return {
        "combine": (case.latent, case.jacobian.maps, case.jacobian.mix, zeros),
        "pull": (case.layout, *state, case.g, add, np.zeros_like(case.latent)),
        "pull alone": (case.layout, *state, case.g, None, np.zeros_like(case.latent)),
        "columns": (*state, np.zeros((n, n_band, n_column, n_basis), np.float32)),
    }


def state_of(case: Case) -> State:
    none = np.zeros(len(case.latent))
    return State(case.latent, case.jacobian, case.coefficients, [], none, none)


def test_references_are_the_engine(case: Case) -> None:
    state, prepared = state_of(case), arguments(case)
    pulled = objective.pull(state, case.g)
    expected = {"combine": case.coefficients, "pull": pulled + prepared["pull"][-2], "pull alone": pulled,
                "columns": curvature.columns(state)}
    for name, every in prepared.items():
        getattr(SPECIFICATION[name.split()[0]], name.split()[0])(*every)
        close(every[-1], expected[name])


def check(case: Case, kernel: Any, name: str) -> None:
    """A kernel against its reference; a source alone has the same bits, and the others are left alone."""
    every = arguments(case)[name]
    layout, rest = (every[0], every[1:]) if isinstance(every[0], Layout) else (None, every)
    result = on_shim(kernel, layout, *rest)
    getattr(SPECIFICATION[name.split()[0]], name.split()[0])(*every)
    close(result, every[-1])
    if layout is not None:
        alone = on_shim(kernel, case.few, *rest[:-1], np.full_like(every[-1], -7))
        np.testing.assert_array_equal(alone[1], result[1])
        assert (np.delete(alone, 1, 0) == -7).all()


@needs_shim
def test_combine(case: Case) -> None:
    check(case, latents_launch.combine, "combine")


@needs_shim
def test_pull(case: Case) -> None:
    check(case, latents_launch.pull, "pull")
    check(case, latents_launch.pull, "pull alone")


@needs_shim
def test_columns(case: Case) -> None:
    check(case, latents_launch.columns, "columns")


@needs_shim
def test_pull_is_the_adjoint_of_columns(case: Case) -> None:
    n_band = case.latent.shape[1] - curvature.columns(state_of(case)).shape[2] + 1
    columns = on_shim(latents_launch.columns, None, *arguments(case)["columns"]).astype(np.float64)
    pushed = case.step[:, :n_band, None] * columns[:, :, 0] + np.einsum(
        "nc,nbck->nbk", case.step[:, n_band:], columns[:, :, 1:])
    pulled = on_shim(latents_launch.pull, case.layout, *arguments(case)["pull alone"][1:])
    left, right = (pushed * case.g).sum((1, 2)), (case.step * pulled).sum(1)
    scale = np.linalg.norm(pushed, axis=(1, 2)) * np.linalg.norm(case.g, axis=(1, 2))
    assert (np.abs(left - right) < 1e-5 * scale).all()


@needs_shim
def test_blocks(case: Case) -> None:
    rng = np.random.default_rng(2)
    rows = curvature.columns(state_of(case))
    n, n_band = rows.shape[:2]
    n_latent = case.latent.shape[1]
    through = (rows * rng.uniform(0.5, 1, rows.shape[3])).astype(np.float32)
    wbar, prior = rng.uniform(size=(n, n_band)), rng.normal(size=(n, n_latent, n_latent))
    out, expected = np.zeros_like(prior), np.zeros_like(prior)
    reference_linear.blocks(rows, through, wbar, prior, expected)
    inner = np.einsum("nbck,nbdk,nb->nbcd", through.astype(np.float64), rows, wbar)
    close(expected - prior, np.stack([uncertainty.by_latent(i) for i in inner]))
    result = on_shim(linear_launch.blocks, None, rows, through, wbar, prior, out)
    close(result, expected)
    few = [a[:1] for a in (rows, through, wbar, prior, out)]
    np.testing.assert_array_equal(on_shim(linear_launch.blocks, None, *few)[0], result[0])
