"""Redistributed light, blendedness and overlap against dense float64 sums over whole images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from tolerances import FLOAT32, SAMPLE_SIGMA
from toy_model import N_BAND, ToyModel, add_noise, draw_latent, make_problem, paint

from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.measure.light_shares import Sharing, footprint, redistributed_image, share
from deblendrt.engine.result.result import DeblendResult

SHAPE = (52, 50)
CROWD = np.array([[20, 22], [24, 26], [17, 27], [2, 3], [48, 25], [31, 50]])  # three of them cut by an edge


def make(deblender: Deblender, model: ToyModel, anchor: np.ndarray, *, seed: int = 0,
         mask: object = None) -> tuple[Problem, np.ndarray, np.ndarray]:
    """A noisy scene, coefficients and fluxes of models that are 20% off."""
    rng = np.random.default_rng(seed)
    latent = draw_latent(len(anchor), rng)
    image = add_noise(paint(model, deblender.fold(None), latent, anchor, SHAPE), rng)
    problem, _, _ = make_problem(deblender, image, anchor + latent[:, N_BAND : N_BAND + 2], mask=mask)
    latent[:, :N_BAND] += 0.2 * rng.standard_normal((len(anchor), N_BAND))
    return problem, deblender.runtime.decode(latent), np.exp(latent[:, :N_BAND])


def dense(problem: Problem, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images of all sources on the canvas of the only scene, float64, and their footprints."""
    window, folded = problem.folded.window, problem.folded
    images = np.zeros((len(coefficients), *problem.data[0].shape))
    inside = np.zeros((len(coefficients), *problem.data[0].shape[1:]), bool)
    for i, (x, y) in enumerate(problem.corner):
        stamp = np.einsum("bk,bkp->bp", coefficients[i], folded.phi, dtype=np.float64).reshape(N_BAND, window, window)
        weight = problem.weight[0][:, y : y + window, x : x + window].astype(float)
        images[i, :, y : y + window, x : x + window] = stamp
        mean = (weight * stamp**2).sum((1, 2)) / (stamp**2).sum((1, 2))
        significance = np.sqrt((mean[:, None, None] * stamp**2).sum(0))
        inside[i, y : y + window, x : x + window] = significance >= min(1.0, 0.5 * significance.max())
    return images, inside


def assert_close(actual: np.ndarray, expected: np.ndarray, scale: np.ndarray) -> None:
    assert (np.abs(actual - expected) <= 10 * FLOAT32 * scale).all()


def test_against_dense_sums(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    mask = np.random.default_rng(3).random((N_BAND, *SHAPE)) < 0.1
    problem, coefficients, flux = make(toy_deblender, toy_model, CROWD, mask=mask)
    sharing = share(problem, coefficients, flux)
    images, inside = dense(problem, coefficients)
    (data,), (weight,) = problem.data, problem.weight
    light = np.maximum(images, 0)
    used = inside.any(0) & (weight > 0)
    part = np.where(used, light / np.maximum(light.sum(0), 1e-30), 0)
    total = images.sum(0)
    assert_close(sharing.redistributed_flux, flux + (part * (data - total)).sum((2, 3)), flux)
    variance = np.where(weight > 0, 1 / np.where(weight > 0, weight, 1), 0)
    np.testing.assert_allclose(sharing.redistributed_flux_err, np.sqrt((part**2 * variance).sum((2, 3))), rtol=1e-5)
    np.testing.assert_allclose(sharing.blendedness,
                               1 - (images**2).sum((2, 3)) / (images * total).sum((2, 3)), atol=1e-5)
    neighbours = (total - images) * inside[:, None]
    assert_close(sharing.flux_overlap, neighbours.sum((2, 3)), total.sum((1, 2)))
    assert_close(sharing.max_overlap, neighbours.max((2, 3)), total.max((1, 2)))


def test_scene_keeps_its_light(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """Redistributed fluxes add up to the data in the footprint and the models outside it."""
    problem, coefficients, flux = make(toy_deblender, toy_model, CROWD)
    images, inside = dense(problem, coefficients)
    used = inside.any(0) & (problem.weight[0] > 0) & (images > 0).any(0)  # the toy's wings are negative in places
    gain = np.where(used, problem.data[0] - images.sum(0), 0).sum((1, 2))
    assert np.abs(gain).max() > 100
    assert_close(share(problem, coefficients, flux).redistributed_flux.sum(0), flux.sum(0) + gain, flux.sum(0))


def test_a_source_alone(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, coefficients, flux = make(toy_deblender, toy_model, np.array([[25, 25]]))
    sharing = share(problem, coefficients, flux)
    np.testing.assert_allclose(sharing.blendedness, 0, atol=FLOAT32)
    assert (sharing.flux_overlap == 0).all()
    assert (sharing.max_overlap == 0).all()
    (stamp,), (inside,) = dense(problem, coefficients)
    # it gets everything within its footprint, whatever its model
    expected = flux[0] + ((problem.data[0] - stamp) * (inside & (stamp > 0))).sum((1, 2))
    assert_close(sharing.redistributed_flux[0], expected, flux[0])


def test_coincident_sources_halve_the_light(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, coefficients, flux = make(toy_deblender, toy_model, np.array([[25, 25]]))
    alone = share(problem, coefficients, flux)
    twice = np.array([0, 0])
    pair = dataclasses.replace(problem, scene=problem.scene[twice], blend=problem.blend[twice],
                               corner=problem.corner[twice], offset0=problem.offset0[twice],
                               measured=problem.measured[twice], extent=problem.extent[twice])
    sharing = share(pair, 0.5 * coefficients[twice], 0.5 * flux[twice])
    np.testing.assert_allclose(sharing.blendedness, 0.5, atol=FLOAT32)
    np.testing.assert_allclose(sharing.redistributed_flux[0], sharing.redistributed_flux[1])
    # half of a source has a smaller footprint: little else changes
    assert (np.abs(sharing.redistributed_flux.sum(0) - alone.redistributed_flux[0])
            < 0.5 * alone.redistributed_flux_err[0]).all()


def test_masked_pixels_keep_the_model(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    mask = np.zeros((N_BAND, *SHAPE), bool)
    mask[:, 20:24, 18:23] = True  # the core of the first
    masked, coefficients, flux = make(toy_deblender, toy_model, CROWD[:1], mask=mask)
    sharing = share(masked, coefficients, flux)
    assert np.isfinite(sharing.redistributed_flux).all()
    images, _ = dense(masked, coefficients)
    clean = dataclasses.replace(masked, data=[images[0].astype(np.float32)])
    assert_close(share(clean, coefficients, flux).redistributed_flux, flux, flux)


def test_a_band_without_weight(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    mask = np.zeros((N_BAND, *SHAPE), bool)
    mask[1] = True
    problem, coefficients, flux = make(toy_deblender, toy_model, CROWD, mask=mask)
    sharing = share(problem, coefficients, flux)
    for values in (sharing.redistributed_flux, sharing.redistributed_flux_err):
        assert np.isnan(values[:, 1]).all()
        assert np.isfinite(values[:, [0, 2]]).all()
    assert np.isfinite(sharing.blendedness).all()  # it follows from the models alone


def test_a_faint_source_has_a_footprint(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, coefficients, flux = make(toy_deblender, toy_model, np.array([[25, 25]]))
    faint = np.float32(1e-4)
    sharing = share(problem, faint * coefficients, faint * flux)
    assert (sharing.redistributed_flux_err > 1).all()  # a sum over several pixels of sigma 1 to 2
    assert not footprint(np.zeros((3, 9, 9), np.float32), np.ones((3, 9, 9), np.float32)).any()


def test_error_is_the_scatter(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    problem, coefficients, flux = make(toy_deblender, toy_model, CROWD)
    images, _ = dense(problem, coefficients)
    rng = np.random.default_rng(5)
    noise = np.where(problem.weight[0] > 0, 1 / np.sqrt(np.maximum(problem.weight[0], 1e-9)), 0)
    n = 200
    pulls = []
    for _ in range(n):
        data = (images.sum(0) + noise * rng.standard_normal(noise.shape)).astype(np.float32)
        sharing = share(dataclasses.replace(problem, data=[data]), coefficients, flux)
        pulls.append((sharing.redistributed_flux - flux) / sharing.redistributed_flux_err)
    assert (np.abs(np.mean(pulls, 0)) < SAMPLE_SIGMA / np.sqrt(n)).all()
    assert (np.abs(np.std(pulls, 0) - 1) < SAMPLE_SIGMA / np.sqrt(2 * n)).all()


def test_bits_do_not_depend_on_other_scenes(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    one, c_one, f_one = make(toy_deblender, toy_model, CROWD)
    other, c_other, f_other = make(toy_deblender, toy_model, CROWD[:2], seed=1)
    both = dataclasses.replace(
        one, data=other.data + one.data, weight=other.weight + one.weight,
        scene=np.concatenate([other.scene, one.scene + 1]), corner=np.concatenate([other.corner, one.corner]),
        measured=np.concatenate([other.measured, one.measured]),
        extent=np.concatenate([other.extent, one.extent]))
    alone = share(one, c_one, f_one)
    together = share(both, np.concatenate([c_other, c_one]), np.concatenate([f_other, f_one]))
    for field in dataclasses.fields(Sharing):
        np.testing.assert_array_equal(getattr(together, field.name)[2:], getattr(alone, field.name))


def test_images_add_up_to_the_data(toy_result: Callable[..., DeblendResult]) -> None:
    result = toy_result(bands="gri", n_source=8)
    scene = result.scenes[0]
    window = result.folded[0].window
    total = np.zeros((3, scene.shape[0] + 2 * window, scene.shape[1] + 2 * window))
    covered = np.zeros(total.shape[1:], bool)
    weight = np.pad(scene.inverse_variance, ((0, 0), (window, window), (window, window)))
    for i in range(result.n_source):
        image, (x, y) = redistributed_image(result, i)
        assert image.dtype == np.float32
        stamp, corner = result.stamps(i)
        assert corner == (x, y)
        here = (slice(None), slice(y + window, y + 2 * window), slice(x + window, x + 2 * window))
        if not result.fitted[i]:
            assert (image == 0).all()
            continue
        total[here] += image
        covered[here[1:]] |= footprint(stamp, weight[here])
        np.testing.assert_array_equal(image[weight[here] == 0], stamp[weight[here] == 0])
    inner = (slice(None), slice(window, -window), slice(window, -window))
    inside = covered[inner[1:]] & (scene.inverse_variance > 0)
    assert inside.mean() > 0.2
    expected = np.where(inside, scene.image, result.model(0))
    assert np.abs(total[inner] - expected).max() < FLOAT32 * np.abs(scene.image).max()
    np.testing.assert_array_equal(redistributed_image(result, -1)[0], redistributed_image(result, 7)[0])
    with pytest.raises(IndexError, match="i_source"):
        redistributed_image(result, 8)


def test_image_and_flux_agree(toy_deblender: Deblender, batch: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    images, centers = batch
    result = toy_deblender.deblend_batch(images, centers, n_iteration=2, psf="nominal")
    scenes = [k for k in range(result.n_scene) if len(centers[k])]
    problem, _, _ = make_problem(toy_deblender, [images[k] for k in scenes], [centers[k] for k in scenes],
                                 variance=None)
    assert len(problem.corner) == result.n_source  # all fitted
    problem = dataclasses.replace(problem, extent=result.extent)
    sharing = share(problem, result.coefficients, result.map_flux)
    for i in range(result.n_source):
        image, _ = redistributed_image(result, i)
        gain = (image.astype(float) - result.stamps(i)[0]).sum((1, 2))
        difference = sharing.redistributed_flux[i] - result.map_flux[i] - gain
        assert (np.abs(difference) < 1e-3 * sharing.redistributed_flux_err[i]).all()
