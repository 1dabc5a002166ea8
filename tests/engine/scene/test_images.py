"""A scene refers to the caller's arrays; the arrays made from them are those that were checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deblendrt.engine.scene.images import checked_band
from deblendrt.engine.scene.scene import Scene, make_scenes

BANDS = ("u", "g", "r", "i")
SHAPE = (4, 20, 24)


def one(image: Any, **options: Any) -> Scene:
    options = {"bundle_bands": BANDS, "bundle_pixel_scale": 0.2, "window_half": 4, "variance": 1.0} | options
    (scene,) = make_scenes(image, [(10.0, 8.0)], **options)
    return scene


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def test_a_float32_image_of_all_bands_is_used_without_a_copy(image: np.ndarray) -> None:
    scene = one(image)
    assert np.shares_memory(scene.image, image)
    assert not scene.image.flags.writeable
    assert scene.inverse_variance.strides == (4, 0, 0)  # one number a band
    image[1, 3, 4] = 7
    assert scene.image[1, 3, 4] == 7


@pytest.mark.parametrize("options", [
    {"bands": "gri"}, {"zero_point": 27.0}, {"background": 1.0}, {"mask": np.indices(SHAPE)[1] == 3}, {"bands": "igru"},
    {"variance": np.linspace(0.5, 2, np.prod(SHAPE)).reshape(SHAPE)}, {"variance": None}, {}])
@pytest.mark.parametrize("kind", ["float32", "float64", "big-endian", "turned", "nan"])
def test_arrays_are_those_that_were_checked(image: np.ndarray, options: dict[str, Any], kind: str) -> None:
    given = {"float64": image.astype(float), "big-endian": image.astype(">f4"),
             "turned": image.transpose(2, 0, 1).copy().transpose(1, 2, 0)}.get(kind, image)
    if kind == "nan":
        given[0, 2, 2] = np.nan
    n = len(options.get("bands", BANDS))
    scene = one(given[:n], **options)
    pixels, target = scene.images.pixels, scene.images.target
    expected = np.zeros((2, *SHAPE), np.float32)
    for b, t in enumerate(target):
        band = checked_band(pixels, b)
        expected[0, t], expected[1, t] = band.image, band.inverse_variance
    image_made, weight_made = scene.images.arrays()
    for made in (image_made, scene.image, np.stack([band for band, _ in scene.images.by_band()])):
        np.testing.assert_array_equal(made, expected[0])
        assert made.flags.c_contiguous
        assert made.dtype == np.dtype(np.float32)
    for made in (weight_made, scene.inverse_variance, np.stack([weight for _, weight in scene.images.by_band()])):
        np.testing.assert_array_equal(made, expected[1])
    assert scene.n_pixel == np.count_nonzero(expected[1])
    cut = scene.images.cut(slice(2, 9), slice(5, 20))
    assert np.shares_memory(cut.pixels.image, given)
    for made, whole in zip(cut.arrays(), expected, strict=True):
        np.testing.assert_array_equal(made, whole[:, 2:9, 5:20])
    for x, y in ((3, 4), (-2, 15), (20, -3), (-30, 5), (4, 99)):
        padded = np.pad(expected, ((0, 0), (0, 0), (100, 100), (100, 100)))[..., y + 100 : y + 107, x + 100 : x + 107]
        np.testing.assert_array_equal(np.stack(scene.window(x, y, 7)), padded)
