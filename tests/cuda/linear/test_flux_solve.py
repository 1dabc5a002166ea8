"""Joint linear fluxes: kernels against references, and whole sweeps of references against the engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import blends_only, layout_of, normal_arguments, pad, toy_problem, unit_coefficients
from shim import ShimDevice
from toy_model import N_BAND, ToyModel

from deblendrt.cuda.kernels.linear.launch import flux_coefficients, flux_solve, flux_target, normal, source_pairs
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.reference import linear as reference_linear
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.solve import constants, objective
from deblendrt.engine.solve.joint_fluxes import linear_fluxes

SIZES = [1, 4, 0, 64, 2, 1, 17]


def draw(layout: Layout, seed: int = 0) -> list[np.ndarray]:
    """Matrices of overlapping stamps, two of them the same, some bands without weight, fluxes over decades."""
    rng = np.random.default_rng(seed)
    n, n_band = layout.n_source, layout.n_band
    pairs, start = source_pairs(layout, np.zeros(n, np.int32))
    stamps = (rng.standard_normal((n, n_band, 90)) + 1) * 10.0 ** rng.uniform(-3, 3, (n, 1, 1))
    large = np.argmax(np.diff(layout.blend_start))
    first, second = layout.blend_source[layout.blend_start[large] :][:2]
    stamps[first] = stamps[second]
    stamps[rng.random((n, n_band)) < 0.1] = 0.0
    values = np.einsum("pbk,pbk->pb", stamps[pairs[:, 0]], stamps[pairs[:, 1]])
    truth = rng.standard_normal((n, n_band))
    target = np.zeros((n, n_band))
    for b in range(layout.n_blend):
        rows = layout.blend_source[layout.blend_start[b] : layout.blend_start[b + 1]]
        target[rows] = np.einsum("ibk,jbk,jb->ib", stamps[rows], stamps[rows], truth[rows])
    return [values, pairs, start, target, rng.standard_normal((n, n_band)), np.full((n, n_band), -1.0)]


@needs_shim
@pytest.mark.parametrize("sizes", [SIZES, [1, 1, 1], [7]])
def test_kernel(sizes: list[int]) -> None:
    layout = blends_only(sizes)
    arguments, largest = draw(layout), max(sizes)
    results = both(flux_solve, reference_linear.flux_solve, layout, *arguments, outputs=(4, 5),
                   ridge=constants.FLUX_RIDGE, largest=largest)
    real = layout.scene >= 0
    (flux, expected_flux), (sigma, expected_sigma) = results
    known = np.isfinite(expected_sigma[real])
    np.testing.assert_array_equal(np.isfinite(sigma[real]), known)
    assert ((flux == arguments[4])[real][~known]).all()
    # the condition number is at most 64 / FLUX_RIDGE
    np.testing.assert_allclose(sigma[real][known], expected_sigma[real][known], rtol=1e-9)
    assert (np.abs(flux - expected_flux)[real][known] <= 1e-9 * expected_sigma[real][known]).all()


@needs_shim
def test_bits_do_not_depend_on_the_batch() -> None:
    layout = blends_only(SIZES)
    arguments = draw(layout)
    together = run(ShimDevice(), flux_solve, layout, *arguments, outputs=(4, 5), ridge=constants.FLUX_RIDGE, largest=64)
    rows = layout.blend_source[layout.blend_start[6] : layout.blend_start[7]]
    alone = blends_only([17])
    here = slice(*arguments[2][6:8])
    pairs = alone.blend_source[np.searchsorted(rows, arguments[1][here])]
    part = [arguments[0][here], pairs, np.array([0, len(pairs)], np.int32)]
    part += [np.empty((17, 3)) for _ in range(3)]
    for k in (3, 4, 5):
        part[k][alone.blend_source] = arguments[k][rows]
    single = run(ShimDevice(), flux_solve, alone, *part, outputs=(4, 5), ridge=constants.FLUX_RIDGE, largest=17)
    for a, b in zip(together, single, strict=True):
        np.testing.assert_array_equal(a[rows], b[alone.blend_source])


@needs_shim
def test_rounding_does_not_break_the_factor() -> None:
    """Products near underflow may violate Cauchy-Schwarz: fluxes and errors stay finite."""
    layout = blends_only([2])
    pairs, start = source_pairs(layout, np.zeros(2, np.int32))
    values = np.array([[1e-40], [1.2e-40], [1e-40]]).repeat(3, 1)
    zeros = np.zeros((2, 3))
    flux, sigma = run(ShimDevice(), flux_solve, layout, values, pairs, start, 1e-40 + zeros, zeros, zeros,
                      outputs=(4, 5), ridge=constants.FLUX_RIDGE, largest=2)
    assert np.isfinite(flux).all()
    assert np.isfinite(sigma).all()


def test_a_blend_too_large() -> None:
    with pytest.raises(ValueError, match="a blend of 77 sources"):
        flux_solve(ShimDevice(), blends_only([1]), *[None] * 6, ridge=constants.FLUX_RIDGE, largest=77)  # type: ignore[list-item]


@needs_shim
@pytest.mark.parametrize("shape", [(5, 3, 15), (3, 6, 128), (7, 1, 33)])
def test_coefficients_and_target(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    unit, projected = rng.standard_normal((2, *shape)).astype(np.float32)
    flux = rng.standard_normal(shape[:2])
    expected, out = np.empty_like(unit), np.empty(shape[:2])
    reference_linear.flux_coefficients(unit, flux, expected)
    reference_linear.flux_target(unit, projected, out)
    for reverse in (False, True):
        device = ShimDevice(reverse=reverse)
        result, target = device.empty(shape, np.float32), device.empty(shape[:2], np.float64)
        flux_coefficients(device, device.upload(unit), device.upload(flux), result)
        np.testing.assert_array_equal(device.download(result), expected)
        flux_target(device, device.upload(unit), device.upload(projected), target)
        np.testing.assert_allclose(device.download(target), out, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("on_shim", [False, pytest.param(True, marks=needs_shim)])
@pytest.mark.parametrize("error", [None, 0.05])
def test_sweeps_are_the_engine(toy_deblender: Deblender, toy_model: ToyModel, error: float | None,
                               on_shim: bool) -> None:
    """Images by the engine, all else by the references or by the kernels."""
    mask = np.zeros((N_BAND, 48, 52), bool)
    mask[1] = True  # a band without weight
    problem, latent, _ = toy_problem(toy_deblender, toy_model, 2, mask=[mask, np.zeros_like(mask)])
    unit = unit_coefficients(problem, latent)
    begin = np.exp(latent[:, :N_BAND])
    expected = linear_fluxes(problem, unit, begin, n_sweep=2, error=error)

    weights = problem.weight
    if error is not None:
        model = objective.render(problem, (begin[:, :, None] * unit).astype(np.float32))
        weights, _ = objective.weighted_residual(problem, objective.likelihood(problem, model, error=error), model)
    problem = dataclasses.replace(problem, weight=weights)
    layout = layout_of(problem)
    arguments = normal_arguments(problem, layout, unit)
    pairs, start = source_pairs(layout, arguments[2])
    values = np.zeros((len(arguments[4]), N_BAND))
    flux, sigma, n = pad(begin), pad(np.zeros_like(begin)), len(begin)
    options = {"ridge": constants.FLUX_RIDGE, "largest": int(np.diff(layout.blend_start).max())}
    if on_shim:
        [values] = run(ShimDevice(), normal, layout, *arguments, values, outputs=(5,))
    else:
        reference_linear.normal(layout, *arguments, values)
    for _ in range(2):
        scaled = np.empty_like(unit)
        reference_linear.flux_coefficients(unit, flux[:n], scaled)
        model = objective.render(problem, scaled)
        residual = [w * (y - m) for w, y, m in zip(weights, problem.data, model, strict=True)]
        target = np.zeros_like(flux)
        reference_linear.flux_target(unit, objective.project(problem, residual), target[:n])
        solve = values[: len(pairs)], pairs, start, target, flux, sigma
        if on_shim:
            flux, sigma = run(ShimDevice(), flux_solve, layout, *solve, outputs=(4, 5), **options)
        else:
            reference_linear.flux_solve(layout, *solve, **options)
    known = np.isfinite(expected[1])
    assert not known.all()
    np.testing.assert_array_equal(np.isfinite(sigma[:n]), known)
    np.testing.assert_allclose(sigma[:n][known], expected[1][known], rtol=1e-6)
    assert (np.abs(flux[:n] - expected[0])[known] < 1e-6 * expected[1][known]).all()
    np.testing.assert_array_equal(flux[:n][~known], expected[0][~known])
