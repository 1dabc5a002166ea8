"""Protobuf's wire format as a tree, to damage an ONNX file and keep its lengths right."""

from __future__ import annotations

from typing import Any

Field = list[Any]  # number, wire type, value: int, bytes, or a list of fields

# Paths of field numbers in an ONNX file whose values are messages.
MESSAGES = {(7,), (8,), (7, 1), (7, 5), (7, 11), (7, 12), (7, 1, 5), (7, 1, 5, 5), (7, 11, 2), (7, 12, 2),
            (7, 11, 2, 1), (7, 12, 2, 1), (7, 11, 2, 1, 2), (7, 12, 2, 1, 2)}


def decode(content: bytes, path: tuple[int, ...] = ()) -> list[Field]:
    """The fields of a valid message."""
    fields: list[Field] = []
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(content, at)
            fields.append([number, wire, value])
            continue
        length = 4
        if wire == 2:
            length, at = _varint(content, at)
        inner = content[at : at + length]
        here = (*path, number)
        fields.append([number, wire, decode(inner, here) if here in MESSAGES else inner])
        at += length
    return fields


def encode(fields: list[Field]) -> bytes:
    """The message of any fields."""
    out = bytearray()
    for number, wire, value in fields:
        out += _bytes(number << 3 | wire)
        if isinstance(value, int):
            out += _bytes(value)
        else:
            inner = encode(value) if isinstance(value, list) else value
            out += (_bytes(len(inner)) if wire == 2 else b"") + inner
    return bytes(out)


def shrunk(fields: list[Field], n_node: int) -> list[Field]:
    """A model with its first nodes only; its large tensors are cut to one number."""
    model = [f for f in fields if f[0] != 7]
    graph = next(f[2] for f in fields if f[0] == 7)
    nodes = [f for f in graph if f[0] == 1][:n_node]
    used = {f[2] for node in nodes for f in node[2] if f[0] == 1}
    kept = [f for f in graph if f[0] not in (1, 5)]
    for tensor in (f for f in graph if f[0] == 5):
        body = tensor[2]
        if next(f[2] for f in body if f[0] == 8) not in used:
            continue
        if len(next((f[2] for f in body if f[0] == 9), b"")) > 200:
            body = [f for f in body if f[0] not in (1, 9)] + [[1, 0, 1], [9, 2, bytes(4)]]
        kept.append([5, 2, body])
    return [*model, [7, 2, nodes + kept]]


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _bytes(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)
