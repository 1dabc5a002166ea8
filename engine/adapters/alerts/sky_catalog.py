"""A catalogue of known sources on the sky, looked up by position."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.files.catalogues import read_table, sky_columns
from deblendrt.engine.files.tables.identifiers import identifiers
from deblendrt.engine.scene.arguments import SOURCE_KINDS


@dataclasses.dataclass(frozen=True)
class SkyCatalog:
    """Known sources, in the order of their declinations.

    Attributes
    ----------
    ra, dec : float64 (n,) [deg]
    ids : masked array (n,) or None
    kinds : array of str (n,) or None
    """

    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    ids: NDArray[Any] | None = None
    kinds: NDArray[Any] | None = None

    @staticmethod
    def read(path: str | Path) -> SkyCatalog:
        """Read a table with ``ra``, ``dec`` [deg] and optionally ``id`` and ``kind`` (galaxy, star, auto).

        Parameters
        ----------
        path : str or Path
            Path of the table, in a format of `read_table`.

        Raises
        ------
        ValueError
            The file is no table, or a column is missing or wrong; the message says what the file holds.
        """
        table = read_table(path)
        sky = sky_columns(str(path), table)
        if sky is None:
            raise ValueError(f"{path}: expected columns ra, dec; found {', '.join(table.colnames)}")
        ra, dec = sky.T
        usable = np.flatnonzero(np.isfinite(ra) & (np.abs(dec) <= 90))
        order = usable[np.argsort(dec[usable], kind="stable")]
        ids, words = identifiers(table, str(path))
        kinds = None if words is None else np.array(words, str)[order]
        if kinds is not None and (other := sorted(set(kinds) - set(SOURCE_KINDS))):
            raise ValueError(f"{path}: kind: expected {', '.join(SOURCE_KINDS)}, found {other[0]!r}")
        return SkyCatalog(ra[order] % 360, dec[order], None if ids is None else ids[order], kinds)

    def near(self, ra: float, dec: float, radius: float) -> NDArray[np.int64]:
        """Return the rows within a radius [deg] of a position, nearest first."""
        first, last = np.searchsorted(self.dec, [dec - radius, dec + radius])
        rows = np.arange(first, last)
        east = (self.ra[rows] - ra + 180) % 360 - 180
        east *= np.cos(np.radians(0.5 * (self.dec[rows] + dec)))
        distance = np.hypot(east, self.dec[rows] - dec)
        order = np.argsort(distance, kind="stable")
        return rows[order[: np.count_nonzero(distance <= radius)]]
