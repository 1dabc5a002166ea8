r"""The objective and its derivatives.

    L(Z) = sum_{b,p} rho(w r^2)  -  sum_i log p(z_i)
    r = y - m,     m[b, p] = sum_i f(z_i)[b, p - p_i]

`prior` has log p. With ``robust=False`` rho(t^2) = t^2 / 2. The default bounds the influence of flux that no listed
source can explain. With t the residual and m the model, both in units of the noise,

    rho(t^2) = t^2 / 2                      where |t| < c
             = c^2 (1/2 + ln(|t| / c))      beyond,         c = 4 sqrt(1 + (e m)^2),    e = 5%

The weight of a pixel falls as (c / t)^2 where even a model error of 5% does not explain the residual. e is larger early
in a descent, when the model is wrong everywhere.

A descent also tempers the likelihood at first: the weights w / (1 + (tau m)^2) count a relative model error tau as
noise. A bright galaxy then pulls no more than a galaxy of signal to noise 1 / tau per pixel, and the prior can hold it
while its shape is far off. tau falls to 0 (`temper`). c and tau are held fixed while a step is judged, so that the loss
depends on the residual alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import decoding, drawing
from deblendrt.engine.compute.problem import Canvases, Problem, State
from deblendrt.engine.solve import constants
from deblendrt.engine.solve.prior import prior_terms
from deblendrt.engine.units import DoubleArray, FloatArray


def mix_coefficients(log_flux: NDArray[np.floating], maps: FloatArray, mix: FloatArray) -> FloatArray:
    """Compute exp(log_flux[b]) sum_m mix[m, b] maps[m], float32 (n_source, n_band, n_basis)."""
    flux = np.exp(log_flux).astype(np.float32)
    return np.einsum("nb,nmb,nmk->nbk", flux, mix, maps, optimize=False).astype(np.float32)


def evaluate(problem: Problem, latent: DoubleArray) -> State:
    """Evaluate the model, its derivatives and the prior at a point.

    Parameters
    ----------
    problem : Problem
    latent : float64 (n_source, n_latent)

    Returns
    -------
    State
    """
    jacobian = decoding.decode_jacobian(problem, latent)
    coefficients = mix_coefficients(latent[:, : problem.n_band], jacobian.maps, jacobian.mix)
    model = render(problem, coefficients)
    log_prior, gradient = prior_terms(problem, latent)
    return State(latent, jacobian, coefficients, model, log_prior, gradient)


def render(problem: Problem, coefficients: FloatArray, scenes: NDArray[np.int64] | None = None) -> Canvases:
    """Draw the model images of all scenes, or of some. The canvases' borders have no weight and get no outskirts."""
    if problem.device is not None:
        with problem.device.loaded(problem) as buffers:
            drawn: Canvases = buffers.render(coefficients)
            return drawn
    chosen = range(len(problem.data)) if scenes is None else scenes.tolist()
    canvas = [np.zeros_like(problem.data[s]) for s in chosen] if problem.background is None else [
        problem.background[s].copy() for s in chosen]
    if scenes is None:
        drawing.render(problem.used(coefficients), problem.folded, problem.corner, problem.extent, canvas,
                       problem.scene, problem.folded.half)
    else:
        rows = np.flatnonzero(np.isin(problem.scene, scenes))
        drawing.render(problem.used(coefficients[rows]), problem.folded.take(rows), problem.corner[rows],
                       problem.extent[rows], canvas, np.searchsorted(scenes, problem.scene[rows]), problem.folded.half)
    return canvas


def project(problem: Problem, image: Canvases) -> FloatArray:
    """Compute the inner products of images with every source's folded basis, float32 (n_source, n_band, n_basis)."""
    if problem.device is not None:
        with problem.device.loaded(problem) as buffers:
            return np.asarray(buffers.inner_products(image))
    return problem.spread(drawing.project(image, problem.folded, problem.corner, problem.extent, problem.scene,
                                      problem.folded.half))


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Weights and bounds of the robust loss, fixed while a step is judged.

    Attributes
    ----------
    weight : list of float32 (n_band, n_y, n_x) [nJy^-2]
        Tempered inverse variance.
    bound : list of float32 (n_band, n_y, n_x), or None
        c^2 of every pixel, in units of the tempered noise. None: the loss is Gaussian.
    """

    weight: Canvases
    bound: Canvases | None


def likelihood(problem: Problem, model: Canvases, *, temper: float = 0.0,
               error: float = constants.MODEL_ERROR) -> Likelihood:
    """Make the likelihood around a model.

    Parameters
    ----------
    problem : Problem
    model : list of float32 (n_band, n_y, n_x) [nJy]
    temper : float
        tau.
    error : float
        e is the larger of `error` and `temper`.

    Returns
    -------
    Likelihood
    """
    if temper == 0.0 and not problem.robust:
        return Likelihood(problem.weight, None)
    tau2, error2 = np.float32(temper) ** 2, np.float32(constants.CLIP * max(temper, error)) ** 2
    inside = _inside(problem)
    weights, bounds = [], []
    for weight, canvas in zip(problem.weight, model, strict=True):
        tempered = weight if temper == 0.0 else np.zeros(weight.shape, np.float32)
        bound = np.full(weight.shape, constants.CLIP**2, np.float32)  # the formula's value where there is no weight
        noise = np.empty_like(weight[0][inside])
        for w, m, w_tempered, c2 in zip(*(a[:, *inside] for a in (weight, canvas, tempered, bound)), strict=True):
            np.multiply(w, m, out=c2)
            np.multiply(c2, m, out=c2)  # the model's significance
            if temper != 0.0:
                np.multiply(c2, tau2, out=noise)
                np.add(noise, 1, out=noise)
                np.divide(w, noise, out=w_tempered)
            if problem.robust:
                np.multiply(c2, error2, out=c2)
                np.add(c2, np.float32(constants.CLIP**2), out=c2)
                if temper != 0.0:
                    np.divide(c2, noise, out=c2)
        weights.append(tempered)
        bounds.append(bound)
    return Likelihood(weights, bounds if problem.robust else None)


def temper(iteration: int, n_iteration: int) -> float:
    """Return tau of an iteration: geometric from `constants.FIRST_TEMPER` to `constants.LAST_TEMPER`, then 0.

    From iteration `constants.TEMPERED_SHARE` * n_iteration on it is 0: the last iterations descend the objective.
    """
    tempered = int(constants.TEMPERED_SHARE * n_iteration)
    if iteration >= tempered:
        return 0.0
    return constants.FIRST_TEMPER * (constants.LAST_TEMPER / constants.FIRST_TEMPER) ** (iteration / tempered)


def robust_weight(data: FloatArray, weight: FloatArray, model: FloatArray, bound: FloatArray | None) -> FloatArray:
    """Compute the weights w min(1, c^2 / t^2), with which a quadratic loss has the gradient of rho."""
    robust = weight.copy()
    for w, (_, t2, c2, beyond) in zip(robust, _excess(data, weight, model, bound), strict=True):
        w[np.divmod(beyond, w.shape[1])] *= c2 / t2[beyond]
    return robust


def loss_image(data: FloatArray, weight: FloatArray, model: FloatArray, bound: FloatArray | None) -> DoubleArray:
    """Sum rho over bands, float64 (n_y, n_x)."""
    twice = np.zeros(data[0].size)
    for _, t2, c2, beyond in _excess(data, weight, model, bound):
        _add_loss(twice, t2, c2, beyond)
    return 0.5 * twice.reshape(data.shape[1:])


def _add_loss(twice: DoubleArray, t2: FloatArray, c2: FloatArray, beyond: NDArray[np.int64]) -> None:
    """Add 2 rho of a band to `twice`; t^2 is overwritten."""
    if len(beyond):
        c2 = c2.astype(np.float64)
        twice[beyond] += c2 * (1 + np.log(t2[beyond] / c2))
        t2[beyond] = 0
    np.add(twice, t2, out=twice)


def _excess(data: FloatArray, weight: FloatArray, model: FloatArray, bound: FloatArray | None,
            ) -> Iterator[tuple[FloatArray, FloatArray, FloatArray, NDArray[np.int64]]]:
    """Yield flat arrays of each band: y - m, t^2, and c^2 and the numbers of the pixels where |t| > c.

    The next band overwrites the first two.
    """
    rest, t2 = np.empty_like(data[0], order="C"), np.empty_like(data[0], order="C")
    none = np.zeros(0, np.int64)
    for b in range(len(data)):
        np.subtract(data[b], model[b], out=rest)
        np.square(rest, out=t2)
        np.multiply(t2, weight[b], out=t2)
        if bound is None:
            yield rest.ravel(), t2.ravel(), np.zeros(0, np.float32), none
        else:
            beyond = np.flatnonzero(t2 > bound[b])
            yield rest.ravel(), t2.ravel(), bound[b][np.divmod(beyond, t2.shape[1])], beyond


def _inside(problem: Problem) -> tuple[slice, slice]:
    """Rows and columns of a canvas that may have weight."""
    half = problem.folded.half
    return slice(half, -half), slice(half, -half)


def _bounds(problem: Problem, likely: Likelihood) -> list[FloatArray | None]:
    return [None] * len(problem.data) if likely.bound is None else list(likely.bound)


def by_blend(problem: Problem, likely: Likelihood, state: State) -> DoubleArray:
    """Sum L over blends: the loss of the pixels that a blend's sources own, minus their log priors.

    Returns
    -------
    float64 (n_blend,)
    """
    inside = _inside(problem)
    losses = (_loss(problem.data[s], likely.weight[s], state.model[s], bound, inside)
              for s, bound in enumerate(_bounds(problem, likely)))
    return _summed(problem, losses, state)


def _summed(problem: Problem, losses: Iterable[DoubleArray], state: State) -> DoubleArray:
    """Sum L over blends, from every scene's loss image (n_y, n_x) without the canvas' border."""
    total: DoubleArray = np.bincount(problem.blend, weights=-state.log_prior, minlength=problem.n_blend).astype(float)
    inside = _inside(problem)
    start = 0
    for part, loss in zip(problem.partition, losses, strict=True):
        sums = np.bincount(part.label[inside].ravel(), weights=loss.ravel(), minlength=part.n_blend + 1)
        total[start : start + part.n_blend] += sums[1:]
        start += part.n_blend
    return total


def by_scene(problem: Problem, likely: Likelihood, state: State) -> DoubleArray:
    """Sum L over scenes, in each scene's area and over its own sources.

    Returns
    -------
    float64 (n_scene,)
    """
    own = problem.own
    total: DoubleArray = np.bincount(problem.scene[own], weights=-state.log_prior[own],
                                     minlength=len(problem.data)).astype(float)
    for s, (part, bound) in enumerate(zip(problem.partition, _bounds(problem, likely), strict=True)):
        loss = _loss(problem.data[s], likely.weight[s], state.model[s], bound, problem.area[s])
        total[s] += loss[part.owner[problem.area[s]] >= 0].sum()
    return total


def _loss(data: FloatArray, weight: FloatArray, model: FloatArray, bound: FloatArray | None,
          area: tuple[slice, slice]) -> DoubleArray:
    return loss_image(data[:, *area], weight[:, *area], model[:, *area], None if bound is None else bound[:, *area])


def weighted_residual(problem: Problem, likely: Likelihood, model: Canvases) -> tuple[Canvases, Canvases]:
    """Compute the robust weights W and the weighted residuals W (y - m) of every scene."""
    weights, residuals, _ = _weigh(problem, likely, model, with_loss=False)
    return weights, residuals


def weigh(problem: Problem, likely: Likelihood, state: State) -> tuple[Canvases, Canvases, DoubleArray]:
    """Compute `weighted_residual` and `by_blend` in one pass over the pixels."""
    weights, residuals, losses = _weigh(problem, likely, state.model, with_loss=True)
    return weights, residuals, _summed(problem, losses, state)


def _weigh(problem: Problem, likely: Likelihood, model: Canvases, *,
           with_loss: bool) -> tuple[Canvases, Canvases, list[DoubleArray]]:
    inside = _inside(problem)
    weights, residuals, losses = [], [], []
    for data, weight, m, bound in zip(problem.data, likely.weight, model, _bounds(problem, likely), strict=True):
        robust = weight if bound is None else weight.copy()
        residual = np.zeros(data.shape, np.float32)
        excess = _excess(data[:, *inside], weight[:, *inside], m[:, *inside],
                         None if bound is None else bound[:, *inside])
        twice = np.zeros(residual[0][inside].size if with_loss else 0)
        for out, changed, (rest, t2, c2, beyond) in zip(residual[:, *inside], robust[:, *inside], excess, strict=True):
            if len(beyond):
                where = np.divmod(beyond, out.shape[1])
                changed[where] *= c2 / t2[beyond]
            np.multiply(rest.reshape(out.shape), changed, out=out)
            if with_loss:
                _add_loss(twice, t2, c2, beyond)
        weights.append(robust)
        residuals.append(residual)
        losses.append(0.5 * twice)
    return weights, residuals, losses


def pull(state: State, d_coefficients: FloatArray) -> DoubleArray:
    """Compute J^T g, the gradient by latents from the gradient g by coefficients.

    Parameters
    ----------
    state : State
    d_coefficients : float32 (n_source, n_band, n_basis)
        g.

    Returns
    -------
    float64 (n_source, n_latent)
    """
    maps, d_maps, mix, d_mix = state.jacobian
    n, n_band, _ = state.coefficients.shape
    flux = np.exp(state.latent[:, :n_band]).astype(np.float32)
    scaled = flux[:, :, None] * d_coefficients
    d_map = (mix @ scaled).reshape(n, -1, 1)
    d_mixture = (maps @ scaled.transpose(0, 2, 1)).reshape(n, -1, 1)
    shape = (d_maps.reshape(n, d_maps.shape[1], -1) @ d_map)[:, :, 0]
    shape[:, 2:] += (d_mix.reshape(n, d_mix.shape[1], -1) @ d_mixture)[:, :, 0]
    fluxes = (state.coefficients * d_coefficients).sum(2)
    return np.concatenate([fluxes, shape], 1).astype(np.float64)
