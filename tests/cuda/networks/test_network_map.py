"""Every operator, alone and fused, against the evaluator of onnx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graphs import Make, graph, numbers, run
from shim import missing
from tolerances import FLOAT32, relative_error

from deblendrt.cuda.network.plan import make_plan
from deblendrt.engine.compute.reference import networks as reference_networks

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.reference")
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

UNARY = ["Neg", "Abs", "Sign", "Exp", "Log", "Tanh", "Asinh", "Sigmoid"]
BINARY = ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Sum"]
W = np.random.default_rng(7).standard_normal((3, 2)).astype(np.float32)
CASES: dict[str, tuple[Callable[[Make], Any], tuple[int, ...]]] = {
    **{op: (lambda g, op=op: g(op, "x", to="y"), (2, 3)) for op in UNARY},
    **{op: (lambda g, op=op: g(op, "x", g("Slice", "x", numbers(1), numbers(2), numbers(1)), to="y"), (2, 3))
       for op in BINARY},
    "constant operand": (lambda g: g("Div", np.float32([[1, 2, 3]]), "x", to="y"), (2, 3)),
}
SHAPES: dict[str, tuple[Callable[[Make], Any], tuple[int, ...]]] = {
    "gather": (lambda g: g("Mul", g("Gather", "x", numbers(2, 0, 1, 1), axis=2), g("Gather", "x", numbers(0, -1, 0, 2),
                                                                                   axis=2), to="y"), (2, 4)),
    "gather one": (lambda g: g("Gather", "x", np.array(1, np.int64), axis=2, to="y"), (2,)),
    "pad": (lambda g: g("Add", g("Pad", "x", numbers(0, 0, 2, 0, 0, 1)), g("Pad", "x", numbers(0, 0, 0, 0, 0, 3)),
                        to="y"), (2, 6)),
    "pad two axes": (lambda g: g("Pad", "x", numbers(0, 1, 2, 0, 0, 1), to="y"), (3, 6)),
    "padded rows in a product": (lambda g: g("MatMul", g("Pad", "x", numbers(0, 1, 0, 0, 1, 0)), W, to="y"), (4, 2)),
    "concat": (lambda g: g("Concat", "x", g("Exp", "x"), g("MatMul", "x", W @ W.T), axis=1, to="y"), (6, 3)),
    "concat inside": (lambda g: g("Concat", g("MatMul", "x", W), "x", axis=2, to="y"), (2, 5)),
    "transpose": (lambda g: g("Reshape", g("Exp", g("Transpose", "x", perm=[0, 2, 1])), numbers(0, -1), to="y"), (6,)),
    "slice with a step": (lambda g: g("Neg", g("Slice", "x", numbers(2), numbers(-4), numbers(2), numbers(-2)), to="y"),
                          (2, 2)),
    "expand": (lambda g: g("Reshape", g("Expand", g("Unsqueeze", "x", numbers(1)), numbers(1, 4, 1, 1)),
                           numbers(-1, 24), to="y"), (24,)),
    "expand a constant": (lambda g: g("Add", "x", g("Expand", np.float32([5, 6, 7]), g("Shape", "x")), to="y"), (2, 3)),
    "sum": (lambda g: g("ReduceSum", "x", numbers(1), keepdims=0, to="y"), (3,)),
    "sum of two axes": (lambda g: g("ReduceSum", g("Exp", "x"), numbers(1, 2), to="y"), (1, 1)),
    "softmax": (lambda g: g("Softmax", g("Transpose", "x", perm=[0, 2, 1]), axis=1, to="y"), (3, 2)),
    "squeeze": (lambda g: g("Squeeze", g("Slice", "x", numbers(1), numbers(2), numbers(1)), numbers(1), to="y"), (3,)),
    "flatten": (lambda g: g("Flatten", "x", to="y"), (6,)),
    "batched": (lambda g: g("MatMul", "x", g("Transpose", "x", perm=[0, 2, 1]), to="y"), (2, 2)),
    "one matrix a batch": (lambda g: g("MatMul", np.float32(W.T), g("Transpose", "x", perm=[0, 2, 1]), to="y"), (2, 2)),
    "gemm": (lambda g: g("Gemm", g("Flatten", "x"), np.tile(W, (1, 3)).T.reshape(-1, 6)[:3], np.float32([1, 2, 3]),
                         transB=1, to="y"), (3,)),
    "an input is an output": (lambda g: g("Reshape", "x", numbers(-1, 3, 2), to="y"), (3, 2)),
    "a constant is an output": (lambda g: g("Expand", np.float32([[1, 2]]), g("Concat", g(
        "Shape", "x", start=0, end=1), numbers(2), axis=0), to="y"), (2,)),
}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("n_row", [1, 3])
def test_elementwise(case: str, n_row: int) -> None:
    check(case, *CASES[case], n_row)


@pytest.mark.parametrize("case", list(SHAPES))
@pytest.mark.parametrize("n_row", [1, 3])
def test_shapes(case: str, n_row: int) -> None:
    check(case, *SHAPES[case], n_row)


def check(case: str, build: Callable[[Make], Any], shape: tuple[int, ...], n_row: int) -> None:
    """Compare a graph with the evaluator of onnx."""
    content = graph(build, {"x": (2, 3)}, {"y": shape})
    x = (0.2 + np.abs(np.random.default_rng(1).standard_normal((n_row, 2, 3)))).astype(np.float32)
    if case in ("Neg", "Abs", "Sign", "Sigmoid"):
        x[0, 0] = [-40, 0, 1]
    expected = onnx.reference.ReferenceEvaluator(onnx.load_from_string(content)).run(None, {"x": x})[0]
    assert relative_error(reference_networks.run(make_plan(content, n_row), {"x": x})["y"], expected) < FLOAT32
    assert relative_error(run(content, {"x": x})["y"], expected) < FLOAT32


def test_a_long_chain_is_cut() -> None:
    """A graph with more operations and live numbers than a program may have."""
    def build(g: Make) -> None:
        kept = [g("Mul", "x", np.float32(k)) for k in range(2, 60)]
        total = "x"
        for value in kept:
            total = g("Add", g("Tanh", total), value)
        for value in reversed(kept):
            total = g("Add", total, value)
        g("Neg", total, to="y")

    content = graph(build, {"x": (3,)}, {"y": (3,)})
    x = np.random.default_rng(2).standard_normal((300, 3)).astype(np.float32)
    expected = onnx.reference.ReferenceEvaluator(onnx.load_from_string(content)).run(None, {"x": x})[0]
    assert len(make_plan(content, 300).steps) > 1
    assert relative_error(run(content, {"x": x})["y"], expected) < FLOAT32
