"""Drawing sources on images in a graph: `deblendrt.engine.compute.drawing` for one scene of a fixed size.

Coefficients have the bands first, (n_band, n_source, n_basis). Sources with windows of one size are a group; smaller
windows use fewer functions, as in the engine. The number of sources in a group is known at run time and may be zero.
One matrix product draws a group. `Pad` then puts the windows in their places one by one, and `Slice` cuts windows from
images.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.model.outskirts import interpolate
from deblendrt.export.solver.graph_builder import Builder, Value


class Level(NamedTuple):
    """A size of windows, and its tables."""

    inset: int
    size: int
    n_used: int
    draw: Value  # float32 (n_band, n_used, size^2)
    gather: Value  # its transpose


class Group(NamedTuple):
    """Sources whose windows have one size."""

    level: int
    rows: Value  # int64 (m,)


class Groups(NamedTuple):
    """All sources that are drawn, by the size of their windows. `wide` are the sources with outskirts."""

    windows: list[Group]
    wide: Value | None


@dataclasses.dataclass
class DrawingGraph:
    """Draws a scene's sources with a folded basis, and projects images on it.

    Attributes
    ----------
    b : Builder
    folded : FoldedBasis
    n_source : int
    shape : (int, int)
        (n_y, n_x) of the image.
    anchor : Value
        int64 (n_source, 2), (x, y) on the image.
    """

    b: Builder
    folded: FoldedBasis
    n_source: int
    shape: tuple[int, int]
    anchor: Value

    def __post_init__(self) -> None:
        b, folded = self.b, self.folded
        n_band, n_basis, window = folded.n_band, folded.n_basis, folded.window
        self.phi = b.constant(folded.phi.reshape(n_band, n_basis, window, window))
        self.levels: list[Level] = []
        for inset, size, n_used in [(0, window, n_basis), *((w.inset, w.size, w.n_used) for w in folded.nested)]:
            inside = slice(inset, inset + size)
            draw = self.phi[:, :n_used, inside, inside].reshape(n_band, n_used, size * size)
            self.levels.append(Level(inset, size, n_used, draw, draw.transpose(0, 2, 1)))
        self.x, self.y = self.anchor[:, 0], self.anchor[:, 1]
        self.numbers = b.constant(np.arange(self.n_source))
        if folded.margin:
            side = folded.full_window // folded.binning
            outside = np.ones((folded.full_window, folded.full_window), np.float32)
            core = slice(folded.margin, folded.margin + window)
            outside[core, core] = 0
            self.outside, self.side = b.constant(outside), side
            along = interpolate(np.eye(side, dtype=np.float32), folded.binning, 0)  # (full_window, side)
            self.spread, self.collect = b.constant(along), b.constant(along.T)
            self.outer = b.constant(folded.outer)
            self.outer_t = self.outer.transpose(0, 2, 1)

    def groups(self, extent: Value) -> Groups:
        """Groups of the sources, by how far they are drawn.

        Parameters
        ----------
        extent : Value
            int64 (n_source,), see `deblendrt.engine.compute.drawing`.
        """
        drawn = self.b.minimum(extent, 0)
        return Groups([Group(k, self.b.rows(drawn.equal(-k))) for k in range(len(self.levels))],
                      self.b.rows(extent > 0) if self.folded.margin else None)

    def stamps(self, coefficients: Value, group: Group, band: Value | None = None) -> Value:
        """Stamps of a group, float32 (n_band, m, size, size). `band` is that of `placed`."""
        level = self.levels[group.level]
        chosen = coefficients.take(group.rows, 1)[:, :, : level.n_used]
        table = level.draw if band is None else level.draw.take(band)
        return (chosen @ table).reshape(0, 0, level.size, level.size)

    def outskirts(self, coefficients: Value, rows: Value, band: Value | None = None) -> Value:
        """Outskirts of sources, zero in their windows, float32 (n_band, m, full_window, full_window)."""
        table = self.outer if band is None else self.outer.take(band)
        cells = (coefficients.take(rows, 1) @ table).reshape(0, 0, self.side, self.side)
        return (self.spread @ cells @ self.collect) * self.outside

    def pads(self, first: int, size: int) -> Value:
        """Pixels around each window on the image, as `Pad` takes them, int64 (n_source, 6).

        `first` is the first pixel of the window relative to the source's anchor, `size` its side.
        """
        x, y = self.x + first, self.y + first
        none = self.b.zeros(self.n_source, dtype=np.int64)
        columns = [none, y, x, none, (self.shape[0] - size) - y, (self.shape[1] - size) - x]
        return self.b.concat([c[:, None] for c in columns], 1)

    def if_any(self, rows: Value, yes: Callable[[], Value], no: Value) -> Value:
        """`yes` if a group has sources, else `no`: some kernels of ONNX Runtime do not take empty tensors."""
        return self.b.branch(self.b.node("Size", rows, dtype=np.int64) > 0, yes, lambda: no)

    def pieces(self, groups: Groups, band: Value | None = None) -> list[tuple[Value, Callable[[Value], Value], Value]]:
        """Each group's rows, function from coefficients to stamps (n_band, m, size, size), and pads (n_source, 6)."""
        half = self.folded.half
        result: list[tuple[Value, Callable[[Value], Value], Value]] = []
        for group in groups.windows:
            level = self.levels[group.level]
            result.append((group.rows, functools.partial(self.stamps, group=group, band=band),
                           self.pads(level.inset - half, level.size)))
        if groups.wide is not None:
            result.append((groups.wide, functools.partial(self.outskirts, rows=groups.wide, band=band),
                           self.pads(-half - self.folded.margin, self.folded.full_window)))
        return result

    def render(self, coefficients: Value, groups: Groups) -> Value:
        """Sum of the sources' images, float32 (n_band, n_y, n_x)."""
        b = self.b
        image = b.zeros(self.folded.n_band, *self.shape, dtype=np.float32)
        for rows, draw, pads in self.pieces(groups):
            def add(before: Value = image, rows: Value = rows, draw: Callable[[Value], Value] = draw,
                    pads: Value = pads) -> Value:
                stamps, around = draw(coefficients), pads.take(rows)
                return b.loop(b.node("Size", rows), [before], lambda i, canvas: [
                    canvas + b.node("Pad", stamps.take(i, 1), around.take(i))])[0]

            image = self.if_any(rows, add, image)
        return image

    def placed(self, coefficients: Value, groups: Groups, n_plane: int, band: Value | None = None) -> Value:
        """Every source's images.

        Parameters
        ----------
        coefficients : Value
            float32 (n_plane, n_source, n_basis).
        groups : Groups
        n_plane : int
            The number of bands, or any number with `band`.
        band : Value, optional
            int64 (1,), the band of all planes.

        Returns
        -------
        Value
            float32 (n_plane, n_source, n_y * n_x).
        """
        b = self.b
        images = b.zeros(self.n_source, n_plane, *self.shape, dtype=np.float32)
        for rows, draw, pads in self.pieces(groups, band):
            def add(before: Value = images, rows: Value = rows, draw: Callable[[Value], Value] = draw,
                    pads: Value = pads) -> Value:
                stamps, around = draw(coefficients), pads.take(rows)
                mine, = b.loop(b.node("Size", rows), [], lambda i: [
                    b.node("Pad", stamps.take(i, 1), around.take(i))], scan=[(n_plane, *self.shape)])
                return b.node("ScatterND", before, rows[:, None], mine, reduction="add")

            images = self.if_any(rows, add, images)
        return images.reshape(self.n_source, n_plane, -1).transpose(1, 0, 2)

    def cuts(self, image: Value, rows: Value, first: int, size: int) -> Value:
        """Windows of an image, zero off the image, float32 (n_band, m, size^2). `first`, `size`: as in `pads`."""
        b, n_plane = self.b, self.folded.n_band
        border = -first
        padded = b.node("Pad", image, b.ints([0, border, border, 0, border, border]))
        start = b.concat([self.y[:, None], self.x[:, None]], 1).take(rows)  # the border moves windows by -first
        axes = b.ints([1, 2])
        cut, = b.loop(b.node("Size", rows), [], lambda i: [
            b.node("Slice", padded, start.take(i), start.take(i) + size, axes)], scan=[(n_plane, size, size)])
        return cut.reshape(0, n_plane, size * size).transpose(1, 0, 2)

    def windows_of(self, image: Value, group: Group) -> Value:
        """The windows of a group, float32 (n_band, m, size^2)."""
        level = self.levels[group.level]
        return self.cuts(image, group.rows, level.inset - self.folded.half, level.size)

    def spread_rows(self, values: Value, rows: Value) -> Value:
        """Values (n_band, m, n) of some sources, with zeros for the other sources, float32 (n_band, n_source, n)."""
        return self.numbers[:, None].equal(rows[None]).cast(np.float32) @ values

    def by_group(self, groups: list[Group], compute: Callable[[Group], Value], n: int) -> Value:
        """Values of all sources, computed for groups as (n_band, m, n), float32 (n_band, n_source, n)."""
        total = self.b.zeros(self.folded.n_band, self.n_source, n, dtype=np.float32)
        for group in groups:
            def add(before: Value = total, group: Group = group) -> Value:
                return before + self.spread_rows(compute(group), group.rows)

            total = self.if_any(group.rows, add, total)
        return total

    def project(self, image: Value, groups: Groups) -> Value:
        """Inner products with the folded basis, float32 (n_band, n_source, n_basis)."""
        b, n_basis = self.b, self.folded.n_basis

        def products(group: Group) -> Value:
            level = self.levels[group.level]
            found = self.windows_of(image, group) @ level.gather
            rest = n_basis - level.n_used
            return found if rest == 0 else b.node("Pad", found, b.ints([0, 0, 0, 0, 0, rest]))

        total = self.by_group(groups.windows, products, n_basis)
        wide = groups.wide
        if wide is None:
            return total

        def outskirts() -> Value:
            full = self.folded.full_window
            cut = self.cuts(image, wide, -self.folded.half - self.folded.margin, full)
            cut = cut.reshape(0, 0, full, full) * self.outside
            cells = (self.collect @ cut @ self.spread).reshape(0, 0, self.side**2)
            return total + self.spread_rows(cells @ self.outer_t, wide)

        return self.if_any(wide, outskirts, total)
