"""The record of a script of this folder: the faults that it caused, the fate of the inputs, and figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from perf.report import RESULTS, environment, markdown_table

FOLDER = RESULTS / "embedding"
Fault = dict[str, Any]


def fault(name: str, how: str, inputs: int, lost: int, repeated: int, note: str) -> Fault:
    """A row of the table of faults.

    Parameters
    ----------
    name, how : str
        The fault, and how it was caused.
    inputs : int
        Images, cutouts, catalogue rows or messages that were handed over.
    lost, repeated : int
        Inputs that had no row at the end; rows beyond the first of an input.
    note : str
    """
    return {"fault": name, "how": how, "inputs": inputs, "lost": lost, "repeated": repeated, "note": note}


def store(name: str, command: str, faults: Sequence[Fault], figures: dict[str, Any]) -> int:
    """Print faults and figures, and write ``perf/results/embedding/NAME.json``.

    Returns
    -------
    int
        An exit status: 1 if an input was lost or came twice.
    """
    columns = ("fault", "how", "inputs", "lost", "repeated", "note")
    print(markdown_table(columns, [[str(row[key]) for key in columns] for row in faults]))
    print(json.dumps(figures, indent=1))
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps({"command": command, "environment": environment(), "faults": list(faults),
                                "figures": figures}, indent=1) + "\n")
    return int(any(row["lost"] or row["repeated"] for row in faults))
