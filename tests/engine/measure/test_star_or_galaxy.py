"""Star or galaxy: the kinds are found, and a result with found kinds equals a result with given kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import N_BAND, SKY_SIGMA, ToyModel
from toy_scenes import VARIANCE, rows, star_field

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.files.fits import read_image
from deblendrt.engine.measure import star_or_galaxy
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import Flag

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
Field = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def deblender() -> Deblender:
    return Deblender.load("lsst")


@pytest.fixture(scope="module")
def field(deblender: Deblender) -> Field:
    return star_field(deblender)


@pytest.fixture(scope="module")
def toy_field(toy_deblender: Deblender) -> Field:
    return star_field(toy_deblender)


def deblend(deblender: Deblender, field: Field, **options: Any) -> DeblendResult:
    return deblender.deblend_batch(field[0], field[1], variance=np.asarray(deblender.bundle.sky_sigma) ** 2,
                                   psf="nominal", **options)


def test_stars_and_galaxies_are_told_apart(deblender: Deblender, field: Field) -> None:
    star = field[3]
    found = deblend(deblender, field, kind="auto")
    np.testing.assert_array_equal(found.star, star)
    assert (found.star_probability[star] > 0.99).all()
    assert (found.star_probability[~star] < 0.01).all()
    told = deblend(deblender, field, kind=np.where(star, "star", "galaxy"))
    np.testing.assert_array_equal(told.star_probability, star)
    assert rows(found, 0) == rows(told, 0)  # solved again as if it had been told


def test_a_shape_that_no_galaxy_has_does_not_beat_a_star(toy_deblender: Deblender, toy_field: Field,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """A galaxy of impossible shape is a star for any evidence, unless the star explains much less."""
    monkeypatch.setattr(
        star_or_galaxy, "log_evidence", lambda problem, solution, _: np.where(problem.star, -100.0, 0.0)
    )
    for percentile, convincing, all_stars in ((np.inf, np.inf, True), (np.inf, 0.0, False), (-np.inf, np.inf, False)):
        monkeypatch.setitem(toy_deblender.bundle.log_prob_percentiles, "0.1", percentile)
        monkeypatch.setattr(star_or_galaxy, "CONVINCING", convincing)
        found = deblend(toy_deblender, toy_field, kind="auto", n_iteration=2)
        assert (found.star_probability > 0.99).all() == all_stars
        assert (found.star_probability < 0.01).all() != all_stars


@pytest.mark.skipif(not SHARED.is_dir(), reason="real images are not in the repository (../shared/data)")
@pytest.mark.parametrize(("name", "place"), [("dc2_field_1", (56, 178)), ("dc2_field_2", (31, 224))])
def test_bright_unlisted_stars_of_coadds(deblender: Deblender, name: str, place: tuple[int, int]) -> None:
    """The PSF images of these stars, Moffat fits, are wrong by far more than the noise."""
    file = read_image(SHARED / f"{name}.fits")
    result = deblender.deblend_batch(file.image, file.centers, variance=file.variance, mask=file.mask, psf=file.psf,
                                     bands=file.bands, zero_point=file.zero_point, kind="auto", find_missed=True)
    (found,) = np.flatnonzero(np.hypot(*(result.position - place).T) < 1.5)
    assert result.star[found]
    assert result.flags[found] & Flag.FOUND


@pytest.mark.parametrize("star_fraction", [0.1, 0.5])
def test_a_faint_source_keeps_the_prior(deblender: Deblender, star_fraction: float) -> None:
    sigma = np.asarray(deblender.bundle.sky_sigma)
    image = np.random.default_rng(2).normal(0, sigma[:, None, None], (len(sigma), 80, 80))
    result = deblender.deblend_batch(image, [(25, 40), (55, 40)], variance=sigma**2, kind="auto",
                                     star_fraction=star_fraction, psf="nominal")
    odds = result.star_probability / (1 - result.star_probability) * (1 - star_fraction) / star_fraction
    assert (np.abs(np.log(odds)) < 2.5).all()  # Laplace takes the prior of shapes as Gaussian, which it is not


def test_a_scene_does_not_notice_its_batch(toy_deblender: Deblender, toy_field: Field) -> None:
    image, centers, _, _ = toy_field
    images, lists = [image, image[:, 10:, 5:], image[:, :70]], [centers, centers - [5, 10], centers[:2]]
    kinds = ["auto", ["star", "auto", "auto", "galaxy"], ["galaxy", "galaxy"]]
    together = toy_deblender.deblend_batch(images, lists, variance=VARIANCE, kind=kinds, psf="nominal")
    threads = toy_deblender.deblend_batch(images, lists, variance=VARIANCE, kind=kinds, n_threads=3, psf="nominal")
    np.testing.assert_array_equal(together.star_probability, threads.star_probability)
    assert together.star.any()
    for k, (one, center, kind) in enumerate(zip(images, lists, kinds, strict=True)):
        alone = toy_deblender.deblend_batch(one, center, variance=VARIANCE, kind=kind, psf="nominal")
        here = together.sources(k)
        np.testing.assert_array_equal(alone.star_probability, together.star_probability[here])
        assert rows(alone, 0) == rows(together, k) == rows(threads, k)
        np.testing.assert_array_equal(alone.objective[0], together.objective[k])
        first = together.blend[here].min()
        np.testing.assert_array_equal(alone.blend, together.blend[here] - first)
        for a, covariance in enumerate(alone.blend_flux_cov):
            np.testing.assert_array_equal(covariance, together.blend_flux_cov[first + a])
    np.testing.assert_array_equal(together.star_probability[4:][[0, 3]], [1, 0])  # as told


def test_only_scenes_that_changed_are_solved_again(toy_deblender: Deblender, toy_field: Field,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    image, centers, _, star = toy_field
    solved = []
    solve = Deblender._solve_chunk
    monkeypatch.setattr(Deblender, "_solve_chunk",
                        lambda self, result, members, *rest, **options: (
                            solved.append(members) if not options else None,  # without solves of unlisted sources
                            solve(self, result, members, *rest, **options))[1])
    few = [centers, centers[~star], centers[~star][:0]]
    toy_deblender.deblend_batch([image, image, 0 * image], few, variance=VARIANCE, kind="auto", find_missed=True,
                                psf="nominal")
    # solved: all scenes; the first, which has stars; the second, whose list lacks stars; the second with these as stars
    assert solved == [[0, 1], [0], [1], [1]]


def test_missed_stars_are_added_as_stars(toy_deblender: Deblender, toy_field: Field) -> None:
    image, centers, flux, star = toy_field
    result = toy_deblender.deblend_batch(image, centers[~star], variance=VARIANCE, find_missed=True, psf="nominal")
    found = (result.flags & Flag.FOUND) != 0
    np.testing.assert_array_equal(found, [False, False, True, True])
    np.testing.assert_array_equal(result.star, found)
    assert (result.star_probability[found] > 0.9).all()
    np.testing.assert_array_equal(result.star_probability[~found], 0)  # listed sources are galaxies, by default
    for center, true in zip(centers[star], flux[star], strict=True):
        i = int(np.hypot(*(result.position - center).T).argmin())
        assert (np.abs(result.flux[i] - true) < 4 * result.flux_err[i] + 0.01 * true).all()


def test_the_class_prior_shifts_the_odds(toy_deblender: Deblender, toy_field: Field) -> None:
    image, centers, _, _ = toy_field
    faint = image / 300 + np.random.default_rng(0).normal(0, np.array(SKY_SIGMA)[:, None, None], image.shape)
    odds = []
    for fraction in (0.1, 0.6):
        p = toy_deblender.deblend_batch(faint, centers, variance=VARIANCE, kind="auto",
                                        star_fraction=fraction, psf="nominal").star_probability
        odds.append(np.log(p / (1 - p)) - np.log(fraction / (1 - fraction)))
    np.testing.assert_allclose(odds[0], odds[1], atol=1e-6)


def test_sources_that_are_not_fitted(toy_deblender: Deblender, toy_field: Field) -> None:
    image, centers, _, _ = toy_field
    listed = np.concatenate([centers, [[-30, 4], [np.nan, 3], [500, 500]]])
    kind = ["auto"] * 4 + ["star", "auto", "galaxy"]
    result = toy_deblender.deblend_batch(image, listed, variance=VARIANCE, kind=kind, psf="nominal")
    np.testing.assert_array_equal(np.isnan(result.star_probability), ~result.fitted)
    every = toy_deblender.deblend_batch(image, listed[4:], variance=VARIANCE, kind="auto", psf="nominal")
    assert np.isnan(every.star_probability).all()


@pytest.mark.parametrize("wrong", [0, 1, -0.1, 1.5, np.nan, "half", None])
def test_a_fraction_that_is_none(toy_deblender: Deblender, wrong: object) -> None:
    with pytest.raises(ValueError, match="star_fraction"):
        toy_deblender.deblend_batch(np.zeros((N_BAND, 9, 9)), [(4, 4)], variance=1.0, star_fraction=wrong,
                                    psf="nominal")


def test_the_derivative_by_the_psfs_width(toy_model: ToyModel) -> None:
    y, x = np.mgrid[:41, :41]

    def star(width: float) -> np.ndarray:
        image = np.exp(-0.5 * ((x - 20.3) ** 2 + (y - 19.6) ** 2) / width**2) / (2 * np.pi * width**2)
        return image[None].astype(np.float32)

    step = 0.01
    difference = (star(3.0 * (1 + step)) - star(3.0 * (1 - step))) / (2 * step)
    derivative = star_or_galaxy.widened(star(3.0), 20.3, 19.6)
    assert np.abs(derivative - difference).max() < 0.06 * np.abs(difference).max()
