"""Speed on the CPU, part by part.

    python -m perf.studies.cpu --base REV --environments FOLDER    # all of it
    python -m perf.studies.cpu --part iterations --part linear    # some parts; the others stay as they are stored
    python -m perf.studies.cpu --quick                      # every part small, in some minutes: to see that it works
    python -m perf.studies.cpu --page                       # nothing is measured: the page of what is stored

Each part is stored in ``perf/results/cpu.json`` as soon as it is measured, with its command, machine, versions, commit
and load. An interrupted run therefore loses one part at most. ``cpu.md`` and its figures are made again from all parts.

- peers: every deblender of `perf.peers` on the same scenes in turn; ``python -m perf.peers.environments`` makes their
  environments
- stages: `perf.gate.compare` of a base revision and this tree, interleaved: time in all and by stage
- latency: the same for single scenes and for a burst of alerts
- start: the same for a new process until its first result, for loading the model, and for peak memory
- iterations: `iterations`, accuracy against time
- linear: `source_number`, time and memory against the number of sources, and threads

``perf/results/cpu_tried.md``, written by hand, lists the changes that did not help.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perf import report, scenes
from perf.gate import compare
from perf.report import ROOT
from perf.studies.cpu import iterations, page, source_number

TRIED = report.RESULTS / "cpu_tried.md"  # written by hand
RECORD_REVISION = 1
STAGE_CASES = ("single_stream", "offline", "crowded", "patch")
LATENCY_CASES = ("single_stream", "burst")
START_CASES = ("cold_start", "model_load", "memory")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the parts.

    Attributes
    ----------
    n_scene : int
        GalSim test scenes of `iterations`.
    n_peer_scene : int
        GalSim test scenes of `peers`.
    counts, adam : tuple of int
        Iterations.
    reference : int
        Iterations of the long run.
    largest, threads_at : int
        Sources of `linear`.
    pairs : int
        Timed runs of base and tree each.
    stage_cases, latency_cases, start_cases : tuple of str
        Names in `perf.gate.cases`.
    latency_size : str
        Size of the cases of `latency`: short, full or a number.
    """

    n_scene: int = iterations.N_SCENE
    n_peer_scene: int = scenes.N_SCENE
    counts: tuple[int, ...] = iterations.ITERATION_COUNTS
    adam: tuple[int, ...] = iterations.ADAM
    reference: int = iterations.LONG_RUN
    largest: int = source_number.MAX
    threads_at: int = source_number.THREADS_AT
    pairs: int = 12
    stage_cases: tuple[str, ...] = STAGE_CASES
    latency_cases: tuple[str, ...] = LATENCY_CASES
    start_cases: tuple[str, ...] = START_CASES
    latency_size: str = "64"


QUICK_SIZES = Sizes(n_scene=4, n_peer_scene=4, counts=(2, 6, 12), adam=(50,), reference=24, largest=100, threads_at=20,
              pairs=1, stage_cases=("single_stream",), latency_cases=("burst",), start_cases=("cold_start",),
              latency_size="short")


def versions(base: str | None, names: tuple[str, ...], pairs: int, size: str = "short") -> dict[str, Any]:
    """A record of `perf.gate.compare` for this tree and a base, without paths of this machine."""
    record = compare.compare(base, str(ROOT), names, size=size, pairs=pairs)
    del record["command"]  # the part's own is stored
    return record


def peers(tests: scenes.SceneSet, environments: Path | None) -> dict[str, Any]:
    """Figures of every deblender on the same scenes, see `perf.peers.comparison.run_peers`."""
    from perf.peers.comparison import run_peers

    return {"n_scene": len(tests), "scenes_sha256": tests.sha256, **run_peers(tests, environments)}


def parts(sizes: Sizes, base: str | None, environments: Path | None,
          cache: Path | None) -> dict[str, Callable[[], dict[str, Any]]]:
    """The function that measures each part."""
    return {
        "peers": lambda: peers(scenes.load_scenes(cache, sizes.n_peer_scene), environments),
        "stages": lambda: versions(base, sizes.stage_cases, sizes.pairs),
        "latency": lambda: versions(base, sizes.latency_cases, sizes.pairs, sizes.latency_size),
        "start": lambda: versions(base, sizes.start_cases, sizes.pairs),
        "iterations": lambda: iterations.measure(scenes.load_scenes(cache, sizes.n_scene), sizes.counts, sizes.adam,
                                                 sizes.reference),
        "linear": lambda: source_number.measure(sizes.largest, threads_at=sizes.threads_at),
    }


def stored(path: Path) -> dict[str, Any]:
    """Stored figures of earlier runs."""
    if not path.exists():
        return {"revision": RECORD_REVISION, "summary": {}, "parts": {}}
    found: dict[str, Any] = json.loads(path.read_text())
    if found.get("revision") != RECORD_REVISION:
        raise ValueError(f"{path.name}: expected revision {RECORD_REVISION}, got {found.get('revision')!r}; "
                         "move it away")
    return found


def merge(path: Path, name: str, part: dict[str, Any]) -> dict[str, Any]:
    """Put a part into the file, in place of an earlier part of the same name, and return all figures."""
    figures = stored(path)  # read now, because another run may have added a part meanwhile
    figures["parts"][name] = part
    figures["summary"] = page.summary(figures["parts"])
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(figures, indent=1) + "\n")
    partial.replace(path)
    return figures


def run(name: str, measure: Callable[[], dict[str, Any]], command: str) -> dict[str, Any]:
    """Measure a part; record command, time, machine and load with it."""
    start, before = time.perf_counter(), list(os.getloadavg())
    figures = measure()
    return {"command": command, "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "environment": report.environment(), "load": {"before": before, "after": list(os.getloadavg())},
            "seconds": time.perf_counter() - start, "figures": figures}


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.studies.cpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(parts(Sizes(), None, None, None))
    parser.add_argument("--part", action="append", choices=names, help="repeatable; default: all")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    parser.add_argument("--quick", action="store_true", help="every part small")
    parser.add_argument("--base", help="revision or folder that stages, latency and start are compared with")
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="of perf.peers.environments")
    parser.add_argument("--n-scene", type=int, help="of iterations")
    parser.add_argument("--n-peer-scene", type=int, help="of peers")
    parser.add_argument("--max", type=int, help="sources of linear")
    parser.add_argument("--pairs", type=int, help="timed runs of base and tree each")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the test scenes; ~/.cache/deblendrt")
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    args = parser.parse_args(argv)
    asked = {"n_scene": args.n_scene, "n_peer_scene": args.n_peer_scene, "largest": args.max, "pairs": args.pairs}
    sizes = dataclasses.replace(QUICK_SIZES if args.quick else Sizes(),
                                **{k: v for k, v in asked.items() if v is not None})
    args.out.mkdir(parents=True, exist_ok=True)
    path, failed = args.out / "cpu.json", 0
    figures = stored(path)
    measures = parts(sizes, args.base, args.environments, args.cache)
    for name in () if args.page else args.part or names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            part = run(name, measures[name], command(name, args))
        except Exception as error:  # other parts, which take hours, must still run
            print(f"{name}: not measured: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed = 1
            continue
        figures = merge(path, name, part)
        page.write(figures, args.out, TRIED)
    if args.page:
        page.write(figures, args.out, TRIED)
    print(args.out / "cpu.md")
    return failed


def command(name: str, args: argparse.Namespace) -> str:
    """The command that measures a part again, without folders of this machine."""
    words = [f"--part {name}", *(["--quick"] if args.quick else [])]
    if args.base and name in ("stages", "latency", "start"):
        words.append(f"--base {'FOLDER' if (Path(args.base) / 'engine').is_dir() else args.base}")
    if args.environments and name == "peers":
        words.append("--environments FOLDER")
    for option, value, used in (("n-scene", args.n_scene, "iterations"), ("n-peer-scene", args.n_peer_scene, "peers"),
                                ("max", args.max, "linear")):
        if value is not None and name == used:
            words.append(f"--{option} {value}")
    if args.pairs is not None and name in ("stages", "latency", "start"):
        words.append(f"--pairs {args.pairs}")
    return "python -m perf.studies.cpu " + " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
