"""Point sources: kernel against reference, reference against the engine's decoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import blends_only, layout_of, pad, toy_problem
from shim import ShimDevice
from toy_model import ToyModel

from deblendrt.cuda.kernels.latents.launch import stars
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute import decoding
from deblendrt.engine.compute.reference import latents as reference_latents
from deblendrt.engine.deblender import Deblender

OUTPUTS = 5, 6, 7, 8


def draw(layout: Layout, n_component: int, n_basis: int, n_shape: int, side: int) -> list[Any]:
    """Galaxies and stars. The first source is a star, and so is padding."""
    rng = np.random.default_rng(0)
    n, n_band = layout.n_source, layout.n_band
    star = (rng.random(n) < 0.4).astype(np.int32)
    star[0], star[layout.scene < 0] = 1, 1
    y, x = np.mgrid[:side, :side] - side // 2
    core = np.exp(-(x**2 + y**2) / 6) + 0.1 * rng.standard_normal((n_basis, side, side))
    latent = 0.5 * rng.standard_normal((n, n_band + 2 + n_shape))
    shapes = ((n, n_component, n_basis), (n, 2 + n_shape, n_component, n_basis), (n, n_component, n_band),
              (n, n_shape, n_component, n_band))
    return [latent, star, core, rng.uniform(0.5, 1, n_basis), np.float64(1.4),
            *(rng.standard_normal(s).astype(np.float32) for s in shapes)]


def test_reference_is_the_engine(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, latent, _ = toy_problem(toy_deblender, toy_model, 8)
    problem = dataclasses.replace(problem, star=np.random.default_rng(0).random(len(latent)) < 0.4)
    assert 0 < problem.star.sum() < len(latent)
    core, sums = decoding.star_core(problem.bundle)
    results = [pad(a) for a in problem.runtime.decode_jacobian(latent)]
    reference_latents.stars(layout_of(problem), pad(latent), pad(problem.star.astype(np.int32)), core, sums,
                            np.float64(problem.bundle.reference_psf_sigma), *results)
    for result, expected in zip(results, decoding.decode_jacobian(problem, latent), strict=True):
        np.testing.assert_allclose(result[: len(latent)], expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
        assert not result[len(latent) :].any()


@needs_shim
@pytest.mark.parametrize(("n_band", "n_component", "n_basis", "n_shape", "side"),
                         [(3, 2, 15, 3, 17), (6, 2, 128, 10, 21), (1, 3, 131, 1, 7)])
def test_kernel(n_band: int, n_component: int, n_basis: int, n_shape: int, side: int) -> None:
    layout = dataclasses.replace(blends_only([5, 0, 6]), n_band=n_band)
    arguments = draw(layout, n_component, n_basis, n_shape, side)
    results = both(stars, reference_latents.stars, layout, *arguments, outputs=OUTPUTS)
    others = (arguments[1] == 0) | (layout.scene < 0)
    for (result, expected), before in zip(results, arguments[5:], strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(result[others], before[others])


@needs_shim
def test_bits_do_not_depend_on_the_batch() -> None:
    arguments = draw(blends_only([1] * 6), 2, 15, 3, 17)
    together = run(ShimDevice(), stars, blends_only([1] * 6), *arguments, outputs=OUTPUTS)
    for i in range(6):
        mine = [a if k in (2, 3, 4) else a[i : i + 1] for k, a in enumerate(arguments)]
        alone = run(ShimDevice(), stars, blends_only([1]), *mine, outputs=OUTPUTS)
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a[0], b[i])
