"""The misfit of models: its estimator, the source that it belongs to, and the error and flag that follow."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from toy_model import N_BAND, SKY_SIGMA, ToyModel, add_noise, draw_latent, make_problem, paint
from toy_scenes import CONVERGED, VARIANCE

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.measure import fit_quality, systematic_error
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.solve import descent

ANCHORS = np.array([[22, 24], [62, 24]])
SHAPE = (50, 84)
FLUX = (3e4, 6e4)  # bright: a misfit of a few per cent is many sigma


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_the_estimator_is_unbiased_and_knows_its_scatter(error: float) -> None:
    rng = np.random.default_rng(0)
    v = rng.uniform(1, 30, 80)
    found = np.array(
        [
            systematic_error.excess(np.sqrt(v) * rng.standard_normal(80) + error * v * rng.choice([-1, 1], 80), v)
            for _ in range(3000)
        ]
    )
    scatter = found[:, 0].std() / np.sqrt(len(found))
    np.testing.assert_allclose(found[:, 0].mean(), error**2, atol=4 * scatter)
    if error == 0:
        np.testing.assert_allclose(found[:, 1].std(), 1, rtol=0.05)
    assert (found[:, 1] > fit_quality.MISFIT_SIGMA).mean() < 2e-3 or error > 0


def test_nothing_follows_from_nothing() -> None:
    assert systematic_error.excess(np.zeros(4), np.zeros(4)) == (0.0, 0.0)


def scene(deblender: Deblender, model: ToyModel, wrong: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two bright sources far apart; the light of the first is wrong by a factor 1 +- `wrong` in stripes 2 wide."""
    rng = np.random.default_rng(seed)
    latent = draw_latent(2, rng, flux=FLUX)
    first, second = (paint(model, deblender.fold(None), latent[[k]], ANCHORS[[k]], SHAPE) for k in (0, 1))
    stripes = np.where(np.arange(SHAPE[1]) // 2 % 2, 1.0, -1.0)
    image = add_noise(first * (1 + wrong * stripes) + second, rng)
    return image, ANCHORS + latent[:, N_BAND : N_BAND + 2]


def test_a_misfit_is_its_source_s(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    clean, wrong = (toy_deblender.deblend_batch(*scene(toy_deblender, toy_model, e), variance=VARIANCE,
                                                psf="nominal", n_iteration=CONVERGED) for e in (0.0, 0.1))
    assert not (clean.flags & Flag.POOR_FIT).any()
    smooth = clean.flux_sys_err / clean.map_flux
    assert ((smooth >= systematic_error.FLOOR) & (smooth < 0.02)).all()
    assert (wrong.flags & Flag.POOR_FIT != 0).tolist() == [True, False]
    relative = wrong.flux_sys_err / wrong.map_flux
    np.testing.assert_allclose(relative[1], smooth[1], rtol=0.1)
    np.testing.assert_allclose(
        relative[0], systematic_error.SCALE * 0.1, rtol=0.5
    )  # the fit takes a part of the stripes


def test_against_the_formula(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """Estimate the misfit pixel by pixel, in float64, for a source that is alone."""
    image, centers = scene(toy_deblender, toy_model, 0.1)
    problem, start, floor = make_problem(toy_deblender, image, centers)
    solution = descent.solve(problem, start, floor, "gauss_newton", 15)
    found = systematic_error.misfit(problem, solution)
    half = min(systematic_error.MISFIT_HALF, problem.folded.half) // 2 * 2
    x, y = problem.corner[0] + problem.folded.half
    model = solution.state.model[0].astype(np.float64)  # the other source is far away
    squares: dict[tuple[int, int], list[float]] = {}
    rings: dict[int, list[float]] = {}
    for iy in range(y - half, y + half):
        for ix in range(x - half, x + half):
            m, r = model[:, iy, ix], problem.data[0][:, iy, ix] - model[:, iy, ix]
            weight, light = problem.weight[0][:, iy, ix], np.maximum(m, 0)
            terms = np.array([(weight * light * r).sum(), (weight * light**2).sum()])
            radius = np.hypot(*(np.array([ix - x, iy - y]) - solution.state.latent[0, N_BAND : N_BAND + 2]))
            ring = sum(radius >= edge for edge in systematic_error.RING_EDGES)
            squares.setdefault(((iy - y + half) // 2, (ix - x + half) // 2), []).append(terms)
            if ring < len(systematic_error.RING_EDGES):
                rings.setdefault(ring, []).append(terms)
    expected = []
    for groups in (squares, rings):
        u, v = np.array([np.sum(terms, 0) for terms in groups.values()]).T
        expected.append(((u**2 - v).sum() / (v**2).sum(), (u**2 - v).sum() / np.sqrt(2 * (v**2).sum())))
    np.testing.assert_allclose(found.significance[0], max(z for _, z in expected), rtol=1e-3)
    np.testing.assert_allclose(found.error[0], np.sqrt(max(e for e, z in expected if z > 3)), rtol=1e-3)


def test_pure_noise_is_no_misfit(toy_deblender: Deblender) -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(0, np.array(SKY_SIGMA)[:, None, None], (N_BAND, *SHAPE))
    result = toy_deblender.deblend_batch(image, ANCHORS, variance=VARIANCE, psf="nominal")
    assert (
        result.flux_sys_err < 1.01 * np.hypot(systematic_error.FLOOR, systematic_error.HIDDEN) * result.map_flux
    ).all()
    assert not (result.flags & Flag.POOR_FIT).any()


def test_a_bundle_may_state_its_floor(toy_deblender: Deblender) -> None:
    bundle = toy_deblender.bundle
    found = systematic_error.Misfit(np.array([0.0, 0.02]), np.array([0.0, 9.0]), np.zeros((2, 2)))
    flux = np.array([[100.0, 200.0], [100.0, 200.0]])
    stated = dataclasses.replace(bundle, training=bundle.training | {"flux_floor": 0.01})
    for floor, b in ((systematic_error.FLOOR, bundle), (0.01, stated)):
        expected = np.array([floor, np.hypot(systematic_error.SCALE * 0.02, floor)])[:, None] * flux
        np.testing.assert_allclose(systematic_error.flux_error(found, flux, b), expected)


def test_shared_light_has_the_error_that_the_bundle_states(toy_deblender: Deblender) -> None:
    bundle = toy_deblender.bundle
    flux, overlap = np.array([[100.0, 100.0, 100.0]]), np.array([[400.0, 0.0, -1.0]])
    assert not systematic_error.from_sharing(flux, overlap, bundle).any()
    stated = dataclasses.replace(bundle, training=bundle.training | {"shared_light_error": 0.15})
    np.testing.assert_allclose(systematic_error.from_sharing(flux, overlap, stated), [[30.0, 0.0, 0.0]])


def test_light_that_nobody_saw(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """Hidden light of a galaxy whose half is masked, or beyond the image's edge."""
    image, centers = scene(toy_deblender, toy_model, 0.0)
    mask = np.zeros(SHAPE, bool)
    mask[: ANCHORS[0, 1], :40] = True
    found = []
    for options in ({}, {"mask": mask}):
        problem, start, floor = make_problem(toy_deblender, image, centers, **options)
        solution = descent.solve(problem, start, floor, "gauss_newton", 15)
        found.append(systematic_error.misfit(problem, solution).hidden / np.exp(solution.state.latent[:, :N_BAND]))
    clean, masked = found
    assert ((clean >= 0) & (clean < 0.15)).all()
    assert ((masked[0] > 0.35) & (masked[0] < 0.65)).all()
    np.testing.assert_allclose(masked[1], clean[1], atol=0.01)
    cut = int(ANCHORS[1, 0]) + 1
    problem, start, floor = make_problem(toy_deblender, image[:, :, :cut], centers)
    solution = descent.solve(problem, start, floor, "gauss_newton", 15)
    off = systematic_error.misfit(problem, solution).hidden / np.exp(solution.state.latent[:, :N_BAND])
    assert ((off[1] > 0.25) & (off[1] < 0.65)).all()


def test_wings_of_a_much_brighter_neighbour(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """Only the faint member of a blend has the error, in proportion to the light beneath it, and up to its limit."""
    image, centers = scene(toy_deblender, toy_model, 0.0)
    problem = make_problem(toy_deblender, image, centers)[0]
    together = dataclasses.replace(problem, blend=np.zeros(2, np.int64), n_blend=1)
    apart = dataclasses.replace(problem, blend=np.arange(2), n_blend=2)
    bright, error = np.full(N_BAND, 1e4), np.full((2, N_BAND), 10.0)
    overlap = np.array([np.full(N_BAND, 50.0), np.linspace(-10.0, 1e4, N_BAND)])
    faint = np.array([bright, bright / systematic_error.MUCH_BRIGHTER * 0.99])
    close = np.array([bright, bright / systematic_error.MUCH_BRIGHTER * 1.01])
    found = systematic_error.from_neighbours(together, faint, error, overlap)
    expected = np.clip(systematic_error.WING_ERROR * overlap[1], 0, systematic_error.WING_SIGMA * error[1])
    np.testing.assert_array_equal(found, [np.zeros(N_BAND), expected])
    assert found[1, 0] == 0
    assert found[1, -1] == systematic_error.WING_SIGMA * 10.0
    for problem, flux in ((together, close), (apart, faint)):
        assert not systematic_error.from_neighbours(problem, flux, error, overlap).any()
