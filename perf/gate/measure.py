"""Time base and candidate in one run, interleaved, so that a disturbance of the machine meets both.

Runs come in pairs, one of each version, in alternating order (ABBA). They follow runs that warm up and are not timed.
The result is the median of the pairs' ratios, with the interval between two of the sorted ratios. This interval holds
the true median with the stated confidence for any distribution of the noise, outliers included (order statistics of a
binomial).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from perf.report import ROOT, THREADS, processor

# With these two, noise alone fails a whole comparison (eight cases by two clocks) less than once in a hundred. At 0.99
# and 12 pairs it did so 1.4 times, in simulated noise of 20% with outliers. 14 pairs allow one outlier on either side.
CONFIDENCE = 0.998
PAIRS = 14
CLOCKS = ("wall", "cpu")
TOLD_FLAGS = ("avx", "fma", "sse4", "amx", "f16c", "asimd", "sve", "hypervisor")


class Failed(Exception):
    """A version does not start, or one of its runs raised an exception."""


class EngineProcess:
    """A process that runs `perf.gate.worker` with one version of the engine.

    Parameters
    ----------
    tree : Path
        A source tree.
    """

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self._folder = tempfile.TemporaryDirectory(prefix="deblendrt-perf-")
        folder = Path(self._folder.name)
        (folder / "deblendrt").symlink_to(tree.resolve(), target_is_directory=True)
        self._log = folder / "stderr"
        environment = {**os.environ, **{name: "1" for name in THREADS}, "PYTHONPATH": str(folder)}
        with self._log.open("w") as log:
            self._process = subprocess.Popen([sys.executable, "-m", "perf.gate.worker", str(folder)], cwd=ROOT,
                                             text=True, env=environment, stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE, stderr=log)
        try:
            self.hello = self._read()
        except Failed:
            self.close()
            raise

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text().strip().splitlines()
            raise Failed(f"{self.tree}: {said[-1] if said else 'the process ended and said nothing'}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.tree}: {answer['error']}")
        return answer

    def ask(self, do: str, case: str, size: int) -> dict[str, Any]:
        """Send a request to the worker, and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, "case": case, "size": size}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


@dataclasses.dataclass(frozen=True)
class Band:
    """Median of paired ratios, candidate over base, with an interval.

    Attributes
    ----------
    median, low, high : float
    confidence : float
        Probability that the true median lies within [low, high].
    n : int
        Number of pairs.
    """

    median: float
    low: float
    high: float
    confidence: float
    n: int


def band(ratios: Iterable[float], confidence: float = CONFIDENCE) -> Band:
    """The narrowest interval of order statistics with at least the confidence; else the range of all ratios.
    """
    ordered = sorted(ratios)
    n = len(ordered)

    def covered(k: int) -> float:  # confidence of the interval from the k-th smallest to the k-th largest, k from 1
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    k = max((k for k in range(1, n // 2 + 1) if covered(k) >= confidence), default=1)
    return Band(float(np.median(ordered)), ordered[k - 1], ordered[n - k], max(covered(k), 0.0), n)


def interleave(base: Callable[[], dict[str, Any]], candidate: Callable[[], dict[str, Any]],
               pairs: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run both versions in pairs of alternating order, and return the answers of each."""
    taken: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    both = (base, candidate)
    for k in range(pairs):
        for which in ((0, 1), (1, 0))[k % 2]:
            taken[which].append(both[which]())
    return taken


def timed(base: EngineProcess | None, candidate: EngineProcess, case: str, size: int, pairs: int,
          ) -> tuple[dict[str, Any] | None, dict[str, Any], dict[str, Any] | None]:
    """Time a case.

    Returns
    -------
    base, candidate : dict
        `summary` of each; None without a base.
    ratio : dict
        The `Band` of every clock, as a dict; None without a base.
    """
    def run(worker: EngineProcess) -> Callable[[], dict[str, Any]]:
        return lambda: worker.ask("time", case, size)

    for worker in (base, candidate):
        if worker is not None:
            worker.ask("time", case, size)  # warms up
    if base is None:
        return None, summary([run(candidate)() for _ in range(pairs)]), None
    before, after = interleave(run(base), run(candidate), pairs)
    clocks = [*CLOCKS, *(["instructions"] if before[0]["instructions"] and after[0]["instructions"] else [])]
    ratio = {clock: dataclasses.asdict(band(b[clock] / max(a[clock], 1e-9)
                                            for a, b in zip(before, after, strict=True))) for clock in clocks}
    return summary(before), summary(after), ratio


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The stored figures of one version: the time of every run, quantiles of all latencies, medians of the rest."""
    latency = np.concatenate([run["latency"] for run in runs])
    counted = [run["instructions"] for run in runs if run["instructions"] is not None]
    return {"wall": [run["wall"] for run in runs], "cpu": [run["cpu"] for run in runs], "instructions": counted,
            "latency": {"p50": float(np.quantile(latency, 0.5)), "p99": float(np.quantile(latency, 0.99)),
                        "n": len(latency)},
            "extra": {key: float(np.median([run["extra"][key] for run in runs])) for key in runs[0]["extra"]}}


def machine() -> dict[str, Any]:
    """Processor, number of cores, operating system and vector units."""
    info = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in info.read_text().splitlines()] if info.exists() else []
    flags = next((value for key, _, value in lines if key.strip() in ("flags", "Features")), "")
    return {"processor": processor(), "n_cpu": os.cpu_count() or 0, "platform": platform.platform(terse=True),
            "cpu_flags": sorted(flag for flag in flags.split() if flag.startswith(TOLD_FLAGS))}


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes; empty on a system without them."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []
