"""The findings of perf.gpu.check so far, as gpu.json and gpu.md."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from perf.gpu.descent_alone import N_ITERATION


class Report:
    """Figures, section by section, in a folder's gpu.json and gpu.md as soon as they are known.

    Parameters
    ----------
    folder : Path

    Attributes
    ----------
    figures : dict
    failed : dict of str to str
        Tracebacks of the sections that failed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.figures: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def section(self, name: str, work: Callable[[], Any]) -> None:
        """Do what gives a section's figures; of an iterator, each row is kept at once."""
        start = time.perf_counter()
        try:
            made = work()
            if isinstance(made, Iterator):
                rows = self.figures[name] = []
                for row in made:
                    rows.append(row)
                    self.write()
            else:
                self.figures[name] = made
        except Exception:
            self.failed[name] = traceback.format_exc()
            print(self.failed[name], file=sys.stderr, flush=True)
        print(f"{name}: {'FAILED' if name in self.failed else 'done'} ({time.perf_counter() - start:.1f} s)",
              flush=True)
        self.write()

    def write(self) -> None:
        """gpu.json and gpu.md."""
        figures = self.figures | {"failed": self.failed}
        for name, content in (("gpu.json", json.dumps(figures, indent=1, default=float)),
                              ("gpu.md", "\n".join(page_of(figures)))):
            partial = self.folder / f".{name}"
            partial.write_text(content + "\n")
            partial.replace(self.folder / name)


def page_of(figures: dict[str, Any]) -> Iterator[str]:
    """Lines of gpu.md, of the sections that there are."""
    yield "# The engine on a GPU"
    if "machine" in figures:
        on = figures["machine"]
        yield from ("", f"{on['gpu']}, {on['n_cpu']} CPU cores, {json.dumps(on['versions'])}")
    for name in figures["failed"]:
        yield from ("", f"**{name}: failed**, see gpu.json")
    if "parity" in figures:
        yield from ("", "## Answers", "", *(f"- {key}: {value}" for key, value in figures["parity"].items()))
    throughputs = [name for name in figures if name.startswith("throughput")]
    if throughputs:
        yield from ("", "## Throughput", "", "| engine | sources | sources per second |", "|---|---|---|")
        for name in throughputs:
            yield from (f"| {name.partition(' ')[2]} | {row['n_source']} | {rate_of(row)} |" for row in figures[name])
    for name, what in (("seconds_to_first_result", "To the first result, s"), ("latency", "Latency of one scene, ms"),
                       ("ceilings", "Copying, read and written")):
        if name in figures:
            yield from ("", f"{what}: {figures[name]}")
    if "descent alone" in figures:
        yield from ("", "## The descent alone", "", f"{N_ITERATION} iterations, galaxies without "
                    "outskirts, everything on the GPU before the clock runs.", "",
                    "| engine | sources | sources per second | peak memory, GB | difference of log fluxes |",
                    "|---|---|---|---|---|")
        for row in figures["descent alone"]:
            peak = f"{row['peak_gb']:.2f}" if "peak_gb" in row else ""
            cells = row["engine"], row.get("n_source", ""), rate_of(row), peak, row.get("log_flux_off", "")
            yield f"| {' | '.join(map(str, cells))} |"
    if "kernels" in figures:
        yield from ("", "## Kernels", "", "| kernel | launches | us per source | share |", "|---|---|---|---|",
                    *(f"| {k['kernel']} | {k['launches']} | {k['us_per_source']:.3f} | {k['share']:.1%} |"
                      for k in figures["kernels"][:25]))
    if "host" in figures:
        yield from ("", "## The host, one thread", "", "```", figures["host"], "```")
    if "roofline" in figures:
        yield from ("", "## The floor", "", figures["roofline"])


def rate_of(row: dict[str, Any]) -> str:
    """Sources per second of a row, or why there are none."""
    return f"{row['sources_per_second']:,.0f}" if "sources_per_second" in row else row["left_out"]
