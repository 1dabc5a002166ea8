"""PSFs of Rubin's exposures, evaluated once in each cell of the image that has sources.

A PSF model is evaluated at the centre of a cell. If it raises there, it is evaluated at the cell's sources: the models
of afw raise where no input image covers a position. If a band fails at all these positions and another band does not,
the band is masked in the cell; Rubin's deblender leaves such a band out, too. If all bands fail, the PSF of the nearest
cell is used and the sources are flagged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.adapters.rubin import rubin_objects
from deblendrt.engine.scene.psf.field import CellPsf


def sample_psf(exposures: dict[str, Any], centers: NDArray[np.float64], xy0: tuple[int, int],
               mask: NDArray[np.bool_], cell: float, lost: list[str]) -> CellPsf | None:
    """Return the PSFs of the cells that have sources.

    Parameters
    ----------
    exposures : dict of str to exposure
    centers : float64 (n_source, 2) [pixel]
        (x, y) in the parent image.
    xy0 : tuple of int [pixel]
        (x, y) of the image's first pixel in the parent image.
    mask : bool (n_band, n_y, n_x)
        Mask of bad pixels. It is set to True where a band has no PSF and another band has a PSF.
    cell : float [pixel]
        Side of a cell.
    lost : list of str
        Messages about failures are appended.

    Returns
    -------
    CellPsf
        The PSFs; None if no band has a PSF anywhere.
    """
    x_edges, y_edges = _edges(next(iter(exposures.values())), mask.shape[1:], xy0, cell)
    local = centers - xy0
    on_image = ((local >= -0.5) & (local < np.array(mask.shape[:0:-1]) - 0.5)).all(1)
    column, row = (np.clip(np.searchsorted(edges, local[:, k], side="right") - 1, 0, len(edges) - 2)
                   for k, edges in ((0, x_edges), (1, y_edges)))
    images: list[list[Any]] = [[None] * (len(x_edges) - 1) for _ in y_edges[1:]]
    wanted = sorted({(int(i), int(j)) for i, j in zip(row[on_image], column[on_image], strict=True)})
    found: dict[tuple[int, int], dict[str, NDArray[np.float64]]] = {}
    for i, j in wanted or [((len(y_edges) - 1) // 2, (len(x_edges) - 1) // 2)]:
        middle = (0.5 * (x_edges[j] + x_edges[j + 1]) + xy0[0], 0.5 * (y_edges[i] + y_edges[i + 1]) + xy0[1])
        members = centers[on_image & (row == i) & (column == j)]
        found[i, j] = {}
        for band, exposure in exposures.items():
            failure = ""
            for x, y in [middle, *members.tolist()]:
                try:
                    found[i, j][band] = rubin_objects.psf_at(exposure, float(x), float(y))
                    break
                except Exception as error:  # each package has its own exceptions; the text is kept in `lost`
                    failure = failure or f"{type(error).__name__}: {error}".strip()
            if band not in found[i, j]:
                lost.append(f"{band}: no PSF in the cell around x = {middle[0]:.0f}, y = {middle[1]:.0f} ({failure})")
    have = {band for cells in found.values() for band in cells}
    for b, band in enumerate(exposures):
        for (i, j), cells in found.items():
            if band not in cells and (cells or band not in have):
                rows, columns = (slice(*(int(np.ceil(max(edge, 0))) for edge in edges[k:k + 2]))
                                 for edges, k in ((y_edges, i), (x_edges, j)))
                mask[b, rows, columns] = True
        if band not in have:
            mask[b] = True
            lost.append(f"{band}: left out, no PSF anywhere")
    if not have:
        return None
    for (i, j), cells in found.items():
        if cells:
            images[i][j] = [cells[band] if band in cells else _nearest(found, band, i, j) for band in exposures]
    return CellPsf(images, x_edges, y_edges)


def _nearest(found: dict[tuple[int, int], dict[str, NDArray[np.float64]]], band: str, i: int,
             j: int) -> NDArray[np.float64]:
    """Return a band's PSF in the nearest cell that has it. If no cell has it, return any PSF: the band is masked."""
    cells = [place for place, images in found.items() if band in images]
    if not cells:
        return next(image for images in found.values() for image in images.values())
    return found[min(cells, key=lambda place: (place[0] - i) ** 2 + (place[1] - j) ** 2)][band]


def _edges(exposure: Any, shape: tuple[int, ...], xy0: tuple[int, int],
           size: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the edges of the cells in local pixels: the cells of a cell-based coadd, or squares of about `size`."""
    grid = getattr(getattr(exposure, "psf", None), "grid", None)
    edges = []
    for axis, first, n in (("x", xy0[0], shape[1]), ("y", xy0[1], shape[0])):
        if grid is not None:
            step, start = int(getattr(grid.cell_shape, axis)), int(getattr(grid.bbox, axis).start) - first
            begin, end = (-start) // step, -((start - n) // step)
            edges.append(start - 0.5 + step * np.arange(begin, end + 1, dtype=np.float64))
        else:
            edges.append(np.linspace(-0.5, n - 0.5, max(1, round(n / size)) + 1))
    return edges[0], edges[1]
