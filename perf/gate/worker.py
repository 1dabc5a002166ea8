"""The process of one version of the engine: it imports `deblendrt` from a source tree, and runs cases on request.

    python -m perf.gate.worker FOLDER

FOLDER holds a link `deblendrt` to the tree. Requests and answers are JSON objects, one on each line:

- The first answer, without a request, has versions and whether instructions can be counted.
- ``{"do": "time", "case": name, "size": n}`` asks for wall and processor seconds and latencies. No function is wrapped.
- ``{"do": "judge", "case": name, "size": n}`` asks for accuracy, objective, counts and time by stage. Timers slow this
  run by some per cent. Cases that start a process or load a model are judged on the model that is loaded already.

An error is answered with ``{"error": text}``.
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
KEPT_SOURCES = 2000  # scenes of larger cases are drawn again for every run


class Server:
    """Answers requests with one loaded deblender.

    Parameters
    ----------
    folder : Path
        The engine must come from here.

    Raises
    ------
    ImportError
        The engine came from elsewhere.
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
        self._scenes: dict[tuple[str, int], list[list[cases.CaseScene]]] = {}

    def hello(self) -> dict[str, Any]:
        """Versions, and why instructions cannot be counted, if so."""
        return {"python": platform.python_version(),
                "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
                "no_instructions": self.counter.why}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request."""
        name, size = request["case"], request["size"]
        return {"time": self.time, "judge": self.judge}[request["do"]](name, size)

    def time(self, name: str, size: int) -> dict[str, Any]:
        """Times of a run without wrapped functions."""
        before = self.counter.read()
        outcome = runs.run(self.deblender, name, size, self._drawn(name, size))
        after = self.counter.read()
        return {"wall": outcome.wall, "cpu": outcome.cpu, "n_source": outcome.n_source, "latency": outcome.latency,
                "extra": outcome.extra, "instructions": None if after is None or before is None else after - before}

    def judge(self, name: str, size: int) -> dict[str, Any]:
        """Accuracy, counts and stages of a run whose time is not used."""
        scenes = self._drawn(name, size)
        first = next(iter(cases.CASES[name].scenes(size) if scenes is None else scenes))[:1]
        # folds the PSF now: else only the first of several cases would count it
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

    def _drawn(self, name: str, size: int) -> list[list[cases.CaseScene]] | None:
        """The scenes of a case, drawn once if they are few; else None."""
        case = cases.CASES[name]
        if (name, size) not in self._scenes:
            few = size**2 <= 500**2 if case.unit == "pixels" else size * 5 <= KEPT_SOURCES
            if not few:
                return None
            self._scenes[name, size] = list(case.scenes(size))
        return self._scenes[name, size]


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # prints of the engine go to standard error
    server = Server(Path(sys.argv[1]))
    print(json.dumps(server.hello()), file=answers)
    for line in sys.stdin:
        try:
            said = server.answer(json.loads(line))
        except Exception as error:  # the comparison decides what it means
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said, default=_plain), file=answers)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


if __name__ == "__main__":
    main()
