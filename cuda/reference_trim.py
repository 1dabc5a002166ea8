"""What the kernels on smaller windows compute; conventions as in `reference`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.layout import Layout

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


def reach(layout: Layout, extent: IntArray, insets: IntArray, used: IntArray, out_extended: IntArray,
          out_inset: IntArray, out_n_used: IntArray, out_chosen: IntArray) -> None:
    """What sources' extents stand for.

    Parameters
    ----------
    layout : Layout
    extent : int32 (n_source,)
        1 with outskirts, 0 the basis' own window, -k the k-th smaller one.
    insets, used : int32 (n_window,)
        By how much each window is smaller on every side [pixel], and the number of functions in it; the own first.
    out_extended, out_inset, out_n_used : int32 (n_source,)
        With outskirts; of each source's window.
    out_chosen : int32 (n_window, n_source)
        1 in the row of each source's window, else 0.
    """
    window = np.maximum(-extent, 0)
    out_extended[:] = extent > 0
    out_inset[:] = insets[window]
    out_n_used[:] = used[window]
    out_chosen[:] = window == np.arange(len(insets))[:, None]


def trim_basis(layout: Layout, n_used: IntArray, rows: FloatArray, out: FloatArray) -> None:
    """Copy coefficients, 0 for functions that are not used.

    Parameters
    ----------
    layout : Layout
    n_used : int32 (n_source,)
    rows, out : float32 (n_source, ..., n_basis)
    """
    unused = np.arange(rows.shape[-1]) >= n_used[:, None]
    out[:] = np.where(unused.reshape(len(rows), *[1] * (rows.ndim - 2), -1), 0, rows)


def trim_stamps(layout: Layout, inset: IntArray, out_stamps: FloatArray) -> None:
    """Set what is outside of smaller windows to 0.

    Parameters
    ----------
    layout : Layout
    inset : int32 (n_source,) [pixel]
    out_stamps : float32 (n_source, ..., n_window_pixel)
    """
    for stamp, cut in zip(out_stamps, inset, strict=True):
        images = stamp.reshape(-1, layout.window, layout.window)
        inside = slice(cut, layout.window - cut)
        kept = images[:, inside, inside].copy()
        images[:] = 0
        images[:, inside, inside] = kept
