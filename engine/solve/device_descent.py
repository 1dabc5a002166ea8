"""The solvers of `descent` and `adam` on a device: the same iterations as a fixed sequence of kernels.

The host reads nothing back within a descent. Whether a step is accepted is decided on the device: the kernel `choose`
copies the trial's rows of the blends whose L fell. All iterations of a batch are therefore one recording (a CUDA
graph). Buffers keep their recordings for batches of the same padded size.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import DeviceArray
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
from deblendrt.cuda.kernels.pixels.launch import loss, mean_weight, product, residual, trim_basis, wide
from deblendrt.cuda.kernels.prior.launch import prior_terms, secant
from deblendrt.cuda.kernels.steps.launch import accept, adam, choose, move, narrow
from deblendrt.engine.compute.cuda.buffers import Buffers, DeviceState
from deblendrt.engine.compute.cuda.joint_buffers import JointBuffers
from deblendrt.engine.compute.problem import Canvases, Problem, State
from deblendrt.engine.solve import constants
from deblendrt.engine.solve.adam import adam_rates
from deblendrt.engine.solve.further_rounds import Progress, in_rounds
from deblendrt.engine.solve.objective import temper
from deblendrt.engine.solve.prior import prior_curvature
from deblendrt.engine.units import DoubleArray

LIMITS = {"min_flux_factor": constants.MIN_FLUX_FACTOR, "max_flux_factor": constants.MAX_FLUX_FACTOR,
          "max_offset_step": constants.MAX_OFFSET_STEP, "max_drift": constants.MAX_DRIFT,
          "max_shape_step": constants.MAX_SHAPE_STEP}
ACCEPT_RULE = {"rejected_damping": constants.REJECTED_DAMPING, "min_damping": constants.MIN_DAMPING,
               "max_damping": constants.MAX_DAMPING, "rejected_factor": constants.REJECTED_FACTOR,
               "poor_decrease": constants.POOR_DECREASE, "poor_factor": constants.POOR_FACTOR,
               "good_decrease": constants.GOOD_DECREASE, "good_factor": constants.GOOD_FACTOR}
SECANT_BOUNDS = {"min_ratio": constants.MIN_SECANT_RATIO, "max_ratio": constants.MAX_SECANT_RATIO,
                 "min_curvature": constants.MIN_SECANT_CURVATURE}


def solve(buffers: Buffers, latent: DoubleArray, floor: DoubleArray, solver: str,
          n_iteration: int) -> tuple[NDArray[np.int8], State, DoubleArray, Canvases, Canvases]:
    """Run a solver on the problem that buffers hold.

    Parameters
    ----------
    buffers : Buffers
    latent, floor, solver, n_iteration
        As in `descent.solve`.

    Returns
    -------
    extent : int8 (n_source,)
    state : State
    downhill : float64 (n_source, n_latent)
    weights, residual : list of float32 (n_band, n_y, n_x)
    """
    stream = buffers.stream
    # the caller owns a stream already: the problem must not wait for another one
    problem = dataclasses.replace(buffers.problem, device=stream, runtime=stream.runtime)
    if solver == "gauss_newton":
        problem, latent, further = in_rounds(descend, problem, latent, floor, n_iteration)
        with stream.loaded(problem) as buffers:
            if further:
                start(buffers, latent, floor)
                buffers.run("evaluate", lambda: evaluate(buffers, buffers.state))
            return problem.extent, *finish(buffers)
    start(buffers, latent, floor)
    buffers.run(("adam", n_iteration), lambda: queue_adam(buffers, n_iteration))
    return buffers.fetch(buffers.extent).astype(np.int8), *finish(buffers)


def descend(problem: Problem, latent: DoubleArray, floor: DoubleArray, tempers: list[float],
            damping: DoubleArray | None, curvature: DoubleArray | None) -> tuple[Problem, Progress]:
    """Take one step for each tau, see `descent.descend`; the problem is on a stream."""
    assert problem.device is not None
    with problem.device.loaded(problem) as buffers:
        joint = buffers.joint(constants.MAX_DENSE, constants.RIM)
        start(buffers, latent, floor, damping, curvature)
        key = tuple(tempers)
        buffers.run(key, lambda: queue_gauss_newton(buffers, joint, key), joint)
        extent, wanted = (buffers.fetch(a).astype(np.int8) for a in (buffers.extent, buffers.wanted))
        left, following = (buffers.device.download(a)[: problem.n_blend] for a in (buffers.left, buffers.damping))
        return dataclasses.replace(problem, extent=extent), Progress(
            buffers.fetch(buffers.state.latent), wanted, left, following, buffers.fetch(buffers.curvature))


def finish(buffers: Buffers) -> tuple[State, DoubleArray, Canvases, Canvases]:
    """Return the state, minus the gradient of L, the robust weights and the weighted residual."""
    buffers.run("finish", lambda: weigh(buffers, 0.0, constants.MODEL_ERROR))
    return (buffers.host_state(), buffers.fetch(buffers.downhill), buffers.canvases(buffers.weights),
            buffers.canvases(buffers.residual))


def start(buffers: Buffers, latent: DoubleArray, floor: DoubleArray, damping: DoubleArray | None = None,
          curvature: DoubleArray | None = None) -> None:
    """Upload the start of a descent. Damping and curvature, by source, come from an earlier round, if any."""
    buffers.put(latent, buffers.state.latent)
    buffers.put(floor, buffers.floor)
    curvature = prior_curvature(buffers.problem) if curvature is None else curvature
    buffers.put(curvature, buffers.first_curvature, np.eye(latent.shape[1]))
    first: DoubleArray = np.full(len(buffers.first_damping), constants.FIRST_DAMPING)
    if damping is not None:
        first[buffers.problem.blend] = damping
    buffers.device.upload(first, buffers.first_damping)


def queue_gauss_newton(buffers: Buffers, joint: JointBuffers, tempers: tuple[float, ...]) -> None:
    """Queue the iterations of `descent.descend`, one for each tau."""
    device, state, trial = buffers.device, buffers.state, buffers.trial
    robust = int(buffers.problem.robust)
    device.copy(buffers.first_curvature, buffers.curvature)
    device.clear(buffers.left)
    device.clear(buffers.image)
    device.copy(buffers.first_damping, buffers.damping)
    evaluate(buffers, state)
    for before, tau in zip([tempers[0] if tempers else 0.0, *tempers], tempers, strict=False):
        if before > tau == 0.0:  # the shapes are known now
            extend(buffers, buffers.extent)
            buffers.reach()
            buffers.draw(state)
        error = max(tau, constants.MODEL_ERROR)
        weigh(buffers, tau, error)
        newton_step(buffers, joint)
        move(device, buffers.every, state.latent, buffers.step, buffers.floor, buffers.offset0, trial.latent, **LIMITS)
        evaluate(buffers, trial)
        loss(device, buffers.every, buffers.data, buffers.weight, state.model, trial.model, tau, error, constants.CLIP,
             robust, buffers.loss)
        accept(device, buffers.every, buffers.loss, state.log_prior, trial.log_prior, buffers.downhill, buffers.step,
               buffers.damping, buffers.better, buffers.left, **ACCEPT_RULE)
        secant(device, buffers.every, state.latent, trial.latent, state.prior_gradient, trial.prior_gradient,
               buffers.curvature, **SECANT_BOUNDS)
        choose(device, buffers.every, buffers.better, trial.by_source, state.by_source)
        buffers.draw(state)
    extend(buffers, buffers.wanted)


def queue_adam(buffers: Buffers, n_iteration: int) -> None:
    """Queue the iterations of `adam.adam`."""
    device, state = buffers.device, buffers.state
    first, second = buffers.step, buffers.rest
    for moment in (first, second):
        device.clear(moment)
    for iteration in range(n_iteration):
        evaluate(buffers, state)
        if iteration == int(constants.TEMPERED_SHARE * n_iteration):
            extend(buffers, buffers.extent)
            buffers.reach()
            buffers.draw(state)
        weigh(buffers, 0.0, temper(iteration, n_iteration))
        rate, share, correction = adam_rates(iteration)
        adam(device, buffers.every, buffers.downhill, buffers.floor, buffers.offset0, first, second, state.latent,
             rate=rate, share=share, correction=correction, epsilon=constants.ADAM_EPSILON,
             max_drift=constants.MAX_DRIFT)
    evaluate(buffers, state)


def evaluate(buffers: Buffers, state: DeviceState) -> None:
    """Queue the evaluation of a state's latents, see `objective.evaluate`."""
    model, problem = buffers.model, buffers.problem
    narrow(buffers.device, state.latent, buffers.latent32)
    jacobian = dict(zip(("maps", "d_maps", "mix", "d_mix"), state.jacobian, strict=True))
    model.runtime.enqueue("decode_jacobian", buffers.every.n_source, {"latent": buffers.latent32}, jacobian)
    core, sums = model.star_basis
    stars(buffers.device, buffers.every, state.latent, buffers.star, core, sums,
          np.float64(model.bundle.reference_psf_sigma), *state.jacobian)
    combine(buffers.device, state.latent, state.maps, state.mix, state.coefficients)
    buffers.draw(state)
    model.runtime.enqueue("log_prior", buffers.every.n_source, {"latent": buffers.latent32},
                          {"log_prob": buffers.log_prob, "gradient": buffers.flow_gradient})
    prior_terms(buffers.device, buffers.every, state.latent, buffers.log_prob, buffers.flow_gradient, buffers.measured,
                buffers.offset0, buffers.star, model.mean_color, model.color_sigma, np.float64(problem.center_sigma),
                state.log_prior, state.prior_gradient, slack=constants.COLOR_SLACK)


def weigh(buffers: Buffers, tau: float, error: float) -> None:
    """Queue the robust weights, the weighted residual, and minus the gradient of L."""
    state = buffers.state
    residual(buffers.device, buffers.every, buffers.data, buffers.weight, state.model, tau, error, constants.CLIP,
             int(buffers.problem.robust), buffers.weights, buffers.residual)
    buffers.project(buffers.residual, buffers.d_coefficients)
    pull(buffers.device, buffers.every, *state.jacobian, state.coefficients, state.latent, buffers.d_coefficients,
         state.prior_gradient, buffers.downhill)


def extend(buffers: Buffers, target: DeviceArray) -> None:
    """Queue the extents that the state's light needs, see `curvature.extents`."""
    n, n_band, n_basis = buffers.state.coefficients.shape
    lines = buffers.state.coefficients.reshape(n, n_band, 1, n_basis)
    through = buffers.changed.reshape(n, n_band, 1, n_basis)
    mean_weight(buffers.device, buffers.every, buffers.weight, buffers.tables.profile, buffers.inset, buffers.wbar)
    for window, missed in enumerate(buffers.tables.missed):
        product(buffers.device, buffers.every, lines, missed, through)
        wide(buffers.device, buffers.every, buffers.changed, buffers.state.coefficients, buffers.wbar,
             buffers.smallest, target, window=window, threshold=constants.MAX_UNDRAWN**2)


def newton_step(buffers: Buffers, joint: JointBuffers) -> None:
    """Queue the joint step of all blends, see `joint_step`."""
    device, state, every, pairs = buffers.device, buffers.state, buffers.every, joint.on_device
    columns(device, *state.jacobian, state.coefficients, state.latent, joint.columns)
    alone = buffers.curvature
    if buffers.cells is not None:
        alone = joint.alone
        mean_weight(device, every, buffers.weights, joint.rim_profile, buffers.inset, joint.rim)
        device.clear(joint.through)
        product(device, every, joint.columns, buffers.tables.missed[0], joint.through, chosen=buffers.extended)
        blocks(device, joint.columns, joint.through, joint.rim, buffers.curvature, alone)
    trim_basis(device, every, buffers.n_used, joint.columns, joint.columns)
    n_chunk, n_pair, _ = pairs.pair.shape
    all_pairs = pairs.pair.reshape(-1, 2)
    for k in range(n_chunk):
        drawn = dataclasses.replace(every, row_tile=pairs.row_tile.rows(k, k + 1), basis=pairs.table)
        product(device, drawn, joint.columns, buffers.tables.halved, joint.images, slot=pairs.slot)
        chunk = slice(k * n_pair, (k + 1) * n_pair)
        mine = all_pairs.rows(chunk.start, chunk.stop)
        couplings(device, every, joint.images, pairs.slot, buffers.inset, buffers.weights, mine, joint.inner)
        joint_blocks(device, every, joint.inner, mine, alone, buffers.damping,
                     joint.blocks.rows(chunk.start, chunk.stop), flux_damped=constants.FLUX_DAMPED)
    joint_solve(device, every, joint.blocks, all_pairs, pairs.pair_span, buffers.downhill, pairs.matrix_start,
                joint.matrices, joint.solved, largest=constants.MAX_DENSE, ridge=constants.JOINT_RIDGE)
    if pairs.n_large:
        block_inverse(device, every, joint.blocks, pairs.own, joint.inverse, largest=constants.MAX_DENSE,
                      ridge=constants.BLOCK_RIDGE)
        joint_conjugate(device, every, joint.blocks, all_pairs, pairs.partner_start, pairs.partner, joint.inverse,
                        buffers.downhill, (joint.rest, joint.direction, joint.image), joint.solved,
                        largest=constants.MAX_DENSE, n_iteration=constants.N_CONJUGATE)
    alike(device, every, state.latent, joint.solved, buffers.step)
