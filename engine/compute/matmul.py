"""Matrix products on one thread, whose bits depend on the operands alone.

NumPy's BLAS changes the last bits of a row with its thread count and with the number of rows, and only a process-wide
switch could stop it. ONNX Runtime on one thread is as fast and gives a row the same bits, whatever the other rows are.
In `matmul` that holds from 3 rows on: a single row takes another path. On one thread it starts no other threads.

`matmul` multiplies any two matrices. It packs its right-hand matrix anew at every call. For the few rows of a scene,
packing makes a product four times as slow (8 rows through 128 functions of 63 x 63 pixels: 2.3 ms against 0.55).
`PackedMatrices` is for matrices that are used again: ONNX Runtime packs the constants of a graph when it loads it.

The graphs are written here, in the few fields of ONNX's protocol buffers that they need
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto): the engine does without the onnx package.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Sequence

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from deblendrt.engine.units import FloatArray

IR_VERSION, PRODUCT_OPSET = 8, 13
FLOAT, EXTERNAL, INT = 1, 1, 2  # TensorProto.DataType, TensorProto.DataLocation, AttributeProto.AttributeType


def matmul(a: FloatArray, b: FloatArray) -> FloatArray:
    """Batched matrix product on one thread.

    Parameters
    ----------
    a : float32 (n, i, j)
    b : float32 (n, j, k)

    Returns
    -------
    float32 (n, i, k)
    """
    return _general_product().run(None, {"a": a, "b": b})[0]


@functools.cache
def _general_product() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(_general_model(), _options(), providers=["CPUExecutionProvider"])


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    return options


class PackedMatrices:
    """A stack of matrices, packed for the processor at the first product.

    A matrix that occurs several times in the stack is packed once, and all its rows are one product. The matrices stay
    in NumPy's memory, which a stack and its transposed stack may share. Thread-safe.

    Parameters
    ----------
    matrix : float32 (n, i, j)
        Contiguous. It must not change afterwards.
    transposed : bool
        Multiply by the transposes.
    """

    def __init__(self, matrix: FloatArray, *, transposed: bool = False) -> None:
        n, i, j = matrix.shape
        self.shape = (n, j, i) if transposed else (n, i, j)
        self._matrix, self._transposed = matrix, transposed
        self._order = tuple(range(n))  # numbers of the matrices
        self._parts: dict[tuple[int, ...], PackedMatrices] = {}
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

    def part(self, chosen: Sequence[int]) -> PackedMatrices:
        """Return a stack of some of the matrices, which may repeat; equal parts of a stack are packed once.

        A part has parts of its own: with a dict that all share, it would hold itself, and with it 100 MB of tables.
        """
        order = tuple(self._order[k] for k in chosen)
        if order == self._order:
            return self
        with self._lock:
            if order not in self._parts:
                part = copy.copy(self)
                part._parts = {}
                part.shape = (len(order), *self.shape[1:])
                part._order, part._packed = order, None
                self._parts[order] = part
            return self._parts[order]

    def packed(self) -> tuple[onnxruntime.InferenceSession, list[list[slice]]]:
        """Return the graph, made at the first call, and for each of its products the places in the stack."""
        with self._lock:
            if self._packed is None:
                distinct = sorted(set(self._order))
                options = _options()
                # views of the array, which lives as long as this object
                options.add_external_initializers([f"matrix{k}" for k in range(len(distinct))],
                                                  [OrtValue.ortvalue_from_numpy(self._matrix[d]) for d in distinct])
                model = _packed_model(len(distinct), self._matrix.shape[1:], self._transposed)
                session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
                self._packed = session, [_runs([k for k, d in enumerate(self._order) if d == one]) for one in distinct]
            return self._packed


def _runs(places: list[int]) -> list[slice]:
    """Turn ascending numbers into slices of consecutive numbers."""
    breaks = [k for k in range(1, len(places)) if places[k] != places[k - 1] + 1]
    return [slice(places[a], places[b - 1] + 1) for a, b in zip([0, *breaks], [*breaks, len(places)], strict=True)]


def multiply(rows: FloatArray, matrices: PackedMatrices) -> FloatArray:
    """Products of rows (n, m, i) with a stack of matrices; see `PackedMatrices.__call__`."""
    n, i, j = matrices.shape
    out = np.empty((n, rows.shape[1], j), np.float32)
    if not out.size or not i:
        out[...] = 0
        return out
    rows = np.ascontiguousarray(rows, np.float32)
    session, products = matrices.packed()
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


def _general_model() -> bytes:
    """An ONNX model of the product ``c = a @ b`` of float32 arrays with three axes."""
    node = _field(1, _field(1, "a") + _field(1, "b") + _field(2, "c") + _field(4, "MatMul"))
    a, b, c = _tensor("a", "n", "i", "j"), _tensor("b", "n", "j", "k"), _tensor("c", "n", "i", "k")
    return _model(node + _field(2, "matmul") + _field(11, a) + _field(11, b) + _field(12, c))


def _packed_model(n: int, shape: tuple[int, int], transposed: bool) -> bytes:
    """An ONNX model of n products ``out = rows @ matrix``, the matrices given apart."""
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
        graph += _field(11, _tensor(f"rows{k}", "m", i)) + _field(12, _tensor(f"out{k}", "m", j))
    return _model(graph)


def _model(graph: bytes) -> bytes:
    """ModelProto of a graph."""
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(2, PRODUCT_OPSET))


def _tensor(name: str, *shape: int | str) -> bytes:
    """ValueInfoProto of a float32 array; its sizes are numbers, or names of sizes that are free."""
    sizes = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, FLOAT) + _field(2, sizes)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a protocol buffer that holds a number, or bytes behind their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """A number in bytes of seven bits, the lowest bits first."""
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])
