"""The rows of a solved problem: every column is filled, blends are numbered, errors agree with the decoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from toy_model import N_BAND, ToyModel, gaussian_psf, make_problem
from toy_scenes import CONVERGED, VARIANCE, make_scene

from deblendrt.engine.compute import folding
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.measure import adaptive_moments, apertures, fit_quality, uncertainty
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene import batches
from deblendrt.engine.scene.flags import SUSPECT, Flag
from deblendrt.engine.solve import constants, descent

ANCHORS = np.array([[14, 16], [19, 20], [40, 33], [30, 40]])
SHAPE = (48, 52)
BY_BAND = ("flux", "flux_err", "flux_sys_err", "redistributed_flux", "redistributed_flux_err", "aperture_flux",
           "aperture_flux_err")
"""NaN in bands that were not measured."""
ALWAYS = ("position", "latent", "position_err", "moments", "ellipticity", "ellipticity_err", "blendedness",
          "flux_overlap", "max_overlap", "map_flux", "chi2", "reduced_chi2",
          "log_prior", "enclosed")
"""Finite for every fitted source, whatever its bands."""
NOT_OF_ROWS = {"source_start", "scene_chi2", "scene_n_pixel", "objective", "sky", "sky_err", "folded_index"}


def columns(result: DeblendResult) -> dict[str, np.ndarray]:
    """Every field that has a row per source."""
    found = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    return {name: value for name, value in found.items()
            if isinstance(value, np.ndarray) and name not in NOT_OF_ROWS}


def content(result: DeblendResult) -> list[bytes]:
    """Bits of every column and of the covariances of the blends."""
    return [a.tobytes() for a in (*columns(result).values(), *result.blend_flux_cov)]


@pytest.fixture(scope="module")
def mixed(toy_deblender: Deblender, toy_model: ToyModel) -> DeblendResult:
    """Three scenes: the first with sources that cannot be fitted, the second empty, the third without r on the left."""
    image, centers, _ = make_scene(toy_deblender, toy_model, ANCHORS, SHAPE)
    bad = np.array([[-30.0, 5.0], [np.nan, 4.0]])
    first = np.concatenate([bad[:1], centers[:2], bad[1:], centers[2:]])
    mask = np.zeros(image.shape, bool)
    mask[1, :, :36] = True
    other, other_centers, _ = make_scene(toy_deblender, toy_model, ANCHORS, SHAPE, seed=1)
    return toy_deblender.deblend_batch([image, image, other], [first, np.zeros((0, 2)), other_centers],
                                       variance=VARIANCE, mask=[np.zeros_like(mask), np.zeros_like(mask), mask],
                                       psf="nominal")


@pytest.fixture(scope="module")
def scene_of_four(toy_deblender: Deblender, toy_model: ToyModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return make_scene(toy_deblender, toy_model, ANCHORS, SHAPE, seed=2)


# --- every column


def test_every_column_is_filled(mixed: DeblendResult) -> None:
    fitted = mixed.fitted
    assert fitted.tolist() == [False, True, True, False] + 6 * [True]
    measured = np.ones((mixed.n_source, N_BAND), bool)
    measured[6:8, 1] = False  # windows of the third scene that end before column 36
    assert (mixed.anchor[6:8, 0] + mixed.folded[0].half < 36).all()
    assert (mixed.anchor[8:, 0] + mixed.folded[0].half >= 36).all()
    known = fitted[:, None] & measured
    for name in BY_BAND:
        np.testing.assert_array_equal(np.isfinite(getattr(mixed, name)), known, name)
    np.testing.assert_array_equal(np.isfinite(mixed.flux_cov), known[:, :, None] & known[:, None])
    for name in ALWAYS:
        value = getattr(mixed, name).reshape(mixed.n_source, -1)
        np.testing.assert_array_equal(np.isfinite(value), np.broadcast_to(fitted[:, None], value.shape), name)
    np.testing.assert_array_equal(mixed.n_pixel > 0, fitted)
    np.testing.assert_array_equal(mixed.blend >= 0, fitted)
    np.testing.assert_array_equal(mixed.coefficients.any((1, 2)), fitted)
    # a column that is added to the result is added to a list here
    listed = {*BY_BAND, *ALWAYS, "flux_cov", "n_pixel", "blend", "coefficients", "extent", "anchor", "center",
              "star", "star_probability", "flags", "scene_index", "source_id"}
    assert listed == set(columns(mixed))


def test_errors_are_positive_and_belong_to_the_covariance(mixed: DeblendResult) -> None:
    for name in ("flux_err", "redistributed_flux_err", "aperture_flux_err", "position_err", "ellipticity_err",
                 "flux_sys_err", "map_flux"):
        value = getattr(mixed, name)
        assert (value[np.isfinite(value)] > 0).all(), name
    np.testing.assert_allclose(mixed.flux_err**2, mixed.flux_cov.diagonal(axis1=1, axis2=2))
    assert (mixed.position_err[mixed.fitted] < 0.2).all()  # the prior's width
    offset = (mixed.position - mixed.anchor)[mixed.fitted]
    np.testing.assert_allclose(offset, mixed.latent[mixed.fitted, N_BAND : N_BAND + 2], atol=1e-7)


def test_a_faint_source_keeps_the_priors_position_error(toy_deblender: Deblender) -> None:
    image = np.random.default_rng(0).normal(0, np.sqrt(VARIANCE)[:, None, None], (N_BAND, 40, 40))
    result = toy_deblender.deblend_batch(image, [(20, 20)], variance=VARIANCE, center_sigma=0.1, psf="nominal")
    np.testing.assert_allclose(result.position_err, 0.1, rtol=0.2)
    assert (np.abs(result.flux) < 5 * result.flux_err).all()


# --- blends


def expected_number(result: DeblendResult) -> np.ndarray:
    """Blends numbered in order of their first rows."""
    number: dict[int, int] = {}
    for b in result.blend[result.blend >= 0].tolist():
        number.setdefault(b, len(number))
    return np.array([number.get(int(b), -1) for b in result.blend])


def assert_blends(result: DeblendResult) -> None:
    np.testing.assert_array_equal(result.blend, expected_number(result))
    assert len(result.blend_flux_cov) == result.blend.max(initial=-1) + 1
    for k, covariance in enumerate(result.blend_flux_cov):
        rows = np.flatnonzero(result.blend == k)
        assert len(set(result.scene_index[rows])) == 1
        assert covariance.shape == (len(rows), N_BAND, len(rows), N_BAND)
        assert covariance.dtype == np.float32
        for member, i in enumerate(rows):
            np.testing.assert_array_equal(covariance[member, :, member], result.flux_cov[i].astype(np.float32))


def test_blends_are_numbered_in_order_of_their_first_member(mixed: DeblendResult) -> None:
    assert_blends(mixed)
    assert mixed.blend.tolist()[:4] == [-1, 0, 0, -1]
    assert mixed.blend[6] == mixed.blend[7] == mixed.blend[:6].max() + 1


def test_blends_are_the_same_whatever_chunks_and_threads(toy_deblender: Deblender, toy_model: ToyModel,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes of two PSFs in turn: they are solved in another order than that of their rows."""
    scenes = [make_scene(toy_deblender, toy_model, ANCHORS[: n + 1], SHAPE, seed=n) for n in (3, 0, 2, 3, 1)]
    images, centers = [s[0] for s in scenes], [s[1] for s in scenes]
    centers[2] = np.concatenate([[[np.nan, 0.0]], centers[2]])
    psf = [np.array([gaussian_psf(f + 0.4 * (k % 2)) for f in (4.0, 3.6, 3.4)]) for k in range(5)]

    def run(n_threads: int) -> DeblendResult:
        return toy_deblender.deblend_batch(images, centers, variance=VARIANCE, psf=psf, n_threads=n_threads)

    whole = run(1)
    assert_blends(whole)
    assert content(run(3)) == content(whole)
    for chunk in (1, 4):
        monkeypatch.setattr(batches, "CHUNK", chunk)
        for n_threads in (1, 3):
            assert content(run(n_threads)) == content(whole)
    # and of a scene alone
    for k in range(5):
        alone = toy_deblender.deblend_batch(images[k], centers[k], variance=VARIANCE, psf=psf[k])
        rows = whole.sources(k)
        skip = {"blend", "scene_index", "source_id"}
        for name, value in columns(alone).items():
            if name not in skip:
                assert value.tobytes() == columns(whole)[name][rows].tobytes(), name
        first = whole.blend[rows][whole.blend[rows] >= 0].min()
        for b, covariance in enumerate(alone.blend_flux_cov):
            np.testing.assert_array_equal(covariance, whole.blend_flux_cov[first + b])


def test_flux_covariance(mixed: DeblendResult) -> None:
    whole = mixed.flux_covariance(range(mixed.n_source))
    for k, blend in enumerate(mixed.blend_flux_cov):
        rows = np.flatnonzero(mixed.blend == k)
        for a, i in enumerate(rows):
            for b, j in enumerate(rows):
                np.testing.assert_array_equal(whole[i, :, j].astype(np.float32), blend[a, :, b])
    for rows in ([1, 2, 4, 5], [5, 2, 1], [1, 6, 2, 7, 9], [4], [2, 2], [-1, 1]):
        covariance = mixed.flux_covariance(rows)
        np.testing.assert_array_equal(covariance, whole[rows][:, :, rows])
        assert covariance.shape == (len(rows), N_BAND, len(rows), N_BAND)
        np.testing.assert_array_equal(covariance, covariance.transpose(2, 3, 0, 1))
        for a, i in enumerate(rows):
            np.testing.assert_array_equal(covariance[a, :, a], mixed.flux_cov[i])
            for b, j in enumerate(rows):
                if mixed.blend[i] != mixed.blend[j]:
                    assert not covariance[a, :, b].any()
                else:
                    known = np.isfinite(mixed.flux[i])[:, None] & np.isfinite(mixed.flux[j])
                    np.testing.assert_array_equal(np.isfinite(covariance[a, :, b]), known)
    pair = mixed.flux_covariance([1, 2])
    assert (pair[0, :, 1].diagonal() < 0).all()  # light gained by a source is lost by the other
    assert np.linalg.eigvalsh(pair.reshape(2 * N_BAND, -1)).min() > 0
    missing = mixed.flux_covariance([0, 1])
    assert np.isnan(missing[0]).all()
    assert np.isnan(missing[:, :, 0]).all()
    np.testing.assert_array_equal(missing[1, :, 1], mixed.flux_cov[1])


# --- apertures and shapes, through the decoder


def test_a_huge_aperture_holds_all_light_of_the_stamp(toy_deblender: Deblender,
                                                      scene_of_four: tuple[np.ndarray, ...]) -> None:
    image, centers, _ = scene_of_four
    result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, aperture_diameter=100.0, psf="nominal")
    on_stamp = toy_deblender.bundle.basis.sum((1, 2), dtype=np.float64)
    light = (result.coefficients * on_stamp).sum(2) / result.map_flux
    np.testing.assert_allclose(result.aperture_flux, result.flux * light, rtol=1e-5)
    np.testing.assert_allclose(light, 1, atol=0.02)
    np.testing.assert_allclose(result.aperture_flux_err, result.flux_err, rtol=0.05)


def test_aperture_flux_is_the_light_in_a_circle(toy_deblender: Deblender,
                                                scene_of_four: tuple[np.ndarray, ...]) -> None:
    image, centers, _ = scene_of_four
    bundle = toy_deblender.bundle
    for diameter in (0.8, 1.2, 2.4):
        result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, aperture_diameter=diameter,
                                             psf="nominal")
        assert result.aperture_diameter == diameter
        for i in range(result.n_source):
            stamp = np.einsum("bk,kyx->byx", result.coefficients[i].astype(np.float64), bundle.basis)
            center = bundle.stamp_size // 2 + result.latent[i, N_BAND : N_BAND + 2].astype(np.float64)
            expected, _ = apertures.aperture_flux(stamp, center, 0.5 * diameter / bundle.pixel_scale)
            np.testing.assert_allclose(result.aperture_flux[i], expected * result.flux[i] / result.map_flux[i],
                                       rtol=1e-4)


def own_covariances(deblender: Deblender, image: Any, centers: Any) -> tuple[np.ndarray, np.ndarray]:
    """Solution and covariance of every source, as `deblend_batch` has them with start="linear"."""
    problem, start, floor = make_problem(deblender, image, centers)
    solution = descent.solve(problem, start, floor, "gauss_newton", constants.ITERATIONS["gauss_newton"])
    n_latent = deblender.bundle.n_latent
    own = np.empty((len(centers), n_latent, n_latent))
    for blend in uncertainty.laplace(problem, solution):
        for member, i in enumerate(blend.rows):
            own[i] = blend.own(member)
    return solution.state.latent, own


def test_errors_of_apertures_and_shapes_against_the_decoder(toy_deblender: Deblender, toy_model: ToyModel,
                                                            scene_of_four: tuple[np.ndarray, ...],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences of both along every latent, in float64, with the source's own covariance."""
    image, centers, _ = scene_of_four
    bundle = toy_deblender.bundle
    monkeypatch.setattr(folding, "NESTED", ())
    toy_deblender = Deblender(toy_deblender.bundle, toy_deblender.runtime)
    result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, start="linear", psf="nominal")
    latent, own = own_covariances(toy_deblender, image, centers)
    np.testing.assert_array_equal(result.latent, latent.astype(np.float32))
    radius = 0.5 * result.aperture_diameter / bundle.pixel_scale
    basis = bundle.basis.astype(np.float64)
    center = bundle.stamp_size // 2 + latent[:, N_BAND : N_BAND + 2]

    def measure(at: np.ndarray) -> np.ndarray:
        """Ellipticity and aperture fluxes, float64 (n_source, 2 + n_band)."""
        coefficients = toy_model.decode(at)
        light = np.einsum("nk,kyx->nyx", coefficients[:, bundle.reference_index], basis)
        found = adaptive_moments.adaptive_moments(light, center, bundle.basis)
        assert found.converged.all()
        inside = np.array([np.einsum("bk,kyx,yx->b", c, basis, apertures.circle(basis.shape[1:], middle, radius))
                           for c, middle in zip(coefficients, center, strict=True)])
        return np.concatenate([adaptive_moments.ellipticity(found.moments), inside], 1)

    np.testing.assert_allclose(result.ellipticity, measure(latent)[:, :2], atol=1e-4)
    gradient = np.zeros((len(latent), 2 + N_BAND, latent.shape[1]))
    for k in range(latent.shape[1]):
        step = np.zeros_like(latent)
        step[:, k] = 1e-4
        gradient[:, :, k] = (measure(latent + step) - measure(latent - step)) / 2e-4
    gradient[:, :, :N_BAND] /= np.exp(latent[:, None, :N_BAND])  # by flux, as the covariance
    gradient[:, 2:, N_BAND : N_BAND + 2] = 0  # the aperture moves with the source
    expected = np.sqrt(np.einsum("nek,nkl,nel->ne", gradient, own, gradient))
    np.testing.assert_allclose(result.ellipticity_err, expected[:, :2], rtol=1e-3)
    np.testing.assert_allclose(result.aperture_flux_err, expected[:, 2:], rtol=1e-3)
    np.testing.assert_allclose(result.flux_cov, own[:, :N_BAND, :N_BAND], rtol=1e-6)
    variance = own.diagonal(axis1=1, axis2=2)
    np.testing.assert_allclose(result.position_err**2, variance[:, N_BAND : N_BAND + 2], rtol=1e-6)
    # a fixed shape would make the aperture's error proportional to the flux's
    assert np.abs(result.aperture_flux_err / result.flux_err * result.flux / result.aperture_flux - 1).max() > 0.05


def test_redistributed_flux_of_a_source_alone(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """A source alone gets the flux of all pixels, with the noise of all pixels."""
    image, centers, truth = make_scene(toy_deblender, toy_model, ANCHORS[[2]], SHAPE, seed=3)
    result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, n_iteration=CONVERGED, psf="nominal")
    pull = (result.redistributed_flux - result.flux) / result.redistributed_flux_err
    assert np.abs(pull).max() < 3
    assert (np.abs(result.redistributed_flux - truth) < 4 * result.redistributed_flux_err).all()
    np.testing.assert_allclose(result.blendedness, 0, atol=1e-5)
    np.testing.assert_allclose(result.max_overlap, 0, atol=1e-3)


# --- flags


def test_not_converged_is_the_remaining_step(toy_deblender: Deblender, scene_of_four: tuple[np.ndarray, ...]) -> None:
    image, centers, _ = scene_of_four
    for n_iteration in (0, 2, 4, 6, 8, CONVERGED):
        problem, start, floor = make_problem(toy_deblender, image, centers)
        solution = descent.solve(problem, start, floor, "gauss_newton", n_iteration)
        downhill = solution.downhill.copy()
        downhill[:, :N_BAND] /= np.exp(solution.state.latent[:, :N_BAND])
        remaining = np.empty(len(centers))
        for blend in uncertainty.laplace(problem, solution):
            remaining[blend.rows] = uncertainty.remaining_step(blend, downhill[blend.rows], N_BAND)
        result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, start="linear", n_iteration=n_iteration,
                                             psf="nominal")
        np.testing.assert_array_equal(result.flags & Flag.NOT_CONVERGED != 0, remaining >= fit_quality.CONVERGED)
        assert n_iteration not in (0, CONVERGED) or (remaining >= fit_quality.CONVERGED).all() == (n_iteration == 0)


def test_a_suspect_source_is_told_to_its_blend(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    image, centers, _ = make_scene(toy_deblender, toy_model, ANCHORS, SHAPE)
    early = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, n_iteration=0, start="linear", psf="nominal")
    suspect = (early.flags & SUSPECT) > 0
    assert suspect.any()
    for i, blend in enumerate(early.blend):
        others = (early.blend == blend) & (np.arange(len(suspect)) != i)
        assert bool(early.flags[i] & Flag.NEIGHBOUR_SUSPECT) == suspect[others].any()
