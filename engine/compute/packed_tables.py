"""Products with tables that stay: a stack of matrices, packed once for the processor.

A general product packs its right-hand matrix anew at every call, which for the few rows of a scene takes four times as
long as the product itself (8 rows through 128 functions of 63 x 63 pixels: 2.3 ms against 0.55). ONNX Runtime packs the
constants of a graph when it loads it. A graph holds the products of a stack; it is written here in the few fields of
ONNX's protocol buffers that it needs (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), as the engine does
without the onnx package. A band without data is not even packed, and bands of one matrix are one product of all their
rows. The matrices themselves stay where they are, in NumPy's memory; both directions share them. A row's bits do not
depend on how many rows stand beside it.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

FloatArray = NDArray[np.float32]

IR_VERSION, PRODUCT_OPSET = 8, 13
FLOAT, EXTERNAL, INT = 1, 1, 2  # TensorProto.DataType, TensorProto.DataLocation, AttributeProto.AttributeType


class Table:
    """A stack of matrices.

    Thread-safe; packed when it is first used.

    Parameters
    ----------
    matrix : float32 (n, i, j)
        Contiguous; not to be changed.
    transposed : bool
        Multiply by the transposes.
    """

    def __init__(self, matrix: FloatArray, *, transposed: bool = False) -> None:
        n, i, j = matrix.shape
        self.shape = (n, j, i) if transposed else (n, i, j)
        self._matrix, self._transposed = matrix, transposed
        self._order = tuple(range(n))  # of the matrices
        self._parts: dict[tuple[int, ...], Table] = {}  # one for all that are parts of a stack
        self._lock = threading.Lock()
        self._packed: tuple[onnxruntime.InferenceSession, list[list[slice]]] | None = None

    def __call__(self, rows: FloatArray) -> FloatArray:
        """Multiply rows by every matrix, on one thread.

        Parameters
        ----------
        rows : float32 (n, m, i)
            Any number m.

        Returns
        -------
        float32 (n, m, j)
        """
        return multiply(rows, self)

    def part(self, chosen: Sequence[int]) -> Table:
        """Some of the matrices, some perhaps several times; equal parts are packed once."""
        order = tuple(self._order[k] for k in chosen)
        with self._lock:
            if order not in self._parts:
                part = copy.copy(self)
                part.shape = (len(order), *self.shape[1:])
                part._order, part._packed = order, None
                self._parts[order] = part
            return self._parts[order]

    def packed(self) -> tuple[onnxruntime.InferenceSession, list[list[slice]]]:
        """The graph, made at the first call, and the runs of places in the stack that each of its products serves."""
        with self._lock:
            if self._packed is None:
                distinct = sorted(set(self._order))
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = options.inter_op_num_threads = 1
                options.enable_cpu_mem_arena = False
                # views of the array, which lives as long as this object
                options.add_external_initializers([f"matrix{k}" for k in range(len(distinct))],
                                                  [OrtValue.ortvalue_from_numpy(self._matrix[d]) for d in distinct])
                model = _model(len(distinct), self._matrix.shape[1:], self._transposed)
                session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
                self._packed = session, [_runs([k for k, d in enumerate(self._order) if d == one]) for one in distinct]
            return self._packed


def _runs(places: list[int]) -> list[slice]:
    """Consecutive ones of ascending numbers."""
    breaks = [k for k in range(1, len(places)) if places[k] != places[k - 1] + 1]
    return [slice(places[a], places[b - 1] + 1) for a, b in zip([0, *breaks], [*breaks, len(places)], strict=True)]


def multiply(rows: FloatArray, table: Table) -> FloatArray:
    """Rows (n, m, i) times a table; see `Table.__call__`."""
    n, i, j = table.shape
    out = np.empty((n, rows.shape[1], j), np.float32)
    if not out.size or not i:
        out[...] = 0
        return out
    rows = np.ascontiguousarray(rows, np.float32)
    session, products = table.packed()
    binding = session.io_binding()
    scattered = []
    for k, runs in enumerate(products):
        # values are views of the arrays; binding pointers instead takes three times as long
        if len(runs) == 1:
            given, found = rows[runs[0]].reshape(-1, i), out[runs[0]].reshape(-1, j)
        else:
            given = np.concatenate([rows[run].reshape(-1, i) for run in runs])
            found = np.empty((len(given), j), np.float32)
            scattered.append((runs, found))
        binding.bind_cpu_input(f"rows{k}", given)
        binding.bind_ortvalue_output(f"out{k}", OrtValue.ortvalue_from_numpy(found))
    session.run_with_iobinding(binding)
    for runs, found in scattered:
        out[np.r_[tuple(runs)]] = found.reshape(-1, rows.shape[1], j)
    return out


def _model(n: int, shape: tuple[int, int], transposed: bool) -> bytes:
    """An ONNX model of the products ``out = rows @ matrix``, the matrices given apart."""
    i, j = shape
    kind = _field(4, "MatMul")
    if transposed:
        kind = _field(4, "Gemm") + _field(5, _field(1, "transB") + _field(3, 1) + _field(20, INT))
        i, j = j, i
    stored = b"".join(_field(1, size) for size in shape) + _field(2, FLOAT)
    given = _field(13, _field(1, "location") + _field(2, "memory")) + _field(14, EXTERNAL)
    graph = _field(2, "product")
    for k in range(n):
        graph += _field(1, _field(1, f"rows{k}") + _field(1, f"matrix{k}") + _field(2, f"out{k}") + kind)
        graph += _field(5, stored + _field(8, f"matrix{k}") + given)
        graph += _field(11, _tensor(f"rows{k}", i)) + _field(12, _tensor(f"out{k}", j))
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(2, PRODUCT_OPSET))


def _tensor(name: str, size: int) -> bytes:
    """ValueInfoProto of float32 (m, size)."""
    shape = _field(1, _field(2, "m")) + _field(1, _field(1, size))
    return _field(1, name) + _field(2, _field(1, _field(1, FLOAT) + _field(2, shape)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a protocol buffer: a number, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])
