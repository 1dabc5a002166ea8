"""Measurements of a solved scene in a graph: `deblendrt.engine.measure.measurements`, `uncertainty` and `fit_quality`
for one scene.

Errors are the engine's: the Laplace approximation around the solution, blend by blend. Apertures, ellipticities and
systematic errors are left out; POOR_FIT does without systematic errors.
"""

from __future__ import annotations

import numpy as np

from deblendrt.engine.measure import fit_quality
from deblendrt.engine.scene.flags import SUSPECT, Flag
from deblendrt.engine.solve import constants
from deblendrt.engine.units import AB_ZERO_POINT
from deblendrt.export.solver.descent import DescentGraph
from deblendrt.export.solver.drawing import Groups
from deblendrt.export.solver.graph_builder import Value
from deblendrt.export.solver.joint_step import by_latent
from deblendrt.export.solver.linear_algebra import diagonal, eye, inverse_by_blocks, positive_part, symmetric_inverse
from deblendrt.export.solver.objective import BlendValues, ObjectiveGraph, PointValues, total
from deblendrt.export.solver.start import linear_fluxes


def measured_outputs(o: ObjectiveGraph, descent: DescentGraph, blends: BlendValues, point: PointValues,
                     extent: Value, flags: Value) -> dict[str, Value]:
    """The graph's outputs by name, `deblendrt.export.solver.solver_graph.SOLVER_OUTPUTS`."""
    b, n_band, scene = o.b, o.n_band, o.scene
    groups = o.draw.groups(extent)
    model = o.render(point, groups)
    weight, residual, loss = o.weigh(o.likelihood(model), model)
    downhill = o.pull(point, o.project(residual, groups)) + point.gradient
    map_flux = b.exp(point.latent[:, :n_band])
    unit = point.mix.transpose(0, 2, 1) @ point.maps
    flux, _ = linear_fluxes(
        o, unit, map_flux, groups, blends.joined, constants.FINAL_SWEEPS, constants.MODEL_ERROR
    )
    covariance, own = laplace(o, descent, blends, point, groups, weight, unit)
    remaining = remaining_step(o, covariance, own, b.concat(
        [downhill[:, :n_band] / map_flux, downhill[:, n_band:]], 1))
    rest = scene.data - model
    chi2 = (scene.weight * rest * rest).cast(np.float64).sum(0).reshape(-1)
    core = blends.owned * near_center(o)
    n_pixel = (core @ (scene.weight > 0.0).cast(np.float64).sum(0).reshape(-1, 1))[:, 0]
    n_lost = (core @ (weight < scene.weight * 0.5).any(0).cast(np.float64).reshape(-1, 1))[:, 0]
    own_chi2 = (core @ chi2[:, None])[:, 0]
    log_prior = b.inline(o.graphs["log_prior"], "log_prior", point.latent.cast(np.float32))[0]
    fitted = scene.fitted
    flags = all_flags(o, blends, flags, own_chi2, n_pixel, n_lost, remaining, log_prior, map_flux)
    own_loss = (blends.owned @ loss[:, None])[:, 0] - b.where(fitted, point.log_prior, 0.0)
    variance = diagonal(b, own, descent.n_latent)
    error = b.sqrt(b.maximum(variance, 0.0))
    position = o.draw.anchor.cast(np.float64) + point.latent[:, n_band : n_band + 2]
    first = b.node("ArgMax", blends.joined, axis=1, keepdims=0, dtype=np.int64)

    def known(values: Value, condition: Value) -> Value:
        return b.where(condition, values.cast(np.float32), np.float32(np.nan))

    measured, listed = scene.measured, fitted[:, None]
    return {
        "flux": known(flux, measured), "flux_err": known(error[:, :n_band], measured),
        "map_flux": known(map_flux, listed), "position": known(position, listed),
        "position_err": known(error[:, n_band : n_band + 2], listed), "latent": known(point.latent, listed),
        "chi2": known(own_chi2, fitted), "n_pixel": b.where(fitted, n_pixel.cast(np.int32), np.int32(0)),
        "log_prior": known(log_prior, fitted),
        "blend": b.where(fitted, first.cast(np.int32), np.int32(-1)), "flags": flags.cast(np.int32), "model": model,
        "scene_chi2": chi2.sum(0, keep=True), "objective": own_loss.sum(0, keep=True),
    }


def near_center(o: ObjectiveGraph) -> Value:
    """1 for pixels within `fit_quality.CORE_RADIUS` of the given centres, float64 (n_source, n_y * n_x)."""
    b, (n_y, n_x) = o.b, o.draw.shape
    place = o.draw.anchor.cast(np.float64) + o.scene.offset0
    x, y = (b.constant(np.arange(size, dtype=np.float64))[None] - place[:, axis][:, None]
            for axis, size in enumerate((n_x, n_y)))
    distance = (y * y)[:, :, None] + (x * x)[:, None]
    return (distance <= fit_quality.CORE_RADIUS**2).reshape(o.n_source, -1).cast(np.float64)


def laplace(o: ObjectiveGraph, descent: DescentGraph, blends: BlendValues, point: PointValues, groups: Groups,
            weight: Value, unit: Value) -> tuple[Value, Value]:
    """See `deblendrt.engine.measure.uncertainty.laplace`.

    Returns
    -------
    covariance : Value
        float64 (n_source * n_latent, n_source * n_latent).
    own : Value
        float64 (n_source, n_latent, n_latent), the diagonal blocks of the covariance.
    """
    b, n, n_band, n_latent = o.b, o.n_source, o.n_band, descent.n_latent
    columns = b.concat([unit[:, :, None], descent.columns(point)[:, :, 1:]], 2) * o.present[:, :, :, None]
    n_column = 1 + o.n_move
    by_band = columns.transpose(1, 2, 0, 3)  # (n_band, n_column, n_source, n_basis)

    def products(i: Value) -> list[Value]:
        band = i.reshape(1)
        images = o.draw.placed(by_band.take(i), groups, n_column, band)
        images = images.transpose(1, 0, 2).reshape(n * n_column, -1)
        seen = images * weight.take(i).reshape(1, -1)
        return [seen @ images.transpose(1, 0)]

    inner, = b.loop(n_band, [], products, scan=[(n * n_column, n * n_column)])
    inner = inner.reshape(n_band, n, n_column, n, n_column).transpose(1, 3, 0, 2, 4)
    precision = by_latent(b, inner.reshape(n * n, n_band, n_column, n_column).cast(np.float64), n_band)
    precision = precision.reshape(n, n, n_latent, n_latent) * blends.joined[:, :, None, None]
    precision = precision.transpose(0, 2, 1, 3)
    units = b.constant(np.eye(n)[:, None, :, None])
    precision = precision + prior_precision(o, point.latent, n_latent)[:, :, None] * units
    size = n * n_latent
    flat = precision.reshape(size, size)
    scale = 1.0 / b.sqrt(diagonal(b, flat, size))
    scaled = flat * scale[:, None] * scale[None] + constants.COVARIANCE_RIDGE * eye(b, size)
    covariance = inverse_by_blocks(b, scaled, n, n_latent) * scale[:, None] * scale[None]
    return covariance, (covariance.reshape(n, n_latent, n, n_latent) * units).sum(2)


def prior_precision(o: ObjectiveGraph, latent: Value, n_latent: int) -> Value:
    """See `deblendrt.engine.solve.prior.prior_precision`; float64 (n_source, n_latent, n_latent)."""
    b, n, n_band, n_shape = o.b, o.n_source, o.n_band, o.bundle.n_shape
    steps = np.zeros((2 * n_shape, n_latent))
    steps[:n_shape, n_band + 2 :] = constants.PRIOR_STEP * np.eye(n_shape)
    steps[n_shape:] = -steps[:n_shape]
    moved = (latent[None] + b.constant(steps[:, None])).reshape(-1, n_latent)
    gradient = b.inline(o.graphs["log_prior"], "log_prior", moved.cast(np.float32))[1].cast(np.float64)
    gradient = gradient.reshape(2, n_shape, n, n_latent)[:, :, :, n_band + 2 :]
    hessian = ((gradient[1] - gradient[0]) / (2 * constants.PRIOR_STEP)).transpose(1, 2, 0)
    shape = positive_part(b, (hessian + hessian.transpose(0, 2, 1)) * 0.5, n_shape)
    fixed = np.zeros((n_latent, n_latent))
    fixed[[n_band, n_band + 1], [n_band, n_band + 1]] = o.center_sigma**-2
    nothing = (~o.scene.measured).cast(np.float64)[:, :, None] * np.eye(n_band)
    alone = (~o.scene.fitted).cast(np.float64)[:, None, None] * np.eye(n_latent)  # keeps the matrix regular
    rest = n_latent - n_band
    return (b.node("Pad", shape, b.ints([0, n_band + 2, n_band + 2, 0, 0, 0]))
            + b.node("Pad", nothing, b.ints([0, 0, 0, 0, rest, rest])) + fixed + alone)


def remaining_step(o: ObjectiveGraph, covariance: Value, own: Value, downhill: Value) -> Value:
    """See `deblendrt.engine.measure.uncertainty.remaining_step`; float64 (n_source,)."""
    b, n, n_band = o.b, o.n_source, o.n_band
    step = (covariance @ downhill.reshape(-1, 1)).reshape(n, -1)[:, n_band:]
    block = own[:, n_band:, n_band:]
    scale = 1.0 / b.sqrt(diagonal(b, block, o.n_move))
    inverted = symmetric_inverse(b, block * scale[:, :, None] * scale[:, None], o.n_move)
    scaled = step * scale
    return ((inverted @ scaled[:, :, None])[:, :, 0] * scaled).sum(1) * 0.5


def all_flags(o: ObjectiveGraph, blends: BlendValues, flags: Value, chi2: Value, n_pixel: Value, n_lost: Value,
              remaining: Value, log_prior: Value, map_flux: Value) -> Value:
    """Flags of the input with the flags of the fit, see `fit_quality`, int64 (n_source,)."""
    b, bundle = o.b, o.bundle
    count = b.maximum(n_pixel, 1.0)
    reduced = chi2 / count
    poor = ((reduced > b.sqrt(2.0 / count) * fit_quality.POOR_FIT_SIGMA + 1.0) & (reduced > fit_quality.POOR_FIT_RATIO))
    magnitude = b.log(map_flux[:, bundle.reference_index]) * (-2.5 / np.log(10.0)) + AB_ZERO_POINT
    limits = bundle.training["population"]
    conditions = {
        Flag.POOR_FIT: poor,
        Flag.UNMODELLED_FLUX: n_lost >= fit_quality.UNMODELLED_PIXELS,
        Flag.NOT_CONVERGED: ~(remaining < fit_quality.CONVERGED),
        Flag.PRIOR_OUTLIER: log_prior < bundle.log_prob_percentiles["0.1"],
        Flag.OUTSIDE_PRIOR_FLUX: (magnitude < limits["magnitude_min"]) | (magnitude > limits["magnitude_max"]),
    }
    suspect = b.zeros(1, 1, dtype=bool)
    for flag, condition in conditions.items():
        here = condition & o.scene.fitted
        flags = flags + here.cast(np.int64) * int(flag)
        if flag & SUSPECT:
            suspect = suspect | here[:, None]
    number = suspect[:, 0].cast(np.float64)
    return flags + (total(blends, number) > number).cast(np.int64) * int(Flag.NEIGHBOUR_SUSPECT)
