"""Conjugate gradient: kernels against references, references against the solver's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels import both, needs_shim, run
from problems import blends_only
from shim import ShimDevice

from deblendrt.cuda.kernels.linear.launch import conjugate_start, conjugate_step
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.reference import linear as reference_linear
from deblendrt.engine.solve import conjugate_gradient
from deblendrt.engine.solve import curvature as engine_curvature

SIZES = [1, 3, 0, 2, 1, 17, 0]
N_STEP = 4


class System:
    """A matrix of every blend as the solver's: what a likelihood couples, a prior's curvature and a damping."""

    def __init__(self, layout: Layout, n_latent: int) -> None:
        rng = np.random.default_rng(n_latent)
        n = layout.n_source
        self.layout, self.n_latent = layout, n_latent
        root = rng.standard_normal((n, n_latent, 2 * n_latent)) / np.sqrt(n_latent)
        self.curvature = root @ root.transpose(0, 2, 1)
        self.added = rng.uniform(0, 1, (n, n_latent))
        self.target = rng.standard_normal((n, n_latent))
        # of one blend, rows are like each other
        self.rows = rng.standard_normal((n, n_latent, 40)) + 2 * rng.standard_normal((layout.n_blend, 1, 40))[
            layout.blend]
        one = np.eye(n_latent)
        own = self.rows @ self.rows.transpose(0, 2, 1) + self.curvature + self.added[:, :, None] * one
        inverse = engine_curvature.inverse(own)
        self.inverse = 0.5 * (inverse + inverse.transpose(0, 2, 1))

    def pull(self, v: np.ndarray) -> np.ndarray:
        """The likelihood's part of the matrix."""
        out = np.full(v.shape, 7.0)
        for b in range(self.layout.n_blend):
            members = np.flatnonzero(self.layout.blend == b)
            out[members] = self.rows[members] @ np.einsum("nl,nlp->p", v[members], self.rows[members])
        return out

    def room(self) -> list[np.ndarray]:
        """solution, rest, direction, rz."""
        return [*(np.full(self.target.shape, 7.0) for _ in range(3)), np.full(self.layout.n_blend, 7.0)]

    def solve(self, device: ShimDevice) -> list[np.ndarray]:
        """All on a device but the pull."""
        upload = device.upload
        layout, inverse = self.layout.on(upload), upload(self.inverse)
        vectors = [upload(a) for a in self.room()]
        conjugate_start(device, layout, inverse, upload(self.target), *vectors)
        for _ in range(N_STEP):
            pulled = upload(self.pull(device.download(vectors[2])))
            conjugate_step(device, layout, inverse, upload(self.curvature), upload(self.added), pulled, *vectors)
        return [device.download(v) for v in vectors]

    def expected(self) -> np.ndarray:
        """The solver's solution: of its own sources, by its order."""
        layout = self.layout
        count = np.bincount(layout.blend[layout.blend >= 0], minlength=layout.n_blend)
        real = layout.blend >= 0
        solution = np.full(self.target.shape, 7.0)
        solution[real] = engine_curvature.apply_blocks(self.inverse[real], self.target[real])
        rows = np.flatnonzero(real & (count[layout.blend] > 1))

        def matrix(v: np.ndarray) -> np.ndarray:
            whole = np.zeros_like(self.target)
            whole[rows] = v
            rest = engine_curvature.apply_blocks(self.curvature[rows], v) + self.added[rows] * v
            return np.asarray(self.pull(whole)[rows] + rest)

        solution[rows] = conjugate_gradient.conjugate_gradient(
            matrix, lambda r: engine_curvature.apply_blocks(self.inverse[rows], r), self.target[rows],
            layout.blend[rows].astype(np.int64), N_STEP)
        return solution


def state(system: System, n_step: int) -> list[np.ndarray]:
    """Arguments of a step after so many: pulled, and the four vectors."""
    vectors = system.room()
    reference_linear.conjugate_start(system.layout, system.inverse, system.target, *vectors)
    for _ in range(n_step):
        reference_linear.conjugate_step(system.layout, system.inverse, system.curvature, system.added,
                                         system.pull(vectors[2]), *vectors)
    return [system.pull(vectors[2]), *vectors]


def close(result: np.ndarray, expected: np.ndarray, rtol: float = 1e-10) -> None:
    """By the largest number."""
    np.testing.assert_allclose(result, expected, rtol=0, atol=rtol * np.abs(expected).max())


def test_reference_is_the_solver() -> None:
    system = System(blends_only(SIZES), 8)
    result, expected = state(system, N_STEP)[1], system.expected()
    close(result, expected)
    assert (result[system.layout.blend < 0] == 7.0).all()


@needs_shim
@pytest.mark.parametrize(("sizes", "n_latent"), [(SIZES, 8), (SIZES, 18), ([2, 64], 18), ([3, 0, 1], 64)])
def test_kernels(sizes: list[int], n_latent: int) -> None:
    system = System(blends_only(sizes), n_latent)
    arguments: list[Any] = [system.inverse, system.target, *system.room()]
    for result, expected in both(conjugate_start, reference_linear.conjugate_start, system.layout, *arguments,
                                 outputs=(2, 3, 4, 5)):
        close(result, expected, 1e-12)
    for n_step in (0, 2):
        arguments = [system.inverse, system.curvature, system.added, *state(system, n_step)]
        for result, expected in both(conjugate_step, reference_linear.conjugate_step, system.layout, *arguments,
                                     outputs=(3, 4, 5, 6, 7)):
            close(result, expected)


@needs_shim
def test_steps_solve_as_the_solver() -> None:
    system = System(blends_only(SIZES), 18)
    [solution, rest, direction, rz] = system.solve(ShimDevice())
    close(solution, system.expected(), 1e-9)
    empty = np.array(SIZES) == 0
    assert (rz[empty] == 7.0).all()
    alone = np.isin(system.layout.blend, np.flatnonzero(np.array(SIZES) == 1))
    assert not rest[alone].any()
    assert not direction[alone].any()


@needs_shim
def test_nothing_to_do() -> None:
    system = System(blends_only([3, 2]), 8)
    system.target[system.layout.blend == 0] = 0.0
    results = system.solve(ShimDevice())
    assert all(np.isfinite(r).all() for r in results)
    assert not results[0][system.layout.blend == 0].any()
    assert results[0][system.layout.blend == 1].any()


@needs_shim
def test_bits_do_not_depend_on_the_batch() -> None:
    system = System(blends_only(SIZES), 18)
    pulled, *vectors = state(system, 1)
    arguments = [system.inverse, system.curvature, system.added, pulled, *vectors]
    together = run(ShimDevice(), conjugate_step, system.layout, *arguments, outputs=(3, 4, 5, 6, 7))
    blend = 5
    mine = np.flatnonzero(system.layout.blend == blend)
    one = blends_only([len(mine)])
    alone = [a[mine] if len(a) == system.layout.n_source else a[blend : blend + 1] for a in arguments]
    for a, b in zip(run(ShimDevice(), conjugate_step, one, *alone, outputs=(3, 4, 5, 6, 7)), together, strict=True):
        np.testing.assert_array_equal(a, b[mine] if len(b) == system.layout.n_source else b[blend : blend + 1])
