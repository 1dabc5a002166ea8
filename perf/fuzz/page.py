"""The page of a campaign: ``perf/results/fuzz.json`` and ``fuzz.md``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from perf.report import RESULTS, machine, markdown_table


def markdown(figures: dict[str, Any]) -> str:
    """The page of a campaign.

    Parameters
    ----------
    figures : dict
        Of `campaign.summary`.

    Returns
    -------
    str
        Markdown.
    """
    rows, notes = [], []
    for name, t in figures["targets"].items():
        refused = ", ".join(f"{n:,} {kind}" for kind, n in t["refused"].items())
        failed = sum(f["n"] for f in t["failures"].values())
        rows.append([f"{name}: {t['what']}", f"{t['n_input']:,}", f"{t['n']:,}" if t["of_present_code"] else "0",
                     ", ".join(f"{driver} {n:,}" for driver, n in t["drivers"].items()), f"{t['accepted']:,}", refused,
                     str(failed), f"{t['slowest_s']:.2g}", f"{t['growth'] / 2**20:.0f}", f"{t['per_input_us']:.0f}"])
        present = "present" if t["of_present_code"] else "earlier"
        notes += [f"- {name}, {present if which == 'failures' else 'earlier'} code: {f['n']} x {key}: "
                  f"`{_line(f['message'])}`"
                  for which in ("failures", "failures_before") for key, f in t[which].items()
                  if which == "failures" or t["of_present_code"]]
    parts = [
        "# Readers fed with damaged input",
        f"{figures['n_input']:,} inputs in {figures['seconds'] / 3600:.1f} hours of one core, "
        f"{figures['n_input_present_code']:,} of them with the readers' modules as they are now. Made "
        "by `python -m perf.fuzz --page` from the records of `python -m perf.fuzz`. The promises are in "
        "`docs/developing/security.md`.",
        f"Each input is a valid file with a few mutations. It is read in a process whose address space may grow by "
        f"{figures['memory_limit'] / 2**30:.0f} GiB. It must be accepted, or refused with a ValueError, an OSError or "
        "a subclass. Failures are any other exception, a process that dies, more than "
        f"{figures['time_limit']:.0f} s of processor time, and memory that grows by more than "
        f"{figures['growth_limit'] / 2**20:.0f} MiB. The columns from \"accepted\" on are of the present code if it "
        "has been tried.",
        markdown_table(["reader", "inputs", "present code", "chosen by", "accepted", "refused", "failures",
                        "slowest [s]", "largest growth [MiB]", "per input [µs]"], rows),
        "## Failures", "\n".join(notes) if notes else "None.",
        f"{machine(figures['environment'])}.",
    ]
    return "\n\n".join(parts) + "\n"


def _line(text: str) -> str:
    return " ".join(text.replace("`", "'").replace("|", "/").split())[:160]


def write(figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write both files; return the path of the page.

    Returns
    -------
    Path
        Of the page.
    """
    (folder / "fuzz.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / "fuzz.md").write_text(markdown(figures))
    return folder / "fuzz.md"
