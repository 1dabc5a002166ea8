"""Measures of every source after a fit: kernels against their references."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
from kernels import both, needs_shim, run
from layouts import random_layout
from shim import ShimDevice

from deblendrt.cuda.kernels.measures import launch
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.reference import measures as reference_measures
from deblendrt.engine.compute.reference import pixels as reference
from deblendrt.engine.measure import light_shares
from deblendrt.engine.solve import constants

FLOAT32 = 2e-6  # of the largest value
LIMITS = {"significant": constants.SIGNIFICANT_LIGHT, "core": light_shares.CORE}


class Drawn(NamedTuple):
    layout: Layout
    stamps: np.ndarray
    cells: np.ndarray | None
    extended: np.ndarray
    data: np.ndarray
    weight: np.ndarray

    @property
    def images(self) -> tuple[Layout, np.ndarray, np.ndarray | None, np.ndarray]:
        return self[:4]

    @property
    def rows(self) -> np.ndarray:
        return np.asarray(self.layout.scene >= 0)

    def with_padding(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.full((self.layout.n_source, *shape), -7, dtype)


@pytest.fixture(scope="module", params=[(5, 0, 1), (9, 0, 1), (9, 6, 3)], ids=["small", "compact", "extended"])
def drawn(request: pytest.FixtureRequest) -> Drawn:
    """Blobs with noise, faint and bright, some negative; a tenth of the weights is zero."""
    window, margin, binning = request.param
    layout = random_layout(3, [(17, 40, 7), (33, 21, 5), (20, 19, 1)], n_band=3, window=window, margin=margin,
                           binning=binning)
    rng = np.random.default_rng(window + margin)
    n = layout.n_source
    radius = np.hypot(*np.mgrid[: layout.full_window, : layout.full_window] - layout.full_window // 2)
    light = 10 ** rng.uniform(-1, 2, (n, 3, 1, 1)) * np.exp(-radius / 2) * (1 + 0.3 * rng.normal(
        size=(n, 3, *radius.shape)))
    inside = slice(margin, margin + window)
    cells = light[:, :, binning // 2 :: binning, binning // 2 :: binning].reshape(n, 3, -1).astype(np.float32)
    weight = rng.uniform(0.2, 1.0, layout.n_pixel) * (rng.random(layout.n_pixel) > 0.1)
    return Drawn(layout, light[:, :, inside, inside].reshape(n, 3, -1).astype(np.float32), cells if margin else None,
                 (np.arange(n) % 3 > 0).astype(np.int32) * (margin > 0), rng.normal(size=layout.n_pixel).astype(
                     np.float32), weight.astype(np.float32))


def footprints_of(drawn: Drawn) -> np.ndarray:
    out = drawn.with_padding((launch.n_word(drawn.layout),), np.int32)
    reference_measures.footprint(*drawn.images, drawn.weight, out, **LIMITS)
    return out


@needs_shim
def test_footprint(drawn: Drawn) -> None:
    out = drawn.with_padding((launch.n_word(drawn.layout),), np.int32)
    [(result, expected)] = both(launch.footprint, reference_measures.footprint, *drawn.images, drawn.weight, out,
                                outputs=(4,), **LIMITS)
    np.testing.assert_array_equal(result, expected)
    bits = np.unpackbits(expected[drawn.rows].view(np.uint8))
    assert 0.05 < bits.mean() < 0.95
    assert (result[~drawn.rows] == -7).all()


@needs_shim
def test_light(drawn: Drawn) -> None:
    inside = footprints_of(drawn)
    out = np.full(drawn.layout.n_pixel, -7, np.float32)
    [(result, expected)] = both(
        launch.light, reference_measures.light, *drawn.images, inside, drawn.weight, out, outputs=(5,)
    )
    np.testing.assert_allclose(result, expected, rtol=FLOAT32)
    assert ((expected > 0).any(), (expected == 0).any()) == (True, True)
    assert (result == -7).sum() == 2  # padding


@needs_shim
def test_share(drawn: Drawn) -> None:
    layout, inside = drawn.layout, footprints_of(drawn)
    model, bright = (np.zeros(layout.n_pixel, np.float32) for _ in range(2))
    reference.render(*drawn.images, None, model)
    reference_measures.light(*drawn.images, inside, drawn.weight, bright)
    arguments = (*drawn.images[1:], inside, drawn.data, drawn.weight, model, bright)
    out = drawn.with_padding((3, 6), np.float64)
    [(result, expected)] = both(launch.share, reference_measures.share, layout, *arguments, out, outputs=(8,))
    scale = np.abs(expected[drawn.rows]).max((0, 1))
    assert (np.abs(result - expected)[drawn.rows] <= FLOAT32 * scale).all()
    assert (scale > 0).all()
    assert (result[~drawn.rows] == -7).all()
    alone = dataclasses.replace(layout, scene=np.where(np.arange(layout.n_source) == 8, layout.scene, -1))
    [single] = run(ShimDevice(), launch.share, alone, *arguments, out, outputs=(8,))
    np.testing.assert_array_equal(single[8], result[8])


@needs_shim
@pytest.mark.parametrize("square", [1, 2])
def test_misfit(drawn: Drawn, square: int) -> None:
    layout, half = drawn.layout, drawn.layout.window // 2 // 2 * 2
    model = np.zeros(layout.n_pixel, np.float32)
    reference.render(*drawn.images, None, model)
    latent = np.random.default_rng(0).uniform(-0.5, 0.5, (layout.n_source, 6))
    latent[0, 3:5] = 0  # pixels on edges
    edges = np.array([0.0, 1.0, 2.5, 4.0])
    out = drawn.with_padding((4,), np.float64)
    arguments = (drawn.stamps, latent, drawn.data, drawn.weight, model, edges)
    [(result, expected)] = both(
        launch.misfit, reference_measures.misfit, layout, *arguments, out, outputs=(6,), half=half, square=square
    )
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    assert (result[~drawn.rows] == -7).all()
    alone = dataclasses.replace(layout, scene=np.where(np.arange(layout.n_source) == 8, layout.scene, -1))
    [single] = run(ShimDevice(), launch.misfit, alone, *arguments, out, outputs=(6,), half=half, square=square)
    np.testing.assert_array_equal(single[8], result[8])


@needs_shim
def test_visible(drawn: Drawn) -> None:
    out = drawn.with_padding((3,), np.float64)
    [(result, expected)] = both(
        launch.visible, reference_measures.visible, *drawn.images, footprints_of(drawn), drawn.weight, out, outputs=(5,)
    )
    np.testing.assert_allclose(result, expected, rtol=FLOAT32)
    assert (result[~drawn.rows] == -7).all()


@needs_shim
def test_core_statistics(drawn: Drawn) -> None:
    layout, rng = drawn.layout, np.random.default_rng(1)
    n = layout.n_source
    number = (np.arange(n) - np.searchsorted(layout.scene[drawn.rows], layout.scene)).astype(np.int32)
    centre = layout.corner + layout.window // 2 + rng.uniform(-2, 2, (n, 2))  # some circles stick out
    owner = rng.integers(-1, 3, layout.n_pixel // 3).astype(np.int32)
    model = rng.normal(size=layout.n_pixel).astype(np.float32)
    weights = drawn.weight * rng.uniform(0.3, 1.0, layout.n_pixel).astype(np.float32)
    arguments = (number, centre, owner, drawn.data, drawn.weight, weights, model)
    [(result, expected)] = both(launch.core_statistics, reference_measures.core_statistics, layout, *arguments,
                                drawn.with_padding((3,), np.float64), outputs=(7,), radius=4.5)
    assert (expected[drawn.rows, 2] > 0).any()
    assert (expected[drawn.rows] == 0).all(1).any()  # owns nothing
    np.testing.assert_allclose(result[:, 0], expected[:, 0], rtol=FLOAT32)
    np.testing.assert_array_equal(result[:, 1:], expected[:, 1:])
    assert (result[~drawn.rows] == -7).all()


@needs_shim
def test_light_area(drawn: Drawn) -> None:
    weight = np.random.default_rng(2).uniform(0.1, 1.0, (drawn.layout.n_source, 3))
    out = drawn.with_padding((), np.int32)
    [(result, expected)] = both(
        launch.light_area, reference_measures.light_area, *drawn.images, weight, out, outputs=(4,), threshold=1.0
    )
    np.testing.assert_array_equal(result, expected)
    assert (result[~drawn.rows] == -7).all()
    assert len(np.unique(expected[drawn.rows])) > 3


def test_footprint_is_the_engines(drawn: Drawn) -> None:
    """Sources without outskirts."""
    layout, inside = drawn.layout, footprints_of(drawn)
    for i in np.flatnonzero(drawn.rows & (drawn.extended == 0)):
        (x, y), s = layout.corner[i], layout.scene[i]
        shape, start = (3, *layout.canvas_shape[s]), layout.canvas_start[s]
        weight = drawn.weight[start : start + np.prod(shape)].reshape(shape)
        stamp = drawn.stamps[i].reshape(3, layout.window, layout.window)
        expected = light_shares.footprint(stamp, weight[:, y : y + layout.window, x : x + layout.window])
        np.testing.assert_array_equal(reference_measures.unpacked(inside[i], expected.shape), expected)
