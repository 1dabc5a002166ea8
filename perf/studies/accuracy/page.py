"""The page of `perf.studies.accuracy`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from perf.report import FLUX_BANDS, LABELS, interval, machine, markdown_table, number, percent, signed, width


def markdown(figures: dict[str, Any]) -> str:
    """The page, in markdown."""
    parts = [f"# Accuracy of {figures['bundle']}",
             f"{figures['n_scene']} scenes, {figures['n_source']} galaxies, scenes sha256 "
             f"`{figures['scenes_sha256']}`. Metrics: `perf/metrics.py`. Made by `{figures['command']}`.",
             *_solver_tables(figures), *_calibration(figures["calibration"])]
    if figures["realisations"]:
        parts += _realisations(figures["realisations"])
    parts += [*_cost(figures), f"{machine(figures['environment'])}; {figures['seconds'] / 60:.1f} minutes in all."]
    return "\n\n".join(parts) + "\n"


def _solver_tables(figures: dict[str, Any]) -> list[str]:
    """Tables of the medians of flux, colour and image errors."""
    solvers, summary = list(figures["solvers"]), figures["summary"]
    header = ["median of", *(f"{s} ({figures['solvers'][s]['n_iteration']})" for s in solvers), "noise floor"]
    parts = []
    for part, title in (("all", "All sources"), ("blendedness_above_0.3", "Blendedness above 0.3")):
        rows = [[label, *(number(summary[s][part].get(key, float("nan"))) for s in [*solvers, "noise floor"])]
                for key, label in LABELS.items()]
        parts += [f"## {title}", markdown_table(header, rows)]
    for part, title in (("by_snr", "SNR in r"), ("by_blendedness", "blendedness in r")):
        for s in solvers:
            if "plain" in s:
                continue  # the JSON file has them
            rows = [[interval(b["low"], b["high"]), str(b["n"]), *(number(b[key]) for key in LABELS),
                     number(f["flux_error_r"])]
                    for b, f in zip(summary[s][part], summary["noise floor"][part], strict=True)]
            parts += [f"## {s} by {title}",
                      markdown_table([title, "n", *LABELS.values(), "floor, flux error r"], rows)]
    return parts


def _pull_table(what: str, rows: Sequence[tuple[str, dict[str, Any]]], *, share: bool = False) -> str:
    """A table of summaries of pulls; `share` adds that column."""
    header = [what, "n", "mean", "median", "standard deviation", "width", "beyond 3", "inside 1", "inside 2",
              "inside 3", *(["share"] if share else [])]
    cells = [[name, str(s["n"]), signed(s["mean"]), signed(s["median"]), width(s["standard_deviation"]),
              width(s["width"]), percent(s["beyond_3"]), *(percent(c) for c in s["coverage"]),
              *([percent(s["share"])] if share else [])] for name, s in rows]
    return markdown_table(header, cells)


def _both(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a table, first for all sources and then for trusted sources, from summaries by name."""
    return [(f"{name}, {which}", both[which]) for which in ("all", "trusted") for name, both in found.items()]


def _calibration(found: dict[str, Any]) -> list[str]:
    """The section on pulls and coverage."""
    lines = ["## Reported errors",
             f"Solver {found['solver']}; sources with an SNR above {found['min_snr']:g} in the band (positions, "
             "ellipticities: in i; colours: in both bands). A pull is (measured - true) / reported error; coverage is "
             "how often the truth lies inside 1, 2 and 3 reported errors, 68.3%, 95.4% and 99.7% if errors are right "
             f"and Gaussian. *Trusted* sources carry none of {', '.join(found['untrusted'])} "
             f"({found['n_trusted']} of {found['n_source']} sources).",
             "![pulls and coverage](accuracy.png)"]
    for name, by_label in found["quantities"].items():
        lines += [f"### {name}", *([found["notes"][name]] if name in found["notes"] else []),
                  _pull_table("sources", _both(by_label))]
    for key, title in (("by_snr", "SNR in i"), ("by_blendedness", "blendedness in i")):
        lines += [f"### Flux in i by {title}",
                  _pull_table(title, _both({interval(b["low"], b["high"]): b for b in found[key]}))]
    lines += ["## Where the reported errors fail",
              "The Laplace approximation describes a single minimum, and only errors that the model can make. Pulls of "
              "the flux in i by flag; a source may have several "
              "flags:", _pull_table("flag", list(found["by_flag"].items()))]
    for key, title in (("worst_all", "all sources"), ("worst_trusted", "trusted sources")):
        lines += [f"The groups with the most flux pulls in i beyond 3, {title}. Groups overlap. A Gaussian has 0.3% "
                  "beyond 3. *Share* is the group's part of all pulls beyond 3.",
                  _pull_table("group", [(row["group"], row) for row in found[key]], share=True)]
    return lines


def _realisations(found: list[dict[str, Any]]) -> list[str]:
    """The section on reported covariances and the scatter over noise realisations."""
    rows = []
    for blend in found:
        separation = ", ".join(f"{s:.1f}" for s in blend["separation"])
        for band in FLUX_BANDS:
            values = blend[band]
            rows.append([blend["name"], separation, band,
                         *(", ".join(f"{v:.2f}" for v in values[key]) for key in ("error_over_scatter",
                                                                                   "rms_over_error")),
                         ", ".join(signed(v) for v in values["bias_over_error"]),
                         *(", ".join(signed(v) for v in values[key]) for key in ("correlation",
                                                                                  "sample_correlation"))])
        rows.append([blend["name"], "own, r with i", "", *[""] * 3,
                     *(", ".join(signed(v) for v in blend["own"][key]) for key in ("correlation",
                                                                                        "sample_correlation"))])
    n = found[0]["n_realisation"]
    return ["## Covariance between neighbours, against noise realisations",
            f"{n} realisations of the noise and of the errors of the centres for each blend. Every cell lists the "
            "blend's sources or pairs. A maximum a posteriori solution scatters less than its posterior is wide where "
            "the prior decides, and its bias for one galaxy is the same in every realisation: over the population the "
            "posterior variance is scatter plus squared bias. So error / scatter may exceed 1, and RMS error about "
            f"the truth / error should be about 1 on average. Sampling error: {percent(1 / np.sqrt(2 * n))} of a "
            f"scatter, {1 / np.sqrt(n):.2f} of a small correlation.",
            markdown_table(["blend", "separation [pixel]", "band", "reported error / scatter",
                            "RMS error / reported error", "bias / reported error", "reported correlation",
                            "sample correlation"], rows),
            "Trusted sources: " + ", ".join(f"{b['name']} {percent(b['trusted'])}" for b in found) + "."]


def _cost(figures: dict[str, Any]) -> list[str]:
    rows = [[s, str(v["n_iteration"]), number(v["ms_per_source"]), f"{v['peak_memory_mb']:.0f}", str(v["n_failed"]),
             ", ".join(number(v["pull_width"][b]) for b in FLUX_BANDS)] for s, v in figures["solvers"].items()]
    parts = ["## Cost (one thread)",
             markdown_table(["solver", "iterations", "ms per source", "peak memory of the process so far [MB]",
                             "sources without a flux", "width of the pull r, i"], rows)]
    if figures["objective"]:
        o = figures["objective"]
        parts += [f"Final objective, plain: gauss_newton is lower than adam in "
                  f"{percent(o['fraction_of_scenes_lower'])} of the scenes; difference per source "
                  f"{o['median_difference_per_source']:.2f} (median; 5% to 95%: {o['percentile_5_per_source']:.2f} to "
                  f"{o['percentile_95_per_source']:.2f})."]
    return parts
