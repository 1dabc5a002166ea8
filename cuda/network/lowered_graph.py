"""Lowers an ONNX graph to steps on flat buffers.

The number of sources is fixed, so every shape is known when the graph is read. Constants are folded. Operators that
only choose, repeat or reorder elements become `View`s and cost nothing. The steps are elementwise operations (`Map`),
matrix products, sums and softmaxes along an axis, and convolutions. Operators that no bundle needs are not implemented;
they raise `DeviceError` with the operator's name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from deblendrt.cuda.driver.device import DeviceError
from deblendrt.cuda.driver.driver import GPU_INSTALL
from deblendrt.cuda.network.steps import (
    ELEMENTWISE,
    Array,
    Buffer,
    Convolution,
    Map,
    Matmul,
    Reduce,
    Step,
    reads,
)
from deblendrt.cuda.network.views import View, contiguous_strides, whole


class LoweredGraph:
    """A lowered ONNX graph.

    Parameters
    ----------
    content : bytes
        A self-contained ONNX file with standard operators. Its only dynamic axis is the first axis of its inputs.
    n_source : int
        Length of that axis.

    Attributes
    ----------
    steps : list of Step
        In an order that can be run.
    buffers : list of Buffer
    constants : dict of int to float32 array
        Contents of the constant buffers.
    inputs, outputs : dict of str to tuple of int
        Shapes.

    Raises
    ------
    DeviceError
        The content is no graph, an operator or a use of it is not implemented, or `onnx` is missing.
    """

    def __init__(self, content: bytes, n_source: int) -> None:
        onnx = import_onnx()
        try:
            proto = onnx.load_from_string(content)
        except Exception as error:  # an exception of protobuf, which onnx does not specify
            raise DeviceError(f"not an ONNX graph: {error}") from error
        self.n_source = n_source
        self.steps: list[Step] = []
        self.buffers: list[Buffer] = []
        self.constants: dict[int, Array] = {}
        self._uploaded: dict[tuple[tuple[int, ...], bytes], View] = {}
        # float64, so that folded constants are rounded once
        self._values: dict[str, View | Array] = {
            tensor.name: _widened(onnx.numpy_helper.to_array(tensor)) for tensor in proto.graph.initializer}
        self.inputs = {value.name: self._shape_of(value) for value in proto.graph.input}
        self.outputs = {value.name: self._shape_of(value) for value in proto.graph.output}
        for i, (name, shape) in enumerate(self.inputs.items()):
            self._values[name] = whole(self._buffer(math.prod(shape), "input", i), shape)
        for node in proto.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if "value" in attributes:
                attributes["value"] = onnx.numpy_helper.to_array(attributes["value"])
            self._lower(node.op_type, list(node.input), list(node.output), attributes)
        for i, name in enumerate(self.outputs):
            self._deliver(i, name)
        self._write_in_place()
        self._drop_unused()

    def _shape_of(self, value: Any) -> tuple[int, ...]:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.elem_type != 1:  # FLOAT
            raise DeviceError(f"input or output {value.name!r} is not float32")
        if not dims or dims[0].dim_value or not all(d.dim_value for d in dims[1:]):
            raise DeviceError(f"input or output {value.name!r}: expected its first axis, and no other, to be dynamic")
        return (self.n_source, *(int(d.dim_value) for d in dims[1:]))

    def _buffer(self, size: int, place: str = "arena", index: int = 0) -> int:
        self.buffers.append(Buffer(size, place, index))
        return len(self.buffers) - 1

    def _new(self, shape: tuple[int, ...]) -> View:
        return whole(self._buffer(math.prod(shape)), shape)

    def _lower(self, op: str, names: list[str], outputs: list[str], attributes: dict[str, Any]) -> None:
        values = [self._values[name] if name else None for name in names]
        method = getattr(self, f"_{op.lower()}", None) if op in _OPERATORS else None
        if method is None and op not in ELEMENTWISE:
            raise DeviceError(f"the graph's operator {op} is not implemented on the GPU")
        try:
            results = method(*values, **attributes) if method else self._elementwise(op, *values)
        except TypeError as error:  # an attribute or an input that the method does not have
            raise DeviceError(f"the graph's operator {op} is used in a way that is not implemented: {error}") from error
        results = results if isinstance(results, list) else [results]
        self._values |= dict(zip(outputs, results, strict=True))

    # Elementwise

    def _elementwise(self, op: str, *values: View | Array | None) -> View | Array:
        if all(isinstance(value, np.ndarray) for value in values):
            return np.asarray(ELEMENTWISE[op](*values))
        shape = np.broadcast_shapes(*(value.shape for value in values if value is not None))
        operands: list[View | float] = []
        for value in values:
            if isinstance(value, np.ndarray) and value.size and (value == value.flat[0]).all():
                operands.append(float(value.flat[0]))
            else:
                operands.append(self._view(value).broadcast(shape))
        out = self._new(shape)
        self.steps.append(Map(op, operands, out))
        return out

    def _sum(self, *values: Any) -> View | Array:
        total = values[0]
        for value in values[1:]:
            total = self._elementwise("Add", total, value)
        return total

    def _max(self, *values: Any) -> View | Array:
        largest = values[0]
        for value in values[1:]:
            largest = self._elementwise("Max", largest, value)
        return largest

    def _cast(self, x: Any, *, to: int) -> View | Array:
        if isinstance(x, np.ndarray):
            return x.astype({1: np.float64, 6: np.int64, 7: np.int64, 11: np.float64}[to])
        if to != 1:
            raise TypeError("a cast of a tensor to another type than float32")
        return x

    # Shapes

    def _constant(self, *, value: Any) -> Array:
        return _widened(value)

    def _shape(self, x: Any, *, start: int = 0, end: int | None = None) -> Array:
        return np.array(x.shape[start:end], np.int64)

    def _reshape(self, x: Any, shape: Array, *, allowzero: int = 0) -> View | Array:
        lengths = [x.shape[d] if n == 0 and not allowzero else int(n) for d, n in enumerate(shape)]
        known = -math.prod(lengths)
        new = tuple(math.prod(x.shape) // max(known, 1) if n == -1 else n for n in lengths)
        if isinstance(x, np.ndarray):
            return x.reshape(new)
        return x.reshaped(new) or whole(self._copied(x).buffer, new)

    def _flatten(self, x: Any, *, axis: int = 1) -> View | Array:
        return self._reshape(x, np.array([math.prod(x.shape[:axis]), math.prod(x.shape[axis:])]), allowzero=1)

    def _squeeze(self, x: Any, axes: Array) -> View | Array:
        dropped = {int(axis) % len(x.shape) for axis in axes}
        return self._reshape(x, np.array([n for d, n in enumerate(x.shape) if d not in dropped], int), allowzero=1)

    def _unsqueeze(self, x: Any, axes: Array) -> View | Array:
        rank = len(x.shape) + len(axes)
        added = {int(axis) % rank for axis in axes}
        rest = iter(x.shape)
        return self._reshape(x, np.array([1 if d in added else next(rest) for d in range(rank)]), allowzero=1)

    def _transpose(self, x: Any, *, perm: list[int]) -> View | Array:
        return x.transpose(perm) if isinstance(x, np.ndarray) else self._plain(x).transposed(perm)

    def _expand(self, x: Any, shape: Array) -> View | Array:
        full = np.broadcast_shapes(x.shape, tuple(int(n) for n in shape))
        return np.broadcast_to(x, full) if isinstance(x, np.ndarray) else x.broadcast(full)

    def _slice(self, x: Any, starts: Array, ends: Array, axes: Array | None = None,
               steps: Array | None = None) -> View | Array:
        axes = np.arange(len(starts)) if axes is None else axes
        steps = np.ones(len(starts), int) if steps is None else steps
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            d = int(axis) % len(x.shape)
            chosen = range(x.shape[d])[int(start) : int(end) : int(step)]
            if isinstance(x, np.ndarray):
                x = x.take(chosen, d)
            else:
                x = self._plain(x).sliced(d, chosen.start, len(chosen), chosen.step)
        return x

    def _split(self, x: Any, lengths: Array, *, axis: int = 0) -> list[View | Array]:
        starts = np.cumsum([0, *lengths])
        return [self._slice(x, starts[i : i + 1], starts[i + 1 : i + 2], np.array([axis])) for i in range(len(lengths))]

    def _gather(self, x: Any, indices: Array, *, axis: int = 0) -> View | Array:
        if isinstance(x, np.ndarray):
            return np.take(x, indices, axis)
        d = axis % len(x.shape)
        if indices.ndim == 0:
            view = self._plain(x).sliced(d, int(indices) % x.shape[d], 1)
            return self._squeeze(view, np.array([d]))
        if indices.ndim != 1:
            raise TypeError("indices of more than one axis")
        return self._plain(x).looked_up(d, (int(i) % x.shape[d] for i in indices))

    def _pad(self, x: Any, pads: Array, value: Any = None, *, mode: bytes = b"constant") -> View | Array:
        if mode != b"constant" or (value is not None and np.any(value)) or (pads < 0).any():
            raise TypeError("a pad with other values than zero, or negative")
        before, after = pads[: len(x.shape)], pads[len(x.shape) :]
        if isinstance(x, np.ndarray):
            return np.pad(x, list(zip(before, after, strict=True)))
        for d in range(len(x.shape)):
            if before[d] or after[d]:
                x = self._plain(x).looked_up(d, [*[-1] * before[d], *range(x.shape[d]), *[-1] * after[d]])
        return x

    def _concat(self, *parts: Any, axis: int) -> View | Array:
        if all(isinstance(part, np.ndarray) for part in parts):
            return np.concatenate(parts, axis)
        d = axis % len(parts[0].shape)
        shape = list(parts[0].shape)
        shape[d] = sum(part.shape[d] for part in parts)
        out, start = self._new(tuple(shape)), 0
        for part in parts:
            self.steps.append(Map("Copy", [self._view(part)], out.sliced(d, start, part.shape[d])))
            start += part.shape[d]
        return out

    # Sums

    def _matmul(self, a: Any, w: Any, bias: Any = None) -> View | Array:
        if isinstance(a, np.ndarray) and isinstance(w, np.ndarray):
            return a @ w if bias is None else a @ w + bias
        if len(a.shape) < 2 or len(w.shape) < 2:
            raise TypeError("a product with a vector")
        a, w = self._plain(self._view(a)), self._plain(self._view(w))
        batch = np.broadcast_shapes(a.shape[:-2], w.shape[:-2])
        (n_row, n_sum), n_column = a.shape[-2:], w.shape[-1]
        out, n_batch = self._new((*batch, n_row, n_column)), math.prod(batch)
        rows = a.reshaped((1, n_batch * n_row, n_sum)) if a.shape[:-2] == batch else None
        if rows and math.prod(w.shape[:-2]) == 1:  # one matrix for all batches: one tall product
            n_batch, n_row, a = 1, n_batch * n_row, rows
        else:
            a = self._batched(a.broadcast((*batch, n_row, n_sum)), (n_batch, n_row, n_sum))
            w = w.broadcast((*batch, n_sum, n_column))
        w = self._batched(w, (n_batch, n_sum, n_column))
        added = None if bias is None else self._view(np.broadcast_to(bias, (n_column,)))
        self.steps.append(Matmul(a, w, added, whole(out.buffer, (n_batch, n_row, n_column))))
        return out

    def _batched(self, view: View, shape: tuple[int, int, int]) -> View:
        return view.reshaped(shape) or whole(self._copied(view).buffer, shape)

    def _gemm(self, a: Any, w: Any, bias: Any = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
              transB: int = 0) -> View | Array:
        if alpha != 1 or beta != 1 or transA or isinstance(bias, View):
            raise TypeError("a Gemm with scales, a transposed first operand or a computed bias")
        return self._matmul(a, self._transpose(w, perm=[1, 0]) if transB else w, bias)

    def _reducesum(self, x: Any, axes: Array, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> View | Array:
        dims = sorted(int(axis) % len(x.shape) for axis in axes)
        if not dims or dims != list(range(dims[0], dims[-1] + 1)):
            raise TypeError("a sum over axes that do not follow one another")
        kept = tuple(1 if d in dims else n for d, n in enumerate(x.shape))
        final = kept if keepdims else tuple(n for d, n in enumerate(x.shape) if d not in dims)
        if isinstance(x, np.ndarray):
            return x.sum(tuple(dims)).reshape(final)
        outer, inner = math.prod(x.shape[: dims[0]]), math.prod(x.shape[dims[-1] + 1 :])
        length = math.prod(x.shape[d] for d in dims)
        out = self._new(final)
        self.steps.append(Reduce("sum", self._contiguous(x, (outer, length, inner)),
                                 whole(out.buffer, (outer, 1, inner))))
        return out

    def _softmax(self, x: Any, *, axis: int = -1) -> View:
        d = axis % len(x.shape)
        shape = math.prod(x.shape[:d]), x.shape[d], math.prod(x.shape[d + 1 :])
        out = self._new(x.shape)
        self.steps.append(Reduce("softmax", self._contiguous(x, shape), whole(out.buffer, shape)))
        return out

    def _conv(self, x: View, kernel: Array, bias: Array | None = None, *, auto_pad: bytes = b"NOTSET",
              kernel_shape: list[int] | None = None, strides: Sequence[int] = (1, 1),
              pads: Sequence[int] = (0, 0, 0, 0), dilations: Sequence[int] = (1, 1), group: int = 1) -> View:
        if auto_pad != b"NOTSET" or list(dilations) != [1, 1] or group != 1 or kernel.ndim != 4:
            raise TypeError("a convolution that is padded automatically, dilated, grouped or not of images")
        n_out, _, *size = kernel.shape
        lengths = [(n + pads[d] + pads[d + 2] - size[d]) // strides[d] + 1 for d, n in enumerate(x.shape[2:])]
        out = self._new((x.shape[0], n_out, *lengths))
        self.steps.append(Convolution(
            self._contiguous(x, x.shape), self._view(kernel.reshape(n_out, -1).T),
            None if bias is None else self._view(bias), out, (size[0], size[1]), (strides[0], strides[1]),
            (pads[0], pads[1])))
        return out

    # Views

    def _view(self, value: View | Array | None) -> View:
        """A tensor's view. A constant becomes a buffer, in which repeated axes have one element."""
        if isinstance(value, View):
            return value
        if value is None:
            raise TypeError("a missing input")
        repeated = [n == 1 or s == 0 for n, s in zip(value.shape, value.strides, strict=True)]
        content = np.ascontiguousarray(value[tuple(slice(0, 1) if r else slice(None) for r in repeated)], np.float32)
        if not np.isfinite(content).all():
            raise DeviceError("a constant of the graph is not finite in float32")
        key = content.shape, hashlib.sha256(content.tobytes()).digest()
        if key not in self._uploaded:
            self._uploaded[key] = whole(self._buffer(content.size, "constant"), content.shape)
            self.constants[self._uploaded[key].buffer] = content.ravel()
        return self._uploaded[key].broadcast(value.shape)

    def _copied(self, view: View) -> View:
        out = self._new(view.shape)
        self.steps.append(Map("Copy", [view], out))
        return out

    def _plain(self, view: View) -> View:
        return self._copied(view) if view.table else view

    def _contiguous(self, x: View | Array, shape: tuple[int, ...]) -> View:
        view = self._view(x)
        view = view if view.contiguous else self._copied(view)
        return dataclasses.replace(view, shape=shape, strides=contiguous_strides(shape))

    # Outputs

    def _deliver(self, index: int, name: str) -> None:
        """Make a step write an output: the step that computes it if it fills a whole buffer, else a copy."""
        view = self._view(self._values[name])
        if view.shape != self.outputs[name]:
            raise DeviceError(f"output {name!r}: expected shape {self.outputs[name]}, the graph computes {view.shape}")
        buffer = self.buffers[view.buffer]
        if buffer.place == "arena" and view.contiguous and view.size == buffer.size:
            buffer.place, buffer.index = "output", index
        else:
            out = whole(self._buffer(view.size, "output", index), view.shape)
            self.steps.append(Map("Copy", [view], out))

    def _write_in_place(self) -> None:
        """Let products that are only copied into a part of a larger tensor write to that part directly."""
        readers: dict[int, list[Step]] = {}
        for step in self.steps:
            for view in reads(step):
                readers.setdefault(view.buffer, []).append(step)
        for step in list(self.steps):
            if not isinstance(step, Matmul) or self.buffers[step.out.buffer].place != "arena":
                continue
            copies = readers.get(step.out.buffer, [])
            copy = copies[0] if len(copies) == 1 else None
            if not isinstance(copy, Map) or copy.function != "Copy":
                continue
            source = copy.operands[0]
            place = copy.out.reshaped(step.out.shape)
            if isinstance(source, View) and source.contiguous and source.size == step.out.size and place:
                step.out = place
                self.steps = [other for other in self.steps if other is not copy]

    def _drop_unused(self) -> None:
        while True:
            used = {view.buffer for step in self.steps for view in reads(step)}
            kept = [step for step in self.steps
                    if step.out.buffer in used or self.buffers[step.out.buffer].place == "output"]
            if len(kept) == len(self.steps):
                return
            self.steps = kept


_OPERATORS = {
    "Sum", "Max", "Cast", "Constant", "Shape", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand",
    "Slice", "Split", "Gather", "Pad", "Concat", "MatMul", "Gemm", "ReduceSum", "Softmax", "Conv"}


def _widened(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def import_onnx() -> Any:
    """The package onnx, which only the GPU needs. Raises DeviceError with the command that installs it."""
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise DeviceError(f"graphs are read with the package onnx, which is not installed: {GPU_INSTALL}") from error
    return onnx
