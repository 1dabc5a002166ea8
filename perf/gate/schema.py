"""Records of measurements, written and read through `schema.json` (JSON Schema, draft 2020-12).

Of the standard, what that file uses is checked; any other keyword in it is an error, so that nothing goes unchecked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_name("schema.json")
TYPES: dict[str, tuple[type, ...]] = {"object": (dict,), "array": (list,), "string": (str,), "number": (int, float),
                                      "integer": (int,), "null": (type(None),)}
IGNORED = {"$schema", "$defs", "title", "description"}
CHECKED = {"$ref", "const", "type", "required", "properties", "additionalProperties", "items", "minimum"}


class SchemaError(ValueError):
    """A record is not what the schema says; the message has the first few places."""


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str = "record") -> Iterator[str]:
    """Where a value departs from a schema.

    Parameters
    ----------
    value : object
        As from `json.loads`.
    schema : dict
        The part of `root` that the value must meet.
    root : dict
    where : str
        The value's place, for the messages.
    """
    unknown = set(schema) - IGNORED - CHECKED
    if unknown:
        raise NotImplementedError(f"{where}: the schema's keywords {sorted(unknown)} are not checked here")
    if "$ref" in schema:
        target: Any = root
        for key in schema["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        yield from problems(value, target, root, where)
    if "const" in schema and value != schema["const"]:
        yield f"{where}: expected {schema['const']!r}, got {value!r}"
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if isinstance(value, bool) or not isinstance(value, tuple(kind for name in names for kind in TYPES[name])):
            yield f"{where}: expected {' or '.join(names)}, got {type(value).__name__}"
            return
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where}: {value} has no place in JSON"
    if "minimum" in schema and isinstance(value, int | float) and not value >= schema["minimum"]:
        yield f"{where}: expected at least {schema['minimum']}, got {value}"
    if isinstance(value, list) and "items" in schema:
        for k, item in enumerate(value):
            yield from problems(item, schema["items"], root, f"{where}[{k}]")
    if isinstance(value, dict):
        for key in schema.get("required", []):
            if key not in value:
                yield f"{where}: {key} is missing"
        known, other = schema.get("properties", {}), schema.get("additionalProperties", {})
        for key, item in value.items():
            if key in known:
                yield from problems(item, known[key], root, f"{where}.{key}")
            elif other is False:
                yield f"{where}: {key} is not known"
            else:
                yield from problems(item, other, root, f"{where}.{key}")


def check(record: Any) -> dict[str, Any]:
    """The record, if it is one.

    Raises
    ------
    SchemaError
    """
    schema = json.loads(SCHEMA.read_text())
    found = list(problems(record, schema, schema))
    if found:
        raise SchemaError("; ".join(found[:5]))
    checked: dict[str, Any] = record
    return checked


def write(path: Path, record: dict[str, Any]) -> None:
    """Check a record and write it."""
    text = json.dumps(check(record), indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def read(path: Path) -> dict[str, Any]:
    """Read a record and check it."""
    return check(json.loads(path.read_text()))
