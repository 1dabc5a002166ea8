"""Products with tables that stay: a stack of matrices, packed once for the processor.

A general product packs its right-hand matrix anew at every call, which for the few rows of a scene takes four times as
long as the product itself (8 rows through 128 functions of 63 x 63 pixels: 2.3 ms against 0.55). ONNX Runtime packs the
constants of a graph when it loads it. The graph is one product a matrix; it is written here in the few fields of ONNX's
protocol buffers that it needs (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), as the engine does without the
onnx package. The matrices themselves stay where they are, in NumPy's memory; both directions share them. A row's bits
do not depend on how many rows stand beside it.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

FloatArray = NDArray[np.float32]

IR_VERSION, OPSET = 8, 13
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
        self._matrix, self._transposed = matrix, transposed
        n, i, j = matrix.shape
        self.shape = (n, j, i) if transposed else (n, i, j)
        self._session: onnxruntime.InferenceSession | None = None
        self._lock = threading.Lock()

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

    def part(self, chosen: Sequence[int]) -> TablePart:
        """Some of the matrices, which are packed once for all parts."""
        return TablePart(self, tuple(chosen))

    def packed(self) -> onnxruntime.InferenceSession:
        """The graph, made at the first call."""
        with self._lock:
            if self._session is None:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = options.inter_op_num_threads = 1
                options.enable_cpu_mem_arena = False
                # values are views of the arrays, which live as long as this object
                options.add_external_initializers(
                    [f"matrix{b}" for b in range(len(self._matrix))],
                    [OrtValue.ortvalue_from_numpy(matrix) for matrix in self._matrix])
                self._session = onnxruntime.InferenceSession(_model(self._matrix.shape, self._transposed), options,
                                                             providers=["CPUExecutionProvider"])
            return self._session


@dataclasses.dataclass(frozen=True)
class TablePart:
    """Some matrices of a table, to be used as a table is.

    Attributes
    ----------
    table : Table
    chosen : tuple of int
    """

    table: Table
    chosen: tuple[int, ...]

    def __call__(self, rows: FloatArray) -> FloatArray:
        """Multiply rows (n_chosen, m, i) by every chosen matrix; see `Table.__call__`."""
        return multiply(rows, self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """As of a table."""
        return (len(self.chosen), *self.table.shape[1:])

    def part(self, chosen: Sequence[int]) -> TablePart:
        """Some of these."""
        return TablePart(self.table, tuple(self.chosen[k] for k in chosen))


def multiply(rows: FloatArray, table: Table | TablePart) -> FloatArray:
    """Rows (n, m, i) times a table, or times a part of one; see `Table.__call__`."""
    n, i, j = table.shape
    whole, chosen = (table.table, table.chosen) if isinstance(table, TablePart) else (table, tuple(range(n)))
    out = np.empty((n, rows.shape[1], j), np.float32)
    if not out.size or not i:
        out[...] = 0
        return out
    rows = np.ascontiguousarray(rows, np.float32)
    session = whole.packed()
    binding = session.io_binding()
    # values are views of the arrays; binding pointers instead takes three times as long
    for k, b in enumerate(chosen):
        binding.bind_cpu_input(f"rows{b}", rows[k])
        binding.bind_ortvalue_output(f"out{b}", OrtValue.ortvalue_from_numpy(out[k]))
    if n < whole.shape[0]:  # a graph runs whole: the other matrices multiply no rows
        no_row, nothing = rows[0, :0], OrtValue.ortvalue_from_numpy(out[0, :0])
        for b in set(range(whole.shape[0])).difference(chosen):
            binding.bind_cpu_input(f"rows{b}", no_row)
            binding.bind_ortvalue_output(f"out{b}", nothing)
    session.run_with_iobinding(binding)
    return out


def _model(shape: tuple[int, ...], transposed: bool) -> bytes:
    """An ONNX model of the products ``out{b} = rows{b} @ matrix[b]``, the matrices given apart."""
    n, i, j = shape
    numbers = range(n)
    kind = _field(4, "MatMul")
    if transposed:
        kind = _field(4, "Gemm") + _field(5, _field(1, "transB") + _field(3, 1) + _field(20, INT))
        i, j = j, i
    stored = b"".join(_field(1, size) for size in shape[1:]) + _field(2, FLOAT)
    nodes = [_field(1, _field(1, f"rows{b}") + _field(1, f"matrix{b}") + _field(2, f"out{b}") + kind) for b in numbers]
    given = _field(13, _field(1, "location") + _field(2, "memory")) + _field(14, EXTERNAL)
    constants = [_field(5, stored + _field(8, f"matrix{b}") + given) for b in numbers]
    inputs = [_field(11, _tensor(f"rows{b}", f"m{b}", i)) for b in numbers]
    outputs = [_field(12, _tensor(f"out{b}", f"m{b}", j)) for b in numbers]
    graph = b"".join([*nodes, _field(2, "products"), *constants, *inputs, *outputs])
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(2, OPSET))


def _tensor(name: str, count: str, size: int) -> bytes:
    """ValueInfoProto of float32 (count, size), the count a symbol."""
    shape = _field(1, _field(2, count)) + _field(1, _field(1, size))
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
