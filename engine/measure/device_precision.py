"""`uncertainty.likelihood_precision` of all blends on a device, some blends at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.kernels.linear.launch import precision, source_pairs
from deblendrt.cuda.kernels.pixels.launch import product, trim_basis, trim_stamps
from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.cuda.buffers import Buffers
from deblendrt.engine.compute.cuda.layouts import filled, padded, row_tiles
from deblendrt.engine.compute.problem import Canvases, DoubleArray, FloatArray
from deblendrt.engine.solve.curvature import assembled, by_latent

HELD_PRECISIONS = 256  # sources whose derivative images are held: 1.3 MB each, 2 with outskirts


def likelihood_precisions(buffers: Buffers, weights: Canvases,
                          unit: FloatArray) -> Iterator[tuple[NDArray[np.int64], DoubleArray]]:
    """Yield `uncertainty.likelihood_precisions` for the problem that the buffers hold.

    Parameters
    ----------
    buffers : Buffers
    weights : list of float32 (n_band, n_y, n_x)
    unit : float32 (n_source, n_band, n_column, n_basis)

    Yields
    ------
    rows : int64 (n_member,)
    precision : float64 (n_member, n_latent, n_member, n_latent)
    """
    device, problem, every, host = buffers.device, buffers.problem, buffers.every, buffers.host
    n_band, n_column, n_basis = unit.shape[1:]
    on_weights = buffers.image
    buffers.put_canvases(weights, on_weights)
    extended = filled(problem.extended, every.n_source, 0)
    extent = np.minimum(problem.extent, 0)
    inset, n_used = (device.download(a) for a in (buffers.tables.insets, buffers.tables.used))
    pairs, pair_start = source_pairs(host, extended)
    start = host.blend_start[: problem.n_blend + 1]
    largest = max(HELD_PRECISIONS, int(np.diff(start).max(initial=1)))
    columns = device.empty((largest, n_band, n_column, n_basis), np.float32)
    stamps = device.empty((largest, n_band, n_column, every.n_window_pixel), np.float32)
    cells = device.empty((largest, n_band, n_column, every.n_cell), np.float32) if every.n_cell else None
    first = 0
    while first < problem.n_blend:
        last = max(int(np.searchsorted(start, start[first] + largest, side="right")) - 1, first + 1)
        rows = host.blend_source[start[first] : start[last]]
        mine = pairs[pair_start[first] : pair_start[last]]
        held = np.zeros((largest, n_band, n_column, n_basis), np.float32)
        held[: len(rows)] = unit[rows]
        device.upload(held, columns)
        slot = np.zeros(every.n_source, np.int32)
        slot[rows] = np.arange(len(rows))
        drawn = _drawn_together(buffers, rows, largest)
        wide = filled(extended[rows], largest, 0)
        trim_basis(device, drawn, device.upload(filled(n_used[-extent[rows]], largest, n_basis)), columns, columns)
        product(device, drawn, columns, buffers.tables.phi, stamps)
        trim_stamps(device, drawn, device.upload(filled(inset[-extent[rows]], largest, 0)), stamps)
        if cells is not None and buffers.tables.outer is not None and wide.any():
            product(device, drawn, columns, buffers.tables.outer, cells, chosen=device.upload(wide))
        out = device.empty((padded(len(mine)), n_band, n_column, n_column), np.float64)
        precision(device, every, stamps, cells, buffers.extended, device.upload(slot), on_weights,
                  device.upload(filled(mine, padded(len(mine)), -1)), out)
        inner = by_latent(device.download(out)[: len(mine)])
        for blend in range(first, last):
            own = slice(pair_start[blend] - pair_start[first], pair_start[blend + 1] - pair_start[first])
            members = host.blend_source[start[blend] : start[blend + 1]].astype(np.int64)
            yield members, assembled(members, mine[own], inner[own])
        first = last


def _drawn_together(buffers: Buffers, rows: NDArray[np.int32], largest: int) -> Layout:
    """Make a layout whose sources are slots: slot k holds the source rows[k]."""
    basis = filled(buffers.host.basis[rows], largest, 0)
    row_tile = row_tiles(basis, np.arange(len(rows)), largest, int(basis.max()) + 1)
    upload = buffers.device.upload
    return dataclasses.replace(buffers.every, n_source=largest, basis=upload(basis), row_tile=upload(row_tile))
