r"""Stamps with outskirts: pixels in the core, and square cells outside it, where the light of galaxies is smooth.

A stamp of side s = q b has a core of side c. Both are odd multiples of the odd binning b. The stamp is stored as the
c x c pixels of the core and the q x q values at the centre pixels of all cells, which are 0 for cells in the core. The
stamp is bilinear between the centres of cells and constant beyond the outermost centres. In the interpolation, cells in
the core have the mean of their pixels.

    spread:   u[q b, q b] = B v B^T       cells to pixels, B the linear interpolation along one axis
    gather:   v[q, q]     = B^T u B       its adjoint, <spread(v), u> = <v, gather(u)>
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Float = TypeVar("Float", bound=np.floating)


def spread(cells: NDArray[Float], binning: int) -> NDArray[Float]:
    """Interpolate cells to pixels, bilinearly between their centres and constant beyond the outermost centres.

    Parameters
    ----------
    cells : float (..., n_y, n_x)
    binning : int [pixel]
        Odd.

    Returns
    -------
    float (..., n_y binning, n_x binning)
        Pixels of the same dtype. A pixel's bits depend only on its four cells.
    """
    return interpolate(interpolate(cells, binning, -1), binning, -2)


def gather(pixels: NDArray[Float], binning: int) -> NDArray[Float]:
    """Sum pixels into cells with the weights of `spread`: its adjoint.

    Parameters
    ----------
    pixels : float (..., n_y binning, n_x binning)
    binning : int [pixel]
        Odd.

    Returns
    -------
    float (..., n_y, n_x)
        Cells of the same dtype.
    """
    return _interpolate_adjoint(_interpolate_adjoint(pixels, binning, -2), binning, -1)


def interpolate(values: NDArray[Float], binning: int, axis: int = -1) -> NDArray[Float]:
    """Interpolate along one axis from cells to their pixels.

    Parameters
    ----------
    values : float (..., n, ...)
    binning : int [pixel]
        Odd.
    axis : int
        The axis of length n.

    Returns
    -------
    float (..., n binning, ...)
    """
    shape = list(values.shape)
    shape[axis] *= binning
    result = np.empty(shape, values.dtype)
    cells, pixels = np.moveaxis(values, axis, 0), np.moveaxis(result, axis, 0)
    pixels[binning // 2 :: binning] = cells
    for phase, share, near, far, edge in _phases(binning):
        here = pixels[phase::binning]
        here[edge] = cells[edge]
        np.multiply(cells[near], 1 - share, out=here[near])
        here[near] += share * cells[far]
    return result


def _interpolate_adjoint(values: NDArray[Float], binning: int, axis: int) -> NDArray[Float]:
    pixels = np.moveaxis(values, axis, 0)
    cells = pixels[binning // 2 :: binning].copy("K")
    for phase, share, near, far, edge in _phases(binning):
        here = pixels[phase::binning]
        cells[edge] += here[edge]
        cells[near] += (1 - share) * here[near]
        cells[far] += share * here[near]
    return np.moveaxis(cells, 0, axis)


def _phases(binning: int) -> Iterator[tuple[int, float, slice, slice, int]]:
    """Yield, for every pixel of a cell except the middle one: its place in the cell, the weight of the neighbouring
    cell, the cells that have this neighbour, their neighbours, and the cell without a neighbour."""
    middle = binning // 2
    for phase in range(binning):
        if phase < middle:
            yield phase, (middle - phase) / binning, slice(1, None), slice(None, -1), 0
        if phase > middle:
            yield phase, (phase - middle) / binning, slice(None, -1), slice(1, None), -1


def expand(core: NDArray[Float], cells: NDArray[Float], binning: int) -> NDArray[Float]:
    """Return stamps in full resolution.

    Parameters
    ----------
    core : float (n, c, c)
    cells : float (n, q, q)
        Outskirts; cells in the core are not used. The shape (n, 0, 0) stands for stamps without outskirts.
    binning : int [pixel]

    Returns
    -------
    float (n, q binning, q binning)
    """
    if cells.size == 0:
        return core.copy()
    n, c = core.shape[:2]
    side = c // binning
    margin = (cells.shape[-1] - side) // 2
    known = cells.copy()
    coarse = slice(margin, margin + side)
    known[:, coarse, coarse] = core.reshape(n, side, binning, side, binning).mean((2, 4))
    stamps = spread(known, binning)
    inside = slice(margin * binning, margin * binning + c)
    stamps[:, inside, inside] = core
    return stamps


def split(stamps: NDArray[Float], core_size: int, binning: int) -> tuple[NDArray[Float], NDArray[Float]]:
    """Return the core and the cells of stamps: the inverse of `expand` for stamps that are bilinear outside the core.

    Parameters
    ----------
    stamps : float (n, s, s)
    core_size, binning : int [pixel]

    Returns
    -------
    core : float (n, core_size, core_size)
    cells : float (n, s / binning, s / binning)
    """
    margin = (stamps.shape[-1] - core_size) // 2
    inside = slice(margin, margin + core_size)
    cells = stamps[:, binning // 2 :: binning, binning // 2 :: binning].copy()
    coarse = slice(margin // binning, (margin + core_size) // binning)
    cells[:, coarse, coarse] = 0
    return stamps[:, inside, inside].copy(), cells
