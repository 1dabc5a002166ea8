"""The protocol between `perf.peers` and a peer in an environment of its own. NumPy only.

A peer is a process that reads requests, a JSON object on each line, and answers each with a line:

- At its start it writes ``{"version": ..., "how": ..., "time_only": ...}``. `time_only` is empty, or says why its
  models must not be compared with the truth.
- For ``{"scenes": path, "models": path, "settings": {...}}`` it deblends the scenes of one ``.npz`` file, writes the
  other, and answers ``{"done": path}``.

The files hold plain arrays, never pickles. A file of scenes has ``bands``, ``psf`` and, for scene k, ``image_k``,
``variance_k`` (n_band, n_y, n_x) and ``centers_k`` (n_source, 2), but no truth. A file of models has the fields of
`Model`, each with the suffix ``_k``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_TIME = np.zeros(2)


def clock() -> NDArray[np.float64]:
    """Processor time of this process and wall time [s]. Only differences of two calls are meaningful."""
    return np.array([time.process_time(), time.perf_counter()])


@dataclass(frozen=True)
class GivenScene:
    """A scene as a deblender gets it.

    Attributes
    ----------
    bands : tuple of str
    psf : float64 (n_band, size, size)
    image : float32 (n_band, n_y, n_x) [nJy]
    variance : float32 (n_band, n_y, n_x) [nJy^2]
        Infinite where there is no data, which scarlet_lite's adapter alone accepts.
    centers : float64 (n_source, 2) [pixel]
        (x, y).
    """

    bands: tuple[str, ...]
    psf: NDArray[np.float64]
    image: NDArray[np.float32]
    variance: NDArray[np.float32]
    centers: NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """A peer's solution of a scene.

    Attributes
    ----------
    flux : float64 (n_source, n_band) [nJy]
        Total flux of every source's model; NaN if the peer failed.
    image : float32 (n_source, n_band, n_y, n_x) [nJy]
        Image of every source under the observed PSF.
    seconds : float64 (2,)
        Processor time of the process, and wall time.
    compile_seconds : float64 (2,)
        Part of `seconds` until the step of the fit was compiled; `NO_TIME` if nothing is compiled.
    iterations : int
        -1 if not known.
    error : str
        Why the peer failed; empty if it did not.
    n_missed : int
        Positions at which a peer with its own detection found no source and measured an aperture.
    """

    flux: NDArray[np.float64]
    image: NDArray[np.float32]
    seconds: NDArray[np.float64]
    compile_seconds: NDArray[np.float64]
    iterations: int
    error: str
    n_missed: int = 0


def write_scenes(path: Path, scenes: Sequence[GivenScene]) -> None:
    """Write scenes that share bands and PSF."""
    arrays: dict[str, Any] = {"bands": np.array(scenes[0].bands), "psf": scenes[0].psf,
                              "n_scene": np.array(len(scenes))}
    for k, scene in enumerate(scenes):
        arrays |= {f"image_{k}": scene.image, f"variance_{k}": scene.variance, f"centers_{k}": scene.centers}
    np.savez(path, **arrays)


def read_scenes(path: Path) -> list[GivenScene]:
    """The scenes of a file of `write_scenes`."""
    with np.load(path, allow_pickle=False) as file:
        bands = tuple(str(band) for band in file["bands"])
        return [GivenScene(bands, file["psf"], file[f"image_{k}"], file[f"variance_{k}"], file[f"centers_{k}"])
                for k in range(int(file["n_scene"]))]


def write_models(path: Path, models: Sequence[Model]) -> None:
    """Write the models of a list of scenes."""
    arrays = {f"{field.name}_{k}": np.asarray(getattr(model, field.name))
              for k, model in enumerate(models) for field in fields(Model)}
    np.savez(path, n_scene=np.array(len(models)), **arrays)


def read_models(path: Path) -> list[Model]:
    """The models of a file of `write_models`."""
    with np.load(path, allow_pickle=False) as file:
        return [Model(file[f"flux_{k}"], file[f"image_{k}"], file[f"seconds_{k}"], file[f"compile_seconds_{k}"],
                      int(file[f"iterations_{k}"]), str(file[f"error_{k}"]), int(file[f"n_missed_{k}"]))
                for k in range(int(file["n_scene"]))]


def serve(deblend: Callable[..., Model], version: str, how: str, time_only: str = "") -> None:
    """Answer requests on standard input until it ends.

    Parameters
    ----------
    deblend : callable
        Takes a `GivenScene` and the settings of a request.
    version, how : str
        Version of the peer, and a text on how it was used.
    time_only : str
        Why its models must not be compared with the truth; empty if they may.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # prints of the peer go to standard error
    print(json.dumps({"version": version, "how": how, "time_only": time_only}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        models = [_one(deblend, scene, request["settings"]) for scene in read_scenes(Path(request["scenes"]))]
        write_models(Path(request["models"]), models)
        print(json.dumps({"done": request["models"]}), file=answers)


def _one(deblend: Callable[..., Model], scene: GivenScene, settings: dict[str, Any]) -> Model:
    start = clock()
    try:
        return deblend(scene, **settings)
    except Exception as error:  # a failed scene is a result: it is counted, and named on the page
        n_source, shape = len(scene.centers), scene.image.shape
        return Model(np.full((n_source, shape[0]), np.nan), np.zeros((n_source, *shape), np.float32),
                     clock() - start, NO_TIME, -1, f"{type(error).__name__}: {error}")
