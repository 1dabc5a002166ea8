"""Writes ONNX graphs in the style of NumPy: values have operators, loops and branches are Python functions.

    b = Builder()
    x = b.input("x", np.float32, ["N", 3])
    total, = b.loop(12, [x * 0], lambda i, total: [total + x])

The builder uses standard ONNX operators that ONNX Runtime has on every platform. Subgraphs refer by name to values of
the graphs around them, which ONNX allows. All constants lie in the outermost graph, each once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike, NDArray
from onnx import helper, numpy_helper

Dims = Sequence[int | str | None]


class Value:
    """A tensor of a graph under construction.

    Attributes
    ----------
    b : Builder
    name : str
    dtype : numpy.dtype
    """

    def __init__(self, b: Builder, name: str, dtype: DTypeLike) -> None:
        self.b, self.name, self.dtype = b, name, np.dtype(dtype)

    def _binary(self, kind: str, other: Any, dtype: DTypeLike | None = None, *, swapped: bool = False) -> Value:
        second = self.b.value(other, self.dtype)
        if second.dtype != self.dtype:
            raise TypeError(f"{kind}: {self.dtype} and {second.dtype}")
        pair = (second, self) if swapped else (self, second)
        return self.b.node(kind, *pair, dtype=self.dtype if dtype is None else dtype)

    def __add__(self, other: Any) -> Value:
        return self._binary("Add", other)

    def __radd__(self, other: Any) -> Value:
        return self._binary("Add", other, swapped=True)

    def __sub__(self, other: Any) -> Value:
        return self._binary("Sub", other)

    def __rsub__(self, other: Any) -> Value:
        return self._binary("Sub", other, swapped=True)

    def __mul__(self, other: Any) -> Value:
        return self._binary("Mul", other)

    def __rmul__(self, other: Any) -> Value:
        return self._binary("Mul", other, swapped=True)

    def __truediv__(self, other: Any) -> Value:
        return self._binary("Div", other)

    def __rtruediv__(self, other: Any) -> Value:
        return self._binary("Div", other, swapped=True)

    def __matmul__(self, other: Any) -> Value:
        return self._binary("MatMul", other)

    def __neg__(self) -> Value:
        return self.b.node("Neg", self)

    def __lt__(self, other: Any) -> Value:
        return self._binary("Less", other, bool)

    def __le__(self, other: Any) -> Value:
        return self._binary("LessOrEqual", other, bool)

    def __gt__(self, other: Any) -> Value:
        return self._binary("Greater", other, bool)

    def __ge__(self, other: Any) -> Value:
        return self._binary("GreaterOrEqual", other, bool)

    def equal(self, other: Any) -> Value:
        """Element-wise equality."""
        return self._binary("Equal", other, bool)

    def __and__(self, other: Any) -> Value:
        return self._binary("And", other)

    def __or__(self, other: Any) -> Value:
        return self._binary("Or", other)

    def __invert__(self) -> Value:
        return self.b.node("Not", self)

    def __getitem__(self, index: Any) -> Value:
        """Part of the value. An index is a whole number, a slice of whole numbers, or None for a new axis."""
        axes: list[int] = []
        starts: list[int] = []
        stops: list[int] = []
        steps: list[int] = []
        dropped: list[int] = []
        added: list[int] = []
        axis = result_axis = 0
        for part in index if isinstance(index, tuple) else (index,):
            if part is None:
                added.append(result_axis)
                result_axis += 1
                continue
            if isinstance(part, int):
                dropped.append(axis)
                part = slice(part, part + 1 if part != -1 else None)
            else:
                result_axis += 1
            if part != slice(None):
                axes.append(axis)
                starts.append(part.start or 0)
                stops.append(np.iinfo(np.int64).max if part.stop is None else part.stop)
                steps.append(part.step or 1)
            axis += 1
        result = self
        if axes:
            result = self.b.node("Slice", result, *(self.b.ints(a) for a in (starts, stops, axes, steps)))
        if dropped:
            result = self.b.node("Squeeze", result, self.b.ints(dropped))
        return self.b.node("Unsqueeze", result, self.b.ints(added)) if added else result

    def cast(self, dtype: DTypeLike) -> Value:
        """The value in another type."""
        if np.dtype(dtype) == self.dtype:
            return self
        return self.b.node("Cast", self, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dtype=dtype)

    def reshape(self, *shape: int) -> Value:
        """The value in another shape. A length of 0 keeps that axis, and -1 stands for the length that is left."""
        return self.b.node("Reshape", self, self.b.ints(shape))

    def transpose(self, *axes: int) -> Value:
        """Axes in another order."""
        return self.b.node("Transpose", self, perm=list(axes))

    def sum(self, *axes: int, keep: bool = False) -> Value:
        """Sum over axes."""
        return self.b.node("ReduceSum", self, self.b.ints(axes), keepdims=int(keep))

    def any(self, *axes: int, keep: bool = False) -> Value:
        """Tell if any element is true, along the axes; without axes, if any element of all is."""
        number = self.cast(np.float32)
        total = number.sum(*axes, keep=keep) if axes else self.b.node("ReduceSum", number, keepdims=0)
        return total > 0

    def take(self, rows: Value, axis: int = 0) -> Value:
        """The elements of given numbers along an axis."""
        return self.b.node("Gather", self, rows, axis=axis)


class Builder:
    """A graph under construction."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[Any, ...], Value] = {}
        self._nodes: list[list[onnx.NodeProto]] = [[]]  # of the graph and its open subgraphs, the innermost last
        self._count = 0

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"

    def input(self, name: str, dtype: DTypeLike, shape: Dims) -> Value:
        """An input of the graph."""
        self._inputs.append(helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape)))
        return Value(self, name, dtype)

    def output(self, name: str, value: Value, shape: Dims) -> None:
        """An output of the graph."""
        self._nodes[0].append(helper.make_node("Identity", [value.name], [name]))
        self._outputs.append(helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), list(shape)))

    def constant(self, array: ArrayLike, dtype: DTypeLike | None = None) -> Value:
        """A constant. Equal constants are stored once."""
        values: NDArray[Any] = np.ascontiguousarray(np.asarray(array, dtype))
        values = values.reshape(np.shape(array))  # ascontiguousarray makes vectors of scalars
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            name = self._name("constant")
            self._initializers[name] = numpy_helper.from_array(values, name)
            self._constants[key] = Value(self, name, values.dtype)
        return self._constants[key]

    def zeros(self, *shape: int, dtype: DTypeLike = np.float64) -> Value:
        """Zeros; they take no space in the file."""
        value = numpy_helper.from_array(np.zeros(1, dtype))
        return self.node("ConstantOfShape", self.ints(shape), dtype=dtype, value=value)

    def ints(self, values: Sequence[int]) -> Value:
        """Whole numbers, int64 (n,)."""
        return self.constant(np.array(values, np.int64))

    def value(self, given: Any, dtype: DTypeLike) -> Value:
        """A value as it is, or a constant of a type from anything else."""
        return given if isinstance(given, Value) else self.constant(given, dtype)

    def node(self, kind: str, *inputs: Value, dtype: DTypeLike | None = None, **attributes: Any) -> Value:
        """The output of an operator that has one output. Its type is that of the first input unless stated."""
        name = self._name(kind)
        self._nodes[-1].append(helper.make_node(kind, [v.name for v in inputs], [name], **attributes))
        return Value(self, name, inputs[0].dtype if dtype is None else dtype)

    def where(self, condition: Value, yes: Any, no: Any) -> Value:
        """`yes` where the condition holds, else `no`. At least one of them is a `Value`."""
        dtype = yes.dtype if isinstance(yes, Value) else no.dtype
        return self.node("Where", condition, self.value(yes, dtype), self.value(no, dtype), dtype=dtype)

    def minimum(self, a: Value, other: Any) -> Value:
        """The smaller of two."""
        return self.node("Min", a, self.value(other, a.dtype))

    def maximum(self, a: Value, other: Any) -> Value:
        """The larger of two."""
        return self.node("Max", a, self.value(other, a.dtype))

    def clip(self, a: Value, low: Any, high: Any) -> Value:
        """The value held between two values or arrays."""
        return self.minimum(self.maximum(a, low), high)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Values joined along an axis."""
        return self.node("Concat", *values, axis=axis)

    def rows(self, chosen: Value) -> Value:
        """Positions of the true elements, int64 (m,)."""
        return self.node("NonZero", chosen, dtype=np.int64)[0]

    def sqrt(self, a: Value) -> Value:
        """Square root."""
        return self.node("Sqrt", a)

    def log(self, a: Value) -> Value:
        """Natural logarithm."""
        return self.node("Log", a)

    def exp(self, a: Value) -> Value:
        """Exponential."""
        return self.node("Exp", a)

    def loop(self, trips: int | Value, carried: Sequence[Value], body: Callable[..., Sequence[Value]], *,
             scan: Sequence[Sequence[int]] = (), condition: bool = False) -> list[Value]:
        """Run a body several times.

        Parameters
        ----------
        trips : int or Value
            int64 ().
        carried : sequence of Value
            State before the first run.
        body : callable
            Takes ``(i, *carried)``; returns the values to carry on, then the values to stack. With `condition` a
            first value, bool (), says whether to go on.
        scan : sequence of sequence of int
            Shapes of the stacked values, which the result needs when the body never runs.
        condition : bool
            Whether the body decides to go on.

        Returns
        -------
        list of Value
            The carried values after the last run, then the stacked values.
        """
        name = self._name("loop")
        i, going = Value(self, f"{name}_i", np.int64), Value(self, f"{name}_in", bool)
        states = [Value(self, f"{name}_state{k}", v.dtype) for k, v in enumerate(carried)]
        self._nodes.append([])
        results = list(body(i, *states))
        on = results.pop(0) if condition else going
        if len(results) != len(carried) + len(scan):
            raise ValueError(f"loop: expected {len(carried)} + {len(scan)} results, got {len(results)}")
        for before, after in zip(carried, results, strict=False):
            if before.dtype != after.dtype:
                raise TypeError(f"loop: {before.dtype} becomes {after.dtype}")
        renamed = [self.node("Identity", v) for v in (on, *results)]  # no result may be an input of the body
        shapes: list[list[int] | None] = [[], *[None] * len(carried), *map(list, scan)]
        graph = helper.make_graph(self._nodes.pop(), name, [_info(i, []), _info(going, []), *map(_info, states)],
                                  list(map(_info, renamed, shapes)))
        outputs = [Value(self, f"{name}_out{k}", v.dtype) for k, v in enumerate(results)]
        count = self.value(np.array(trips) if isinstance(trips, int) else trips, np.int64)
        start = self.constant(np.array(True))
        self._nodes[-1].append(helper.make_node("Loop", [count.name, start.name, *(v.name for v in carried)],
                                                [v.name for v in outputs], body=graph))
        return outputs

    def branch(self, condition: Value, yes: Callable[[], Value], no: Callable[[], Value]) -> Value:
        """The value of `yes` or of `no`, by a bool (). Only that branch is computed."""
        graphs = []
        for compute in (yes, no):
            self._nodes.append([])
            result = self.node("Identity", compute())
            graphs.append(helper.make_graph(self._nodes.pop(), self._name("branch"), [], [_info(result)]))
        return self.node("If", condition, dtype=result.dtype, then_branch=graphs[0], else_branch=graphs[1])

    def inline(self, model: onnx.ModelProto, prefix: str, *inputs: Value) -> list[Value]:
        """Outputs of a model without subgraphs, whose nodes become part of the graph. Its weights are stored once."""
        if {e.domain: e.version for e in model.opset_import} != {"": self.opset}:
            raise ValueError(f"{prefix}: expected the standard operators of opset {self.opset}")
        name = {value.name: given.name for value, given in zip(model.graph.input, inputs, strict=True)}
        for tensor in model.graph.initializer:
            name[tensor.name] = f"{prefix}/{tensor.name}"
            if name[tensor.name] not in self._initializers:
                copy = onnx.TensorProto()
                copy.CopyFrom(tensor)
                copy.name = name[tensor.name]
                self._initializers[copy.name] = copy
        for node in model.graph.node:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = ""
            for output in node.output:
                name[output] = self._name(f"{prefix}/{output}")
            copied.input[:] = [name[key] if key else "" for key in node.input]
            copied.output[:] = [name[key] for key in node.output]
            self._nodes[-1].append(copied)
        return [Value(self, name[value.name], helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
                for value in model.graph.output]

    def model(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """The finished model, checked."""
        graph = helper.make_graph(self._nodes[0], "main", self._inputs, self._outputs,
                                  list(self._initializers.values()))
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10,
                                  producer_name="deblendrt.export")
        helper.set_model_props(proto, metadata)
        onnx.checker.check_model(proto)
        return proto


def _info(value: Value, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)
