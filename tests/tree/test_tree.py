"""The tree is small enough at every level to be read from its file list."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 14  # entries of a folder
ENGINE = {"__init__.py", "adapters", "bundles", "compute", "deblender.py", "files", "measure", "model", "native",
          "py.typed", "result", "scene", "solve", "units.py"}
# Stored results are not read as a list; the root is what packaging, licences and citing ask for.
EXEMPT = {".", "perf/results", "perf/results/embedding"}


@pytest.fixture(scope="module")
def folders() -> dict[str, set[str]]:
    """Entries of every folder, of what a clone would hold."""
    done = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    files = [f for f in done.stdout.split("\0") if f and (ROOT / f).exists()] or [
        str(path.relative_to(ROOT)) for top in ("engine", "cuda", "training", "export", "tests", "perf", "docs")
        for path in (ROOT / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    found: dict[str, set[str]] = defaultdict(set)
    for file in files:
        path = Path(file)
        while path != Path("."):
            found[str(path.parent)].add(path.name)
            path = path.parent
    return found


def test_a_folder_has_few_entries(folders: dict[str, set[str]]) -> None:
    crowded = {folder: len(entries) for folder, entries in folders.items()
               if len(entries) > MOST and folder not in EXEMPT}
    assert not crowded


def test_the_engine_is_what_the_design_lists(folders: dict[str, set[str]]) -> None:
    assert folders["engine"] <= ENGINE


def test_cuda_does_not_shadow_the_package_of_nvidia(folders: dict[str, set[str]]) -> None:
    assert "__init__.py" not in folders["cuda"] | folders["."]
