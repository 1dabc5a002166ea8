"""The start of the descent."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from tolerances import FLOAT32
from toy_model import CUTOUT, N_BAND, ToyModel, draw_latent, make_problem, paint

from deblendrt.engine.compute import decoding
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.solve import constants, start

ANCHORS = np.array([[14, 20], [18, 22], [40, 30]])
SHAPE = (50, 56)


class Listening:
    """A runtime that keeps the cutouts that the encoder is given."""

    def __init__(self, runtime: Any) -> None:
        self.runtime, self.cutouts = runtime, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def encode(self, cutouts: np.ndarray, *others: Any) -> np.ndarray:
        self.cutouts.append(cutouts.copy())
        return self.runtime.encode(cutouts, *others)


def test_the_encoder_looks_again_without_the_other_sources(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    folded = toy_deblender.fold(None)
    latent = draw_latent(len(ANCHORS), np.random.default_rng(1))
    image = paint(toy_model, folded, latent, ANCHORS, SHAPE).astype(np.float32)
    problem, _, _ = make_problem(toy_deblender, image, ANCHORS + latent[:, N_BAND : N_BAND + 2])
    runtime = Listening(problem.runtime)
    problem = dataclasses.replace(problem, runtime=runtime)
    start.encoded_shapes(problem, None)
    start.encoded_shapes(problem, decoding.decode(problem, latent))
    observed, isolated = runtime.cutouts
    half, sigma = CUTOUT // 2, 1 / np.sqrt(problem.weight[0].max((1, 2)))[:, None, None]
    for i, (x, y) in enumerate(ANCHORS):
        area = (slice(None), slice(y - half, y + half + 1), slice(x - half, x + half + 1))
        np.testing.assert_allclose(observed[i], image[area] / sigma, rtol=1e-5)
        own = paint(toy_model, folded, latent[[i]], ANCHORS[[i]], SHAPE)[area] / sigma
        np.testing.assert_allclose(isolated[i], own, atol=10 * FLOAT32 * np.abs(image / sigma).max())
    assert np.abs(observed[0] - isolated[0]).max() > 1  # a neighbour's light, in sigma


def test_every_encoding_starts_from_the_last(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    latent = draw_latent(len(ANCHORS), np.random.default_rng(1))
    image = paint(toy_model, toy_deblender.fold(None), latent, ANCHORS, SHAPE).astype(np.float32)
    problem, _, _ = make_problem(toy_deblender, image, ANCHORS + latent[:, N_BAND : N_BAND + 2])
    problem = dataclasses.replace(problem, runtime=(runtime := Listening(problem.runtime)))
    _, started, floor = start.start_latents(problem, "encoder")
    assert len(runtime.cutouts) == constants.ENCODINGS
    encoded = toy_model.encode(runtime.cutouts[-1], problem.offset0, np.zeros((len(latent), 2 * N_BAND)))
    np.testing.assert_allclose(started[:, N_BAND + 2 :], encoded[:, N_BAND + 2 :], atol=1e-5)
    assert (started[:, :N_BAND] >= floor).all()
    runtime.cutouts.clear()
    start.start_latents(problem, "linear")
    assert not runtime.cutouts
