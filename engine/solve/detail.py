r"""The last joint linear solve: fluxes, offsets, shapes and *detail* of whole blends, with their covariance.

Detail is the part of a galaxy that the decoder cannot draw. It is a Gaussian in coefficient space, around the decoder's
coefficients of the MAP solution. With the flux F_ib of source i in band b, the coefficients gain

    F_ib (sum_r u_ir L_r + sum_q v_ibq M_q),        u_i, v_i ~ N(0, lambda_i)

The bands share the modes L; M are modes of single bands. Both come from the bundle, as factors of a prior covariance
that was learnt from galaxies. Let D be the images of the derivatives by all parameters, W the robust weights, P the
curvature of the prior on offset and shape, and r the residual. One system per blend,

    A = D' W D + diag(0, P, 1 / lambda),        g = D' W r + (0, grad log p, 0),        x = A^-1 g,    cov = A^-1,

has the unknowns x = (flux, offset, shape, u, v). Fluxes have no prior. The decoded image of a source, times the flux of
a mode, is taken out of the mode: so the flux part of x is the total flux.

The scale lambda_i of a source's detail is 1 in the first pass. With n modes, the second pass takes

    lambda = (nu + u' u) / (nu + gamma),        gamma = n - tr(cov_uu) / lambda,

the expectation of the scale under a Student prior. A pass draws all sources first, so that touching blends see each
other's last solution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import canvases, drawing
from deblendrt.engine.compute.problem import Canvases, Problem, where_measured
from deblendrt.engine.solve import constants, objective
from deblendrt.engine.solve.curvature import (
    constant_products,
    covariance_of,
    derivative_images,
    mean_weight,
    unit_columns,
)
from deblendrt.engine.solve.descent import Solution
from deblendrt.engine.solve.joint_fluxes import blend_rows
from deblendrt.engine.solve.joint_step import inner_products
from deblendrt.engine.solve.prior import prior_precision
from deblendrt.engine.units import DoubleArray, FloatArray


@dataclasses.dataclass(frozen=True)
class SkyResponse:
    """The parameters of a blend under a sky of one per pixel: A^-1 C, with C the products of D and a constant image.

    Attributes
    ----------
    latent : float64 (n_member, n_latent, n_band)
        Response of flux, offset and shape to the sky of each band.
    absorbed : float64 (n_band, n_band) [nJy^-2]
        C' A^-1 C, the weight of the sky that the blend's parameters can absorb.
    with_detail : dict of int to float64 (n_band, n, n_band)
        For members with detail: response of (flux, offset, shape, u, v of the band) in every band.
    """

    latent: DoubleArray
    absorbed: DoubleArray
    with_detail: dict[int, DoubleArray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class BlendCovariance:
    """Posterior covariance of one blend.

    Attributes
    ----------
    rows : int64 (n_member,)
        Sources of the blend.
    matrix : float64 (n_member, n_latent, n_member, n_latent)
        Covariance of fluxes (nJy), offset (pixel) and shape; detail is marginalised. Fluxes of bands without weight
        have variance one.
    with_detail : dict of int to float64 (n_band, n, n)
        For members with detail: the covariance of (flux, offset, shape, u, v of the band) in every band.
    sky : SkyResponse, optional
        Given if a sky was asked for.
    """

    rows: NDArray[np.int64]
    matrix: DoubleArray
    with_detail: dict[int, DoubleArray] = dataclasses.field(default_factory=dict)
    sky: SkyResponse | None = None

    def own(self, member: int) -> DoubleArray:
        """Return a source's covariance, its neighbours marginalised, float64 (n_latent, n_latent)."""
        return self.matrix[member, :, member]


@dataclasses.dataclass(frozen=True)
class Modes:
    """The modes of the sources of a problem.

    Attributes
    ----------
    n_shared, n_band_mode : int64 (n_source,)
        Number of modes of each source: all of the bundle's, or none.
    lines : dict of int to float32 (n_band, n_mode, n_basis) [nJy]
        Coefficients of the modes, with the source's fluxes and without light in total; shared modes first.
    """

    n_shared: NDArray[np.int64]
    n_band_mode: NDArray[np.int64]
    lines: dict[int, FloatArray]


@dataclasses.dataclass
class _System:
    """The matrix A of one blend without the prior of the detail, cut into the unknowns c = (flux, offset, shape of all
    members; u of all members) and the v of single bands."""

    rows: NDArray[np.int64]
    common: DoubleArray  # (n_c, n_c)
    band: DoubleArray  # (n_band, n_v, n_v)
    cross: DoubleArray  # (n_band, n_v, n_c)
    u: dict[int, slice]  # columns of a member's u
    v: dict[int, slice]  # columns of a member's v
    held: NDArray[np.bool_]  # (n_member, 2): offset and shape that stay, as their steps went too far


@dataclasses.dataclass(frozen=True)
class DetailFit:
    """The solution of the joint linear solve, for the blends in which a source has detail.

    Attributes
    ----------
    solved : bool (n_source,)
        Sources of these blends. For other sources the arrays have the MAP solution.
    flux : float64 (n_source, n_band) [nJy]
        Total fluxes, signed.
    fixed_shape_err : float64 (n_source, n_band) [nJy]
        Standard deviations of the fluxes with offsets, shapes and detail held fixed; infinite without weight.
    move : float64 (n_source, 2) [pixel]
        Steps of the offsets.
    coefficients : float32 (n_source, n_band, n_basis) [nJy]
    model : list of float32 (n_band, n_y, n_x) [nJy]
    blends : list of BlendCovariance
    lines : dict of int to float32 (n_band, n_mode, n_basis) [nJy]
        See `Modes`.
    off_center : bool (n_source,)
        The offset would leave the linear range, and stayed at the MAP solution.
    """

    solved: NDArray[np.bool_]
    flux: DoubleArray
    fixed_shape_err: DoubleArray
    move: DoubleArray
    coefficients: FloatArray
    model: Canvases
    blends: list[BlendCovariance]
    lines: dict[int, FloatArray]
    off_center: NDArray[np.bool_]


def solve_detail(problem: Problem, solution: Solution, *, sky: bool = False) -> DetailFit | None:
    """Solve for fluxes, offsets, shapes and detail around the MAP solution.

    Parameters
    ----------
    problem : Problem
        On the CPU.
    solution : Solution
    sky : bool
        Whether the covariances get their `SkyResponse`.

    Returns
    -------
    DetailFit or None
        None: no source has detail.
    """
    if not len(problem.bundle.detail_shared):
        return None
    state = solution.state
    n_band, n_latent, n = problem.n_band, state.latent.shape[1], len(state.latent)
    unit = unit_columns(state)
    modes = source_modes(problem, solution, unit)
    with_detail = np.bincount(problem.blend, modes.n_shared, problem.n_blend) > 0
    if not with_detail.any():
        return None
    solved = with_detail[problem.blend]
    prior = prior_precision(problem, state.latent)
    systems = [_system(problem, *system, modes, unit.shape[2])
               for system in _drawn(problem, solution, unit, modes, solved)]
    x = [np.zeros(n_latent + s + n_band * q) for s, q in zip(modes.n_shared, modes.n_band_mode, strict=True)]
    scale = np.ones(n)
    model = state.model
    constant = _constants(problem, solution, unit, modes) if sky else None
    blends: list[BlendCovariance] = []
    for k in range(constants.DETAIL_PASSES):
        gradient = _gradients(problem, solution, unit, modes, model)
        for i, g in enumerate(gradient):
            g[n_band:n_latent] += state.prior_gradient[i, n_band:] - prior[i, n_band:, n_band:] @ x[i][n_band:n_latent]
            g[n_latent:] -= x[i][n_latent:] / scale[i]
        last = k == constants.DETAIL_PASSES - 1
        blends = [_step(system, prior, scale, gradient, x, n_band, n_latent, last, constant) for system in systems]
        coefficients = _coefficients(state.coefficients, unit, modes, x)
        model = objective.render(problem, coefficients)
    off_center = np.zeros(n, bool)
    for system in systems:
        off_center[system.rows] = system.held[:, 0]
    return DetailFit(solved, np.exp(state.latent[:, :n_band]) + np.array([a[:n_band] for a in x]),
                     _fixed_shape_errors(systems, n, n_band, n_latent),
                     np.array([a[n_band : n_band + 2] for a in x]), coefficients, model, blends, modes.lines,
                     off_center)


def information(problem: Problem, solution: Solution) -> list[tuple[DoubleArray, DoubleArray]]:
    """Return D' W D and D' W r of every source alone, without priors and without modes of single bands.

    Returns
    -------
    list of (float64 (n, n), float64 (n,))
        n is n_latent, or n_latent + n_shared for a source with detail.
    """
    unit = unit_columns(solution.state)
    modes = source_modes(problem, solution, unit)
    gradient = _gradients(problem, solution, unit, modes, solution.state.model)
    n_latent = solution.state.latent.shape[1]
    found: list[tuple[DoubleArray, DoubleArray]] = [(np.zeros((0, 0)), g) for g in gradient]
    every = np.ones(len(unit), bool)
    for drawn in _drawn(problem, solution, unit, modes, every):
        system = _system(problem, *drawn, modes, unit.shape[2])
        for a, i in enumerate(system.rows.tolist()):
            own = np.r_[a * n_latent : (a + 1) * n_latent, system.u[a]]
            found[i] = system.common[np.ix_(own, own)], gradient[i][: len(own)]
    return found


def _gradients(problem: Problem, solution: Solution, unit: FloatArray, modes: Modes,
               model: Canvases) -> list[DoubleArray]:
    """D' W r of every source, around a model."""
    n = len(unit)
    residual = [w * (y - m) for w, y, m in zip(solution.weights, problem.data, model, strict=True)]
    projected = objective.project(problem, residual).astype(np.float64)
    result = []
    for i in range(n):
        of_unit = np.einsum("bck,bk->bc", unit[i], projected[i])
        parts = [of_unit[:, 0], of_unit[:, 1:].sum(0)]
        if r := modes.n_shared[i]:
            of_mode = np.einsum("bck,bk->bc", modes.lines[i], projected[i])
            parts += [of_mode[:, :r].sum(0), of_mode[:, r:].ravel()]
        result.append(np.concatenate(parts))
    return result


def _constants(problem: Problem, solution: Solution, unit: FloatArray, modes: Modes) -> list[DoubleArray]:
    """Products of every source's derivative images and modes with a constant image, (n_band, n_column + n_mode)."""
    projected = objective.project(problem, solution.weights)
    result = list(constant_products(unit, projected))
    for i, lines in modes.lines.items():
        result[i] = np.hstack([result[i], constant_products(lines[None], projected[[i]])[0]])
    return result


def source_modes(problem: Problem, solution: Solution, unit: FloatArray) -> Modes:
    """Choose the modes of every source by its signal to noise, and give them its fluxes."""
    state, n_band = solution.state, problem.n_band
    lines: dict[int, FloatArray] = {}
    bundle = problem.bundle
    snr = _signal_to_noise(problem, solution)
    shared = (snr > constants.SHARED_SNR) & ~problem.star
    by_band = (snr > constants.BAND_SNR) & ~problem.star
    every = np.concatenate([bundle.detail_shared, bundle.detail_band]).astype(np.float64)
    flux = np.exp(state.latent[:, :n_band])
    own = every @ bundle.basis_sum
    for i in np.flatnonzero(shared).tolist():
        n_mode = len(bundle.detail_shared) + (len(bundle.detail_band) if by_band[i] else 0)
        line = every[None, :n_mode] - own[None, :n_mode, None] * unit[i][:, None, 0]
        lines[i] = (flux[i][:, None, None] * line).astype(np.float32)
    return Modes(shared * len(bundle.detail_shared), by_band * len(bundle.detail_band), lines)


def _signal_to_noise(problem: Problem, solution: Solution) -> DoubleArray:
    """Signal to noise of every source's image, all bands together, float64 (n_source,)."""
    measured = where_measured(problem)
    coefficients = measured.used(solution.state.coefficients)
    weights = solution.weights if measured.bands is None else [w[measured.bands] for w in solution.weights]
    weight = mean_weight(measured, weights)
    square = np.zeros(weight.shape)
    for rows, basis in drawing.runs(measured.folded, len(coefficients)):
        through = drawing.product(coefficients[rows], basis.gram.astype(np.float32))
        square[rows] = (through * coefficients[rows]).sum(2, dtype=np.float64)
    return np.sqrt((weight * square).sum(1))


def _coefficients(start: FloatArray, unit: FloatArray, modes: Modes, x: list[DoubleArray]) -> FloatArray:
    """Coefficients after the steps x."""
    n, n_band, n_column, _ = unit.shape
    n_latent = n_band + n_column - 1
    result = start.astype(np.float64)
    for i in range(n):
        by_column = np.empty((n_band, n_column))
        by_column[:, 0], by_column[:, 1:] = x[i][:n_band], x[i][n_band:n_latent]
        result[i] += np.einsum("bc,bck->bk", by_column, unit[i])
        if r := modes.n_shared[i]:
            by_mode = np.empty((n_band, r + modes.n_band_mode[i]))
            by_mode[:, :r] = x[i][n_latent : n_latent + r]
            by_mode[:, r:] = x[i][n_latent + r :].reshape(n_band, -1)
            result[i] += np.einsum("bc,bck->bk", by_mode, modes.lines[i])
    return result.astype(np.float32)


def _drawn(problem: Problem, solution: Solution, unit: FloatArray, modes: Modes, chosen: NDArray[np.bool_],
           ) -> Iterator[tuple[NDArray[np.int64], dict[int, canvases.Placed], FloatArray, NDArray[np.int64]]]:
    """Yield the chosen blends: their rows, derivative images of all their parameters, weights and bands in use."""
    measured = where_measured(problem)
    weights = solution.weights if measured.bands is None else [w[measured.bands] for w in solution.weights]
    bands = np.arange(problem.n_band) if measured.bands is None else measured.bands
    count = modes.n_shared + modes.n_band_mode
    for chunk in blend_rows(problem):
        for rows in chunk:  # one at a time: a blend's images with all modes take some 5 MB a source
            if not chosen[rows[0]]:
                continue
            drawn: dict[int, canvases.Placed] = {}
            for n_mode in np.unique(count[rows]).tolist():
                some = rows[count[rows] == n_mode]
                lines = unit[some]
                if n_mode:
                    lines = np.concatenate([lines, np.array([modes.lines[i] for i in some.tolist()])], 2)
                drawn |= derivative_images(measured, measured.used(lines), some)
            yield rows, drawn, weights[measured.scene[rows[0]]], bands


def _system(problem: Problem, rows: NDArray[np.int64], drawn: dict[int, canvases.Placed], weight: FloatArray,
            bands: NDArray[np.int64], modes: Modes, n_column: int) -> _System:
    n_band = problem.n_band
    n_latent = n_band + n_column - 1
    of_u, of_v = {}, {}
    n_c, n_v = len(rows) * n_latent, 0
    for a, i in enumerate(rows.tolist()):
        of_u[a] = slice(n_c, n_c + modes.n_shared[i])
        of_v[a] = slice(n_v, n_v + modes.n_band_mode[i])
        n_c, n_v = of_u[a].stop, of_v[a].stop
    common, band, cross = np.zeros((n_c, n_c)), np.zeros((n_band, n_v, n_v)), np.zeros((n_band, n_v, n_c))
    place = {i: a for a, i in enumerate(rows.tolist())}
    u_of, column = modes.n_shared, np.arange(n_band)
    for i, j, inner in inner_products(rows, drawn, weight):
        product = np.zeros((n_band, *inner.shape[1:]))
        product[bands] = inner
        for (p, q), pair in (((i, j), product), ((j, i), product.transpose(0, 2, 1))):
            a, b = place[p], place[q]
            end_a, end_b = n_column + u_of[p], n_column + u_of[q]
            fluxes_a, fluxes_b = a * n_latent + column, b * n_latent + column
            rest_a = np.r_[a * n_latent + n_band : (a + 1) * n_latent, of_u[a]]
            rest_b = np.r_[b * n_latent + n_band : (b + 1) * n_latent, of_u[b]]
            common[fluxes_a, fluxes_b] = pair[:, 0, 0]
            common[np.ix_(fluxes_a, rest_b)] = pair[:, 0, 1:end_b]
            common[np.ix_(rest_a, fluxes_b)] = pair[:, 1:end_a, 0].T
            common[np.ix_(rest_a, rest_b)] = pair[:, 1:end_a, 1:end_b].sum(0)
            if modes.n_band_mode[p]:
                v = pair[:, end_a:]
                cross[:, of_v[a], rest_b] = v[:, :, 1:end_b]
                cross[column, of_v[a], fluxes_b] = v[:, :, 0]
                band[:, of_v[a], of_v[b]] = v[:, :, end_b:]
            if p == q:
                break
    return _System(rows, common, band, cross, of_u, of_v, np.zeros((len(rows), 2), bool))


def _step(system: _System, prior: DoubleArray, scale: DoubleArray, gradient: list[DoubleArray],
          x: list[DoubleArray], n_band: int, n_latent: int, last: bool,
          constant: list[DoubleArray] | None) -> BlendCovariance:
    """Solve a blend's system: add the step to x, and set the scales unless this pass is the last."""
    rows = system.rows.tolist()
    common = system.common.copy()
    n_v = system.band.shape[1]
    g_c, g_v = np.empty(len(common)), np.empty((n_band, n_v))
    v_prior = np.empty(n_v)
    for a, i in enumerate(rows):
        own = slice(a * n_latent, (a + 1) * n_latent)
        common[own, own] += prior[i]
        u = system.u[a]
        common[np.arange(u.start, u.stop), np.arange(u.start, u.stop)] += 1 / scale[i]
        v_prior[system.v[a]] = 1 / scale[i]
        g_c[own] = gradient[i][:n_latent]
        g_c[u] = gradient[i][n_latent : n_latent + u.stop - u.start]
        g_v[:, system.v[a]] = gradient[i][n_latent + u.stop - u.start :].reshape(n_band, -1)
    through = system.cross
    inverse_v = system.band
    if n_v:
        inverse_v = covariance_of(system.band + np.diag(v_prior))
        through = inverse_v @ system.cross
        common -= (system.cross.transpose(0, 2, 1) @ through).sum(0)
        g_c -= (through.transpose(0, 2, 1) @ g_v[:, :, None])[:, :, 0].sum(0)
    covariance = covariance_of(common[None])[0]
    step = covariance @ g_c
    held = system.held
    for _ in range(constants.HOLD_ROUNDS):
        far = _too_far(system, x, step, n_band, n_latent) & ~held
        if not far.any():
            break
        held |= far
        fixed = np.zeros((len(rows), n_latent), bool)
        fixed[:, n_band : n_band + 2], fixed[:, n_band + 2 :] = held[:, :1], held[:, 1:]
        free = np.flatnonzero(~np.append(fixed, np.zeros(len(common) - fixed.size, bool)))
        step = np.zeros(len(common))
        step[free] = covariance_of(common[np.ix_(free, free)][None])[0] @ g_c[free]
    step_v = (inverse_v @ g_v[:, :, None])[:, :, 0] - through @ step if n_v else g_v
    with_detail = {}
    for a, i in enumerate(rows):
        members, u, v = np.arange(a * n_latent, (a + 1) * n_latent), system.u[a], system.v[a]
        n_u = u.stop - u.start
        x[i][:n_latent] += step[members]
        x[i][n_latent : n_latent + n_u] += step[u]
        x[i][n_latent + n_u :] += step_v[:, v].ravel()
        if not n_u:
            continue
        if last:
            c = np.r_[members, u]
            both = np.empty((n_band, len(c) + v.stop - v.start, len(c) + v.stop - v.start))
            both[:, : len(c), : len(c)] = covariance[np.ix_(c, c)]
            if n_v:
                by_v = -through[:, v] @ covariance
                both[:, len(c) :, : len(c)] = by_v[:, :, c]
                both[:, : len(c), len(c) :] = by_v[:, :, c].transpose(0, 2, 1)
                both[:, len(c) :, len(c) :] = inverse_v[:, v, v] - by_v @ through[:, v].transpose(0, 2, 1)
            with_detail[a] = both
        else:
            shared = x[i][n_latent : n_latent + n_u]
            scale[i] = next_scale(shared, covariance[u, u], scale[i])
    n = len(rows)
    matrix = covariance[: n * n_latent, : n * n_latent].reshape(n, n_latent, n, n_latent)
    sky = None if constant is None or not last else _sky_response(system, constant, covariance, through, inverse_v,
                                                                  n_latent)
    return BlendCovariance(system.rows, matrix, with_detail, sky)


def _sky_response(system: _System, constant: list[DoubleArray], covariance: DoubleArray, through: DoubleArray,
                  inverse_v: DoubleArray, n_latent: int) -> SkyResponse:
    """Solve a blend's system for a sky of one per pixel in every band."""
    n_band, n_v = system.band.shape[:2]
    band = np.arange(n_band)
    c, of_v = np.zeros((len(system.common), n_band)), np.zeros((n_band, n_v))
    n_column = n_latent - n_band + 1
    for a, i in enumerate(system.rows.tolist()):
        u, own = system.u[a], constant[i]
        end = n_column + u.stop - u.start
        c[a * n_latent + band, band] = own[:, 0]
        c[a * n_latent + n_band : (a + 1) * n_latent] = own[:, 1:n_column].T
        c[u], of_v[:, system.v[a]] = own[:, n_column:end].T, own[:, end:]
    v_alone = (inverse_v @ of_v[:, :, None])[:, :, 0]
    c -= (through.transpose(0, 2, 1) @ of_v[:, :, None])[:, :, 0].T
    by_c = covariance @ c
    by_v = -through @ by_c
    by_v[band, :, band] += v_alone
    absorbed = c.T @ by_c + np.diag((of_v * v_alone).sum(1))
    with_detail = {}
    for a in range(len(system.rows)):
        u, v = system.u[a], system.v[a]
        if u.stop > u.start:
            common = np.concatenate([by_c[a * n_latent : (a + 1) * n_latent], by_c[u]])
            with_detail[a] = np.concatenate([np.broadcast_to(common, (n_band, *common.shape)), by_v[:, v]], 1)
    latent = by_c[: len(system.rows) * n_latent].reshape(-1, n_latent, n_band)
    return SkyResponse(latent, absorbed, with_detail)


def next_scale(u: DoubleArray, covariance: DoubleArray, scale: float) -> float:
    """Return the scale lambda of a source's detail from u, its covariance, and the scale at which both were found."""
    gamma = len(u) - covariance.trace() / scale
    return float(np.clip((constants.DETAIL_FREEDOM + u @ u) / (constants.DETAIL_FREEDOM + gamma),
                         constants.MIN_SCALE, constants.MAX_SCALE))


def _too_far(system: _System, x: list[DoubleArray], step: DoubleArray, n_band: int,
             n_latent: int) -> NDArray[np.bool_]:
    """Whether members' offsets and shapes leave the range in which images are linear, bool (n_member, 2)."""
    move = step[: len(system.rows) * n_latent].reshape(-1, n_latent)[:, n_band:]
    move = move + np.array([x[i][n_band:n_latent] for i in system.rows.tolist()])
    length = np.sqrt(np.stack([(move[:, :2] ** 2).sum(1), (move[:, 2:] ** 2).sum(1)], 1))
    return np.asarray(length > (constants.MAX_LINEAR_OFFSET, constants.MAX_LINEAR_SHAPE))


def _fixed_shape_errors(systems: list[_System], n: int, n_band: int, n_latent: int) -> DoubleArray:
    """Errors of fluxes with all else held fixed."""
    result = np.full((n, n_band), np.inf)
    for system in systems:
        m = len(system.rows)
        for b in range(n_band):
            flux = np.arange(m) * n_latent + b
            block = system.common[np.ix_(flux, flux)]
            known = block.diagonal() > 0
            inner = covariance_of(block[np.ix_(known, known)][None])[0]
            result[system.rows[known], b] = np.sqrt(inner.diagonal())
    return result
