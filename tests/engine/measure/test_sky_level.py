"""A sky that is left in the images: its level, its error, and the sources that it matters for."""

from __future__ import annotations

import numpy as np
import pytest
from toy_model import N_BAND, SKY_SIGMA, ToyModel, add_noise, draw_latent, make_problem, paint
from toy_scenes import CONVERGED, VARIANCE

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.measure import sky_level
from deblendrt.engine.scene.flags import SUSPECT, Flag
from deblendrt.engine.solve import descent

ANCHORS = np.array([[32, 34], [92, 70]])
SHAPE = (104, 128)
SKIES = [(0.0, 0.0, 0.0), (0.3, 0.0, -0.3), (-0.3, 0.2, 0.3)]  # sigma per pixel


def scene(deblender: Deblender, model: ToyModel, sky: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Draw two separate galaxies and a sky, with the same noise always."""
    rng = np.random.default_rng(3)
    latent = draw_latent(2, rng, flux=(1000.0, 2000.0))
    image = add_noise(paint(model, deblender.fold(None), latent, ANCHORS, SHAPE), rng)
    image += (np.array(sky) * SKY_SIGMA)[:, None, None].astype(np.float32)
    return image, ANCHORS + latent[:, N_BAND : N_BAND + 2]


@pytest.mark.parametrize("sky", SKIES)
def test_the_level_is_the_sky_s(toy_deblender: Deblender, toy_model: ToyModel, sky: tuple[float, ...]) -> None:
    image, centers = scene(toy_deblender, toy_model, sky)
    solution = descent.solve(*make_problem(toy_deblender, image, centers), "gauss_newton", 15)
    level, error = sky_level.levels(solution.problem, solution.state.model, 0)
    pixel_error = np.array(SKY_SIGMA) / np.sqrt(image[0].size)
    assert ((error > pixel_error) & (error < 2 * pixel_error)).all()  # a median has 1.25 times the mean's error
    np.testing.assert_array_less(np.abs(level - np.array(sky) * SKY_SIGMA), 4 * error)


@pytest.mark.parametrize("sky", SKIES)
def test_sources_that_a_sky_moves_are_flagged(toy_deblender: Deblender, toy_model: ToyModel,
                                              sky: tuple[float, ...]) -> None:
    image, centers = scene(toy_deblender, toy_model, sky)
    result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, n_iteration=CONVERGED, psf="nominal")
    flagged = (result.flags & Flag.SKY_OFFSET) > 0
    assert flagged.all() if any(sky) else not flagged.any()
    given = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, n_iteration=CONVERGED,
                                        background=np.array(sky) * SKY_SIGMA, psf="nominal")
    assert not (given.flags & Flag.SKY_OFFSET).any()


def test_a_small_image_has_no_level(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    image, centers = scene(toy_deblender, toy_model, (0.3, 0.3, 0.3))
    image, centers = image[:, 18:42, 16:48], centers[:1] - [16, 18]  # twelve blocks
    solution = descent.solve(*make_problem(toy_deblender, image, centers), "gauss_newton", 5)
    assert np.isnan(sky_level.levels(solution.problem, solution.state.model, 0)).all()


def test_a_flag_of_the_data_is_no_flag_of_the_fit() -> None:
    assert not SUSPECT & Flag.SKY_OFFSET
