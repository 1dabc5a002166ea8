"""Memory on a device for the problems of one padded size, and the recordings that work on it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import DeviceArray, Recording
from deblendrt.cuda.kernels.pixels.launch import product, project, reach, render, trim_basis, trim_stamps
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.cuda.joint_buffers import JointBuffers
from deblendrt.engine.compute.cuda.layouts import arrays_of, filled, make_pairs
from deblendrt.engine.compute.cuda.model import DeviceModel, Tables
from deblendrt.engine.compute.problem import Canvases, Problem, State
from deblendrt.engine.model.networks import FactoredJacobian

KEPT_JOINT = 2  # kept sets of buffers for the joint step


@dataclasses.dataclass(frozen=True)
class DeviceState:
    """`problem.State` on a device: every field is an array of the device, padded."""

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
        """All arrays with a row for each source."""
        return (self.latent, *self.jacobian, self.coefficients, self.log_prior, self.prior_gradient)


class Buffers:
    """Arrays of a problem on a device: images, places, two states, and scratch for the kernels.

    Parameters
    ----------
    model : DeviceModel
    every : Layout
        Its arrays are NumPy's; they state the sizes.
    stream : DeviceStream
        Owner of the buffers.

    Attributes
    ----------
    model, device, stream
    every, host : Layout
        Arrays on the device, and NumPy's.
    tables : Tables
    state, trial : DeviceState
    """

    def __init__(self, model: DeviceModel, every: Layout, stream: Any) -> None:
        self.model, self.device, self.stream = model, model.device, stream
        bundle = model.bundle
        n, n_band, n_pixel, n_blend = every.n_source, every.n_band, every.n_pixel, every.n_blend
        n_basis, n_shape, n_latent = bundle.n_basis, bundle.n_shape, bundle.n_latent
        n_component = bundle.n_component
        empty = self.device.empty
        f32, f64, i32 = np.float32, np.float64, np.int32
        self.every = every.on(lambda a: empty(a.shape, a.dtype))

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
        self.extended, self.inset, self.n_used = (empty(n, i32) for _ in range(3))  # windows that the extents stand for
        self.measured = empty((n, n_band), i32)
        self.wbar = empty((n, n_band), f64)
        self.curvature, self.first_curvature = (empty((n, n_latent, n_latent), f64) for _ in range(2))
        self.downhill, self.step, self.rest = (empty((n, n_latent), f64) for _ in range(3))
        self.latent32, self.flow_gradient, self.log_prob = empty((n, n_latent), f32), empty((n, n_latent), f32), empty(
            n, f32)
        self.damping, self.first_damping, self.left = (empty(n_blend, f64) for _ in range(3))
        self.better, self.loss = empty(n_blend, i32), empty((n_blend, 2), f64)
        self.d_coefficients, self.changed, self.trimmed = (empty((n, n_band, n_basis), f32) for _ in range(3))
        self.stamps = empty((n, n_band, every.n_window_pixel), f32)
        self.cells = empty((n, n_band, every.n_cell), f32) if every.n_cell else None
        self._recordings: dict[Any, tuple[Recording | None, Tables, JointBuffers | None]] = {}
        self._joint: collections.OrderedDict[Any, JointBuffers] = collections.OrderedDict()
        self._problem: Problem | None = None
        self._zeros_at_padding()

    def _zeros_at_padding(self) -> None:
        """Clear the rows of padding, which the product kernels skip and other kernels may read."""
        for array in (*self.state.by_source, *self.trial.by_source, self.d_coefficients, self.changed, self.stamps,
                      self.cells, self.image, self.residual, self.weights, self.state.model, self.trial.model,
                      self.step, self.rest, self.downhill, self.left, self.loss):
            if array is not None:
                self.device.clear(array)

    @property
    def problem(self) -> Problem:
        """The problem that is loaded."""
        assert self._problem is not None
        return self._problem

    def holds(self, problem: Problem) -> bool:
        """Whether the images, places and blends of a problem are on the device already."""
        mine = self._problem
        return mine is not None and all(getattr(mine, name) is getattr(problem, name) for name in (
            "data", "weight", "background", "partition", "scene", "blend", "corner", "folded"))

    def load(self, problem: Problem, every: Layout) -> None:
        """Upload a problem."""
        upload = self.device.upload
        before, self._problem = self._problem, None
        self.tables, self.host = self.model.tables(problem), every
        for name, array in arrays_of(every).items():
            upload(array, getattr(self.every, name))
        for joint in self._joint.values():
            joint.pairs = None  # they belong to the previous problem
        for image in (self.weights, self.residual, self.image, self.state.model, self.trial.model):
            self.device.clear(image)  # kernels do not write the borders of the canvases
        for name in ("data", "weight"):
            if before is None or getattr(before, name) is not getattr(problem, name):
                self.put_canvases(getattr(problem, name), getattr(self, name))
        self.put_canvases(problem.background or [], self.background)
        self.refresh(problem)

    def refresh(self, problem: Problem) -> None:
        """Upload the arrays that may differ between problems of the same images."""
        self._problem = problem
        for values, target in ((problem.offset0, self.offset0), (problem.star, self.star),
                               (problem.extent, self.extent), (problem.smallest, self.smallest),
                               (problem.measured, self.measured)):
            self.put(values, target)
        self.reach()

    def put(self, values: NDArray[Any], target: DeviceArray, filling: Any = 0) -> None:
        """Upload rows by source; a constant fills the rows of padding."""
        self.device.upload(filled(values, len(target), filling, target.dtype), target)

    def put_canvases(self, canvases: Canvases, target: DeviceArray) -> None:
        """Upload canvases behind one another; zeros fill the rest."""
        image = np.zeros(target.shape, np.float32)
        start = 0
        for canvas in canvases:
            image[start : start + canvas.size] = canvas.ravel()
            start += canvas.size
        self.device.upload(image, target)

    def joint(self, largest: int, rim: int) -> JointBuffers:
        """Return the buffers for the joint step of the problem, loaded.

        Parameters
        ----------
        largest : int
            Largest number of sources of a blend that a dense system solves.
        rim : int [pixel]
            Width of the edge of a window where the weight of the outskirts is taken.

        Returns
        -------
        JointBuffers
        """
        pairs = make_pairs(self.host, len(self.tables.phi), self.model.bundle.n_latent, largest)
        key = (*(array.shape for array in arrays_of(pairs).values()), pairs.n_slot, pairs.n_element,
               pairs.n_large > 0, largest, rim)
        if key not in self._joint:
            while len(self._joint) >= KEPT_JOINT:
                _, old = self._joint.popitem(last=False)
                self._recordings = {k: kept for k, kept in self._recordings.items() if kept[2] is not old}
            self._joint[key] = JointBuffers(self.model, self.host, pairs, key)
        self._joint.move_to_end(key)
        self._joint[key].load(pairs, rim, self.tables)
        return self._joint[key]

    def render(self, coefficients: NDArray[np.float32]) -> Canvases:
        """Return the model images of coefficients (n_source, n_band, n_basis)."""
        self.put(coefficients, self.state.coefficients)
        self.run("draw", lambda: self.draw(self.state))
        return self.canvases(self.state.model)

    def inner_products(self, image: Canvases) -> NDArray[np.float32]:
        """Return the inner products of images with the folded basis, float32 (n_source, n_band, n_basis)."""
        self.put_canvases(image, self.image)
        self.run("project", lambda: self.project(self.image, self.d_coefficients))
        return self.fetch(self.d_coefficients)

    def draw(self, state: DeviceState) -> None:
        """Queue the model image of a state's coefficients."""
        self.stamp(state.coefficients)
        render(self.device, self.every, self.stamps, self.cells, self.extended, self.background, state.model)

    def stamp(self, coefficients: DeviceArray) -> None:
        """Queue the stamps and outskirts of all sources."""
        n, n_band, n_basis = coefficients.shape
        trim_basis(self.device, self.every, self.n_used, coefficients, self.trimmed)
        lines = self.trimmed.reshape(n, n_band, 1, n_basis)
        product(self.device, self.every, lines, self.tables.phi, self.stamps.reshape(n, n_band, 1, -1))
        trim_stamps(self.device, self.every, self.inset, self.stamps)
        if self.cells is not None and self.tables.outer is not None:
            product(self.device, self.every, lines, self.tables.outer, self.cells.reshape(n, n_band, 1, -1),
                    chosen=self.extended)

    def project(self, image: DeviceArray, out: DeviceArray) -> None:
        """Queue the inner products of an image with the folded basis."""
        project(self.device, self.every, image, self.tables.phi_t, self.tables.outer_t, self.extended, self.inset,
                self.cells, self.stamps, out)
        trim_basis(self.device, self.every, self.n_used, out, out)

    def reach(self) -> None:
        """Queue the look-up of the windows that extents stand for."""
        reach(self.device, self.every, self.extent, self.tables.insets, self.tables.used, self.extended, self.inset,
              self.n_used)

    def run(self, key: Any, work: Callable[[], None], joint: JointBuffers | None = None) -> None:
        """Queue work on the loaded problem.

        Work is recorded when it comes for the second time: many sizes come only once.

        Parameters
        ----------
        key : hashable
            Identifies the work, apart from the problem's sizes and tables.
        work : callable
            Queues kernels and copies on the device.
        joint : JointBuffers, optional
            Buffers that the work uses, beside these.
        """
        key = (key, self.tables.key, self.problem.robust, self.problem.center_sigma, joint and joint.key)
        if key not in self._recordings or not self.model.runtime.recordable:
            work()
            self._recordings[key] = None, self.tables, joint  # kept: a recording has their addresses
            return
        recording = self._recordings[key][0] or self.device.record(work)
        self._recordings[key] = recording, self.tables, joint
        recording.replay()

    def fetch(self, array: DeviceArray) -> NDArray[Any]:
        """Download the rows of the problem's sources."""
        n = len(self.problem.scene)
        return self.device.download(array.rows(0, n))

    def canvases(self, array: DeviceArray) -> list[NDArray[np.float32]]:
        """Download a flat image as a list of canvases."""
        shapes = [d.shape for d in self.problem.data]
        ends = np.cumsum([0, *[int(np.prod(shape)) for shape in shapes]])
        image = self.device.download(array.rows(0, int(ends[-1])))
        return [image[a:b].reshape(shape) for a, b, shape in zip(ends[:-1], ends[1:], shapes, strict=True)]

    def host_state(self) -> State:
        """Download the state."""
        state = self.state
        jacobian = FactoredJacobian(*(self.fetch(a) for a in state.jacobian))
        return State(self.fetch(state.latent), jacobian, self.fetch(state.coefficients), self.canvases(state.model),
                     self.fetch(state.log_prior), self.fetch(state.prior_gradient))
