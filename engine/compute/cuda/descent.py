"""The descent of `descent` on a device: the same iterations as a fixed sequence of kernels.

Every step of `descent.descend` and `descent.adam` has its kernel in ``cuda/``; this file is their order. Nothing is
read back in between: rejected steps are undone by a kernel that copies, so that all iterations of a batch are one
recording (a CUDA graph), kept with its buffers for batches of the same padded size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import DeviceArray, Recording
from deblendrt.cuda.kernels.latents.launch import columns, combine, pull, stars
from deblendrt.cuda.kernels.linear.launch import (
    alike,
    block_inverse,
    blocks,
    couplings,
    joint_blocks,
    joint_conjugate,
    joint_solve,
)
from deblendrt.cuda.kernels.pixels.launch import (
    loss,
    mean_weight,
    product,
    project,
    reach,
    render,
    residual,
    trim_basis,
    trim_stamps,
    wide,
)
from deblendrt.cuda.kernels.prior.launch import prior_terms, secant
from deblendrt.cuda.kernels.steps.launch import accept, adam, choose, move, narrow
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.cuda.layouts import SourcePairs, filled
from deblendrt.engine.compute.cuda.model import DeviceModel, Tables
from deblendrt.engine.compute.problem import DoubleArray, Problem, State
from deblendrt.engine.model.networks import FactoredJacobian
from deblendrt.engine.solve import constants, objective
from deblendrt.engine.solve.adam import adam_rates
from deblendrt.engine.solve.prior import prior_curvature

LIMITS = {"min_flux_factor": constants.MIN_FLUX_FACTOR, "max_flux_factor": constants.MAX_FLUX_FACTOR,
          "max_offset_step": constants.MAX_OFFSET_STEP, "max_drift": constants.MAX_DRIFT,
          "max_shape_step": constants.MAX_SHAPE_STEP}
ACCEPT_RULE = {"rejected_damping": constants.REJECTED_DAMPING, "min_damping": constants.MIN_DAMPING,
               "max_damping": constants.MAX_DAMPING, "rejected_factor": constants.REJECTED_FACTOR,
               "poor_decrease": constants.POOR_DECREASE, "poor_factor": constants.POOR_FACTOR,
               "good_decrease": constants.GOOD_DECREASE, "good_factor": constants.GOOD_FACTOR}
SECANT_BOUNDS = {"min_ratio": constants.MIN_SECANT_RATIO, "max_ratio": constants.MAX_SECANT_RATIO,
                 "min_curvature": constants.MIN_SECANT_CURVATURE}
LAYOUT_ARRAYS, PAIR_ARRAYS = (tuple(f.name for f in dataclasses.fields(kind) if f.type == "Any")
                              for kind in (Layout, SourcePairs))


@dataclasses.dataclass(frozen=True)
class DeviceState:
    """`problem.State` on a device: every field an array of it, padded."""

    latent: DeviceArray
    maps: DeviceArray
    d_maps: DeviceArray
    mix: DeviceArray
    d_mix: DeviceArray
    coefficients: DeviceArray
    log_prior: DeviceArray
    prior_gradient: DeviceArray
    model: DeviceArray

    @property
    def jacobian(self) -> tuple[DeviceArray, DeviceArray, DeviceArray, DeviceArray]:
        """maps, d_maps, mix, d_mix."""
        return self.maps, self.d_maps, self.mix, self.d_mix

    @property
    def by_source(self) -> tuple[DeviceArray, ...]:
        """All but the model image, which is a scene's."""
        return (self.latent, *self.jacobian, self.coefficients, self.log_prior, self.prior_gradient)


class Descent:
    """Buffers for problems of one padded size, and the recordings that work on them.

    Parameters
    ----------
    model : DeviceModel
    every : Layout
    pairs : SourcePairs
        Of NumPy arrays; they state the sizes.
    """

    def __init__(self, model: DeviceModel, every: Layout, pairs: SourcePairs) -> None:
        self.model, self.device = model, model.device
        bundle = model.bundle
        n, n_band, n_pixel, n_blend = every.n_source, every.n_band, every.n_pixel, every.n_blend
        n_basis, n_shape, n_latent = bundle.n_basis, bundle.n_shape, bundle.n_latent
        n_component, n_column = bundle.n_component, n_shape + 3
        empty = self.device.empty
        f32, f64, i32 = np.float32, np.float64, np.int32
        self.every = every.on(lambda a: empty(a.shape, a.dtype))
        self.pairs = pairs.on(lambda a: empty(a.shape, a.dtype))

        def state() -> DeviceState:
            return DeviceState(
                empty((n, n_latent), f64), empty((n, n_component, n_basis), f32),
                empty((n, n_shape + 2, n_component, n_basis), f32), empty((n, n_component, n_band), f32),
                empty((n, n_shape, n_component, n_band), f32), empty((n, n_band, n_basis), f32), empty(n, f64),
                empty((n, n_latent), f64), empty(n_pixel, f32))

        self.state, self.trial = state(), state()
        self.data, self.weight, self.background = (empty(n_pixel, f32) for _ in range(3))
        self.weights, self.residual, self.image = (empty(n_pixel, f32) for _ in range(3))
        self.offset0, self.floor = empty((n, 2), f64), empty((n, n_band), f64)
        self.star, self.smallest, self.extent, self.wanted = (empty(n, i32) for _ in range(4))
        self.extended, self.inset, self.n_used = (empty(n, i32) for _ in range(3))  # by extent
        self.measured = empty((n, n_band), i32)
        self.wbar, self.rim = (empty((n, n_band), f64) for _ in range(2))
        self.curvature, self.first_curvature, self.alone = (empty((n, n_latent, n_latent), f64) for _ in range(3))
        self.downhill, self.step, self.solved, self.rest = (empty((n, n_latent), f64) for _ in range(4))
        n_chunk, n_pair, _ = pairs.pair.shape
        self.images = empty((pairs.n_slot, n_band, n_column, ((every.window + 1) // 2) ** 2), f32)
        self.inner = empty((n_pair, n_band, n_column, n_column), f32)
        self.blocks = empty((n_chunk * n_pair, n_latent, n_latent), f64)
        self.matrices = empty(pairs.n_element, f64)
        n_large = n if pairs.n_large else 0
        self.inverse = empty((n_large, n_latent, n_latent), f64)
        self.direction, self.image_along = (empty((n_large, n_latent), f64) for _ in range(2))
        self.latent32, self.flow_gradient, self.log_prob = empty((n, n_latent), f32), empty((n, n_latent), f32), empty(
            n, f32)
        self.damping, self.left = (empty(n_blend, f64) for _ in range(2))
        self.first_damping = self.device.upload(np.full(n_blend, constants.FIRST_DAMPING))
        self.better, self.loss = empty(n_blend, i32), empty((n_blend, 2), f64)
        self.columns, self.through = (empty((n, n_band, n_column, n_basis), f32) for _ in range(2))
        self.d_coefficients, self.changed, self.trimmed = (empty((n, n_band, n_basis), f32) for _ in range(3))
        self.stamps = empty((n, n_band, every.n_window_pixel), f32)
        self.cells = empty((n, n_band, every.n_cell), f32) if every.n_cell else None
        self._recordings: dict[Any, tuple[Recording | None, Tables]] = {}
        self._problem: Problem | None = None
        self._zeros_at_padding()

    def _zeros_at_padding(self) -> None:
        """Products draw no padding, and what they leave there is read as numbers now and then."""
        for array in (*self.state.by_source, *self.trial.by_source, self.columns, self.through, self.d_coefficients,
                      self.changed, self.stamps, self.cells, self.image, self.residual, self.weights, self.state.model,
                      self.trial.model, self.step, self.solved, self.rest, self.downhill, self.left, self.loss):
            if array is not None:
                self.device.clear(array)

    @property
    def problem(self) -> Problem:
        """What is loaded."""
        assert self._problem is not None
        return self._problem

    def holds(self, problem: Problem) -> bool:
        """Whether the images, places and blends of a problem are here already."""
        mine = self._problem
        return mine is not None and all(getattr(mine, name) is getattr(problem, name) for name in (
            "data", "weight", "background", "partition", "scene", "blend", "corner", "folded"))

    def load(self, problem: Problem, every: Layout, pairs: SourcePairs) -> None:
        """Upload a problem."""
        upload = self.device.upload
        before, self._problem = self._problem, None
        self.tables, self.host = self.model.tables(problem), every
        for here, on_device, names in ((every, self.every, LAYOUT_ARRAYS), (pairs, self.pairs, PAIR_ARRAYS)):
            for name in names:
                upload(getattr(here, name), getattr(on_device, name))
        for image in (self.weights, self.residual, self.image, self.state.model, self.trial.model):
            self.device.clear(image)  # kernels leave the borders of the canvases out
        for name in ("data", "weight"):
            if before is None or getattr(before, name) is not getattr(problem, name):
                self.put_canvases(getattr(problem, name), getattr(self, name))
        self.put_canvases(problem.background or [], self.background)
        self.refresh(problem)

    def refresh(self, problem: Problem) -> None:
        """Upload what may differ between problems of the same images."""
        self._problem = problem
        for values, target in ((problem.offset0, self.offset0), (problem.star, self.star),
                               (problem.extent, self.extent), (problem.smallest, self.smallest),
                               (problem.measured, self.measured)):
            self.put(values, target)
        self.reach()

    def start(self, latent: DoubleArray, floor: DoubleArray, damping: DoubleArray | None = None,
              curvature: DoubleArray | None = None) -> None:
        """Upload where a descent starts; damping and curvature by source if it goes on from an earlier one."""
        self.put(latent, self.state.latent)
        self.put(floor, self.floor)
        curvature = prior_curvature(self.problem) if curvature is None else curvature
        self.put(curvature, self.first_curvature, np.eye(latent.shape[1]))
        first: DoubleArray = np.full(len(self.first_damping), constants.FIRST_DAMPING)
        if damping is not None:
            first[self.problem.blend] = damping
        self.device.upload(first, self.first_damping)

    def put(self, values: NDArray[Any], target: DeviceArray, filling: Any = 0) -> None:
        """Upload rows by source, and a constant behind them."""
        self.device.upload(filled(values, len(target), filling, target.dtype), target)

    def put_canvases(self, canvases: objective.Canvases, target: DeviceArray) -> None:
        """Upload canvases behind one another, and zeros."""
        image = np.zeros(target.shape, np.float32)
        start = 0
        for canvas in canvases:
            image[start : start + canvas.size] = canvas.ravel()
            start += canvas.size
        self.device.upload(image, target)

    def evaluate(self, state: DeviceState) -> None:
        """Queue `objective.evaluate` of a state's latents."""
        model, problem = self.model, self.problem
        narrow(self.device, state.latent, self.latent32)
        jacobian = dict(zip(("maps", "d_maps", "mix", "d_mix"), state.jacobian, strict=True))
        model.runtime.enqueue("decode_jacobian", self.every.n_source, {"latent": self.latent32}, jacobian)
        core, sums = model.star_basis
        stars(self.device, self.every, state.latent, self.star, core, sums,
              np.float64(model.bundle.reference_psf_sigma), *state.jacobian)
        combine(self.device, state.latent, state.maps, state.mix, state.coefficients)
        self.draw(state)
        model.runtime.enqueue("log_prior", self.every.n_source, {"latent": self.latent32},
                              {"log_prob": self.log_prob, "gradient": self.flow_gradient})
        prior_terms(self.device, self.every, state.latent, self.log_prob, self.flow_gradient, self.measured,
                    self.offset0, self.star, model.mean_color, model.color_sigma, np.float64(problem.center_sigma),
                    state.log_prior, state.prior_gradient, slack=constants.COLOR_SLACK)

    def draw(self, state: DeviceState) -> None:
        """Queue the model image of a state's coefficients."""
        self.stamp(self.every, state.coefficients)
        render(self.device, self.every, self.stamps, self.cells, self.extended, self.background, state.model)

    def stamp(self, layout: Layout, coefficients: DeviceArray, *, outskirts: bool = True) -> None:
        """Queue the stamps and outskirts of the sources of a layout."""
        n, n_band, n_basis = coefficients.shape
        trim_basis(self.device, layout, self.n_used, coefficients, self.trimmed)
        lines = self.trimmed.reshape(n, n_band, 1, n_basis)
        product(self.device, layout, lines, self.tables.phi, self.stamps.reshape(n, n_band, 1, -1))
        trim_stamps(self.device, layout, self.inset, self.stamps)
        if outskirts and self.cells is not None and self.tables.outer is not None:
            product(self.device, layout, lines, self.tables.outer, self.cells.reshape(n, n_band, 1, -1),
                    chosen=self.extended)

    def project(self, layout: Layout, image: DeviceArray, out: DeviceArray, *, outskirts: bool = True) -> None:
        """Queue the inner products of an image with the folded basis."""
        outer_t, cells = (self.tables.outer_t, self.cells) if outskirts else (None, None)
        project(self.device, layout, image, self.tables.phi_t, outer_t, self.extended, self.inset, cells, self.stamps,
                out)
        trim_basis(self.device, layout, self.n_used, out, out)

    def reach(self) -> None:
        """Queue what the extents of sources stand for."""
        reach(self.device, self.every, self.extent, self.tables.insets, self.tables.used, self.extended, self.inset,
              self.n_used)

    def weigh(self, temper: float, error: float) -> None:
        """Queue the robust weights, the weighted residual, and the way downhill."""
        state = self.state
        residual(self.device, self.every, self.data, self.weight, state.model, temper, error, constants.CLIP,
                 int(self.problem.robust), self.weights, self.residual)
        self.project(self.every, self.residual, self.d_coefficients)
        pull(self.device, self.every, *state.jacobian, state.coefficients, state.latent, self.d_coefficients,
             state.prior_gradient, self.downhill)

    def extend(self, target: DeviceArray) -> None:
        """Queue `curvature.extents` of the state."""
        n, n_band, n_basis = self.state.coefficients.shape
        lines = self.state.coefficients.reshape(n, n_band, 1, n_basis)
        through = self.changed.reshape(n, n_band, 1, n_basis)
        mean_weight(self.device, self.every, self.weight, self.tables.profile, self.inset, self.wbar)
        for window, missed in enumerate(self.tables.missed):
            product(self.device, self.every, lines, missed, through)
            wide(self.device, self.every, self.changed, self.state.coefficients, self.wbar, self.smallest, target,
                 window=window, threshold=constants.MAX_UNDRAWN**2)

    def newton_step(self) -> None:
        """Queue `descent.newton_step`."""
        device, state, every, pairs = self.device, self.state, self.every, self.pairs
        columns(device, *state.jacobian, state.coefficients, state.latent, self.columns)
        alone = self.curvature
        if self.cells is not None:
            alone = self.alone
            mean_weight(device, every, self.weights, self.tables.rim, self.inset, self.rim)
            device.clear(self.through)
            product(device, every, self.columns, self.tables.missed[0], self.through, chosen=self.extended)
            blocks(device, self.columns, self.through, self.rim, self.curvature, alone)
        trim_basis(device, every, self.n_used, self.columns, self.columns)
        n_chunk, n_pair, _ = pairs.pair.shape
        all_pairs = pairs.pair.reshape(-1, 2)
        for k in range(n_chunk):
            drawn = dataclasses.replace(every, row_tile=pairs.row_tile.rows(k, k + 1), basis=pairs.table)
            product(device, drawn, self.columns, self.tables.halved, self.images, slot=pairs.slot)
            chunk = slice(k * n_pair, (k + 1) * n_pair)
            mine = all_pairs.rows(chunk.start, chunk.stop)
            couplings(device, every, self.images, pairs.slot, self.inset, self.weights, mine, self.inner)
            joint_blocks(device, every, self.inner, mine, alone, self.damping,
                         self.blocks.rows(chunk.start, chunk.stop), flux_damped=constants.FLUX_DAMPED)
        joint_solve(device, every, self.blocks, all_pairs, pairs.pair_span, self.downhill, pairs.matrix_start,
                    self.matrices, self.solved, largest=constants.MAX_DENSE, ridge=constants.JOINT_RIDGE)
        if pairs.n_large:
            block_inverse(device, every, self.blocks, pairs.own, self.inverse, largest=constants.MAX_DENSE,
                          ridge=constants.BLOCK_RIDGE)
            joint_conjugate(device, every, self.blocks, all_pairs, pairs.partner_start, pairs.partner, self.inverse,
                            self.downhill, (self.rest, self.direction, self.image_along), self.solved,
                            largest=constants.MAX_DENSE, n_iteration=constants.N_CONJUGATE)
        alike(device, every, state.latent, self.solved, self.step)

    def gauss_newton(self, tempers: tuple[float, ...]) -> None:
        """Queue `descent.descend`."""
        device, state, trial = self.device, self.state, self.trial
        robust = int(self.problem.robust)
        device.copy(self.first_curvature, self.curvature)
        device.clear(self.left)
        device.clear(self.image)
        device.copy(self.first_damping, self.damping)
        self.evaluate(state)
        for before, tau in zip([tempers[0] if tempers else 0.0, *tempers], tempers, strict=False):
            if before > tau == 0.0:  # the shapes are known now
                self.extend(self.extent)
                self.reach()
                self.draw(state)
            error = max(tau, constants.MODEL_ERROR)
            self.weigh(tau, error)
            self.newton_step()
            move(device, self.every, state.latent, self.step, self.floor, self.offset0, trial.latent, **LIMITS)
            self.evaluate(trial)
            loss(device, self.every, self.data, self.weight, state.model, trial.model, tau, error, constants.CLIP,
                 robust, self.loss)
            accept(device, self.every, self.loss, state.log_prior, trial.log_prior, self.downhill, self.step,
                   self.damping, self.better, self.left, **ACCEPT_RULE)
            secant(device, self.every, state.latent, trial.latent, state.prior_gradient, trial.prior_gradient,
                   self.curvature, **SECANT_BOUNDS)
            choose(device, self.every, self.better, trial.by_source, state.by_source)
            self.draw(state)
        self.extend(self.wanted)

    def adam(self, n_iteration: int) -> None:
        """Queue `descent.adam`."""
        device, state = self.device, self.state
        first, second = self.step, self.rest
        for moment in (first, second):
            device.clear(moment)
        for iteration in range(n_iteration):
            self.evaluate(state)
            if iteration == int(constants.TEMPERED_SHARE * n_iteration):
                self.extend(self.extent)
                self.reach()
                self.draw(state)
            self.weigh(0.0, objective.temper(iteration, n_iteration))
            rate, share, correction = adam_rates(iteration)
            adam(device, self.every, self.downhill, self.floor, self.offset0, first, second, state.latent, rate=rate,
                 share=share, correction=correction, epsilon=constants.ADAM_EPSILON, max_drift=constants.MAX_DRIFT)
        self.evaluate(state)

    def finish(self) -> None:
        """Queue what a `Solution` holds of the state."""
        self.weigh(0.0, constants.MODEL_ERROR)

    def run(self, key: Any, work: Callable[[], None]) -> None:
        """Queue work on the loaded problem; recorded at its second time, as many sizes come but once."""
        key = (key, self.tables.key, self.problem.robust, self.problem.center_sigma)
        if key not in self._recordings or not self.model.runtime.recordable:
            work()
            self._recordings[key] = None, self.tables  # kept: a recording has their addresses
            return
        recording = self._recordings[key][0] or self.device.record(work)
        self._recordings[key] = recording, self.tables
        recording.replay()

    def fetch(self, array: DeviceArray) -> NDArray[Any]:
        """Rows of the problem's sources of an array by source."""
        n = len(self.problem.scene)
        return self.device.download(array.rows(0, n))

    def canvases(self, array: DeviceArray) -> list[NDArray[np.float32]]:
        """A flat image as a list of canvases."""
        shapes = [d.shape for d in self.problem.data]
        ends = np.cumsum([0, *[int(np.prod(shape)) for shape in shapes]])
        image = self.device.download(array.rows(0, int(ends[-1])))
        return [image[a:b].reshape(shape) for a, b, shape in zip(ends[:-1], ends[1:], shapes, strict=True)]

    def host_state(self) -> State:
        """The state, downloaded."""
        state = self.state
        jacobian = FactoredJacobian(*(self.fetch(a) for a in state.jacobian))
        return State(self.fetch(state.latent), jacobian, self.fetch(state.coefficients), self.canvases(state.model),
                     self.fetch(state.log_prior), self.fetch(state.prior_gradient))
