"""What a `Problem` has computed on a device instead of by NumPy: one stream, its buffers and the model on it.

A function of the engine that has a counterpart here calls it if its problem has a device (`Problem.device`); arguments
and results are the same host arrays. What is already on the device stays there as long as the problem's images are the
same.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import DeviceArray
from deblendrt.cuda.kernels.pixels.launch import crop
from deblendrt.engine.compute.cuda import fluxes, measures, precision
from deblendrt.engine.compute.cuda.descent import LAYOUT_ARRAYS, PAIR_ARRAYS, Descent
from deblendrt.engine.compute.cuda.layouts import make_layout, make_pairs
from deblendrt.engine.compute.cuda.model import DeviceModel
from deblendrt.engine.compute.problem import DoubleArray, FloatArray, Problem, State
from deblendrt.engine.measure import light_shares, systematic_error
from deblendrt.engine.solve import constants, further_rounds, objective
from deblendrt.engine.solve.descent import Solution
from deblendrt.engine.solve.further_rounds import Progress

KEPT = 4  # sets of buffers


class DeviceWork:
    """One stream. One thread at a time.

    Parameters
    ----------
    model : DeviceModel

    Attributes
    ----------
    model : DeviceModel
    device : Device
    runtime : DeviceRuntime
    """

    def __init__(self, model: DeviceModel) -> None:
        self.model, self.device, self.runtime = model, model.device, model.runtime
        self._descents: collections.OrderedDict[Any, Descent] = collections.OrderedDict()

    def solve(self, problem: Problem, latent: DoubleArray, floor: DoubleArray, name: str, n_iteration: int) -> Solution:
        """See `solver.solve`."""
        run = {"gauss_newton": self._gauss_newton, "adam": self._adam}
        problem, descent = run[name](problem, latent, floor, n_iteration)
        descent.run("finish", descent.finish)
        state, weights = descent.host_state(), descent.canvases(descent.weights)
        likely = objective.likelihood(problem, state.model)
        return Solution(problem, state, descent.fetch(descent.downhill), weights, descent.canvases(descent.residual),
                        objective.by_scene(problem, likely, state))

    def render(self, problem: Problem, coefficients: FloatArray) -> objective.Canvases:
        """See `objective.render`."""
        descent = self.load(problem)
        descent.put(coefficients, descent.state.coefficients)
        descent.run("draw", lambda: descent.draw(descent.state))
        return descent.canvases(descent.state.model)

    def model_image(self, problem: Problem, coefficients: FloatArray) -> DeviceArray:
        """Model image of a problem's only scene, without its border, on the device: float32 (n_band, n_y, n_x)."""
        descent = self.load(problem)
        descent.put(coefficients, descent.state.coefficients)
        descent.draw(descent.state)
        n_band, height, width = problem.data[0].shape
        half = problem.folded.half
        canvas = descent.state.model.rows(0, problem.data[0].size).reshape(n_band, height, width)
        image = self.device.empty((n_band, height - 2 * half, width - 2 * half), np.float32)
        crop(self.device, canvas, half, image)
        return image

    def project(self, problem: Problem, image: objective.Canvases) -> FloatArray:
        """See `objective.project`."""
        descent = self.load(problem)
        descent.put_canvases(image, descent.image)
        descent.run("project", lambda: descent.project(descent.every, descent.image, descent.d_coefficients))
        return descent.fetch(descent.d_coefficients)

    def linear_fluxes(self, problem: Problem, unit: FloatArray, flux: DoubleArray, n_sweep: int,
                      error: float | None) -> tuple[DoubleArray, DoubleArray]:
        """See `photometry.linear_fluxes`."""
        return fluxes.linear_fluxes(self.load(problem), unit, flux, n_sweep, error)

    def likelihood_precisions(self, problem: Problem, weights: objective.Canvases,
                              unit: FloatArray) -> Iterator[tuple[NDArray[np.int64], DoubleArray]]:
        """See `uncertainty.likelihood_precisions`."""
        return precision.likelihood_precisions(self.load(problem), weights, unit)

    def holds(self, problem: Problem) -> bool:
        """Whether the problem's images are here already."""
        return any(descent.holds(problem) for descent in self._descents.values())

    def share(self, problem: Problem, coefficients: FloatArray, flux: DoubleArray) -> light_shares.Sharing:
        """See `light_shares.share`."""
        return measures.shared(self.load(problem), coefficients, flux)

    def misfit(self, problem: Problem, state: State) -> systematic_error.Misfit:
        """See `systematic_error.misfit`."""
        return measures.misfits(self.load(problem), state)

    def core_statistics(self, problem: Problem,
                        state: State) -> tuple[DoubleArray, NDArray[np.int64], NDArray[np.int64]]:
        """See `quality.core_statistics`."""
        return measures.own_pixels(self.load(problem), state)

    def light_area(self, problem: Problem, coefficients: FloatArray) -> DoubleArray:
        """See `start.light_area`."""
        return measures.light_areas(self.load(problem), coefficients)

    def clear(self) -> None:
        """Give buffers back."""
        self._descents.clear()
        self.model.clear()

    def _gauss_newton(self, problem: Problem, latent: DoubleArray, floor: DoubleArray,
                      n_iteration: int) -> tuple[Problem, Descent]:
        problem, latent, further = further_rounds.in_rounds(self._descend, problem, latent, floor, n_iteration)
        descent = self.load(problem)
        if further:
            descent.start(latent, floor)
            descent.run("evaluate", lambda: descent.evaluate(descent.state))
        return problem, descent

    def _descend(self, problem: Problem, latent: DoubleArray, floor: DoubleArray, tempers: list[float],
                 damping: DoubleArray | None, curvature: DoubleArray | None) -> tuple[Problem, Progress]:
        """See `solver.descend`."""
        descent = self.load(problem)
        descent.start(latent, floor, damping, curvature)
        key = tuple(tempers)
        descent.run(key, lambda: descent.gauss_newton(key))
        n_blend = problem.n_blend
        extent, wanted = (descent.fetch(a).astype(np.int8) for a in (descent.extent, descent.wanted))
        left, following = (self.device.download(a)[:n_blend] for a in (descent.left, descent.damping))
        return dataclasses.replace(problem, extent=extent), Progress(
            descent.fetch(descent.state.latent), wanted, left, following, descent.fetch(descent.curvature))

    def _adam(self, problem: Problem, latent: DoubleArray, floor: DoubleArray,
              n_iteration: int) -> tuple[Problem, Descent]:
        descent = self.load(problem)
        descent.start(latent, floor)
        descent.run(("adam", n_iteration), lambda: descent.adam(n_iteration))
        return dataclasses.replace(problem, extent=descent.fetch(descent.extent).astype(np.int8)), descent

    def load(self, problem: Problem) -> Descent:
        """Buffers of the problem's size that hold it."""
        for key, descent in self._descents.items():
            if descent.holds(problem):
                self._descents.move_to_end(key)
                descent.refresh(problem)
                return descent
        every = make_layout(problem)
        n_psf = sum(1 for _ in problem.folded.groups(len(problem.scene)))
        pairs = make_pairs(every, n_psf, self.model.bundle.n_latent, constants.MAX_DENSE)
        sizes = tuple(getattr(part, name).shape for part, names in ((every, LAYOUT_ARRAYS), (pairs, PAIR_ARRAYS))
                      for name in names)
        key = (sizes, every.n_pixel, every.window, every.margin, pairs.n_slot, pairs.n_element, pairs.n_large > 0)
        if key in self._descents:
            self._descents.move_to_end(key)
        else:
            while len(self._descents) >= KEPT:
                self._descents.popitem(last=False)
            self._descents[key] = Descent(self.model, every, pairs)
        descent = self._descents[key]
        descent.load(problem, every, pairs)
        return descent
