"""A catalogue of known sources on the sky, looked up by position."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.files.catalogues import ID_COLUMNS, SKY_COLUMNS

KINDS = ("galaxy", "star", "auto")


@dataclasses.dataclass(frozen=True)
class SkyCatalog:
    """Known sources, in the order of their declinations.

    Attributes
    ----------
    ra, dec : float64 (n,) [deg]
    ids : array (n,) or None
    kinds : array of str (n,) or None
    """

    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    ids: NDArray[Any] | None = None
    kinds: NDArray[Any] | None = None

    @staticmethod
    def read(path: str | Path) -> SkyCatalog:
        """Read a table with ``ra``, ``dec`` [deg] and, if it likes, ``id`` and ``kind`` (galaxy, star, auto).

        Parameters
        ----------
        path : str or Path
            FITS, ECSV, CSV, or Parquet (extra ``parquet``).

        Raises
        ------
        ValueError
            No such table; the message says what was found.
        """
        from astropy.table import Table

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        suffix = path.suffix.lower()
        kind = {".fits": "fits", ".fit": "fits", ".ecsv": "ascii.ecsv", ".parquet": "parquet"}.get(suffix, "ascii.csv")
        try:
            table = Table.read(path, format=kind)
        except Exception as error:  # astropy's readers raise a different class for each way to be no table
            raise ValueError(f"{path}: not readable as a table ({(str(error) or 'empty').splitlines()[0]})") from error
        columns = {name.lower(): name for name in table.colnames}
        names = next((n for n in SKY_COLUMNS if all(part in columns for part in n)), None)
        if names is None:
            raise ValueError(f"{path}: expected columns ra, dec; found {', '.join(table.colnames)}")
        try:
            ra, dec = (np.ma.filled(np.ma.asarray(table[columns[n]]).astype(np.float64), np.nan) for n in names)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {', '.join(names)} are not numbers") from error
        usable = np.flatnonzero(np.isfinite(ra) & (np.abs(dec) <= 90))
        order = usable[np.argsort(dec[usable], kind="stable")]
        key = next((columns[n] for n in ID_COLUMNS if n in columns), None)
        kinds = np.asarray(table[columns["kind"]], str)[order] if "kind" in columns else None
        if kinds is not None and not np.isin(kinds, KINDS).all():
            raise ValueError(f"{path}: kind: expected {', '.join(KINDS)}, found {sorted(set(kinds) - set(KINDS))[0]!r}")
        return SkyCatalog(ra[order] % 360, dec[order], None if key is None else np.asarray(table[key])[order], kinds)

    def near(self, ra: float, dec: float, radius: float) -> NDArray[np.int64]:
        """Rows within a radius [deg] of a position, nearest first."""
        first, last = np.searchsorted(self.dec, [dec - radius, dec + radius])
        rows = np.arange(first, last)
        east = (self.ra[rows] - ra + 180) % 360 - 180
        east *= np.cos(np.radians(0.5 * (self.dec[rows] + dec)))
        distance = np.hypot(east, self.dec[rows] - dec)
        order = np.argsort(distance, kind="stable")
        return rows[order[: np.count_nonzero(distance <= radius)]]
