"""Large images in parts, and PSFs that vary over an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import N_BAND, ToyModel, add_noise, draw_latent, gaussian_psf, paint
from toy_scenes import VARIANCE, digest, make_scene, rows

from deblendrt.engine import CellPsf, DeblendResult
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.scene import patches
from deblendrt.engine.scene.flags import Flag

SHAPE = (150, 170)
NARROW, WIDE = ([gaussian_psf(fwhm, 25) for fwhm in widths] for widths in ((4.0, 3.6, 3.4), (5.2, 4.6, 4.4)))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"LARGEST": 90, "SIDE": 60, "BORDER": 35}.items():
        monkeypatch.setattr(patches, name, size)


@pytest.fixture
def field(toy_deblender: Deblender, toy_model: ToyModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A crowded image: 60 sources, one of them off it, one without a centre, one on a masked place."""
    anchor = np.random.default_rng(4).integers(0, SHAPE[::-1], (60, 2))
    image, centers, _ = make_scene(toy_deblender, toy_model, anchor, SHAPE, seed=5)
    centers[7], centers[23] = (-30, 8), np.nan
    mask = np.zeros(SHAPE, bool)
    mask[:, 100:103] = True
    return image, centers, mask


def deblend(deblender: Deblender, field: Any, **options: Any) -> DeblendResult:
    image, centers, mask = field
    return deblender.deblend_batch(image, centers, variance=VARIANCE, mask=mask, **({"psf": "nominal"} | options))


def test_parts_cover_the_image_and_own_every_source_once(toy_deblender: Deblender, field: Any,
                                                         small_parts: None) -> None:
    scene = deblend(toy_deblender, field, n_iteration=0).scenes[0]
    parts = patches.cut_into_parts(scene)
    assert len(parts) == 6
    owned = np.concatenate([part.rows[part.own] for part in parts])
    assert sorted(owned.tolist()) == list(range(60))
    area = sum((p.area[0].stop - p.area[0].start) * (p.area[1].stop - p.area[1].start) for p in parts)
    assert area == SHAPE[0] * SHAPE[1]
    for part in parts:
        assert np.shares_memory(part.scene.images.pixels.image, field[0])
        inside = part.scene.image[:, part.area[0], part.area[1]]
        assert inside.shape[1] <= 90


def test_parts_give_what_the_whole_gives(toy_deblender: Deblender, field: Any,
                                         request: pytest.FixtureRequest) -> None:
    # without the search for unlisted sources, which only whole scenes have
    whole = deblend(toy_deblender, field, n_iteration=25, robust=False)
    request.getfixturevalue("small_parts")
    cut = deblend(toy_deblender, field, n_iteration=25, robust=False)
    assert digest(whole) != digest(cut)
    np.testing.assert_array_equal(cut.fitted, whole.fitted)
    good = whole.fitted & ((whole.flags & int(Flag.NOT_CONVERGED | Flag.NEIGHBOUR_SUSPECT)) == 0)
    assert good.sum() > 40
    assert (np.abs(cut.flux - whole.flux) < 0.05 * whole.flux_err)[good].all()
    np.testing.assert_allclose(cut.flux_err[good], whole.flux_err[good], rtol=0.02)
    np.testing.assert_allclose(cut.position[good], whole.position[good], atol=0.02)
    assert cut.scene_chi2[0] == pytest.approx(whole.scene_chi2[0], rel=1e-3)
    assert cut.objective[0] == pytest.approx(whole.objective[0], rel=1e-3)
    np.testing.assert_allclose(cut.model(0), whole.model(0), atol=0.5)
    for k, covariance in enumerate(cut.blend_flux_cov):
        members = np.flatnonzero(cut.blend == k)
        assert covariance.shape == (len(members), N_BAND, len(members), N_BAND)
        np.testing.assert_allclose(covariance[0, :, 0], cut.flux_cov[members[0]], rtol=1e-6)


def test_parts_have_the_same_bits_whatever_the_threads(toy_deblender: Deblender, field: Any,
                                                       small_parts: None) -> None:
    one = deblend(toy_deblender, field, n_iteration=3)
    for options in ({"n_threads": 3}, {"n_threads": 3, "memory_limit": 1e12}, {"n_threads": 2, "memory_limit": 5e7}):
        other = deblend(toy_deblender, field, n_iteration=3, **options)
        assert digest(one) == digest(other)
        assert one.objective.tobytes() == other.objective.tobytes()
        assert one.scene_chi2.tobytes() == other.scene_chi2.tobytes()


def test_a_memory_limit_that_nothing_fits_in(toy_deblender: Deblender, field: Any, small_parts: None) -> None:
    with pytest.raises(ValueError, match=r"memory_limit: expected at least .* bytes for these images, got 1e\+04"):
        deblend(toy_deblender, field, memory_limit=1e4)


def test_a_large_image_without_sources(toy_deblender: Deblender, field: Any, small_parts: None) -> None:
    image, centers, _ = field
    for few in (centers[:0], centers[7:8]):
        result = toy_deblender.deblend_batch(image, few, variance=VARIANCE, psf="nominal")
        expected = (image.astype(float) ** 2 / VARIANCE[:, None, None]).sum()
        assert result.scene_chi2[0] == pytest.approx(expected, rel=1e-6)
        assert not result.model(0).any()


def two_halves(deblender: Deblender, model: ToyModel) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Isolated sources and a pair across the middle, under a PSF that is wider on the right."""
    rng = np.random.default_rng(2)
    anchor = np.array([[20, 20], [95, 25], [24, 70], [56, 40], [63, 44], [98, 72]])
    latent = draw_latent(len(anchor), rng)
    left = anchor[:, 0] < 60
    image = sum(paint(model, deblender.fold(np.array(psf)), latent[half], anchor[half], (96, 120))
                for psf, half in ((NARROW, left), (WIDE, ~left)))
    return add_noise(image, rng), anchor + latent[:, N_BAND : N_BAND + 2], np.exp(latent[:, :N_BAND]), left


def test_psf_by_cells(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    image, centers, flux, left = two_halves(toy_deblender, toy_model)
    cells = CellPsf([[NARROW, WIDE]], [-0.5, 59.5, 119.5], [-0.5, 95.5])
    result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf=cells)
    assert (np.abs(result.flux - flux) < 4 * result.flux_err).all()
    assert 0.8 < result.reduced_chi2.mean() < 1.2
    assert result.blend[3] == result.blend[4]
    wrong = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf=NARROW)
    assert (np.abs(wrong.flux - flux) > 4 * wrong.flux_err)[~left].any()
    function = toy_deblender.deblend_batch(
        image, centers, variance=VARIANCE, psf=CellPsf.sample(lambda x, y: NARROW if x < 60 else WIDE, (96, 120), 60))
    assert digest(function) == digest(result)


def test_psf_is_sampled_where_a_callable_is_given(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    image, centers, _, _ = two_halves(toy_deblender, toy_model)
    asked = []

    def psf(x: float, y: float) -> Any:
        asked.append((x, y))
        return NARROW

    result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf=psf, n_iteration=2)
    assert asked == [(59.5, 47.5)]  # one cell: the image is smaller than two
    uniform = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf=NARROW, n_iteration=2)
    assert digest(result) == digest(uniform)
    assert len(result.folded) == 1


def test_psf_by_cells_in_parts(toy_deblender: Deblender, toy_model: ToyModel, small_parts: None,
                               tmp_path: Path) -> None:
    """The cells move with the parts; the file knows each source's PSF."""
    image, centers, flux, _ = two_halves(toy_deblender, toy_model)
    cells = CellPsf([[NARROW, WIDE]], [-0.5, 59.5, 119.5], [-0.5, 95.5])
    result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf=cells)
    assert (np.abs(result.flux - flux) < 4 * result.flux_err).all()
    result.write(tmp_path / "out.fits", images=True)
    back = DeblendResult.read(tmp_path / "out.fits", model=toy_deblender)
    assert back.residual(0).tobytes() == result.residual(0).tobytes()
    assert rows(back, 0) == rows(result, 0)
    part = DeblendResult.read(tmp_path / "out.fits", blend=int(result.blend[1]), model=toy_deblender)
    assert part.stamps(0)[0].tobytes() == result.stamps(1)[0].tobytes()
    assert len(result.residual_peaks(0)) == 0


def test_cells_without_a_psf(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    image, centers, _, left = two_halves(toy_deblender, toy_model)
    nan = np.full((N_BAND, 25, 25), np.nan)
    for absent in (None, nan, [*WIDE[:2], None]):
        cells = CellPsf([[[2 * p for p in NARROW], absent]], [-0.5, 59.5, 119.5], [-0.5, 95.5])
        result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf=cells, n_iteration=1)
        np.testing.assert_array_equal((result.flags & int(Flag.PSF_MISSING)) > 0, ~left)
        assert (result.flags & int(Flag.PSF_NOT_NORMALIZED)).all()


@pytest.mark.parametrize(("images", "x_edges", "message"), [
    ([[NARROW, WIDE]], [0, 60], r"images: expected 1 rows of 1 cells"),
    ([[NARROW]], [0], "x_edges: expected at least two ascending numbers"),
    ([[NARROW, WIDE]], [0, 60, 50], "x_edges: expected at least two ascending numbers"),
    ([[None]], [0, 60], "images: expected a PSF in at least one cell"),
])
def test_mistakes(images: Any, x_edges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CellPsf(images, x_edges, [0, 60])


def test_a_cell_of_the_wrong_shape_is_named(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    image, centers, _, _ = two_halves(toy_deblender, toy_model)
    with pytest.raises(ValueError, match=r"psf of cell \(0, 1\): expected images"):
        toy_deblender.deblend_batch(image, centers, variance=VARIANCE,
                                    psf=CellPsf([[NARROW, WIDE[:2]]], [0, 60, 120], [0, 96]))
