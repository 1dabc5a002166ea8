"""Adam: kernel against reference, reference against the solver."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kernels import both, needs_shim
from problems import blends_only, layout_of, toy_problem
from toy_model import ToyModel

from deblendrt.cuda.kernels.steps.launch import adam
from deblendrt.engine.compute import decoding
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.compute.reference import steps as reference_steps
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.solve import adam as published
from deblendrt.engine.solve import constants, objective, prior


def options(iteration: int) -> dict:
    """The published constants."""
    return {"rate": 0.075 * 0.8 ** (iteration // 30), "share": (0.1, 0.001), "epsilon": 1e-8,
            "correction": (1 - 0.9 ** (iteration + 1), 1 - 0.999 ** (iteration + 1)), "max_drift": constants.MAX_DRIFT}


def downhill(problem: Problem, latent: np.ndarray, tau: float) -> np.ndarray:
    """Minus the gradient, as the solver's loop has it."""
    model = objective.render(problem, decoding.decode(problem, latent))
    likely = objective.likelihood(problem, model, error=tau)
    _, residual = objective.weighted_residual(problem, likely, model)
    pulled = decoding.decode_pullback(problem, latent, objective.project(problem, residual))
    return pulled + prior.prior_terms(problem, latent)[1]


def test_reference_is_the_solver(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """Over a dozen iterations; the floor and the limit of the drift are met."""
    problem, start, floor = toy_problem(toy_deblender, toy_model, 2)
    start[:, 3:5] = problem.offset0 + constants.MAX_DRIFT - 0.05
    floor = np.where(np.arange(len(start))[:, None] % 2, start[:, :3] - 0.01, floor)
    n_iteration = 12
    _, expected = published.adam(problem, start, floor, n_iteration)
    layout = dataclasses.replace(layout_of(problem), n_source=len(start))
    latent, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for k in range(n_iteration):
        slope = downhill(problem, latent, objective.temper(k, n_iteration))
        reference_steps.adam(layout, slope, floor, problem.offset0, first, second, latent, **options(k))
    np.testing.assert_allclose(latent, expected.latent, rtol=1e-9)


@needs_shim
@pytest.mark.parametrize("n_latent", [8, 43])
def test_kernel(n_latent: int) -> None:
    layout = blends_only([1, 0, 64, 20])
    rng = np.random.default_rng(0)
    n = layout.n_source
    slope, first, latent = rng.standard_normal((3, n, n_latent))
    floor = latent[:, :3] - rng.uniform(0, 0.1, (n, 3))
    floor[::2] = -np.inf
    offset0 = latent[:, 3:5] + rng.uniform(-1, 1, (n, 2))
    arguments = slope, floor, offset0, 0.1 * first, 0.01 * first**2, latent
    results = both(adam, reference_steps.adam, layout, *arguments, outputs=(3, 4, 5), **options(31))
    real = layout.scene >= 0
    for result, expected in results:
        np.testing.assert_allclose(result[real], expected[real], rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(results[2][0][~real], latent[~real])
