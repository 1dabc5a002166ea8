"""Several folded bases, for sources of one problem whose PSFs differ.

All operations that draw sources take a `FoldedBasis`, which serves all sources, or a `MixedBasis`, in which each source
has a basis of its own. Consecutive sources of equal basis are drawn together. `FoldedBases` folds the bases of a result
when they are asked for: a patch may have hundreds of PSFs, and a basis takes 175 MB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.scene.psf.images import psf_key


@dataclasses.dataclass(frozen=True, eq=False)
class MixedBasis:
    """Folded bases of one model, and the basis of each source; all bases have the same windows.

    Attributes
    ----------
    bases : sequence of FoldedBasis
    index : int64 (n_source,)
        Number of each source's basis in `bases`.
    """

    bases: Sequence[FoldedBasis]
    index: NDArray[np.int64]

    @property
    def window(self) -> int:
        """Side of a source's window [pixel]."""
        return self.bases[0].window

    @property
    def half(self) -> int:
        """Half the side of a source's window, rounded down [pixel]."""
        return self.bases[0].half

    @property
    def margin(self) -> int:
        """Pixels between the edges of the window and of the full window."""
        return self.bases[0].margin

    @property
    def insets(self) -> tuple[int, ...]:
        """Pixels between the edges of each smaller window and of the window."""
        return self.bases[0].insets

    @property
    def n_band(self) -> int:
        """Number of bands."""
        return self.bases[0].n_band

    @property
    def n_basis(self) -> int:
        """Number of basis functions."""
        return self.bases[0].n_basis

    @property
    def fwhm(self) -> NDArray[np.float64]:
        """FWHM of each source's PSFs, float64 (n_source, n_band) [pixel]."""
        return np.array([basis.fwhm for basis in self.bases])[self.index]

    def spans(self, n: int) -> Iterator[tuple[int, int, FoldedBasis]]:
        """Yield runs of consecutive sources with one basis, as `FoldedBasis.spans`."""
        edges = np.flatnonzero(np.diff(self.index, prepend=-1, append=-1)) if n else np.zeros(1, np.int64)
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            yield start, stop, self.bases[self.index[start]]

    def groups(self, n: int) -> Iterator[tuple[NDArray[np.int64], FoldedBasis]]:
        """Yield all sources of each basis, as `FoldedBasis.groups`."""
        for k in np.unique(self.index).tolist():
            yield np.flatnonzero(self.index == k), self.bases[k]

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> MixedBasis:
        """Return the bases of some of the sources."""
        return dataclasses.replace(self, index=self.index[rows])

    def of(self, i: int) -> FoldedBasis:
        """Return the basis of a source."""
        return self.bases[self.index[i]]

    def in_bands(self, bands: NDArray[np.int64]) -> MixedBasis:
        """Return the bases in some bands, as `FoldedBasis.in_bands`."""
        return dataclasses.replace(self, bases=[basis.in_bands(bands) for basis in self.bases])


AnyBasis = FoldedBasis | MixedBasis


class FoldedBases(Sequence[FoldedBasis]):
    """Folded bases of distinct PSFs, folded when they are asked for.

    Parameters
    ----------
    fold : callable
        Makes a FoldedBasis of PSF images (n_band, q, q), or of the model's nominal PSFs for None. It keeps some of the
        bases that it made.

    Attributes
    ----------
    images : list of float64 (n_band, q, q)
    """

    def __init__(self, fold: Callable[[NDArray[np.float64] | None], FoldedBasis]) -> None:
        self.fold = fold
        self.images: list[NDArray[np.float64]] = []
        self._number: dict[str, int] = {}

    def add(self, images: NDArray[np.float64]) -> int:
        """Add the basis of PSF images (n_band, q, q), unless it is there, and return its number."""
        key = psf_key(images)
        if key not in self._number:
            self._number[key] = len(self.images)
            self.images.append(images)
        return self._number[key]

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, k: int) -> FoldedBasis: ...
    @overload
    def __getitem__(self, k: slice) -> list[FoldedBasis]: ...
    def __getitem__(self, k: int | slice) -> FoldedBasis | list[FoldedBasis]:
        if isinstance(k, slice):
            return [self.fold(images) for images in self.images[k]]
        return self.fold(self.images[k])

    def basis(self, index: NDArray[np.int64]) -> AnyBasis:
        """Make the basis for sources whose bases have these numbers, int64 (n_source,)."""
        number, local = np.unique(index, return_inverse=True)
        bases = [self[int(k)] for k in number]
        return bases[0] if len(bases) == 1 else MixedBasis(bases, local.reshape(-1))
