"""Run a case on a loaded deblender. Only the calls of the deblender are timed, never the drawing of scenes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from perf.gate import cases
from perf.gate.cases import Case, CaseScene

MICRO_BATCH = 64  # most cutouts of the burst in one call
MEMORY_LIMIT = 1.5e9  # byte, given to the engine for patches


@dataclasses.dataclass
class RunOutcome:
    """Times and results of a run.

    Attributes
    ----------
    wall, cpu : float [s]
        Sums over the timed calls.
    n_source : int
    latency : list of float [s]
        Latency of every call. In the burst: of every cutout, counted from its scheduled arrival.
    judged : list of (scenes, result)
        Empty unless asked for.
    extra : dict of str to float
        Figures that only this kind of case has.
    """

    wall: float = 0.0
    cpu: float = 0.0
    n_source: int = 0
    latency: list[float] = dataclasses.field(default_factory=list)
    judged: list[tuple[list[CaseScene], Any]] = dataclasses.field(default_factory=list)
    extra: dict[str, float] = dataclasses.field(default_factory=dict)


def arguments(scenes: list[CaseScene], case: Case) -> dict[str, Any]:
    """Arguments of `deblend_batch` for the scenes of one call."""
    bands = scenes[0].bands
    limit = {"memory_limit": MEMORY_LIMIT} if case.unit == "pixels" else {}
    return {"cutouts": [scene.image for scene in scenes], "centers": [scene.centers for scene in scenes],
            "variance": [scene.variance for scene in scenes], "psf": cases.psf(bands), "bands": "".join(bands), **limit}


def run(deblender: Any, name: str, size: int, scenes: Iterable[list[CaseScene]] | None = None, *, live: bool = True,
        keep: bool = False) -> RunOutcome:
    """Run a case.

    Parameters
    ----------
    deblender : Deblender
    name : str
    size : int
    scenes : iterable of list of CaseScene, optional
        The scenes of the case, if they are drawn already.
    live : bool
        Hold the burst to its schedule. Otherwise its cutouts come in full micro-batches: calls that follow the clock
        differ from run to run, and counts with them.
    keep : bool
        Keep the results, with their scenes.
    """
    case = cases.CASES[name]
    scenes = case.scenes(size) if scenes is None else scenes
    if case.kind == "load" and not keep:
        return _load(type(deblender), next(iter(scenes)), case)
    if case.kind == "process" and not keep:
        return _process(name, next(iter(scenes)), case)
    if case.kind == "schedule" and live:
        return _burst(deblender, [scene for together in scenes for scene in together], case)
    outcome = RunOutcome()
    for together in scenes:
        given = arguments(together, case)
        wall, cpu = time.perf_counter(), time.process_time()
        result = deblender.deblend_batch(**given)
        outcome.latency.append(time.perf_counter() - wall)
        outcome.wall += outcome.latency[-1]
        outcome.cpu += time.process_time() - cpu
        outcome.n_source += sum(scene.n_source for scene in together)
        if keep:
            outcome.judged.append((together, result))
    return outcome


def _burst(deblender: Any, scenes: list[CaseScene], case: Case, clock: Callable[[], float] = time.perf_counter,
           sleep: Callable[[float], None] = time.sleep) -> RunOutcome:
    """Deblend the cutouts that have arrived, a micro-batch at a time; latencies count from the scheduled arrival."""
    due = cases.arrivals(len(scenes))
    given = [arguments([scene], case) for scene in scenes]
    shared = {key: given[0][key] for key in ("psf", "bands")}
    outcome = RunOutcome(n_source=sum(scene.n_source for scene in scenes))
    start, cpu = clock(), time.process_time()
    first = 0
    while first < len(scenes):
        now = clock() - start
        if due[first] > now:
            sleep(due[first] - now)
            continue
        stop = min(int(np.searchsorted(due, now, side="right")), first + MICRO_BATCH)
        together = {key: [value for one in given[first:stop] for value in one[key]]
                    for key in ("cutouts", "centers", "variance")}
        deblender.deblend_batch(**together, **shared)
        done = clock() - start
        outcome.latency += (done - due[first:stop]).tolist()
        first = stop
    outcome.wall, outcome.cpu = clock() - start - float(due[0]), time.process_time() - cpu
    outcome.extra["cutouts_per_second"] = len(scenes) / outcome.wall
    outcome.extra["offered_per_second"] = len(scenes) / float(due[-1]) if len(scenes) > 1 else 0.0
    return outcome


def _load(deblender: Any, scenes: list[CaseScene], case: Case) -> RunOutcome:
    """Load the model into this process once more, and make a first call."""
    given = arguments(scenes, case)
    wall, cpu = time.perf_counter(), time.process_time()
    loaded = deblender.load()
    middle = time.perf_counter()
    loaded.deblend_batch(**given)
    end = time.perf_counter()
    return RunOutcome(end - wall, time.process_time() - cpu, scenes[0].n_source, [end - wall],
                   extra={"load_seconds": middle - wall, "first_call_seconds": end - middle})


def _process(name: str, scenes: list[CaseScene], case: Case) -> RunOutcome:
    """Start `perf.gate.fresh_process`, which loads the engine and deblends a scene."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.npz"
        given = arguments(scenes, case)
        np.savez(path, image=given["cutouts"][0], centers=given["centers"][0], variance=given["variance"][0],
                 psf=given["psf"], bands=given["bands"], memory_limit=given.get("memory_limit", 0.0))
        start = time.perf_counter()
        with subprocess.Popen([sys.executable, "-m", "perf.gate.fresh_process", str(path)], text=True,
                              stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            line = child.stdout.readline()
            wall = time.perf_counter() - start
        if not line:
            raise RuntimeError(f"{name}: the new process ended without a result, exit status {child.returncode}")
        said: dict[str, float] = json.loads(line)
    return RunOutcome(wall, said.pop("cpu_seconds"), scenes[0].n_source, [wall], extra=said)
