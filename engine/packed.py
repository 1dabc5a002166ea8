"""Products with tables that stay: a stack of matrices, packed once for the processor.

A general product packs its right-hand matrix anew at every call, which for the few rows of a scene takes four times as
long as the product itself (8 rows through 128 functions of 63 x 63 pixels: 2.3 ms against 0.55). ONNX Runtime packs the
constants of a graph when it loads it. The graph is one product a matrix; it is written here in the few fields of ONNX's
protocol buffers that it needs (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), as the engine does without the
onnx package. A row's bits do not depend on how many rows stand beside it.
"""

from __future__ import annotations

import threading

import numpy as np
import onnxruntime
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

IR_VERSION, OPSET = 8, 13
FLOAT = 1  # TensorProto.DataType


class Table:
    """A stack of matrices.

    Thread-safe; packed when it is first used.

    Parameters
    ----------
    matrix : float32 (n, i, j)
        Read when packed.
    """

    def __init__(self, matrix: FloatArray) -> None:
        self.shape = matrix.shape
        self._matrix: FloatArray | None = matrix
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
        n, i, j = self.shape
        m = rows.shape[1]
        out = np.empty((n, m, j), np.float32)
        if not out.size or not i:
            out[...] = 0
            return out
        rows = np.ascontiguousarray(rows, np.float32)
        session = self._packed()
        binding = session.io_binding()
        for b in range(n):
            binding.bind_input(f"rows{b}", "cpu", 0, np.float32, (m, i), rows[b].ctypes.data)
            binding.bind_output(f"out{b}", "cpu", 0, np.float32, (m, j), out[b].ctypes.data)
        session.run_with_iobinding(binding)
        return out

    def _packed(self) -> onnxruntime.InferenceSession:
        with self._lock:
            if self._session is None:
                assert self._matrix is not None
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = options.inter_op_num_threads = 1
                options.enable_cpu_mem_arena = False
                self._session = onnxruntime.InferenceSession(_model(self._matrix), options,
                                                             providers=["CPUExecutionProvider"])
                self._matrix = None
            return self._session


def _model(matrix: FloatArray) -> bytes:
    """An ONNX model of the products ``out{b} = rows{b} @ matrix[b]``."""
    n, i, j = matrix.shape
    numbers = range(n)
    nodes = [_field(1, _field(1, f"rows{b}") + _field(1, f"matrix{b}") + _field(2, f"out{b}") + _field(4, "MatMul"))
             for b in numbers]
    constants = [_field(5, _field(1, i) + _field(1, j) + _field(2, FLOAT) + _field(8, f"matrix{b}")
                        + _field(9, np.ascontiguousarray(matrix[b], "<f4").tobytes())) for b in numbers]
    inputs = [_field(11, _tensor(f"rows{b}", i)) for b in numbers]
    outputs = [_field(12, _tensor(f"out{b}", j)) for b in numbers]
    graph = b"".join([*nodes, _field(2, "products"), *constants, *inputs, *outputs])
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
