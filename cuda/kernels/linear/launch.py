"""Launchers of the linear algebra of blends: the joint step, joint fluxes, precisions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import Device, DeviceArray, blocks_for
from deblendrt.cuda.layout import Layout

BLOCKS_TILE = 32  # coefficients, as in blocks.cu
IntArray = NDArray[np.int32]
SHARED = 48 * 1024  # byte: shared memory of a block by default
INNER_PIXELS = 64  # as in inner_products.cuh


def blocks(device: Device, columns: DeviceArray, through: DeviceArray, wbar: DeviceArray, curvature: DeviceArray,
           out: DeviceArray) -> None:
    """Gauss-Newton blocks of single sources: 8 n_band n_column n_basis bytes, 2 n_band n_column^2 n_basis flops.

    Specification: `reference.linear.blocks`.
    """
    n_source, n_band, n_column, n_basis = columns.shape
    device.launch("blocks", (n_source,), (256,), columns, through, wbar, curvature, n_band, n_column, n_basis, out,
                  shared=8 * n_column * (BLOCKS_TILE + 1))


def couplings(device: Device, layout: Layout, images: DeviceArray, slot: DeviceArray, inset: DeviceArray,
              weights: DeviceArray, pairs: DeviceArray, out: DeviceArray) -> None:
    """Inner products of the derivative images of pairs of sources, at every second pixel along both axes.

    A pair reads 8 n_column + 16 bytes per common pixel of even row and column, and band, for 2 n_column^2 flops.

    Specification: `reference.linear.couplings`.
    """
    n_column = images.shape[2]
    device.launch("couplings", (len(pairs), layout.n_band), (256,), pairs, slot, layout.scene, layout.corner, inset,
                  layout.canvas_start, layout.canvas_shape, images, weights, layout.n_band, n_column, layout.window,
                  out, shared=8 * n_column * (INNER_PIXELS + 1))


def joint_blocks(device: Device, layout: Layout, inner: DeviceArray, pairs: DeviceArray, alone: DeviceArray,
                 damping: DeviceArray, out: DeviceArray, *, flux_damped: float) -> None:
    """Blocks of the damped Gauss-Newton matrix by latents.

    Moves 4 n_band n_column^2 + 8 n_latent^2 bytes a pair.

    Specification: `reference.linear.joint_blocks`.
    """
    device.launch("joint_blocks", (len(pairs),), (256,), pairs, layout.blend, inner, alone, damping,
                  np.float64(flux_damped), layout.n_band, inner.shape[2], out)


def joint_solve(device: Device, layout: Layout, blocks: DeviceArray, pairs: DeviceArray, pair_span: DeviceArray,
                target: DeviceArray, matrix_start: DeviceArray, matrices: DeviceArray, out: DeviceArray, *,
                largest: int, ridge: float) -> None:
    """Solve the dense systems of blends of at most `largest` sources.

    A blend of n sources, n_row = n n_latent, takes n_row^3 / 3 multiply-adds; its matrix stays in the second-level
    cache.

    Specification: `reference.linear.joint_solve`; `matrices` is scratch.
    """
    n_latent = target.shape[1]
    device.launch("joint_solve", (layout.n_blend,), (256,), layout.blend_start, layout.blend_source, pair_span, pairs,
                  blocks, target, matrix_start, largest, n_latent, np.float64(ridge), matrices, out,
                  shared=32 * largest * n_latent)


def block_inverse(device: Device, layout: Layout, blocks: DeviceArray, own: DeviceArray, out: DeviceArray, *,
                  largest: int, ridge: float) -> None:
    """Inverses of the own blocks of sources in blends of more than `largest`.

    Moves 2 n_latent^2 doubles a source.

    Specification: `reference.linear.block_inverse`.
    """
    n_source, n_latent, _ = out.shape
    device.launch("block_inverse", (n_source,), (64,), layout.blend, layout.blend_start, own, blocks, largest, n_latent,
                  np.float64(ridge), out, shared=8 * n_latent * (n_latent + 2))


def joint_conjugate(device: Device, layout: Layout, blocks: DeviceArray, pairs: DeviceArray,
                    partner_start: DeviceArray, partner: DeviceArray, inverse: DeviceArray, target: DeviceArray,
                    scratch: tuple[DeviceArray, DeviceArray, DeviceArray], out: DeviceArray, *, largest: int,
                    n_iteration: int) -> None:
    """Solve the systems of blends of more than `largest` sources by conjugate gradients.

    An iteration reads each pair's block twice and each inverse once: 24 n_latent^2 bytes a pair at most.

    Specification: `reference.linear.joint_conjugate`; `scratch` is three arrays like `target`.
    """
    device.launch("joint_conjugate", (layout.n_blend,), (256,), layout.blend_start, layout.blend_source, pairs,
                  partner_start, partner, blocks, inverse, target, largest, target.shape[1], n_iteration, *scratch, out)


def alike(device: Device, layout: Layout, latent: DeviceArray, step: DeviceArray, out: DeviceArray) -> None:
    """Give sources that are the same in every number the same step.

    Moves 3 n_latent doubles a source.

    Specification: `reference.linear.alike`.
    """
    device.launch("alike", (layout.n_blend,), (64,), layout.blend_start, layout.blend_source, layout.corner, latent,
                  step, step.shape[1], out)


def source_pairs(layout: Layout, extended: IntArray) -> tuple[IntArray, IntArray]:
    """Pairs of sources of one blend whose windows overlap, each source with itself among them.

    Parameters
    ----------
    layout : Layout
        Its arrays are NumPy's.
    extended : int32 (n_source,)
        1 for sources whose full window counts.

    Returns
    -------
    pairs : int32 (n_pair, 2)
        By blend, then by first source; the first is not after the second.
    pair_start : int32 (n_blend + 1,)
        First pair of each blend.
    """
    start = np.asarray(layout.blend_start, np.int64)
    place = np.arange(start[-1])  # in blend_source
    source = np.asarray(layout.blend_source)[place]
    blend = np.repeat(np.arange(len(start) - 1), np.diff(start))
    count = start[blend + 1] - place  # of partners at or after each source
    first = np.repeat(place, count)
    second = first + np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    margin = np.where(extended[source] != 0, layout.margin, 0)
    low = layout.corner[source] - margin[:, None]
    high = low + (layout.window + 2 * margin)[:, None]
    both = ((low[first] < high[second]) & (low[second] < high[first])).all(1)
    first, second = first[both], second[both]
    pair_start = np.searchsorted(blend[first], np.arange(len(start)))
    return np.stack([source[first], source[second]], 1).astype(np.int32), pair_start.astype(np.int32)


def normal(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
           weights: DeviceArray, pairs: DeviceArray, out: DeviceArray) -> None:
    """Entries of the normal matrices of joint fluxes.

    A pair reads both stamps and the weights where their windows overlap: 12 bytes and 3 flops per pixel and band, or 8
    bytes for a source with itself.

    Specification: `reference.linear.normal`.
    """
    device.launch("normal", (len(pairs), layout.n_band), (256,), pairs, layout.scene, layout.corner, extended,
                  layout.canvas_start, layout.canvas_shape, stamps, cells, weights, layout.n_band, layout.window,
                  layout.margin, layout.binning, layout.n_cell, out)


def flux_solve(device: Device, layout: Layout, values: DeviceArray, pairs: DeviceArray, pair_start: DeviceArray,
               target: DeviceArray, out_flux: DeviceArray, out_sigma: DeviceArray, *, ridge: float,
               largest: int) -> None:
    """Solve for the joint linear fluxes of every blend.

    A sweep is `flux_coefficients`, `render`, `residual`, `project`, `flux_target`, `flux_solve`. In each band,
    `flux_solve` moves 8 bytes per pair and 32 per source, and takes n^3 flops for a blend of n sources.

    Specification: `reference.linear.flux_solve`; `largest` is the number of members of the largest blend, at most 76.
    """
    shared = 8 * largest * (largest + 4)
    if shared > SHARED:
        raise ValueError(f"flux_solve: a blend of {largest} sources")
    device.launch("flux_solve", (layout.n_blend, layout.n_band), (64,), layout.blend_start, layout.blend_source,
                  pair_start, pairs, values, target, layout.n_band, np.float64(ridge), out_flux, out_sigma,
                  shared=shared)


def flux_target(device: Device, unit: DeviceArray, projected: DeviceArray, out: DeviceArray) -> None:
    """Specification: `reference.linear.flux_target`."""
    n_source, n_band, n_basis = unit.shape
    device.launch("flux_solve:flux_target", blocks_for(n_source * n_band, 8), (32, 8), unit, projected,
                  n_source * n_band, n_basis, out)


def flux_coefficients(device: Device, unit: DeviceArray, flux: DeviceArray, out: DeviceArray) -> None:
    """Specification: `reference.linear.flux_coefficients`."""
    n_source, n_band, n_basis = unit.shape
    device.launch("flux_solve:flux_coefficients", blocks_for(n_source * n_band, 8), (32, 8), unit, flux,
                  n_source * n_band, n_basis, out)


def precision(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
              slot: DeviceArray, weights: DeviceArray, pairs: DeviceArray, out: DeviceArray) -> None:
    """Inner products of the derivative images of pairs of sources: the blocks of a blend's precision matrix.

    A pair reads 4 (2 n_column + 1) bytes per common pixel and band, for 2 n_column^2 flops.

    Specification: `reference.linear.precision`.
    """
    n_column = stamps.shape[2]
    device.launch("precision", (len(pairs), layout.n_band), (256,), pairs, slot, layout.scene, layout.corner, extended,
                  layout.canvas_start, layout.canvas_shape, stamps, cells, weights, layout.n_band, n_column,
                  layout.window, layout.margin, layout.binning, layout.n_cell, out,
                  shared=8 * n_column * (INNER_PIXELS + 1))
