"""A bundle's ONNX graphs as PyTorch code, so that a loop in PyTorch runs the very same network.

Only the operators that `decode_jacobian` and `log_prior` use. The number of rows is fixed, as for CUDA graphs: shapes
are worked out once, in NumPy on the host, and what is left is a list of calls on tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import torch

# tensors are passed as they are; constants of one number as float, other constants of floats as tensors, of integers as
# lists
OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.truediv, "Pow": operator.pow,
    "Neg": torch.neg, "Abs": torch.abs, "Sign": torch.sign, "Exp": torch.exp, "Log": torch.log, "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid, "MatMul": torch.matmul,
    "Sum": lambda *values: reduce(operator.add, values),
    "Cast": lambda x, to: x.float(),
    "Reshape": lambda x, shape, allowzero=0: x.reshape(
        [x.shape[d] if n == 0 and not allowzero else n for d, n in enumerate(shape)]),
    "Flatten": lambda x, axis=1: x.flatten(axis),
    "Squeeze": lambda x, axes: x.squeeze(tuple(axes)),
    "Unsqueeze": lambda x, axes: _unsqueeze(x, axes),
    "Transpose": lambda x, perm: x.permute(perm),
    "Expand": lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, shape)),
    "Concat": lambda *values, axis: torch.cat(values, axis),
    "Split": lambda x, lengths, axis=0: x.split(lengths, axis),
    "Slice": lambda x, starts, ends, axes=None, steps=None: _slice(x, starts, ends, axes, steps),
    "Gather": lambda x, indices, axis=0: _gather(x, indices, axis),
    "Pad": lambda x, pads, value=0.0, mode=b"constant": torch.nn.functional.pad(x, _pairs(pads), value=value),
    "Gemm": lambda a, b, c, alpha=1.0, beta=1.0, transA=0, transB=0: torch.addmm(
        c, a.T if transA else a, b.T if transB else b, beta=beta, alpha=alpha),
    "ReduceSum": lambda x, axes, keepdims=1, noop_with_empty_axes=0: x.sum(tuple(axes), keepdim=bool(keepdims)),
    "Softmax": lambda x, axis=-1: x.softmax(axis),
}


class TorchGraph:
    """A graph for a fixed number of rows.

    Parameters
    ----------
    content : bytes
        An ONNX file.
    n_row : int
    device : str or torch.device

    Raises
    ------
    NotImplementedError
        An operator that is not in `OPERATORS`.
    """

    def __init__(self, content: bytes, n_row: int, device: Any = "cpu") -> None:
        graph = onnx.load_from_string(content).graph
        self.device = torch.device(device)
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self._steps: list[tuple[Callable[..., Any], list[str | None], list[Any], dict[str, Any], list[str]]] = []
        known: dict[str, Any] = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}  # on the host
        values: dict[str, torch.Tensor] = {}
        for value in graph.input:
            shape = [n_row, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
            values[value.name] = torch.zeros(shape, device=self.device)
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            names = list(node.input)
            if node.op_type == "Constant":
                known[node.output[0]] = onnx.numpy_helper.to_array(attributes["value"])
                continue
            if node.op_type == "Shape":
                shape = np.array(values[names[0]].shape, np.int64)
                known[node.output[0]] = shape[attributes.get("start", 0) : attributes.get("end", len(shape))]
                continue
            if node.op_type not in OPERATORS:
                raise NotImplementedError(f"the graph's operator {node.op_type}")
            function, outputs = OPERATORS[node.op_type], list(node.output)
            if all(name in known for name in names):
                known |= zip(outputs, _folded(function, node.op_type, [known[n] for n in names], attributes),
                             strict=True)
                continue
            slots = [name if name in values else None for name in names]
            constants = [None if name in values else _constant(known[name], self.device, node.op_type)
                         for name in names]
            self._steps.append((function, slots, constants, attributes, outputs))
            self._run_step(self._steps[-1], values)
        self._done = self._last_uses()

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Outputs in the graph's order, of float32 inputs (n_row, ...)."""
        values = dict(zip(self.inputs, inputs, strict=True))
        for step, done in zip(self._steps, self._done, strict=True):
            self._run_step(step, values)
            for name in done:
                del values[name]
        return [values[name] for name in self.outputs]

    def _last_uses(self) -> list[list[str]]:
        """Tensors that no step after each one needs, so that their memory is free again."""
        seen, done = set(self.outputs), []
        for _, slots, _, _, outputs in reversed(self._steps):
            done.append([name for name in {*slots, *outputs} - seen if name is not None])
            seen.update(done[-1])
        return done[::-1]

    @staticmethod
    def _run_step(step: tuple[Any, ...], values: dict[str, torch.Tensor]) -> None:
        function, slots, constants, attributes, outputs = step
        arguments = [constant if name is None else values[name]
                     for name, constant in zip(slots, constants, strict=True)]
        result = function(*arguments, **attributes)
        if len(outputs) == 1:
            values[outputs[0]] = result
        else:
            values.update(zip(outputs, result, strict=True))


def _folded(function: Callable[..., Any], op: str, arrays: list[Any], attributes: dict[str, Any]) -> list[Any]:
    """Results of an operator on constants."""
    if op == "Concat":
        return [np.concatenate(arrays, attributes["axis"])]
    first, *rest = arrays
    given = [torch.tensor(first), *(torch.tensor(a) if a.dtype.kind == "f" else a.tolist() for a in rest)]
    result = function(*given, **attributes)
    return [part.numpy() for part in (result if isinstance(result, tuple) else (result,))]


def _constant(array: Any, device: torch.device, op: str) -> Any:
    array = np.asarray(array)
    if array.dtype.kind != "f":
        if op == "Gather" and array.ndim == 1:
            return torch.tensor(array, dtype=torch.int64, device=device)
        return array.tolist()
    if array.ndim == 0:
        return float(array)
    return torch.tensor(array, dtype=torch.float32, device=device)


def _unsqueeze(x: torch.Tensor, axes: list[int]) -> torch.Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _slice(x: torch.Tensor, starts: list[int], ends: list[int], axes: list[int] | None,
           steps: list[int] | None) -> torch.Tensor:
    axes = list(range(len(starts))) if axes is None else axes
    cut = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        cut[axis] = slice(start, end, step)
    return x[tuple(cut)]


def _gather(x: torch.Tensor, indices: Any, axis: int) -> torch.Tensor:
    return x.select(axis, indices) if isinstance(indices, int) else x.index_select(axis, indices)


def _pairs(pads: list[int]) -> list[int]:
    """ONNX' (all before, all after) as torch's pairs, the last axis first."""
    rank = len(pads) // 2
    return [n for d in reversed(range(rank)) for n in (pads[d], pads[d + rank])]
