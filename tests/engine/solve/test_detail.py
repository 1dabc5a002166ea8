"""The joint solve with detail against a dense float64 solve; its effect on a galaxy that the decoder cannot draw."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tolerances import REORDERED, SAMPLE_SIGMA
from toy_model import N_BAND, N_SHAPE, SKY_SIGMA, ToyModel, add_noise, draw_latent, make_problem, paint

from deblendrt.engine.compute import canvases
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.measure import fitted_sky
from deblendrt.engine.solve import constants, descent
from deblendrt.engine.solve.curvature import unit_columns
from deblendrt.engine.solve.descent import Solution
from deblendrt.engine.solve.detail import solve_detail
from deblendrt.engine.solve.prior import prior_precision

ANCHORS = np.array([[14, 20], [19, 23]])
SHAPE = (44, 40)
N_LATENT = N_BAND + 2 + N_SHAPE
N_SHARED, N_BAND_MODE = 3, 2
PRECISION = 1e-3
"""In units of the errors: D'WD is summed in float32 with a ridge of 3e-6 of its diagonal and has a condition of 100;
the step of the second pass starts from a float32 image."""


@pytest.fixture
def with_modes(toy_deblender: Deblender) -> Deblender:
    rng = np.random.default_rng(5)
    n_basis = toy_deblender.bundle.n_basis
    shared, band = (size * rng.standard_normal((n, n_basis)).astype(np.float32)
                    for size, n in ((0.02, N_SHARED), (0.01, N_BAND_MODE)))
    return Deblender(dataclasses.replace(toy_deblender.bundle, detail_shared=shared, detail_band=band),
                     toy_deblender.runtime)


def make(deblender: Deblender, model: ToyModel, extra: float = 0.0, level: float = 2000.0,
         **options: Any) -> tuple[Problem, Solution]:
    """A blend of fluxes of `level` times the sky noise; `extra` times the first shared mode is added to source 0."""
    rng = np.random.default_rng(3)
    latent = draw_latent(2, rng)
    latent[:, :N_BAND] = np.log(level * np.array(SKY_SIGMA)) + 0.1 * rng.standard_normal((2, N_BAND))
    folded = deblender.fold(None)
    image = paint(model, folded, latent, ANCHORS, SHAPE)
    if extra:
        mode = np.einsum("k,bkp->bp", deblender.bundle.detail_shared[0].astype(float), folded.phi.astype(float))
        stamp = mode.reshape(N_BAND, folded.window, folded.window) * np.exp(latent[0, :N_BAND])[:, None, None]
        x, y = (ANCHORS[0] - folded.half).tolist()
        here = canvases.place(extra * stamp, x, y, image.shape)
        image[:, here.y, here.x] += here.image
    problem, start, floor = make_problem(deblender, add_noise(image, rng), ANCHORS + latent[:, N_BAND : N_BAND + 2],
                                         robust=False, **options)
    problem = dataclasses.replace(problem, blend=np.zeros(2, np.int64), n_blend=1)
    return problem, descent.solve(problem, start, floor, "gauss_newton", 20)


def dense(problem: Problem, solution: Solution,
          sky_weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step and covariance of both passes, with every parameter's image in one matrix.

    With `sky_weight` the last covariance has a sky per band too, with this weight of its prior: its errors come last.
    """
    state, folded, (canvas,) = solution.state, problem.folded, problem.data
    unit, bundle = unit_columns(state).astype(np.float64), problem.bundle
    flux = np.exp(state.latent[:, :N_BAND])
    n_own = N_LATENT + N_SHARED + N_BAND * N_BAND_MODE
    design = np.zeros((2, n_own, *canvas.shape))
    for i, (x, y) in enumerate(problem.corner.tolist()):
        lines = np.zeros((n_own, N_BAND, bundle.n_basis))
        for b in range(N_BAND):
            lines[b, b] = unit[i, b, 0]
            lines[N_BAND:N_LATENT, b] = unit[i, b, 1:]
            own = [flux[i, b] * (m - m @ bundle.basis_sum * unit[i, b, 0])
                   for m in np.concatenate([bundle.detail_shared, bundle.detail_band]).astype(float)]
            lines[N_LATENT : N_LATENT + N_SHARED, b] = own[:N_SHARED]
            first = N_LATENT + N_SHARED + b * N_BAND_MODE
            lines[first : first + N_BAND_MODE, b] = own[N_SHARED:]
        image = np.einsum("jbk,bkp->jbp", lines, folded.phi.astype(float))
        here = canvases.place(image.reshape(n_own, N_BAND, folded.window, folded.window), x, y, canvas.shape)
        design[i][..., here.y, here.x] = here.image
    flat = design.reshape(2 * n_own, -1).T
    weight = solution.weights[0].ravel().astype(float)
    residual = (problem.data[0].astype(float) - state.model[0]).ravel()
    prior = prior_precision(problem, state.latent)
    scale, x_all = np.ones(2), np.zeros(2 * n_own)
    for _ in range(constants.DETAIL_PASSES):
        matrix = (flat * weight[:, None]).T @ flat
        pull = flat.T @ (weight * residual)
        for i in range(2):
            own = slice(i * n_own, i * n_own + N_LATENT)
            modes = np.arange(i * n_own + N_LATENT, (i + 1) * n_own)
            matrix[own, own] += prior[i]
            matrix[modes, modes] += 1 / scale[i]
            pull[i * n_own + N_BAND : i * n_own + N_LATENT] += state.prior_gradient[i, N_BAND:]
        covariance = np.linalg.inv(matrix)
        x_all = covariance @ pull
        for i in range(2):
            u = slice(i * n_own + N_LATENT, i * n_own + N_LATENT + N_SHARED)
            gamma = N_SHARED - covariance[u, u].trace() / scale[i]
            last, scale[i] = scale[i], ((constants.DETAIL_FREEDOM + x_all[u] @ x_all[u])
                                        / (constants.DETAIL_FREEDOM + gamma))
            assert last > 0
    sky = np.zeros((N_BAND, N_BAND))
    if sky_weight is not None:
        constant = np.zeros((N_BAND, *canvas.shape))
        constant[np.arange(N_BAND), np.arange(N_BAND)] = 1
        every = np.hstack([flat, constant.reshape(N_BAND, -1).T])
        bordered = (every * weight[:, None]).T @ every
        bordered[: 2 * n_own, : 2 * n_own] = matrix
        bordered[2 * n_own :, 2 * n_own :] += np.diag(sky_weight)
        inverse = np.linalg.inv(bordered)
        covariance, sky = inverse[: 2 * n_own, : 2 * n_own], inverse[2 * n_own :, 2 * n_own :]
    return x_all.reshape(2, n_own), covariance.reshape(2, n_own, 2, n_own), sky


def test_is_the_dense_solve(with_modes: Deblender, toy_model: ToyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fluxes, offsets and the covariance of a blend, couplings between sources and bands included."""
    monkeypatch.setattr(constants, "MAX_LINEAR_SHAPE", np.inf)  # a dense solve holds nothing
    monkeypatch.setattr(constants, "MAX_LINEAR_OFFSET", np.inf)
    problem, solution = make(with_modes, toy_model)
    fit = solve_detail(problem, solution)
    assert fit is not None
    assert fit.solved.all()
    assert [len(fit.lines[i][0]) for i in range(2)] == [N_SHARED + N_BAND_MODE] * 2
    step, covariance, _ = dense(problem, solution)
    (blend,) = fit.blends
    error = np.sqrt(np.einsum("apap->ap", covariance))
    flux = np.exp(solution.state.latent[:, :N_BAND])
    assert np.abs((fit.flux - flux - step[:, :N_BAND]) / error[:, :N_BAND]).max() < 20 * PRECISION
    assert np.abs((fit.move - step[:, N_BAND : N_BAND + 2]) / error[:, N_BAND : N_BAND + 2]).max() < 20 * PRECISION
    sigma = error[:, :N_LATENT]
    expected = covariance[:, :N_LATENT, :, :N_LATENT] / sigma[:, :, None, None] / sigma
    np.testing.assert_allclose(blend.matrix / sigma[:, :, None, None] / sigma, expected, atol=PRECISION)
    for a in range(2):
        for b in range(N_BAND):
            first = N_LATENT + N_SHARED + b * N_BAND_MODE
            here = np.r_[: N_LATENT + N_SHARED, first : first + N_BAND_MODE]
            scale = error[a, here]
            np.testing.assert_allclose(blend.with_detail[a][b] / scale / scale[:, None],
                                       covariance[a][:, a][np.ix_(here, here)] / scale / scale[:, None],
                                       atol=PRECISION)


def test_covariance_with_a_sky_is_that_of_the_dense_solve(with_modes: Deblender, toy_model: ToyModel,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """In an image that the sources fill, so that the sky is a large part of the errors."""
    monkeypatch.setattr(constants, "MAX_LINEAR_SHAPE", np.inf)
    monkeypatch.setattr(constants, "MAX_LINEAR_OFFSET", np.inf)
    problem, solution = make(with_modes, toy_model)
    fit = solve_detail(problem, solution, sky=True)
    assert fit is not None
    sky, (blend,) = fitted_sky.marginalise(solution, np.zeros((1, N_BAND)), fit.blends)
    prior = np.array(SKY_SIGMA) ** -2 / constants.SKY_PRIOR**2
    _, covariance, of_sky = dense(problem, solution, prior)
    np.testing.assert_allclose(sky.covariance[0] * prior, of_sky * prior, atol=PRECISION * of_sky[0, 0] * prior[0])
    sigma = np.sqrt(np.einsum("apap->ap", covariance))
    expected = covariance[:, :N_LATENT, :, :N_LATENT] / sigma[:, :N_LATENT, None, None] / sigma[:, :N_LATENT]
    actual = blend.matrix / sigma[:, :N_LATENT, None, None] / sigma[:, :N_LATENT]
    np.testing.assert_allclose(actual, expected, atol=PRECISION)
    without = fit.blends[0].matrix / sigma[:, :N_LATENT, None, None] / sigma[:, :N_LATENT]
    assert np.abs(without - expected).max() > 20 * PRECISION
    for a in range(2):
        for b in range(N_BAND):
            first = N_LATENT + N_SHARED + b * N_BAND_MODE
            here = np.r_[: N_LATENT + N_SHARED, first : first + N_BAND_MODE]
            scale = sigma[a, here]
            np.testing.assert_allclose(blend.with_detail[a][b] / scale / scale[:, None],
                                       covariance[a][:, a][np.ix_(here, here)] / scale / scale[:, None],
                                       atol=PRECISION)


def test_draws_what_the_decoder_cannot(with_modes: Deblender, toy_model: ToyModel) -> None:
    """Three standard deviations of a mode, added to a galaxy: the residual becomes noise, the image gains the mode."""
    problem, solution = make(with_modes, toy_model, extra=3.0, level=400.0)
    fit = solve_detail(problem, solution)
    assert fit is not None
    measured = problem.weight[0] > 0
    before, after = (float((problem.weight[0] * (problem.data[0] - m[0]) ** 2)[measured].sum())
                     for m in (solution.state.model, fit.model))
    n = int(measured.sum())
    assert before > n + 2 * SAMPLE_SIGMA * np.sqrt(2 * n)
    assert after < n + SAMPLE_SIGMA * np.sqrt(2 * n)


def test_faint_sources_and_stars_have_none(with_modes: Deblender, toy_model: ToyModel) -> None:
    problem, solution = make(with_modes, toy_model, kind=["star", "star"])
    assert solve_detail(problem, solution) is None


def test_without_modes_or_unwanted(toy_deblender: Deblender, with_modes: Deblender, toy_model: ToyModel) -> None:
    """A bundle without modes, and `detail=False`, give the same bits; with modes the fluxes differ."""
    rng = np.random.default_rng(3)
    latent = draw_latent(2, rng)
    latent[:, :N_BAND] = np.log(2000 * np.array(SKY_SIGMA))
    image = add_noise(paint(toy_model, toy_deblender.fold(None), latent, ANCHORS, SHAPE), rng)
    given: dict[str, Any] = {"centers": ANCHORS.astype(float), "variance": np.array(SKY_SIGMA) ** 2, "psf": "nominal"}
    none = toy_deblender.deblend_batch(image, **given)
    unwanted = with_modes.deblend_batch(image, **given, detail=False)
    wanted = with_modes.deblend_batch(image, **given)
    for name in ("flux", "flux_err", "aperture_flux", "coefficients", "position", "flags"):
        np.testing.assert_array_equal(getattr(unwanted, name), getattr(none, name))
    assert (wanted.flux != none.flux).all()
    assert np.isfinite(wanted.aperture_flux_err).all()
    np.testing.assert_allclose(wanted.model(0), sum(_placed(wanted, i) for i in range(2)), atol=1e-3)
    assert (wanted.flux_err > 0.99 * none.flux_err).all()


def test_a_sky_is_fitted_beside_detail(with_modes: Deblender, toy_model: ToyModel) -> None:
    """The fitted sky, given as a background, gives the same fluxes; with smaller errors."""
    rng = np.random.default_rng(3)
    latent = draw_latent(2, rng)
    latent[:, :N_BAND] = np.log(400 * np.array(SKY_SIGMA))
    shape = (104, 100)
    sky = 0.3 * np.array(SKY_SIGMA)
    image = add_noise(paint(toy_model, with_modes.fold(None), latent, ANCHORS + 30, shape), rng) + sky[:, None, None]
    given: dict[str, Any] = {"centers": ANCHORS + 30.0, "variance": np.array(SKY_SIGMA) ** 2, "psf": "nominal",
                             "n_iteration": 30}
    fit = with_modes.deblend_batch(image, **given, sky="fit")
    assert (np.abs(fit.sky[0] - sky) < SAMPLE_SIGMA * fit.sky_err[0]).all()
    assert (fit.flux != with_modes.deblend_batch(image, **given, sky="fit", detail=False).flux).all()
    told = with_modes.deblend_batch(image, **given, background=fit.sky[0])
    assert (np.abs(fit.flux - told.flux) < REORDERED * told.flux_err).all()
    for name in ("flux_err", "aperture_flux_err", "ellipticity_err", "position_err"):
        a, b = getattr(fit, name), getattr(told, name)
        assert ((a > (1 - REORDERED) * b) & (a < 1.2 * b)).all()
    assert (fit.flux_err > told.flux_err).all()


def _placed(result: Any, i: int) -> np.ndarray:
    """The stamp of a source on an empty image."""
    stamp, (x, y) = result.stamps(i)
    image = np.zeros(result.scenes[0].images.shape, np.float32)
    here = canvases.place(stamp, x, y, image.shape)
    image[:, here.y, here.x] = here.image
    return image
