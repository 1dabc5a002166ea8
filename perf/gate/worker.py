"""One process per version of the engine: imports `deblendrt` from a source tree, and runs cases as it is asked to.

    python -m perf.gate.worker FOLDER

FOLDER holds a link `deblendrt` to the tree. Requests and answers are JSON objects, one a line:

- on its start it says which engine it has imported, versions, and whether it can count instructions;
- ``{"do": "time", "case": name, "size": n}``: wall and processor seconds, latencies; nothing is wrapped meanwhile;
- ``{"do": "judge", "case": name, "size": n}``: accuracy, objective, counts, time by stage; timers slow this run by some
  per cent. (Cases that start a process or load a model are judged like the others, on the model that is loaded.)

An error is an answer, too: ``{"error": text}``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from perf.gate import cases, runs, truth
from perf.gate.instructions import Counter
from perf.gate.stages import Probe

PACKAGES = ("numpy", "onnxruntime", "astropy")
KEPT_SOURCES = 2000  # scenes of larger cases are drawn anew for every run


class Server:
    """Answers requests with one loaded deblender.

    Parameters
    ----------
    folder : Path
        That the engine must come from.

    Raises
    ------
    ImportError
        It came from elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        engine = importlib.import_module("deblendrt.engine")
        tree = (folder / "deblendrt").resolve()
        if tree not in Path(str(engine.__file__)).resolve().parents:
            raise ImportError(f"deblendrt.engine came from {engine.__file__}, not from {tree}")
        self.deblender = engine.Deblender.load()
        self.deblender.warmup()
        home = "engine.scene" if (tree / "engine" / "scene").is_dir() else "engine"
        flags = importlib.import_module(f"deblendrt.{home}.flags")
        self.suspect = int(getattr(flags, "SUSPECT", 0))
        self.counter = Counter()
        self._scenes: dict[tuple[str, int], list[list[cases.Scene]]] = {}

    def hello(self) -> dict[str, Any]:
        """Versions, and what can be counted."""
        return {"python": platform.python_version(),
                "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
                "no_instructions": self.counter.why}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request's."""
        name, size = request["case"], request["size"]
        return {"time": self.time, "judge": self.judge}[request["do"]](name, size)

    def time(self, name: str, size: int) -> dict[str, Any]:
        """A run with nothing wrapped."""
        before = self.counter.read()
        outcome = runs.run(self.deblender, name, size, self._drawn(name, size))
        after = self.counter.read()
        return {"wall": outcome.wall, "cpu": outcome.cpu, "n_source": outcome.n_source, "latency": outcome.latency,
                "extra": outcome.extra, "instructions": None if after is None or before is None else after - before}

    def judge(self, name: str, size: int) -> dict[str, Any]:
        """A run whose time does not count: accuracy, counts and stages."""
        scenes = self._drawn(name, size)
        first = next(iter(cases.CASES[name].scenes(size) if scenes is None else scenes))[:1]
        # folds the PSF, which would be counted in the first of several cases alone
        self.deblender.deblend_batch(**runs.arguments(first, cases.CASES[name]), n_iteration=1)
        start = time.process_time()
        with Probe().installed() as probe:
            kept = runs.run(self.deblender, name, size, scenes, live=False, keep=True)
            seconds = time.process_time() - start
        answer: dict[str, Any] = {"n_source": kept.n_source, "counts": dict(sorted(probe.counts.items())),
                                  "stages": dict(sorted(probe.seconds.items())), "stages_total": seconds,
                                  "skipped": probe.skipped}
        if kept.judged:
            answer |= {"accuracy": truth.figures(kept.judged, self.suspect), "objective": truth.objective(kept.judged),
                       "result_sha256": truth.result_hash(kept.judged)}
        return answer

    def _drawn(self, name: str, size: int) -> list[list[cases.Scene]] | None:
        """Scenes, drawn once where they are few."""
        case = cases.CASES[name]
        if (name, size) not in self._scenes:
            few = size**2 <= 500**2 if case.unit == "pixels" else size * 5 <= KEPT_SOURCES
            if not few:
                return None
            self._scenes[name, size] = list(case.scenes(size))
        return self._scenes[name, size]


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever an engine prints goes to standard error
    server = Server(Path(sys.argv[1]))
    print(json.dumps(server.hello()), file=answers)
    for line in sys.stdin:
        try:
            said = server.answer(json.loads(line))
        except Exception as error:  # the one who asked decides what that means
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said, default=_plain), file=answers)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


if __name__ == "__main__":
    main()
