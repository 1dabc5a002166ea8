"""Entries of the normal matrices of joint fluxes.

A pair reads both stamps and the weights where their windows overlap: 12 bytes and 3 flops per pixel and band; a source
with itself 8 bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.layout import Layout

IntArray = NDArray[np.int32]


def source_pairs(layout: Layout, extended: IntArray) -> tuple[IntArray, IntArray]:
    """Pairs of sources of one blend whose windows overlap, each source with itself among them.

    Parameters
    ----------
    layout : Layout
        Of NumPy arrays.
    extended : int32 (n_source,)
        Sources whose full window counts; ones throughout serve whatever becomes extended later.

    Returns
    -------
    pairs : int32 (n_pair, 2)
        By blend, then by first source; the first is not after the second.
    pair_start : int32 (n_blend + 1,)
        Where the pairs of each blend begin.
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
    """`reference_photometry.normal`."""
    device.launch("normal", (len(pairs), layout.n_band), (256,), pairs, layout.scene, layout.corner, extended,
                  layout.canvas_start, layout.canvas_shape, stamps, cells, weights, layout.n_band, layout.window,
                  layout.margin, layout.binning, layout.n_cell, out)


def cost(n_pair: int, n_band: int, n_pixel: float) -> tuple[float, float]:
    """Bytes moved and flops; `n_pixel` is what a pair has in common on average."""
    return 12.0 * n_pair * n_band * n_pixel, 3.0 * n_pair * n_band * n_pixel
