"""A campaign: children run chunks of inputs, and their records are added up. Finished chunks are not run again."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from perf.fuzz import child, targets
from perf.report import ROOT, environment

STALL = 120.0  # seconds without progress after which a child is stopped; signals do not reach code outside Python
CHUNK = 150_000  # inputs of a chunk, to be multiplied by the target's share


@functools.cache
def _present(modules: tuple[str, ...]) -> str:
    return str(child.hash_of(list(modules))["sources"])


def of_present_code(record: dict[str, Any]) -> bool:
    """True if the modules that read the inputs of a record have not changed since."""
    return "modules" in record and _present(tuple(record["modules"])) == record["sources"]


class Campaign:
    """A folder of records, and the work left to reach a number of inputs.

    Parameters
    ----------
    state : Path
    n_input : int
        Total over all targets.
    names : list of str
        Targets; their shares are normalised.
    seed : int
    driver : {"mutate", "atheris"}
    """

    def __init__(self, state: Path, n_input: int, names: list[str], seed: int, driver: str) -> None:
        self.state, self.seed, self.driver = state, seed, driver
        self.failing = state / "inputs"
        self.failing.mkdir(parents=True, exist_ok=True)
        known = targets.targets()
        total = sum(known[name].share for name in names)
        self.wanted = {name: round(n_input * known[name].share / total) for name in names}
        self.chunk_size = {name: max(200, round(CHUNK * known[name].share)) for name in names}
        self._lock = threading.Lock()
        self.done = dict.fromkeys(names, 0)
        self.next_chunk = dict.fromkeys(names, 0)
        for record in read_records(state):
            if record["target"] in self.done and (record["seed"], record["driver"]) == (seed, driver):
                self.next_chunk[record["target"]] = max(self.next_chunk[record["target"]], record["chunk"] + 1)
                if of_present_code(record):
                    self.done[record["target"]] += record["n"]

    def run(self, n_job: int) -> None:
        """Run the missing inputs with the present code."""
        with concurrent.futures.ThreadPoolExecutor(n_job) as pool:
            list(pool.map(self._work, range(n_job)))

    def _work(self, worker: int) -> None:
        while (chunk := self._take(worker)) is not None:
            record = run_chunk(chunk, self.state)
            with self._lock:
                self.done[chunk["target"]] += record["n"] - chunk["n"]  # a child that died has done fewer
                with (self.state / "records.jsonl").open("a") as file:
                    file.write(json.dumps(record) + "\n")
                total = sum(self.done.values())
            failed = sum(f["n"] for f in record["failures"].values())
            print(f"{time.strftime('%H:%M:%S')} {chunk['target']} {chunk['chunk']}: {record['n']} inputs, "
                  f"{record['seconds']:.0f} s, {record['accepted']} accepted, {failed} failures; {total} in all",
                  flush=True)
            for key, failure in record["failures"].items():
                print(f"    {failure['n']} {key}: {failure['message'][:150]!r} {failure['files'][0]}", flush=True)

    def _take(self, worker: int) -> dict[str, Any] | None:
        with self._lock:
            missing = {name: 1 - self.done[name] / n for name, n in self.wanted.items() if self.done[name] < n}
            if not missing:
                return None
            name = max(missing, key=lambda name: missing[name])
            n = min(self.chunk_size[name], self.wanted[name] - self.done[name])
            number = self.next_chunk[name]
            self.next_chunk[name] += 1
            self.done[name] += n
        return {"target": name, "n": n, "seed": self.seed, "chunk": number, "driver": self.driver,
                "current": str(self.state / f"current-{worker}"),
                "record": str(self.state / f"record-{worker}.json"), "out": str(self.failing),
                "corpus": str(self.state / "corpus" / name)}


def run_chunk(chunk: dict[str, Any], state: Path) -> dict[str, Any]:
    """Run a chunk in a child. If the child dies or hangs, its current input is the failure."""
    record_path, log_path = Path(chunk["record"]), state / f"log-{Path(chunk['record']).stem}"
    record_path.unlink(missing_ok=True)
    paths = os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH", "")) if path)
    start = time.monotonic()
    with log_path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "perf.fuzz.child", json.dumps(chunk)], cwd=ROOT, stdout=log,
                                   stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": paths})
        hung = _wait(process, Path(chunk["current"]))
    about = {key: chunk[key] for key in ("target", "seed", "chunk", "driver")}
    if record_path.is_file():
        return about | json.loads(record_path.read_text())
    tail = log_path.read_bytes()[-600:].decode(errors="replace")
    current = Path(chunk["current"])
    if not current.is_file():
        raise RuntimeError(f"the child for {chunk['target']} did not start: {tail}")
    number, data = child.noted(current)
    name = f"crash-{hashlib.sha256(data).hexdigest()[:16]}"
    (Path(chunk["out"]) / name).write_bytes(data)
    kind = "hang" if hung else f"crash, exit status {process.returncode}"
    return about | {"n": number + 1, "accepted": 0, "refused": {}, "slowest_s": 0.0, "slowest": "", "growth": 0,
                    "largest": "", "peak": 0, "before": 0, "seconds": time.monotonic() - start, "cpu_s": 0.0,
                    "failures": {kind: {"n": 1, "message": tail, "files": [name]}}}


def _wait(process: subprocess.Popen[bytes], current: Path) -> bool:
    """Wait for a child; return True if it had to be killed."""
    last, since = b"", time.monotonic()
    while True:
        try:
            process.wait(timeout=2.0)
            return False
        except subprocess.TimeoutExpired:
            now = current.read_bytes()[:8] if current.is_file() else b""
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > STALL:
                process.kill()
                process.wait()
                return True


def read_records(state: Path) -> list[dict[str, Any]]:
    """The records in a folder."""
    path = state / "records.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the records of each target, for all code and for the present code."""
    rows: dict[str, Any] = {}
    for name, target in {t.name: t for t in targets.ALL}.items():
        mine = [r for r in records if r["target"] == name]
        if not mine:
            continue
        now = [r for r in mine if of_present_code(r)]
        rows[name] = {"what": target.what, "n_input": sum(r["n"] for r in mine), **_added(now or mine),
                      "of_present_code": bool(now), "n_before": sum(r["n"] for r in mine if r not in now),
                      "failures_before": _failures([r for r in mine if r not in now])}
    return {"environment": environment(), "n_input": sum(r["n"] for r in records),
            "n_input_present_code": sum(r["n"] for r in records if of_present_code(r)),
            "seconds": sum(r["seconds"] for r in records), "memory_limit": child.MEMORY,
            "time_limit": child.TIME_LIMIT, "growth_limit": child.GROWTH, "targets": rows}


def _added(records: list[dict[str, Any]]) -> dict[str, Any]:
    refused: dict[str, int] = {}
    drivers: dict[str, int] = {}
    for record in records:
        drivers[record["driver"]] = drivers.get(record["driver"], 0) + record["n"]
        for name, n in record["refused"].items():
            refused[name] = refused.get(name, 0) + n
    slowest = max(records, key=lambda r: r["slowest_s"])
    return {"n": sum(r["n"] for r in records), "drivers": drivers, "accepted": sum(r["accepted"] for r in records),
            "refused": dict(sorted(refused.items(), key=lambda item: -item[1])), "failures": _failures(records),
            "slowest_s": slowest["slowest_s"], "slowest": slowest["slowest"],
            "growth": max(r["growth"] for r in records), "peak": max(r["peak"] for r in records),
            "per_input_us": 1e6 * sum(r["seconds"] for r in records) / max(1, sum(r["n"] for r in records))}


def _failures(records: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in records:
        for key, failure in record["failures"].items():
            total = found.setdefault(key, {"n": 0, "message": failure["message"], "files": []})
            total["n"] += failure["n"]
            total["files"] = (total["files"] + failure["files"])[:5]
    return found
