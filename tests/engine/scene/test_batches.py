"""What is solved at once: threads have work, memory is kept, and nobody's bits change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy_model import ToyModel
from toy_scenes import VARIANCE, digest, make_scene

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene import batches
from deblendrt.engine.scene.batches import divide, held, memory, most_workers

N_SCENE = 8


@pytest.fixture(scope="module")
def batch(toy_deblender: Deblender, toy_model: ToyModel) -> dict[str, Any]:
    made = [make_scene(toy_deblender, toy_model, [[14, 20], [19, 23], [38, 30]], seed=k) for k in range(N_SCENE)]
    return {"cutouts": [scene[0] for scene in made], "centers": [scene[1] for scene in made], "variance": VARIANCE}


@pytest.fixture(scope="module")
def result(toy_deblender: Deblender, batch: dict[str, Any]) -> DeblendResult:
    return toy_deblender.deblend_batch(**batch, n_iteration=2)


def test_threads_share_the_sources(result: DeblendResult, monkeypatch: pytest.MonkeyPatch) -> None:
    every = list(range(N_SCENE))
    assert [chunk.members for chunk in divide(result, every, 1, None)] == [every]
    monkeypatch.setattr(batches, "LEAST_CHUNK", 1)
    found = divide(result, every, 2, None)
    assert [i for chunk in found for i in chunk.members] == every
    assert len(found) >= 2


def test_chunks_are_cut_until_the_memory_holds_one_of_each_thread(result: DeblendResult,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    every = list(range(N_SCENE))
    monkeypatch.setattr(batches, "LEAST_CHUNK", 1)
    alone = max(memory([scene], result) for scene in result.scenes)
    whole = memory(result.scenes, result)
    limit = (whole + alone) / 2
    for n_threads, memory_limit in ((1, limit), (2, 2 * limit), (3, 3.01 * alone)):
        found = divide(result, every, n_threads, memory_limit)
        assert [i for chunk in found for i in chunk.members] == every
        assert most_workers(found, result, memory_limit) >= n_threads
    assert len(divide(result, every, 1, limit)) < N_SCENE  # and no further


def test_fewer_threads_rather_than_chunks_of_few_sources(result: DeblendResult,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    every = list(range(N_SCENE))
    monkeypatch.setattr(batches, "LEAST_CHUNK", sum(scene.n_source for scene in result.scenes))
    whole = memory(result.scenes, result)
    assert len(divide(result, every, 3, 1.5 * whole)) == 1
    assert held(divide(result, every, 3, 0.9 * whole), result, 0.9 * whole) >= 1  # but one has to fit


def test_a_limit_that_holds_single_scenes_changes_no_bits(toy_deblender: Deblender, batch: dict[str, Any],
                                                          result: DeblendResult) -> None:
    alone = max(memory([scene], result) for scene in result.scenes)
    for n_threads in (1, 3):
        cut = toy_deblender.deblend_batch(**batch, n_iteration=2, memory_limit=1.01 * alone, n_threads=n_threads)
        assert digest(cut) == digest(result)
    with pytest.raises(ValueError, match=r"memory_limit: expected at least .* bytes for these images"):
        toy_deblender.deblend_batch(**batch, n_iteration=2, memory_limit=0.99 * alone)


def test_nothing_to_solve(result: DeblendResult) -> None:
    assert divide(result, [], 4, 1.0) == []
    assert most_workers([], result, 1.0) == 1
    assert held([], result, 1.0) == np.inf
