"""The descent in a graph: `deblendrt.engine.solve.descent.gauss_newton` and `deblendrt.engine.solve.curvature` for one
scene.

One loop runs all iterations, including the further rounds. Blends that do not move any more keep their latents. The
loop ends when no blend moves.
"""

from __future__ import annotations

import numpy as np

from deblendrt.engine.solve import constants
from deblendrt.engine.solve import curvature as engine_curvature
from deblendrt.engine.solve import objective as engine_objective
from deblendrt.export.solver.drawing import Groups
from deblendrt.export.solver.graph_builder import Value
from deblendrt.export.solver.joint_step import JointStepGraph, by_latent
from deblendrt.export.solver.objective import BlendValues, ObjectiveGraph, PointValues, total


class DescentGraph:
    """The damped Gauss-Newton descent of one scene.

    Parameters
    ----------
    objective : ObjectiveGraph
    n_iteration : int
    rounds : bool
        Whether blends that still move get further iterations.
    """

    def __init__(self, objective: ObjectiveGraph, n_iteration: int, *, rounds: bool = True) -> None:
        self.o, self.b, self.draw = objective, objective.b, objective.draw
        self.bundle, self.scene = objective.bundle, objective.scene
        self.n, self.n_band = objective.n_source, objective.n_band
        self.n_latent = self.bundle.n_latent
        self.joint = JointStepGraph(self.draw, 1 + objective.n_move)
        shares = constants.FURTHER_ROUNDS if n_iteration and rounds else ()
        further = [max(int(share * n_iteration), 1) for share in shares]
        tempers = [engine_objective.temper(i, n_iteration) for i in range(n_iteration)]
        self.n_total = n_iteration + sum(further)
        self.tempers = np.array([*tempers, *[0.0] * (self.n_total - n_iteration)], np.float32)
        # before which iterations windows follow the light, and before which only moving blends go on
        self.redraw = np.zeros(self.n_total + 1, bool)
        known = int(constants.TEMPERED_SHARE * n_iteration)
        self.redraw[known] = 0 < known < n_iteration
        self.select = np.zeros(self.n_total + 1, bool)
        self.select[np.cumsum([n_iteration, *further])[:-1]] = True

    def run(self, blends: BlendValues, latent: Value, floor: Value,
            extent: Value) -> tuple[PointValues, Value, Value, Value]:
        """Run the descent from a start.

        Parameters
        ----------
        blends : BlendValues
        latent, floor : Value
            float64 (n_source, n_latent), (n_source, n_band).
        extent : Value
            int64 (n_source,).

        Returns
        -------
        point : PointValues
        extent : Value
        left : Value
            float64 (n_source,), the decrease of L that the last iteration expected.
        n_run : Value
            int64 (), the number of iterations.
        """
        b, n = self.b, self.n
        point = self.o.evaluate(latent)
        model = self.o.render(point, self.draw.groups(extent))
        damping = b.constant(np.full(n, constants.FIRST_DAMPING))
        nothing = b.zeros(n)
        start = [*point, model, damping, self.prior_curvature(), extent, nothing, self.scene.fitted,
                 b.constant(np.array(0))]
        if self.n_total == 0:
            return point, extent, nothing, start[-1]
        end = b.loop(self.n_total, start, lambda i, *state: self.iteration(blends, floor, i, *state), condition=True)
        return PointValues(*end[:8]), end[11], end[12], end[14]

    def iteration(self, blends: BlendValues, floor: Value, i: Value, *state: Value) -> list[Value]:
        """One iteration, the body of `Builder.loop`: whether to go on, and the next state."""
        b, o = self.b, self.o
        point = PointValues(*state[:8])
        model, damping, curvature, extent, _, active, _ = state[8:]
        groups = self.draw.groups(extent)
        likely = o.likelihood(model, b.constant(self.tempers).take(i))
        weight, residual, loss = o.weigh(likely, model)
        downhill = o.pull(point, o.project(residual, groups)) + point.gradient
        step = self.newton_step(blends, point, groups, extent, weight, downhill, damping, curvature, active)
        trial = o.evaluate(self.move(point.latent, step, floor))
        trial_model = o.render(trial, groups)
        decrease = o.by_blend(blends, loss, point) - o.by_blend(blends, o.weigh(likely, trial_model)[2], trial)
        left = total(blends, (downhill * step).sum(1) * 0.5)
        better = (decrease > 0.0) & active
        damping = self.damped(damping, decrease, left)
        curvature = self.secant(curvature, trial.latent - point.latent, point.gradient - trial.gradient)
        chosen = PointValues(*(b.where(self.along(better, rank), new, old)
                         for new, old, rank in zip(trial, point, (2, 3, 4, 3, 4, 3, 1, 2), strict=True)))
        # the state before the next iteration
        redraw, select = (b.constant(table).take(i + 1) for table in (self.redraw, self.select))
        wanted = self.extents(chosen.coefficients, extent, groups)
        outgrown = wanted > extent
        going = active & (total(blends, ((left > constants.MOVING_DECREASE) | outgrown).cast(np.float64)) > 0.0)
        active = (select & going) | (~select & active)  # ONNX Runtime has no Where of bool
        following = b.where(redraw, wanted, b.where(select & outgrown & active, wanted, extent))
        kept = ~(~better & active).any() & ~(redraw | select)
        model = b.branch(kept, lambda: trial_model, lambda: o.render(chosen, self.draw.groups(following)))
        return [active.any(), *chosen, model, damping, curvature, following, left, active, i + 1]

    def along(self, values: Value, rank: int) -> Value:
        """Values (n_source,) in a shape that is broadcast over an array of a rank."""
        return values.reshape(self.n, *[1] * (rank - 1))

    def newton_step(self, blends: BlendValues, point: PointValues, groups: Groups, extent: Value, weight: Value,
                    downhill: Value, damping: Value, curvature: Value, active: Value) -> Value:
        """See `deblendrt.engine.solve.descent.newton_step`; float64 (n_source, n_latent), zero where not active."""
        columns = self.columns(point)
        alone = curvature if groups.wide is None else curvature + self.outskirts(columns, weight, groups.wide)
        return self.joint.joint_step(blends, columns, extent, weight, downhill, alone, damping, active)

    def outskirts(self, columns: Value, weight: Value, wide: Value) -> Value:
        """See `deblendrt.engine.solve.curvature.outskirts`; float64 (n_source, n_latent, n_latent)."""
        b, draw, n_band, n_column = self.b, self.draw, self.n_band, 1 + self.o.n_move
        gram = b.constant((draw.folded.full_gram - draw.folded.gram).astype(np.float32))

        def products() -> Value:
            mine = columns.take(wide).transpose(1, 0, 2, 3)  # (n_band, m, n_column, n_basis)
            through = (mine.reshape(0, -1, self.bundle.n_basis) @ gram).reshape(0, -1, n_column, self.bundle.n_basis)
            inner = (through @ mine.transpose(0, 1, 3, 2)).reshape(0, -1, n_column**2)
            inner = (inner * self.rim_weight(weight, wide)).transpose(1, 0, 2)
            block = by_latent(b, inner.reshape(-1, n_band, n_column, n_column).cast(np.float64), n_band)
            return b.node("ScatterND", nothing, wide[:, None], block)

        nothing = b.zeros(self.n, self.n_latent, self.n_latent)
        return draw.if_any(wide, products, nothing)

    def columns(self, point: PointValues) -> Value:
        """See `deblendrt.engine.solve.curvature.columns`; float32 (n_source, n_band, n_column, n_basis)."""
        b, n, n_band, n_move = self.b, self.n, self.n_band, self.o.n_move
        m, k = self.bundle.n_component, self.bundle.n_basis
        flux = b.exp(point.latent[:, :n_band]).cast(np.float32) * self.o.present[:, :, 0]
        moved = point.mix.transpose(0, 2, 1) @ point.d_maps.transpose(0, 2, 1, 3).reshape(n, m, n_move * k)
        moved = moved.reshape(n, n_band, n_move, k)
        by_mix = point.d_mix.transpose(0, 3, 1, 2) @ point.maps[:, None]
        moved = b.concat([moved[:, :, :2], moved[:, :, 2:] + by_mix], 2) * flux[:, :, None, None]
        return b.concat([point.coefficients[:, :, None], moved], 2)

    def rim_weight(self, weight: Value, wide: Value) -> Value:
        """See `deblendrt.engine.solve.curvature.rim_weight`; float32 (n_band, m, 1)."""
        window, rim = self.draw.folded.window, constants.RIM
        mask = np.ones((window, window), np.float32)
        mask[rim : window - rim, rim : window - rim] = 0
        mask /= engine_curvature.rim_size(window)
        return self.draw.cuts(weight, wide, -self.draw.folded.half, window) @ self.b.constant(mask.reshape(-1, 1))

    def move(self, latent: Value, step: Value, floor: Value) -> Value:
        """See `deblendrt.engine.solve.descent.move`."""
        b, n_band = self.b, self.n_band
        factor = b.clip(step[:, :n_band] + 1.0, constants.MIN_FLUX_FACTOR, constants.MAX_FLUX_FACTOR)
        fluxes = b.maximum(latent[:, :n_band] + b.log(factor), floor)
        moved = slice(n_band, n_band + 2)
        offset = latent[:, moved] + b.clip(step[:, moved], -constants.MAX_OFFSET_STEP, constants.MAX_OFFSET_STEP)
        offset0 = self.scene.offset0
        offset = b.clip(offset, offset0 - constants.MAX_DRIFT, offset0 + constants.MAX_DRIFT)
        shape = step[:, n_band + 2 :]
        length = b.maximum(b.sqrt((shape * shape).sum(1, keep=True)), 1e-12)
        shape = latent[:, n_band + 2 :] + shape * b.minimum(constants.MAX_SHAPE_STEP / length, 1.0)
        return b.concat([fluxes, offset, shape], 1)

    def damped(self, damping: Value, decrease: Value, expected: Value) -> Value:
        """See `deblendrt.engine.solve.descent.damped`."""
        b = self.b
        good, poor = (expected * share for share in (constants.GOOD_DECREASE, constants.POOR_DECREASE))
        following = b.where(decrease < good, damping, damping * constants.GOOD_FACTOR)
        following = b.where(decrease < poor, damping * constants.POOR_FACTOR, following)
        rejected = b.maximum(damping * constants.REJECTED_FACTOR, constants.REJECTED_DAMPING)
        following = b.where(decrease > 0.0, following, rejected)
        return b.clip(following, constants.MIN_DAMPING, constants.MAX_DAMPING)

    def secant(self, curvature: Value, step: Value, change: Value) -> Value:
        """See `deblendrt.engine.solve.prior.secant`."""
        b = self.b
        expected = apply(curvature, step)
        before, after = (step * expected).sum(1), (step * change).sum(1)
        good = ((after > before * constants.MIN_SECANT_RATIO) & (after < before * constants.MAX_SECANT_RATIO)
                & (before > constants.MIN_SECANT_CURVATURE))
        removed = expected[:, :, None] * expected[:, None] / b.where(good, before, 1.0)[:, None, None]
        added = change[:, :, None] * change[:, None] / b.where(good, after, 1.0)[:, None, None]
        return b.where(good[:, None, None], curvature - removed + added, curvature)

    def extents(self, coefficients: Value, extent: Value, groups: Groups) -> Value:
        """See `deblendrt.engine.solve.curvature.extents`; int64 (n_source,)."""
        b, folded = self.b, self.draw.folded
        weight = self.o.mean_weight(self.scene.weight, groups).transpose(1, 0)
        by_band = coefficients.transpose(1, 0, 2)
        result = b.constant(np.ones(self.n, np.int64))
        for k in range(0, -1 - len(folded.nested), -1):
            square = ((by_band @ b.constant(folded.at(k).missed)) * by_band).sum(2).cast(np.float64)
            result = b.where((weight * square).sum(0) <= constants.MAX_UNDRAWN**2, k, result)
        return b.maximum(result, self.scene.smallest)

    def prior_curvature(self) -> Value:
        """See `deblendrt.engine.solve.prior.prior_curvature`; float64 (n_source, n_latent, n_latent)."""
        b, n_band, bundle = self.b, self.n_band, self.bundle
        fixed = np.zeros((self.n_latent, self.n_latent))
        fixed[n_band + 2 :, n_band + 2 :] = bundle.prior_curvature
        fixed[[n_band, n_band + 1], [n_band, n_band + 1]] = self.o.center_sigma**-2
        missing = 1 / (bundle.color_sigma + constants.COLOR_SLACK) ** 2
        measured = self.scene.measured.cast(np.float64)
        pulled = (1.0 - measured) * missing
        through = measured / self.o.n_measured
        cross = pulled[:, :, None] * through[:, None]
        own = pulled + measured * constants.FREE_FLUX_CURVATURE
        fluxes = (own[:, :, None] * np.eye(n_band)
                  + pulled.sum(1, keep=True)[:, :, None] * through[:, :, None] * through[:, None]
                  - cross - cross.transpose(0, 2, 1))
        rest = self.n_latent - n_band
        return b.node("Pad", fluxes, b.ints([0, 0, 0, 0, rest, rest])) + fixed


def apply(block: Value, v: Value) -> Value:
    """Product of each source's block with its vector, float64 (n, m)."""
    return (block @ v[:, :, None])[:, :, 0]
