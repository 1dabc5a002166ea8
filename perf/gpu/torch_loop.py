"""The descent of `descent.descend` as a competent user of PyTorch would write it for a GPU: ours is compared with it.

The same steps in the same precisions: float32 for coefficients, images and products (PyTorch's default, no TF32),
float64 for latents, blocks and sums. Scenes are equally large and lie behind one another, sources in one flat batch;
stamps are one batched product, scattered with `index_add_`; windows are gathered with `index_select`. Networks run
through `torch_graph`. Left out, as the comparison has none of them: stars, outskirts of extended sources, sources
without weight in some band, more than one PSF, sources held in a background.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.compute.problem import DoubleArray, Problem
from deblendrt.engine.solve import conjugate_gradient, constants
from deblendrt.engine.solve.prior import prior_curvature
from perf.gpu.torch_graph import TorchGraph


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A problem on a device.

    Attributes
    ----------
    decode_jacobian, log_prior : TorchGraph
    phi, phi_t : float32 (n_band, n_basis, n_pixel), (n_band, n_pixel, n_basis)
    gram : float32 (n_band, n_basis, n_basis)
    profile : float32 (n_band, n_pixel, 1)
    data, weight : float32 (n_band, n_scene * n_y * n_x)
    window : int64 (n_source * n_pixel)
        Pixels under each source's window.
    blend : int64 (n_source,)
    n_blend : int
    owned : int64 (n_owned,)
        Pixels that sources own, blend after blend.
    owned_start : int64 (n_blend + 1,)
    joint, joint_blend, joint_window
        Rows of the sources of blends of several, their blends and windows.
    floor : float64 (n_source, n_band)
    offset0 : float64 (n_source, 2)
    curvature : float64 (n_source, n_latent, n_latent)
        Of the prior, to start with.
    center_sigma : float
    robust : bool
    """

    decode_jacobian: TorchGraph
    log_prior: TorchGraph
    phi: Tensor
    phi_t: Tensor
    gram: Tensor
    profile: Tensor
    data: Tensor
    weight: Tensor
    window: Tensor
    blend: Tensor
    n_blend: int
    owned: Tensor
    owned_start: Tensor
    joint: Tensor
    joint_blend: Tensor
    joint_window: Tensor
    floor: Tensor
    offset0: Tensor
    curvature: Tensor
    center_sigma: float
    robust: bool


class State(NamedTuple):
    """`problem.State` as tensors; the model is (n_band, n_scene * n_y * n_x)."""

    latent: Tensor
    maps: Tensor
    d_maps: Tensor
    mix: Tensor
    d_mix: Tensor
    coefficients: Tensor
    log_prior: Tensor
    prior_gradient: Tensor
    model: Tensor


class Place(NamedTuple):
    """Where a descent is: the state, damping and expected decrease per blend, curvature of the prior."""

    state: State
    damping: Tensor
    left: Tensor
    curvature: Tensor


def load(problem: Problem, floor: DoubleArray, device: Any) -> Loaded:
    """A problem on a device.

    Parameters
    ----------
    problem : Problem
    floor : float64 (n_source, n_band) [ln nJy]
    device : str or torch.device

    Returns
    -------
    Loaded

    Raises
    ------
    ValueError
        The problem has what the module's docstring leaves out.
    """
    folded, n = problem.folded, len(problem.scene)
    shapes = {d.shape for d in problem.data}
    if len(shapes) != 1 or not isinstance(folded, FoldedBasis) or folded.outer.size or problem.background is not None:
        raise ValueError("expected scenes of one size, one folded basis without outskirts and no background")
    if problem.star.any() or problem.extended.any() or not problem.measured.all():
        raise ValueError("expected galaxies alone, with weight in every band, none of them extended")

    def put(values: Any, dtype: Any) -> Tensor:
        return torch.tensor(np.ascontiguousarray(values, dtype), device=device)

    _, n_y, n_x = shapes.pop()
    row, column = np.divmod(np.arange(folded.window**2), folded.window)
    first = problem.scene * n_y * n_x + problem.corner[:, 1] * n_x + problem.corner[:, 0]
    window = first[:, None] + row * n_x + column
    before = np.cumsum([0, *(part.n_blend for part in problem.partition)])
    owner = np.concatenate([np.where(part.owner >= 0, part.blend[part.owner] + start, -1).ravel()
                            for part, start in zip(problem.partition, before[:-1], strict=True)])
    owned = np.argsort(owner, kind="stable")[(owner < 0).sum() :]
    joint = np.flatnonzero(np.bincount(problem.blend)[problem.blend] > 1)
    graphs = {name: TorchGraph(problem.bundle.read(f"{name}.onnx"), n, device)
              for name in ("decode_jacobian", "log_prior")}
    return Loaded(
        **graphs, phi=put(folded.phi, np.float32), phi_t=put(folded.phi_t, np.float32),
        gram=put(folded.gram, np.float32), profile=put(problem.profile[0].reshape(folded.n_band, -1, 1), np.float32),
        data=put(np.stack(problem.data, 1).reshape(folded.n_band, -1), np.float32),
        weight=put(np.stack(problem.weight, 1).reshape(folded.n_band, -1), np.float32),
        window=put(window.ravel(), np.int64), blend=put(problem.blend, np.int64), n_blend=problem.n_blend,
        owned=put(owned, np.int64),
        owned_start=put(np.searchsorted(owner[owned], np.arange(problem.n_blend + 1)), np.int64),
        joint=put(joint, np.int64), joint_blend=put(problem.blend[joint], np.int64),
        joint_window=put(window[joint].ravel(), np.int64), floor=put(floor, np.float64),
        offset0=put(problem.offset0, np.float64), curvature=put(prior_curvature(problem), np.float64),
        center_sigma=problem.center_sigma, robust=problem.robust)


class TorchDescent:
    """`descent.descend`, ready to be run and run again.

    Parameters
    ----------
    problem : Problem
        See the module's docstring for what it may not have.
    latent : float64 (n_source, n_latent)
    floor : float64 (n_source, n_band) [ln nJy]
    tempers : list of float
    device : str or torch.device
    compiled : bool
        Iterations through torch.compile.
    recorded : bool
        All iterations as one CUDA graph.
    """

    def __init__(self, problem: Problem, latent: DoubleArray, floor: DoubleArray, tempers: list[float],
                 device: Any = "cuda", *, compiled: bool = False, recorded: bool = False) -> None:
        self.loaded = load(problem, floor, device)
        self.latent = torch.tensor(latent, dtype=torch.float64, device=device)
        self.tempers = torch.tensor(tempers, dtype=torch.float32, device=device)
        # looked up in the loaded problem, which dynamo sees as constants of the code
        self._evaluate: Any = lambda latent: evaluate(self.loaded, latent)
        self._iterate: Any = lambda place, tau: iterate(self.loaded, place, tau)
        if compiled:
            self._evaluate, self._iterate = (torch.compile(f, dynamic=False) for f in (self._evaluate, self._iterate))
        self._graph: Any = None
        self._result: Place | None = None
        if recorded:
            self._record()

    def run(self) -> Place:
        """Queue a descent from the start."""
        if self._graph is not None:
            self._graph.replay()
            assert self._result is not None
            return self._result
        return self._descend()

    @torch.no_grad()
    def _descend(self) -> Place:
        loaded = self.loaded
        damping = torch.full((loaded.n_blend,), constants.FIRST_DAMPING, dtype=torch.float64, device=self.latent.device)
        place = Place(self._evaluate(self.latent), damping, torch.zeros_like(damping), loaded.curvature)
        for tau in self.tempers:
            place = self._iterate(place, tau)
        return place

    def _record(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries get ready, code is compiled
                self._descend()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph has a pool of its own
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = self._descend()


def evaluate(p: Loaded, latent: Tensor) -> State:
    """See `objective.evaluate`."""
    single, n_band = latent.float(), len(p.phi)
    maps, d_maps, mix, d_mix = p.decode_jacobian(single)
    flux = latent[:, :n_band].exp().float()
    coefficients = flux[:, :, None] * (mix.transpose(1, 2) @ maps)
    log_prob, gradient = p.log_prior(single)
    offset = (latent[:, n_band : n_band + 2] - p.offset0) / p.center_sigma
    gradient = gradient.double()
    pulled = torch.cat([gradient[:, :n_band], gradient[:, n_band : n_band + 2] - offset / p.center_sigma,
                        gradient[:, n_band + 2 :]], 1)
    return State(latent, maps, d_maps, mix, d_mix, coefficients, log_prob.double() - 0.5 * (offset**2).sum(1), pulled,
                 render(p, coefficients, p.window))


def render(p: Loaded, coefficients: Tensor, window: Tensor) -> Tensor:
    """Model image (n_band, n) of sources with these windows."""
    stamps = torch.bmm(coefficients.transpose(0, 1), p.phi)
    return torch.zeros_like(p.data).index_add_(1, window, stamps.reshape(len(p.phi), -1))


def project(p: Loaded, image: Tensor, window: Tensor) -> Tensor:
    """Inner products (n_source, n_band, n_basis) of an image with the basis at these windows."""
    n_band, n_pixel, _ = p.phi_t.shape
    return torch.bmm(image.index_select(1, window).view(n_band, -1, n_pixel), p.phi_t).transpose(0, 1)


def likelihood(p: Loaded, model: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Tempered inverse variance and the square of the bound c, see `objective.likelihood`."""
    significance = p.weight * model * model
    noise = 1 + tau**2 * significance
    bound = (1 + tau.clamp(min=constants.MODEL_ERROR) ** 2 * significance) / noise
    return p.weight / noise, constants.CLIP**2 * bound


def by_blend(p: Loaded, weight: Tensor, c2: Tensor, state: State) -> Tensor:
    """See `objective.by_blend`."""
    t2 = weight * (p.data - state.model) ** 2
    loss = 0.5 * t2
    if p.robust:
        loss = torch.where(t2 > c2, 0.5 * c2 * (1 + (t2 / c2).log()), loss)
    pixel = loss.sum(0, dtype=torch.float64).index_select(0, p.owned)
    total = torch.segment_reduce(pixel, "sum", offsets=p.owned_start, initial=0.0, unsafe=True)
    return total.index_add(0, p.blend, state.log_prior, alpha=-1)


def push(p: Loaded, jacobian: tuple[Tensor, ...], coefficients: Tensor, latent: Tensor, step: Tensor) -> Tensor:
    """See `objective.push`."""
    maps, d_maps, mix, d_mix = jacobian
    n, n_band = coefficients.shape[:2]
    v = step.float()
    along = (v[:, None, n_band:] @ d_maps.reshape(n, d_maps.shape[1], -1)).view_as(maps)
    along_mix = (v[:, None, n_band + 2 :] @ d_mix.reshape(n, d_mix.shape[1], -1)).view_as(mix)
    change = mix.transpose(1, 2) @ along + along_mix.transpose(1, 2) @ maps
    return coefficients * v[:, :n_band, None] + latent[:, :n_band, None].exp().float() * change


def pull(p: Loaded, jacobian: tuple[Tensor, ...], coefficients: Tensor, latent: Tensor, g: Tensor) -> Tensor:
    """See `objective.pull`."""
    maps, d_maps, mix, d_mix = jacobian
    n, n_band = coefficients.shape[:2]
    scaled = latent[:, :n_band, None].exp().float() * g
    shape = (d_maps.reshape(n, d_maps.shape[1], -1) @ (mix @ scaled).reshape(n, -1, 1))[:, :, 0]
    by_mix = (d_mix.reshape(n, d_mix.shape[1], -1) @ (maps @ scaled.transpose(1, 2)).reshape(n, -1, 1))[:, :, 0]
    return torch.cat([(coefficients * g).sum(2), shape[:, :2], shape[:, 2:] + by_mix], 1).double()


def blocks(p: Loaded, state: State, wbar: Tensor, curvature: Tensor) -> Tensor:
    """See `curvature.blocks`."""
    maps, d_maps, mix, d_mix = state[1:5]
    n, n_band, n_basis = state.coefficients.shape
    n_move, n_shape = d_maps.shape[1], d_mix.shape[1]
    moved = (mix.transpose(1, 2) @ d_maps.transpose(1, 2).reshape(n, mix.shape[1], -1)).view(n, n_band, n_move, n_basis)
    mixed = (d_mix.permute(0, 3, 1, 2).reshape(n, n_band * n_shape, -1) @ maps).view(n, n_band, n_shape, n_basis)
    flux = state.latent[:, :n_band, None, None].exp().float()
    rows = torch.cat([state.coefficients[:, :, None], flux * moved[:, :, :2], flux * (moved[:, :, 2:] + mixed)], 2)
    rows = rows.transpose(0, 1).reshape(n_band, -1, n_basis)
    through = torch.bmm(rows, p.gram).view(n_band * n, 1 + n_move, n_basis)
    inner = torch.bmm(through, rows.view(n_band * n, 1 + n_move, n_basis).transpose(1, 2))
    inner = inner.view(n_band, n, 1 + n_move, 1 + n_move).transpose(0, 1).double() * wbar[:, :, None, None]
    cross = inner[:, :, 0, 1:]
    block = torch.cat([torch.cat([torch.diag_embed(inner[:, :, 0, 0]), cross], 2),
                       torch.cat([cross.transpose(1, 2), inner[:, :, 1:, 1:].sum(1)], 2)], 1)
    return block + curvature


def inverse(block: Tensor) -> Tensor:
    """See `curvature.inverse`."""
    scale = block.diagonal(dim1=1, dim2=2).rsqrt()
    scaled = block * scale[:, :, None] * scale[:, None, :]
    unit = torch.eye(block.shape[1], dtype=block.dtype, device=block.device)
    # by Cholesky factors: both steps are batched kernels that a CUDA graph can hold
    lower = torch.linalg.cholesky_ex(scaled + 1e-6 * unit).L
    half = torch.linalg.solve_triangular(lower, unit.expand_as(scaled), upper=False)
    return (half.mT @ half) * scale[:, :, None] * scale[:, None, :]


def newton_step(p: Loaded, place: Place, weights: Tensor, downhill: Tensor) -> Tensor:
    """See `conjugate_gradient.newton_step`."""
    state, n_band = place.state, len(p.phi)
    under = weights.index_select(1, p.window).view(n_band, len(downhill), -1)
    wbar = torch.bmm(under, p.profile)[:, :, 0].T.double()
    block = blocks(p, state, wbar, place.curvature)
    diagonal = block.diagonal(dim1=1, dim2=2)
    added = place.damping[p.blend, None] * torch.cat([torch.zeros_like(diagonal[:, :n_band]), diagonal[:, n_band:]], 1)
    inverted = inverse(block + torch.diag_embed(added))
    step = (inverted @ downhill[:, :, None])[:, :, 0]
    if not len(p.joint):
        return step
    latent, *jacobian, coefficients = (a[p.joint] for a in state[:6])
    inverted, added, curvature, rest = (a[p.joint] for a in (inverted, added, place.curvature, downhill))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return torch.zeros_like(place.damping).index_add(0, p.joint_blend, (a * b).sum(1))

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)[p.joint_blend, None]

    solution = torch.zeros_like(rest)
    z = direction = (inverted @ rest[:, :, None])[:, :, 0]
    rz = dot(rest, z)
    for _ in range(conjugate_gradient.N_DEVICE_CONJUGATE):
        image = render(p, push(p, tuple(jacobian), coefficients, latent, direction), p.joint_window) * weights
        pulled = pull(p, tuple(jacobian), coefficients, latent, project(p, image, p.joint_window))
        applied = pulled + (curvature @ direction[:, :, None])[:, :, 0] + added * direction
        alpha = ratio(rz, dot(direction, applied))
        solution, rest = solution + alpha * direction, rest - alpha * applied
        z = (inverted @ rest[:, :, None])[:, :, 0]
        following = dot(rest, z)
        direction, rz = z + ratio(following, rz) * direction, following
    return step.index_copy(0, p.joint, solution)


def move(p: Loaded, latent: Tensor, step: Tensor) -> Tensor:
    """See `descent.move`."""
    n_band = len(p.phi)
    factor = (1 + step[:, :n_band]).clamp(constants.MIN_FLUX_FACTOR, constants.MAX_FLUX_FACTOR)
    flux = torch.maximum(latent[:, :n_band] + factor.log(), p.floor)
    offset = latent[:, n_band : n_band + 2] + step[:, n_band : n_band + 2].clamp(-constants.MAX_OFFSET_STEP,
                                                                                 constants.MAX_OFFSET_STEP)
    offset = torch.clamp(offset, p.offset0 - constants.MAX_DRIFT, p.offset0 + constants.MAX_DRIFT)
    shape = step[:, n_band + 2 :]
    length = (shape**2).sum(1, keepdim=True).sqrt().clamp(min=1e-12)
    return torch.cat(
        [flux, offset, latent[:, n_band + 2 :] + shape * (constants.MAX_SHAPE_STEP / length).clamp(max=1)], 1
    )


def damped(damping: Tensor, decrease: Tensor, expected: Tensor) -> Tensor:
    """See `descent.damped`."""
    following = torch.where(decrease < 0.25 * expected, damping * 4,
                            torch.where(decrease < 0.5 * expected, damping, damping * 0.25))
    rejected = (damping * 8).clamp(min=constants.REJECTED_DAMPING)
    return torch.where(decrease > 0, following, rejected).clamp(min=constants.MIN_DAMPING)


def secant(curvature: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """See `curvature.secant`."""
    expected = (curvature @ step[:, :, None])[:, :, 0]
    before, after = (step * expected).sum(1), (step * change).sum(1)
    good = (after > 0.1 * before) & (after < 100 * before) & (before > 1e-10)
    removed = expected[:, :, None] * (expected / torch.where(good, before, 1.0)[:, None])[:, None, :]
    added = change[:, :, None] * (change / torch.where(good, after, 1.0)[:, None])[:, None, :]
    return torch.where(good[:, None, None], curvature - removed + added, curvature)


def iterate(p: Loaded, place: Place, tau: Tensor) -> Place:
    """One iteration of `descent.descend`."""
    state = place.state
    weight, c2 = likelihood(p, state.model, tau)
    residual = p.data - state.model
    weights = weight * (c2 / (weight * residual**2)).clamp(max=1) if p.robust else weight
    projected = project(p, weights * residual, p.window)
    downhill = pull(p, state[1:5], state.coefficients, state.latent, projected) + state.prior_gradient
    step = newton_step(p, place, weights, downhill)
    trial = evaluate(p, move(p, state.latent, step))
    decrease = by_blend(p, weight, c2, state) - by_blend(p, weight, c2, trial)
    left = torch.zeros_like(place.left).index_add(0, p.blend, 0.5 * (downhill * step).sum(1))
    curvature = secant(place.curvature, trial.latent - state.latent, state.prior_gradient - trial.prior_gradient)
    better = (decrease > 0)[p.blend]
    chosen = [torch.where(better.view(-1, *[1] * (a.ndim - 1)), a, b)
              for a, b in zip(trial[:-1], state[:-1], strict=True)]
    return Place(State(*chosen, render(p, chosen[5], p.window)), damped(place.damping, decrease, left), left, curvature)
