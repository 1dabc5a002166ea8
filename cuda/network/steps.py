"""Steps of a lowered graph, on views of flat buffers: elementwise operations, products, reductions, convolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.network.views import View

# Functions of elementwise operators, which fold constants and run in the reference
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power, "Max": np.maximum,
    "Min": np.minimum, "Neg": np.negative, "Abs": np.abs, "Sign": np.sign, "Exp": np.exp, "Log": np.log,
    "Tanh": np.tanh, "Asinh": np.arcsinh, "Sigmoid": lambda x: np.exp(-np.logaddexp(0, -x)), "Copy": lambda x: x,
}


@dataclasses.dataclass
class Map:
    """out = function(operands), element by element.

    Attributes
    ----------
    function : str
        A key of `ELEMENTWISE`.
    operands : list of View or float
        Views of the shape of `out`.
    out : View
        Contiguous; for "Copy" any part of a buffer.
    """

    function: str
    operands: list[View | float]
    out: View


@dataclasses.dataclass
class Matmul:
    """out[b, m, n] = sum_k a[b, m, k] w[b, k, n] + bias[n]."""

    a: View
    w: View
    bias: View | None
    out: View

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Lengths of b, m, k, n."""
        n_batch, n_row, n_column = self.out.shape
        return n_batch, n_row, self.a.shape[2], n_column


@dataclasses.dataclass
class Reduce:
    """Sum or softmax along the middle axis: x (outer, length, inner), out (outer, 1 or length, inner), contiguous."""

    function: str  # "sum" or "softmax"
    x: View
    out: View


@dataclasses.dataclass
class Convolution:
    """out[n, o] = sum_i x[n, i] * kernel[o, i] + bias[o], x zero outside.

    Attributes
    ----------
    x : View (n_source, n_in, height, width), contiguous
    kernel : View (n_in kernel_height kernel_width, n_out), contiguous
    bias : View (n_out,), optional
    out : View (n_source, n_out, out_height, out_width), contiguous
    size, stride, pad : tuple of int
        (y, x): size of the kernel, steps of the kernel, zeros before the first row and column.
    """

    x: View
    kernel: View
    bias: View | None
    out: View
    size: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]


Step = Map | Matmul | Reduce | Convolution
Array = NDArray[Any]


def reads(step: Step) -> list[View]:
    """The views that a step reads."""
    if isinstance(step, Map):
        return [operand for operand in step.operands if isinstance(operand, View)]
    if isinstance(step, Matmul):
        return [view for view in (step.a, step.w, step.bias) if view is not None]
    if isinstance(step, Reduce):
        return [step.x]
    return [view for view in (step.x, step.kernel, step.bias) if view is not None]


@dataclasses.dataclass
class Buffer:
    """A flat buffer.

    Attributes
    ----------
    size : int
        Elements.
    place : {"arena", "constant", "input", "output"}
    index : int
        Number of an input or output in the graph.
    """

    size: int
    place: str = "arena"
    index: int = 0
