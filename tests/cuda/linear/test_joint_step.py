"""The joint step: kernels against references, references against the solver's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import blends_only
from shim import ShimDevice

from deblendrt.cuda.kernels.linear.launch import alike, block_inverse, joint_blocks, joint_conjugate, joint_solve
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.cuda.layouts import make_pairs
from deblendrt.engine.compute.problem import DoubleArray
from deblendrt.engine.compute.reference import linear as reference
from deblendrt.engine.solve import curvature, descent
from deblendrt.engine.solve.joint_step import conjugate_gradient

SIZES = [3, 1, 0, 4, 1, 7, 2]
LARGEST = 3  # two of the sizes above are larger
RIDGE = 1e-5
N_BAND = 3


class System:
    """Random matrices of blends: couplings by a likelihood, plus the curvature of a prior."""

    def __init__(self, sizes: list[int], n_latent: int) -> None:
        rng = np.random.default_rng(n_latent)
        self.layout, self.n_latent = blends_only(sizes), n_latent
        n = self.layout.n_source
        self.pairs = make_pairs(self.layout, 1, n_latent, LARGEST)
        self.pair = self.pairs.pair.reshape(-1, 2)
        rows = rng.standard_normal((n, n_latent, 40)) * 10.0 ** rng.uniform(-3, 3, (n, n_latent, 1))
        rows[1::3, 0] = rows[1::3, 1] * (1 + 1e-2 * rng.standard_normal((len(rows[1::3]), 40)))
        self.blocks = np.full((len(self.pair), n_latent, n_latent), np.nan)
        for p, (i, j) in enumerate(self.pair):
            if i >= 0:
                self.blocks[p] = rows[i] @ rows[j].T + (i == j) * 0.1 * np.diag((rows[i] ** 2).sum(1))
        self.target = rng.standard_normal((n, n_latent)) * np.sqrt((rows**2).sum(2))
        self.room = np.full((n, n_latent), 7.0)

    def matrix(self, members: np.ndarray) -> DoubleArray:
        """The matrix of a blend."""
        full = np.zeros((len(members), self.n_latent, len(members), self.n_latent))
        for p, (i, j) in enumerate(self.pair):
            if i in members:
                a, b = np.searchsorted(members, (i, j))
                full[a, :, b], full[b, :, a] = self.blocks[p], self.blocks[p].T
        return full.reshape(len(members) * self.n_latent, -1)

    def blends(self) -> list[np.ndarray]:
        """Members of every blend that has any."""
        return [np.flatnonzero(self.layout.blend == b) for b in range(self.layout.n_blend)
                if (self.layout.blend == b).any()]

    def inverse(self) -> np.ndarray:
        """Inverses of own blocks in large blends, symmetric to the bit; NaN elsewhere."""
        out = np.full((self.layout.n_source, self.n_latent, self.n_latent), np.nan)
        reference.block_inverse(self.layout, self.blocks, self.pairs.own, out, largest=LARGEST, ridge=1e-6)
        return 0.5 * (out + out.transpose(0, 2, 1))

    def conjugate(self) -> list[Any]:
        """Arguments of `joint_conjugate`."""
        scratch = [self.room.copy() for _ in range(3)]
        return [self.blocks, self.pair, self.pairs.partner_start, self.pairs.partner, self.inverse(), self.target,
                scratch, self.room]

    def solve(self) -> list[Any]:
        """Arguments of `joint_solve`."""
        return [self.blocks, self.pair, self.pairs.pair_span, self.target, self.pairs.matrix_start,
                np.full(self.pairs.n_element, np.nan), self.room]


def check(step: np.ndarray, expected: np.ndarray, system: System, members: np.ndarray, off: float) -> None:
    """In units of the diagonal."""
    unit = np.sqrt(system.matrix(members).diagonal()).reshape(len(members), -1)
    size = np.abs(expected[members] * unit).max()
    np.testing.assert_allclose(step[members] * unit / size, expected[members] * unit / size, rtol=0, atol=off)


@needs_shim
@pytest.mark.parametrize("n_latent", [5, 18])
def test_blocks(n_latent: int) -> None:
    layout = blends_only(SIZES)
    pair = make_pairs(layout, 1, n_latent, LARGEST).pair.reshape(-1, 2)
    rng = np.random.default_rng(0)
    n_column = n_latent - N_BAND + 1
    inner = rng.standard_normal((len(pair), N_BAND, n_column, n_column)).astype(np.float32)
    alone = rng.standard_normal((layout.n_source, n_latent, n_latent))
    damping = 10.0 ** rng.uniform(-3, 1, layout.n_blend)
    [(blocks, expected)] = both(joint_blocks, reference.joint_blocks, layout, inner, pair, alone, damping,
                                np.full((len(pair), n_latent, n_latent), 7.0), outputs=(4,), flux_damped=0.1)
    np.testing.assert_allclose(blocks, expected, rtol=1e-14, atol=1e-14)
    assert (blocks[pair[:, 0] < 0] == 7).all()
    own = pair[:, 0] == pair[:, 1]
    i = pair[own & (pair[:, 0] >= 0), 0]
    assert len(set(i.tolist())) == len(i) == (layout.blend >= 0).sum()
    factor = damping[layout.blend[i]]
    plain = alone[i, 0, 0] + inner[own & (pair[:, 0] >= 0), 0, 0, 0]
    np.testing.assert_allclose(blocks[own & (pair[:, 0] >= 0), 0, 0], plain * np.where(factor >= 0.1, 1 + factor, 1))


def test_references_are_the_solver() -> None:
    system = System(SIZES, 6)
    step, by_gradients = system.room.copy(), system.room.copy()
    reference.joint_solve(system.layout, *system.solve()[:-1], step, largest=LARGEST, ridge=0.0)
    reference.joint_conjugate(system.layout, *system.conjugate()[:-1], by_gradients, largest=LARGEST, n_iteration=4)
    for members in system.blends():
        matrix, inverse = system.matrix(members), system.inverse()[members]
        if len(members) <= LARGEST:
            expected = np.linalg.solve(matrix, system.target[members].ravel()).reshape(len(members), -1)
            np.testing.assert_allclose(step[members], expected, rtol=1e-6)
        else:
            expected = conjugate_gradient(
                lambda v, matrix=matrix: (matrix @ v.ravel()).reshape(v.shape),
                lambda r, inverse=inverse: curvature.apply_blocks(inverse, r), system.target[members],
                np.zeros(len(members), np.int64), 4)
            np.testing.assert_allclose(by_gradients[members], expected, rtol=1e-9)
            np.testing.assert_allclose(inverse, curvature.inverse(system.blocks[system.pairs.own[members]]), rtol=1e-6)


@needs_shim
@pytest.mark.parametrize("n_latent", [5, 18])
def test_dense(n_latent: int) -> None:
    system = System(SIZES, n_latent)
    [(step, expected)] = both(joint_solve, reference.joint_solve, system.layout, *system.solve(), outputs=(6,),
                              largest=LARGEST, ridge=RIDGE)
    for members in system.blends():
        if len(members) <= LARGEST:
            check(step, expected, system, members, 1e-9)
        else:
            assert (step[members] == 7).all()
    assert (step[system.layout.blend < 0] == 7).all()


@needs_shim
def test_a_matrix_that_is_not_positive_has_a_solution() -> None:
    """An indefinite matrix, which rounding of float32 products may leave, is solved as with LU factors."""
    system = System([1], 5)
    system.blocks[0, 0, 1] = system.blocks[0, 1, 0] = 1.01 * np.sqrt(system.blocks[0, 0, 0] * system.blocks[0, 1, 1])
    [(step, expected)] = both(joint_solve, reference.joint_solve, system.layout, *system.solve(), outputs=(6,),
                              largest=LARGEST, ridge=RIDGE)
    check(step, expected, system, np.array([0]), 1e-9)


@needs_shim
@pytest.mark.parametrize("n_latent", [5, 18])
def test_conjugate_gradients(n_latent: int) -> None:
    system = System(SIZES, n_latent)
    [(step, expected)] = both(joint_conjugate, reference.joint_conjugate, system.layout, *system.conjugate(),
                              outputs=(7,), largest=LARGEST, n_iteration=4)
    for members in system.blends():
        if len(members) > LARGEST:
            check(step, expected, system, members, 1e-8)
        else:
            assert (step[members] == 7).all()


@needs_shim
@pytest.mark.parametrize("n_latent", [8, 18, 43])
def test_inverses(n_latent: int) -> None:
    system = System(SIZES, n_latent)
    arguments = system.blocks, system.pairs.own, np.full((system.layout.n_source, n_latent, n_latent), 7.0)
    [(inverse, expected)] = both(block_inverse, reference.block_inverse, system.layout, *arguments, outputs=(2,),
                                 largest=LARGEST, ridge=1e-6)
    large = np.concatenate([members for members in system.blends() if len(members) > LARGEST])
    unit = np.sqrt(system.blocks[system.pairs.own[large]].diagonal(axis1=1, axis2=2))
    unit = unit[:, :, None] * unit[:, None]
    size = np.abs(expected[large] * unit).max((1, 2), keepdims=True)
    np.testing.assert_allclose(inverse[large] * unit / size, expected[large] * unit / size, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(inverse[large], inverse[large].transpose(0, 2, 1))
    assert (np.delete(inverse, large, 0) == 7).all()


@needs_shim
def test_inverses_of_blocks_that_are_not_positive() -> None:
    system = System([5], 8)
    own = system.pairs.own
    system.blocks[own[1], 2, 2] = -1.0
    system.blocks[own[2]] = 0.0
    system.blocks[own[3], 0, 0] = np.nan
    size = np.sqrt(system.blocks[own[4], 6, 6] * system.blocks[own[4], 7, 7])
    system.blocks[own[4], 6, 7] = system.blocks[own[4], 7, 6] = 3 * size
    [(inverse, expected)] = both(block_inverse, reference.block_inverse, system.layout, system.blocks, own,
                                 np.zeros((5, 8, 8)), outputs=(2,), largest=LARGEST, ridge=1e-6)
    for found in (inverse, expected):
        np.testing.assert_array_equal(np.isnan(found).all((1, 2)), np.arange(5) > 0)


@needs_shim
def test_sources_that_are_the_same() -> None:
    layout = blends_only([4, 1, 3, 0])
    rng = np.random.default_rng(0)
    latent, step = rng.standard_normal((2, layout.n_source, 5))
    first, second = (np.flatnonzero(layout.blend == b) for b in (0, 2))
    latent[first[[1, 3]]] = latent[first[0]]
    latent[second[:2]] = latent[first[0]]
    latent[first[3], 4] += 1e-15  # not the same
    layout.corner[second[1]] += 1  # nor this
    [(out, expected)] = both(alike, reference.alike, layout, latent, step, np.full_like(step, 7.0), outputs=(2,))
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(out[first[0]], step[first[:2]].sum(0) / 2)
    np.testing.assert_array_equal(out[first[0]], out[first[1]])
    real = layout.blend >= 0
    everything = np.column_stack([layout.blend, layout.corner, latent])[real]
    np.testing.assert_array_equal(out[real], descent._alike(everything, step[real]))
    assert (out[~real] == 7).all()


@needs_shim
@pytest.mark.parametrize("size", [3, 5])
def test_bits_do_not_depend_on_the_batch(size: int) -> None:
    """A blend behind another one has the step that it has alone."""
    together = System([1, size], 8)
    members = together.blends()[1]
    alone = System([size], 8)
    inside = {(i, j): p for p, (i, j) in enumerate(together.pair.tolist()) if i >= 0}
    for p, (i, j) in enumerate(alone.pair.tolist()):
        if i >= 0:
            alone.blocks[p] = together.blocks[inside[int(members[i]), int(members[j])]]
    alone.layout.blend_source[:] = np.arange(size)
    alone.target = together.target[members]
    for solve, name, options in ((joint_solve, "solve", {"ridge": RIDGE}),
                                 (joint_conjugate, "conjugate", {"n_iteration": 4})):
        first, second = (run(ShimDevice(), solve, system.layout, *getattr(system, name)(), largest=LARGEST,
                             outputs=(len(getattr(system, name)()) - 1,), **options)[0] for system in (together, alone))
        np.testing.assert_array_equal(first[members], second[:size])


def test_pairs_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source once with itself, each pair in the span of its blend, slots unique in a chunk."""
    from deblendrt.engine.compute.cuda import layouts

    layout: Layout = blends_only([3, 1, 0, 40, 60, 5, 30])
    monkeypatch.setattr(layouts, "HELD", 64)
    pairs = make_pairs(layout, 1, 4, 10)
    assert pairs.row_tile.shape[0] == pairs.pair.shape[0] == 3
    pair = pairs.pair.reshape(-1, 2)
    for blend, (begin, end) in enumerate(pairs.pair_span):
        members = np.flatnonzero(layout.blend == blend)
        assert end - begin == len(members) * (len(members) + 1) // 2
        assert set(pair[begin:end].ravel().tolist()) == set(members.tolist())
    for i in np.flatnonzero(layout.blend >= 0):
        np.testing.assert_array_equal(pair[pairs.own[i]], i)
    for tiles in pairs.row_tile:
        rows = tiles[tiles >= 0]
        assert len(np.unique(pairs.slot[rows])) == len(rows)
        assert pairs.slot[rows].max() < pairs.n_slot
    assert pairs.n_large == 3
