"""Read the positions of sources from a table: FITS, ECSV or CSV."""

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
ONE_BASED_COLUMNS = ("x_image", "y_image")  # SourceExtractor's, 1-based like ds9
SKY_COLUMNS = (("ra", "dec"), ("coord_ra", "coord_dec"), ("alpha_j2000", "delta_j2000"))
MAX_LINE, MAX_HEADER = 2**17, 2**18  # bytes: of a first line, which names the columns, and of a header
ID_COLUMNS = ("id", "objectid", "source_id", "number")


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Positions of sources, in the file's order.

    Attributes
    ----------
    centers : float64 (n_source, 2) [pixel]
        (x, y), 0-based; NaN where the table has no value.
    ids : array (n_source,), or None
        The table's identifiers, if it has any.
    kinds : list of str (n_source,), or None
        "galaxy", "star" or "auto", from a column kind, if there is one.
    """

    centers: NDArray[np.float64]
    ids: NDArray[Any] | None = None
    kinds: list[str] | None = None


def read_catalog(path: str | Path, wcs: WCS | None = None, one_based: bool = False) -> Catalog:
    """Read a catalogue file.

    Parameters
    ----------
    path : str or Path
        FITS table (the first one in the file), ECSV, or CSV.
    wcs : astropy.wcs.WCS, optional
        The image's; needed for a catalogue of sky positions.
    one_based : bool
        The catalogue counts pixels from 1 (ds9, SourceExtractor); ``x_image, y_image`` are accepted then.

    Raises
    ------
    ValueError
        The file is no table or has no positions; the message says what was found.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        suffixes = {suffix.lower() for suffix in path.suffixes}
        if suffixes & {".fits", ".fit", ".fz"}:
            with open_fits(path) as hdus:
                table = Table.read(hdus)
        else:
            ecsv = ".ecsv" in suffixes
            _check_text(path, ecsv)
            table = Table.read(path, format="ascii.ecsv" if ecsv else "ascii.csv")
    except MemoryError:
        raise
    except Exception as error:  # astropy's readers raise a different class for each way to be no table
        raise ValueError(f"{path}: not readable as a table ({(str(error).splitlines() or [''])[0][:200]})") from error
    columns = {name.lower(): name for name in table.colnames}
    key = next((columns[name] for name in ID_COLUMNS if name in columns), None)
    kinds = [str(kind) for kind in table[columns["kind"]]] if "kind" in columns else None
    centers = positions(str(path), table, wcs, one_based)
    return Catalog(centers, None if key is None else np.asarray(table[key]), kinds)


def _check_text(path: Path, ecsv: bool) -> None:
    """Refuse text whose reading takes much more memory or time than its size lets expect."""
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
    """Pixel positions from a table with ``x, y`` or sky coordinates (degree, unless the column says otherwise).

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
    for names in SKY_COLUMNS:
        if all(name in columns for name in names):
            if wcs is None:
                raise ValueError(f"{where}: sky positions ({', '.join(names)}), but the image has no WCS")
            sky = _stack(where, table, [columns[name] for name in names], unit=u.deg)
            finite = np.isfinite(sky).all(axis=1)
            centers = np.full(sky.shape, np.nan)
            # A position on the far side of the sky projects to NaN; it stays in the list and gets its flag.
            centers[finite] = np.column_stack(wcs.all_world2pix(*sky[finite].T, 0, quiet=True))
            return centers
    hint = "; x_image, y_image count from 1: say so with one_based (--one-based)" if "x_image" in columns else ""
    raise ValueError(f"{where}: expected columns x, y or ra, dec; found {', '.join(table.colnames)}{hint}")


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
