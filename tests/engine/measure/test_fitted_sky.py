"""A fitted sky: the joint system against a dense float64 solve, and its effect on fluxes, errors, images and files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tolerances import LEAST_SQUARES, SAMPLE_SIGMA
from toy_model import N_BAND, N_SHAPE, SKY_SIGMA, ToyModel, add_noise, draw_latent, make_problem, paint
from toy_scenes import CONVERGED, VARIANCE, assert_close, rows

from deblendrt.engine.compute import canvases
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.measure import fitted_sky, uncertainty
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene import patches
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.solve import constants, descent
from deblendrt.engine.solve.curvature import unit_columns
from deblendrt.engine.solve.descent import Solution
from deblendrt.engine.solve.prior import prior_precision
from deblendrt.engine.solve.start import start_latents

ANCHORS = np.array([[32, 34], [38, 37], [92, 70]])
SHAPE = (104, 128)
SKY = np.array([0.3, -0.1, -0.3])  # sigma per pixel
N_LATENT = N_BAND + 2 + N_SHAPE
PRIOR = np.array(SKY_SIGMA) ** -2 / constants.SKY_PRIOR**2


def scene(deblender: Deblender, model: ToyModel, sky: Any = SKY, seed: int = 3,
          shape: tuple[int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a blend, a third galaxy and a sky: image, centres, fluxes."""
    rng = np.random.default_rng(seed)
    latent = draw_latent(len(ANCHORS), rng, flux=(1000.0, 2000.0))
    image = add_noise(paint(model, deblender.fold(None), latent, ANCHORS, shape), rng)
    image += (np.array(sky) * SKY_SIGMA)[:, None, None].astype(np.float32)
    return image, ANCHORS + latent[:, N_BAND : N_BAND + 2], np.exp(latent[:, :N_BAND])


def dense(problem: Problem, solution: Solution, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of all parameters and skies, and the step of the skies, from one matrix of all images."""
    folded, (canvas,) = problem.folded, problem.data
    unit = unit_columns(solution.state).astype(np.float64)
    n = len(unit)
    design = np.zeros((n * N_LATENT + N_BAND, *canvas.shape))
    for i, (x, y) in enumerate(problem.corner.tolist()):
        lines = np.zeros((N_LATENT, N_BAND, unit.shape[3]))
        for b in range(N_BAND):
            lines[b, b] = unit[i, b, 0]
            lines[N_BAND:, b] = unit[i, b, 1:]
        image = np.einsum("jbk,bkp->jbp", lines, folded.phi.astype(float))
        here = canvases.place(image.reshape(N_LATENT, N_BAND, folded.window, folded.window), x, y, canvas.shape)
        design[i * N_LATENT : (i + 1) * N_LATENT, :, here.y, here.x] = here.image
    design[n * N_LATENT + np.arange(N_BAND), np.arange(N_BAND)] = 1
    flat = design.reshape(len(design), -1).T
    weight = solution.weights[0].ravel().astype(float)
    matrix = (flat * weight[:, None]).T @ flat
    pull = flat.T @ (weight * (canvas.astype(float) - solution.state.model[0]).ravel())
    for i, prior in enumerate(prior_precision(problem, solution.state.latent)):
        own = slice(i * N_LATENT, (i + 1) * N_LATENT)
        matrix[own, own] += prior
    pull[: n * N_LATENT] = 0  # the solution is a minimum for its sky
    matrix[n * N_LATENT :, n * N_LATENT :] += np.diag(PRIOR)
    pull[n * N_LATENT :] -= PRIOR * level
    covariance = np.linalg.inv(matrix)
    return covariance, (covariance @ pull)[n * N_LATENT :]


@pytest.mark.parametrize("crop", [slice(None), slice(18, 60)])
def test_step_and_covariance_are_those_of_a_dense_solve(toy_deblender: Deblender, toy_model: ToyModel,
                                                        crop: slice) -> None:
    """In a scene with much sky, and in one that the sources fill."""
    image, centers, _ = scene(toy_deblender, toy_model)
    kept = slice(None) if crop.stop is None else slice(2)
    image, centers = image[:, crop, crop], centers[kept] - (crop.start or 0)
    level = 0.5 * SKY * SKY_SIGMA
    problem, *start = make_problem(toy_deblender, image, centers, robust=False)
    problem = fitted_sky.without(problem, level[None])
    solution = descent.solve(problem, *start, "gauss_newton", 20)
    sky, blends = fitted_sky.marginalise(solution, level[None], uncertainty.laplace(problem, solution))
    expected, step = dense(problem, solution, level)
    n = len(centers) * N_LATENT
    sky_err = np.sqrt(np.diag(expected)[n:])
    np.testing.assert_allclose(sky.covariance[0] / sky_err / sky_err[:, None],
                               expected[n:, n:] / sky_err / sky_err[:, None], atol=10 * LEAST_SQUARES)
    np.testing.assert_allclose(fitted_sky._step(solution, level[None])[0] / sky_err, step / sky_err,
                               atol=10 * LEAST_SQUARES * np.abs(step / sky_err).max())
    sigma = np.sqrt(np.diag(expected)[:n])
    assert [blend.rows.tolist() for blend in blends] == [[0, 1], [2]][: len(centers) - 1]
    for blend in blends:
        here = (blend.rows[:, None] * N_LATENT + np.arange(N_LATENT)).ravel()
        np.testing.assert_allclose(blend.matrix.reshape(len(here), -1) / sigma[here] / sigma[here, None],
                                   expected[np.ix_(here, here)] / sigma[here] / sigma[here, None],
                                   atol=10 * LEAST_SQUARES)
    assert sky.penalty == pytest.approx([0.5 * (PRIOR * level**2).sum()])


def test_one_step_is_enough(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    image, centers, _ = scene(toy_deblender, toy_model)
    problem = make_problem(toy_deblender, image, centers)[0]
    start = partial(start_latents, start="linear")
    descend = partial(descent.solve, solver="gauss_newton", n_iteration=8)
    level = fitted_sky.fit(problem, start, descend)
    again = descend(*start(fitted_sky.without(problem, level)))
    error = np.sqrt(fitted_sky.marginalise(again, level, uncertainty.laplace(again.problem, again))[0]
                    .covariance.diagonal(axis1=1, axis2=2))
    assert (np.abs(fitted_sky._step(again, level)) < 0.1 * error).all()


@pytest.mark.parametrize("sky", [SKY, -SKY, 0 * SKY])
def test_the_sky_does_not_move_the_sources(toy_deblender: Deblender, toy_model: ToyModel, sky: np.ndarray) -> None:
    image, centers, flux = scene(toy_deblender, toy_model, sky)
    result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, sky="fit", psf="nominal")
    assert (np.abs(result.sky - sky * SKY_SIGMA) < SAMPLE_SIGMA * result.sky_err).all()
    assert (result.sky_err < 0.02 * np.array(SKY_SIGMA)).all()
    assert (np.abs(result.flux - flux) < SAMPLE_SIGMA * result.flux_err).all()
    assert (result.flags & int(Flag.SKY_OFFSET | Flag.POOR_FIT) == 0).all()
    if sky.any():
        plain = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf="nominal")
        assert (np.abs(plain.flux - result.flux) > plain.flux_err).any()
        assert (plain.flags & int(Flag.SKY_OFFSET)).any()
        assert not plain.sky.any()
        assert np.isnan(plain.sky_err).all()


def test_is_a_fit_without_the_sky(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """A fitted sky given as the background gives the same sources, images and shares of light."""
    image, centers, _ = scene(toy_deblender, toy_model)
    fit = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, n_iteration=CONVERGED, sky="fit",
                                      psf="nominal")
    given = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, n_iteration=CONVERGED,
                                        background=fit.sky[0], psf="nominal")
    assert (fit.flux_err >= given.flux_err).all()
    assert_close(fit, given)
    np.testing.assert_allclose(fit.redistributed_flux, given.redistributed_flux, rtol=1e-3)
    np.testing.assert_allclose(fit.residual(0), given.residual(0), atol=0.05)
    np.testing.assert_allclose(fit.redistributed(1)[0], given.redistributed(1)[0], atol=0.1)
    np.testing.assert_allclose(fit.scene_chi2, given.scene_chi2, rtol=1e-4)
    assert len(fit.residual_peaks(0)) == len(given.residual_peaks(0))


def test_errors_of_the_sky_and_the_fluxes_hold(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    made = [scene(toy_deblender, toy_model, seed=10 + k, shape=(84, 108)) for k in range(24)]
    result = toy_deblender.deblend_batch([m[0] for m in made], [m[1] for m in made], variance=VARIANCE, sky="fit",
                                         psf="nominal")
    pull = (result.sky - SKY * SKY_SIGMA) / result.sky_err
    assert abs(pull.std() - 1) < SAMPLE_SIGMA / np.sqrt(2 * pull.size)
    flux_pull = (result.flux - np.concatenate([m[2] for m in made])) / result.flux_err
    assert abs(flux_pull.std() - 1) < SAMPLE_SIGMA / np.sqrt(2 * flux_pull.size)


def test_bits_depend_on_no_other_scene(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    made = [scene(toy_deblender, toy_model, seed=k) for k in range(4)]
    together = toy_deblender.deblend_batch([m[0] for m in made], [m[1] for m in made], variance=VARIANCE, sky="fit",
                                           n_threads=2, psf="nominal")
    for k, (image, centers, _) in enumerate(made):
        alone = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, sky="fit", psf="nominal")
        assert rows(alone, 0) == rows(together, k)
        np.testing.assert_array_equal(alone.sky[0], together.sky[k])


def test_kinds_and_found_sources_keep_the_sky(toy_deblender: Deblender, toy_model: ToyModel, tmp_path: Path) -> None:
    """Scenes that are solved several times have the sky of the last time, which files keep."""
    image, centers, _ = scene(toy_deblender, toy_model)
    result = toy_deblender.deblend_batch(image, centers[:2], variance=VARIANCE, sky="fit", kind="auto",
                                         find_missed=True, psf="nominal")
    assert result.n_source == 3
    assert (np.abs(result.sky - SKY * SKY_SIGMA) < SAMPLE_SIGMA * result.sky_err).all()
    assert not (result.star_probability > 0.5).any()
    result.write(tmp_path / "result.fits", images=True)
    read = DeblendResult.read(tmp_path / "result.fits", model=toy_deblender)
    np.testing.assert_array_equal(read.sky, result.sky)
    np.testing.assert_array_equal(read.residual(0), result.residual(0))


def test_a_missing_band_has_no_sky(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    image, centers, _ = scene(toy_deblender, toy_model)
    bands = "".join(toy_deblender.bundle.bands[:2])
    result = toy_deblender.deblend_batch(image[:2], centers, variance=VARIANCE[:2], bands=bands, sky="fit",
                                         psf="nominal")
    assert (np.abs(result.sky - SKY * SKY_SIGMA)[:, :2] < SAMPLE_SIGMA * result.sky_err[:, :2]).all()
    assert not result.sky[:, 2].any()
    assert np.isnan(result.sky_err[:, 2]).all()


def test_without_free_pixels_nothing_is_fitted(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """The same bits as without a fit."""
    image, centers, _ = scene(toy_deblender, toy_model)
    image, centers = image[:, 18:50, 18:50], centers[:2] - 18
    fit, plain = (toy_deblender.deblend_batch(image, centers, variance=VARIANCE, sky=sky, psf="nominal")
                  for sky in ("fit", "subtracted"))
    assert rows(fit, 0) == rows(plain, 0)
    assert not fit.sky.any()
    assert np.isnan(fit.sky_err).all()


def test_refused(toy_deblender: Deblender, toy_model: ToyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    image, centers, _ = scene(toy_deblender, toy_model)
    with pytest.raises(ValueError, match="sky: expected 'subtracted' or 'fit', got 'fitted'"):
        toy_deblender.deblend_batch(image, centers, variance=VARIANCE, sky="fitted", psf="nominal")
    for name, size in {"LARGEST": 90, "SIDE": 60, "BORDER": 35}.items():
        monkeypatch.setattr(patches, name, size)
    with pytest.raises(ValueError, match="sky: expected 'subtracted' for an image that is solved in parts"):
        toy_deblender.deblend_batch(image, centers, variance=VARIANCE, sky="fit", psf="nominal")
    monkeypatch.setattr(toy_deblender, "pool", object())
    with pytest.raises(ValueError, match='sky: expected "subtracted" with device="cuda"'):
        toy_deblender.deblend_batch(image, centers, variance=VARIANCE, sky="fit", psf="nominal")
