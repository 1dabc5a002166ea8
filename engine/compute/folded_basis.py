"""The basis as seen through the PSF of every band: its windows, tables and Gram matrices. `folding` makes it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.matmul import PackedMatrices, matmul

NESTED = ((43, 96), (31, 64), (23, 32))
"""Smaller windows for fainter sources: side [pixel] and number of basis functions. The functions are sorted by the
light that galaxies have in them. For 40% of 289 galaxies of simulated LSST blends, the light that the smallest window
misses has a signal to noise below 0.3, all bands together; for the middle window it is 65%, for the largest 80%."""


@dataclass(frozen=True, eq=False)
class Window:
    """The first functions of the folded basis in one window around a source's anchor pixel.

    Attributes
    ----------
    source : float32 (n_band, n_basis, window^2)
        All functions in the basis' own window.
    missed : float32 (n_band, n_basis, n_basis)
        Gram matrices of the light that this window does not draw: all functions outside it, and inside it the functions
        that are not used.
    size : int [pixel]
        Side of the window, odd.
    inset : int [pixel]
        Pixels between its edge and the edge of the basis' own window.
    n_used : int
        Number of functions in use: the first n_used.
    whole : Window, optional
        The window with more bands that this window was taken from; this window uses its tables.
    bands : tuple of int
        Bands of `whole` that are here.
    """

    source: NDArray[np.float32]
    missed: NDArray[np.float32]
    size: int
    inset: int
    n_used: int
    whole: Window | None = None
    bands: tuple[int, ...] = ()

    @functools.cached_property
    def phi(self) -> NDArray[np.float32]:
        """Pixels row by row, float32 (n_band, n_used, size^2)."""
        n_band, n_basis, _ = self.source.shape
        side = self.size + 2 * self.inset
        inside = slice(self.inset, self.inset + self.size)
        cut = self.source.reshape(n_band, n_basis, side, side)[:, : self.n_used, inside, inside]
        return np.ascontiguousarray(cut).reshape(n_band, self.n_used, -1)

    @functools.cached_property
    def draw(self) -> PackedMatrices:
        """Table from coefficients to pixels."""
        return PackedMatrices(self.phi) if self.whole is None else self.whole.draw.part(self.bands)

    @functools.cached_property
    def gather(self) -> PackedMatrices:
        """Table from pixels to coefficients."""
        return PackedMatrices(self.phi, transposed=True) if self.whole is None else self.whole.gather.part(self.bands)

    @functools.cached_property
    def _halved(self) -> dict[tuple[int, int], tuple[PackedMatrices, int, int]]:
        return {}

    def halved(self, row: int, column: int) -> tuple[PackedMatrices, int, int]:
        """Table from coefficients to every second pixel along both axes, from row and column 0 or 1 on.

        Returns
        -------
        table : PackedMatrices
        height, width : int
            Number of rows and columns that it draws.
        """
        if self.whole is not None:
            table, height, width = self.whole.halved(row, column)
            return table.part(self.bands), height, width
        if (row, column) not in self._halved:
            n_band, n_used, _ = self.phi.shape
            pixels = self.phi.reshape(n_band, n_used, self.size, self.size)[:, :, row::2, column::2]
            table = PackedMatrices(np.ascontiguousarray(pixels).reshape(n_band, n_used, -1))
            self._halved[row, column] = table, pixels.shape[2], pixels.shape[3]
        return self._halved[row, column]

    def in_bands(self, bands: NDArray[np.int64]) -> Window:
        """Return the window in some bands."""
        return Window(_some(self.source, bands), self.missed[bands], self.size, self.inset, self.n_used, self,
                      tuple(bands.tolist()))


def _some(table: NDArray[np.float32], bands: NDArray[np.int64]) -> NDArray[np.float32]:
    """Take rows of an array, without a copy if they lie side by side."""
    first = int(bands[0])
    side_by_side = np.array_equal(bands, np.arange(first, first + len(bands)))
    return table[first : first + len(bands)] if side_by_side else table[bands]


@dataclass(frozen=True, eq=False)
class FoldedBasis:
    """The basis as seen through the PSF of every band. Arrays are read-only: many scenes share one.

    Attributes
    ----------
    phi : float32 (n_band, n_basis, n_pixel)
        Folded basis in the window, pixels row by row.
    gram : float64 (n_band, n_basis, n_basis)
        Gram matrices of `phi`, to float32.
    outer : float32 (n_band, n_basis, n_cell)
        Outskirts: the functions at the centres of square cells that cover the full window, row by row. Outside the
        window they are bilinear between the centres. No cells if the basis has no outskirts.
    full_gram : float64 (n_band, n_basis, n_basis)
        Gram matrices over the full window.
    full_window, binning : int [pixel]
        Side of the full window, which has the window's centre, and of a cell.
    fwhm : float64 (n_band,) [pixel]
        FWHM of the PSFs.
    window, half : int [pixel]
        Side of the window, odd, and its half: window = 2 half + 1, centred on a source's anchor pixel.
    residual : float64 (n_band,)
        Relative L2 difference between D_b * R and the PSF; rounding error unless the gain cap acted.
    narrow : bool (n_band,)
        `residual` exceeds `folding.NARROW_RESIDUAL`: the PSF is narrower than the reference PSF, or very noisy.
    norm : float64 (n_band,)
        Sums of the PSF images as given.
    nested : tuple of Window
        Smaller windows, the largest first.
    whole : FoldedBasis, optional
        The basis with more bands that this basis was taken from; this basis uses its tables.
    bands : tuple of int
        Bands of `whole` that are here.
    """

    phi: NDArray[np.float32]
    gram: NDArray[np.float64]
    outer: NDArray[np.float32]
    full_gram: NDArray[np.float64]
    fwhm: NDArray[np.float64]
    window: int
    half: int
    full_window: int
    binning: int
    residual: NDArray[np.float64]
    narrow: NDArray[np.bool_]
    norm: NDArray[np.float64]
    nested: tuple[Window, ...] = ()
    whole: FoldedBasis | None = None
    bands: tuple[int, ...] = ()

    @property
    def insets(self) -> tuple[int, ...]:
        """Pixels between the edges of each smaller window and of the window."""
        return tuple(window.inset for window in self.nested)

    @functools.cached_property
    def _own(self) -> Window:
        if self.whole is not None:
            return self.whole._own.in_bands(np.array(self.bands))
        missed = (self.full_gram - self.gram).astype(np.float32)
        return Window(self.phi, missed, self.window, 0, self.n_basis)

    @property
    def phi_t(self) -> NDArray[np.float32]:
        """Contiguous transpose of `phi`, float32 (n_band, n_pixel, n_basis)."""
        return np.ascontiguousarray(self.phi.transpose(0, 2, 1))

    @property
    def outer_t(self) -> NDArray[np.float32]:
        """Contiguous transpose of `outer`, float32 (n_band, n_cell, n_basis)."""
        return np.ascontiguousarray(self.outer.transpose(0, 2, 1))

    @functools.cached_property
    def draw_outer(self) -> PackedMatrices:
        """Table from coefficients to cells."""
        return PackedMatrices(self.outer) if self.whole is None else self.whole.draw_outer.part(self.bands)

    @functools.cached_property
    def gather_outer(self) -> PackedMatrices:
        """Table from cells to coefficients."""
        return (PackedMatrices(self.outer, transposed=True) if self.whole is None
                else self.whole.gather_outer.part(self.bands))

    def at(self, extent: int) -> Window:
        """Return the window of an extent: the k-th smaller window for -k, else the basis' own."""
        return self.nested[-1 - extent] if extent < 0 else self._own

    @property
    def margin(self) -> int:
        """Pixels between the edges of the window and of the full window."""
        return (self.full_window - self.window) // 2

    @property
    def n_band(self) -> int:
        """Number of bands."""
        return self.phi.shape[0]

    @property
    def n_basis(self) -> int:
        """Number of basis functions."""
        return self.phi.shape[1]

    def spans(self, n: int) -> Iterator[tuple[int, int, FoldedBasis]]:
        """Yield runs (start, stop, basis) of consecutive sources with one basis: here all n sources."""
        yield 0, n, self

    def groups(self, n: int) -> Iterator[tuple[NDArray[np.int64], FoldedBasis]]:
        """Yield the rows of all sources of each basis, and the basis: here all n sources."""
        yield np.arange(n), self

    def take(self, rows: object) -> FoldedBasis:
        """Return the basis for some of the sources: itself."""
        return self

    def of(self, i: int) -> FoldedBasis:
        """Return the basis of a source: itself."""
        return self

    def in_bands(self, bands: NDArray[np.int64]) -> FoldedBasis:
        """Return the basis in some bands.

        Parameters
        ----------
        bands : int64 (n_chosen,)
            Bands may repeat: bands of one PSF share their tables.

        Returns
        -------
        FoldedBasis
        """
        return dataclasses.replace(
            self, phi=_some(self.phi, bands), gram=self.gram[bands], outer=_some(self.outer, bands),
            full_gram=self.full_gram[bands], fwhm=self.fwhm[bands], residual=self.residual[bands],
            narrow=self.narrow[bands], norm=self.norm[bands],
            nested=tuple(window.in_bands(bands) for window in self.nested), whole=self, bands=tuple(bands.tolist()))


def smaller_window(phi: NDArray[np.float32], full_gram: NDArray[np.float64], window: int, size: int,
                   n_used: int) -> Window:
    """Make a smaller window of a folded basis.

    Parameters
    ----------
    phi : float32 (n_band, n_basis, window^2)
    full_gram : float64 (n_band, n_basis, n_basis)
        Gram matrices over the full window.
    window : int [pixel]
        Side of the basis' own window.
    size, n_used : int
        Side [pixel] and number of functions of the smaller window.

    Returns
    -------
    Window
    """
    inset = (window - size) // 2
    inside = slice(inset, inset + size)
    n_band, n_basis, _ = phi.shape
    n_used = min(n_used, n_basis)
    every = np.ascontiguousarray(phi.reshape(n_band, n_basis, window, window)[:, :, inside, inside])
    every = every.reshape(n_band, n_basis, size * size)
    inner = matmul(every, np.ascontiguousarray(every.transpose(0, 2, 1))).astype(np.float64)
    missed = full_gram - inner
    missed[:, n_used:, n_used:] += inner[:, n_used:, n_used:]
    nested = Window(phi, missed.astype(np.float32), size, inset, n_used)
    nested.missed.flags.writeable = False
    return nested
