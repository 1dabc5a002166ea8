"""The objective and its gradient against a float64 definition written a second time, here.

The graphs and the rendering are float32: differences of the engine's own L would measure rounding errors. So L is
defined again in dense float64. The engine's L is compared with this L, and the engine's gradient with central
differences of this L.
"""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import ADJOINT, FLOAT32, GRADIENT, OBJECTIVE, relative_error
from toy_model import N_BAND, ToyModel, add_noise, draw_latent, make_problem, paint, pushed_by

from deblendrt.engine.compute.problem import Problem, State
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.solve import constants, further_rounds, objective, prior
from deblendrt.engine.solve.objective import Likelihood

STEP = 1e-5  # of central differences in float64: truncation 1e-10, rounding 1e-11 of L


def make(deblender: Deblender, model: ToyModel, *, robust: bool, missing: bool = False) -> tuple[Problem, np.ndarray]:
    """Two scenes of five sources, with an unlisted star and masked pixels, and a point Z near the truth."""
    rng = np.random.default_rng(5)
    folded = deblender.fold(None)
    latent = draw_latent(5, rng)
    anchors = [np.array([[12, 20], [18, 24], [40, 3]]), np.array([[30, 30], [35, 30]])]
    shapes = [(48, 44), (60, 60)]
    scenes, centers, masks, start = [], [], [], 0
    for anchor, shape in zip(anchors, shapes, strict=True):
        rows = slice(start, start + len(anchor))
        image = add_noise(paint(model, folded, latent[rows], anchor, shape), rng)
        y, x = np.mgrid[: shape[0], : shape[1]]
        image += (2000 * np.exp(-((x - anchor[0, 0] - 8) ** 2 + (y - anchor[0, 1]) ** 2) / 5)).astype(np.float32)
        mask = rng.random((N_BAND, *shape)) < 0.05
        if missing:
            mask[1] = True
        scenes.append(image)
        masks.append(mask)
        centers.append(anchor + latent[rows, N_BAND : N_BAND + 2])
        start += len(anchor)
    problem, _, _ = make_problem(deblender, scenes, centers, robust=robust, mask=masks)
    assert problem.measured.all() != missing
    return problem, latent + 0.1 * rng.standard_normal(latent.shape)


def log_prior(model: ToyModel, problem: Problem, latent: np.ndarray) -> np.ndarray:
    """Log prior by its three terms, source by source."""
    total = model.log_prior(latent)[0]
    mean, sigma = problem.bundle.mean_color, problem.bundle.color_sigma + constants.COLOR_SLACK
    for i, row in enumerate(latent):
        total[i] -= 0.5 * (((row[N_BAND : N_BAND + 2] - problem.offset0[i]) / problem.center_sigma) ** 2).sum()
        known = problem.measured[i]
        for b in np.flatnonzero(~known):
            expected = np.mean(row[:N_BAND][known] - mean[known]) + mean[b]
            total[i] -= 0.5 * ((row[b] - expected) / sigma[b]) ** 2
    return total


def loss(model: ToyModel, problem: Problem, latent: np.ndarray, likely: Likelihood) -> float:
    """L in float64, with the weights and the robust bound c held."""
    canvas = [np.zeros(d.shape) for d in problem.data]
    size = problem.folded.window
    for c, (x, y), s in zip(model.decode(latent), problem.corner, problem.scene, strict=True):
        stamp = np.einsum("bk,bkp->bp", c, problem.folded.phi.astype(np.float64)).reshape(-1, size, size)
        canvas[s][:, y : y + size, x : x + size] += stamp
    total = -log_prior(model, problem, latent).sum()
    bounds = likely.bound or [np.full(d.shape, np.inf) for d in canvas]
    for m, y, w, c2, part in zip(canvas, problem.data, likely.weight, bounds, problem.partition, strict=True):
        c = np.sqrt(c2, dtype=np.float64)
        t = np.abs(y - m) * np.sqrt(w.astype(np.float64))
        beyond = t > c
        ratio = np.where(beyond, t, 1.0) / np.where(beyond, c, 1.0)
        rho = np.where(beyond, np.where(beyond, c, 0.0) ** 2 * (0.5 + np.log(ratio)), 0.5 * t**2)
        total += rho[:, part.owner >= 0].sum()
    return float(total)


def engine_gradient(problem: Problem, state: State, likely: Likelihood) -> np.ndarray:
    _, residual = objective.weighted_residual(problem, likely, state.model)
    return -(objective.pull(state, objective.project(problem, residual)) + state.prior_gradient)


def central_differences(model: ToyModel, problem: Problem, latent: np.ndarray, likely: Likelihood) -> np.ndarray:
    gradient = np.empty_like(latent)
    for index in np.ndindex(latent.shape):
        ahead, back = latent.copy(), latent.copy()
        ahead[index] += STEP
        back[index] -= STEP
        gradient[index] = (loss(model, problem, ahead, likely) - loss(model, problem, back, likely)) / (2 * STEP)
    return gradient


@pytest.mark.parametrize("temper", [0.0, 0.1], ids=["plain", "tempered"])
@pytest.mark.parametrize("missing", [False, True], ids=["all bands", "a band missing"])
@pytest.mark.parametrize("robust", [False, True], ids=["gaussian", "robust"])
def test_objective_and_gradient(toy_deblender: Deblender, toy_model: ToyModel, robust: bool, missing: bool,
                                temper: float) -> None:
    problem, latent = make(toy_deblender, toy_model, robust=robust, missing=missing)
    state = objective.evaluate(problem, latent)
    likely = objective.likelihood(problem, state.model, temper=temper, error=0.2)
    if robust:
        weights, _ = objective.weighted_residual(problem, likely, state.model)
        assert any((w < 0.5 * full).any() for w, full in zip(weights, likely.weight, strict=True))
    value = objective.by_blend(problem, likely, state).sum()
    assert value == pytest.approx(loss(toy_model, problem, latent, likely), rel=OBJECTIVE)
    gradient = engine_gradient(problem, state, likely)
    expected = central_differences(toy_model, problem, latent, likely)
    for a, e in zip(gradient, expected, strict=True):  # source by source: a bright source must not hide a faint one
        assert np.linalg.norm(a - e) < GRADIENT * np.linalg.norm(e)
    # and each latent's, on the scale of that latent's gradient over the sources; the differences round L itself
    rounding = 10 * np.finfo(np.float64).eps * abs(value) / STEP
    assert (np.abs(gradient - expected) < GRADIENT * np.abs(expected).max(0) + rounding).all()
    if missing:  # small beside the data's gradient: compared alone
        _, prior_gradient = prior.prior_terms(problem, latent)
        numeric = np.empty_like(latent)
        for j in range(latent.shape[1]):
            step = STEP * np.eye(latent.shape[1])[j]
            ahead, back = (log_prior(toy_model, problem, latent + sign * step) for sign in (1, -1))
            numeric[:, j] = (ahead - back) / (2 * STEP)
        np.testing.assert_allclose(prior_gradient, numeric, rtol=1e-5, atol=1e-5)


def test_the_gradient_test_can_fail(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, latent = make(toy_deblender, toy_model, robust=True)
    state = objective.evaluate(problem, latent)
    likely = objective.likelihood(problem, state.model, temper=0.1, error=0.2)
    wrong = objective.likelihood(problem, state.model, temper=0.1, error=0.21)
    expected = central_differences(toy_model, problem, latent, likely)
    assert np.linalg.norm(engine_gradient(problem, state, wrong) - expected) > GRADIENT * np.linalg.norm(expected)


def test_columns_and_pull_are_the_jacobian_and_its_transpose(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, latent = make(toy_deblender, toy_model, robust=False)
    state = objective.evaluate(problem, latent)
    rng = np.random.default_rng(0)
    v = rng.standard_normal(latent.shape)
    g = rng.standard_normal(state.coefficients.shape).astype(np.float32)
    pushed, pulled = pushed_by(state, v), objective.pull(state, g)
    assert pulled.dtype == np.float64
    jacobian = toy_model.jacobian(latent)
    assert relative_error(state.coefficients, toy_model.decode(latent)) < FLOAT32
    for i in range(len(latent)):
        assert relative_error(pushed[i], np.einsum("jbk,j->bk", jacobian[i], v[i])) < FLOAT32
        assert relative_error(pulled[i], np.einsum("jbk,bk->j", jacobian[i], g[i])) < FLOAT32
        left, right = float((pushed[i].astype(np.float64) * g[i]).sum()), float((v[i] * pulled[i]).sum())
        assert abs(left - right) < ADJOINT * np.linalg.norm(pushed[i]) * np.linalg.norm(g[i])
    pullback = problem.runtime.decode_pullback(latent, g)  # the graph that Adam uses agrees
    assert relative_error(pullback, pulled) < FLOAT32


@pytest.mark.parametrize("clip", [0.5, 4.0, 30.0])
def test_rho(clip: float) -> None:
    """rho and its slope are continuous at the clip, its slope is the weight times the residual, and it grows slowly."""
    t = np.concatenate([np.linspace(0, 40, 4001), clip * (1 + np.array([-1e-6, 0, 1e-6]))])
    model, weight = np.zeros((1, 1, 1)), np.array([[[0.25]]])
    level = np.array([[[clip**2]]])

    def rho(t: float) -> float:
        return float(objective.loss_image(np.array([[[2.0 * t]]]), weight, model, level)[0, 0])

    for value in t:
        h = 1e-6
        data = np.array([[[2.0 * value]]])
        robust = float(objective.robust_weight(data, weight, model, level)[0, 0, 0])
        assert 0 <= robust <= 0.25
        slope = (rho(value + h) - rho(value - h)) / (2 * h)  # d rho / dt = W r dr/dt
        assert slope == pytest.approx(robust * 2.0 * value * 2.0, rel=1e-5, abs=1e-6)
        assert rho(value) <= 0.5 * value**2 + 1e-12
    assert rho(clip * (1 + 1e-9)) == pytest.approx(rho(clip * (1 - 1e-9)), rel=1e-8)
    assert rho(0.5 * clip) == pytest.approx(0.125 * clip**2)
    assert objective.loss_image(np.array([[[200.0]]]), weight, model, None)[0, 0] == pytest.approx(5000.0)
    assert objective.robust_weight(np.array([[[200.0]]]), weight, model, None)[0, 0, 0] == 0.25


def test_pixels_without_weight_have_no_say(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, latent = make(toy_deblender, toy_model, robust=True)
    state = objective.evaluate(problem, latent)
    likely = objective.likelihood(problem, state.model, temper=0.1, error=0.2)
    value, gradient = (objective.by_blend(problem, likely, state),
                       engine_gradient(problem, state, likely))
    for data, weight in zip(problem.data, problem.weight, strict=True):
        data[weight == 0] = 1e6
    np.testing.assert_array_equal(objective.by_blend(problem, likely, state), value)
    np.testing.assert_array_equal(engine_gradient(problem, state, likely), gradient)


def test_blends_share_out_the_objective(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """L is the sum over blends; moving a source does not change the value of a blend far from it."""
    problem, latent = make(toy_deblender, toy_model, robust=True)
    assert problem.n_blend == 3
    state = objective.evaluate(problem, latent)
    likely = objective.likelihood(problem, state.model, temper=0.1, error=0.2)
    before = objective.by_blend(problem, likely, state)
    moved = latent.copy()
    moved[3:, 0] += 0.3  # the second scene's
    after_state = objective.evaluate(problem, moved)
    after = objective.by_blend(problem, likely, after_state)
    np.testing.assert_array_equal(after[:2], before[:2])
    assert after[2] != before[2]


def test_likelihood(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """Weights are w / (1 + (tau m)^2), bounds grow with the model error; a Gaussian loss has neither."""
    problem, latent = make(toy_deblender, toy_model, robust=True)
    model = objective.evaluate(problem, latent).model
    plain = objective.likelihood(problem, model)
    tempered = objective.likelihood(problem, model, temper=0.3)
    assert plain.bound is not None
    for w, full, t, m in zip(plain.weight, problem.weight, tempered.weight, model, strict=True):
        np.testing.assert_array_equal(w, full)
        np.testing.assert_allclose(t, full / (1 + 0.09 * full * m**2), rtol=1e-5)
    loose, tight = (objective.likelihood(problem, model, error=e).bound for e in (0.3, 0.05))
    assert loose is not None
    assert tight is not None
    assert all((a >= b).all() and (a > b).any() for a, b in zip(loose, tight, strict=True))
    gaussian, _ = make(toy_deblender, toy_model, robust=False)
    assert objective.likelihood(gaussian, model).bound is None
    assert objective.likelihood(gaussian, model, temper=0.3).bound is None


def test_part_of_a_problem_sees_the_rest_as_background(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, latent = make(toy_deblender, toy_model, robust=True)
    state = objective.evaluate(problem, latent)
    likely = objective.likelihood(problem, state.model)
    blend_scene = np.zeros(problem.n_blend, int)
    blend_scene[problem.blend] = problem.scene
    for blends in ([0], [problem.n_blend - 1], list(range(problem.n_blend))):
        chosen = np.isin(np.arange(problem.n_blend), blends)
        part, rows = further_rounds.some_blends(problem, latent, chosen)
        np.testing.assert_array_equal(rows, np.flatnonzero(chosen[problem.blend]))
        alone = objective.evaluate(part, latent[rows])
        scenes = np.unique(problem.scene[rows])
        for canvas, s in zip(alone.model, scenes, strict=True):
            whole = state.model[s]
            np.testing.assert_allclose(canvas, whole, atol=FLOAT32 * np.abs(whole).max())
        here = np.isin(blend_scene, scenes)
        expected = objective.by_blend(problem, likely, state)[here]
        found = objective.by_blend(part, objective.likelihood(part, alone.model), alone)
        assert relative_error(found[chosen[here]], expected[chosen[here]]) < OBJECTIVE
        np.testing.assert_array_equal(part.own, problem.own[rows])
