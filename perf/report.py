"""Tables of medians per bin, what machine they come from, and the page of `perf.studies.accuracy`."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "perf" / "results"
SNR_EDGES = (0.0, 10.0, 20.0, 50.0, 100.0, 300.0, np.inf)
BLENDEDNESS_EDGES = (0.0, 0.01, 0.1, 0.3, 0.6, 1.0)
FLUX_BANDS = ("r", "i")
LABELS = {
    "flux_error_r": "flux error r", "flux_error_i": "flux error i", "map_flux_error_r": "MAP flux error r",
    "aperture_error_r": "aperture error r", "aperture_error_i": "aperture error i", "color_error": "abs d(g-r) [mag]",
    "cosine": "cosine", "ssim": "SSIM",
}
PACKAGES = ("deblendrt", "numpy", "onnxruntime", "astropy", "galsim", "galcheat")


def median(values: NDArray[np.float64]) -> float:
    """Median of the finite values; NaN of none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def binned(columns: Mapping[str, NDArray[np.float64]], by: NDArray[np.float64],
           edges: Sequence[float]) -> list[dict[str, Any]]:
    """Medians of every column per bin.

    Parameters
    ----------
    columns : mapping of str to float64 (n_source,)
    by : float64 (n_source,)
    edges : sequence of float
        A bin holds low <= by < high.

    Returns
    -------
    list of dict
        Keys ``low``, ``high``, ``n`` and the columns' names.
    """
    rows = []
    for low, high in itertools.pairwise(edges):
        inside = (by >= low) & (by < high)
        rows.append({"low": low, "high": high, "n": int(inside.sum()),
                     **{name: median(values[inside]) for name, values in columns.items()}})
    return rows


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def number(value: float) -> str:
    """Three significant digits, at most five decimals; a dash for NaN. Similarities near 1 keep five decimals."""
    if not np.isfinite(value):
        return "–" if np.isnan(value) else "∞"
    if 0.9 <= value < 1.0:
        return f"{value:.5f}"
    digits = 2 if abs(value) < 1e-5 else min(max(0, 2 - int(np.floor(np.log10(abs(value))))), 5)
    return f"{value:.{digits}f}"


def interval(low: float, high: float) -> str:
    """A bin's name, such as "0.1 to 0.3"."""
    return f"{low:g} to {high:g}" if np.isfinite(high) else f"above {low:g}"


def percent(fraction: float) -> str:
    """A fraction in per cent, one decimal; a dash for NaN."""
    return "–" if np.isnan(fraction) else f"{100 * fraction:.1f}%"


def signed(value: float) -> str:
    """Two decimals and a sign; a dash for NaN."""
    return "–" if np.isnan(value) else f"{value:+.2f}"


def width(value: float) -> str:
    """Two decimals below 10, three digits above; a dash for NaN."""
    return f"{value:.2f}" if abs(value) < 10 else number(value)


def environment() -> dict[str, Any]:
    """Versions, processor and commit that a figure belongs to."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed as a distribution"
    return {"python": platform.python_version(), "packages": versions, "platform": platform.platform(terse=True),
            "processor": _processor(), "n_cpu": os.cpu_count(), "commit": _commit(),
            "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True,
                              capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def accuracy_page(figures: dict[str, Any]) -> str:
    """The figures of `perf.studies.accuracy` as a markdown page."""
    machine = figures["environment"]
    parts = [f"# Accuracy of {figures['bundle']}",
             f"{figures['n_scene']} scenes, {figures['n_source']} galaxies, scenes sha256 "
             f"`{figures['scenes_sha256']}`. Metrics: `perf/metrics.py`. Made by `{figures['command']}`.",
             *_solver_tables(figures), *_calibration(figures["calibration"])]
    if figures["realisations"]:
        parts += _realisations(figures["realisations"])
    parts += [*_cost(figures),
              f"Machine: {machine['processor']}, {machine['platform']}, Python {machine['python']}, "
              + ", ".join(f"{k} {v}" for k, v in machine["packages"].items()) + f", commit {machine['commit']}; "
              f"{figures['seconds'] / 60:.1f} minutes in all."]
    return "\n\n".join(parts) + "\n"


def _solver_tables(figures: dict[str, Any]) -> list[str]:
    """Medians of the flux, colour and image errors."""
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
    """A table of summaries of pulls; `share` adds the column of that name."""
    header = [what, "n", "mean", "median", "standard deviation", "width", "beyond 3", "inside 1", "inside 2",
              "inside 3", *(["share"] if share else [])]
    cells = [[name, str(s["n"]), signed(s["mean"]), signed(s["median"]), width(s["standard_deviation"]),
              width(s["width"]), percent(s["beyond_3"]), *(percent(c) for c in s["coverage"]),
              *([percent(s["share"])] if share else [])] for name, s in rows]
    return markdown_table(header, cells)


def _both(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a table, first of all sources and then of the unflagged ones, from summaries by name."""
    return [(f"{name}, {which}", both[which]) for which in ("all", "unflagged") for name, both in found.items()]


def _calibration(found: dict[str, Any]) -> list[str]:
    """Pulls and coverage: are the reported errors right?"""
    lines = ["## Reported errors",
             f"Of {found['solver']}, sources with an SNR above {found['min_snr']:g} in the band (positions, "
             "ellipticities: in i; colours: in both bands). A pull is (measured - true) / reported error; coverage is "
             "how often the truth lies inside 1, 2 and 3 reported errors, 68.3%, 95.4% and 99.7% if errors are right "
             "and Gaussian. "
             f"*Unflagged*: none of {', '.join(found['untrusted'])} "
             f"({found['n_unflagged']} of {found['n_source']} sources).",
             "![pulls and coverage](accuracy.png)"]
    for name, by_label in found["quantities"].items():
        lines += [f"### {name}", *([found["notes"][name]] if name in found["notes"] else []),
                  _pull_table("sources", _both(by_label))]
    for key, title in (("by_snr", "SNR in i"), ("by_blendedness", "blendedness in i")):
        lines += [f"### Flux in i by {title}",
                  _pull_table(title, _both({interval(b["low"], b["high"]): b for b in found[key]}))]
    lines += ["## Where the reported errors fail",
              "The Laplace approximation knows one minimum, and only errors that the model can make. Flux in i by flag "
              "(a source may have several):", _pull_table("flag", list(found["by_flag"].items()))]
    for key, title in (("worst_all", "all sources"), ("worst_unflagged", "unflagged sources")):
        lines += [f"The groups with most flux pulls in i beyond 3, {title}. Groups overlap; of a Gaussian 0.3% lie "
                  "beyond 3. Share: of all the pulls beyond 3.",
                  _pull_table("group", [(row["group"], row) for row in found[key]], share=True)]
    return lines


def _realisations(found: list[dict[str, Any]]) -> list[str]:
    """Reported covariances beside the scatter over noise realisations."""
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
            f"{n} realisations of the noise and of the centres' errors each; every cell lists the blend's sources, or "
            "its pairs. A maximum a posteriori solution scatters less than its posterior is wide where the prior "
            "decides, and its bias for one galaxy is the same in every realisation: over the population the posterior "
            "variance is scatter plus squared bias. So error / scatter may exceed 1, and RMS error about the truth / "
            "error should be about 1 on average. Sampling error: "
            f"{percent(1 / np.sqrt(2 * n))} of a scatter, {1 / np.sqrt(n):.2f} of a small correlation.",
            markdown_table(["blend", "separation [pixel]", "band", "reported error / scatter",
                            "RMS error / reported error", "bias / reported error", "reported correlation",
                            "sample correlation"], rows),
            "Sources without a flag: " + ", ".join(f"{b['name']} {percent(b['unflagged'])}" for b in found) + "."]


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
