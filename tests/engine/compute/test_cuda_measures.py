"""Measures of single sources on the shim, against the same measures on the CPU."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
from shim import ShimDevice, missing
from toy_model import N_BAND, ToyModel, make_problem
from toy_scenes import make_scene

from deblendrt.engine.compute import decoding
from deblendrt.engine.compute.cuda.streams import DevicePool
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.measure import fit_quality, light_shares, systematic_error
from deblendrt.engine.solve import descent, objective, start

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

ANCHORS = ([[14, 16], [19, 18], [24, 25], [41, 35]], [[2, 3], [6, 5], [24, 25], [50, 46]])  # a pair, then at the corner


class Engine(NamedTuple):
    """A problem, its twin on a device, and its models."""

    problem: Problem
    on_device: Problem
    latent: np.ndarray
    coefficients: np.ndarray


@pytest.fixture(scope="module", params=[False, True], ids=["compact", "extended"])
def engine(request: pytest.FixtureRequest, toy_deblender: Deblender, wide_toy_deblender: Deblender,
           toy_model: ToyModel, wide_toy_model: ToyModel) -> Engine:
    """Two scenes with masks, one without a band; of the wide model, two thirds of the sources are extended and stick
    out."""
    mask = np.random.default_rng(0).random((2, N_BAND, 48, 52)) < 0.1
    mask[1, 0] = True
    deblender, model = (wide_toy_deblender, wide_toy_model) if request.param else (toy_deblender, toy_model)
    scenes = [make_scene(deblender, model, anchors, seed=k) for k, anchors in enumerate(ANCHORS)]
    problem, latent, _ = make_problem(deblender, *([s[k] for s in scenes] for k in (0, 1)), mask=list(mask))
    problem = dataclasses.replace(problem, extent=(np.arange(len(latent)) % 3 > 0).astype(np.int8) if request.param else
                                  problem.extent)
    coefficients = decoding.decode(problem, latent)
    pool = DevicePool.open(deblender.bundle, ShimDevice, 1)
    with pool.stream() as work:
        return Engine(problem, dataclasses.replace(problem, device=work), latent, coefficients)


def test_share_is_the_engines(engine: Engine) -> None:
    flux = np.exp(engine.latent[:, :N_BAND])
    expected = light_shares.share(engine.problem, engine.coefficients, flux)
    result = light_shares.share(engine.on_device, engine.coefficients, flux)
    measured = engine.problem.measured
    assert not measured.all()
    off = np.abs(result.redistributed_flux - expected.redistributed_flux)
    assert (off < 1e-4 * expected.redistributed_flux_err)[measured].all()
    for field in dataclasses.fields(light_shares.Sharing):
        value = getattr(expected, field.name)
        np.testing.assert_allclose(getattr(result, field.name), value, rtol=1e-4, atol=1e-5 * np.nanmax(np.abs(value)))


def test_misfit_is_the_engines(engine: Engine) -> None:
    state = objective.evaluate(engine.problem, engine.latent)
    solution = descent.Solution(engine.problem, state, engine.latent, [], [], np.zeros(2))
    expected = systematic_error.misfit(engine.problem, solution)
    result = systematic_error.misfit(engine.on_device, solution)
    assert (expected.significance > systematic_error.SIGNIFICANT_MISFIT).any()
    np.testing.assert_allclose(result.significance, expected.significance, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result.error, expected.error, rtol=1e-4)
    flux = np.exp(engine.latent[:, :N_BAND])
    assert (np.abs(result.hidden - expected.hidden) < 1e-5 * flux).all()
    assert (expected.hidden > 0.01 * flux).any()


@pytest.mark.parametrize("robust", [True, False])
def test_core_statistics_are_the_engines(engine: Engine, robust: bool) -> None:
    problem, on_device = (dataclasses.replace(p, robust=robust) for p in (engine.problem, engine.on_device))
    state = objective.evaluate(problem, engine.latent + 0.3)  # far off
    weights, rest = objective.weighted_residual(problem, objective.likelihood(problem, state.model), state.model)
    solution = descent.Solution(problem, state, engine.latent, weights, rest, np.zeros(2))
    expected = fit_quality.core_statistics(problem, solution)
    result = fit_quality.core_statistics(on_device, solution)
    assert (expected[2] > 0).any() == robust
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-4)
    for a, b in zip(result[1:], expected[1:], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_light_radius_is_the_engines(engine: Engine) -> None:
    expected = start.light_area(engine.problem, engine.coefficients)
    assert (expected > 0).any()
    np.testing.assert_array_equal(start.light_area(engine.on_device, engine.coefficients), expected)
    np.testing.assert_array_equal(*(start.light_radius(p, engine.coefficients) for p in engine[:2]))
