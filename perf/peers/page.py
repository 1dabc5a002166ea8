"""The page and the figure of `perf.peers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from perf import report

FLOOR = "noise floor"
ROWS = ("flux_error_r", "flux_error_i", "aperture_error_r", "aperture_error_i", "color_error", "cosine", "ssim")
COLORS = {"deblendrt": "C0", "deblendrt, centres known": "C9", "scarlet_lite": "C1", "scarlet_lite, run long": "C3",
          "scarlet2": "C2", "sep": "C4", "madness": "C5", FLOOR: "0.4"}
BESIDE = ("flux_error_r", "color_error", "cosine")  # metrics beside the time
BINS = (("by_snr", "SNR in r"), ("by_blendedness", "blendedness in r"))


def markdown(figures: dict[str, Any]) -> str:
    """The page, in markdown."""
    load = ", ".join(f"{value:.1f}" for value in figures["load"])
    parts = ["# Beside other deblenders",
             f"Made by `{figures['command']}`: every deblender gets the same scenes in the same run, "
             f"{figures['scenes_at_once']} at a time in turn, with the true positions, the variance and the PSF. "
             "Medians over sources; metrics: `perf/metrics.py`. Noise floor: fluxes with the true profiles known. "
             f"Scenes sha256 `{figures['scenes_sha256']}`.",
             "The scenes come from the simulation that deblendrt's prior was trained on (other seeds): bulge and disk "
             "galaxies, with the PSF known exactly. The peers assume less about galaxies.",
             *_deblenders(figures), *_cost(figures), "![errors and times](peers.png)"]
    for part in figures["parts"]:
        parts += _part(part, figures)
    parts.append(f"{report.machine(figures['environment'])}; one thread each. Load averages: {load} (1 minute at the "
                 f"start; 1 and 15 minutes at the end). {figures['seconds'] / 60:.0f} minutes in all.")
    return "\n\n".join(parts) + "\n"


def _deblenders(figures: dict[str, Any]) -> list[str]:
    lines = []
    for name, known in figures["deblenders"].items():
        if "missing" in known:
            lines.append(f"- {name}: not run: {known['missing']}.")
        else:
            lines.append(f"- {' '.join([name, known['version']]).strip()}: {known['how']}.")
    return ["\n".join(lines)]


def _beside(name: str, figures: dict[str, Any]) -> list[str]:
    """Cells of an entry's accuracy, or the reason why there is none."""
    if name in figures["accuracy"]:
        return [report.number(figures["accuracy"][name][key]) for key in BESIDE]
    return [figures["deblenders"][figures["costs"][name]["deblender"]]["time_only"], *["–"] * (len(BESIDE) - 1)]


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _cost(figures: dict[str, Any]) -> list[str]:
    rows = []
    for name, cost in figures["costs"].items():
        iterations = f"{np.median(cost['iterations']):.0f}" if cost["iterations"] else "–"
        time = cost["ms_per_source"]
        compiling = _ms(time["processor_compiling"]) if time["processor_compiling"] else "–"
        rows.append([name, ", ".join(f"{k} {v:g}" for k, v in cost["settings"].items()) or "–", str(cost["n_scene"]),
                     str(cost["n_source"]), iterations, _ms(time["processor"]), _ms(time["wall"]),
                     compiling, *_beside(name, figures), str(len(cost["errors"]))])
    rows += [[name, "–", "not run", *["–"] * (6 + len(BESIDE))]
             for name, known in figures["deblenders"].items() if "missing" in known]
    return ["## Time, and the accuracy that it buys",
            report.markdown_table(
                ["deblender", "settings", "scenes", "sources", "median iterations", "processor ms per source",
                 "wall ms per source", "compiling, ms per source", *(report.LABELS[key] for key in BESIDE),
                 "failed scenes"], rows),
            "Each deblender runs on one thread, after a scene that is not measured. Accuracy is of the same scenes as "
            "the time; entries with different numbers of scenes are compared further below. The peers' times leave "
            "out the drawing of source images. No time includes compilation: the step of scarlet2's fit is compiled "
            "for every scene.",
            *[f"- {name} detected nothing at {cost['n_missed']} of the {cost['n_source']} positions, and measured "
              "apertures there, which include "
              "neighbours." for name, cost in figures["costs"].items() if cost["n_missed"]],
            *[f"- {name}, {error}" for name, cost in figures["costs"].items() for error in cost["errors"]]]


def _part(part: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    """All tables of one set of scenes."""
    summary = part["summary"]
    names = list(summary)
    all_scenes = part["n_scene"] == figures["n_scene"]
    where = f"{'All' if all_scenes else 'The first'} {part['n_scene']} scenes"
    lines = [f"## {where}, {part['n_source']} galaxies"]
    for key, title in (("all", "All sources"), ("blendedness_above_0.3", "Blendedness above 0.3")):
        rows = [[report.LABELS[row], *(report.number(summary[n][key].get(row, float("nan"))) for n in names)]
                for row in ROWS]
        lines += [f"### {title} ({where.lower()})", report.markdown_table(["median of", *names], rows)]
    rows = [[band, *(f"{100 * summary[n]['snr_above_20'][f'bias_{band}']:+.2f}%" for n in names)]
            for band in report.FLUX_BANDS]
    lines += [f"### Bias: median of flux / truth - 1, SNR in r above 20 ({where.lower()})",
              report.markdown_table(["band", *names], rows)]
    for key, title in BINS:
        for column, label in (("flux_error_r", "flux error r"), ("cosine", "cosine r")):
            shown = [n for n in names if column in summary[n]["all"]]
            rows = [[report.interval(bins[0]["low"], bins[0]["high"]), str(bins[0]["n"]),
                     *(report.number(b[column]) for b in bins)]
                    for bins in zip(*(summary[n][key] for n in shown), strict=True)]
            lines += [f"### {label} by {title} ({where.lower()})", report.markdown_table([title, "n", *shown], rows)]
    if part["nearer"]:
        lines += [f"### How often a deblender's flux in r is nearer to the truth than deblendrt's ({where.lower()})"]
        for key, title in BINS:
            rows = [[report.interval(bins[0]["low"], bins[0]["high"]), str(bins[0]["n"]),
                     *(report.percent(b["fraction"]) for b in bins)]
                    for bins in zip(*(found[key] for found in part["nearer"].values()), strict=True)]
            lines.append(report.markdown_table([title, "n", *part["nearer"]], rows))
    return lines


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw the median flux error in bins of SNR and of blendedness, and error against time.

    All entries are compared on the scenes that all of them did.
    """
    part = figures["parts"][-1]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    for axis, (key, title) in zip(axes, BINS, strict=False):
        for name, found in part["summary"].items():
            bins = found[key]
            axis.semilogy(range(len(bins)), [100 * b["flux_error_r"] for b in bins], color=COLORS[name], label=name,
                          **({"ls": "--"} if name == FLOOR else {"marker": "o", "ms": 4}))
        labels = [f"{report.interval(b['low'], b['high'])}\n({b['n']})" for b in bins]
        axis.set_xticks(range(len(bins)), labels, fontsize=7)
        axis.set(xlabel=f"{title} (sources)", ylabel="median |flux error| in r [%]")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    for name, cost in figures["costs"].items():
        time = cost["ms_per_source"]["processor"]
        if name in part["summary"]:
            axes[2].loglog(time, 100 * part["summary"][name]["all"]["flux_error_r"], "o", ms=8, color=COLORS[name],
                           label=name)
        else:
            axes[2].axvline(time, color=COLORS[name], ls=":", label=f"{name}: time only")
    axes[2].axhline(100 * part["summary"][FLOOR]["all"]["flux_error_r"], color=COLORS[FLOOR], ls="--", label=FLOOR)
    axes[2].set(xlabel="ms per source, one core, without compilation", ylabel="median |flux error| in r [%]")
    axes[2].legend(handles=[line for line in axes[2].lines if str(line.get_label()).endswith("time only")], fontsize=8)
    axes[2].grid(alpha=0.3, which="both")
    figure.suptitle(f"{part['n_scene']} test scenes, {part['n_source']} galaxies, the same for all")
    figure.savefig(path, dpi=100)
