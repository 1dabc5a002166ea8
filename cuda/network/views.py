"""Strided views of flat buffers. With views, operators that only change shapes cost nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

MAX_DIM = 4  # most axes of a view in network_map.cu


@dataclasses.dataclass(frozen=True)
class View:
    """Elements of a flat float32 buffer, in any order.

    Attributes
    ----------
    buffer : int
        Number of the buffer in the plan.
    offset : int
        First element.
    shape, strides : tuple of int
        In elements. A stride of 0 repeats elements.
    table : tuple (int, tuple of int), optional
        An axis and its positions, where -1 stands for the value zero. The stride of this axis is 0. With tables,
        gathers and pads are views.
    """

    buffer: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    table: tuple[int, tuple[int, ...]] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def contiguous(self) -> bool:
        """Whether the elements are contiguous, in C order."""
        pairs = zip(self.shape, self.strides, contiguous_strides(self.shape), strict=True)
        return self.table is None and all(n == 1 or s == c for n, s, c in pairs)

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """The same elements in C order under another shape, or None if that needs a copy."""
        strides = None if self.table else reshaped_strides(self.shape, self.strides, tuple(shape))
        return None if strides is None else dataclasses.replace(self, shape=tuple(shape), strides=strides)

    def broadcast(self, shape: Sequence[int]) -> View:
        """The view broadcast to a shape by NumPy's rules."""
        shape = tuple(shape)
        ahead = len(shape) - len(self.shape)
        strides = (0,) * ahead + tuple(0 if n == 1 else s for n, s in zip(self.shape, self.strides, strict=True))
        table = None
        if self.table:
            dim, entries = self.table
            table = (dim + ahead, entries * shape[dim + ahead] if len(entries) == 1 else entries)
        return dataclasses.replace(self, shape=shape, strides=strides, table=table)

    def sliced(self, dim: int, start: int, length: int, step: int = 1) -> View:
        """Elements start, start + step, ... along one axis."""
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + start * strides[dim]
        shape[dim], strides[dim] = length, strides[dim] * step
        return dataclasses.replace(self, offset=offset, shape=tuple(shape), strides=tuple(strides))

    def transposed(self, order: Sequence[int]) -> View:
        """The view with its axes in another order."""
        return dataclasses.replace(self, shape=tuple(self.shape[d] for d in order),
                                   strides=tuple(self.strides[d] for d in order))

    def looked_up(self, dim: int, entries: Iterable[int]) -> View:
        """Elements of the given numbers along one axis. -1 gives the value zero."""
        stride = self.strides[dim]
        positions = tuple(-1 if i < 0 else i * stride for i in entries)
        shape = (*self.shape[:dim], len(positions), *self.shape[dim + 1 :])
        strides = (*self.strides[:dim], 0, *self.strides[dim + 1 :])
        return dataclasses.replace(self, shape=shape, strides=strides, table=(dim, positions))


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of an array in C order."""
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


def whole(buffer: int, shape: Sequence[int]) -> View:
    """A whole buffer under a shape."""
    return View(buffer, 0, tuple(shape), contiguous_strides(shape))


def reshaped_strides(shape: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of the elements of (shape, strides) in C order under the shape `new`, or None if there are none."""
    if math.prod(shape) != math.prod(new):
        raise ValueError(f"cannot reshape {shape} to {new}")
    runs: list[tuple[int, int]] = []  # (length, stride) of merged axes, outermost first
    for n, s in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if runs and runs[-1][1] == n * s:
            runs[-1] = (runs[-1][0] * n, s)
        else:
            runs.append((n, s))
    result: list[int] = []
    left, stride = runs.pop() if runs else (1, 1)
    for n in reversed(new):
        if n == 1:
            result.append(0)
            continue
        if left == 1 and runs:
            left, stride = runs.pop()
        if left % n:
            return None
        result.append(stride)
        left, stride = left // n, stride * n
    return tuple(reversed(result))


def common_axes(shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The coarsest shape from which all shapes of one size follow by merging axes, or None if there is none."""
    cuts = sorted({math.prod(shape[d:]) for shape in shapes for d in range(len(shape) + 1)})
    if any(b % a for a, b in itertools.pairwise(cuts)):
        return None
    return tuple(b // a for a, b in reversed(list(itertools.pairwise(cuts))))


def merged_axes(axes: tuple[int, ...], views: Sequence[View]) -> tuple[tuple[int, ...], list[View]] | None:
    """Views of one size under as few common axes as possible, or None if a table's axis would be split.

    Parameters
    ----------
    axes : tuple of int
        `common_axes` of the views' shapes.
    views : sequence of View

    Returns
    -------
    shape : tuple of int
    list of View
        The views under that shape.
    """
    split = []
    for view in views:
        under = _split(view, axes)
        if under is None:
            return None
        split.append(under)
    tabled = {view.table[0] for view in split if view.table}
    groups: list[list[int]] = []
    for d, n in enumerate(axes):
        last = groups[-1][-1] if groups else None
        joins = last is not None and d not in tabled and last not in tabled and all(
            view.strides[last] == n * view.strides[d] for view in split)
        if joins:
            groups[-1].append(d)
        else:
            groups.append([d])
    groups = groups or [[]]
    shape = tuple(math.prod(axes[d] for d in group) for group in groups)
    result = []
    for view in split:
        strides = tuple(view.strides[group[-1]] if group else 0 for group in groups)
        table = None
        if view.table:
            table = next((i, view.table[1]) for i, group in enumerate(groups) if view.table[0] in group)
        result.append(dataclasses.replace(view, shape=shape, strides=strides, table=table))
    return shape, result


def _split(view: View, axes: tuple[int, ...]) -> View | None:
    """A view under finer axes, none of which has length 1."""
    strides: list[int] = []
    table = None
    done = 0
    for d, n in enumerate(view.shape):
        part: list[int] = []
        while math.prod(part) < n:
            part.append(axes[done + len(part)])
        if view.table and view.table[0] == d:
            if len(part) > 1:
                return None
            table = (done, view.table[1]) if part else None
            if not part:  # an axis of length one: the table has one entry
                if view.table[1][0] < 0:
                    return None
                view = dataclasses.replace(view, offset=view.offset + view.table[1][0])
        strides += [view.strides[d] * math.prod(part[i + 1 :]) for i in range(len(part))]
        done += len(part)
    return dataclasses.replace(view, shape=axes, strides=tuple(strides), table=table)
