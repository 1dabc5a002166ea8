"""Check of an ONNX file before ONNX Runtime reads it: it must be a flat graph of known operators with all its data.

The file is read field by field in protobuf's wire format, without the package `onnx`, which the engine does not need.
Everything that is not listed here is refused: data in other files (`external_data`, in initializers and attributes),
graphs inside nodes, functions, training graphs, sparse and typed tensors, and operators of other domains. The field
numbers are those of onnx.proto3. A field of a wrong wire type is refused, so that this reader and protobuf's reader
cannot see different contents.

The numbers of nodes, tensors and attributes are bounded, and so are constants that may be shapes. The amount of
computation is not bounded: a graph of allowed operators may run for long.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from deblendrt.engine.model.manifest import BundleError, GraphSignature

MAX_NODES, MAX_TENSORS, MAX_ATTRIBUTES, MAX_FIELDS = 5000, 5000, 20_000, 200_000
MAX_RANK = 8
MAX_INTEGER, MAX_SHAPE = 2**20, 2**26
"""Limits of integer constants, each of which may be a length, and of the product of a few, which may be a shape."""
OPERATORS = frozenset({
    "Abs", "Add", "Asinh", "Cast", "Concat", "Constant", "Conv", "Cos", "Div", "Erf", "Exp", "Expand", "Flatten",
    "Gather", "Gemm", "Identity", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Pad", "Pow", "Reciprocal", "ReduceSum",
    "Relu", "Reshape", "Shape", "Sigmoid", "Sign", "Sin", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze",
    "Sub", "Sum", "Tanh", "Transpose", "Unsqueeze", "Where",
})
_ITEM_SIZE = {1: 4, 6: 4, 7: 8, 9: 1, 11: 8}  # float32, int32, int64, bool, float64
_INTEGER_FORMATS = {6: "<i", 7: "<q"}
_END_OF_AXIS = {2**63 - 1, -(2**63), 2**31 - 1, -(2**31)}  # in a Slice these mean the end of the axis

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NAMES = {0: "number", 1: "64-bit number", 2: "text, data or a message", 5: "32-bit number"}
# The fields that a message may have, with their wire types. The name of a message stands for a message inside.
_FIELDS: dict[str, dict[int, int | str]] = {
    "ModelProto": {1: _VARINT, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _VARINT, 6: _BYTES, 7: "GraphProto", 8: "Opset",
                   14: "Entry"},
    "Opset": {1: _BYTES, 2: _VARINT},
    "Entry": {1: _BYTES, 2: _BYTES},
    "GraphProto": {1: "NodeProto", 2: _BYTES, 5: "TensorProto", 10: _BYTES, 11: "ValueInfo", 12: "ValueInfo",
                   13: "ValueInfo", 16: "Entry"},
    "NodeProto": {1: _BYTES, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: "Attribute", 6: _BYTES, 7: _BYTES, 9: "Entry"},
    "Attribute": {1: _BYTES, 2: _FIXED32, 3: _VARINT, 4: _BYTES, 5: "TensorProto", 7: _FIXED32, 8: _VARINT, 9: _BYTES,
                  13: _BYTES, 20: _VARINT},
    "TensorProto": {1: _VARINT, 2: _VARINT, 8: _BYTES, 9: _BYTES, 12: _BYTES, 14: _VARINT},
    "ValueInfo": {1: _BYTES, 2: "TypeProto", 3: _BYTES, 4: "Entry"},
    "TypeProto": {1: "TensorType", 6: _BYTES},
    "TensorType": {1: _VARINT, 2: "Shape"},
    "Shape": {1: "Dimension"},
    "Dimension": {1: _VARINT, 2: _BYTES, 3: _BYTES},
}
_PACKED = {("Attribute", 7), ("Attribute", 8), ("TensorProto", 1)}  # repeated numbers that may be stored as a block
_REFUSED = {
    ("ModelProto", 20): "training_info: a graph for training", ("ModelProto", 25): "functions of its own",
    ("GraphProto", 14): "quantization annotations", ("GraphProto", 15): "a sparse initializer",
    ("Attribute", 6): "a graph inside a node", ("Attribute", 11): "graphs inside a node",
    ("Attribute", 10): "several tensors in an attribute", ("Attribute", 22): "a sparse tensor",
    ("Attribute", 23): "sparse tensors", ("TensorProto", 3): "a tensor in segments",
    ("TensorProto", 13): "external data: a tensor that lies in another file", ("TensorProto", 6): "strings",
    **{("TensorProto", number): "a tensor's values other than as raw_data" for number in (4, 5, 7, 10, 11)},
}


@dataclass
class _File:
    """A file, and the counts of its parts."""

    content: bytes
    where: str
    count: dict[str, int] = field(default_factory=dict)

    def refuse(self, what: str) -> BundleError:
        return BundleError(f"{self.where}: {what}")


def check_onnx(content: bytes, where: str, graph: GraphSignature | None = None) -> None:
    """Check that a file is a plain, self-contained ONNX graph.

    Parameters
    ----------
    content : bytes
    where : str
        Begins every error message.
    graph : GraphSignature, optional
        The inputs and outputs that the graph must have; others are refused.

    Raises
    ------
    BundleError
        The file has a part that is not allowed.
    """
    file = _File(content, where)
    graphs: list[tuple[int, int]] = []
    opsets = []
    for number, value in _fields(file, "ModelProto", 0, len(content)):
        if number == 7:
            graphs.append(value)
        elif number == 8:
            opsets.append({n: v for n, v in _fields(file, "Opset", *value)})
        elif number == 14:
            _skim(file, "Entry", value)
    if len(graphs) != 1:
        raise file.refuse(f"not an ONNX file: expected one graph, found {len(graphs)}")
    for opset in opsets:
        _standard(file, opset.get(1, (0, 0)), "opset_import")
    _graph(file, graphs[0], graph)


def _graph(file: _File, span: tuple[int, int], graph: GraphSignature | None) -> None:
    names: dict[int, list[str]] = {11: [], 12: []}
    for number, value in _fields(file, "GraphProto", *span):
        if number == 1:
            _limit(file, "nodes", MAX_NODES)
            _node(file, value)
        elif number == 5:
            _tensor(file, value)
        elif number in (11, 12, 13):
            name = _value_info(file, value)
            names.get(number, []).append(name)
        elif number == 16:
            _skim(file, "Entry", value)
    if graph is not None:
        for number, what, expected in ((11, "inputs", graph.inputs), (12, "outputs", graph.outputs)):
            if sorted(names[number]) != sorted(expected):
                raise file.refuse(f"expected the {what} {list(expected)}, found {names[number][:10]}")


def _node(file: _File, span: tuple[int, int]) -> None:
    operators, attributes = [], []
    for number, value in _fields(file, "NodeProto", *span):
        if number == 4:
            operators.append(_text(file, value))
        elif number == 7:
            _standard(file, value, "a node")
        elif number == 5:
            attributes.append(value)
        elif number == 9:
            _skim(file, "Entry", value)
    if len(operators) != 1 or operators[0] not in OPERATORS:
        raise file.refuse(f"an operator that bundles do not use: {operators[:3]}")
    for attribute in attributes:
        _limit(file, "attributes", MAX_ATTRIBUTES)
        integers = []
        for number, value in _fields(file, "Attribute", *attribute):
            if number == 5:
                _tensor(file, value)
            elif number in (3, 8):
                integers.append(_signed(value))
        _check_integers(file, integers, f"an attribute of {operators[0]}")


def _tensor(file: _File, span: tuple[int, int]) -> None:
    _limit(file, "tensors", MAX_TENSORS)
    shape: list[int] = []
    kinds, data, name = [], [], "a tensor"
    for number, value in _fields(file, "TensorProto", *span):
        if number == 1:
            shape.append(_signed(value))
        elif number == 2:
            kinds.append(value)
        elif number == 8:
            name = f"tensor {_text(file, value)!r}"
        elif number == 9:
            data.append(value)
        elif number == 14 and value != 0:
            raise file.refuse("external data: a tensor that lies in another file")
    if len(kinds) != 1 or kinds[0] not in _ITEM_SIZE:
        raise file.refuse(f"{name}: element type {kinds[:3]}, expected float32, float64, int32, int64 or bool")
    if len(shape) > MAX_RANK or any(not 0 <= n <= len(file.content) for n in shape) or len(data) > 1:
        raise file.refuse(f"{name}: shape {shape[:10]} in a file of {len(file.content)} bytes")
    n_byte = math.prod(shape) * _ITEM_SIZE[kinds[0]]
    start, stop = data[0] if data else (0, 0)
    if n_byte != stop - start:
        raise file.refuse(f"{name}: shape {shape} needs {n_byte} bytes, the file has {stop - start}")
    if kinds[0] in _INTEGER_FORMATS:
        code = _INTEGER_FORMATS[kinds[0]]
        _check_integers(file, [v for v, in struct.iter_unpack(code, file.content[start:stop])], name)


def _check_integers(file: _File, values: list[int], name: str) -> None:
    lengths = [value for value in values if value not in _END_OF_AXIS]
    if any(abs(value) > MAX_INTEGER for value in lengths) or (
            len(lengths) <= MAX_RANK and math.prod(max(value, 1) for value in lengths) > MAX_SHAPE):
        raise file.refuse(f"{name}: integers that make a shape too large: {values[:MAX_RANK]}")


def _value_info(file: _File, span: tuple[int, int]) -> str:
    name = ""
    for number, value in _fields(file, "ValueInfo", *span):
        if number == 1:
            name = _text(file, value)
        elif number == 2:
            _skim(file, "TypeProto", value)
        elif number == 4:
            _skim(file, "Entry", value)
    return name


def _skim(file: _File, message: str, span: tuple[int, int]) -> None:
    """Check the form of a message whose values do not matter."""
    for number, value in _fields(file, message, *span):
        inside = _FIELDS[message][number]
        if isinstance(inside, str):
            _skim(file, inside, value)  # the table has no cycle, so the depth is at most four


def _fields(file: _File, message: str, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a message: the field's number, and its value (int) or the span of its bytes (int, int)."""
    allowed, at = _FIELDS[message], start
    while at < stop:
        _limit(file, "fields", MAX_FIELDS)
        tag, at = _varint(file, at, min(stop, at + 2))  # all field numbers fit in two bytes
        number, wire = tag >> 3, tag & 7
        if (message, number) in _REFUSED:
            raise file.refuse(_REFUSED[message, number])
        expected = allowed.get(number)
        if expected is None:
            raise file.refuse(f"{message} has a field {number} that bundles do not use")
        if wire == _BYTES:
            length, at = _varint(file, at, stop)
            if length > stop - at:
                raise file.refuse(f"not an ONNX file: {message} is cut off")
            if (message, number) in _PACKED:
                yield from ((number, value) for value in _packed(file, expected, at, at + length))
            elif expected == _BYTES or isinstance(expected, str):
                yield number, (at, at + length)
            else:
                raise file.refuse(f"{message}: field {number}: expected a {_NAMES[int(expected)]}")
            at += length
        elif wire != expected:
            raise file.refuse(f"{message}: field {number} has another type than in ONNX")
        elif wire == _VARINT:
            value, at = _varint(file, at, stop)
            yield number, value
        else:
            if stop - at < 4:
                raise file.refuse(f"not an ONNX file: {message} is cut off")
            yield number, 0  # a float: nothing to check
            at += 4


def _packed(file: _File, kind: int | str, at: int, stop: int) -> Iterator[int]:
    if kind == _FIXED32:
        if (stop - at) % 4:
            raise file.refuse("not an ONNX file: a list of floats is cut off")
        return
    while at < stop:
        _limit(file, "fields", MAX_FIELDS)
        value, at = _varint(file, at, stop)
        yield value


def _varint(file: _File, at: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while at < stop and shift < 70:
        byte = file.content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise file.refuse("not an ONNX file: a number that does not end")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _text(file: _File, span: tuple[int, int]) -> str:
    start, stop = span
    return file.content[start : min(stop, start + 200)].decode("ascii", "backslashreplace")


def _standard(file: _File, span: tuple[int, int], what: str) -> None:
    if (domain := _text(file, span)) not in ("", "ai.onnx"):
        raise file.refuse(f"{what} of the operator domain {domain!r}; bundles use the standard operators only")


def _limit(file: _File, what: str, limit: int) -> None:
    file.count[what] = file.count.get(what, 0) + 1
    if file.count[what] > limit:
        raise file.refuse(f"more than {limit} {what}")
