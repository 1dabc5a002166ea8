"""Stars: the reference PSF drawn with the basis of the shipped model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tolerances import ADJOINT, SAMPLE_SIGMA
from toy_model import N_BAND, ToyModel, draw_latent, make_problem, pushed_by
from toy_scenes import VARIANCE, make_scene, star_field

from deblendrt.engine.compute import decoding
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.model.bundle import Bundle, load_bundle
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.solve import objective

# Share of the reference PSF's L2 norm that the basis cannot draw: 0.06 to 0.08% over offsets within half a pixel.
TRUNCATION = 1e-3


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle("lsst")


@pytest.fixture(scope="module")
def deblender() -> Deblender:
    return Deblender.load("lsst")


def gaussian(size: int, x: float, y: float) -> np.ndarray:
    grid = np.arange(size) - size // 2
    image = np.exp(-0.5 * ((grid[:, None] - y) ** 2 + (grid - x) ** 2))
    return image / image.sum()


def test_a_star_is_the_reference_psf(bundle: Bundle) -> None:
    offset = np.random.default_rng(0).uniform(-0.7, 0.7, (12, 2))
    unit, _ = decoding.point_sources(bundle, offset)
    basis = bundle.full_basis.astype(np.float64)
    for c, (x, y) in zip(unit, offset, strict=True):
        expected = gaussian(basis.shape[-1], x, y)
        drawn = np.tensordot(c, basis, 1)
        assert drawn.sum() == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(drawn - expected) < 3 * TRUNCATION * np.linalg.norm(expected)  # scaled to unit flux


def test_derivatives(bundle: Bundle) -> None:
    offset, step = np.array([[0.2, -0.4], [0.0, 0.5]]), 1e-4
    _, by_offset = decoding.point_sources(bundle, offset)
    for axis in range(2):
        move = step * np.eye(2)[axis]
        ahead, back = (decoding.point_sources(bundle, offset + sign * move)[0] for sign in (1, -1))
        np.testing.assert_allclose(by_offset[:, axis], (ahead - back) / (2 * step), atol=1e-6)


def test_stars_among_galaxies(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """The factored derivative, the pullback and the coefficients of a star agree; galaxies do not change."""
    image, centers, _ = make_scene(toy_deblender, toy_model, [[14, 16], [30, 20], [24, 36]])
    problem, latent, _ = make_problem(toy_deblender, image, centers)
    mixed = dataclasses.replace(problem, star=np.array([False, True, False]))
    latent = latent + 0.1 * np.random.default_rng(0).standard_normal(latent.shape)
    state, plain = objective.evaluate(mixed, latent), objective.evaluate(problem, latent)
    np.testing.assert_array_equal(state.coefficients[[0, 2]], plain.coefficients[[0, 2]])
    np.testing.assert_allclose(state.coefficients, decoding.decode(mixed, latent), rtol=1e-5, atol=1e-4)
    unit, _ = decoding.point_sources(problem.bundle, latent[1:2, N_BAND : N_BAND + 2])
    np.testing.assert_allclose(state.coefficients[1], np.exp(latent[1, :N_BAND, None]) * unit, rtol=1e-5, atol=1e-4)
    rng = np.random.default_rng(1)
    v, g = rng.standard_normal(latent.shape), rng.standard_normal(state.coefficients.shape).astype(np.float32)
    pushed, pulled = pushed_by(state, v), objective.pull(state, g)
    assert abs((pushed * g).sum() - (v * pulled).sum()) < ADJOINT * np.linalg.norm(pushed) * np.linalg.norm(g)
    np.testing.assert_allclose(decoding.decode_pullback(mixed, latent, g), pulled, rtol=1e-3, atol=1e-2)
    value, gradient = decoding.log_prior(mixed, latent)
    np.testing.assert_allclose(gradient[1, N_BAND + 2 :], -latent[1, N_BAND + 2 :])
    assert value[1] == pytest.approx(-0.5 * (latent[1, N_BAND + 2 :] ** 2).sum())


@pytest.mark.parametrize("solver", ["gauss_newton", "adam"])
def test_stars_are_found_to_their_errors(deblender: Deblender, solver: str) -> None:
    image, centers, flux, star = star_field(deblender)
    kind = np.where(star, "star", "galaxy")
    variance = np.asarray(deblender.bundle.sky_sigma) ** 2
    result = deblender.deblend_batch(image, centers, variance=variance, kind=kind, solver=solver, psf="nominal")
    np.testing.assert_array_equal(result.star, star)
    pull = (result.flux - flux) / result.flux_err
    assert (np.abs(pull[star]) < SAMPLE_SIGMA).all()
    assert (np.abs(result.position - centers)[star] < SAMPLE_SIGMA * result.position_err[star]).all()
    assert (result.reduced_chi2[star] < 1.1).all()
    assert np.isnan(result.log_prior[star]).all()
    assert not (result.flags[star] & (Flag.PRIOR_OUTLIER | Flag.POOR_FIT | Flag.NOT_CONVERGED)).any()
    assert (np.abs(result.ellipticity[star]) < 0.02).all()
    assert (result.flux_err[star] < 1.1 * flux_error_of_a_point(deblender)).all()


def flux_error_of_a_point(deblender: Deblender) -> np.ndarray:
    """Error of the flux of a lone star at a known position; neighbours and the position add little in this field."""
    psf = np.asarray(deblender.bundle.psf, np.float64)
    return np.asarray(deblender.bundle.sky_sigma) / np.sqrt((psf**2).sum((1, 2))) * 1.15


def test_kinds_as_they_come(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    image, centers, _ = make_scene(toy_deblender, toy_model, [[14, 16], [30, 20]])

    def star(kind: object, nested: bool = False) -> list[bool]:
        given = ([image, image], [centers, centers]) if nested else (image, centers)
        result: DeblendResult = toy_deblender.deblend_batch(*given, variance=VARIANCE, psf="nominal", kind=kind,
                                                              n_iteration=1)
        return result.star.tolist()

    assert star(None) == star("galaxy") == [False, False]
    assert star("star") == [True, True]
    assert star(["star", "galaxy"]) == [True, False]
    assert star([["star", "galaxy"], ["galaxy", "star"]], nested=True) == [True, False, False, True]
    assert star("star", nested=True) == [True] * 4
    for wrong in ("quasar", "", ["star"], ["star", "quasar"], ["star", None]):
        with pytest.raises(ValueError, match="kind"):
            star(wrong)


def test_a_galaxy_does_not_notice_a_star_elsewhere(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """A scene without stars keeps its bits beside a scene with stars."""
    image, centers, _ = make_scene(toy_deblender, toy_model, [[14, 16], [30, 20]])
    alone = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf="nominal")
    both = toy_deblender.deblend_batch([image, image], [centers, centers], variance=VARIANCE,
                                       kind=[["star", "galaxy"], ["galaxy", "galaxy"]], psf="nominal")
    np.testing.assert_array_equal(both.flux[2:], alone.flux)
    np.testing.assert_array_equal(both.latent[2:], alone.latent)
    assert (draw_latent(1, np.random.default_rng(0)).shape[1],) == both.latent.shape[1:]
