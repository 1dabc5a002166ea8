"""The figures of `perf.studies.cpu`: accuracy against time, time and memory against size, time by stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

SOLVER_STYLES = {"gauss_newton": ("Gauss-Newton", "C0"), "adam": ("Adam", "C1")}
PART_STYLES = {"all": ("all sources", "o"), "blended": ("blendedness > 0.3", "s")}
SHAPE_STYLES = {"many": ("many scenes of 2 to 8 galaxies", "C0", "o"), "one": ("one scene, growing side", "C2", "s")}
LEAST_GAP = 1e-3  # smaller gaps are drawn as this


def draw_iterations(figures: Mapping[str, Any], path: Path) -> None:
    """Flux error and objective gap against processor time per source; numbers are iterations."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for solver, (label, color) in SOLVER_STYLES.items():
        rows = [row for row in figures["rows"] if row["solver"] == solver]
        if not rows:
            continue
        time = [row["ms_per_source"] for row in rows]
        for part, (which, marker) in PART_STYLES.items():
            error = [100 * row["errors"][part]["r_mean"] for row in rows]
            left.loglog(time, error, color=color, marker=marker, ms=5, label=f"{label}, {which}")
            _number(left, rows, time, error)
        measured = [row for row in rows if (solver, row["n_iteration"]) != ("gauss_newton", figures["reference"])]
        gaps = [max(row["gap"]["median"], LEAST_GAP) for row in measured]
        time = [row["ms_per_source"] for row in measured]
        right.loglog(time, gaps, color=color, marker="o", ms=5, label=f"{label}, median")
        right.loglog(time, [max(row["gap"]["p90"], LEAST_GAP) for row in measured], color=color, ls=":",
                     label="90th percentile")
        _number(right, measured, time, gaps)
    for part, style in (("all", "--"), ("blended", ":")):
        left.axhline(100 * figures["noise_floor"][part]["r_mean"], color="0.5", ls=style, lw=1,
                     label=f"noise floor, {PART_STYLES[part][0]}")
    left.set(xlabel="processor time per source [ms], one thread", ylabel="mean |flux error| in r [%]",
             title="errors above 50% count as that")
    right.set(xlabel="processor time per source [ms], one thread",
              ylabel=f"objective above {figures['reference']} iterations, per source",
              title=f"less than {LEAST_GAP:g} is drawn as that")
    for axis in (left, right):
        axis.title.set_fontsize(8)
    for axis in (left, right):
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7)
        _plain_ticks(axis.xaxis)
    _plain_ticks(left.yaxis)
    figure.suptitle(f"{figures['n_scene']} test scenes, {figures['n_source']} galaxies; numbers are iterations",
                    fontsize=10)
    figure.savefig(path, dpi=110)


def _plain_ticks(axis: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, without exponents."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _number(axis: Any, rows: list[Any], x: list[float], y: list[float]) -> None:
    for row, at_x, at_y in zip(rows, x, y, strict=True):
        axis.annotate(str(row["n_iteration"]), (at_x, at_y), xytext=(3, 4), textcoords="offset points", fontsize=6)


def draw_linear(figures: Mapping[str, Any], path: Path) -> None:
    """Processor time and memory against the number of sources."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for shape, (label, color, marker) in SHAPE_STYLES.items():
        points = sorted((p for p in figures["points"] if p["shape"] == shape), key=lambda p: p["n_source"])
        if not points:
            continue
        n = np.array([p["n_source"] for p in points], float)
        cpu = np.array([p["cpu"] for p in points])
        fit = next(reversed(figures["exponents"].get(shape, {}).values()), None)
        told = "" if fit is None else f", exponent {fit['exponent']:.2f}"
        left.loglog(n, cpu, color=color, marker=marker, label=label + told)
        right.loglog(n, [p["bytes_peak"] / 2**20 for p in points], color=color, marker=marker, label=f"{label}: peak")
        right.loglog(n, [(p["bytes_peak"] - p["bytes_before"]) / 2**20 for p in points], color=color, marker=marker,
                     ls="--", mfc="none", label="above what was held before the call")
        if shape == "many":
            left.loglog(n, cpu[-1] * n / n[-1], color="0.6", ls=":", label="proportional")
    right.axhline(figures["memory_limit"] / 2**20, color="0.6", ls=":", label="memory_limit (at work)")
    left.set(xlabel="sources", ylabel="processor time [s], one thread")
    right.set(xlabel="sources", ylabel="memory of the process [MiB]")
    for axis in (left, right):
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7)
        _plain_ticks(axis.yaxis)
    figure.savefig(path, dpi=110)


def draw_stages(cases: Mapping[str, Any], path: Path) -> None:
    """Processor time per source by stage, base and candidate of every case beside each other."""
    bars: list[tuple[str, Mapping[str, float]]] = []
    for name, case in cases.items():
        for role in ("base", "candidate"):
            side = case[role]
            if side is not None and side["n_source"]:
                bars.append((f"{name}\n{role}", {key: 1e3 * s / side["n_source"] for key, s in side["stages"].items()}))
    stages = sorted({stage for _, values in bars for stage in values},
                    key=lambda stage: -max(values.get(stage, 0.0) for _, values in bars))
    figure = Figure(figsize=(max(6.0, 1.2 + 1.2 * len(bars)), 4.4), layout="constrained")
    axis = figure.subplots()
    bottom = np.zeros(len(bars))
    for i, stage in enumerate(stages):
        height = np.array([values.get(stage, 0.0) for _, values in bars])
        axis.bar(range(len(bars)), height, bottom=bottom, label=stage, color=f"C{i}" if i < 10 else "0.7", width=0.7)
        bottom += height
    axis.set_xticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    axis.set_ylabel("processor time per source [ms], timers included")
    axis.grid(alpha=0.3, axis="y")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


def draw_peers(figures: Mapping[str, Any], path: Path) -> None:
    """Median flux error in r against processor time per source of every deblender that may be judged."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axis = figure.subplots()
    by_size = {part["n_scene"]: part["summary"] for part in figures["parts"]}
    for i, name in enumerate(n for n in figures["costs"] if n in figures["accuracy"]):
        cost = figures["costs"][name]
        medians = by_size[cost["n_scene"]][name]
        for part, marker in (("all", "o"), ("blendedness_above_0.3", "s")):
            axis.loglog(cost["ms_per_source"]["processor"], 100 * medians[part]["flux_error_r"], marker, color=f"C{i}",
                        ms=7, label=name if part == "all" else None)
    floor = next(iter(by_size.values()))["noise floor"]
    for part, style, label in (("all", "--", "noise floor"), ("blendedness_above_0.3", ":", None)):
        axis.axhline(100 * floor[part]["flux_error_r"], color="0.5", ls=style, lw=1, label=label)
    axis.set(xlabel="processor time per source [ms], one thread, without compilation",
             ylabel="median |flux error| in r [%]", title="circles: all sources; squares: blendedness > 0.3")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=7, loc="lower left")  # this corner, fast and accurate, is empty
    _plain_ticks(axis.xaxis)
    _plain_ticks(axis.yaxis)
    figure.savefig(path, dpi=110)
