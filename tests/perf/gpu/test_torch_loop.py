"""PyTorch's descent and the kernels' are the CPU's: what is compared for speed gives the same answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from shim import ShimDevice, missing
from toy_scenes import VARIANCE, make_scene

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch

from deblendrt.engine.compute.cuda.streams import DevicePool
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.model.bundle import load_bundle
from deblendrt.engine.solve import descent as engine_descent
from deblendrt.engine.solve import joint_step, objective
from deblendrt.engine.solve.curvature import columns, inverse
from deblendrt.engine.solve.prior import prior_curvature
from perf.gpu import descent_alone
from perf.gpu.descent_alone import TEMPERS, Start, make_start, repeated
from perf.gpu.torch_graph import TorchGraph
from perf.gpu.torch_loop import TorchDescent

SHAPE = (48, 52)


@pytest.fixture(scope="module")
def start(toy_deblender: Deblender, toy_model: Any) -> Start:
    """Three scenes of one size, with blends of several and sources alone."""
    places = [[[14, 16], [19, 18], [24, 25], [41, 35]], [[25, 25]], [[12, 30], [18, 33], [40, 10]]]
    images, centers, _ = zip(*(make_scene(toy_deblender, toy_model, p, SHAPE, seed=k) for k, p in enumerate(places)),
                             strict=True)
    return make_start(toy_deblender, list(images), list(centers), VARIANCE)


@pytest.fixture(scope="module")
def expected(start: Start) -> tuple[Any, np.ndarray, np.ndarray]:
    """State and objective of the CPU's descent, and what the posterior allows each log flux."""
    problem, state, _ = engine_descent.descend(start.problem, start.latent, start.floor, list(TEMPERS))
    likely = objective.likelihood(problem, state.model)
    weights, _ = objective.weighted_residual(problem, likely, state.model)
    alone = [np.array([i]) for i in range(start.n_source)]
    near = joint_step.couplings(problem, columns(state), weights, alone)
    sigma = np.sqrt(inverse(near.block + prior_curvature(problem)).diagonal(axis1=1, axis2=2))[:, : problem.n_band]
    return state, objective.by_scene(problem, likely, state), sigma


def assert_same(start: Start, latent: np.ndarray, expected: tuple[Any, np.ndarray, np.ndarray]) -> None:
    state, loss, sigma = expected
    problem = start.problem
    assert (np.abs(latent - state.latent)[:, : problem.n_band] < 1e-2 * sigma).all()
    found = objective.evaluate(problem, latent)
    assert np.abs(objective.by_scene(problem, objective.likelihood(problem, found.model), found) - loss).max() < 0.1


@pytest.mark.parametrize("bundle", ["lsst", "hsc"])
@pytest.mark.parametrize("name", ["decode_jacobian", "log_prior"])
def test_graphs(bundle: str, name: str) -> None:
    loaded = load_bundle(bundle)
    golden = np.load(loaded.path / "golden.npz")
    latent = golden[f"{name}.in.latent"]
    graph = TorchGraph(loaded.read(f"{name}.onnx"), len(latent))
    for key, found in zip(graph.outputs, graph(torch.from_numpy(latent)), strict=True):
        np.testing.assert_allclose(found.numpy(), golden[f"{name}.out.{key}"], rtol=2e-5, atol=2e-5)


def test_same_answers(start: Start, expected: Any) -> None:
    descent = TorchDescent(start.problem, start.latent, start.floor, list(TEMPERS), "cpu")
    place = descent.run()
    assert_same(start, place.state.latent.numpy(), expected)
    assert torch.equal(descent.run().state.latent, place.state.latent)  # from the start again


def test_not_robust(start: Start) -> None:
    problem = dataclasses.replace(start.problem, robust=False)
    _, state, progress = engine_descent.descend(problem, start.latent, start.floor, list(TEMPERS[:4]))
    place = TorchDescent(problem, start.latent, start.floor, list(TEMPERS[:4]), "cpu").run()
    np.testing.assert_allclose(place.state.latent.numpy(), state.latent, atol=1e-3)
    np.testing.assert_allclose(place.left.numpy(), progress.left, rtol=1e-2, atol=1e-3)


def test_what_it_cannot_do_is_refused(start: Start) -> None:
    star = np.ones(start.n_source, bool)
    with pytest.raises(ValueError, match="galaxies alone"):
        TorchDescent(dataclasses.replace(start.problem, star=star), start.latent, start.floor, [0.0], "cpu")


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_ours(start: Start, expected: Any, toy_deblender: Deblender) -> None:
    pool = DevicePool.open(toy_deblender.bundle, ShimDevice, 1)
    with pool.stream() as work:
        descent, figures = descent_alone.ours(work, start, n_repeat=1)
        assert_same(start, descent.fetch(descent.state.latent), expected)
    assert figures["n_source"] == start.n_source
    assert figures["peak_gb"] > 0


def test_repeated_scenes_are_the_scenes_again(start: Start) -> None:
    twice = repeated(start, 2 * start.n_source)
    n = start.n_source
    assert twice.n_source == 2 * n
    assert twice.problem.n_blend == 2 * start.problem.n_blend
    np.testing.assert_array_equal(twice.problem.blend[n:], start.problem.blend + start.problem.n_blend)
    np.testing.assert_array_equal(twice.problem.scene[n:], start.problem.scene + 3)
    first = repeated(start, 1)
    place = TorchDescent(first.problem, first.latent, first.floor, [0.1], "cpu").run()
    whole = TorchDescent(twice.problem, twice.latent, twice.floor, [0.1], "cpu").run()
    np.testing.assert_allclose(whole.state.latent[n : n + 4], place.state.latent, atol=1e-5)
