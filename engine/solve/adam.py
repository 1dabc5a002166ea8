"""Adam, the published method (Biswas et al., A&A 700, A129, 2025): 200 iterations, rate 0.075, times 0.8 every 30."""

from __future__ import annotations

import dataclasses

import numpy as np

from deblendrt.engine.compute import decoding
from deblendrt.engine.compute.problem import Problem, State
from deblendrt.engine.solve import constants, objective
from deblendrt.engine.solve.curvature import extents
from deblendrt.engine.solve.prior import prior_terms
from deblendrt.engine.units import DoubleArray


def adam(problem: Problem, latent: DoubleArray, floor: DoubleArray, n_iteration: int) -> tuple[Problem, State]:
    """Run Adam with the published step sizes; parameters as in `descent.solve`."""
    n_band = problem.n_band
    first, second = np.zeros_like(latent), np.zeros_like(latent)
    for iteration in range(n_iteration):
        coefficients = decoding.decode(problem, latent)
        if iteration == int(constants.TEMPERED_SHARE * n_iteration):
            problem = dataclasses.replace(problem, extent=extents(problem, coefficients))
        model = objective.render(problem, coefficients)
        likely = objective.likelihood(problem, model, error=objective.temper(iteration, n_iteration))
        _, residual = objective.weighted_residual(problem, likely, model)
        pulled = decoding.decode_pullback(problem, latent, objective.project(problem, residual))
        uphill = -(pulled + prior_terms(problem, latent)[1])
        rate, (first_share, second_share), (first_scale, second_scale) = adam_rates(iteration)
        first += first_share * (uphill - first)
        second += second_share * (uphill**2 - second)
        latent = latent - rate * first / first_scale / (np.sqrt(second / second_scale) + constants.ADAM_EPSILON)
        latent[:, :n_band] = np.maximum(latent[:, :n_band], floor)
        offset = latent[:, n_band : n_band + 2]
        np.clip(offset, problem.offset0 - constants.MAX_DRIFT, problem.offset0 + constants.MAX_DRIFT, out=offset)
    return problem, objective.evaluate(problem, latent)


def adam_rates(iteration: int) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Return the rate, and for the two running means 1 - beta and 1 - beta^(t + 1), at iteration t from 0."""
    rate = constants.ADAM_RATE * constants.ADAM_RATE_FACTOR ** (iteration // constants.ADAM_RATE_EVERY)
    first_beta, second_beta = constants.ADAM_BETA
    return rate, constants.ADAM_SHARE, (1 - first_beta ** (iteration + 1), 1 - second_beta ** (iteration + 1))
