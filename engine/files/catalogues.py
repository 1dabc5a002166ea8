"""Readers of tables of sources (FITS, ECSV, CSV, Parquet) and of the positions in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units as u
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import NDArray

from deblendrt.engine.files.fits_check import open_fits

PIXEL_COLUMNS = ("x", "y")
ONE_BASED_COLUMNS = ("x_image", "y_image")  # columns of SourceExtractor, which counts pixels from 1, as ds9 does
SKY_COLUMNS = (("ra", "dec"), ("coord_ra", "coord_dec"), ("alpha_j2000", "delta_j2000"))
MAX_LINE, MAX_HEADER = 2**17, 2**18  # bytes of the first line, which names the columns, and of the header of ECSV
ID_COLUMNS = ("id", "objectid", "source_id", "number")


@dataclasses.dataclass(frozen=True)
class Catalog:
    """The sources of a table, in the table's order.

    Attributes
    ----------
    centers : float64 (n_source, 2) [pixel]
        (x, y), 0-based; NaN where the table has no value.
    ids : array (n_source,), or None
        The table's identifiers.
    kinds : list of str (n_source,), or None
        "galaxy", "star" or "auto", from the column kind.
    """

    centers: NDArray[np.float64]
    ids: NDArray[Any] | None = None
    kinds: list[str] | None = None


def read_table(path: str | Path) -> Table:
    """Read a table from FITS (the first table in the file), ECSV, CSV or Parquet (needs the extra ``parquet``).

    Raises
    ------
    ValueError
        The file is no table; the message says what the file holds.
    FileNotFoundError
        There is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        suffixes = {suffix.lower() for suffix in path.suffixes}
        if suffixes & {".fits", ".fit", ".fz"}:
            with open_fits(path) as hdus:
                return Table.read(hdus)
        if ".parquet" in suffixes:
            return Table.read(path, format="parquet")
        ecsv = ".ecsv" in suffixes
        _check_text(path, ecsv)
        return Table.read(path, format="ascii.ecsv" if ecsv else "ascii.csv")
    except MemoryError:
        raise
    except Exception as error:  # astropy's readers raise different classes
        raise ValueError(f"{path}: not readable as a table ({(str(error).splitlines() or [''])[0][:200]})") from error


def identifiers(table: Table) -> tuple[NDArray[Any] | None, list[str] | None]:
    """Return the identifiers (`ID_COLUMNS`) and the kinds of a table's sources; None if the column is missing."""
    columns = {name.lower(): name for name in table.colnames}
    key = next((columns[name] for name in ID_COLUMNS if name in columns), None)
    return (None if key is None else np.asarray(table[key]),
            [str(kind) for kind in table[columns["kind"]]] if "kind" in columns else None)


def read_source_list(path: str | Path, wcs: WCS | None = None, one_based: bool = False) -> Catalog:
    """Read the sources of a catalogue file.

    Parameters
    ----------
    path : str or Path
        Path of the catalogue, in a format of `read_table`.
    wcs : astropy.wcs.WCS, optional
        The image's WCS, which a catalogue of sky positions needs.
    one_based : bool
        The catalogue counts pixels from 1 (ds9, SourceExtractor). ``x_image, y_image`` are accepted then.

    Raises
    ------
    ValueError
        The file is no table or has no positions; the message says what the file holds.
    """
    table = read_table(path)
    return Catalog(positions(str(path), table, wcs, one_based), *identifiers(table))


def _check_text(path: Path, ecsv: bool) -> None:
    """Refuse text that takes much more memory or time to read than its size suggests."""
    with path.open("rb") as file:
        first = file.readline(MAX_LINE + 1)
        if len(first) > MAX_LINE:
            raise ValueError(f"a first line of more than {MAX_LINE} bytes")
        header = first
        while ecsv and first.startswith(b"#") and len(header) <= MAX_HEADER:
            first = file.readline(MAX_LINE + 1)
            header += first
    if ecsv and len(header) > MAX_HEADER:
        raise ValueError(f"a header of more than {MAX_HEADER} bytes")


def positions(where: str, table: Table, wcs: WCS | None = None, one_based: bool = False) -> NDArray[np.float64]:
    """Return pixel positions from the columns ``x, y`` or from sky coordinates (degree, if the column has no unit).

    Returns
    -------
    float64 (n_source, 2) [pixel]
        (x, y), 0-based.
    """
    columns = {name.lower(): name for name in table.colnames}
    pixel = [PIXEL_COLUMNS, ONE_BASED_COLUMNS] if one_based else [PIXEL_COLUMNS]
    for names in pixel:
        if all(name in columns for name in names):
            return _stack(where, table, [columns[name] for name in names]) - (1.0 if one_based else 0.0)
    sky = sky_positions(where, table)
    if sky is not None:
        if wcs is None:
            names = next(names for names in SKY_COLUMNS if all(name in columns for name in names))
            raise ValueError(f"{where}: sky positions ({', '.join(names)}), but the image has no WCS")
        finite = np.isfinite(sky).all(axis=1)
        centers = np.full(sky.shape, np.nan)
        # A position on the far side of the sky becomes NaN. The source stays in the list and is flagged.
        centers[finite] = np.column_stack(wcs.all_world2pix(*sky[finite].T, 0, quiet=True))
        return centers
    hint = "; x_image, y_image count from 1: say so with one_based (--one-based)" if "x_image" in columns else ""
    raise ValueError(f"{where}: expected columns x, y or ra, dec; found {', '.join(table.colnames)}{hint}")


def sky_positions(where: str, table: Table) -> NDArray[np.float64] | None:
    """Return RA and Dec, float64 (n_source, 2) [deg], from the first of `SKY_COLUMNS` in a table; or None."""
    columns = {name.lower(): name for name in table.colnames}
    names = next((names for names in SKY_COLUMNS if all(name in columns for name in names)), None)
    return None if names is None else _stack(where, table, [columns[name] for name in names], unit=u.deg)


def _stack(where: str, table: Table, names: list[str], unit: u.Unit | None = None) -> NDArray[np.float64]:
    values = []
    for name in names:
        column = table[name]
        try:
            numbers = np.ma.filled(np.ma.asarray(column).astype(np.float64), np.nan)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: column {name!r} is not numeric ({column.dtype})") from error
        if unit is not None and column.unit is not None:
            numbers = (numbers * column.unit).to_value(unit)
        values.append(np.asarray(numbers))
    return np.stack(values, axis=1) if len(table) else np.empty((0, 2))
