"""Environments of their own for software that pins other versions than ours: ``FOLDER/NAME``, kept if it is there.

What a file ``NAME.txt`` of this folder lists is installed, and the engine is run from this clone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Missing(Exception):
    """An environment that can not be made; the message says why."""


def make(folder: Path, name: str, further: Sequence[str] = ()) -> Path:
    """Interpreter of an environment, made if it is not there.

    Parameters
    ----------
    folder : Path
    name : str
        Of the file that lists what it needs.
    further : sequence of str
        More for pip: folders of clones of what no registry has; what builds them is in the file.

    Raises
    ------
    Missing
        pip failed; its last words.
    """
    python = folder.absolute() / name / "bin" / "python"
    if python.exists():
        return python
    folder.mkdir(parents=True, exist_ok=True)
    commands = [[sys.executable, "-m", "venv", str(folder / name)],
                [str(python), "-m", "pip", "install", "-q", "-r", str(Path(__file__).with_name(f"{name}.txt"))],
                *([str(python), "-m", "pip", "install", "-q", "--no-build-isolation", what] for what in further)]
    for command in commands:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            python.unlink(missing_ok=True)  # half an environment would be taken for a whole one
            said = (done.stderr or done.stdout).strip().splitlines() or ["nothing was said"]
            raise Missing(f"{name}: {' '.join(command[1:])} failed: {said[-1]}")
    return python


def run(python: Path, module: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run a module of this folder in an environment: it is given a JSON file and the name of one to write.

    Parameters
    ----------
    python : Path
    module : str
        Such as "perf.embedding.btk_judge".
    request : dict

    Returns
    -------
    dict
        What it wrote.

    Raises
    ------
    Missing
        It ended with an error; its last words.
    """
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "deblendrt").symlink_to(ROOT)  # the clone's folder is the package
        asked, answered = Path(work) / "asked.json", Path(work) / "answered.json"
        asked.write_text(json.dumps(request))
        path = os.pathsep.join([work, str(ROOT)])
        done = subprocess.run([str(python), "-W", "ignore", "-m", module, str(asked), str(answered)], cwd=work,
                              env={**os.environ, "PYTHONPATH": path}, stdout=sys.stderr)
        if done.returncode or not answered.exists():
            raise Missing(f"{module} ended with status {done.returncode}")
        answer: dict[str, Any] = json.loads(answered.read_text())
        return answer
