"""Regions of exact zeros: found in noisy images, and nowhere else."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from deblendrt import engine
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.scene.scene import Scene, make_scenes
from deblendrt.engine.scene.zero_regions import LEAST_REGION, large_regions

MODEL: dict[str, Any] = {"bundle_bands": ("g", "r", "i"), "bundle_pixel_scale": 0.2, "window_half": 6,
                         "bundle_sky_sigma": [1.0, 1.0, 1.0]}
SHAPE = (3, 48, 52)
CENTERS = [(20.0, 20.0), (44.0, 40.0)]


def galaxies(peak: float = 50.0) -> np.ndarray:
    """Smooth light of two galaxies."""
    y, x = np.indices(SHAPE[1:])
    return sum(peak * np.exp(-np.hypot(x - a, y - b) / 3.0) for a, b in CENTERS) * np.ones((3, 1, 1))


def noisy(seed: int = 0, smooth: bool = False, sky: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    if smooth:  # as in a coadd: the noise of neighbours is correlated by 0.5 and more
        kernel = np.exp(-0.5 * np.arange(-3, 4) ** 2 / 0.7**2)
        for axis in (1, 2):
            noise = np.apply_along_axis(np.convolve, axis, noise, kernel / np.sqrt((kernel**2).sum()), "same")
    return galaxies() + noise + sky


def one(image: np.ndarray, zeros: str = "missing", **options: Any) -> Scene:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", engine.InputWarning)
        (scene,) = make_scenes(image, CENTERS, zeros=zeros, **(MODEL | {"variance": 1.0} | options))
    return scene


# --- regions


def regions_one_by_one(marked: np.ndarray, least: int) -> np.ndarray:
    """The same by flooding from every pixel."""
    left, found = marked.copy(), np.zeros_like(marked)
    while left.any():
        todo, region = [tuple(np.argwhere(left)[0])], []
        left[todo[0]] = False
        while todo:
            y, x = todo.pop()
            region.append((y, x))
            for a, b in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if 0 <= a < left.shape[0] and 0 <= b < left.shape[1] and left[a, b]:
                    left[a, b] = False
                    todo.append((a, b))
        if len(region) >= least:
            found[tuple(np.array(region).T)] = True
    return found


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.6, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(40, 37), (1, 50), (50, 1), (3, 3)])
def test_regions_are_those_of_a_flood(share: float, shape: tuple[int, int]) -> None:
    marked = np.random.default_rng(int(100 * share)).random(shape) < share
    for least in (1, 5, LEAST_REGION, 200):
        np.testing.assert_array_equal(large_regions(marked, least), regions_one_by_one(marked, least))


def test_a_spiral_is_one_region() -> None:
    marked = np.zeros((41, 41), bool)
    y, x, step = 0, 0, (0, 1)
    marked[0, 0] = True
    for _ in range(700):
        a, b = y + 2 * step[0], x + 2 * step[1]
        if not (0 <= a < 41 and 0 <= b < 41) or marked[a, b]:
            step = (step[1], -step[0])
            continue
        y, x = y + step[0], x + step[1]
        marked[y, x] = True
    n = int(marked.sum())
    assert large_regions(marked, n).sum() == n
    assert not large_regions(marked, n + 1).any()


# --- scenes


HOLES: dict[str, Any] = {
    "a band": (1, slice(None), slice(None)), "half a band": (1, slice(None), slice(0, 24)),
    "a corner": (slice(None), slice(0, 18), slice(0, 18)), "a column": (0, slice(None), 22),
    "16 pixels": (2, slice(18, 22), slice(18, 22)),
}


@pytest.mark.parametrize("variance", [1.0, None, "map"])
@pytest.mark.parametrize("kind", ["white", "smooth", "with sky", "float32", "integers"])
@pytest.mark.parametrize("name", HOLES)
def test_zeros_of_noisy_images_are_no_data(name: str, kind: str, variance: Any) -> None:
    image = noisy(smooth=kind == "smooth", sky=300.0 if kind == "with sky" else 0.0)
    image = np.rint(20 * image) if kind == "integers" else image.astype(np.float32 if kind == "float32" else np.float64)
    image[image == 0] = 1  # integers beside the hole that are zero by chance would count as its pixels
    image[HOLES[name]] = 0
    hole = np.zeros(SHAPE, bool)
    hole[HOLES[name]] = True
    options = {"variance": np.where(kind == "integers", 400.0, 1.0) * np.ones(SHAPE) if variance == "map" else variance}
    with pytest.warns(engine.InputWarning, match='regions of exact zeros .*ZERO_PIXELS; with zeros="data"'):
        (scene,) = make_scenes(image, CENTERS, **(MODEL | options))
    np.testing.assert_array_equal(scene.inverse_variance == 0, hole)
    masked = one(image, "data", mask=hole, **options)
    np.testing.assert_array_equal(scene.inverse_variance, masked.inverse_variance)
    assert scene.flags[0] & Flag.ZERO_PIXELS
    assert bool(scene.flags[1] & Flag.ZERO_PIXELS) == (name == "a band")
    assert bool(scene.flags[0] & Flag.BAND_MISSING) == (name == "a band")
    np.testing.assert_array_equal(scene.flags & ~Flag.ZERO_PIXELS, masked.flags)
    kept = one(image, "data", **options)
    assert not (kept.flags & Flag.ZERO_PIXELS).any()
    assert kept.image[hole].size == 0 or not np.array_equal(kept.inverse_variance, scene.inverse_variance)


def without_noise() -> np.ndarray:
    """Galaxies drawn in stamps on an image of zeros, each with smooth wings to the stamp's edge."""
    image = galaxies(2000.0)
    image[:, :8] = image[:, :, :6] = 0
    return image


def clusters() -> np.ndarray:
    """Single zeros and small groups of zeros."""
    image = noisy()
    image[:, ::3, ::3] = 0
    image[:, 9:15, 9:17] = 1.5
    image[:, 11:14, 11:16] = 0  # 15 pixels
    return image


def few_counts(mean: float) -> np.ndarray:
    return np.random.default_rng(0).poisson(mean, SHAPE).astype(float)


LEFT: dict[str, Any] = {
    "nothing": np.zeros(SHAPE), "without noise": without_noise(), "small groups": clusters(),
    "a constant": np.ones(SHAPE), "a single pixel": np.zeros((3, 1, 1)),
    "rounding alone": without_noise() + np.where(without_noise() == 0, 0, 1e-7 * noisy()),
    "few counts": few_counts(0.3), "more counts": few_counts(1.0), "a diagonal": np.eye(48, 52) * np.ones((3, 1, 1)),
}


@pytest.mark.parametrize("name", LEFT)
def test_other_zeros_are_data(name: str) -> None:
    image, centers = LEFT[name], CENTERS if LEFT[name].shape == SHAPE else [(0, 0)]
    for variance in (1.0, None):
        with warnings.catch_warnings():
            warnings.simplefilter("error", engine.InputWarning)
            (scene,) = make_scenes(image, centers, variance=variance, **MODEL)
        assert not (scene.flags & Flag.ZERO_PIXELS).any()


def test_masked_pixels_tell_nothing_about_noise() -> None:
    image, mask = without_noise(), np.zeros(SHAPE[1:], bool)
    image[:, 30:] += np.random.default_rng(0).normal(size=image[:, 30:].shape)
    mask[30:] = True
    assert not (one(image, mask=mask).flags & Flag.ZERO_PIXELS).any()


def test_several_scenes_are_said_once() -> None:
    hole = noisy()
    hole[:, :20, :20] = 0
    with pytest.warns(engine.InputWarning, match="regions of exact zeros of 2 of 3 scenes") as caught:
        scenes = make_scenes([noisy(), hole, hole], [CENTERS] * 3, variance=1.0, **MODEL)
    assert len(caught) == 1
    assert [bool(scene.flags[0] & Flag.ZERO_PIXELS) for scene in scenes] == [False, True, True]


def test_mistake() -> None:
    with pytest.raises(ValueError, match="zeros: expected 'missing' or 'data', got 'no'"):
        one(noisy(), "no")
