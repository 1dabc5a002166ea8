"""MADNESS (`madness_model`) on the exchanged scenes, in its own environment.

    python -m perf.peers.madness

The weights are random, so only the time is used. It depends on the sizes of the layers and on the number of iterations,
not on the weights.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from perf import metrics
from perf.peers import exchange
from perf.peers.madness_model import HALF, N_BAND, N_ITERATION, MadnessDecoder, MadnessFlow, PaddedScene, descend

UNIT = 100.0  # nJy: of the decoder's output
TIME_ONLY = "random weights: time only"
HOW = ("our own PyTorch version of the published decoder, prior and descent (`perf/peers/madness_model.py` tells the "
       "paper's numbers from guesses); all sources of a scene together, scene after scene, every iteration done; with "
       "random weights, because the authors' package has none, so that its accuracy is not known here")


@functools.lru_cache(maxsize=1)
def _networks() -> tuple[MadnessDecoder, MadnessFlow]:
    torch.manual_seed(0)
    decoder = MadnessDecoder().to(memory_format=torch.channels_last)
    return decoder.requires_grad_(False), MadnessFlow().requires_grad_(False)


def deblend(scene: exchange.GivenScene, n_iteration: int = N_ITERATION) -> exchange.Model:
    """Descend one scene; the time is that of the descent and of the solution's stamps."""
    if len(scene.bands) != N_BAND:
        raise ValueError(f"the decoder has {N_BAND} bands, the scene {len(scene.bands)}")
    decoder, flow = _networks()
    start = exchange.clock()
    image, weight = (torch.from_numpy(array.astype(np.float32))
                     for array in (scene.image / UNIT, UNIT**2 / scene.variance))
    z, _ = descend(PaddedScene(image, weight, torch.from_numpy(scene.centers)), decoder, flow, n_iteration)
    stamps = UNIT * decoder(z).numpy()
    seconds = exchange.clock() - start
    corners = np.rint(scene.centers).astype(int) - HALF
    images = np.stack([metrics.place(stamp, (x, y), scene.image.shape[1:])
                       for stamp, (x, y) in zip(stamps, corners, strict=True)])
    return exchange.Model(stamps.sum((2, 3), dtype=np.float64), images, seconds, exchange.NO_TIME, n_iteration, "")


if __name__ == "__main__":
    torch.set_num_threads(1)
    exchange.serve(deblend, f"as published, torch {torch.__version__}", HOW, TIME_ONLY)
