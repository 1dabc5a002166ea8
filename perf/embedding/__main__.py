"""One page of all paths into production: ``python -m perf.embedding`` writes ``perf/results/embedding.md``.

Nothing is measured here. Each path has a script of its own, ``python -m perf.embedding.NAME``. It starts the real
component, breaks it on purpose, counts lost inputs, and stores ``perf/results/embedding/NAME.json``.
"""

from __future__ import annotations

import json
from typing import Any

from perf.report import RESULTS


def markdown(paths: dict[str, dict[str, Any]]) -> str:
    """The page.

    Parameters
    ----------
    paths : dict
        Stored figures of each script, by name.

    Returns
    -------
    str
        Markdown.
    """
    lines = ["# Embedded in production: what was broken, and what was lost", "",
             "Made by `python -m perf.embedding` from the records of the scripts below. An input is an image, a "
             "cutout, a catalogue row or a message. A lost input has no row and no record at the end. A repeated input "
             "has two.", "",
             "| path | fault | how | inputs | lost | repeated | |", "|---|---|---|---|---|---|---|"]
    for name, stored in paths.items():
        for fault in stored["faults"]:
            keys = ("fault", "how", "inputs", "lost", "repeated", "note")
            cells = [name, *(_cell(fault.get(key, "")) for key in keys)]
            lines.append(f"| {' | '.join(cells)} |")
    for name, stored in paths.items():
        lines += ["", f"## {name}", "", f"`{stored['command']}`: {_environment(stored['environment'])}", "",
                  "| figure | |", "|---|---|",
                  *(f"| {_cell(key.replace('_', ' '))} | {_cell(value)} |" for key, value in _flat(stored["figures"]))]
    return "\n".join(lines) + "\n"


def _flat(figures: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Rows of nested figures; the name of a group stands before the names of its figures."""
    rows: list[tuple[str, Any]] = []
    for key, value in figures.items():
        name = f"{above}{key}"
        rows += _flat(value, f"{name}: ") if isinstance(value, dict) else [(name, value)]
    return rows


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_cell(part) for part in value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def _environment(environment: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_cell(value)}" for key, value in environment.items() if not isinstance(value, dict))


def main() -> None:
    """Write the page of what is stored."""
    paths = {path.stem: json.loads(path.read_text()) for path in sorted((RESULTS / "embedding").glob("*.json"))}
    (RESULTS / "embedding.md").write_text(markdown(paths))
    print(RESULTS / "embedding.md")


if __name__ == "__main__":
    main()
