"""One name means one thing: no constant and no public class is defined twice."""

from __future__ import annotations

import ast
import collections
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("engine", "cuda", "export", "training")

# Names that may have several definitions, each with its reason.
CONSTANTS: dict[str, str] = {}
CLASSES: dict[str, str] = {}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Paths and syntax trees of all modules."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def constants(module: ast.Module) -> set[str]:
    """Names in capitals that a module assigns to at its top level."""
    found = set()
    for statement in module.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else (
            [statement.target] if isinstance(statement, ast.AnnAssign) else [])
        names = {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
        found |= {name for name in names if name.isupper() and not name.startswith("_")}
    return found


def classes(module: ast.Module) -> set[str]:
    """Public classes that a module defines at its top level."""
    return {s.name for s in module.body if isinstance(s, ast.ClassDef) and not s.name.startswith("_")}


@pytest.mark.parametrize(("names", "exceptions"), [(constants, CONSTANTS), (classes, CLASSES)])
def test_one_definition(names, exceptions):  # type: ignore[no-untyped-def]
    places = collections.defaultdict(list)
    for path, module in modules():
        for name in names(module):
            places[name].append(path)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in twice.items() if name not in exceptions} == {}
    assert set(exceptions) <= set(twice)  # no exception outlives its reason


def test_finds_definitions() -> None:
    module = ast.parse("from a import ONE\nTWO, THREE = 2, 3\nFOUR: int = 4\nfive = _SIX = 6\nclass Seven: pass\n")
    assert constants(module) == {"TWO", "THREE", "FOUR"}
    assert classes(module) == {"Seven"}
