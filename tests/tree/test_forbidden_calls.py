"""The package's source does not unpickle, evaluate text, or load arrays that may hold objects."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("engine", "training", "export", "cuda", "perf")
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def faults(source: str) -> list[str]:
    """Return the forbidden calls of a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"imports {name}" for name in names if name.split(".")[0] in UNPICKLERS]
        if not isinstance(node, ast.Call):
            continue
        call, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if call in EVALUATORS:
            found.append(f"calls {call}")
        if call in ("np.load", "numpy.load", "np.lib.format.read_array", "read_array") and not (
                keywords.get("allow_pickle") == "False" or call == "read_array"):
            found.append(f"{call} without allow_pickle=False")
        if keywords.get("allow_pickle", "False") != "False":
            found.append(f"{call} with allow_pickle")
        if call == "torch.load" and keywords.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if call in ("yaml.load", "yaml.unsafe_load", "pd.read_pickle", "os.system", "np.fromfile"):
            found.append(call)
        if keywords.get("shell") == "True":
            found.append(f"{call} with shell=True")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources(path: Path) -> None:
    assert not faults(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", [
    "import pickle", "from pickle import loads", "import numpy as np\nnp.load('a')", "np.load('a', allow_pickle=True)",
    "np.load('a', allow_pickle=flag)", "torch.load('a')", "eval('1')", "import joblib.numpy_pickle",
    "subprocess.run('a', shell=True)",
])
def test_faults_are_seen(source: str) -> None:
    assert faults(source)
