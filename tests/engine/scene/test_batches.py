"""Chunks: threads have work, memory is kept, and no bits change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy_model import N_BAND, ToyModel
from toy_scenes import VARIANCE, digest, make_scene

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene import batches
from deblendrt.engine.scene.batches import Chunk, Memory

N_SCENE = 8


@pytest.fixture(scope="module")
def batch(toy_deblender: Deblender, toy_model: ToyModel) -> dict[str, Any]:
    made = [make_scene(toy_deblender, toy_model, [[14, 20], [19, 23], [38, 30]], seed=k) for k in range(N_SCENE)]
    return {"cutouts": [scene[0] for scene in made], "centers": [scene[1] for scene in made], "variance": VARIANCE,
            "psf": "nominal"}


@pytest.fixture(scope="module")
def result(toy_deblender: Deblender, batch: dict[str, Any]) -> DeblendResult:
    return toy_deblender.deblend_batch(**batch, n_iteration=2)


def memory(deblender: Deblender, limit: float | None = None) -> Memory:
    folded = deblender.fold(None)
    return Memory(N_BAND, 2 * folded.half, folded.phi.nbytes, limit)


def divide(result: DeblendResult, n_threads: int, held: Memory) -> list[Chunk]:
    return batches.divide_into_chunks(result.scenes, np.zeros(N_SCENE, np.int64), list(range(N_SCENE)), n_threads, held)


def test_threads_share_the_sources(toy_deblender: Deblender, result: DeblendResult,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    every, unlimited = list(range(N_SCENE)), memory(toy_deblender)
    assert [chunk.members for chunk in divide(result, 1, unlimited)] == [every]
    monkeypatch.setattr(batches, "LEAST_CHUNK", 1)
    found = divide(result, 2, unlimited)
    assert [i for chunk in found for i in chunk.members] == every
    assert len(found) >= 2


def test_chunks_are_cut_until_the_memory_holds_one_of_each_thread(toy_deblender: Deblender, result: DeblendResult,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "LEAST_CHUNK", 1)
    alone = max(memory(toy_deblender).need([scene]) for scene in result.scenes)
    whole = memory(toy_deblender).need(result.scenes)
    limit = (whole + alone) / 2
    for n_threads, memory_limit in ((1, limit), (2, 2 * limit), (3, 3.01 * alone)):
        limited = memory(toy_deblender, memory_limit)
        found = divide(result, n_threads, limited)
        assert [i for chunk in found for i in chunk.members] == list(range(N_SCENE))
        assert limited.most_workers(found, result.scenes) >= n_threads
    assert len(divide(result, 1, memory(toy_deblender, limit))) < N_SCENE  # and no further


def test_fewer_threads_rather_than_chunks_of_few_sources(toy_deblender: Deblender, result: DeblendResult,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "LEAST_CHUNK", sum(scene.n_source for scene in result.scenes))
    whole = memory(toy_deblender).need(result.scenes)
    assert len(divide(result, 3, memory(toy_deblender, 1.5 * whole))) == 1
    small = memory(toy_deblender, 0.9 * whole)
    assert small.held(divide(result, 3, small), result.scenes) >= 1  # but one has to fit


def test_a_limit_that_holds_single_scenes_changes_no_bits(toy_deblender: Deblender, batch: dict[str, Any],
                                                          result: DeblendResult) -> None:
    alone = max(memory(toy_deblender).need([scene]) for scene in result.scenes)
    for n_threads in (1, 3):
        cut = toy_deblender.deblend_batch(**batch, n_iteration=2, memory_limit=1.01 * alone, n_threads=n_threads)
        assert digest(cut) == digest(result)
    with pytest.raises(ValueError, match=r"memory_limit: expected at least .* bytes for these images"):
        toy_deblender.deblend_batch(**batch, n_iteration=2, memory_limit=0.99 * alone)


def test_nothing_to_solve(toy_deblender: Deblender, result: DeblendResult) -> None:
    small = memory(toy_deblender, 1.0)
    assert batches.divide_into_chunks(result.scenes, np.zeros(N_SCENE, np.int64), [], 4, small) == []
    assert small.most_workers([], result.scenes) == 1
    assert small.held([], result.scenes) == np.inf
