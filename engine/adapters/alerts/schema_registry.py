"""Avro schemas by number: from files, and from a Confluent schema registry."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from deblendrt.engine.adapters.alerts.packets import MAX_SCHEMA_BYTES, Schemas, load_schema
from deblendrt.engine.adapters.alerts.settings import AlertSettings

REGISTRY_TIMEOUT = 10.0  # s


def read_schemas(settings: AlertSettings) -> Schemas:
    """Read the schemas that the settings name.

    Raises
    ------
    ValueError, OSError
        A file is missing, or is no schema.
    """
    by_id = {}
    for number, path in settings.schemas.items():
        if not number.isdecimal():
            raise ValueError(f"schemas: expected numbers, got {number!r}")
        by_id[int(number)] = load_schema(path)
    return Schemas(by_id, load_schema(settings.schema) if settings.schema else None,
                   ask_registry(settings.schema_registry) if settings.schema_registry else None)


def ask_registry(url: str) -> Callable[[int], Any]:
    """Return a function that asks a registry for a schema by its number.

    The function returns None if the registry does not have the schema, and raises OSError if the registry fails.

    Raises
    ------
    ValueError
        The address is not http or https.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"schema_registry: expected an http or https address, got {url!r}")

    def fetch(number: int) -> Any:
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/schemas/ids/{number}", timeout=REGISTRY_TIMEOUT) as reply:
                text = reply.read(MAX_SCHEMA_BYTES + 1)
        except urllib.error.HTTPError as error:
            if error.code in (400, 404, 422):
                return None
            raise
        if len(text) > MAX_SCHEMA_BYTES:
            raise ValueError(f"schema {number}: more than {MAX_SCHEMA_BYTES} bytes")
        try:
            return json.loads(json.loads(text)["schema"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # a fault of the registry
            raise OSError(f"{url}: schema {number}: no schema in the reply") from error

    return fetch
