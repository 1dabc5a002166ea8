"""Time and peak memory against the number of sources, and the gain from a second thread.

There are two shapes. *many*: scenes of 2 to 8 galaxies in 101 x 101 pixels and six bands, in one call. They are 200
distinct scenes of `perf.gate.cases`, repeated in turn. *one*: a single scene whose side grows at a fixed density of 57
galaxies per square arcminute, all distinct, so that crowding stays the same; above 1200 pixels the engine solves it in
parts. Every point is measured in a process of its own, under a `memory_limit`, so that its peak of memory
is its own. The scenes are drawn and the engine is warm before the clock starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perf import report
from perf.gate import cases
from perf.report import ROOT, THREADS

SHAPES = ("many", "one")
SIZES = (10, 100, 1000, 10_000, 100_000)
DISTINCT = 200  # scenes
DENSITY = 57.0  # per square arcminute, as in `cases.patch_scene`
SCENE_SEEDS = {"many": 41, "one": 42}  # seeds, different from those of the frozen cases
MAX, MEMORY_LIMIT, THREADS_AT = 10_000, 2e9, 2000
REPEAT_BELOW, REPEATS = 200, 3  # smaller sizes run three times: their calls are short


def side_of(n_source: float) -> int:
    """Side of a scene with this number of sources [pixel]."""
    return max(48, round(60 * (n_source / DENSITY) ** 0.5 / cases.PIXEL_SCALE))


def draw(shape: str, n_source: int) -> list[cases.CaseScene]:
    """Scenes of a shape: "many" with at least this number of sources, "one" with about this number."""
    if shape == "one":
        return [cases.patch_scene(SCENE_SEEDS["one"], side_of(n_source))]
    distinct: list[cases.CaseScene] = []
    scenes: list[cases.CaseScene] = []
    have = 0
    while have < n_source:
        k = len(scenes) % DISTINCT
        if k == len(distinct):
            distinct.append(cases.blend_scene(SCENE_SEEDS["many"], k))
        scenes.append(distinct[k])
        have += distinct[k].n_source
    return scenes


def memory(key: str) -> float:
    """A figure of /proc/self/status [byte]; NaN on a system without it."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith(f"{key}:"):
            return 1024.0 * float(line.split()[1])
    return float("nan")


def forget_peak() -> None:
    """Reset the peak of this process's memory, if the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak of memory includes the drawing of the scenes", file=sys.stderr)


def child(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a point in this process."""
    from deblendrt.engine import Deblender

    scenes = draw(asked["shape"], asked["n_source"])
    given: dict[str, Any] = {"cutouts": [s.image for s in scenes], "centers": [s.centers for s in scenes],
                             "variance": [s.variance for s in scenes]}
    shared: dict[str, Any] = {"psf": cases.psf(), "bands": "".join(cases.BANDS), "memory_limit": asked["memory_limit"]}
    deblender = Deblender.load()
    first = cases.blend_scene(SCENE_SEEDS["many"], 0)
    deblender.deblend_batch([first.image], [first.centers], variance=[first.variance], **shared)
    n_source = sum(s.n_source for s in scenes)
    taken: list[tuple[float, float]] = []
    before = memory("VmRSS")
    forget_peak()
    for _ in range(REPEATS if n_source < REPEAT_BELOW else 1):
        wall, cpu = time.perf_counter(), time.process_time()
        result = deblender.deblend_batch(**given, n_threads=asked["threads"], **shared)
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    peak = memory("VmHWM")
    wall, cpu = np.median(np.array(taken), axis=0).tolist()
    pixels = {id(s): s.image.nbytes + s.variance.nbytes for s in scenes}
    return {"shape": asked["shape"], "threads": asked["threads"], "n_source": n_source, "n_scene": len(scenes),
            "side": scenes[0].image.shape[-1], "wall": wall, "cpu": cpu, "bytes_before": before, "bytes_peak": peak,
            "bytes_images": sum(pixels.values()), "fitted": int(result.fitted.sum())}


def point(shape: str, n_source: int, threads: int, memory_limit: float) -> dict[str, Any]:
    """Measure a point in a process of its own."""
    asked = {"shape": shape, "n_source": n_source, "threads": threads, "memory_limit": memory_limit}
    done = subprocess.run([sys.executable, "-m", "perf.studies.cpu.source_number", json.dumps(asked)], cwd=ROOT,
                          env={**os.environ, **{name: "1" for name in THREADS}}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{shape}, {n_source} sources: the process ended with status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{shape}, {found['n_source']} sources, {threads} threads: {1e3 * found['cpu'] / found['n_source']:.1f} ms "
          "a source", file=sys.stderr, flush=True)
    return found


def exponent(n_source: Sequence[float], cost: Sequence[float]) -> tuple[float, float]:
    """Exponent of a power law through the points, by least squares of the logarithms.

    Parameters
    ----------
    n_source, cost : sequence of float
        Positive, two points at least.

    Returns
    -------
    exponent, error : float
        The error comes from the scatter about the law; NaN for two points.
    """
    x, y = np.log(np.asarray(n_source, float)), np.log(np.asarray(cost, float))
    x = x - x.mean()
    slope = float((x * y).sum() / (x * x).sum())
    scatter = y - y.mean() - slope * x
    free = len(x) - 2
    return slope, float(np.sqrt((scatter**2).sum() / free / (x * x).sum())) if free else float("nan")


def efficiency(alone: Mapping[str, Any], together: Mapping[str, Any]) -> dict[str, float]:
    """Gain from threads, from two points with the same sources.

    Returns
    -------
    dict
        ``rate`` [1/s] with threads and ``rate_alone``; ``efficiency``, the ratio of the rates over the ratio of the
        threads; ``work``, the ratio of the processor times.
    """
    rate, single = (p["n_source"] / p["wall"] for p in (together, alone))
    return {"threads": together["threads"], "rate": rate, "rate_alone": single,
            "efficiency": rate / single * alone["threads"] / together["threads"],
            "work": together["cpu"] / alone["cpu"]}


def measure(largest: int = MAX, memory_limit: float = MEMORY_LIMIT, threads_at: int = THREADS_AT,
            threads: Sequence[int] = (2,)) -> dict[str, Any]:
    """Measure all points.

    Parameters
    ----------
    largest : int
        Sources of the largest point.
    memory_limit : float [byte]
        Given to the engine.
    threads_at : int
        Sources of the points with several threads.
    threads : sequence of int

    Returns
    -------
    dict
        ``points``; ``exponents`` of the processor time and ``threads`` by shape.
    """
    points = [point(shape, n, 1, memory_limit) for n in SIZES if n <= largest for shape in SHAPES]
    fits: dict[str, Any] = {}
    for shape in SHAPES:
        own = [p for p in points if p["shape"] == shape]
        for name, used in (("all", own), ("from 100 sources", [p for p in own if p["n_source"] >= 95])):
            if len(used) >= 2:
                slope, error = exponent([p["n_source"] for p in used], [p["cpu"] for p in used])
                fits.setdefault(shape, {})[name] = {"exponent": slope, "error": error, "n": len(used)}
    shared: dict[str, Any] = {}
    for shape in SHAPES:
        alone = point(shape, threads_at, 1, memory_limit)
        shared[shape] = [{"n_source": alone["n_source"], **efficiency(alone, point(shape, threads_at, n, memory_limit))}
                         for n in threads]
    return {"points": points, "exponents": fits, "threads": shared, "memory_limit": memory_limit,
            "n_cpu": os.cpu_count()}


def tables(figures: Mapping[str, Any]) -> list[str]:
    """Markdown of the points, the exponents and the threads."""
    mega = 2.0**20
    rows = [[p["shape"], str(p["n_source"]), f"{p['n_scene']} of {p['side']}", f"{1e3 * p['cpu'] / p['n_source']:.1f}",
             f"{1e3 * p['wall'] / p['n_source']:.1f}", f"{p['bytes_peak'] / mega:.0f}",
             f"{(p['bytes_peak'] - p['bytes_before']) / mega:.0f}", f"{p['bytes_images'] / mega:.0f}"]
            for p in figures["points"]]
    header = ["shape", "sources", "scenes of side", "processor ms per source", "wall ms per source",
              "peak of the process [MiB]", "above what it held before", "images and variances, held before"]
    words = []
    for shape, fits in figures["exponents"].items():
        told = "; ".join(f"{fit['exponent']:.3f}" + (f" ± {fit['error']:.3f}" if fit["n"] > 2 else "")
                         + f" ({name}, {fit['n']} points)" for name, fit in fits.items())
        words.append(f"- {shape}: processor time grows as the number of sources to the power {told}.")
    threads = [[shape, str(t["n_source"]), str(t["threads"]), report.number(t["rate_alone"]), report.number(t["rate"]),
                report.percent(t["efficiency"]), f"{t['work']:.2f}"]
               for shape, found in figures["threads"].items() for t in found]
    return [report.markdown_table(header, rows), "\n".join(words),
            report.markdown_table(["shape", "sources", "threads", "sources per second with one", "with these",
                                   "efficiency", "processor time over that of one thread"], threads)]


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
