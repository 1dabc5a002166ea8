"""The objective and its derivatives in a graph: `deblendrt.engine.solve.objective` for one scene.

The engine's values per blend are values per source here, equal for all sources of a blend. The matrix `joined` tells
which sources share a blend, so a sum over a blend is a product with it. Latents and sums are float64, images float32.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import onnx

from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.solve import constants
from deblendrt.export.solver.drawing import DrawingGraph, Groups
from deblendrt.export.solver.graph_builder import Builder, Value


class SceneValues(NamedTuple):
    """A scene's values that do not change during a descent.

    Attributes
    ----------
    data, weight : Value
        float32 (n_band, n_y, n_x).
    offset0 : Value
        float64 (n_source, 2), the given centres relative to the anchors.
    fitted : Value
        bool (n_source,): sources that are not fitted have no light.
    measured : Value
        bool (n_source, n_band).
    smallest : Value
        int64 (n_source,), see `deblendrt.engine.compute.problem.Problem`.
    profile : list of Value
        float32 (n_band, size^2, 1) for each size of windows: the weights of mean weights.
    """

    data: Value
    weight: Value
    offset0: Value
    fitted: Value
    measured: Value
    smallest: Value
    profile: list[Value]


class BlendValues(NamedTuple):
    """The blends of a scene: the sources that share a blend, and the pixels that they own.

    Attributes
    ----------
    joined : Value
        float64 (n_source, n_source), 1 where two sources share a blend.
    owned : Value
        float64 (n_source, n_y * n_x), 1 where the source owns the pixel.
    """

    joined: Value
    owned: Value


class PointValues(NamedTuple):
    """A point Z of the descent: `State` of the engine without the model; coefficients (n_source, n_band, n_basis)."""

    latent: Value
    maps: Value
    d_maps: Value
    mix: Value
    d_mix: Value
    coefficients: Value
    log_prior: Value
    gradient: Value


class LikelihoodValues(NamedTuple):
    """The likelihood: tempered weights and bound, float32 (n_band, n_y, n_x)."""

    weight: Value
    bound: Value


@dataclasses.dataclass
class ObjectiveGraph:
    """The objective of a scene.

    Attributes
    ----------
    b : Builder
    bundle : Bundle
    graphs : dict of str to onnx.ModelProto
        The bundle's graphs.
    draw : DrawingGraph
    scene : SceneValues
    center_sigma : float [pixel]
    """

    b: Builder
    bundle: Bundle
    graphs: dict[str, onnx.ModelProto]
    draw: DrawingGraph
    scene: SceneValues
    center_sigma: float

    def __post_init__(self) -> None:
        self.n_source, self.n_band = self.draw.n_source, self.bundle.n_band
        self.n_move = 2 + self.bundle.n_shape
        self.present = self.scene.fitted.cast(np.float32)[:, None, None]
        self.n_measured = self.b.maximum(self.scene.measured.cast(np.float64).sum(1, keep=True), 1.0)

    def evaluate(self, latent: Value) -> PointValues:
        """The point at latents. Sources that are not fitted have no light."""
        b, n_band = self.b, self.n_band
        maps, d_maps, mix, d_mix = b.inline(self.graphs["decode_jacobian"], "decode_jacobian", latent.cast(np.float32))
        flux = b.exp(latent[:, :n_band]).cast(np.float32) * self.present[:, :, 0]
        coefficients = flux[:, :, None] * (mix.transpose(0, 2, 1) @ maps)
        return PointValues(latent, maps, d_maps, mix, d_mix, coefficients, *self.prior(latent))

    def prior(self, latent: Value) -> tuple[Value, Value]:
        """Log prior (n_source,) and its gradient (n_source, n_latent), of flow, offsets and bands without weight."""
        b, n_band, measured = self.b, self.n_band, self.scene.measured
        log_prob, gradient = (v.cast(np.float64) for v in b.inline(
            self.graphs["log_prior"], "log_prior", latent.cast(np.float32)))
        offset = (latent[:, n_band : n_band + 2] - self.scene.offset0) / self.center_sigma
        color, _ = self.missing_color(latent)
        sigma = self.bundle.color_sigma + constants.COLOR_SLACK
        log_prob = log_prob - (offset * offset).sum(1) * 0.5 - ((color / sigma) * (color / sigma)).sum(1) * 0.5
        pulled = color / sigma**2
        through = b.where(measured, pulled.sum(1, keep=True) / self.n_measured, 0.0)
        added = b.concat([through - pulled, -(offset / self.center_sigma)], 1)
        return log_prob, b.concat([gradient[:, : n_band + 2] + added, gradient[:, n_band + 2 :]], 1)

    def missing_color(self, latent: Value) -> tuple[Value, Value]:
        """See `deblendrt.engine.solve.prior.missing_color`."""
        b, measured, color = self.b, self.scene.measured, self.bundle.mean_color
        log_flux = latent[:, : self.n_band]
        level = b.where(measured, log_flux - color, 0.0).sum(1, keep=True) / self.n_measured
        expectation = level + color
        return b.where(measured, 0.0, log_flux - expectation), expectation

    def render(self, point: PointValues, groups: Groups) -> Value:
        """Model image, float32 (n_band, n_y, n_x)."""
        return self.draw.render(point.coefficients.transpose(1, 0, 2), groups)

    def project(self, image: Value, groups: Groups) -> Value:
        """Inner products at every source, float32 (n_source, n_band, n_basis)."""
        return self.draw.project(image, groups).transpose(1, 0, 2)

    def likelihood(self, model: Value, temper: Value | float = 0.0,
                   error: float = constants.MODEL_ERROR) -> LikelihoodValues:
        """The robust likelihood around a model. `temper` is float32 ()."""
        b, weight = self.b, self.scene.weight
        tau = b.value(temper, np.float32)
        power = weight * model * model
        noise = power * (tau * tau) + 1.0
        allowed = b.maximum(tau, np.float32(error)) * constants.CLIP
        return LikelihoodValues(weight / noise, (power * (allowed * allowed) + constants.CLIP**2) / noise)

    def weigh(self, likely: LikelihoodValues, model: Value) -> tuple[Value, Value, Value]:
        """Robust weights W, W (y - m), and the loss of every pixel, summed over bands, float64 (n_y * n_x,)."""
        b = self.b
        rest = self.scene.data - model
        t2 = rest * rest * likely.weight
        beyond = t2 > likely.bound
        ratio = b.where(beyond, likely.bound / b.maximum(t2, likely.bound), 1.0)
        weight = likely.weight * ratio
        # ratio = c^2 / t^2 beyond, so that c^2 (1 + ln(t^2 / c^2)) = t^2 ratio (1 - ln ratio); t^2 inside
        twice = t2.cast(np.float64) * ratio.cast(np.float64) * (1.0 - b.log(ratio.cast(np.float64)))
        return weight, weight * rest, twice.sum(0).reshape(-1) * 0.5

    def by_blend(self, blends: BlendValues, loss: Value, point: PointValues) -> Value:
        """L of each source's blend, float64 (n_source,)."""
        own = (blends.owned @ loss[:, None])[:, 0] - self.b.where(self.scene.fitted, point.log_prior, 0.0)
        return total(blends, own)

    def pull(self, point: PointValues, d_coefficients: Value) -> Value:
        """Gradient by latents of a gradient by coefficients, J^T g, float64 (n_source, n_latent)."""
        b, n, n_band, n_move = self.b, self.n_source, self.n_band, self.n_move
        flux = b.exp(point.latent[:, :n_band]).cast(np.float32) * self.present[:, :, 0]
        scaled = flux[:, :, None] * d_coefficients
        d_map = (point.mix @ scaled).reshape(n, -1, 1)
        d_mixture = (point.maps @ scaled.transpose(0, 2, 1)).reshape(n, -1, 1)
        shape = (point.d_maps.reshape(n, n_move, -1) @ d_map)[:, :, 0]
        by_mix = (point.d_mix.reshape(n, n_move - 2, -1) @ d_mixture)[:, :, 0]
        fluxes = (point.coefficients * d_coefficients).sum(2)
        return b.concat([fluxes, shape[:, :2], shape[:, 2:] + by_mix], 1).cast(np.float64)

    def mean_weight(self, weight: Value, groups: Groups) -> Value:
        """Mean weight under sources, float64 (n_source, n_band)."""
        found = self.draw.by_group(groups.windows, lambda group: self.draw.windows_of(
            weight, group) @ self.scene.profile[group.level], 1)
        return found[:, :, 0].transpose(1, 0).cast(np.float64)


def total(blends: BlendValues, values: Value) -> Value:
    """Sum over the blend of each source, float64 (n_source,)."""
    return (blends.joined @ values[:, None])[:, 0]
