"""Programs: lists of elementwise instructions, which network_map.cu interprets for every element.

A program is made once for a graph, and all threads read it. Each thread keeps its values in a few registers of its own
(in shared memory), so that they pass from one operation to the next without the GPU's main memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.network.steps import Map
from deblendrt.cuda.network.views import MAX_DIM, View, common_axes, merged_axes

FUNCTIONS = ("Load", "Constant", "Store", "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Neg", "Abs", "Sign", "Exp",
             "Log", "Tanh", "Asinh", "Sigmoid")  # their positions are network_map.cu's numbers
MAX_REGISTER = 20  # for 128 threads with 4 elements each: 40 KB of shared memory
MAX_INSTRUCTION = 96
HEADER = 6  # int32: instructions, first operand's word, lengths of the axes
OPERAND = 8  # int32: space, offset, strides along the axes, axis of the table or -1, first word of the table

Instruction = tuple[str, int, int | float, int]
Expression = tuple[Any, ...]  # ("Load", view), ("Constant", number) or (function, value, ...)


@dataclasses.dataclass
class Program:
    """A program of elementwise operations.

    Attributes
    ----------
    shape : tuple of int
        The shape of all its views, at most `MAX_DIM` axes.
    instructions : list of Instruction
        ("Load", register, view, 0), ("Constant", register, value, 0), ("Store", view, register, 0), or
        (function, register, register, register): registers of the result and of the operands.
    views : list of View
    n_register : int
    """

    shape: tuple[int, ...]
    instructions: list[Instruction]
    views: list[View]
    n_register: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def loads(self) -> list[View]:
        """The views that are read."""
        return [self.views[int(a)] for function, _, a, _ in self.instructions if function == "Load"]

    @property
    def stores(self) -> list[View]:
        """The views that are written."""
        return [self.views[target] for function, target, _, _ in self.instructions if function == "Store"]

    def encoded(self, place: Callable[[int], tuple[int, int]]) -> NDArray[np.int32]:
        """The program as the words that the kernel reads.

        Parameters
        ----------
        place : callable
            From a buffer to its space and first element.

        Returns
        -------
        int32 (n,)
        """
        first_operand = HEADER + 4 * len(self.instructions)
        ahead = MAX_DIM - len(self.shape)
        words = [len(self.instructions), first_operand, *[1] * ahead, *self.shape]
        for function, a, b, c in self.instructions:
            second = int(np.float32(b).view(np.int32)) if function == "Constant" else int(b)
            words += [FUNCTIONS.index(function), a, second, c]
        tables: list[int] = []
        for view in self.views:
            space, start = place(view.buffer)
            words += [space, start + view.offset, *[0] * ahead, *view.strides]
            words += [ahead + view.table[0] if view.table else -1,
                      first_operand + OPERAND * len(self.views) + len(tables)]
            tables += view.table[1] if view.table else ()
        return np.array(words + tables, np.int64).astype(np.int32)


def fused(steps: Sequence[Map], buffer_size: Callable[[int], int], stored: Callable[[Map], bool]) -> Program | None:
    """One program for several operations with equal numbers of elements, in an order that can be run.

    Parameters
    ----------
    steps : sequence of Map
    buffer_size : callable
        From a buffer to its number of elements.
    stored : callable
        From a step to whether its result is needed after these steps.

    Returns
    -------
    Program or None
        None if an operation reads other elements of another operation's result, or if the program would be too large.
    """
    size = steps[0].out.size
    if any(step.out.size != size for step in steps):
        return None
    axes = common_axes(step.out.shape for step in steps)
    if axes is None:
        return None
    written = {step.out.buffer for step in steps}
    keys: dict[Expression, int] = {}  # equal values are computed once
    values: list[Expression] = []
    views: list[View] = []
    result: dict[int, int] = {}  # the value in each buffer that a step fills
    stores: list[tuple[int, int]] = []  # value, view

    def value(*key: Any) -> int:
        if key not in keys:
            keys[key] = len(values)
            values.append(key)
        return keys[key]

    for step in steps:
        arguments = []
        for operand in step.operands:
            if not isinstance(operand, View):
                arguments.append(value("Constant", operand))
            elif operand.buffer in result and operand.contiguous and operand.size == size:
                arguments.append(result[operand.buffer])
            elif operand.buffer in written:
                return None
            else:
                if operand not in views:
                    views.append(operand)
                arguments.append(value("Load", views.index(operand)))
        out = arguments[0] if step.function == "Copy" else value(step.function, *arguments)
        if step.out.contiguous and buffer_size(step.out.buffer) == size:
            result[step.out.buffer] = out
        if stored(step):
            views.append(step.out)
            stores.append((out, len(views) - 1))
    merged = merged_axes(axes, views)
    if merged is None or len(merged[0]) > MAX_DIM:
        return None
    instructions, n_register = _allocated(values, stores)
    if n_register > MAX_REGISTER or len(instructions) > MAX_INSTRUCTION:
        return None
    return Program(merged[0], instructions, merged[1], n_register)


def _allocated(values: list[Expression], stores: list[tuple[int, int]]) -> tuple[list[Instruction], int]:
    """Instructions that compute each value just before its first use, and the number of registers that they need."""
    order: list[tuple[int, int | None]] = []  # a value to compute, or, with a view, to store
    done: set[int] = set()

    def visit(v: int) -> None:
        if v not in done:
            done.add(v)
            for argument in used(v):
                visit(argument)
            order.append((v, None))

    def used(v: int) -> tuple[int, ...]:
        function, *arguments = values[v]
        return () if function in ("Load", "Constant") else tuple(arguments)

    for v, target in stores:
        visit(v)
        order.append((v, target))
    needs = [used(v) if view is None else (v,) for v, view in order]
    last = {v: i for i, arguments in enumerate(needs) for v in arguments}
    free: list[int] = []
    register: dict[int, int] = {}
    n_register = 0
    instructions: list[Instruction] = []
    for i, (v, view) in enumerate(order):
        places = [register[argument] for argument in needs[i]]
        free += sorted({register[argument] for argument in needs[i] if last[argument] == i}, reverse=True)
        if view is not None:
            instructions.append(("Store", view, places[0], 0))
            continue
        if not free:
            free.append(n_register)
            n_register += 1
        register[v] = free.pop()
        function, *arguments = values[v]
        if function in ("Load", "Constant"):
            instructions.append((function, register[v], arguments[0], 0))
        else:
            instructions.append((function, register[v], places[0], places[-1]))
    return instructions, n_register
