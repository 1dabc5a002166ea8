"""The prior's terms: kernel against reference, reference against the objective."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import blends_only, layout_of, pad, toy_problem
from shim import ShimDevice
from toy_model import ToyModel

from deblendrt.cuda.kernels.prior.launch import prior_terms
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.reference import prior as reference_prior
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.solve import constants, prior

SLACK = {"slack": constants.COLOR_SLACK}
OUTPUTS = 9, 10


def draw(layout: Layout, n_latent: int, seed: int = 0) -> list[Any]:
    """Galaxies and stars. Some of each have all bands, some have none."""
    rng = np.random.default_rng(seed)
    n, n_band = layout.n_source, layout.n_band
    latent, flow = 3 * rng.standard_normal((2, n, n_latent))
    measured = rng.integers(0, 2, (n, n_band), dtype=np.int32)
    measured[::5], measured[1::5] = 1, 0
    return [latent, rng.standard_normal(n).astype(np.float32), flow.astype(np.float32), measured,
            rng.standard_normal((n, 2)), (rng.random(n) < 0.3).astype(np.int32), rng.standard_normal(n_band),
            rng.uniform(0.1, 1, n_band), np.float64(0.3), np.full(n, 7.0), np.full((n, n_latent), 7.0)]


def test_reference_is_the_objective(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, latent, _ = toy_problem(toy_deblender, toy_model, 8)
    n = len(latent)
    rng = np.random.default_rng(0)
    latent = latent + 0.3 * rng.standard_normal(latent.shape)
    measured = rng.random(problem.measured.shape) < 0.6
    measured[:3], measured[3:6] = True, False
    problem = dataclasses.replace(problem, measured=measured, star=rng.random(n) < 0.4)
    flow = [pad(a) for a in problem.runtime.log_prior(latent)]
    out = pad(np.full(n, 7.0), 7.0), pad(np.full(latent.shape, 7.0), 7.0)
    reference_prior.prior_terms(
        layout_of(problem), pad(latent), *flow, pad(measured.astype(np.int32)), pad(problem.offset0),
        pad(problem.star.astype(np.int32)), np.asarray(problem.bundle.mean_color),
        np.asarray(problem.bundle.color_sigma), np.float64(problem.center_sigma), *out, **SLACK)
    for mine, theirs in zip(out, prior.prior_terms(problem, latent), strict=True):
        np.testing.assert_allclose(mine[:n], theirs, rtol=1e-13, atol=1e-13)
        assert (mine[n:] == 7.0).all()


@needs_shim
@pytest.mark.parametrize(("n_band", "n_latent"), [(3, 8), (6, 18), (5, 43)])
def test_kernel(n_band: int, n_latent: int) -> None:
    layout = dataclasses.replace(blends_only([5, 0, 30, 1]), n_band=n_band)
    results = both(prior_terms, reference_prior.prior_terms, layout, *draw(layout, n_latent), outputs=OUTPUTS, **SLACK)
    for result, expected in results:
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)
        assert (result[layout.scene < 0] == 7.0).all()


@needs_shim
def test_bits_do_not_depend_on_the_batch() -> None:
    layout, n_latent = blends_only([1] * 9), 8
    arguments = draw(layout, n_latent)
    together = run(ShimDevice(), prior_terms, layout, *arguments, outputs=OUTPUTS, **SLACK)
    for i in range(9):
        mine = [a[i : i + 1] if k not in (6, 7, 8) else a for k, a in enumerate(arguments)]
        alone = run(ShimDevice(), prior_terms, blends_only([1]), *mine, outputs=OUTPUTS, **SLACK)
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a[0], b[i])
