"""Reader of chosen fields of an Avro record, from untrusted bytes and under a schema that may be untrusted too.

Avro packages trust their input. In fastavro a record type that contains itself overflows the C stack, an array of nulls
that claims 2^60 items never ends, and unwanted fields become objects. This reader compiles a schema once. A run of
unwanted fields becomes one regular expression, which skips a history of detections some twenty times faster than
decoding. Every step consumes at least one byte, types may not contain themselves, and unwanted fields make no objects.
Time and memory are therefore bounded by the message's length. All errors are ValueError.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

MAX_SCHEMA_DEPTH = 24  # types within types
MAX_TYPES = 20_000
MAX_PATTERN = 50_000  # characters of a regular expression; a longer run becomes several expressions
MAX_ITEMS = 100_000  # items of an array or map

# Field name -> True, or a mapping of the same form for a record, a nullable record or an array of records.
Wanted = Mapping[str, Any]

_FLOAT, _DOUBLE = struct.Struct("<f"), struct.Struct("<d")
_LONG = b"(?>[\x80-\xff]{0,9}[\x00-\x7f])"
_PRIMITIVE_PATTERNS = {"null": b"", "boolean": b"[\x00\x01]", "int": _LONG, "long": _LONG,
                       "float": b"(?s:.{4})", "double": b"(?s:.{8})"}
_PRIMITIVES = frozenset(_PRIMITIVE_PATTERNS) | {"bytes", "string"}


class _Type(NamedTuple):
    """A compiled type, with the functions that skip and read its values.

    `pattern` matches exactly one value. It is empty for types without bytes, and None if no regular expression exists.
    """

    pattern: bytes | None
    skip: Callable[[bytes, int], int]
    read: Callable[[bytes, int], tuple[Any, int]]


def compile_record(schema: Any, wanted: Wanted) -> Callable[[bytes, int], tuple[dict[str, Any], int]]:
    """Return a function that reads the wanted fields of a record.

    Parameters
    ----------
    schema : dict
        Avro schema of a record, parsed from JSON. Logical types, aliases and defaults are ignored.
    wanted : mapping
        Names of the fields to read. A mapping instead of True names the fields of a record, of the records of a union,
        or of the items of an array. Fields that the schema lacks are left out.

    Returns
    -------
    callable
        A function (bytes, start) -> (fields by name, end), which raises ValueError.

    Raises
    ------
    ValueError
        The schema is invalid, recursive, too deep or too large.
    """
    if not isinstance(schema, dict) or schema.get("type") not in ("record", "error"):
        raise ValueError("schema: expected an Avro record")
    try:
        return _Compiler().compile(schema, wanted, "", 0).read
    except (re.error, OverflowError, RecursionError, TypeError, AttributeError) as error:
        raise ValueError(f"schema: {error}") from error


def read_long(data: bytes, at: int) -> tuple[int, int]:
    """Read a zigzag varint of at most 64 bits; return its value and the position after it."""
    shift = number = 0
    while True:
        if at >= len(data):
            raise ValueError("the message ends early")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >> 64:
                raise ValueError("an integer of more than 64 bits")
            return (number >> 1) ^ -(number & 1), at
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    """Read a length and as many bytes; return the bytes and the position after them."""
    length, at = read_long(data, at)
    if not 0 <= length <= len(data) - at:
        raise ValueError(f"{length} bytes announced, {len(data) - at} left")
    return data[at : at + length], at + length


class _Compiler:
    def __init__(self) -> None:
        self.named: dict[str, Any] = {}
        self.open: set[str] = set()
        self.skipped: dict[str, _Type] = {}
        self.n_type = 0

    def compile(self, schema: Any, wanted: Any, space: str, depth: int) -> _Type:
        self.n_type += 1
        if depth > MAX_SCHEMA_DEPTH or self.n_type > MAX_TYPES:
            raise ValueError("schema: too deep or too large")
        if isinstance(schema, list):
            return self._union(schema, wanted, space, depth)
        kind = schema if isinstance(schema, str) else schema.get("type") if isinstance(schema, dict) else None
        if isinstance(kind, list | dict):
            return self.compile(kind, wanted, space, depth + 1)
        if not isinstance(kind, str):
            raise ValueError(f"schema: expected a type, got {str(schema)[:40]!r}")
        if kind in _PRIMITIVES:
            return _primitive(kind)
        if kind in ("array", "map") and isinstance(schema, dict):
            key = "items" if kind == "array" else "values"
            if key not in schema:
                raise ValueError(f"schema: {kind} without {key}")
            return _collection(kind, self.compile(schema[key], wanted, space, depth + 1))
        if kind in ("record", "error", "enum", "fixed") and isinstance(schema, dict):
            name = _full_name(schema.get("name"), schema.get("namespace"), space)
            self.named[name] = schema
            return self._named(name, wanted, depth)
        for name in (f"{space}.{kind}", kind):  # a bare name is first looked up in the enclosing namespace
            if name in self.named:
                return self._named(name, wanted, depth)
        raise ValueError(f"schema: unknown type {kind[:80]!r}")

    def _named(self, name: str, wanted: Any, depth: int) -> _Type:
        if name in self.open:
            raise ValueError(f"schema: type {name[:80]!r} holds itself")
        if not wanted and name in self.skipped:
            return self.skipped[name]
        schema = self.named[name]
        self.open.add(name)
        if schema["type"] == "fixed":
            compiled = _fixed(schema.get("size"))
        elif schema["type"] == "enum":
            compiled = _enum(schema.get("symbols"))
        else:
            compiled = self._record(schema, wanted, name.rpartition(".")[0], depth)
        self.open.remove(name)
        if not wanted:
            self.skipped[name] = compiled
        return compiled

    def _record(self, schema: Any, wanted: Any, space: str, depth: int) -> _Type:
        fields = schema.get("fields")
        if not isinstance(fields, list) or not all(isinstance(f, dict) and "type" in f for f in fields):
            raise ValueError("schema: a record without fields")
        wanted = wanted if isinstance(wanted, Mapping) else {}
        kept = [(str(field.get("name")), wanted.get(field.get("name"), False)) for field in fields]
        types = [self.compile(field["type"], want, space, depth + 1)
                 for field, (_, want) in zip(fields, kept, strict=True)]
        patterns = [t.pattern for t in types]
        joined = b"".join(p for p in patterns if p is not None)
        pattern = joined if None not in patterns and len(joined) <= MAX_PATTERN else None
        skips = _runs(types)
        steps = []
        first = 0
        for i, (name, want) in enumerate(kept):
            if want:
                steps.append((_runs(types[first:i]), name, types[i].read))
                first = i + 1
        rest = _runs(types[first:])

        def skip(data: bytes, at: int) -> int:
            for step in skips:
                at = step(data, at)
            return at

        def read(data: bytes, at: int) -> tuple[dict[str, Any], int]:
            record = {}
            for before, name, value in steps:
                for step in before:
                    at = step(data, at)
                record[name], at = value(data, at)
            for step in rest:
                at = step(data, at)
            return record, at

        return _Type(pattern, skip, read)

    def _union(self, branches: Sequence[Any], wanted: Any, space: str, depth: int) -> _Type:
        if not 1 <= len(branches) <= 64 or any(isinstance(b, list) for b in branches):
            raise ValueError("schema: a union of none, of more than 64, or of unions")
        types = [self.compile(b, wanted, space, depth + 1) for b in branches]
        patterns = [t.pattern for t in types]
        pattern: bytes | None = None
        if None not in patterns and sum(len(p or b"") for p in patterns) <= MAX_PATTERN:
            pattern = b"(?:" + b"|".join(re.escape(bytes([2 * i])) + (p or b"") for i, p in enumerate(patterns)) + b")"

        def branch(data: bytes, at: int) -> tuple[_Type, int]:
            index, at = read_long(data, at)
            if not 0 <= index < len(types):
                raise ValueError(f"branch {index} of a union of {len(types)}")
            return types[index], at

        def skip(data: bytes, at: int) -> int:
            chosen, at = branch(data, at)
            return chosen.skip(data, at)

        def read(data: bytes, at: int) -> tuple[Any, int]:
            chosen, at = branch(data, at)
            return chosen.read(data, at)

        return _Type(pattern, skip, read)


def _full_name(name: Any, namespace: Any, space: str) -> str:
    if not isinstance(name, str):
        raise ValueError("schema: a type without a name")
    space = namespace if isinstance(namespace, str) else space
    return name if "." in name or not space else f"{space}.{name}"


def _matcher(pattern: bytes) -> Callable[[bytes, int], int]:
    match = re.compile(pattern, re.DOTALL).match

    def skip(data: bytes, at: int) -> int:
        found = match(data, at)
        if found is None:
            raise ValueError("the message ends early, or is not of its schema")
        return found.end()

    return skip


def _runs(types: Iterable[_Type]) -> list[Callable[[bytes, int], int]]:
    """Return steps that skip values one after the other. Neighbours with patterns are joined into one step."""
    steps: list[Callable[[bytes, int], int]] = []
    run = b""
    for one in types:
        if one.pattern is not None and len(run) + len(one.pattern) <= MAX_PATTERN:
            run += one.pattern
            continue
        if run:
            steps.append(_matcher(run))
        run = one.pattern or b""
        if one.pattern is None:
            steps.append(one.skip)
    return [*steps, _matcher(run)] if run else steps


def _primitive(kind: str) -> _Type:
    pattern = _PRIMITIVE_PATTERNS.get(kind)

    def skip_bytes(data: bytes, at: int) -> int:
        length, at = read_long(data, at)
        if not 0 <= length <= len(data) - at:
            raise ValueError(f"{length} bytes announced, {len(data) - at} left")
        return at + length

    def read(data: bytes, at: int) -> tuple[Any, int]:
        if kind == "null":
            return None, at
        if kind in ("int", "long"):
            return read_long(data, at)
        if kind in ("float", "double"):
            layout = _FLOAT if kind == "float" else _DOUBLE
            if at + layout.size > len(data):
                raise ValueError("the message ends early")
            return layout.unpack_from(data, at)[0], at + layout.size
        if kind == "boolean":
            if data[at : at + 1] not in (b"\x00", b"\x01"):
                raise ValueError("a boolean that is neither")
            return data[at] == 1, at + 1
        value, at = read_bytes(data, at)
        return (value if kind == "bytes" else value.decode()), at

    return _Type(pattern, skip_bytes if pattern is None else _matcher(pattern), read)


def _fixed(size: Any) -> _Type:
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= 1 << 20:
        raise ValueError("schema: fixed of a size that is none, or above 1 MiB")
    pattern = b"(?s:.{%d})" % size if size else b""

    def read(data: bytes, at: int) -> tuple[Any, int]:
        if at + size > len(data):
            raise ValueError("the message ends early")
        return data[at : at + size], at + size

    return _Type(pattern, _matcher(pattern), read)


def _enum(symbols: Any) -> _Type:
    if not isinstance(symbols, list) or not symbols:
        raise ValueError("schema: an enum without symbols")

    def read(data: bytes, at: int) -> tuple[Any, int]:
        index, at = read_long(data, at)
        if not 0 <= index < len(symbols):
            raise ValueError(f"symbol {index} of an enum of {len(symbols)}")
        return symbols[index], at

    return _Type(_LONG, _matcher(_LONG), read)


def _collection(kind: str, items: _Type) -> _Type:
    if kind == "array" and items.pattern == b"":
        raise ValueError("schema: an array of items without bytes")
    key = _primitive("string").skip

    def blocks(data: bytes, at: int, each: Callable[[bytes, int], int], whole: bool) -> int:
        total = 0
        while True:
            count, at = read_long(data, at)
            if count == 0:
                return at
            total += abs(count)
            if total > MAX_ITEMS:
                raise ValueError(f"{kind} of more than {MAX_ITEMS} items")
            if count < 0:
                size, at = read_long(data, at)
                if not 0 < size <= len(data) - at:
                    raise ValueError(f"a block of {size} bytes announced, {len(data) - at} left")
                if whole:
                    at += size
                    continue
            for _ in range(abs(count)):
                at = each(data, at)

    def skip_item(data: bytes, at: int) -> int:
        return items.skip(data, at if kind == "array" else key(data, at))

    def skip(data: bytes, at: int) -> int:
        return blocks(data, at, skip_item, True)

    def read(data: bytes, at: int) -> tuple[Any, int]:
        values: list[Any] = []

        def append(data: bytes, at: int) -> int:
            value, at = items.read(data, at if kind == "array" else key(data, at))
            values.append(value)
            return at

        at = blocks(data, at, append, False)
        return values, at

    return _Type(None, skip, read)
