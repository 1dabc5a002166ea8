"""Compare two versions of the engine on the frozen cases. A version is a git revision, a folder or a stored record."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from perf.gate import cases, measure, schema, verdict
from perf.gate.measure import EngineProcess, Failed
from perf.report import RESULTS, ROOT

RELEASE = RESULTS / "release.json"
# The other cases start processes: only their times say something.
QUICK = ("single_stream", "offline", "burst", "crowded", "patch")
ENGINE_FOLDERS = ("engine", "cuda")
NOT_TIMED: dict[str, Any] = {"wall": [], "cpu": [], "instructions": [], "latency": None, "extra": {}}
NOT_JUDGED: dict[str, Any] = {"accuracy": {}, "objective": None, "result_sha256": None, "counts": {}, "stages": {},
                              "stages_total": 0.0, "skipped": []}


@contextlib.contextmanager
def tree(name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A source tree: a folder, or a git revision, which is exported while the context lasts.

    Yields
    ------
    path : Path
    source : dict
        See `perf/gate/schema.json`.

    Raises
    ------
    Failed
        The name is neither.
    """
    folder = Path(name)
    if (folder / "engine").is_dir():
        own = folder.resolve() == ROOT.resolve()  # a stored record must not name a folder of this machine
        yield folder, {"name": "this tree" if own else name, "sha256": tree_hash(folder),
                       "commit": _git("describe", "--always", "--dirty", "--abbrev=12", at=folder)}
        return
    commit = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", at=ROOT)
    if commit is None:
        raise Failed(f"{name}: neither a checkout, nor a record, nor a revision of this repository")
    with tempfile.TemporaryDirectory(prefix="deblendrt-tree-") as temporary:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", temporary], input=archive, check=True)
        path = Path(temporary)
        yield path, {"name": name, "commit": commit[:12], "sha256": tree_hash(path)}


def _git(*words: str, at: Path) -> str | None:
    done = subprocess.run(["git", *words], cwd=at, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None


def tree_hash(path: Path) -> str:
    """SHA-256 of the files of an engine."""
    found = hashlib.sha256()
    for folder in ENGINE_FOLDERS:
        for file in sorted(p for p in (path / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            found.update(str(file.relative_to(path)).encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def size_of(name: str, size: str) -> int:
    """Size of a case, from "short", "full" or a number of its unit."""
    case = cases.CASES[name]
    return {"short": case.short, "full": case.full}.get(size) or int(size)


def compare(base: str | None, candidate: str, names: Sequence[str], *, slower: float = 5.0, size: str = "short",
            pairs: int = measure.PAIRS) -> dict[str, Any]:
    """Measure a candidate, and a base beside it if there is one.

    Parameters
    ----------
    base : str, optional
        A folder, a revision or the file of a record. With a record its cases and sizes are used, and nothing is timed.
    candidate : str
        A folder, a revision or the file of a record.
    names : sequence of str
        Cases.
    slower : float
        Allowed slowdown in per cent.
    size : str
        "short", "full" or a number.
    pairs : int
        Timed runs of each version; 0 for none.

    Returns
    -------
    dict
        A record, see `perf/gate/schema.json`.

    Raises
    ------
    Failed
        A version does not start or run, or a stored record has other inputs.
    """
    load = measure.load()
    stored = {name: schema.read(Path(name)) for name in (base, candidate) if name and Path(name).suffix == ".json"}
    if stored:
        pairs = 0
        names = [name for name in names if all(name in record["cases"] for record in stored.values())]
        if not names:
            raise Failed("the stored record has none of these cases")
    with contextlib.ExitStack() as stack:
        workers: dict[str, EngineProcess | None] = {}
        sources: dict[str, dict[str, Any] | None] = {"base": None}
        for role, name in (("base", base), ("candidate", candidate)):
            workers[role] = None
            if name in stored:
                sources[role] = stored[name]["sources"]["candidate"]
            elif name is not None:
                path, sources[role] = stack.enter_context(tree(name))
                workers[role] = worker = EngineProcess(path)
                stack.callback(worker.close)
        hellos = [worker.hello for worker in workers.values() if worker is not None]
        versions = hellos[-1] if hellos else {**stored[candidate]["versions"], "no_instructions": "nothing was run"}
        measured = {}
        for name in names:
            found = {role: stored[text]["cases"][name] for role, text in (("base", base), ("candidate", candidate))
                     if text in stored}
            n = next(iter(found.values()))["size"] if found else size_of(name, size)
            inputs = cases.digest(name, n) if n <= cases.CASES[name].short else None
            for case in found.values():
                if (case["size"], case["inputs_sha256"]) != (n, inputs):
                    raise Failed(f"{name}: the stored record has other inputs; make a new one")
            measured[name] = _case(name, n, inputs, found, workers, pairs)
            print(f"{name}: done", file=sys.stderr)
    record: dict[str, Any] = {
        "revision": 1, "command": f"python -m perf {shlex.join(sys.argv[1:])}",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": measure.machine(),
        "versions": {key: versions[key] for key in ("python", "packages")},
        "load": {"before": load, "after": measure.load()},
        "settings": {"pairs": pairs, "slower_percent": slower, "no_instructions": versions["no_instructions"]},
        "sources": sources, "cases": measured}
    record["failed"], record["undecided"] = verdict.judge(record, slower / 100)
    return schema.check(record)


def _case(name: str, size: int, inputs: str | None, found: dict[str, Any], workers: dict[str, EngineProcess | None],
          pairs: int) -> dict[str, Any]:
    """Measure one case of a record."""
    sides: dict[str, dict[str, Any] | None] = {"base": None, "candidate": None}
    for role, worker in workers.items():
        if role in found:
            sides[role] = found[role]["candidate"]
        elif worker is not None:
            sides[role] = {**NOT_TIMED, **NOT_JUDGED, **worker.ask("judge", name, size)}
    ratio = None
    if pairs and workers["candidate"] is not None:
        base, candidate, ratio = measure.timed(workers["base"], workers["candidate"], name, size, pairs)
        for role, times in (("base", base), ("candidate", candidate)):
            side = sides[role]
            if times is not None and side is not None:
                side.update(times)
    return {"size": size, "unit": cases.CASES[name].unit, "inputs_sha256": inputs, **sides, "ratio": ratio}


def report(record: dict[str, Any]) -> str:
    """A record as text: a block for each case, then the verdict."""
    lines = []
    for name, case in record["cases"].items():
        base, candidate, ratio = case["base"], case["candidate"], case["ratio"]
        lines.append(f"{name} ({case['size']} {case['unit']}, {candidate['n_source']} sources)")
        for clock, found in (ratio or {}).items():
            lines.append(f"  {clock:12s} {found['median']:.3f} of the base's, {100 * found['confidence']:.1f}% "
                         f"[{found['low']:.3f}, {found['high']:.3f}], {found['n']} pairs")
        for role, side in (("base", base), ("candidate", candidate)):
            if side and side["wall"]:
                n, latency = max(side["n_source"], 1), side["latency"]
                wall, cpu = (1e3 * sorted(side[key])[len(side[key]) // 2] / n for key in ("wall", "cpu"))
                lines.append(f"  {role:12s} {wall:.1f} ms wall, {cpu:.1f} ms processor time a source; latency p50 "
                             f"{1e3 * latency['p50']:.0f} ms, p99 {1e3 * latency['p99']:.0f} ms of {latency['n']}")
                lines += [f"  {'':12s} {key} {value:.6g}" for key, value in side["extra"].items()]
        for group in ("accuracy", "counts"):
            for key, new in candidate[group].items():
                old = base[group].get(key) if base else None
                lines.append(f"  {key:24s} {new:.6g}" + ("" if old is None else f" (base {old:.6g})"))
        if candidate["objective"] is not None:
            old = base["objective"] if base else None
            lines.append(f"  {'objective per source':24s} {candidate['objective']:.4f}"
                         + ("" if old is None else f" (base {old:.4f})"))
        if base and candidate["result_sha256"]:
            same = base["result_sha256"] == candidate["result_sha256"]
            lines.append(f"  results {'are the same to the bit' if same else 'differ'}")
        total = max(candidate["stages_total"], 1e-9)
        shares = sorted(candidate["stages"].items(), key=lambda item: -item[1])
        lines.append("  time by stage: " + ", ".join(f"{stage} {100 * s / total:.0f}%" for stage, s in shares))
        if candidate["skipped"]:
            lines.append("  not found, so not timed or counted: " + ", ".join(candidate["skipped"]))
    lines.append(f"load {record['load']['before']} before, {record['load']['after']} after")
    if record["settings"]["no_instructions"]:
        lines.append(f"instructions not counted: {record['settings']['no_instructions']}")
    lines += [f"undecided: {text}" for text in record["undecided"]] + [f"FAILED {text}" for text in record["failed"]]
    return "\n".join([*lines, "failed" if record["failed"] else "passed"])
