"""Several folded bases: sources of one problem whose PSFs differ.

Everything that draws sources takes one `FoldedBasis`, for all of them, or a `MixedBasis`, which says which basis each
source has. Consecutive sources of equal basis are drawn together. `FoldedBases` makes the bases of a result as they are
asked for: a patch may have hundreds of PSFs, and a basis takes 175 MB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.scene.psf import psf_key


@dataclasses.dataclass(frozen=True, eq=False)
class MixedBasis:
    """Which folded basis each source is drawn with; all of one model, so that windows are equal.

    Attributes
    ----------
    bases : sequence of FoldedBasis
    index : int64 (n_source,)
        Into `bases`.
    """

    bases: Sequence[FoldedBasis]
    index: NDArray[np.int64]

    @property
    def window(self) -> int:
        """Side of a source's window [pixel]."""
        return self.bases[0].window

    @property
    def half(self) -> int:
        """Half of it [pixel]."""
        return self.bases[0].half

    @property
    def margin(self) -> int:
        """By how much the full window exceeds the window on every side [pixel]."""
        return self.bases[0].margin

    @property
    def insets(self) -> tuple[int, ...]:
        """By how much each smaller window is smaller, on every side [pixel]."""
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
        """Of each source's PSFs, float64 (n_source, n_band) [pixel]."""
        return np.array([basis.fwhm for basis in self.bases])[self.index]

    def spans(self, n: int) -> Iterator[tuple[int, int, FoldedBasis]]:
        """Runs of consecutive sources with one basis, as `FoldedBasis.spans`."""
        edges = np.flatnonzero(np.diff(self.index, prepend=-1, append=-1)) if n else np.zeros(1, np.int64)
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            yield start, stop, self.bases[self.index[start]]

    def groups(self, n: int) -> Iterator[tuple[NDArray[np.int64], FoldedBasis]]:
        """All sources of each basis, as `FoldedBasis.groups`."""
        for k in np.unique(self.index).tolist():
            yield np.flatnonzero(self.index == k), self.bases[k]

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> MixedBasis:
        """For some of the sources."""
        return dataclasses.replace(self, index=self.index[rows])

    def of(self, i: int) -> FoldedBasis:
        """The basis of one source."""
        return self.bases[self.index[i]]

    def in_bands(self, bands: NDArray[np.int64]) -> MixedBasis:
        """The bases in some bands only, as `FoldedBasis.in_bands`."""
        return dataclasses.replace(self, bases=[basis.in_bands(bands) for basis in self.bases])


AnyBasis = FoldedBasis | MixedBasis


class FoldedBases(Sequence[FoldedBasis]):
    """Folded bases of distinct PSFs, folded when asked for.

    Parameters
    ----------
    fold : callable
        PSF images (n_band, q, q), None for the model's nominal ones, to FoldedBasis; keeps some that it made.

    Attributes
    ----------
    images : list of float64 (n_band, q, q)
    """

    def __init__(self, fold: Callable[[NDArray[np.float64] | None], FoldedBasis]) -> None:
        self.fold = fold
        self.images: list[NDArray[np.float64]] = []
        self._number: dict[str, int] = {}

    def add(self, images: NDArray[np.float64]) -> int:
        """Number of the basis of PSF images (n_band, q, q), which may be there already."""
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
        """What draws sources whose bases have these numbers, int64 (n_source,)."""
        number, local = np.unique(index, return_inverse=True)
        bases = [self[int(k)] for k in number]
        return bases[0] if len(bases) == 1 else MixedBasis(bases, local.reshape(-1))
