"""Links of sources to blends, and owners of pixels."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deblendrt.engine.scene.blends import MAX_BLEND, MIN_BLEND_RADIUS, link, partition

# Positions on a lattice of half pixels: different positions are never so close that only their order separates them.
lattice = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120)), max_size=40, unique=True).map(
    lambda points: 0.5 * np.array(points, np.float64).reshape(-1, 2))


def groups(labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == k).tolist()) for k in np.unique(labels)}


def radii(centers: np.ndarray, radius: float) -> np.ndarray:
    """Return different radii as a function of the position, so that a permutation keeps them."""
    return radius * (1 + 0.5 * np.sin(centers @ [1.7, 0.3])) if len(centers) else np.zeros(0)


def components(centers: np.ndarray, radius: np.ndarray) -> set[frozenset[int]]:
    """Return the components by repeated multiplication of the adjacency matrix."""
    near = ((centers[:, None] - centers[None]) ** 2).sum(2) < (radius[:, None] + radius) ** 2
    np.fill_diagonal(near, True)
    for _ in range(len(centers).bit_length()):
        near = near @ near
    return {frozenset(np.flatnonzero(row).tolist()) for row in near}


@settings(deadline=None)  # a loaded machine must not fail the test
@given(lattice, st.floats(0.3, 15.0))
def test_without_a_cap_they_are_connected_components(centers: np.ndarray, radius: float) -> None:
    radius = radii(centers, radius)
    labels = link(centers, radius, cap=len(centers) + 1)
    assert groups(labels) == components(centers, radius)


@settings(deadline=None)  # a loaded machine must not fail the test
@given(lattice, st.floats(0.3, 15.0), st.integers(1, 12), st.randoms(use_true_random=False))
def test_permuting_the_sources_permutes_the_labels(centers: np.ndarray, radius: float, cap: int,
                                                   random: object) -> None:
    order = np.random.default_rng(random.getrandbits(32)).permutation(len(centers))  # type: ignore[attr-defined]
    labels = link(centers, radii(centers, radius), cap)
    permuted = link(centers[order], radii(centers[order], radius), cap)
    assert groups(permuted) == {frozenset(int(np.flatnonzero(order == i)[0]) for i in group)
                                for group in groups(labels)}


@settings(deadline=None)  # a loaded machine must not fail the test
@given(lattice, st.floats(0.3, 15.0), st.integers(1, 12))
def test_cap_and_labels(centers: np.ndarray, radius: float, cap: int) -> None:
    radius = radii(centers, radius)
    labels = link(centers, radius, cap)
    assert labels.dtype == np.int64
    assert labels.shape == (len(centers),)
    if len(centers):
        assert np.bincount(labels).max() <= cap
        _, first = np.unique(labels, return_index=True)
        np.testing.assert_array_equal(first, np.sort(first))  # numbered in the order of first members
        assert labels.max() == len(first) - 1
    whole = components(centers, radius)
    for group in groups(labels):  # a cut only divides
        assert any(group <= component for component in whole)


@settings(deadline=None)  # a loaded machine must not fail the test
@given(lattice, st.integers(2, 12))
def test_close_pairs_within_the_cap_stay_together(centers: np.ndarray, cap: int) -> None:
    radius = radii(centers, 4.0)
    labels = link(centers, radius, cap)
    for component in components(centers, radius):
        if len(component) <= cap:
            assert len({int(labels[i]) for i in component}) == 1


def test_coincident_centres_are_cut_by_order() -> None:
    labels = link(np.zeros((150, 2)), np.full(150, MIN_BLEND_RADIUS), cap=64)
    np.testing.assert_array_equal(np.bincount(labels), [64, 64, 22])


@pytest.mark.parametrize("step", [MIN_BLEND_RADIUS, MIN_BLEND_RADIUS / 1.15])
def test_crowding_does_not_percolate(step: float) -> None:
    """A long chain and a dense field, in which all sources are linked: no blend is above the cap, and it is fast."""
    rng = np.random.default_rng(0)
    chain = np.stack([step * np.arange(3000), np.zeros(3000)], 1) + rng.normal(0, 0.3 * step, (3000, 2))
    field = rng.uniform(0, 400, (3000, 2))
    start = time.process_time()
    for centers in (chain, field):
        size = np.bincount(link(centers, np.full(len(centers), MIN_BLEND_RADIUS)))
        assert size.max() <= MAX_BLEND
        assert size.mean() > 1.5  # the pieces are not single sources
    assert time.process_time() - start < 10


def test_wrong_cap() -> None:
    with pytest.raises(ValueError, match="cap"):
        link(np.zeros((2, 2)), np.ones(2), cap=0)


@settings(deadline=None)  # a loaded machine must not fail the test
@given(lattice.filter(len), st.integers(0, 2**32 - 1))
def test_owner_is_the_nearest_source_in_units_of_its_radius(centers: np.ndarray, seed: int) -> None:
    window, half = 11, 5
    centers = centers[:12] + np.random.default_rng(seed).uniform(-0.2, 0.2, (len(centers[:12]), 2))
    anchor = np.rint(centers).astype(np.int64) + half  # the canvas has a border
    corner, on_canvas = anchor - half + 1, centers + half + 1
    shape = (75, 78)
    radius = radii(centers, 4.0)
    part = partition(on_canvas, radius, corner, np.full(len(corner), window), shape)
    assert part.n_blend == part.blend.max() + 1
    np.testing.assert_array_equal(part.blend, link(on_canvas, radius))
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance = (x - on_canvas[:, 0, None, None]) ** 2 + (y - on_canvas[:, 1, None, None]) ** 2
    distance = distance / radius[:, None, None] ** 2
    inside = ((x >= corner[:, 0, None, None]) & (x < corner[:, 0, None, None] + window)
              & (y >= corner[:, 1, None, None]) & (y < corner[:, 1, None, None] + window))
    distance = np.where(inside, distance, np.inf)
    np.testing.assert_array_equal(part.owner >= 0, inside.any(0))
    nearest = distance.min(0)
    iy, ix = np.nonzero(part.owner >= 0)
    own = distance[part.owner[iy, ix], iy, ix]
    np.testing.assert_allclose(own, nearest[iy, ix], rtol=1e-6)  # distances are kept in float32


def test_no_source() -> None:
    part = partition(np.zeros((0, 2)), np.zeros(0), np.zeros((0, 2), np.int64),
                     np.zeros(0, np.int64), (4, 4))
    assert part.n_blend == 0
    assert (part.owner == -1).all()
