"""The command line that studies share, and the files that a study writes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from perf.report import RESULTS


def parser(module: str, about: str | None, *, n_scene: int | None = None) -> argparse.ArgumentParser:
    """A parser with the options that studies share.

    Parameters
    ----------
    module : str
        Name of the module that `python -m` runs.
    about : str
        The module's docstring; its first line is the description.
    n_scene : int, optional
        Default number of test scenes. Without it the study uses none, and has no ``--cache`` and ``--n-scene``.
    """
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=(about or "").partition("\n")[0])
    made.add_argument("--bundle", default="lsst", help="shipped name or path of a bundle")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the page, figure and JSON file")
    if n_scene is not None:
        made.add_argument("--cache", type=Path, help="folder of the test scenes; ~/.cache/deblendrt")
        made.add_argument("--n-scene", type=int, default=n_scene, help="the first so many, at most 200")
    return made


def command(made: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The command that measures the same again. It leaves out folders and options that have their default."""
    words = [made.prog]
    for action in made._actions:
        value = getattr(args, action.dest, action.default)
        if value == action.default or action.type is Path:
            continue
        shown = value if isinstance(value, list) else [value]
        if action.nargs == 0:
            words.append(action.option_strings[0])
        elif isinstance(action, argparse._AppendAction):
            words += [f"{action.option_strings[0]} {one}" for one in shown]
        else:
            words.append(" ".join([action.option_strings[0], *map(str, shown)]))
    return " ".join(words)


def store(out: Path, name: str, figures: dict[str, Any], page: str) -> None:
    """Write ``NAME.json`` and ``NAME.md`` into a folder, and print the page."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    (out / f"{name}.md").write_text(page)
    print(page)
