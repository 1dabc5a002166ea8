"""PSFs that vary over an image and are constant in the cells of a grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deblendrt.engine.scene.objects.arrays import read_numbers

CELL = 200  # pixel: side of the cells for a PSF function; in 40 arcsec, the PSF of a coadd changes by less than 1%


class CellPsf:
    """PSF images in the cells of a grid, as in cell-based coadds.

    Parameters
    ----------
    images : float (n_y, n_x, n_band, q, q), or nested sequences
        Effective PSFs of the cutout's bands in every cell, rows of cells first. A cell without an image (None, or not
        finite) gets the image of the nearest cell that has an image; its sources are flagged.
    x_edges, y_edges : float (n_x + 1,), (n_y + 1,) [pixel]
        Edges of the cells, ascending, in 0-based pixel coordinates of the image. Sources beyond the outer edges belong
        to the nearest cell.

    Raises
    ------
    ValueError
        The edges do not ascend or do not match the images, or no cell has an image.
    """

    def __init__(self, images: Any, x_edges: ArrayLike, y_edges: ArrayLike) -> None:
        self.x_edges, self.y_edges = (_in_pixels(edges, name) for edges, name in (
            (x_edges, "x_edges"), (y_edges, "y_edges")))
        for name, edges in (("x_edges", self.x_edges), ("y_edges", self.y_edges)):
            if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
                raise ValueError(f"{name}: expected at least two ascending numbers, got {edges}")
        n_y, n_x = len(self.y_edges) - 1, len(self.x_edges) - 1
        if len(images) != n_y or any(len(row) != n_x for row in images):
            raise ValueError(f"images: expected {n_y} rows of {n_x} cells as the edges say, got "
                             f"{len(images)} rows of {sorted({len(row) for row in images})}")
        self.images = images
        self.known = np.array([[_has_image(cell) for cell in row] for row in images])
        if not self.known.any():
            raise ValueError("images: expected a PSF in at least one cell, got none")

    @classmethod
    def sample(cls, function: Callable[[float, float], Any], shape: tuple[int, int], size: float = CELL) -> CellPsf:
        """Evaluate a function at the centres of square cells that cover an image.

        Parameters
        ----------
        function : callable
            (x, y) [pixel] to effective PSF images (n_band, q, q) of the cutout's bands.
        shape : (int, int)
            (n_y, n_x) of the image.
        size : float [pixel]
            Approximate side of the cells.

        Returns
        -------
        CellPsf
        """
        x_edges, y_edges = (np.linspace(-0.5, n - 0.5, max(1, round(n / size)) + 1) for n in shape[::-1])
        x, y = (0.5 * (edges[1:] + edges[:-1]) for edges in (x_edges, y_edges))
        return cls([[function(float(a), float(b)) for a in x] for b in y], x_edges, y_edges)


def _in_pixels(edges: Any, name: str) -> NDArray[np.float64]:
    """Return edges of cells as numbers [pixel]."""
    given = read_numbers(edges, name)
    if any(str(unit) not in ("pix", "pixel") for unit in given.units):
        raise ValueError(f"{name}: expected pixels, got the unit {given.units[0]}")
    return given.values.astype(np.float64)


def _has_image(cell: Any) -> bool:
    try:
        return cell is not None and all(plane is not None and np.isfinite(np.asarray(plane, np.float64)).all()
                                        for plane in cell)
    except (TypeError, ValueError, OverflowError):
        return True  # an invalid image, for which `psf_field` raises


@dataclasses.dataclass(frozen=True, eq=False)
class PsfField:
    """The PSFs of a scene's cells, in the model's bands.

    Attributes
    ----------
    x_edges, y_edges : float64 (n_x + 1,), (n_y + 1,) [pixel]
    number : int64 (n_y, n_x)
        Index of the cell's image in `images`.
    given : bool (n_y, n_x)
        Whether the caller gave an image for the cell. Other cells have the image of the nearest cell.
    images : list of float64 (n_band, q, q)
        PSF images, normalized to a sum of one.
    renormalized : bool (n_image,)
        Whether the sum of the given image was not one.
    """

    x_edges: NDArray[np.float64]
    y_edges: NDArray[np.float64]
    number: NDArray[np.int64]
    given: NDArray[np.bool_]
    images: list[NDArray[np.float64]]
    renormalized: NDArray[np.bool_]

    def cells(self, positions: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (row, column) of the cells of positions (n, 2). Beyond the outer edges it is the nearest cell."""
        place = np.where(np.isfinite(positions), positions, 0.0)
        row, column = (np.clip(np.searchsorted(edges, place[:, k], side="right") - 1, 0, len(edges) - 2)
                       for edges, k in ((self.y_edges, 1), (self.x_edges, 0)))
        return row, column

    def at(self, positions: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the index in `images` for each position, int64 (n,)."""
        return self.number[self.cells(positions)]

    def from_corner(self, x: int, y: int) -> PsfField:
        """Return the field in the coordinates of a part of the image that begins at pixel (x, y)."""
        return dataclasses.replace(self, x_edges=self.x_edges - x, y_edges=self.y_edges - y)


def psf_field(cells: CellPsf, convert: Callable[[Any, str], tuple[NDArray[np.float64], bool]], name: str) -> PsfField:
    """Convert the PSFs of all cells to the model's bands.

    Parameters
    ----------
    cells : CellPsf
    convert : callable
        Takes a cell's images and their name for messages. Returns images (n_band, q, q) of sum one, and whether the
        sums were not one before.
    name : str
        Name of the argument, for messages.

    Returns
    -------
    PsfField
    """
    own = np.argwhere(cells.known)
    converted = [convert(cells.images[i][j], f"{name} of cell ({i}, {j})") for i, j in own]
    x, y = (0.5 * (edges[1:] + edges[:-1]) for edges in (cells.x_edges, cells.y_edges))
    distance = ((y[:, None, None] - y[own[:, 0]]) ** 2 + (x[None, :, None] - x[own[:, 1]]) ** 2)
    return PsfField(cells.x_edges, cells.y_edges, np.argmin(distance, axis=2), cells.known,
                    [images for images, _ in converted], np.array([odd for _, odd in converted]))
