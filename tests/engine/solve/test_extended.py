"""Sources with outskirts: a galaxy larger than its window is drawn whole, and other galaxies do not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_model import N_BAND, ToyModel, add_noise, draw_latent, paint
from toy_scenes import FIELDS, VARIANCE, rows

from deblendrt.engine.compute import folding
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult

SHAPE = (90, 84)
ANCHORS = np.array([[30, 35], [41, 44], [70, 12], [4, 80]])  # a pair, one alone, one in a corner
# the toy's steep functions are bilinear between cells of three pixels to 2% of their light
INTERPOLATION = 0.02


@pytest.fixture(scope="module")
def scene(wide_toy_deblender: Deblender, wide_toy_model: ToyModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a noisy image of galaxies that no window cuts, their centres and fluxes."""
    rng = np.random.default_rng(0)
    bundle = wide_toy_deblender.bundle
    latent = draw_latent(len(ANCHORS), rng)
    latent[0, :N_BAND] += 2.0  # one is bright
    exact = folding.fold(bundle.full_basis, bundle.psf, bundle.reference_psf_sigma, 6)
    image = add_noise(paint(wide_toy_model, exact, latent, ANCHORS, SHAPE), rng)
    return image, ANCHORS + latent[:, N_BAND : N_BAND + 2], np.exp(latent[:, :N_BAND])


@pytest.fixture(scope="module")
def result(wide_toy_deblender: Deblender, scene: tuple[np.ndarray, ...]) -> DeblendResult:
    return wide_toy_deblender.deblend_batch(scene[0], scene[1], variance=VARIANCE, psf="nominal")


def test_large_galaxies_are_drawn_whole(wide_toy_deblender: Deblender, result: DeblendResult,
                                        scene: tuple[np.ndarray, ...]) -> None:
    folded = wide_toy_deblender.fold(None)
    assert result.extended[0]
    stamp, corner = result.stamps(0)
    assert stamp.shape[1:] == (folded.full_window,) * 2
    assert corner == tuple(ANCHORS[0] - folded.full_window // 2)
    assert (result.reduced_chi2 < 1.5).all()  # cut at the window, the bright galaxy would leave thousands
    assert (np.abs(result.flux / scene[2] - 1) < INTERPOLATION + 5 * result.flux_err / scene[2]).all()
    on_image = stamp_on_image(result, 0).sum((1, 2))
    np.testing.assert_allclose(result.enclosed[0], on_image / result.map_flux[0], rtol=1e-4)


def stamp_on_image(result: DeblendResult, i: int) -> np.ndarray:
    image = np.zeros((N_BAND, *SHAPE), np.float32)
    stamp, (x, y) = result.stamps(i)
    for iy, ix in np.ndindex(*SHAPE):
        if 0 <= iy - y < stamp.shape[1] and 0 <= ix - x < stamp.shape[2]:
            image[:, iy, ix] = stamp[:, iy - y, ix - x]
    return image


def test_the_model_is_the_sum_of_the_stamps(result: DeblendResult) -> None:
    total = sum(stamp_on_image(result, i).astype(np.float64) for i in range(len(ANCHORS)))
    np.testing.assert_allclose(result.model(0), total, atol=1e-5 * np.abs(total).max())


def test_redistributed_images_add_up(result: DeblendResult) -> None:
    total = np.zeros((N_BAND, *SHAPE))
    for i in range(len(ANCHORS)):
        image, (x, y) = result.redistributed(i)
        for iy, ix in np.ndindex(*SHAPE):
            if 0 <= iy - y < image.shape[1] and 0 <= ix - x < image.shape[2]:
                total[:, iy, ix] += image[:, iy - y, ix - x]
    data, model = result.scenes[0].image, result.model(0)
    bright = model > 5 * np.sqrt(VARIANCE)[:, None, None]
    assert bright.sum() > 500
    np.testing.assert_allclose(total[bright], data[bright], rtol=1e-4)


def test_the_same_bits_in_any_batch(wide_toy_deblender: Deblender, result: DeblendResult,
                                    scene: tuple[np.ndarray, ...]) -> None:
    image, centers, _ = scene
    other = image[:, 5:70, 3:66]
    some = centers - [3, 5]
    both = wide_toy_deblender.deblend_batch([other, image, other], [some[:2], centers, some[:1]], variance=VARIANCE,
                                            n_threads=2, psf="nominal")
    assert rows(both, 1) == rows(result, 0)
    assert "extent" not in FIELDS  # the model images show it
    np.testing.assert_array_equal(both.model(1), result.model(0))


def test_round_trip(wide_toy_deblender: Deblender, result: DeblendResult, tmp_path: Path) -> None:
    result.write(tmp_path / "wide.fits", images=True)
    back = DeblendResult.read(tmp_path / "wide.fits", model=wide_toy_deblender)
    np.testing.assert_array_equal(back.extent, result.extent)
    np.testing.assert_array_equal(back.model(0), result.model(0))
    alone = DeblendResult.read(tmp_path / "wide.fits", blend=int(result.blend[0]), model=wide_toy_deblender)
    np.testing.assert_array_equal(alone.stamps(0)[0], result.stamps(0)[0])
