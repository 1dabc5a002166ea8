"""Products with tables that stay: a stack of matrices, packed once for the processor.

A general product packs its right-hand matrix anew at every call, which for the few rows of a scene takes four times as
long as the product itself (8 rows through 128 functions of 63 x 63 pixels: 2.3 ms against 0.55). ONNX Runtime packs the
constants of a graph when it loads it. A graph holds one product; it is written here in the few fields of ONNX's
protocol buffers that it needs (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), as the engine does without the
onnx package. Each matrix has its own, so that a band without data is not even packed. The matrices themselves stay
where they are, in NumPy's memory; both directions share them. A row's bits do not depend on how many rows stand beside
it.
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

IR_VERSION, OPSET = 8, 13
FLOAT, EXTERNAL, INT = 1, 1, 2  # TensorProto.DataType, TensorProto.DataLocation, AttributeProto.AttributeType


class Table:
    """A stack of matrices.

    Thread-safe; each matrix is packed when it is first used.

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
        self._matrices = [_Packed(one, transposed) for one in matrix]

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
        """Some of the matrices, which are packed once for all parts."""
        part = copy.copy(self)
        part.shape = (len(chosen), *self.shape[1:])
        part._matrices = [self._matrices[k] for k in chosen]
        return part

    def packed(self) -> list[onnxruntime.InferenceSession]:
        """The graphs, made at the first call."""
        return [matrix.session() for matrix in self._matrices]


class _Packed:
    """One matrix, and its graph when that is needed."""

    def __init__(self, matrix: FloatArray, transposed: bool) -> None:
        self._matrix, self._transposed = matrix, transposed
        self._session: onnxruntime.InferenceSession | None = None
        self._lock = threading.Lock()

    def session(self) -> onnxruntime.InferenceSession:
        with self._lock:
            if self._session is None:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = options.inter_op_num_threads = 1
                options.enable_cpu_mem_arena = False
                # a view of the array, which lives as long as this object
                options.add_external_initializers(["matrix"], [OrtValue.ortvalue_from_numpy(self._matrix)])
                self._session = onnxruntime.InferenceSession(_model(self._matrix.shape, self._transposed), options,
                                                             providers=["CPUExecutionProvider"])
            return self._session


def multiply(rows: FloatArray, table: Table) -> FloatArray:
    """Rows (n, m, i) times a table; see `Table.__call__`."""
    n, i, j = table.shape
    out = np.empty((n, rows.shape[1], j), np.float32)
    if not out.size or not i:
        out[...] = 0
        return out
    rows = np.ascontiguousarray(rows, np.float32)
    for k, session in enumerate(table.packed()):
        binding = session.io_binding()
        # values are views of the arrays; binding pointers instead takes three times as long
        binding.bind_cpu_input("rows", rows[k])
        binding.bind_ortvalue_output("out", OrtValue.ortvalue_from_numpy(out[k]))
        session.run_with_iobinding(binding)
    return out


def _model(shape: tuple[int, ...], transposed: bool) -> bytes:
    """An ONNX model of the product ``out = rows @ matrix``, the matrix given apart."""
    i, j = shape
    kind = _field(4, "MatMul")
    if transposed:
        kind = _field(4, "Gemm") + _field(5, _field(1, "transB") + _field(3, 1) + _field(20, INT))
        i, j = j, i
    stored = b"".join(_field(1, size) for size in shape) + _field(2, FLOAT)
    node = _field(1, _field(1, "rows") + _field(1, "matrix") + _field(2, "out") + kind)
    given = _field(13, _field(1, "location") + _field(2, "memory")) + _field(14, EXTERNAL)
    constant = _field(5, stored + _field(8, "matrix") + given)
    graph = node + _field(2, "product") + constant + _field(11, _tensor("rows", i)) + _field(12, _tensor("out", j))
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(2, OPSET))


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
