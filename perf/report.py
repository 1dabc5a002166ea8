"""Cells and tables of the pages, medians per bin, and the machine that figures belong to."""

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
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
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
    """Median of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def binned(columns: Mapping[str, NDArray[np.float64]], by: NDArray[np.float64],
           edges: Sequence[float]) -> list[dict[str, Any]]:
    """Medians of every column in bins of another.

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
    """Versions, processor and commit of a measurement."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed as a distribution"
    return {"python": platform.python_version(), "packages": versions, "platform": platform.platform(terse=True),
            "processor": processor(), "n_cpu": os.cpu_count(), "commit": _commit(),
            "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}}


def machine(found: Mapping[str, Any]) -> str:
    """An `environment` as the line that ends a page, without its full stop."""
    versions = ", ".join(f"{package} {version}" for package, version in found["packages"].items())
    return (f"Machine: {found['processor']}, {found['n_cpu']} cores, {found['platform']}, Python {found['python']}, "
            f"{versions}, commit {found['commit']}")


def processor() -> str:
    """Name of the processor."""
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
