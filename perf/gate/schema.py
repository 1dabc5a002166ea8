"""Records of measurements. They are checked against `schema.json` when they are written and when they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA = Path(__file__).with_name("schema.json")


class SchemaError(ValueError):
    """A record departs from the schema; the message names the first few places."""


def check(record: Any) -> dict[str, Any]:
    """The record, if it meets the schema and every number in it is finite.

    Raises
    ------
    SchemaError
    """
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(record)]
    if found:
        raise SchemaError("; ".join(found[:5]))
    try:
        json.dumps(record, allow_nan=False)
    except ValueError as error:
        raise SchemaError(str(error)) from error
    checked: dict[str, Any] = record
    return checked


def write(path: Path, record: dict[str, Any]) -> None:
    """Check a record and write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(check(record), indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Read a record and check it."""
    return check(json.loads(path.read_text()))
