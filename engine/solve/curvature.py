"""The parts of the objective's curvature that belong to single sources, mean weights, and the choice of windows.

The solver sums the curvature of the likelihood over the pixels of the sources' windows (`joint_step`). Outskirts add to
the block of their own source alone: with J the derivatives of the source's coefficients, G_b the Gram matrix of the
folded basis in the outskirts and w_b the mean weight there, they add sum_b w_b J_b' G_b J_b.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import canvases, drawing
from deblendrt.engine.compute.matmul import matmul
from deblendrt.engine.compute.problem import Canvases, Problem, State
from deblendrt.engine.solve import constants
from deblendrt.engine.units import DoubleArray, FloatArray


def outskirts(problem: Problem, rows: FloatArray, rim: DoubleArray) -> DoubleArray:
    """Compute the curvature that the outskirts of extended sources add to their blocks.

    Parameters
    ----------
    problem : Problem
    rows : float32 (n_source, n_used, n_column, n_basis)
        See `columns`.
    rim : float64 (n_source, n_used) [nJy^-2]
        See `rim_weight`.

    Returns
    -------
    float64 (n_source, n_latent, n_latent)
    """
    n_latent = problem.n_band + rows.shape[2] - 1
    result = np.zeros((len(rows), n_latent, n_latent))
    for members, basis in problem.folded.groups(len(rows)):
        chosen = members[problem.extended[members]]
        if len(chosen):
            own = rows[chosen]
            n, n_band, n_column, n_basis = own.shape
            by_band = np.ascontiguousarray(own.transpose(1, 0, 2, 3)).reshape(n_band, -1, n_basis)
            gram = (basis.full_gram - basis.gram).astype(np.float32)
            through = matmul(by_band, gram).reshape(n_band, n, n_column, n_basis).transpose(1, 0, 2, 3)
            inner = through @ own.transpose(0, 1, 3, 2)
            result[chosen] = by_latent(problem.spread(inner.astype(np.float64) * rim[chosen][:, :, None, None]))
    return result


def by_latent(inner: DoubleArray) -> DoubleArray:
    """Turn products of columns, band by band, into products of latents.

    The flux column of a band belongs to that band's flux. Offset and shape are common to all bands: their products are
    summed over bands.

    Parameters
    ----------
    inner : float64 (..., n_band, n_column, n_column)

    Returns
    -------
    float64 (..., n_latent, n_latent)
    """
    n_band, n_column = inner.shape[-3:-1]
    n_latent = n_band + n_column - 1
    block = np.zeros((*inner.shape[:-3], n_latent, n_latent))
    band = np.arange(n_band)
    block[..., band, band] = inner[..., 0, 0]
    block[..., :n_band, n_band:] = inner[..., 0, 1:]
    block[..., n_band:, :n_band] = np.swapaxes(inner[..., 1:, 0], -1, -2)
    block[..., n_band:, n_band:] = inner[..., 1:, 1:].sum(-3)
    return block


def assembled(members: NDArray[np.int64], pairs: NDArray[np.integer], blocks: DoubleArray) -> DoubleArray:
    """Put the blocks of pairs of sources into the symmetric matrix of their blend.

    Parameters
    ----------
    members : int64 (n_member,)
        Sources of the blend, ascending.
    pairs : int (n_pair, 2)
    blocks : float64 (n_pair, n_latent, n_latent)

    Returns
    -------
    float64 (n_member, n_latent, n_member, n_latent)
    """
    n, n_latent = len(members), blocks.shape[1]
    result = np.zeros((n, n_latent, n, n_latent))
    i, j = np.searchsorted(members, pairs).T
    result[i, :, j] = blocks
    result[j, :, i] = blocks.transpose(0, 2, 1)
    return result


def columns(state: State) -> FloatArray:
    """Compute the derivatives of every band's coefficients by relative flux, offset and shape.

    Returns
    -------
    float32 (n_source, n_band, 1 + 2 + n_shape, n_basis) [nJy]
    """
    maps, d_maps, mix, d_mix = state.jacobian
    n, n_band, n_basis = state.coefficients.shape
    n_move = d_maps.shape[1]
    flux = np.exp(state.latent[:, :n_band]).astype(np.float32)
    rows = np.empty((n, n_band, 1 + n_move, n_basis), np.float32)
    rows[:, :, 0] = state.coefficients
    moved = mix.transpose(0, 2, 1) @ d_maps.transpose(0, 2, 1, 3).reshape(n, mix.shape[1], -1)
    rows[:, :, 1:] = moved.reshape(n, n_band, n_move, n_basis)
    rows[:, :, 3:] += d_mix.transpose(0, 3, 1, 2) @ maps[:, None]
    rows[:, :, 1:] *= flux[:, :, None, None]
    return rows


def mean_weight(problem: Problem, weights: Canvases) -> DoubleArray:
    """Compute mean weights under sources, float64 (n_source, n_used), averaged with `problem.profile`."""
    result = np.empty((len(problem.scene), problem.folded.n_band))
    inset = np.array([0, *problem.folded.insets])[-np.minimum(problem.extent, 0)].tolist()
    corner, scene = problem.corner.tolist(), problem.scene.tolist()
    for (members, basis), profile in zip(problem.folded.groups(len(result)), problem.profile, strict=True):
        for i in members.tolist():
            cut, (x, y) = inset[i], corner[i]
            inside = slice(cut, basis.window - cut)
            image = weights[scene[i]][:, y : y + basis.window, x : x + basis.window]
            result[i] = np.einsum("byx,byx->b", image[:, inside, inside], profile[:, inside, inside], optimize=False)
    return result


def rim_weight(problem: Problem, weights: Canvases) -> DoubleArray:
    """Compute mean weights in the rims of extended sources' windows, for their outskirts; (n_source, n_used)."""
    window = problem.folded.window
    core = slice(constants.RIM, window - constants.RIM)
    result = np.zeros((len(problem.scene), problem.folded.n_band))
    for i in np.flatnonzero(problem.extended).tolist():
        x, y = problem.corner[i].tolist()
        image = weights[problem.scene[i]][:, y : y + window, x : x + window]
        result[i] = image.sum((1, 2), dtype=np.float64) - image[:, core, core].sum((1, 2), dtype=np.float64)
    return np.maximum(result, 0) / rim_size(window)


def rim_size(window: int) -> int:
    """Number of pixels in the rim of a window."""
    return window**2 - (window - 2 * constants.RIM) ** 2


def extents(problem: Problem, coefficients: FloatArray) -> NDArray[np.int8]:
    """Choose for each source the smallest window that leaves little light undrawn.

    The undrawn light has a signal to noise, all bands together, of at most `constants.MAX_UNDRAWN`.

    Returns
    -------
    int8 (n_source,)
        Extents of `drawing`; 1 where the largest window leaves too much light.
    """
    weight, coefficients = mean_weight(problem, problem.weight), problem.used(coefficients)
    result = np.ones(len(coefficients), np.int8)
    for rows, basis in drawing.runs(problem.folded, len(coefficients)):
        for k in range(0, -1 - len(basis.nested), -1):
            missed = basis.at(k).missed
            square = (drawing.product(coefficients[rows], missed) * coefficients[rows]).sum(2, dtype=np.float64)
            result[rows][(weight[rows] * square).sum(1) <= constants.MAX_UNDRAWN**2] = k
    return np.maximum(result, problem.smallest)


def apply_blocks(block: DoubleArray, v: DoubleArray) -> DoubleArray:
    """Multiply each source's block with its vector; float64 (n_source, m)."""
    return (block @ v[:, :, None])[:, :, 0]


def inverse(block: DoubleArray, ridge: float = constants.BLOCK_RIDGE) -> DoubleArray:
    """Invert symmetric positive blocks, with a ridge on the blocks scaled to unit diagonal."""
    scale = 1 / np.sqrt(block.diagonal(axis1=1, axis2=2))
    scaled = block * scale[:, :, None] * scale[:, None, :]
    scaled += ridge * np.eye(block.shape[1])
    return np.linalg.inv(scaled) * scale[:, :, None] * scale[:, None, :]


def covariance_of(precision: DoubleArray) -> DoubleArray:
    """Invert precision matrices, float64 (n, m, m); the result is symmetric to the last bit."""
    covariance = inverse(precision, constants.COVARIANCE_RIDGE)
    return 0.5 * (covariance + covariance.transpose(0, 2, 1))


def unit_columns(state: State) -> FloatArray:
    """Compute the derivatives of every band's coefficients by flux, offset and shape.

    Returns
    -------
    float32 (n_source, n_band, 1 + 2 + n_shape, n_basis)
    """
    result = columns(state)
    n_band = state.coefficients.shape[1]
    result[:, :, 0] /= np.exp(state.latent[:, :n_band]).astype(np.float32)[:, :, None]
    return result


def constant_products(lines: FloatArray, projected: FloatArray) -> DoubleArray:
    """Compute the inner products of images with a constant image.

    Parameters
    ----------
    lines : float32 (n_source, n_band, n_line, n_basis)
        Coefficients of the images, as in `unit_columns`.
    projected : float32 (n_source, n_band, n_basis)
        The weights, projected (`objective.project`).

    Returns
    -------
    float64 (n_source, n_band, n_line)
    """
    return np.asarray((lines.astype(np.float64) @ projected.astype(np.float64)[..., None])[..., 0])


def derivative_images(problem: Problem, unit: FloatArray, rows: NDArray[np.int64]) -> dict[int, canvases.Placed]:
    """Draw the derivatives of the model image by each source's parameters, where there may be weight.

    Parameters
    ----------
    problem : Problem
    unit : float32 (n_member, n_used, n_column, n_basis)
        See `unit_columns`.
    rows : int64 (n_member,)
        Sources.

    Returns
    -------
    dict of int to Placed
        Images (n_used, n_column, height, width) by the number of the source.
    """
    drawn: dict[int, canvases.Placed] = {}
    extent = problem.extent[rows]
    first = drawing.corners(problem.folded, problem.corner[rows], extent)
    for members, basis in problem.folded.take(rows).groups(len(rows)):
        for k in np.unique(extent[members]).tolist():
            here = members[extent[members] == k]
            n_band, n_column = unit.shape[1:3]
            # every column is drawn as if it were a source
            lines = unit[here].transpose(0, 2, 1, 3).reshape(-1, n_band, unit.shape[3])
            images = drawing.window_stamps(lines, basis.at(k))
            images = images.reshape(len(here), n_column, n_band, *images.shape[2:]).swapaxes(1, 2)
            cells = drawing.outskirts_cells(lines, basis).reshape(len(here), n_column, n_band, -1).swapaxes(
                1, 2) if k > 0 else [None] * len(here)
            for i, image, outer, (x, y) in zip(rows[here].tolist(), images, cells, first[here].tolist(), strict=True):
                shape = problem.data[problem.scene[i]].shape
                drawn[i] = canvases.place(image, x, y, shape) if outer is None else canvases.on_canvas(
                    image, outer, basis, x, y, shape, problem.folded.half)
    return drawn
