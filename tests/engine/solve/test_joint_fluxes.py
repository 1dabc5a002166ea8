"""Joint linear fluxes against dense least squares over all pixels, and the scatter of their errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tolerances import LEAST_SQUARES, SAMPLE_SIGMA
from toy_model import N_BAND, ToyModel, add_noise, draw_latent, make_problem, paint

from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.solve import constants
from deblendrt.engine.solve.joint_fluxes import blend_rows, linear_fluxes, normal_matrices

SHAPE = (52, 50)
CLOSE = np.array([[20, 22], [24, 26], [17, 27]])  # one blend
APART = np.array([[14, 14], [20, 15], [36, 14], [31, 31]])


def make(deblender: Deblender, model: ToyModel, anchor: np.ndarray, *, seed: int = 0, mask: object = None,
         **options: object) -> tuple[Problem, np.ndarray, np.ndarray]:
    """A noisy scene, its true latents, and the coefficients of its sources at unit flux."""
    rng = np.random.default_rng(seed)
    latent = draw_latent(len(anchor), rng)
    image = add_noise(paint(model, deblender.fold(None), latent, anchor, SHAPE), rng)
    problem, _, _ = make_problem(deblender, image, anchor + latent[:, N_BAND : N_BAND + 2], mask=mask, **options)
    return problem, latent, unit_coefficients(deblender, latent)


def unit_coefficients(deblender: Deblender, latent: np.ndarray) -> np.ndarray:
    return deblender.runtime.decode(np.concatenate([np.zeros((len(latent), N_BAND)), latent[:, N_BAND:]], 1))


def least_squares(problem: Problem, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes and errors by dense least squares, for all sources and all pixels of the only scene at once."""
    (data,), (weight,), folded = problem.data, problem.weight, problem.folded
    flux, sigma = np.zeros(unit.shape[:2]), np.zeros(unit.shape[:2])
    for b in range(N_BAND):
        design = np.zeros((data[b].size, len(unit)))
        for i, (x, y) in enumerate(problem.corner):
            plane = np.zeros(data[b].shape)
            stamp = unit[i, b].astype(np.float64) @ folded.phi[b].astype(np.float64)
            plane[y : y + folded.window, x : x + folded.window] = stamp.reshape(folded.window, -1)
            design[:, i] = plane.ravel()
        root = np.sqrt(weight[b].astype(np.float64)).ravel()
        design *= root[:, None]
        flux[:, b] = np.linalg.lstsq(design, root * data[b].ravel(), rcond=None)[0]
        sigma[:, b] = np.sqrt(np.linalg.inv(design.T @ design).diagonal())
    return flux, sigma


@pytest.mark.parametrize("begin", ["zero", "elsewhere"])
def test_one_blend_is_solved_at_once(toy_deblender: Deblender, toy_model: ToyModel, begin: str) -> None:
    rng = np.random.default_rng(3)
    mask = rng.random((N_BAND, *SHAPE)) < 0.2
    problem, latent, unit = make(toy_deblender, toy_model, CLOSE, mask=mask)
    assert problem.n_blend == 1
    expected, expected_sigma = least_squares(problem, unit)
    start = np.zeros(expected.shape) if begin == "zero" else np.exp(latent[:, :N_BAND]) * [[0.5], [3.0], [-1.0]]
    given = start.copy()
    # the first sweep leaves an error of the ridge's size, the second sweep removes it
    flux, sigma = linear_fluxes(problem, unit, start, n_sweep=2)
    np.testing.assert_array_equal(start, given)
    assert np.abs((flux - expected) / expected_sigma).max() < LEAST_SQUARES
    np.testing.assert_allclose(sigma, expected_sigma, rtol=LEAST_SQUARES)
    single, _ = linear_fluxes(problem, unit, start, n_sweep=1)
    assert np.abs((single - expected) / expected_sigma).max() < 0.1


def test_sweeps_make_it_joint_over_blends(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, _, unit = make(toy_deblender, toy_model, APART)
    expected, expected_sigma = least_squares(problem, unit)
    # every source is a blend of its own, though neighbours are six pixels apart
    problem = dataclasses.replace(problem, blend=np.arange(len(unit)), n_blend=len(unit))
    error = [np.abs((linear_fluxes(problem, unit, np.zeros(expected.shape), n_sweep=k)[0] - expected)
                    / expected_sigma).max() for k in (1, 2, 3, 20)]
    assert error[0] > 1  # the neighbours' light was still in the images
    assert error[1] < 0.5 * error[0]
    assert error[2] < 0.5 * error[1]
    assert error[3] < LEAST_SQUARES


def test_coincident_sources_share_the_flux(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, _, unit = make(toy_deblender, toy_model, np.array([[20, 22]]))
    alone, sigma_alone = linear_fluxes(problem, unit, np.zeros((1, N_BAND)), n_sweep=2)
    twice = np.array([0, 0])
    double = dataclasses.replace(problem, scene=problem.scene[twice], blend=problem.blend[twice],
                                 corner=problem.corner[twice], offset0=problem.offset0[twice],
                                 measured=problem.measured[twice], extent=problem.extent[twice])
    flux, sigma = linear_fluxes(double, unit[twice], np.zeros((2, N_BAND)), n_sweep=2)
    assert np.isfinite(flux).all()
    np.testing.assert_allclose(flux.sum(0), alone[0], rtol=1e-3)
    np.testing.assert_allclose(flux[0], flux[1], rtol=1e-3)  # not a billion, and minus a billion
    assert np.isfinite(sigma).all()
    assert (sigma > 10 * sigma_alone).all()  # the share of each source is unknown


def test_a_band_without_weight(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    mask = np.zeros((N_BAND, *SHAPE), bool)
    mask[1] = True
    problem, _, unit = make(toy_deblender, toy_model, CLOSE, mask=mask)
    flux, sigma = linear_fluxes(problem, unit, np.zeros((3, N_BAND)), n_sweep=2)
    assert np.isinf(sigma[:, 1]).all()
    assert (flux[:, 1] == 0).all()
    assert np.isfinite(sigma[:, [0, 2]]).all()
    full, _, _ = make(toy_deblender, toy_model, CLOSE)
    others, _ = linear_fluxes(full, unit, np.zeros((3, N_BAND)), n_sweep=2)
    np.testing.assert_array_equal(flux[:, [0, 2]], others[:, [0, 2]])


def test_one_source_without_weight_beside_one_with(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    mask = np.zeros((N_BAND, *SHAPE), bool)
    mask[:, :, 28:] = True
    problem, _, unit = make(toy_deblender, toy_model, np.array([[10, 20], [19, 20], [42, 20]]), mask=mask)
    problem = dataclasses.replace(problem, blend=np.zeros(3, np.int64), n_blend=1)  # only the far wing has weight
    flux, sigma = linear_fluxes(problem, unit, np.zeros((3, N_BAND)), n_sweep=2)
    assert np.isfinite(flux).all()
    assert np.isfinite(sigma).all()
    assert (sigma[2] > 1e3 * sigma[:2]).all()


def test_errors_are_the_scatter(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """Pulls over noise realisations with the true shapes: mean 0, standard deviation 1; robust weights cost little."""
    rng = np.random.default_rng(7)
    n_scene = 120
    latent = draw_latent(len(CLOSE), rng)
    clean = paint(toy_model, toy_deblender.fold(None), latent, CLOSE, SHAPE)
    centers = CLOSE + latent[:, N_BAND : N_BAND + 2]
    images = [add_noise(clean, rng) for _ in range(n_scene)]
    unit = np.tile(unit_coefficients(toy_deblender, latent), (n_scene, 1, 1))
    truth = np.tile(np.exp(latent[:, :N_BAND]), (n_scene, 1))
    for robust in (False, True):
        problem, _, _ = make_problem(toy_deblender, images, [centers] * n_scene, robust=robust)
        start = truth if robust else np.zeros_like(truth)
        flux, sigma = linear_fluxes(problem, unit, start, n_sweep=2, error=constants.MODEL_ERROR if robust else None)
        pull = ((flux - truth) / sigma).reshape(n_scene, len(CLOSE) * N_BAND)
        n = pull.size
        assert abs(pull.mean()) < SAMPLE_SIGMA * np.sqrt(len(CLOSE) / n)  # neighbours' errors are correlated
        assert abs(pull.std() - 1) < SAMPLE_SIGMA * np.sqrt(len(CLOSE) / (2 * n))
        assert np.abs(pull).max() < 5


def test_matrices_and_chunks(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, _, unit = make(toy_deblender, toy_model, APART)
    rows = [r for chunk in blend_rows(problem) for r in chunk]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(APART)))
    for r in rows:
        assert len(set(problem.blend[r])) == 1
    for r, matrix in normal_matrices(problem, unit, problem.weight):
        assert matrix.shape == (N_BAND, len(r), len(r))
        np.testing.assert_array_equal(matrix, matrix.transpose(0, 2, 1))
        assert np.linalg.eigvalsh(matrix).min() > 0


def test_negative_fluxes_are_reported(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """Signed and unbiased: a hole in the image is a negative flux."""
    problem, _, unit = make(toy_deblender, toy_model, np.array([[20, 22]]))
    negative = dataclasses.replace(problem, data=[-d for d in problem.data])
    flux, _ = linear_fluxes(problem, unit, np.zeros((1, N_BAND)), n_sweep=1)
    mirrored, _ = linear_fluxes(negative, unit, np.zeros((1, N_BAND)), n_sweep=1)
    np.testing.assert_allclose(mirrored, -flux, rtol=1e-6)
    assert (flux > 0).all()
