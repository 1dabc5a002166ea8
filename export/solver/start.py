"""The start of the descent in a graph, from an image and centres: `deblendrt.engine.scene.scene` and
`deblendrt.engine.solve.start` for one scene."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.scene.blends import MIN_BLEND_RADIUS
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.scene.images import FILL_SIGMA
from deblendrt.engine.scene.windows import CLOSE_PAIR_SEPARATION
from deblendrt.engine.solve import constants
from deblendrt.export.solver.descent import DescentGraph
from deblendrt.export.solver.drawing import DrawingGraph, Group, Groups
from deblendrt.export.solver.graph_builder import Builder, Value
from deblendrt.export.solver.linear_algebra import diagonal, eye, symmetric_inverse
from deblendrt.export.solver.objective import BlendValues, ObjectiveGraph, SceneValues


class PixelValues(NamedTuple):
    """An image for the descent, which is zero where it has no weight."""

    data: Value  # float32 (n_band, n_y, n_x) [nJy]
    weight: Value  # float32 (n_band, n_y, n_x) [nJy^-2]
    not_finite: Value  # bool, pixels without weight because of their value
    bad_variance: Value  # bool, pixels without weight because of their variance


def pixels_of(b: Builder, image: Value, variance: Value) -> PixelValues:
    """See `deblendrt.engine.scene.scene`. An infinite variance is a mask and sets no flag."""
    finite = (image - image).equal(0.0)  # the difference is NaN for NaN and infinity
    inverse_variance = 1.0 / variance
    known = (variance > 0.0) & (inverse_variance - inverse_variance).equal(0.0)
    single = b.where(finite, image, 0.0)
    weight = b.where(known, inverse_variance, 0.0)
    light = b.where(single < 0.0, -single, single)
    finite = finite & (light * b.sqrt(weight) < FILL_SIGMA)
    weight = b.where(finite, weight, 0.0)
    return PixelValues(b.where(weight > 0.0, single, 0.0), weight, ~finite, ~known)


def anchors(b: Builder, centers: Value, shape: tuple[int, int]) -> tuple[Value, Value]:
    """Anchor pixels, int64 (n_source, 2), and whether centres are finite, bool (n_source,)."""
    finite = (centers - centers).equal(0.0)
    n_y, n_x = shape
    rounded = b.node("Round", b.where(finite, centers, 0.0))
    return b.clip(rounded, 0.0, np.array([n_x - 1, n_y - 1], centers.dtype)).cast(np.int64), ~(~finite).any(1)


def scene_of(b: Builder, draw: DrawingGraph, pixels: PixelValues, centers: Value, finite: Value, valid: Value,
             profile: list[NDArray[np.float32]]) -> tuple[SceneValues, Value]:
    """The scene, and the flags of the input, int64 (n_source,)."""
    folded, (n_y, n_x), n = draw.folded, draw.shape, draw.n_source
    every = b.constant(np.arange(n))
    whole = Group(0, every)

    def seen(mask: Value, inset: int = 0) -> Value:
        """Whether some pixel of the window is true, bool (n_source, n_band)."""
        size = folded.window - 2 * inset
        return draw.cuts(mask.cast(np.float32), every, inset - folded.half, size).any(2).transpose(1, 0)

    weighted = pixels.weight > 0.0
    measured = seen(weighted)
    last = np.array([n_x, n_y], centers.dtype)
    inside = finite & ~(~((centers >= -0.5) & (centers <= last - 0.5))).any(1)
    listed = valid & inside
    gap = centers[:, None] - centers[None]
    near = ((gap * gap).sum(2) < CLOSE_PAIR_SEPARATION**2) & ~b.constant(np.eye(n, dtype=bool))
    near = near & listed[:, None] & listed[None]
    low, high = draw.anchor - folded.half, draw.anchor + (folded.half + 1)
    cut = ((low < 0) | (high > np.array([n_x, n_y]))).any(1)
    middle = draw.windows_of(weighted.cast(np.float32), whole)[:, :, folded.half * (folded.window + 1)]
    conditions = [
        (Flag.NON_FINITE, seen(pixels.not_finite).any(1)), (Flag.BAD_VARIANCE, seen(pixels.bad_variance).any(1)),
        (Flag.NO_DATA, ~measured.any(1)), (Flag.BAND_MISSING, (~measured).any(1)), (Flag.EDGE, cut),
        (Flag.MASKED_CENTER, ~(middle > 0.0).any(0)), (Flag.TOO_CLOSE, near.any(1)),
    ]
    flags = b.zeros(n, dtype=np.int64)
    for flag, condition in conditions:
        flags = flags + condition.cast(np.int64) * int(flag)
    flags = b.where(inside, flags, int(Flag.OFF_IMAGE))
    flags = b.where(finite, flags, int(Flag.CENTER_NOT_FINITE))
    flags = b.where(valid, flags, 0)
    fitted = listed & measured.any(1)
    smallest = b.zeros(n, dtype=np.int64)
    if folded.insets:
        differs = ~seen(weighted, folded.insets[-1]).equal(measured)
        smallest = b.where(differs.any(1), smallest, -len(folded.insets))
    offset0 = b.where(fitted[:, None], centers.cast(np.float64) - draw.anchor.cast(np.float64), 0.0)
    tables = [b.constant(p) for p in profile]
    return SceneValues(pixels.data, pixels.weight, offset0, fitted, measured & fitted[:, None], smallest, tables), flags


def linear_fluxes(o: ObjectiveGraph, unit: Value, flux: Value, groups: Groups, joined: Value, n_sweep: int,
                  error: float | None) -> tuple[Value, Value]:
    """See `deblendrt.engine.solve.joint_fluxes.linear_fluxes`.

    Parameters
    ----------
    o : ObjectiveGraph
    unit : Value
        float32 (n_source, n_band, n_basis).
    flux : Value
        float64 (n_source, n_band).
    groups : Groups
        All sources.
    joined : Value
        float64 (n_source, n_source), see `BlendValues`.
    n_sweep : int
    error : float, optional

    Returns
    -------
    flux, sigma : Value
        float64 (n_source, n_band).
    """
    b, n, n_band = o.b, o.n_source, o.n_band
    images = o.draw.placed(unit.transpose(1, 0, 2) * o.present.transpose(1, 0, 2), groups, n_band)
    data = o.scene.data.reshape(n_band, 1, -1)

    def model(flux: Value) -> Value:
        return flux.transpose(1, 0).cast(np.float32)[:, None] @ images  # (n_band, 1, n_pixel)

    weight = o.scene.weight
    if error is not None:
        start_model = model(flux).reshape(n_band, *o.draw.shape)
        weight, _, _ = o.weigh(o.likelihood(start_model, error=error), start_model)
    weight = weight.reshape(n_band, 1, -1)
    seen = images.transpose(0, 2, 1)
    matrix = ((images * weight) @ seen).cast(np.float64) * joined
    own = diagonal(b, matrix, n)
    known = own > 0.0
    scale = b.where(known, 1.0 / b.sqrt(b.where(known, own, 1.0)), 0.0)
    missing = (~known).cast(np.float64)
    scaled = matrix * scale[:, :, None] * scale[:, None] + (missing[:, :, None] + constants.FLUX_RIDGE) * eye(b, n)
    inverted = symmetric_inverse(b, scaled, n)
    for _ in range(n_sweep):
        rest = (weight * (data - model(flux))).cast(np.float32)
        rhs = (rest @ seen)[:, 0].cast(np.float64)
        step = (inverted @ (scale * rhs)[:, :, None])[:, :, 0] * scale
        flux = flux + step.transpose(1, 0)
    variance = b.maximum(diagonal(b, inverted, n) * scale * scale, 0.0)
    return flux, b.where(known, b.sqrt(variance), np.inf).transpose(1, 0)


def start_latents(o: ObjectiveGraph, descent: DescentGraph, kind: str) -> tuple[BlendValues, Value, Value, Value]:
    """See `deblendrt.engine.solve.start.start_latents`.

    Returns
    -------
    blends : BlendValues
    latent : Value
        float64 (n_source, n_latent).
    floor : Value
        float64 (n_source, n_band).
    extent : Value
        int64 (n_source,).
    """
    b, n, n_band, bundle, scene = o.b, o.n_source, o.n_band, o.bundle, o.scene
    joined = connected(o, b.constant(np.full(n, MIN_BLEND_RADIUS)))
    extent = scene.smallest
    shape = b.constant(np.tile(bundle.start_shape, (n, 1)))
    flux = b.zeros(n, n_band)
    coefficients: Value | None = None
    for _ in range(constants.ENCODINGS if kind == "encoder" else 1):
        groups = o.draw.groups(extent)
        if kind == "encoder":
            encoded, known = encoded_shapes(o, coefficients, groups)
            shape = b.where(known[:, None], encoded, shape)
        zero = b.zeros(n, n_band)
        unit = o.evaluate(b.concat([zero, scene.offset0, shape], 1)).coefficients
        if coefficients is None:
            flux, sigma = linear_fluxes(o, unit, flux, groups, joined, constants.START_SWEEPS, None)
        flux, sigma = linear_fluxes(o, unit, flux, groups, joined, constants.START_SWEEPS, constants.START_ERROR)
        lowest = b.where(scene.measured, sigma, 1.0) * constants.FLOOR_SIGMA
        log_flux = b.log(b.maximum(flux, lowest))
        latent = b.concat([log_flux, scene.offset0, shape], 1)
        log_flux = b.where(scene.measured, log_flux, o.missing_color(latent)[1])
        latent = b.concat([log_flux, scene.offset0, shape], 1)
        coefficients = unit * b.exp(log_flux).cast(np.float32)[:, :, None]
        extent = descent.extents(coefficients, extent, groups)
    assert coefficients is not None
    radius = light_radius(o, coefficients, extent)
    floor = b.where(scene.measured, b.log(lowest), -np.inf)
    return partition(o, radius, extent), latent, floor, extent


def connected(o: ObjectiveGraph, radius: Value) -> Value:
    """1 where two sources share a blend, float64 (n_source, n_source): connected components of circles that touch."""
    b, n = o.b, o.n_source
    place = o.draw.anchor.cast(np.float64) + o.scene.offset0
    gap = place[:, None] - place[None]
    reach = radius[:, None] + radius[None]
    fitted = o.scene.fitted
    near = ((gap * gap).sum(2) < reach * reach) & fitted[:, None] & fitted[None]
    joined = (near | b.constant(np.eye(n, dtype=bool))).cast(np.float64)
    doublings = int(np.ceil(np.log2(max(n, 2))))
    return b.loop(doublings, [joined], lambda i, a: [((a @ a) > 0.0).cast(np.float64)])[0]


def light_radius(o: ObjectiveGraph, coefficients: Value, extent: Value) -> Value:
    """See `deblendrt.engine.solve.start.light_radius`; float64 (n_source,)."""
    b, draw, folded = o.b, o.draw, o.draw.folded
    groups = draw.groups(extent)
    by_band = coefficients.transpose(1, 0, 2)
    weight = o.mean_weight(o.scene.weight, groups)
    noise = b.sqrt(weight).cast(np.float32).transpose(1, 0)  # (n_band, n_source)
    area = b.zeros(o.n_source, dtype=np.float32)
    for rows, drawn, _ in draw.pieces(groups):
        def count(before: Value = area, rows: Value = rows, drawn=drawn) -> Value:  # type: ignore[no-untyped-def]
            significance = drawn(by_band) * noise.take(rows, 1)[:, :, None, None]
            bright = (significance * significance).sum(0) > constants.SIGNIFICANT_LIGHT**2
            return b.node("ScatterElements", before, rows, bright.cast(np.float32).sum(1, 2), reduction="add", axis=0)

        area = draw.if_any(rows, count, area)
    largest = b.where(extent > 0, b.constant(np.array(float(folded.half + folded.margin))), float(folded.half))
    return b.minimum(b.maximum(b.sqrt(area.cast(np.float64) / np.pi), MIN_BLEND_RADIUS), largest)


def partition(o: ObjectiveGraph, radius: Value, extent: Value) -> BlendValues:
    """Blends and owners of pixels, see `deblendrt.engine.scene.blends.partition`."""
    b, draw, n = o.b, o.draw, o.n_source
    n_y, n_x = draw.shape
    joined = connected(o, radius)
    place = draw.anchor.cast(np.float64) + o.scene.offset0
    reach = b.where(extent > 0, draw.folded.half + draw.folded.margin, b.constant(np.array(draw.folded.half)))

    def along(axis: int, size: int) -> tuple[Value, Value]:
        pixel = b.constant(np.arange(size, dtype=np.float64))
        gap = (pixel[None] - place[:, axis][:, None]) / radius[:, None]
        step = b.constant(np.arange(size))[None] - draw.anchor[:, axis][:, None]
        return gap * gap, (step <= reach[:, None]) & (-step <= reach[:, None])

    (x2, in_x), (y2, in_y) = along(0, n_x), along(1, n_y)
    inside = in_y[:, :, None] & in_x[:, None] & o.scene.fitted[:, None, None]
    distance = b.where(inside, (y2[:, :, None] + x2[:, None]).cast(np.float32), np.float32(np.inf))
    distance = distance.reshape(n, n_y * n_x)
    owner = b.node("ArgMin", distance, axis=0, keepdims=1, dtype=np.int64)
    owned = owner.equal(b.constant(np.arange(n)[:, None])) & inside.reshape(n, n_y * n_x)
    return BlendValues(joined, owned.cast(np.float64))


def encoded_shapes(o: ObjectiveGraph, coefficients: Value | None, groups: Groups) -> tuple[Value, Value]:
    """See `deblendrt.engine.solve.start.encoded_shapes`.

    Returns
    -------
    shape : Value
        float64 (n_source, n_shape).
    known : Value
        bool (n_source,).
    """
    b, draw, bundle, n, n_band = o.b, o.draw, o.bundle, o.n_source, o.n_band
    size = bundle.encoder_cutout_size
    every = b.constant(np.arange(n))
    first = -(size // 2)
    data = o.scene.data
    own: Value | None = None
    if coefficients is not None:
        by_band = coefficients.transpose(1, 0, 2)
        data = data - draw.render(by_band, groups)
        inset = draw.folded.half + first
        own = by_band @ draw.phi[:, :, inset : inset + size, inset : inset + size].reshape(0, 0, -1)
    seen = draw.cuts(data, every, first, size)
    seen = seen if own is None else seen + own
    weight = draw.cuts(o.scene.weight, every, first, size)
    cutout, log_noise, coverage = filled_cutouts(b, bundle, n, seen.transpose(1, 0, 2), weight.transpose(1, 0, 2))
    fwhm = b.constant(np.tile(draw.folded.fwhm, (n, 1)), np.float32)
    latent, = b.inline(o.graphs["encode"], "encode", cutout.reshape(n, n_band, size, size),
                       o.scene.offset0.cast(np.float32), b.concat([fwhm, log_noise], 1))
    return latent[:, n_band + 2 :].cast(np.float64), coverage >= constants.ENCODER_COVERAGE


def filled_cutouts(b: Builder, bundle: Bundle, n: int, data: Value, weight: Value) -> tuple[Value, Value, Value]:
    """See `deblendrt.engine.solve.start.filled_cutout`.

    Parameters
    ----------
    b : Builder
    bundle : Bundle
    n : int
        Number of sources.
    data, weight : Value
        float32 (n_source, n_band, size^2).

    Returns
    -------
    cutout : Value
        float32 (n_source, n_band, size^2).
    log_noise : Value
        float32 (n_source, n_band).
    coverage : Value
        float32 (n_source,).
    """
    size = bundle.encoder_cutout_size
    n_pixel = size * size
    measured = weight > 0.0
    count = measured.cast(np.float64).sum(2)
    present = count > 0.0
    mean = weight.cast(np.float64).sum(2) / b.maximum(count, 1.0)
    sigma = b.where(present, 1.0 / b.sqrt(b.where(present, mean, 1.0)), b.constant(bundle.sky_sigma))
    color = np.exp(bundle.mean_color.astype(np.float32))[:, None]
    scaled = weight * color**2
    sums = scaled.sum(1)  # (n_source, n_pixel)
    known = sums > 0.0
    light = (scaled * data / color).sum(1) / b.where(known, sums, 1.0)
    backwards = b.constant(np.arange(n_pixel)[::-1])  # the pixel opposite to each pixel
    opposite = known.take(backwards, 1) & ~known
    light = b.where(opposite, light.take(backwards, 1), light)
    known = known | opposite
    coverage = known.cast(np.float32).sum(1) / n_pixel
    around = b.constant(np.ones((1, 1, 3, 3), np.float32))

    def neighbours(image: Value) -> Value:
        summed = b.node("Conv", image.reshape(n, 1, size, size), around, pads=[1, 1, 1, 1])
        return summed.reshape(n, n_pixel)

    for _ in range(constants.MAX_HOLE):
        near, n_near = neighbours(b.where(known, light, 0.0)), neighbours(known.cast(np.float32))
        light = b.where(known | (n_near < 0.5), light, near / b.maximum(n_near, 1.0))
        known = known | (n_near > 0.5)
    deepest = b.node("ReduceMax", sums, b.ints([1]), keepdims=1).cast(np.float64)
    at_least = b.maximum(sigma, b.constant(color[:, 0].astype(np.float64)) / b.sqrt(b.maximum(deepest, 1e-30)))
    sigma = b.where(present | deepest.equal(0.0), sigma, at_least)
    filled = light[:, None] * color / sigma.cast(np.float32)[:, :, None]
    return b.where(measured, data * b.sqrt(weight), filled), b.log(sigma).cast(np.float32), coverage


