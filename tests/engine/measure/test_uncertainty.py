"""Errors against a dense float64 Laplace approximation, in their limits, and against the scatter over a population."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tolerances import LEAST_SQUARES, SAMPLE_SIGMA
from toy_model import N_BAND, N_SHAPE, ToyModel, add_noise, draw_latent, make_problem, paint
from toy_scenes import CONVERGED, VARIANCE

from deblendrt.engine.compute import canvases, drawing
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.measure import adaptive_moments, apertures, uncertainty
from deblendrt.engine.measure.uncertainty import BlendCovariance
from deblendrt.engine.model.networks import Runtime
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.solve import constants, descent, joint_fluxes, objective
from deblendrt.engine.solve.curvature import derivative_images, unit_columns
from deblendrt.engine.solve.descent import Solution
from deblendrt.engine.solve.prior import prior_precision

ANCHORS = np.array([[14, 20], [19, 23], [38, 8], [42, 40], [44, 33]])  # two blends of two and a source alone
SHAPE = (50, 56)
N_LATENT = N_BAND + 2 + N_SHAPE
MOVE = slice(N_BAND, N_LATENT)
PRECISION = 2e-4
"""In units of the errors: D'WD is summed in float32 with a ridge of 3e-6 of its diagonal and has a condition of 100."""


def make(deblender: Deblender, model: ToyModel, anchor: Any = ANCHORS, *, n_iteration: int = 15, seed: int = 0,
         mask: Any = None, robust: bool = False) -> tuple[Problem, Solution]:
    """A noisy scene and its solution."""
    rng = np.random.default_rng(seed)
    anchor = np.asarray(anchor)
    latent = draw_latent(len(anchor), rng)
    image = add_noise(paint(model, deblender.fold(None), latent, anchor, SHAPE), rng)
    problem, start, floor = make_problem(deblender, image, anchor + latent[:, N_BAND : N_BAND + 2], mask=mask,
                                         robust=robust)
    return problem, descent.solve(problem, start, floor, "gauss_newton", n_iteration)


def joined(problem: Problem) -> Problem:
    """Put all sources in one blend."""
    return dataclasses.replace(problem, blend=np.zeros(len(problem.scene), np.int64), n_blend=1)


def dense_design(model: ToyModel, problem: Problem, latent: np.ndarray) -> np.ndarray:
    """Derivative of the image by flux, offset and shape of all sources, float64 (n_band n_y n_x, n_source n_latent)."""
    folded, (canvas,) = problem.folded, problem.data
    jacobian = model.jacobian(latent)
    jacobian[:, np.arange(N_BAND), np.arange(N_BAND)] /= np.exp(latent[:, :N_BAND])[:, :, None]
    design = np.zeros((len(latent), N_LATENT, *canvas.shape))
    for i, corner in enumerate(problem.corner):
        if problem.extended[i]:
            image = drawing.extended_stamps(jacobian[i].astype(np.float32), folded)
            x, y = (corner - folded.margin).tolist()
        else:
            image = np.einsum("jbk,bkp->jbp", jacobian[i], folded.phi.astype(np.float64))
            image = image.reshape(N_LATENT, N_BAND, folded.window, folded.window)
            x, y = corner.tolist()
        here = canvases.place(image, x, y, canvas.shape)
        design[i][..., here.y, here.x] = here.image
    return design.reshape(len(latent) * N_LATENT, -1).T


def dense_prior(model: ToyModel, problem: Problem, latent: np.ndarray) -> np.ndarray:
    """P as the module defines it, from the model's own gradient; float64 (n_source, n_latent, n_latent)."""
    block = np.zeros((len(latent), N_LATENT, N_LATENT))
    block[:, range(N_BAND), range(N_BAND)] = ~problem.measured
    block[:, range(N_BAND, N_BAND + 2), range(N_BAND, N_BAND + 2)] = problem.center_sigma**-2
    for k in range(N_BAND + 2, N_LATENT):
        step = constants.PRIOR_STEP * np.eye(N_LATENT)[k]
        change = model.log_prior(latent + step)[1] - model.log_prior(latent - step)[1]
        block[:, k, N_BAND + 2 :] = -change[:, N_BAND + 2 :] / (2 * constants.PRIOR_STEP)
    return block


def dense_precision(model: ToyModel, problem: Problem, solution: Solution) -> np.ndarray:
    """D'WD + P of all sources, float64 (n_source n_latent, n_source n_latent)."""
    latent = solution.state.latent
    design = dense_design(model, problem, latent)
    matrix = (design * solution.weights[0].ravel()[:, None].astype(np.float64)).T @ design
    for i, block in enumerate(dense_prior(model, problem, latent)):
        own = slice(i * N_LATENT, (i + 1) * N_LATENT)
        matrix[own, own] += block
    return matrix


def flat(blend: BlendCovariance) -> np.ndarray:
    n = len(blend.rows) * N_LATENT
    return blend.matrix.reshape(n, n)


def assert_same_covariance(actual: np.ndarray, expected: np.ndarray, tolerance: float = PRECISION) -> None:
    """Compare covariances in units of the errors, element by element and along every direction."""
    sigma = np.sqrt(expected.diagonal())
    assert np.abs((actual - expected) / sigma / sigma[:, None]).max() < tolerance
    value, vector = np.linalg.eigh(expected / sigma / sigma[:, None])
    ratio = ((vector.T @ (actual / sigma / sigma[:, None])) * vector.T).sum(1) / value
    assert np.abs(ratio - 1).max() < 3 * tolerance


class Prior:
    """The runtime of a deblender with a Gaussian density of the shape, of a given precision."""

    def __init__(self, runtime: Runtime, precision: np.ndarray) -> None:
        self.runtime, self.precision = runtime, precision

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def log_prior(self, latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = latent[:, N_BAND + 2 :]
        gradient = np.zeros(latent.shape, np.float32)
        gradient[:, N_BAND + 2 :] = -shape @ self.precision
        return (-0.5 * (shape @ self.precision * shape).sum(1)).astype(np.float32), gradient


def with_prior(problem: Problem, precision: np.ndarray, **changes: Any) -> Problem:
    return dataclasses.replace(problem, runtime=Prior(problem.runtime, precision), **changes)  # type: ignore[arg-type]


# --- against dense float64


@pytest.mark.parametrize("n_iteration", [0, 15], ids=["at the start", "at the solution"])
def test_every_blend_is_the_dense_inverse(toy_deblender: Deblender, toy_model: ToyModel, n_iteration: int) -> None:
    mask = np.random.default_rng(3).random((N_BAND, *SHAPE)) < 0.2
    problem, solution = make(toy_deblender, toy_model, n_iteration=n_iteration, mask=mask)
    precision = dense_precision(toy_model, problem, solution)
    seen = []
    for blend in uncertainty.laplace(problem, solution):
        index = (blend.rows[:, None] * N_LATENT + np.arange(N_LATENT)).ravel()
        assert_same_covariance(flat(blend), np.linalg.inv(precision[np.ix_(index, index)]))
        np.testing.assert_array_equal(problem.blend[blend.rows], problem.blend[blend.rows[0]])
        seen.extend(blend.rows.tolist())
    assert sorted(seen) == list(range(len(ANCHORS)))


def test_one_blend_of_all(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """Cross blocks of all pairs; without them the comparison fails."""
    problem, solution = make(toy_deblender, toy_model)
    expected = np.linalg.inv(dense_precision(toy_model, problem, solution))
    (blend,) = uncertainty.laplace(joined(problem), solution)
    assert_same_covariance(flat(blend), expected)
    apart = np.zeros_like(expected)
    for i in range(len(ANCHORS)):
        own = slice(i * N_LATENT, (i + 1) * N_LATENT)
        apart[own, own] = expected[own, own]
    with pytest.raises(AssertionError):
        assert_same_covariance(apart, expected)


def test_robust_weights_are_those_of_the_solution(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, solution = make(toy_deblender, toy_model, robust=True)
    quarter = dataclasses.replace(solution, weights=[0.25 * w for w in solution.weights])
    for problem_weights in (solution, quarter):
        expected = np.linalg.inv(dense_precision(toy_model, problem, problem_weights))
        (blend,) = uncertainty.laplace(joined(problem), problem_weights)
        assert_same_covariance(flat(blend), expected)


def test_sources_with_outskirts(wide_toy_deblender: Deblender, wide_toy_model: ToyModel) -> None:
    """Derivatives of extended sources reach beyond the window, and over the edge of the canvas."""
    problem, solution = make(wide_toy_deblender, wide_toy_model, [[20, 22], [36, 30], [49, 8]])
    for extended in ([True, True, True], [True, False, True]):
        chosen = joined(dataclasses.replace(problem, extent=np.array(extended, np.int8)))
        expected = np.linalg.inv(dense_precision(wide_toy_model, chosen, solution))
        (blend,) = uncertainty.laplace(chosen, solution)
        assert_same_covariance(flat(blend), expected)


def test_prior_precision_is_the_second_derivative(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """Second differences of the density; the gradient's differences average the curvature over a wide step."""
    problem, solution = make(toy_deblender, toy_model)
    latent = solution.state.latent
    block = prior_precision(problem, latent)
    step = 1e-3
    corner = step * np.eye(N_LATENT)[N_BAND + 2 :]
    for j, a in enumerate(corner):
        for k, b in enumerate(corner):
            second = sum(s * t * toy_model.log_prior(latent + s * a + t * b)[0] for s in (1, -1) for t in (1, -1))
            np.testing.assert_allclose(block[:, N_BAND + 2 + j, N_BAND + 2 + k], -second / (2 * step) ** 2,
                                       atol=0.1 * constants.PRIOR_STEP**2 * 2 + 1e-3)
    np.testing.assert_allclose(block, dense_prior(toy_model, problem, latent), atol=1e-5)
    np.testing.assert_array_equal(block, block.transpose(0, 2, 1))


def test_directions_in_which_the_prior_is_not_convex_count_as_flat(toy_deblender: Deblender,
                                                                  toy_model: ToyModel) -> None:
    problem, solution = make(toy_deblender, toy_model)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((N_SHAPE, N_SHAPE)))
    saddle = (rotation * [-3.0, 2.0, 0.5]) @ rotation.T
    convex = (rotation * [0.0, 2.0, 0.5]) @ rotation.T
    block = prior_precision(with_prior(problem, saddle), solution.state.latent)
    np.testing.assert_allclose(block[:, N_BAND + 2 :, N_BAND + 2 :], np.broadcast_to(convex, (5, 3, 3)), atol=1e-5)
    for blend in uncertainty.laplace(with_prior(problem, saddle), solution):
        assert np.linalg.eigvalsh(flat(blend)).min() > 0


# --- structure


def test_covariances_are_symmetric_and_positive(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, solution = make(toy_deblender, toy_model)
    for case in (problem, joined(problem)):
        for blend in uncertainty.laplace(case, solution):
            matrix = flat(blend)
            np.testing.assert_array_equal(matrix, matrix.T)
            sigma = np.sqrt(matrix.diagonal())
            assert np.linalg.eigvalsh(matrix / sigma / sigma[:, None]).min() > 0
            for member in range(len(blend.rows)):
                np.testing.assert_array_equal(blend.own(member), blend.matrix[member, :, member])


def test_cross_blocks_vanish_where_windows_do_not_meet(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    far = [[5, 5], [50, 44], [8, 9]]
    problem, solution = make(toy_deblender, toy_model, far)
    assert toy_deblender.window < 36
    unit = unit_columns(solution.state)
    rows = np.arange(3)
    drawn = derivative_images(problem, unit[rows], rows)
    precision = uncertainty.likelihood_precision(problem, solution.weights[0], drawn, rows)
    assert not precision[0, :, 1].any()
    assert not precision[1, :, 2].any()
    assert precision[0, :, 2].any()
    np.testing.assert_array_equal(precision[0, :, 2], precision[2, :, 0].T)
    (blend,) = uncertainty.laplace(joined(problem), solution)
    assert not blend.matrix[0, :, 1].any()
    alone = next(b for b in uncertainty.laplace(problem, solution) if 1 in b.rows)
    np.testing.assert_allclose(blend.own(1), alone.own(0), rtol=1e-9, atol=1e-12)


def test_bands_without_weight(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """A missing band's flux has variance one and no correlation. The rest is as without the band."""
    mask = np.zeros((N_BAND, *SHAPE), bool)
    mask[1, :, :30] = True  # the first pair lacks r, the galaxy beside it has some
    problem, solution = make(toy_deblender, toy_model, mask=mask)
    assert problem.measured[:, [0, 2]].all()
    assert problem.measured[:, 1].tolist() == [False, True, True, True, True]
    precision = dense_precision(toy_model, problem, solution)
    for blend in uncertainty.laplace(problem, solution):
        index = (blend.rows[:, None] * N_LATENT + np.arange(N_LATENT)).ravel()
        assert_same_covariance(flat(blend), np.linalg.inv(precision[np.ix_(index, index)]))
        for member in np.flatnonzero(~problem.measured[blend.rows, 1]):
            row = blend.matrix[member, 1].copy()
            assert row[member, 1] == pytest.approx(1, abs=1e-5)
            row[member, 1] = 0
            assert not row.any()


def test_coincident_sources_are_finite_and_uncertain(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, solution = make(toy_deblender, toy_model, ANCHORS[[2]])
    (alone,) = uncertainty.laplace(problem, solution)
    n = 3
    twin = np.zeros(n, np.int64)
    state = solution.state
    copies = dataclasses.replace(state, latent=state.latent[twin], coefficients=state.coefficients[twin],
                                 jacobian=type(state.jacobian)(*(a[twin] for a in state.jacobian)),
                                 log_prior=state.log_prior[twin], prior_gradient=state.prior_gradient[twin])
    same = dataclasses.replace(problem, scene=twin, blend=twin, corner=problem.corner[twin],
                               offset0=problem.offset0[twin], measured=problem.measured[twin],
                               extent=problem.extent[twin])
    (blend,) = uncertainty.laplace(same, dataclasses.replace(solution, state=copies))
    sigma, lone = (np.sqrt(b.own(0).diagonal()[:N_BAND]) for b in (blend, alone))
    assert np.isfinite(blend.matrix).all()
    assert np.linalg.eigvalsh(flat(blend)).min() > 0
    assert (sigma > 10 * lone).all()  # the share of each source is unknown ...
    total = blend.matrix[:, :N_BAND, :, :N_BAND].sum((0, 2))
    np.testing.assert_array_less(np.sqrt(total.diagonal()), 3 * lone)  # ... but the total is known


# --- limits


def marginal_sigma(problem: Problem, solution: Solution) -> np.ndarray:
    """flux_err of every source, float64 (n_source, n_band)."""
    sigma = np.empty((len(problem.scene), N_BAND))
    for blend in uncertainty.laplace(problem, solution):
        for member, i in enumerate(blend.rows):
            sigma[i] = np.sqrt(blend.own(member).diagonal()[:N_BAND])
    return sigma


def test_fixed_shapes_are_the_limit_of_a_narrow_prior(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, solution = make(toy_deblender, toy_model)
    unit = unit_columns(solution.state)[:, :, 0]
    _, fixed = joint_fluxes.linear_fluxes(problem, unit, np.zeros((len(unit), N_BAND)), n_sweep=1)
    free = marginal_sigma(problem, solution)
    assert (free > fixed).all()
    assert (free / fixed).max() > 1.2
    pinned = with_prior(problem, 1e9 * np.eye(N_SHAPE), center_sigma=1e-5)
    np.testing.assert_allclose(marginal_sigma(pinned, solution), fixed, rtol=2 * LEAST_SQUARES)
    # a wider prior leaves more doubt
    loose = marginal_sigma(with_prior(problem, 1e-2 * np.eye(N_SHAPE), center_sigma=1.0), solution)
    assert (loose > free).all()


def test_without_light_the_prior_remains(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """Data on a source far below the noise show only that it is faint."""
    problem, solution = make(toy_deblender, toy_model)
    latent = solution.state.latent.copy()
    latent[:, :N_BAND] = np.log(1e-4)
    dark = dataclasses.replace(solution, state=objective.evaluate(problem, latent))
    prior = prior_precision(problem, latent)
    for blend in uncertainty.laplace(problem, dark):
        for member, i in enumerate(blend.rows):
            own = blend.own(member)[MOVE, MOVE]
            np.testing.assert_allclose(own, np.linalg.inv(prior[i][MOVE, MOVE]), rtol=1e-4, atol=1e-6)


# --- the distance to the minimum


def blends_and_downhill(problem: Problem, solution: Solution) -> list[tuple[BlendCovariance, np.ndarray]]:
    downhill = solution.downhill.copy()
    downhill[:, :N_BAND] /= np.exp(solution.state.latent[:, :N_BAND])
    return [(blend, downhill[blend.rows]) for blend in uncertainty.laplace(problem, solution)]


def all_remaining(problem: Problem, solution: Solution) -> np.ndarray:
    remaining = np.full(len(problem.scene), np.nan)
    for blend, downhill in blends_and_downhill(problem, solution):
        remaining[blend.rows] = uncertainty.remaining_step(blend, downhill, N_BAND)
    return remaining


def test_remaining_step_of_a_source_alone_is_newtons_decrease(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """The distance leaves out the part that fluxes alone would bring."""
    for n_iteration in (0, 3):
        problem, solution = make(toy_deblender, toy_model, ANCHORS[[2]], n_iteration=n_iteration)
        ((blend, (downhill,)),) = blends_and_downhill(problem, solution)
        precision = dense_precision(toy_model, problem, solution)
        fluxes = downhill[:N_BAND] @ np.linalg.solve(precision[:N_BAND, :N_BAND], downhill[:N_BAND])
        expected = 0.5 * (downhill @ np.linalg.solve(precision, downhill) - fluxes)
        assert expected > 0
        np.testing.assert_allclose(uncertainty.remaining_step(blend, downhill[None], N_BAND), [expected], rtol=1e-3)


def test_remaining_step_leaves_fluxes_out(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """A flux at its floor keeps a gradient, which does not count: the reported fluxes are linear."""
    problem, solution = make(toy_deblender, toy_model, n_iteration=3)
    for blend, downhill in blends_and_downhill(problem, solution):
        n = len(blend.rows)
        precision = np.linalg.inv(flat(blend)).reshape(n, N_LATENT, n, N_LATENT)
        towards = np.zeros((n, N_LATENT))
        towards[:, :N_BAND] = 100 * np.sqrt(flat(blend).diagonal().reshape(n, N_LATENT)[:, :N_BAND])
        pulled = downhill + np.einsum("aibj,bj->ai", precision, towards)
        np.testing.assert_allclose(uncertainty.remaining_step(blend, pulled, N_BAND),
                                   uncertainty.remaining_step(blend, downhill, N_BAND), rtol=1e-4)


def test_remaining_step_is_the_distance_to_the_minimum(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """After a known step from the minimum: every source's distance, and the sum over a blend is the change of L."""
    problem, solution = make(toy_deblender, toy_model, n_iteration=CONVERGED)
    likely = objective.likelihood(problem, solution.state.model)
    lowest = objective.by_blend(problem, likely, solution.state)
    rng = np.random.default_rng(5)
    step = np.empty((len(ANCHORS), N_LATENT))
    expected = np.empty(len(ANCHORS))
    for blend in uncertainty.laplace(problem, solution):
        root = np.linalg.cholesky(flat(blend))
        step[blend.rows] = 0.3 * (root @ rng.standard_normal(len(root))).reshape(-1, N_LATENT)
        for member, i in enumerate(blend.rows):
            expected[i] = 0.5 * step[i, MOVE] @ np.linalg.solve(blend.own(member)[MOVE, MOVE], step[i, MOVE])
    latent = solution.state.latent + step
    latent[:, :N_BAND] = np.log(np.exp(solution.state.latent[:, :N_BAND]) + step[:, :N_BAND])
    state = objective.evaluate(problem, latent)
    weights, residual = objective.weighted_residual(problem, likely, state.model)
    downhill = objective.pull(state, objective.project(problem, residual)) + state.prior_gradient
    moved = dataclasses.replace(solution, state=state, downhill=downhill, weights=weights, residual=residual)
    np.testing.assert_allclose(all_remaining(problem, moved), expected, rtol=0.25)
    rise = objective.by_blend(problem, likely, state) - lowest
    for blend, slope in blends_and_downhill(problem, moved):
        whole = 0.5 * slope.ravel() @ flat(blend) @ slope.ravel()
        assert rise[problem.blend[blend.rows[0]]] == pytest.approx(whole, rel=0.25)


def test_remaining_step_falls_along_the_descent(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    for seed in range(2):
        remaining = [all_remaining(*make(toy_deblender, toy_model, n_iteration=n, seed=seed))
                     for n in (0, 15, CONVERGED)]
        assert all((r >= 0).all() for r in remaining)
        assert remaining[0].max() > 1
        assert max(r.max() for r in remaining[1:]) < 1e-3


# --- scatter


def draw_prior(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw shapes from the toy's prior by rejection, without its small dependence on the fluxes."""
    q = rng.standard_normal((20 * n * N_SHAPE,))
    return q[rng.random(len(q)) < np.exp(-(q**4) / 20)][: n * N_SHAPE].reshape(n, N_SHAPE)


@dataclasses.dataclass
class Population:
    """Results of many scenes of one layout, with galaxies drawn from the prior, and the true values."""

    result: DeblendResult
    latent: np.ndarray
    flux: np.ndarray
    position: np.ndarray
    fixed_sigma: np.ndarray  # of fluxes with the fitted shapes held fixed


N_SCENE = 150
PAIR = np.array([[15, 16], [20, 19], [36, 18]])  # a pair at six pixels and a galaxy alone


@pytest.fixture(scope="module")
def population(toy_deblender: Deblender, toy_model: ToyModel) -> Population:
    rng = np.random.default_rng(11)
    shape, sigma = (36, 54), 0.1
    images, given, latents = [], [], []
    for _ in range(N_SCENE):
        latent = draw_latent(len(PAIR), rng, flux=(500.0, 3000.0), offset=0.15)
        level = np.tanh(latent[:, :N_BAND] @ toy_model.prior_slope)
        latent[:, N_BAND + 2 :] = draw_prior(len(PAIR), rng) + level[:, None] * toy_model.prior_mean
        given.append(PAIR + latent[:, N_BAND : N_BAND + 2])  # the true position scatters around the given centre
        latent[:, N_BAND : N_BAND + 2] += sigma * rng.standard_normal((len(PAIR), 2))
        images.append(add_noise(paint(toy_model, toy_deblender.fold(None), latent, PAIR, shape), rng))
        latents.append(latent)
    options: dict[str, Any] = {"variance": VARIANCE, "psf": "nominal", "robust": False, "center_sigma": sigma}
    result = toy_deblender.deblend_batch(images, given, n_iteration=CONVERGED, **options)
    problem, _, _ = make_problem(toy_deblender, images, given, robust=False, center_sigma=sigma)
    latent = np.concatenate(latents)
    unit = result.coefficients / result.map_flux[:, :, None].astype(np.float32)
    fixed = joint_fluxes.linear_fluxes(problem, unit, result.map_flux, n_sweep=1)[1]
    position = np.tile(PAIR, (N_SCENE, 1)) + latent[:, N_BAND : N_BAND + 2]
    return Population(result, latent, np.exp(latent[:, :N_BAND]), position, fixed)


WIDTH = SAMPLE_SIGMA / np.sqrt(2 * N_SCENE * len(PAIR))  # bands of a galaxy are correlated and count as one number


def width(pull: np.ndarray) -> float:
    return float(np.sqrt((pull**2).mean()))


def test_fluxes_and_positions_scatter_by_their_errors(population: Population) -> None:
    """Pulls over galaxies drawn from the prior: only for these does the scatter equal the posterior's width."""
    result = population.result
    assert result.fitted.all()
    error = result.flux - population.flux
    pull = error / result.flux_err
    assert abs(width(pull) - 1) < WIDTH
    assert abs(pull.mean()) < SAMPLE_SIGMA / np.sqrt(N_SCENE * len(PAIR))
    assert np.abs(pull).max() < 5
    assert abs(width((result.position - population.position) / result.position_err) - 1) < WIDTH
    # errors at fixed shapes are too small: the comparison can fail
    assert width(error / population.fixed_sigma) > 1 + WIDTH


def test_neighbours_scatter_together(population: Population) -> None:
    """The covariance between the pair's fluxes makes the errors of their sum and difference unequal."""
    result = population.result
    error = (result.flux - population.flux).reshape(N_SCENE, len(PAIR), N_BAND)
    pulls = {True: np.empty((2, N_SCENE, N_BAND)), False: np.empty((2, N_SCENE, N_BAND))}
    for k in range(N_SCENE):
        covariance = np.einsum("ibjb->bij", result.flux_covariance(np.arange(2) + result.source_start[k]))
        for with_cross, pull in pulls.items():
            used = covariance if with_cross else covariance * np.eye(2)
            for sign, row in zip((1, -1), pull, strict=True):
                along = np.array([1.0, sign])
                row[k] = error[k, :2].T @ along / np.sqrt(along @ used @ along)
    slack = SAMPLE_SIGMA / np.sqrt(2 * N_SCENE)
    assert all(abs(width(pull) - 1) < slack for pull in pulls[True])
    # without the cross blocks one error is too large and the other too small
    together, opposed = (width(pull) for pull in pulls[False])
    assert together < 1 < opposed
    assert opposed / together > 1 + slack


def test_a_scenes_fluxes_have_the_chi2_of_their_covariance(population: Population) -> None:
    result = population.result
    n = len(PAIR) * N_BAND
    chi2 = np.empty(N_SCENE)
    for k in range(N_SCENE):
        rows = np.arange(result.source_start[k], result.source_start[k + 1])
        covariance = result.flux_covariance(rows).reshape(n, n)
        error = (result.flux - population.flux)[rows].ravel()
        chi2[k] = error @ np.linalg.solve(covariance, error)
    assert abs(chi2.mean() - n) < SAMPLE_SIGMA * np.sqrt(2 * n / N_SCENE)


def test_shapes_and_apertures_scatter_by_their_errors(toy_deblender: Deblender, toy_model: ToyModel,
                                                      population: Population) -> None:
    result, bundle = population.result, toy_deblender.bundle
    coefficients = toy_model.decode(population.latent)
    center = bundle.stamp_size // 2 + population.latent[:, N_BAND : N_BAND + 2]
    light = np.einsum("nk,kyx->nyx", coefficients[:, bundle.reference_index], bundle.basis.astype(np.float64))
    true = adaptive_moments.ellipticity(adaptive_moments.adaptive_moments(light, center, bundle.basis).moments)
    assert abs(width((result.ellipticity - true) / result.ellipticity_err) - 1) < WIDTH
    radius = 0.5 * result.aperture_diameter / bundle.pixel_scale
    inside = np.einsum("nbk,nk->nb", coefficients, apertures.aperture_functional(bundle.basis, center, radius))
    assert abs(width((result.aperture_flux - inside) / result.aperture_flux_err) - 1) < WIDTH


def test_colors_scatter_by_their_errors(population: Population) -> None:
    """The covariance between bands makes errors of colours smaller than for independent fluxes."""
    result = population.result
    magnitude = -2.5 * np.log10(population.flux)
    relative = result.flux_err / result.flux
    for blue, red in ((0, 1), (1, 2), (0, 2)):
        color, error = result.color(result.bands[blue], result.bands[red])
        difference = color - (magnitude[:, blue] - magnitude[:, red])
        assert abs(width(difference / error) - 1) < WIDTH
        independent = 2.5 / np.log(10) * np.hypot(relative[:, blue], relative[:, red])
        assert width(difference / independent) < 0.95
