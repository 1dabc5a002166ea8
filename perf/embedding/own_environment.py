"""Environments ``FOLDER/NAME`` for software that pins other versions than ours. An existing environment is kept.

A file ``NAME.txt`` lists the packages to install. The engine is run from this clone.
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

from perf.peers.environments import install
from perf.peers.peer import Missing
from perf.report import ROOT


def make(folder: Path, requirements: Path, further: Sequence[str] = ()) -> Path:
    """The interpreter of an environment, which is made if it does not exist.

    Parameters
    ----------
    folder : Path
    requirements : Path
        The file that lists its packages; its stem is the name of the environment.
    further : sequence of str
        More arguments of pip: folders of clones of packages that no registry has. The file lists their build tools.

    Raises
    ------
    Missing
        pip failed; the message is its last line.
    """
    home = folder / requirements.stem
    python = home.absolute() / "bin" / "python"
    if python.exists():
        return python
    folder.mkdir(parents=True, exist_ok=True)
    try:
        install(home, requirements, home.with_suffix(".log"), ["--no-build-isolation", *further] if further else [])
    except Missing:
        python.unlink(missing_ok=True)  # half an environment would pass for a whole one
        raise
    return python


def run(python: Path, module: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run a module of this folder in an environment. It gets a JSON file, and the name of a JSON file to write.

    Parameters
    ----------
    python : Path
    module : str
        Such as "perf.embedding.btk.judge".
    request : dict

    Returns
    -------
    dict
        Contents of the file that it wrote.

    Raises
    ------
    Missing
        It ended with an error.
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
