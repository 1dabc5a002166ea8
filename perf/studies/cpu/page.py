"""The page of `perf.studies.cpu`, from the stored parts. For a missing part it gives the command."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perf import report
from perf.peers.comparison import OWN
from perf.studies.cpu import iterations, plots, source_number

BLENDED = "blendedness_above_0.3"
LEAST_CONFIDENCE = 0.5  # bands of lower confidence are not shown
TITLES = {"peers": "Beside other deblenders", "stages": "Where the time goes, before and after",
          "iterations": "Accuracy against time", "linear": "Time and memory against the number of sources",
          "latency": "Latency", "start": "Cold start, loading, memory"}


def summary(parts: Mapping[str, Any]) -> dict[str, float]:
    """The figures that other pages use. A figure is left out if its part is missing.

    Returns
    -------
    dict
        ``ms_per_source``: processor time in six bands, from the largest run of many scenes; ``ms_per_source_one_band``,
        from the burst; ``cold_start_seconds``, the median wall time.
    """
    found = {}
    if "linear" in parts:
        points = [p for p in parts["linear"]["figures"]["points"] if p["shape"] == "many" and p["threads"] == 1]
        if points:
            largest = max(points, key=lambda p: p["n_source"])
            found["ms_per_source"] = 1e3 * largest["cpu"] / largest["n_source"]
    for part, case, key, clock in (("latency", "burst", "ms_per_source_one_band", "cpu"),
                                   ("start", "cold_start", "cold_start_seconds", "wall")):
        if part in parts and case in parts[part]["figures"]["cases"]:
            side = parts[part]["figures"]["cases"][case]["candidate"]
            if side[clock]:
                value = statistics.median(side[clock])
                found[key] = 1e3 * value / side["n_source"] if clock == "cpu" else value
    return found


def write(figures: Mapping[str, Any], out: Path, tried: Path) -> None:
    """Draw the figures of the stored parts, and write the page.

    Parameters
    ----------
    figures : mapping
        Contents of ``cpu.json``.
    out : Path
        Folder.
    tried : Path
        A page written by hand; it need not exist.
    """
    parts = figures["parts"]
    for name, draw in (("iterations", plots.draw_iterations), ("linear", plots.draw_linear)):
        if name in parts:
            draw(parts[name]["figures"], out / f"cpu_{name}.png")
    if "stages" in parts:
        plots.draw_stages(parts["stages"]["figures"]["cases"], out / "cpu_stages.png")
    if "peers" in parts:
        plots.draw_peers(parts["peers"]["figures"], out / "cpu_peers.png")
    (out / "cpu.md").write_text(markdown(figures, tried.read_text() if tried.exists() else ""))


def markdown(figures: Mapping[str, Any], tried: str = "") -> str:
    """The page in markdown; `tried` is the part written by hand."""
    parts = figures["parts"]
    sections = {"peers": _peers, "stages": _stages, "iterations": _iterations, "linear": _linear, "latency": _latency,
                "start": _start}
    lines = ["# Speed on the CPU",
             "Made by `python -m perf.studies.cpu`, part by part; each part names its run. Times are processor times "
             "unless they say wall: other work on a shared machine disturbs processor time less."]
    for name, section in sections.items():
        lines.append(f"## {TITLES[name]}")
        if name not in parts:
            lines.append(f"Not measured: `python -m perf.studies.cpu --part {name}`.")
            continue
        lines += [*section(parts[name]["figures"]), _provenance(parts[name])]
    lines += ["## What was tried and did not pay", tried.strip() or "Nothing written yet: `perf/results/cpu_tried.md`."]
    return "\n\n".join(lines) + "\n"


def _provenance(part: Mapping[str, Any]) -> str:
    machine = part["environment"]
    versions = ", ".join(f"{k} {machine['packages'][k]}" for k in ("numpy", "onnxruntime") if k in machine["packages"])
    load = " and ".join(f"{part['load'][when][0]:.1f}" for when in ("before", "after"))
    quick = " **A quick run, to see that it works: not to be quoted.**" if "--quick" in part["command"] else ""
    return (f"`{part['command']}`: {machine['processor']}, {machine['n_cpu']} cores, {machine['platform']}, Python "
            f"{machine['python']}, {versions}, commit {machine['commit']}, {part['time']}; load {load} before and "
            f"after, {part['seconds'] / 60:.1f} minutes.{quick}")


def _peers(figures: Mapping[str, Any]) -> list[str]:
    costs, accuracy = figures["costs"], figures["accuracy"]
    by_size = {part["n_scene"]: part["summary"] for part in figures["parts"]}
    own = costs[OWN]["ms_per_source"]["processor"]
    rows = []
    for name, cost in costs.items():
        times = cost["ms_per_source"]
        medians = by_size[cost["n_scene"]][name] if name in accuracy else None
        errors = ["–"] * 4 if medians is None else [
            report.percent(medians[part][f"flux_error_{band}"]) for part in ("all", BLENDED)
            for band in report.FLUX_BANDS]
        rows.append([name, f"{cost['n_scene']}, {cost['n_source']}", report.number(times["processor"]),
                     report.number(times["wall"]),
                     report.number(times["processor_compiling"]) if times["processor_compiling"] else "–",
                     f"{times['processor'] / own:.2f}", *errors, str(len(cost["errors"]))])
    for n_scene, medians in by_size.items():
        rows.append([f"noise floor of {n_scene} scenes", str(n_scene), *["–"] * 4,
                     *(report.percent(medians["noise floor"][part][f"flux_error_{band}"]) for part in ("all", BLENDED)
                       for band in report.FLUX_BANDS), "–"])
    told = []
    for name, known in figures["deblenders"].items():
        if "missing" in known:
            told.append(f"- {name}: not run: {known['missing']}.")
        else:
            only = f" Time only: {known['time_only']}." if known.get("time_only") else ""
            told.append(f"- {' '.join([name, known['version']]).strip()}: {known['how']}.{only}")
    return [f"The same {figures['n_scene']} GalSim test scenes (slow deblenders the first of them), in turn, "
            f"{figures['scenes_at_once']} at a time, one thread. Medians are of |flux / truth - 1| over the scenes of "
            "each deblender. All metrics: `perf/results/peers.md`.",
            report.markdown_table(["deblender", "scenes, sources", "ms per source", "wall", "compiling, besides",
                                   f"times {OWN}'s", "flux error r", "i", "r, blendedness > 0.3", "i", "failed scenes"],
                                  rows), "![error against time](cpu_peers.png)", "\n".join(told)]


def _side(case: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(role, case[role]) for role in ("base", "candidate") if case[role] is not None]


def _per_source(side: Mapping[str, Any], clock: str) -> str:
    return "–" if not side[clock] else report.number(1e3 * statistics.median(side[clock]) / max(side["n_source"], 1))


def _ratio(case: Mapping[str, Any], clock: str) -> str:
    if not case["ratio"]:
        return "–"
    band = case["ratio"][clock]
    if band["confidence"] < LEAST_CONFIDENCE:
        return f"{band['median']:.3f}, no band of {band['n']} pairs"
    return (f"{band['median']:.3f} [{band['low']:.3f}, {band['high']:.3f}], {100 * band['confidence']:.1f}% of "
            f"{band['n']} pairs")


def _accuracy(side: Mapping[str, Any] | None) -> str:
    found = {} if side is None else side["accuracy"]
    return ", ".join(f"{found[f'mean_flux_error_{band}']:.2f}%" for band in report.FLUX_BANDS
                     if f"mean_flux_error_{band}" in found) or "–"


def _who(figures: Mapping[str, Any]) -> str:
    words = []
    for role, source in figures["sources"].items():
        if source is not None:
            words.append(f"{role}: {source['name']}, commit {source['commit']}")
    return "; ".join(words) + ("" if figures["sources"]["base"] else "; no base was given")


def _stages(figures: Mapping[str, Any]) -> list[str]:
    cases = figures["cases"]
    rows = [[name, f"{case['size']} {case['unit']}", *(_per_source(case[role], "cpu") if case[role] else "–"
                                                       for role in ("base", "candidate")), _ratio(case, "cpu"),
             _ratio(case, "wall"), *(_accuracy(case[role]) for role in ("base", "candidate"))]
            for name, case in cases.items()]
    columns = [(f"{name}, {role}", side) for name, case in cases.items() for role, side in _side(case)]
    stages = sorted({stage for _, side in columns for stage in side["stages"]},
                    key=lambda stage: -max(side["stages"].get(stage, 0.0) for _, side in columns))
    by_stage = [[stage, *(report.number(1e3 * side["stages"].get(stage, 0.0) / max(side["n_source"], 1))
                          for _, side in columns)] for stage in stages]
    skipped = sorted({name for _, side in columns for name in side["skipped"]})
    note = f" Functions that a version lacks, whose time goes to their callers: {', '.join(skipped)}."
    note = note if skipped else ""
    return [f"Two versions on the frozen scenes of `perf.gate.cases`, interleaved; {_who(figures)}.",
            report.markdown_table(["case", "size", "base, ms per source", "this tree", "ratio", "ratio of wall times",
                                   "flux error r, i of the base", "of this tree"], rows),
            "Flux errors are means of |flux / truth - 1|; errors above 50% count as 50%.",
            "Processor ms per source by stage come from a separate run, which timers slow by some per cent. The time "
            f"of a stage leaves out other stages that it calls.{note}",
            report.markdown_table(["stage", *(name for name, _ in columns)], by_stage),
            "![time by stage](cpu_stages.png)"]


def _iterations(figures: Mapping[str, Any]) -> list[str]:
    return [f"{figures['n_scene']} GalSim test scenes, {figures['n_source']} galaxies, one thread; the gap is the "
            f"objective above that of {figures['reference']} iterations of Gauss-Newton, per source, over scenes, "
            "under the plain likelihood.", iterations.verdict(figures), "![accuracy against time](cpu_iterations.png)",
            iterations.table(figures)]


def _linear(figures: Mapping[str, Any]) -> list[str]:
    points, exponents, threads = source_number.tables(figures)
    return ["*many*: scenes of 2 to 8 galaxies, 200 distinct scenes repeated in turn; *one*: a scene whose side "
            "grows at 57 galaxies per square arcminute. Each point is a process of its own with one thread and a "
            f"memory_limit of {figures['memory_limit'] / 1e9:g} GB.", points, exponents, "![time and "
                                                                                         "memory](cpu_linear.png)",
            f"### Threads\n\nWall time on {figures['n_cpu']} cores. If the load below shows other work, the efficiency "
            "is a lower bound. A call is divided into chunks of some hundred sources, and a large scene into parts; a "
            "thread takes one at a time. Threads are idle if there are fewer chunks or parts than threads.", threads]


def _latency(figures: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, case in figures["cases"].items():
        for role, side in _side(case):
            latency = side["latency"]
            if latency is None:
                continue
            rows.append([name, f"{case['size']} {case['unit']}", role, f"{1e3 * latency['p50']:.0f}",
                         f"{1e3 * latency['p99']:.0f}", str(latency["n"]), _per_source(side, "cpu"),
                         *(f"{side['extra'][key]:.1f}" if key in side["extra"] else "–"
                           for key in ("cutouts_per_second", "offered_per_second"))])
    return [f"Wall time of a call, one thread; {_who(figures)}. single_stream: a scene of 2 to 8 galaxies a call; "
            "burst: alert cutouts in one band, which arrive by a fixed schedule and are deblended in micro-batches. "
            "Their latency counts from the scheduled arrival, so it includes a backlog.",
            report.markdown_table(["case", "size", "version", "p50 [ms]", "p99 [ms]", "calls or cutouts",
                                   "processor ms per source", "cutouts per second", "offered"], rows)]


def _start(figures: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, case in figures["cases"].items():
        for role, side in _side(case):
            if not side["wall"]:
                continue
            extra = ", ".join(f"{key.removesuffix('_bytes')} {value / 2**20:.0f} MiB" if key.endswith("_bytes") else
                              f"{key.removesuffix('_seconds')} {value:.2f} s" for key, value in side["extra"].items())
            rows.append([name, f"{case['size']} {case['unit']}", role, f"{statistics.median(side['wall']):.2f}",
                         f"{statistics.median(side['cpu']):.2f}", extra])
    return [f"Wall time; {_who(figures)}. cold_start: a new process from its start to its first result; model_load: "
            "loading the model once more and a first call; memory: a new process that solves a patch. Medians.",
            report.markdown_table(["case", "size", "version", "wall [s]", "processor [s]", "of which, and memory"],
                                  rows)]
