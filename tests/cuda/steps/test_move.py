"""Steps and their limits: kernel against reference, reference against the solver."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import layout_of, pad, toy_problem
from shim import ShimDevice
from toy_model import N_BAND, ToyModel

from deblendrt.cuda.kernels.steps.launch import move
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.compute.reference import steps as reference_steps
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.solve import constants, descent

LIMITS = {"min_flux_factor": constants.MIN_FLUX_FACTOR, "max_flux_factor": constants.MAX_FLUX_FACTOR,
          "max_offset_step": constants.MAX_OFFSET_STEP, "max_drift": constants.MAX_DRIFT,
          "max_shape_step": constants.MAX_SHAPE_STEP}

Case = tuple[Problem, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def case(toy_deblender: Deblender, toy_model: ToyModel) -> Case:
    """Steps from zero to far beyond every limit. Some fluxes meet their floor, some have none."""
    problem, latent, _ = toy_problem(toy_deblender, toy_model, 8)
    rng = np.random.default_rng(0)
    step = rng.standard_normal(latent.shape) * 10.0 ** rng.integers(-3, 2, (len(latent), 1))
    step[0] = 0.0
    floor = latent[:, :N_BAND] - rng.uniform(0, 1, (len(latent), N_BAND))
    floor[::3, 1] = -np.inf
    return problem, latent, step, floor


def test_reference_is_the_solver(case: Case) -> None:
    problem, latent, step, floor = case
    out = np.empty_like(latent)
    reference_steps.move(layout_of(problem), latent, step, floor, problem.offset0, out, **LIMITS)
    np.testing.assert_array_equal(out, descent.move(problem, latent, step, floor))


@needs_shim
def test_kernel(case: Case) -> None:
    problem, latent, step, floor = case
    layout, n = layout_of(problem), len(latent)
    arguments = [pad(a) for a in (latent, step, floor, problem.offset0)]
    [(result, expected)] = both(move, reference_steps.move, layout, *arguments, np.zeros_like(arguments[0]),
                                outputs=(4,), **LIMITS)
    np.testing.assert_allclose(result[:n], expected[:n], rtol=1e-14, atol=1e-14)
    assert not result[n:].any()  # padding is left alone

    def in_place(device: ShimDevice, layout: object, latent: object, *rest: object, **limits: float) -> None:
        move(device, layout, latent, *rest, latent, **limits)  # type: ignore[arg-type]

    [again] = run(ShimDevice(), in_place, layout, *arguments, outputs=(0,), **LIMITS)
    np.testing.assert_array_equal(again[:n], result[:n])
