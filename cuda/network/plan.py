"""The plan of a network: its launches in order, and the places of its numbers.

Elementwise steps are fused into programs where their order allows it. Buffers share one arena, in which two buffers may
overlap if they are not in use at the same time.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import DeviceError
from deblendrt.cuda.network.lowered_graph import LoweredGraph
from deblendrt.cuda.network.program import Program, fused
from deblendrt.cuda.network.steps import Convolution, Map, Matmul, Reduce, Step, reads
from deblendrt.cuda.network.views import View

ARENA_ALIGNMENT = 64  # elements: 256 bytes
N_INPUT = N_OUTPUT = 4  # largest numbers; network_map.cu has a pointer for each
ARENA, CONSTANTS, INPUTS, OUTPUTS = 0, 1, 2, 2 + N_INPUT  # spaces, as network_map.cu numbers its pointers
PlannedStep = Program | Matmul | Reduce | Convolution


@dataclasses.dataclass
class Plan:
    """A graph ready to run.

    Attributes
    ----------
    inputs, outputs : dict of str to tuple of int
        Shapes.
    steps : list of PlannedStep
    places : dict of int to (int, int)
        Space and first element of each buffer that is used.
    constants : float32 (n,)
    arena_size : int
        Number of elements.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    steps: list[PlannedStep]
    places: dict[int, tuple[int, int]]
    constants: NDArray[np.float32]
    arena_size: int

    def cost(self) -> tuple[float, float]:
        """Return the bytes moved, with every operand of every step once, and the floating point operations."""
        moved = operations = 0.0
        for step in self.steps:
            if isinstance(step, Program):
                views = [*step.loads, *step.stores]
                operations += step.size * (len(step.instructions) - len(views))
            else:
                views = [*reads(step), step.out]
                operations += _operations(step)
            moved += 4 * sum(_distinct(view) for view in views)
        return moved, operations


def make_plan(content: bytes, n_source: int) -> Plan:
    """Plan a graph for a fixed number of sources.

    Parameters
    ----------
    content : bytes
        An ONNX file, see `LoweredGraph`.
    n_source : int

    Returns
    -------
    Plan

    Raises
    ------
    DeviceError
        See `LoweredGraph`; or there are too many sources.
    """
    graph = LoweredGraph(content, n_source)
    if len(graph.inputs) > N_INPUT or len(graph.outputs) > N_OUTPUT:
        raise DeviceError(f"the graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, the GPU's "
                          f"network runner takes {N_INPUT} and {N_OUTPUT}")
    steps = _fuse(graph)
    places, constants, arena_size = _place(graph, steps)
    return Plan(graph.inputs, graph.outputs, steps, places, constants, arena_size)


class _Groups:
    """Groups of steps that are launched together, and the groups before each group."""

    def __init__(self, graph: LoweredGraph) -> None:
        self.graph = graph
        self.members: dict[int, list[int]] = {}
        self.before: dict[int, set[int]] = {}
        self.group_of: dict[int, int] = {}
        self.readers: dict[int, set[int]] = {}
        for i, step in enumerate(graph.steps):
            for view in reads(step):
                self.readers.setdefault(view.buffer, set()).add(i)

    def needs(self, group: int, other: int) -> bool:
        """Whether a group must come after another."""
        seen, stack = set(), [group]
        while stack:
            for ahead in self.before[stack.pop()]:
                if ahead == other:
                    return True
                if ahead not in seen:
                    seen.add(ahead)
                    stack.append(ahead)
        return False

    def program(self, members: list[int]) -> Program | None:
        """Fuse steps into one program; None if that is not possible."""
        inside = set(members)

        def stored(step: Map) -> bool:
            buffer = self.graph.buffers[step.out.buffer]
            partial = not step.out.contiguous or buffer.size != step.out.size
            return partial or buffer.place == "output" or bool(self.readers[step.out.buffer] - inside)

        steps = [step for i in members if isinstance(step := self.graph.steps[i], Map)]
        return fused(steps, lambda b: self.graph.buffers[b].size, stored)

    def merge(self, a: int, b: int) -> bool:
        """Make group b part of group a if both can run as one program. Return whether they can."""
        if any(self.needs(ahead, a) for ahead in self.before[b] - {a}):
            return False
        if any(self.needs(ahead, b) for ahead in self.before[a] - {b}):
            return False
        members = sorted(self.members[a] + self.members[b])
        if self.program(members) is None:
            return False
        self.members[a] = members
        self.before[a] = (self.before[a] | self.before[b]) - {a, b}
        for ahead in self.before.values():
            if b in ahead:
                ahead.remove(b)
                ahead.add(a)
        for i in members:
            self.group_of[i] = a
        del self.members[b], self.before[b]
        return True

    def is_map(self, group: int) -> bool:
        """Whether a group's steps are elementwise."""
        return isinstance(self.graph.steps[self.members[group][0]], Map)

    def size(self, group: int) -> int:
        """Elements of a group's results."""
        return self.graph.steps[self.members[group][0]].out.size


def _fuse(graph: LoweredGraph) -> list[PlannedStep]:
    groups = _Groups(graph)
    writers: dict[int, list[int]] = {}
    for i, step in enumerate(graph.steps):
        writers.setdefault(step.out.buffer, []).append(i)
    for i, step in enumerate(graph.steps):
        sources = {groups.group_of[w] for view in reads(step) for w in writers.get(view.buffer, ())}
        groups.members[i], groups.before[i], groups.group_of[i] = [i], sources, i
        if not isinstance(step, Map):
            continue
        merged = i
        for source in sorted(sources, reverse=True):
            if groups.is_map(source) and groups.size(source) == step.out.size and groups.merge(source, merged):
                merged = source
    # Independent groups of one size share a launch.
    maps = [group for group in groups.members if groups.is_map(group)]
    for n, a in enumerate(maps):
        for b in maps[n + 1 :]:
            if a in groups.members and b in groups.members and groups.size(a) == groups.size(b):
                groups.merge(a, b)
    return [_planned(graph, groups, group) for group in _ordered(groups)]


def _planned(graph: LoweredGraph, groups: _Groups, group: int) -> PlannedStep:
    step = graph.steps[groups.members[group][0]]
    if not isinstance(step, Map):
        return step
    program = groups.program(groups.members[group])
    if program is None:
        raise DeviceError(f"an operation {step.function} has more axes than the GPU's network runner takes")
    return program


def _ordered(groups: _Groups) -> list[int]:
    """Groups in an order in which each follows the groups that it needs, else in the order of their last steps."""
    order: list[int] = []
    left = set(groups.members)
    while left:
        ready = [group for group in left if not groups.before[group] & left]
        order.append(min(ready, key=lambda group: groups.members[group][-1]))
        left.remove(order[-1])
    return order


def _touched(step: PlannedStep) -> list[View]:
    return step.views if isinstance(step, Program) else [*reads(step), step.out]


def _place(graph: LoweredGraph,
           steps: list[PlannedStep]) -> tuple[dict[int, tuple[int, int]], NDArray[np.float32], int]:
    """Choose the places of the buffers. Return them, all constants in one array, and the arena's size."""
    life: dict[int, tuple[int, int]] = {}
    for i, step in enumerate(steps):
        for view in _touched(step):
            life[view.buffer] = life.get(view.buffer, (i, i))[0], i
    places: dict[int, tuple[int, int]] = {}
    constants: list[NDArray[np.float32]] = []
    n_constant = 0
    for b in life:
        buffer = graph.buffers[b]
        if buffer.place == "constant":
            places[b] = CONSTANTS, n_constant
            room = _aligned(buffer.size)
            constants.append(np.pad(graph.constants[b].astype(np.float32), (0, room - buffer.size)))
            n_constant += room
        elif buffer.place != "arena":
            places[b] = (INPUTS if buffer.place == "input" else OUTPUTS) + buffer.index, 0
    # Largest first, each at the lowest place that no buffer in use at the same time occupies.
    placed: list[tuple[int, int, int]] = []  # buffer, first, end
    for b in sorted((b for b in life if b not in places), key=lambda b: -graph.buffers[b].size):
        first, size = 0, _aligned(graph.buffers[b].size)
        for other, start, end in sorted(placed, key=lambda entry: entry[1]):
            together = life[b][0] <= life[other][1] and life[other][0] <= life[b][1]
            if together and start < first + size and first < end:
                first = end
        placed.append((b, first, first + size))
        places[b] = ARENA, first
    arena_size = max((end for _, _, end in placed), default=0)
    if arena_size >= 2**31:
        raise DeviceError(f"a network for {graph.n_source} sources at a time is too large: choose fewer")
    return places, np.concatenate(constants) if constants else np.zeros(0, np.float32), arena_size


def _aligned(size: int) -> int:
    return -(-size // ARENA_ALIGNMENT) * ARENA_ALIGNMENT


def _distinct(view: View) -> int:
    """Number of elements of a view, without repetitions by a stride of 0."""
    lengths = [n for d, (n, s) in enumerate(zip(view.shape, view.strides, strict=True))
               if s or (view.table and view.table[0] == d)]
    return int(np.prod(lengths, dtype=np.int64))


def _operations(step: Step) -> float:
    if isinstance(step, Matmul):
        return 2.0 * step.out.size * step.a.shape[-1]
    if isinstance(step, Convolution):
        return 2.0 * step.out.size * step.kernel.shape[0]
    return float(reads(step)[0].size)
