"""The descent: its linear algebra against dense float64, its limits, and its result."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from tolerances import OBJECTIVE, relative_error
from toy_model import N_BAND, N_SHAPE, ToyModel, add_noise, draw_latent, make_problem, paint

from deblendrt.engine.compute.problem import Problem, State
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.solve import constants, curvature, descent, objective
from deblendrt.engine.solve.adam import adam as run_adam
from deblendrt.engine.solve.joint_step import conjugate_gradient
from deblendrt.engine.solve.prior import prior_curvature, secant

ANCHORS = np.array([[14, 20], [19, 23], [38, 8], [42, 40], [44, 33]])  # two blends of two and a source alone
SHAPE = (50, 56)
BRIGHT = (1e5, 3e5)  # nJy: the prior weighs 1e-6 of the data


def make(deblender: Deblender, model: ToyModel, *, seed: int = 0, noise: bool = True, robust: bool = False,
         flux: tuple[float, float] = (300.0, 5000.0)) -> tuple[Problem, np.ndarray, np.ndarray, np.ndarray]:
    """Make a problem; return it, its true latents, the linear start and the floor."""
    rng = np.random.default_rng(seed)
    latent = draw_latent(len(ANCHORS), rng, flux=flux)
    image = paint(model, deblender.fold(None), latent, ANCHORS, SHAPE)
    image = add_noise(image, rng) if noise else image.astype(np.float32)
    problem, start, floor = make_problem(deblender, image, ANCHORS + latent[:, N_BAND : N_BAND + 2], robust=robust)
    return problem, latent, start, floor


def objective_at(problem: Problem, state: State) -> np.ndarray:
    return objective.by_blend(problem, objective.likelihood(problem, state.model), state)


def dense_design(model: ToyModel, problem: Problem, latent: np.ndarray) -> np.ndarray:
    """Derivative of the model by the latents as one matrix (n_pixel, n_source n_latent), for one canvas."""
    folded, (canvas,) = problem.folded, problem.data
    jacobian = model.jacobian(latent)
    design = np.zeros((canvas.size, latent.size))
    for i, (x, y) in enumerate(problem.corner):
        images = np.einsum("jbk,bkp->jbp", jacobian[i], folded.phi.astype(np.float64))
        for j, image in enumerate(images):
            plane = np.zeros(canvas.shape)
            plane[:, y : y + folded.window, x : x + folded.window] = image.reshape(-1, folded.window, folded.window)
            design[:, i * latent.shape[1] + j] = plane.ravel()
    return design


def random_spd(n: int, rng: np.random.Generator, condition: float = 30.0) -> np.ndarray:
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return (q * np.geomspace(1, condition, n)) @ q.T


class Groups:
    """Random symmetric positive definite systems, one for each group of rows."""

    def __init__(self, group: np.ndarray, width: int, seed: int = 0) -> None:
        self.group, self.width = group, width
        rng = np.random.default_rng(seed)
        self.rows = [np.flatnonzero(group == g) for g in range(group.max() + 1)]
        self.matrix = [random_spd(len(r) * width, rng) for r in self.rows]

    def apply(self, v: np.ndarray) -> np.ndarray:
        result = np.empty_like(v)
        for rows, matrix in zip(self.rows, self.matrix, strict=True):
            result[rows] = (matrix @ v[rows].ravel()).reshape(-1, self.width)
        return result

    def precondition(self, v: np.ndarray) -> np.ndarray:
        """Inverse of each row's own block."""
        result = np.empty_like(v)
        for rows, matrix in zip(self.rows, self.matrix, strict=True):
            for i, row in enumerate(rows):
                own = slice(i * self.width, (i + 1) * self.width)
                result[row] = np.linalg.solve(matrix[own, own], v[row])
        return result

    def solve(self, target: np.ndarray) -> np.ndarray:
        result = np.empty_like(target)
        for rows, matrix in zip(self.rows, self.matrix, strict=True):
            result[rows] = np.linalg.solve(matrix, target[rows].ravel()).reshape(-1, self.width)
        return result


GROUP = np.array([0, 1, 0, 2, 0, 1])  # three rows, two, one; interleaved


@pytest.mark.parametrize("blocks", [False, True], ids=["plain", "block-preconditioned"])
def test_conjugate_gradient_is_exact_after_as_many_iterations_as_unknowns(blocks: bool) -> None:
    systems = Groups(GROUP, 4)
    target = np.random.default_rng(1).standard_normal((len(GROUP), 4)) * 10.0 ** np.arange(-2, 4)[:, None]
    precondition = systems.precondition if blocks else np.copy
    for n_iteration in (12, 40):  # the groups of 8 and 4 unknowns have converged
        result = conjugate_gradient(systems.apply, precondition, target, GROUP, n_iteration)
        expected = systems.solve(target)
        for rows in systems.rows:
            assert relative_error(result[rows], expected[rows]) < 1e-7
    if blocks:  # a row alone is solved by its block at once
        first = conjugate_gradient(systems.apply, precondition, target, GROUP, 1)
        np.testing.assert_allclose(first[3], systems.solve(target)[3], rtol=1e-10)


def test_groups_do_not_influence_each_other() -> None:
    target = np.random.default_rng(1).standard_normal((len(GROUP), 4))
    systems, others = Groups(GROUP, 4), Groups(GROUP, 4, seed=9)
    others.matrix[0] = systems.matrix[0]
    changed = np.where((GROUP == 0)[:, None], target, -1e3 * target)
    for n_iteration in (1, 3, 12):
        a = conjugate_gradient(systems.apply, systems.precondition, target, GROUP, n_iteration)
        b = conjugate_gradient(others.apply, others.precondition, changed, GROUP, n_iteration)
        np.testing.assert_array_equal(a[GROUP == 0], b[GROUP == 0])
    still = np.where((GROUP == 0)[:, None], target, 0.0)  # a zero target gives zero, not NaN
    result = conjugate_gradient(systems.apply, systems.precondition, still, GROUP, 12)
    assert not result[GROUP != 0].any()


def test_prior_curvature_is_positive_and_knows_missing_bands(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, _, _, _ = make(toy_deblender, toy_model)
    measured = problem.measured.copy()
    measured[1, 0] = False
    with_gap = dataclasses.replace(problem, measured=measured)
    for block in (prior_curvature(problem), prior_curvature(with_gap)):
        np.testing.assert_array_equal(block, block.transpose(0, 2, 1))
        assert np.linalg.eigvalsh(block).min() > 0
        np.testing.assert_allclose(block[:, N_BAND, N_BAND], problem.center_sigma**-2)
        np.testing.assert_array_equal(block[0, N_BAND + 2 :, N_BAND + 2 :], problem.bundle.prior_curvature)
    whole, gap = (prior_curvature(p)[1, 0, 0] for p in (problem, with_gap))
    assert gap >= 0.99 / (problem.bundle.color_sigma[0] + constants.COLOR_SLACK) ** 2 > whole


def test_mean_weight(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, _, _, _ = make(toy_deblender, toy_model)
    even = [np.full_like(w, 0.3) for w in problem.weight]
    np.testing.assert_allclose(curvature.mean_weight(problem, even), 0.3, rtol=1e-5)
    mean = curvature.mean_weight(problem, problem.weight)
    inside = 1 / np.array([1.0, 1.5, 2.0]) ** 2
    assert (mean <= inside * (1 + 1e-5)).all()
    assert (mean > 0.5 * inside).all()  # the window reaches off the image, the galaxy does not
    hidden = [w.copy() for w in problem.weight]
    x, y = problem.corner[0] + problem.folded.half
    hidden[0][:, y - 1 : y + 2, x - 1 : x + 2] = 0
    masked = curvature.mean_weight(problem, hidden)
    assert (masked[0] < 0.7 * mean[0]).all()  # the core has most of the light
    np.testing.assert_allclose(masked[2], mean[2])


@pytest.mark.parametrize("way", ["at once", "conjugate gradients"])
def test_newton_step_solves_the_joint_system(toy_deblender: Deblender, toy_model: ToyModel, way: str,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one dense solve for all sources with every pixel; conjugate gradients run to the end."""
    monkeypatch.setattr(constants, "N_CONJUGATE", 60)
    if way == "conjugate gradients":
        monkeypatch.setattr(constants, "MAX_DENSE", 1)
    problem, latent, _, _ = make(toy_deblender, toy_model)
    # one blend for all, so that the solver leaves no coupling out
    problem = dataclasses.replace(problem, blend=np.zeros(len(latent), np.int64), n_blend=1)
    state = objective.evaluate(problem, latent + 0.05)
    likely = objective.likelihood(problem, state.model)
    weights, residual = objective.weighted_residual(problem, likely, state.model)
    downhill = objective.pull(state, objective.project(problem, residual)) + state.prior_gradient
    step = descent.newton_step(problem, state, weights, downhill, np.zeros(len(latent)),
                               prior_curvature(problem))
    design = dense_design(toy_model, problem, state.latent)
    matrix = (design * weights[0].ravel()[:, None].astype(np.float64)).T @ design
    n = latent.shape[1]
    for i, prior in enumerate(prior_curvature(problem)):
        rows = slice(i * n, (i + 1) * n)
        matrix[rows, rows] += prior
    expected = np.linalg.solve(matrix, downhill.ravel()).reshape(latent.shape)
    error, scale = (step - expected).ravel(), expected.ravel()
    # in the norm of the system, in which an error costs as much as it raises L
    assert error @ matrix @ error < 1e-4 * (scale @ matrix @ scale)
    assert np.abs(error).max() < 0.05 * np.abs(scale).max()  # every second pixel


def test_damping_shortens_the_shape_step(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, latent, _, _ = make(toy_deblender, toy_model)
    state = objective.evaluate(problem, latent + 0.05)
    downhill = np.random.default_rng(0).standard_normal(latent.shape)
    lengths = [np.linalg.norm(descent.newton_step(problem, state, problem.weight, downhill,
                                                 np.full(len(latent), damping),
                                                 prior_curvature(problem))[:, N_BAND + 2 :], axis=1)
               for damping in (0.0, 1.0, 100.0, 1e4)]
    assert all((b < a).all() for a, b in itertools.pairwise(lengths))
    assert (lengths[-1] < 1e-3 * lengths[0]).all()


def test_the_objective_never_rises(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """With a Gaussian loss and no tempering, every iteration judges the same L, which never rises."""
    for seed in range(3):
        problem, _, start, floor = make(toy_deblender, toy_model, seed=seed)
        together = dataclasses.replace(problem, blend=np.zeros_like(problem.blend), n_blend=1, partition=[
            dataclasses.replace(p, blend=np.zeros_like(p.blend), n_blend=1) for p in problem.partition])
        # blends judge their steps apart, and the light of the others moves a little meanwhile
        for case, slack in ((together, 0.0), (problem, OBJECTIVE)):
            values = [objective_at(case, descent.descend(case, start, floor, [0.0] * k)[1]) for k in range(9)]
            assert all((b <= a * (1 + slack)).all() for a, b in itertools.pairwise(values))
            assert (values[-1] < values[0]).all()
        # L per pixel is that of noise
        assert values[-1].sum() < 0.55 * sum(int((w > 0).sum()) for w in problem.weight)


def test_damping_follows_the_gain() -> None:
    damping = np.full(5, 0.1)
    decrease = np.array([-1.0, 0.0, 0.2, 0.4, 0.9])
    np.testing.assert_allclose(descent.damped(damping, decrease, np.ones(5)), [0.8, 0.8, 0.4, 0.1, 0.025])
    low, high = descent.damped(np.full(2, constants.MIN_DAMPING), np.array([-1.0, 1.0]), np.ones(2))
    assert low == constants.REJECTED_DAMPING
    assert high == constants.MIN_DAMPING


def test_blends_that_still_move_go_on_and_leave_the_others(toy_deblender: Deblender, toy_model: ToyModel,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _, start, floor = make(toy_deblender, toy_model, robust=True)
    n_iteration = 4
    tempers = [objective.temper(i, n_iteration) for i in range(n_iteration)]
    _, stopped, progress = descent.descend(problem, start, floor, tempers)
    left = progress.left
    limit = float(np.sort(left)[-2:].mean())
    monkeypatch.setattr(constants, "MOVING_DECREASE", limit)
    moving = left > limit
    assert moving.sum() == 1
    _, further = descent.gauss_newton(problem, start, floor, n_iteration)
    rows = moving[problem.blend]
    np.testing.assert_array_equal(further.latent[~rows], stopped.latent[~rows])
    assert (further.latent[rows] != stopped.latent[rows]).any(1).all()
    assert objective_at(problem, further)[moving] < objective_at(problem, stopped)[moving]
    monkeypatch.setattr(constants, "MOVING_DECREASE", np.inf)
    np.testing.assert_array_equal(descent.gauss_newton(problem, start, floor, n_iteration)[1].latent, stopped.latent)


def test_temper_ends_at_the_objective_itself() -> None:
    for n_iteration in (0, 1, 2, 5, 15, 200):
        tau = [objective.temper(k, n_iteration) for k in range(n_iteration)]
        assert all(a >= b >= 0 for a, b in itertools.pairwise(tau))
        assert n_iteration < 5 or tau[-1] == 0


def test_step_limits(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, latent, _, floor = make(toy_deblender, toy_model)
    rng = np.random.default_rng(0)
    for size in (0.01, 1.0, 1e3, 1e12):
        step = size * rng.standard_normal(latent.shape)
        before = latent.copy(), step.copy()
        moved = descent.move(problem, latent, step, floor)
        np.testing.assert_array_equal(latent, before[0])
        np.testing.assert_array_equal(step, before[1])
        factor = np.exp(moved[:, :N_BAND] - latent[:, :N_BAND])
        low = np.exp(floor - latent[:, :N_BAND])
        assert (factor <= constants.MAX_FLUX_FACTOR * (1 + 1e-12)).all()
        assert (factor >= np.minimum(constants.MIN_FLUX_FACTOR, np.maximum(low, 0)) * (1 - 1e-12)).all()
        assert (moved[:, :N_BAND] >= floor - 1e-12).all()
        shift = moved[:, N_BAND : N_BAND + 2] - latent[:, N_BAND : N_BAND + 2]
        assert np.abs(shift).max() <= constants.MAX_OFFSET_STEP * (1 + 1e-12)
        drift = moved[:, N_BAND : N_BAND + 2] - problem.offset0
        assert np.abs(drift).max() <= constants.MAX_DRIFT * (1 + 1e-12)
        length = np.linalg.norm(moved[:, N_BAND + 2 :] - latent[:, N_BAND + 2 :], axis=1)
        assert length.max() <= constants.MAX_SHAPE_STEP * (1 + 1e-12)
    small = 1e-3 * rng.standard_normal(latent.shape)  # a small step is taken whole, fluxes linearly
    moved = descent.move(problem, latent, small, floor)
    np.testing.assert_allclose(np.exp(moved[:, :N_BAND] - latent[:, :N_BAND]), 1 + small[:, :N_BAND], rtol=1e-9)
    np.testing.assert_allclose(moved[:, N_BAND:], latent[:, N_BAND:] + small[:, N_BAND:], rtol=0, atol=1e-12)
    # large steps, taken repeatedly, stay near the caller's centre
    for _ in range(10):
        moved = descent.move(problem, moved, np.full(latent.shape, 5.0), floor)
    assert np.abs(moved[:, N_BAND : N_BAND + 2] - problem.offset0).max() <= constants.MAX_DRIFT * (1 + 1e-12)


def test_gauss_newton_finds_a_perturbed_truth(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """The MAP of bright galaxies without noise is the truth."""
    for seed in range(2):
        problem, truth, _, floor = make(toy_deblender, toy_model, seed=seed, noise=False, flux=BRIGHT)
        rng = np.random.default_rng(seed)
        start = truth.copy()
        start[:, :N_BAND] += 0.2 * rng.standard_normal((len(truth), N_BAND))
        start[:, N_BAND : N_BAND + 2] += 0.1 * rng.standard_normal((len(truth), 2))
        start[:, N_BAND + 2 :] += 0.3 * rng.standard_normal((len(truth), N_SHAPE))
        _, state = descent.gauss_newton(problem, start, floor, 40)
        np.testing.assert_allclose(state.latent[:, :N_BAND], truth[:, :N_BAND], atol=1e-3)
        np.testing.assert_allclose(state.latent[:, N_BAND : N_BAND + 2], truth[:, N_BAND : N_BAND + 2], atol=1e-3)
        np.testing.assert_allclose(state.latent[:, N_BAND + 2 :], truth[:, N_BAND + 2 :], atol=0.01)


@pytest.mark.parametrize("robust", [False, True])
def test_both_solvers_agree(toy_deblender: Deblender, toy_model: ToyModel, robust: bool) -> None:
    """Adam lowers L from the same start, and ends near the end of Gauss-Newton."""
    problem, _, start, floor = make(toy_deblender, toy_model, robust=robust)
    before = objective_at(problem, objective.evaluate(problem, start)).sum()
    adam = objective_at(problem, run_adam(problem, start, floor, 60)[1]).sum()
    newton = objective_at(problem, descent.gauss_newton(problem, start, floor, 15)[1]).sum()
    assert adam < before
    assert newton < before
    assert before - adam > 0.8 * (before - newton)


def test_solution(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, _, start, floor = make(toy_deblender, toy_model, robust=True)
    started = start.copy()
    early = descent.solve(problem, start, floor, "gauss_newton", 0)
    late = descent.solve(problem, start, floor, "gauss_newton", 20)
    np.testing.assert_array_equal(start, started)
    np.testing.assert_array_equal(early.state.latent, start)
    for solution in (early, late):
        np.testing.assert_allclose(solution.objective, [objective_at(problem, solution.state).sum()])
    assert late.objective[0] < early.objective[0]
    # downhill is minus the slope of L, with the robust bound of the solution
    likely = objective.likelihood(problem, early.state.model)
    step = 1e-4 * early.downhill / np.linalg.norm(early.downhill)
    ahead, back = (objective.by_blend(problem, likely, objective.evaluate(problem, start + sign * step)).sum()
                   for sign in (1, -1))
    assert (back - ahead) / 2 == pytest.approx((early.downhill * step).sum(), rel=1e-3)
    assert np.abs(late.downhill).max() < 1e-3 * np.abs(early.downhill).max()
    for w, r, y, m, full in zip(late.weights, late.residual, problem.data, late.state.model, problem.weight,
                                strict=True):
        np.testing.assert_allclose(r, w * (y - m), rtol=1e-6)
        assert ((w >= 0) & (w <= full)).all()


def test_secant_meets_the_secant_condition_and_stays_positive() -> None:
    rng = np.random.default_rng(3)
    root = rng.standard_normal((6, 5, 5))
    truth, start = root @ root.transpose(0, 2, 1) + np.eye(5), np.broadcast_to(2.0 * np.eye(5), (6, 5, 5))
    step = rng.standard_normal((6, 5))
    change = (truth @ step[:, :, None])[:, :, 0]
    change[-1] *= -1  # negative curvature: no update
    updated = secant(start, step, change)
    np.testing.assert_allclose((updated @ step[:, :, None])[:-1, :, 0], change[:-1], rtol=1e-10)
    np.testing.assert_array_equal(updated[-1], start[-1])
    assert (np.linalg.eigvalsh(updated) > 0).all()
