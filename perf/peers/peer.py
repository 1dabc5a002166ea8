"""A peer's process, and deblendrt in this process with the same interface."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deblendrt.engine.deblender import Deblender
from perf import metrics
from perf.peers import exchange
from perf.report import ROOT, THREADS

PEERS = ("sep", "scarlet_lite", "scarlet2", "madness")


class Missing(Exception):
    """A peer cannot be run; the message says why."""


class Peer:
    """A peer in its own environment.

    Parameters
    ----------
    name : str
        Name of its adapter in this folder.
    python : Path
        Interpreter of the environment.
    folder : Path
        Folder of the exchanged files.

    Raises
    ------
    Missing
        There is no such interpreter, or the adapter did not start.
    """

    def __init__(self, name: str, python: Path, folder: Path) -> None:
        if not python.exists():
            raise Missing(f"there is no {python}")
        self._folder, self._log = folder, folder / f"{name}.log"
        environment = {**os.environ, **{key: "1" for key in THREADS}}
        environment.pop("PYTHONPATH", None)  # the peer's environment is its own
        with self._log.open("w") as log:
            self._process = subprocess.Popen([str(python), "-W", "ignore", "-m", f"perf.peers.{name}"], cwd=ROOT,
                                             text=True, env=environment, stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE, stderr=log)
        try:
            hello = self._read()
        except Missing as reason:
            raise Missing(f"{name} does not start: {reason}") from None
        self.version, self.how, self.time_only = (str(hello[key]) for key in ("version", "how", "time_only"))

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            said = self._log.read_text().strip().splitlines()
            raise Missing(said[-1] if said else f"it ended with status {self._process.returncode} and said nothing")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def deblend(self, scenes: Sequence[exchange.GivenScene], **settings: Any) -> list[exchange.Model]:
        """Models of the scenes. Raises `Missing` if the process ends."""
        assert self._process.stdin is not None
        paths = [self._folder / name for name in ("scenes.npz", "models.npz")]
        exchange.write_scenes(paths[0], scenes)
        request = {"scenes": str(paths[0]), "models": str(paths[1]), "settings": settings}
        with contextlib.suppress(BrokenPipeError):  # it has ended; reading says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        self._read()
        return exchange.read_models(paths[1])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Own:
    """deblendrt on one thread of this process. A request is one call, whose time is shared by the sources."""

    version, time_only = "", ""  # the page has the version already
    how = ("one call for the scenes of a turn; centres free within a Gaussian prior of width `center_sigma`; fluxes, "
           "errors and all photometry included in the time")

    def __init__(self, bundle: str) -> None:
        self._deblender = Deblender.load(bundle)

    def deblend(self, scenes: Sequence[exchange.GivenScene], **settings: Any) -> list[exchange.Model]:
        """Models of the scenes."""
        start = exchange.clock()
        result = self._deblender.deblend_batch(
            [s.image for s in scenes], [s.centers for s in scenes], variance=[s.variance for s in scenes],
            psf=scenes[0].psf, bands=scenes[0].bands, n_threads=1, **settings)
        seconds = exchange.clock() - start
        models = []
        for scene, first, last in zip(scenes, result.source_start[:-1], result.source_start[1:], strict=True):
            images = np.zeros((last - first, *scene.image.shape), np.float32)
            for image, i in zip(images, range(first, last), strict=True):
                stamp, corner = result.stamps(i)
                image[:] = metrics.place(stamp, corner, image.shape[1:])
            models.append(exchange.Model(np.asarray(result.flux[first:last], np.float64), images,
                                         seconds * (last - first) / len(result.flux), exchange.NO_TIME, -1, ""))
        return models

    def close(self) -> None:
        """Nothing to end."""
