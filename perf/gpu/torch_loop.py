"""The descent of `descent.descend` as a competent user of PyTorch would write it for a GPU: ours is compared with it.

The same steps in the same precisions: float32 for coefficients, images and products (PyTorch's default, no TF32),
float64 for latents, blocks and sums. Scenes are equally large and lie behind one another, sources in one flat batch;
stamps are one batched product, scattered with `index_add_`; windows are gathered with `index_select`. Networks run
through `torch_graph`. Left out, as the comparison has none of them: blends of more than ten sources,
sources that are the same in every number, stars, outskirts of extended sources, sources
without weight in some band, more than one PSF, sources held in a background.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.compute.problem import DoubleArray, Problem
from deblendrt.engine.solve import constants
from deblendrt.engine.solve.prior import prior_curvature
from perf.gpu.torch_graph import TorchGraph


class BlendsOfOneSize(NamedTuple):
    """Blends of n sources each: members (n_blend, n), their pairs, and where these stand in the matrices."""

    members: Tensor
    pairs: Tensor
    above: Tensor
    below: Tensor


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A problem on a device.

    Attributes
    ----------
    decode_jacobian, log_prior : TorchGraph
    phi, phi_t : float32 (n_band, n_basis, n_pixel), (n_band, n_pixel, n_basis)
    halved : list of float32 (n_band, n_basis, n_half)
        Every second pixel of the window along both axes, for windows that begin at even and odd rows and columns.
    by_parity, in_order : int64 (n_source,)
        Sources in the order of these tables, and back.
    n_parity : list of int
        Sources of each table.
    shape : (int, int) [pixel]
        Size of a canvas.
    quarter : int64 (n_source * n_half)
        Squares of four pixels that images of every second pixel lie on.
    first, second, own : int64
        Sources of the pairs whose windows overlap; the pair of each source with itself.
    common : int64 (n_pair, n_half)
        Pixels of the second source where the first one's are; n_half where it has none.
    groups : list of BlendsOfOneSize
    data, weight : float32 (n_band, n_scene * n_y * n_x)
    window : int64 (n_source * n_pixel)
        Pixels under each source's window.
    blend : int64 (n_source,)
    n_blend : int
    owned : int64 (n_owned,)
        Pixels that sources own, blend after blend.
    owned_start : int64 (n_blend + 1,)
    floor : float64 (n_source, n_band)
    offset0 : float64 (n_source, 2)
    curvature : float64 (n_source, n_latent, n_latent)
        Curvature of the prior at the start.
    center_sigma : float
    robust : bool
    """

    decode_jacobian: TorchGraph
    log_prior: TorchGraph
    phi: Tensor
    phi_t: Tensor
    halved: list[Tensor]
    by_parity: Tensor
    in_order: Tensor
    n_parity: list[int]
    shape: tuple[int, int]
    quarter: Tensor
    first: Tensor
    second: Tensor
    own: Tensor
    common: Tensor
    groups: list[BlendsOfOneSize]
    data: Tensor
    weight: Tensor
    window: Tensor
    blend: Tensor
    n_blend: int
    owned: Tensor
    owned_start: Tensor
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
    """Progress of a descent: the state, damping and expected decrease per blend, curvature of the prior."""

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
    graphs = {name: TorchGraph(problem.bundle.read(f"{name}.onnx"), n, device)
              for name in ("decode_jacobian", "log_prior")}
    return Loaded(
        **graphs, phi=put(folded.phi, np.float32), phi_t=put(folded.phi_t, np.float32),
        shape=(n_y, n_x), **_pairs(problem, put),
        data=put(np.stack(problem.data, 1).reshape(folded.n_band, -1), np.float32),
        weight=put(np.stack(problem.weight, 1).reshape(folded.n_band, -1), np.float32),
        window=put(window.ravel(), np.int64), blend=put(problem.blend, np.int64), n_blend=problem.n_blend,
        owned=put(owned, np.int64),
        owned_start=put(np.searchsorted(owner[owned], np.arange(problem.n_blend + 1)), np.int64),
        floor=put(floor, np.float64),
        offset0=put(problem.offset0, np.float64), curvature=put(prior_curvature(problem), np.float64),
        center_sigma=problem.center_sigma, robust=problem.robust)


def _pairs(problem: Problem, put: Callable[[Any, Any], Tensor]) -> dict[str, Any]:
    """The fields of `Loaded` that the joint step needs."""
    folded, n, corner = problem.folded.of(0), len(problem.scene), problem.corner
    window = folded.window
    side = (window + 1) // 2
    image = np.zeros((*folded.phi.shape[:2], 2 * side, 2 * side), np.float32)
    image[:, :, :window, :window] = folded.phi.reshape(*folded.phi.shape[:2], window, window)
    odd = corner % 2
    parity = 2 * odd[:, 1] + odd[:, 0]
    by_parity = np.argsort(parity, kind="stable")
    n_y, n_x = (size // 2 for size in problem.data[0].shape[1:])
    row, column = np.divmod(np.arange(side**2), side)
    x, y = ((corner + 1) // 2).T
    # an image may have a last row or column of zeros beyond the canvas: any square of the canvas serves
    quarter = ((problem.scene[:, None] * n_y + np.minimum(y[:, None] + row, n_y - 1)) * n_x
               + np.minimum(x[:, None] + column, n_x - 1))
    size = np.bincount(problem.blend, minlength=problem.n_blend)
    if size.max() > constants.MAX_DENSE:
        raise ValueError(f"expected blends of at most {constants.MAX_DENSE} sources")
    pairs: list[tuple[int, int]] = []
    groups = []
    for blend in range(problem.n_blend):
        members = np.flatnonzero(problem.blend == blend)
        pairs += [(i, j) for a, i in enumerate(members) for j in members[a:]
                  if (np.abs(corner[i] - corner[j]) < window).all()]
    first, second = np.array(pairs).T
    down, right = y[first] - y[second], x[first] - x[second]
    v, u = row + down[:, None], column + right[:, None]
    common = np.where((v >= 0) & (v < side) & (u >= 0) & (u < side), v * side + u, side**2)
    pair_blend = problem.blend[first]
    place = np.zeros(n, np.int64)
    for count in sorted(set(size[size > 0].tolist())):
        chosen = np.flatnonzero(size == count)
        members = np.array([np.flatnonzero(problem.blend == blend) for blend in chosen])
        place[members] = np.arange(count)
        mine = np.flatnonzero(np.isin(pair_blend, chosen))
        number = np.searchsorted(chosen, pair_blend[mine])
        a, b = place[first[mine]], place[second[mine]]
        groups.append(BlendsOfOneSize(*(put(values, np.int64) for values in (
            members, mine, (number * count + a) * count + b, (number * count + b) * count + a))))
    halved = [put(image[:, :, r::2, c::2].reshape(*image.shape[:2], -1), np.float32) for r in (0, 1) for c in (0, 1)]
    return {"halved": halved, "by_parity": put(by_parity, np.int64), "in_order": put(np.argsort(by_parity), np.int64),
            "n_parity": np.bincount(parity, minlength=4).tolist(), "quarter": put(quarter.ravel(), np.int64),
            "first": put(first, np.int64), "second": put(second, np.int64),
            "own": put(np.flatnonzero(first == second)[np.argsort(first[first == second])], np.int64),
            "common": put(common, np.int64), "groups": groups}


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


def pull(p: Loaded, jacobian: tuple[Tensor, ...], coefficients: Tensor, latent: Tensor, g: Tensor) -> Tensor:
    """See `objective.pull`."""
    maps, d_maps, mix, d_mix = jacobian
    n, n_band = coefficients.shape[:2]
    scaled = latent[:, :n_band, None].exp().float() * g
    shape = (d_maps.reshape(n, d_maps.shape[1], -1) @ (mix @ scaled).reshape(n, -1, 1))[:, :, 0]
    by_mix = (d_mix.reshape(n, d_mix.shape[1], -1) @ (maps @ scaled.transpose(1, 2)).reshape(n, -1, 1))[:, :, 0]
    return torch.cat([(coefficients * g).sum(2), shape[:, :2], shape[:, 2:] + by_mix], 1).double()


def columns(p: Loaded, state: State) -> Tensor:
    """See `curvature.columns`; bands first: (n_band, n_source, n_column, n_basis)."""
    maps, d_maps, mix, d_mix = state[1:5]
    n, n_band, n_basis = state.coefficients.shape
    n_move, n_shape = d_maps.shape[1], d_mix.shape[1]
    moved = (mix.transpose(1, 2) @ d_maps.transpose(1, 2).reshape(n, mix.shape[1], -1)).view(n, n_band, n_move, n_basis)
    mixed = (d_mix.permute(0, 3, 1, 2).reshape(n, n_band * n_shape, -1) @ maps).view(n, n_band, n_shape, n_basis)
    flux = state.latent[:, :n_band, None, None].exp().float()
    rows = torch.cat([state.coefficients[:, :, None], flux * moved[:, :, :2], flux * (moved[:, :, 2:] + mixed)], 2)
    return rows.transpose(0, 1)


def by_latent(inner: Tensor) -> Tensor:
    """See `curvature.by_latent`."""
    cross, back = inner[:, :, 0, 1:], inner[:, :, 1:, 0]
    return torch.cat([torch.cat([torch.diag_embed(inner[:, :, 0, 0]), cross], 2),
                      torch.cat([back.transpose(1, 2), inner[:, :, 1:, 1:].sum(1)], 2)], 1)


def newton_step(p: Loaded, place: Place, weights: Tensor, downhill: Tensor) -> Tensor:
    """See `descent.newton_step` and `joint_step`."""
    state, n_band, n_latent = place.state, len(p.phi), downhill.shape[1]
    rows = columns(p, state)
    n_column = rows.shape[2]
    sorted_rows = rows.index_select(1, p.by_parity).split(p.n_parity, 1)
    images = torch.cat([part @ table[:, None] for part, table in zip(sorted_rows, p.halved, strict=True)], 1)
    images = images.index_select(1, p.in_order)
    quarter = weights.view(n_band, -1, p.shape[0], p.shape[1])[:, :, : p.shape[0] // 2 * 2, : p.shape[1] // 2 * 2]
    quarter = (quarter[:, :, ::2] + quarter[:, :, 1::2]).view(n_band, -1, 2).sum(2)
    under = quarter.index_select(1, p.quarter).view(n_band, len(downhill), 1, -1)
    # the second source's pixels where the first one has them; zero where the second has none
    second = torch.nn.functional.pad(images, (0, 1)).index_select(1, p.second)
    second = second.gather(3, p.common[None, :, None].expand(n_band, -1, n_column, -1))
    left = (images * under).index_select(1, p.first)
    inner = torch.matmul(left, second.transpose(2, 3)).transpose(0, 1).double()
    block = by_latent(inner)
    own = block.index_select(0, p.own) + place.curvature
    damping = place.damping[p.blend, None]
    damped = torch.cat([torch.where(damping >= constants.FLUX_DAMPED, damping, 0.0).expand(-1, n_band),
                        damping.expand(-1, n_latent - n_band)], 1)
    block = block.index_copy(0, p.own, own + torch.diag_embed(own.diagonal(dim1=1, dim2=2) * damped))
    step = torch.zeros_like(downhill)
    for group in p.groups:
        n_blend, n = group.members.shape
        matrix = torch.zeros((n_blend * n * n, n_latent, n_latent), dtype=block.dtype, device=block.device)
        mine = block.index_select(0, group.pairs)
        matrix = matrix.index_copy(0, group.below, mine.transpose(1, 2)).index_copy(0, group.above, mine)
        matrix = matrix.view(n_blend, n, n, n_latent, n_latent).transpose(2, 3).reshape(n_blend, n * n_latent, -1)
        scale = matrix.diagonal(dim1=1, dim2=2).rsqrt()
        unit = torch.eye(n * n_latent, dtype=block.dtype, device=block.device)
        # by Cholesky factors: both steps are batched kernels that a CUDA graph can hold
        lower = torch.linalg.cholesky_ex(matrix * scale[:, :, None] * scale[:, None] + constants.JOINT_RIDGE * unit).L
        right = (downhill.index_select(0, group.members.view(-1)).view(n_blend, -1) * scale)[:, :, None]
        half = torch.linalg.solve_triangular(lower, right, upper=False)
        solved = torch.linalg.solve_triangular(lower.mT, half, upper=True)[:, :, 0] * scale
        step = step.index_copy(0, group.members.view(-1), solved.view(-1, n_latent))
    return step


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
    following = torch.where(decrease < constants.POOR_DECREASE * expected, damping * constants.POOR_FACTOR,
                            torch.where(decrease < constants.GOOD_DECREASE * expected, damping,
                                        damping * constants.GOOD_FACTOR))
    rejected = (damping * constants.REJECTED_FACTOR).clamp(min=constants.REJECTED_DAMPING)
    return torch.where(decrease > 0, following, rejected).clamp(constants.MIN_DAMPING, constants.MAX_DAMPING)


def secant(curvature: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """See `curvature.secant`."""
    expected = (curvature @ step[:, :, None])[:, :, 0]
    before, after = (step * expected).sum(1), (step * change).sum(1)
    good = ((after > constants.MIN_SECANT_RATIO * before) & (after < constants.MAX_SECANT_RATIO * before)
            & (before > constants.MIN_SECANT_CURVATURE))
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
