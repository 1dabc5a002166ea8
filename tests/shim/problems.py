"""Problems of the CPU engine as the kernels see them: a `Layout` and flat images."""

from __future__ import annotations

from typing import Any

import numpy as np
from toy_model import N_BAND, ToyModel, make_problem
from toy_scenes import make_scene

from deblendrt.cuda.kernels.linear.launch import source_pairs
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute import decoding, drawing
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.deblender import Deblender

N_PADDING = 3  # sources, and blends
ANCHORS = [[14, 16], [19, 18], [24, 25], [41, 35]]  # a pair, a neighbour and a source alone


def toy_problem(deblender: Deblender, model: ToyModel, n_scene: int = 1, **options: Any) -> tuple[Problem, Any, Any]:
    """The problem of a few scenes, the start and the floor of its log fluxes."""
    scenes = [make_scene(deblender, model, ANCHORS, seed=k) for k in range(n_scene)]
    return make_problem(deblender, [s[0] for s in scenes], [s[1] for s in scenes], **options)


def layout_of(problem: Problem) -> Layout:
    """Geometry of a problem of one folded basis, padded; without the tiles, which only products and images need."""
    n, n_blend = len(problem.scene), problem.n_blend
    shape = np.array([d.shape[1:] for d in problem.data], np.int32)
    size = problem.n_band * shape.prod(1)
    start = np.cumsum([0, *size]).astype(np.int64)
    padded = n + N_PADDING
    count = np.bincount(problem.blend, minlength=n_blend)
    blend_start = np.concatenate([[0], np.cumsum(count), [n] * N_PADDING]).astype(np.int32)
    order = np.argsort(problem.blend, kind="stable")
    blend_scene = np.repeat(np.arange(len(problem.data)), [p.n_blend for p in problem.partition])
    none = np.zeros(0, np.int32)
    return Layout(
        n_source=padded, n_band=problem.n_band, n_blend=n_blend + N_PADDING, n_pixel=int(start[-1]) + 5,
        window=problem.folded.window, margin=problem.folded.margin, binning=problem.folded.of(0).binning,
        canvas_start=start[:-1], canvas_shape=shape, scene=pad(problem.scene.astype(np.int32), -1),
        corner=pad(problem.corner.astype(np.int32)), basis=np.zeros(padded, np.int32), row_tile=none, pixel_tile=none,
        tile_start=none, tile_source=none, blend=pad(problem.blend.astype(np.int32), -1), blend_start=blend_start,
        blend_source=pad(order.astype(np.int32), -1), pixel_start=none, blend_pixel=none,
        blend_scene=pad(blend_scene.astype(np.int32), -1))


def pad(rows: np.ndarray, value: float = 0) -> np.ndarray:
    """Rows of sources or blends with those of padding behind them."""
    return np.concatenate([rows, np.full((N_PADDING, *rows.shape[1:]), value, rows.dtype)])


def flat(layout: Layout, images: list[np.ndarray]) -> np.ndarray:
    """Images of all scenes in one buffer; what pads it is not a number."""
    buffer = np.full(layout.n_pixel, np.nan, np.float32)
    buffer[: sum(i.size for i in images)] = np.concatenate([i.ravel() for i in images])
    return buffer


def unit_coefficients(problem: Problem, latent: np.ndarray) -> np.ndarray:
    """Coefficients at unit flux."""
    return decoding.decode(problem, np.concatenate([np.zeros((len(latent), N_BAND)), latent[:, N_BAND:]], 1))


def normal_arguments(problem: Problem, layout: Layout, unit: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arguments of `normal` as the CPU draws them: stamps, cells, extended, weights, pairs; two pairs of padding."""
    stamps = drawing.product(unit, problem.folded.phi)
    cells = drawing.product(unit, problem.folded.outer) if layout.n_cell else None
    extended = pad(problem.extended.astype(np.int32))
    pairs, _ = source_pairs(layout, extended)
    pairs = np.concatenate([pairs, np.full((2, 2), -1, np.int32)])
    wide = None if cells is None else np.ascontiguousarray(pad(cells))
    return np.ascontiguousarray(pad(stamps)), wide, extended, flat(layout, problem.weight), pairs


def blends_only(sizes: Any) -> Layout:
    """Blends of given sizes, sources in random order; no pixels. Two sources of padding, where a blend is empty."""
    count = np.asarray(sizes)
    rng = np.random.default_rng(len(count))
    n, n_padding = int(count.sum()), 2 * int((count == 0).any())
    blend = np.full(n + n_padding, -1, np.int32)
    blend[rng.permutation(n + n_padding)[:n]] = np.repeat(np.arange(len(count)), count)
    order = np.argsort(np.where(blend < 0, len(count), blend), kind="stable").astype(np.int32)
    none, zero = np.zeros(0, np.int32), np.zeros(n + n_padding, np.int32)
    return Layout(
        n_source=n + n_padding, n_band=3, n_blend=len(count), n_pixel=0, window=1, margin=0, binning=1,
        canvas_start=np.zeros(1, np.int64), canvas_shape=np.ones((1, 2), np.int32),
        scene=np.where(blend < 0, -1, 0).astype(np.int32), corner=np.zeros((len(blend), 2), np.int32), basis=zero,
        row_tile=none, pixel_tile=none, tile_start=none, tile_source=none, blend=blend,
        blend_start=np.concatenate([[0], np.cumsum(count)]).astype(np.int32), blend_source=order, pixel_start=none,
        blend_pixel=none, blend_scene=np.zeros(len(count), np.int32))
