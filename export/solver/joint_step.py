"""The joint step of blends in a graph: `deblendrt.engine.solve.joint_step` for one scene.

Every source has a frame of S x S pixels, every second pixel along both axes, that holds its largest window. Two frames
overlap with a shift of whole pixels. So the size of the derivative images does not depend on the size of the image.
"""

from __future__ import annotations

import functools

import numpy as np

from deblendrt.engine.solve import constants
from deblendrt.export.solver.drawing import DrawingGraph
from deblendrt.export.solver.graph_builder import Builder, Value
from deblendrt.export.solver.linear_algebra import diagonal, solve_blocks
from deblendrt.export.solver.objective import BlendValues


class JointStepGraph:
    """The joint step, from products of the sources' derivative images.

    Parameters
    ----------
    draw : DrawingGraph
    n_column : int
        Number of derivatives of each source and band: by relative flux, offset and shape.
    """

    def __init__(self, draw: DrawingGraph, n_column: int) -> None:
        self.b, self.draw, self.n_column = draw.b, draw, n_column
        self.n_band = draw.folded.n_band
        self.side = (draw.folded.window + 1) // 2  # S
        half = self.b.node("Div", draw.anchor, self.b.ints([2]))
        self.odd = draw.anchor - half * 2  # whether the first pixel's coordinates on the canvas are odd, (x, y)
        self.first = half + self.odd  # the frame's first pixel, in pairs of pixels of the canvas
        # the canvas begins `half` pixels before the image: if `half` is odd, a pair begins one pixel before the image
        self.before = draw.folded.half % 2
        self.skipped = draw.folded.half // 2
        self.tables = self.every_second()

    def joint_step(self, blends: BlendValues, columns: Value, extent: Value, weight: Value, downhill: Value,
                   alone: Value, damping: Value, active: Value) -> Value:
        """See `deblendrt.engine.solve.joint_step.joint_step`.

        Parameters
        ----------
        blends : BlendValues
        columns : Value
            float32 (n_source, n_band, n_column, n_basis), zero for sources that are not fitted.
        extent : Value
            int64 (n_source,).
        weight : Value
            float32 (n_band, n_y, n_x).
        downhill, alone : Value
            float64 (n_source, n_latent), (n_source, n_latent, n_latent).
        damping : Value
            float64 (n_source,).
        active : Value
            bool (n_source,): the other sources do not move, and are coupled to none.

        Returns
        -------
        Value
            float64 (n_source, n_latent).
        """
        b, n = self.b, self.draw.n_source
        n_latent = self.n_band + self.n_column - 1

        def solved() -> Value:
            rows, stamps = self.drawn(columns, extent, active)
            pair, inner = self.products(rows, stamps, weight, blends)
            block = by_latent(b, inner.cast(np.float64), self.n_band)
            matrix = b.zeros(n, n, n_latent, n_latent)
            matrix = b.node("ScatterND", matrix, pair.transpose(1, 0), block)
            matrix = b.node("ScatterND", matrix, b.concat([pair[1:], pair[:1]], 0).transpose(1, 0),
                            block.transpose(0, 2, 1))
            same = b.constant(np.eye(n)[:, :, None, None])
            own = (matrix * same).sum(1) + alone
            one, moved = np.eye(n_latent), np.diag([0.0] * self.n_band + [1.0] * (n_latent - self.n_band))
            damped = b.where((damping >= constants.FLUX_DAMPED)[:, None, None], one, moved)
            own = b.where(active[:, None, None], own + own * damping[:, None, None] * damped, one)
            scale = 1.0 / b.sqrt(diagonal(b, own, n_latent))
            own = own * scale[:, :, None] * scale[:, None] + constants.JOINT_RIDGE * np.eye(n_latent)
            apart = matrix * scale[:, None, :, None] * scale[None, :, None] * (1.0 - same)
            system = (apart + same * own[:, None]).transpose(0, 2, 1, 3)
            return solve_blocks(b, system, downhill * scale, rows, n, n_latent) * scale

        nothing = b.zeros(n, n_latent)
        return b.where(active[:, None], b.branch(active.any(), solved, lambda: nothing), 0.0)

    def drawn(self, columns: Value, extent: Value, active: Value) -> tuple[Value, Value]:
        """Derivative images of the active sources in their frames.

        Returns
        -------
        rows : Value
            int64 (m,), the active sources.
        stamps : Value
            float32 (m, n_band, n_column, S, S), without outskirts, which couple no sources.
        """
        b, draw = self.b, self.draw
        level_of = -b.minimum(extent, 0)
        rows: list[Value] = []
        stamps: list[Value] = []
        none = b.zeros(0, self.n_band, self.n_column, self.side, self.side, dtype=np.float32)
        for k in range(len(draw.levels)):
            for x in range(2):
                for y in range(2):
                    here = level_of.equal(k) & self.odd[:, 0].equal(x) & self.odd[:, 1].equal(y) & active
                    rows.append(b.rows(here))
                    stamps.append(draw.if_any(rows[-1], functools.partial(self.group, columns, rows[-1], k, x, y),
                                              none))
        return b.concat(rows, 0), b.concat(stamps, 0)

    def group(self, columns: Value, rows: Value, k: int, x: int, y: int) -> Value:
        """Derivative images of sources with windows of one size, whose first pixels are even or odd (x, y)."""
        b, level = self.b, self.draw.levels[k]
        table, height, width = self.tables[k, x, y]
        mine = columns.take(rows)[:, :, :, : level.n_used].transpose(1, 0, 2, 3)
        images = mine.reshape(self.n_band, -1, level.n_used) @ table
        images = images.reshape(self.n_band, -1, self.n_column, height, width).transpose(1, 0, 2, 3, 4)
        left, top = ((odd + level.inset + 1) // 2 - odd for odd in (x, y))
        return b.node("Pad", images, b.ints([0, 0, 0, top, left, 0, 0, 0, self.side - top - height,
                                             self.side - left - width]))

    def every_second(self) -> dict[tuple[int, int, int], tuple[Value, int, int]]:
        """Tables from coefficients to every second pixel of a window, float32 (n_band, n_used, height * width)."""
        tables = {}
        for k, level in enumerate(self.draw.levels):
            last = level.inset + level.size
            for x in range(2):
                for y in range(2):
                    left, top = ((odd + level.inset) % 2 for odd in (x, y))
                    height, width = ((level.size - start + 1) // 2 for start in (top, left))
                    pixels = self.draw.phi[:, : level.n_used, level.inset + top : last : 2,
                                           level.inset + left : last : 2]
                    tables[k, x, y] = pixels.reshape(0, 0, height * width), height, width
        return tables

    def products(self, rows: Value, stamps: Value, weight: Value, blends: BlendValues) -> tuple[Value, Value]:
        """Weighted products of all pairs of a blend whose frames overlap; each source is a pair with itself.

        Parameters
        ----------
        rows, stamps : Value
            From `drawn`.
        weight : Value
            float32 (n_band, n_y, n_x).
        blends : BlendValues

        Returns
        -------
        pair : Value
            int64 (2, n_pair), the sources of each pair.
        inner : Value
            float32 (n_pair, n_band, n_column, n_column), derivatives of the first by derivatives of the second source.
        """
        b, side, n_band, n_column = self.b, self.side, self.n_band, self.n_column
        place = self.first.take(rows)
        shift = place[None] - place[:, None]
        apart = ((shift >= side) | (shift <= -side)).any(2)
        joined = blends.joined.take(rows).take(rows, 1) > 0.5
        pair = b.node("NonZero", joined & ~apart & (rows[:, None] <= rows[None]), dtype=np.int64)
        weighted = stamps * self.weights(weight, place)[:, :, None]
        weighted = weighted.reshape(0, n_band, n_column, side * side)
        columns = stamps.transpose(0, 1, 3, 4, 2)
        none = b.ints([0])

        def product(i: Value) -> list[Value]:
            first, second = (pair.take(i, 1).take(b.constant(np.array(k))) for k in range(2))
            dx, dy = ((place.take(second) - place.take(first)).take(b.ints([k])) for k in range(2))
            around = b.concat([none, dy, dx, none, none, -dy, -dx, none], 0)
            other = b.node("Pad", columns.take(second), around).reshape(n_band, side * side, n_column)
            return [weighted.take(first) @ other]

        inner, = b.loop(b.node("Size", pair[0]), [], product, scan=[(n_band, n_column, n_column)])
        return rows.take(pair), inner

    def weights(self, weight: Value, place: Value) -> Value:
        """Sums of weights over squares of 2 x 2 pixels, in the frames, float32 (m, n_band, S, S)."""
        b, side, n_band = self.b, self.side, self.n_band
        size = [(n + self.before + 1) // 2 for n in self.draw.shape]
        after = [2 * twos - self.before - n for twos, n in zip(size, self.draw.shape, strict=True)]
        squares = b.node("Pad", weight, b.ints([0, self.before, self.before, 0, *after]))
        squares = squares.reshape(n_band, size[0], 2, size[1], 2).sum(2, 4)
        padded = b.node("Pad", squares, b.ints([0, side, side, 0, side, side]))
        start = b.concat([place[:, 1:], place[:, :1]], 1) + (side - self.skipped)
        axes = b.ints([1, 2])
        cut, = b.loop(b.node("Size", place[:, 0]), [], lambda i: [
            b.node("Slice", padded, start.take(i), start.take(i) + side, axes)], scan=[(n_band, side, side)])
        return cut


def by_latent(b: Builder, inner: Value, n_band: int) -> Value:
    """See `deblendrt.engine.solve.curvature.by_latent`; (n, n_band, n_column, n_column) to (n, n_latent, n_latent)."""
    fluxes = inner[:, :, 0, 0][:, :, None] * np.eye(n_band)
    cross = inner[:, :, 0, 1:]
    rest = inner[:, :, 1:, 1:].sum(1)
    left = b.concat([fluxes, inner[:, :, 1:, 0].transpose(0, 2, 1)], 1)
    return b.concat([left, b.concat([cross, rest], 1)], 2)
