"""Lists of sources: the positions, identifiers and kinds in a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Column, Table
from astropy.wcs import WCS
from numpy.typing import NDArray

from deblendrt.engine.files import sky_positions as sky
from deblendrt.engine.files.tables import table_files
from deblendrt.engine.files.tables.identifiers import by_small_letters, identifiers

PIXEL_COLUMNS = (("x", "y"), ("xcentroid", "ycentroid"), ("x_centroid", "y_centroid"), ("xcenter", "ycenter"),
                 ("x_fit", "y_fit"), ("x_peak", "y_peak"))  # photutils counts from 0
# SourceExtractor and ds9 count pixels from 1.
ONE_BASED_COLUMNS = (("x_image", "y_image"), ("xwin_image", "ywin_image"), ("xpsf_image", "ypsf_image"),
                     ("xmodel_image", "ymodel_image"), ("xpeak_image", "ypeak_image"))
COLUMN_ROLES = ("x", "y", "ra", "dec", "id", "kind")
DISAGREEMENT = 0.5  # pixel: positions of one source in two systems of coordinates agree to the digits of the file


@dataclasses.dataclass(frozen=True)
class Catalog:
    """The sources of a table, in the table's order.

    Attributes
    ----------
    centers : float64 (n_source, 2) [pixel]
        (x, y), 0-based; NaN where the table has no value.
    ids : masked array (n_source,) of int64, float64 or str, or None
        The table's identifiers; masked where the table has none.
    kinds : list of str (n_source,), or None
        "galaxy", "star" or "auto", from the column kind.
    notes : tuple of str
        Assumptions that the reader made, for the user.
    """

    centers: NDArray[np.float64]
    ids: Any = None
    kinds: list[str] | None = None
    notes: tuple[str, ...] = ()


def read_table(path: str | Path, any_compression: bool = False) -> Table:
    """Read a table; of several tables in a file the first with positions. See `table_files`."""
    return table_files.read_first_table(path, _has_positions, any_compression)


def _has_positions(names: Sequence[str]) -> bool:
    return any(pair[0] in names and pair[1] in names for pair in (*PIXEL_COLUMNS, *ONE_BASED_COLUMNS)) or bool(
        sky.find(names))


def read_source_list(path: str | Path, wcs: WCS | None = None, one_based: bool = False,
                     columns: Mapping[str, str] | None = None, shape: tuple[int, int] | None = None) -> Catalog:
    """Read the sources of a catalogue file.

    Parameters
    ----------
    path : str or Path
        Path of the catalogue, in a format of `read_table`.
    wcs : astropy.wcs.WCS, optional
        The image's WCS, which a catalogue of sky positions needs.
    one_based : bool
        The catalogue counts pixels from 1 (ds9). Columns of SourceExtractor such as ``X_IMAGE`` always do.
    columns : mapping of str to str, optional
        The catalogue's names for the roles `COLUMN_ROLES`. A number is the number of a column, from 1.
    shape : tuple of int, optional
        n_y, n_x of the image.

    Raises
    ------
    ValueError
        The file is no table or has no positions; the message says what the file holds.
    """
    return source_list(str(path), read_table(path), wcs, one_based, columns, shape)


def source_list(where: str, table: Table, wcs: WCS | None = None, one_based: bool = False,
                columns: Mapping[str, str] | None = None, shape: tuple[int, int] | None = None) -> Catalog:
    """Return the sources of a table; `where` begins error messages. See `read_source_list`."""
    told = _told(where, table, columns)
    notes: list[str] = []
    centers = positions(where, table, wcs, one_based, told, shape, notes)
    ids, kinds = identifiers(table, where, told, notes)
    return Catalog(centers, ids, kinds, tuple(notes))


def _told(where: str, table: Table, columns: Mapping[str, str] | None) -> dict[str, str]:
    """Return the table's names of columns by role, from names or numbers that the caller told."""
    told = {}
    for role, name in (columns or {}).items():
        if role not in COLUMN_ROLES:
            raise ValueError(f"columns: expected names for {', '.join(COLUMN_ROLES)}, got one for {role!r}")
        if name not in table.colnames and name.isdecimal() and 1 <= int(name) <= len(table.colnames):
            name = table.colnames[int(name) - 1]
        alike = [own for own in table.colnames if own.lower() == name.lower()]
        if name not in table.colnames and len(alike) != 1:
            raise ValueError(f"{where}: columns: no column {name!r}; found {_listed(table.colnames)}")
        told[role] = name if name in table.colnames else alike[0]
    for pair in (("x", "y"), ("ra", "dec")):
        if len([role for role in pair if role in told]) == 1:
            raise ValueError(f"columns: expected both {pair[0]} and {pair[1]}, got {dict(columns or {})}")
    return told


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(names[:40])
    return text if len(names) <= 40 else f"{text}, ... ({len(names)} columns)"


def positions(where: str, table: Table, wcs: WCS | None = None, one_based: bool = False,
              told: Mapping[str, str] | None = None, shape: tuple[int, int] | None = None,
              notes: list[str] | None = None) -> NDArray[np.float64]:
    """Return pixel positions from columns of pixels or of sky coordinates.

    Parameters
    ----------
    where : str
        Begin of error messages.
    table : astropy.table.Table
    wcs, one_based, shape : see `read_source_list`
    told : mapping of str to str, optional
        Columns of the table by role.
    notes : list of str, optional
        Assumptions are appended.

    Returns
    -------
    float64 (n_source, 2) [pixel]
        (x, y), 0-based.
    """
    told, notes, columns = told or {}, [] if notes is None else notes, by_small_letters(table)
    names: tuple[str, str] | None = (told["x"], told["y"]) if "x" in told else None
    pixels = None
    shift = 1.0 if one_based else 0.0
    if names is None and "ra" not in told:
        for pairs, first in ((PIXEL_COLUMNS, shift), (ONE_BASED_COLUMNS, 1.0)):
            pair = next((pair for pair in pairs if pair[0] in columns and pair[1] in columns), None)
            if names is None and pair is not None:
                names, shift = (columns[pair[0]], columns[pair[1]]), first
                if pairs is ONE_BASED_COLUMNS and not one_based:
                    notes.append(f"{where}: {', '.join(names)} count pixels from 1, as in SourceExtractor")
    elif names is not None and names[0].lower() in {pair[0] for pair in ONE_BASED_COLUMNS}:
        shift = 1.0
    if names is not None:
        pixels = _pixels(where, table, names) - shift
    if "x" in told and "ra" not in told and pixels is not None:
        return pixels
    world = sky_columns(where, table, told, wcs, shape, notes)
    if world is None:
        if pixels is None:
            raise ValueError(f"{where}: expected columns x, y or ra, dec; found {_listed(table.colnames)}; name them "
                             "with columns (--columns x=NAME,y=NAME)")
        return pixels
    if wcs is None:
        if pixels is not None:
            return pixels
        raise ValueError(f"{where}: sky positions (ra, dec), but the image has no WCS")
    there = sky.to_pixels(wcs, world, where)
    if pixels is None:
        return there
    _compare(where, pixels, there, names or ("x", "y"), notes)
    return pixels


def _compare(where: str, pixels: NDArray[np.float64], there: NDArray[np.float64], names: tuple[str, str],
             notes: list[str]) -> None:
    """Raise ValueError if most positions in pixels are elsewhere than the positions on the sky; note single sources."""
    offset = there - pixels
    offset = offset[np.isfinite(offset).all(axis=1)]
    if not len(offset):
        return
    far = np.hypot(*offset.T) > DISAGREEMENT
    middle = np.median(offset, axis=0)
    if far.mean() > 0.5 or (len(far) < 3 and far.any()):
        hint = ("; the pixels seem to count from 1: say so with one_based (--one-based)"
                if np.abs(middle + 1).max() < 0.2 else "")
        raise ValueError(f"{where}: {', '.join(names)} and the sky positions disagree, by {middle[0]:.2f}, "
                         f"{middle[1]:.2f} pixel (median){hint}; choose with columns (--columns x={names[0]},"
                         f"y={names[1]} or ra=NAME,dec=NAME)")
    if far.any():
        notes.append(f"{where}: {', '.join(names)} and the sky positions disagree for {far.sum()} of {len(far)} "
                     f"sources; {', '.join(names)} are used")


def sky_columns(where: str, table: Table, told: Mapping[str, str] | None = None, wcs: WCS | None = None,
                shape: tuple[int, int] | None = None, notes: list[str] | None = None) -> NDArray[np.float64] | None:
    """Return right ascension and declination (ICRS), float64 (n_source, 2) [deg], of a table; None if it has none.

    Parameters are those of `positions`. The WCS and the shape decide between degrees and radians for a column of
    `sky_positions.UNSURE` without a unit.
    """
    told, columns = told or {}, by_small_letters(table)
    if "ra" not in told and "x" not in told:
        mixed = next((name for name in table.colnames if isinstance(table[name], SkyCoord)), None)
        if mixed is not None:
            own = table[mixed].icrs
            return np.column_stack([np.ma.filled(np.ma.asarray(own.ra.deg), np.nan),
                                    np.ma.filled(np.ma.asarray(own.dec.deg), np.nan)])
    found = (told["ra"], told["dec"], "icrs") if "ra" in told else sky.find(list(columns))
    if found is None:
        return None
    known = next((entry for entry in sky.SKY_COLUMNS if (entry[0], entry[1]) == (found[0].lower(), found[1].lower())),
                 None)
    frame = known[2] if known else "icrs"
    names = [columns.get(name, name) if "ra" not in told else name for name in found[:2]]
    if not len(table):
        return np.empty((0, 2))
    world = np.column_stack([sky.angles(where, name, table[name], hours=k == 0 and frame != "galactic")
                             for k, name in enumerate(names)])
    bare = all(getattr(table[name], "unit", None) is None and not sky.is_sexagesimal(table[name]) for name in names)
    if bare and not names[0].lower().endswith("_rad"):
        world = _degrees(where, names, world, wcs if frame == "icrs" else None, shape, notes)
    return sky.converted(world, frame)


def _degrees(where: str, names: Sequence[str], world: NDArray[np.float64], wcs: WCS | None,
             shape: tuple[int, int] | None, notes: list[str] | None) -> NDArray[np.float64]:
    """Return angles without a unit as degrees. If they may be radians or hours, the image decides.

    Raises
    ------
    ValueError
        No position in degrees is in the image, but positions in another unit are. Columns of `sky_positions.UNSURE` in
        radians are accepted.
    """
    with np.errstate(invalid="ignore"):
        east, north = np.nanmax(np.abs(world), axis=0, initial=0)
    unsure = tuple(name.lower() for name in names) == sky.UNSURE
    small = east <= 2 * np.pi and north <= np.pi / 2
    if not np.isfinite(world).any() or not (small or east <= 24):
        return world
    if wcs is None or shape is None:
        if unsure and small:
            raise ValueError(f"{where}: {', '.join(names)} have no unit, and may be degree or radian: give the columns "
                             "a unit")
        return world
    readings = {"degree": world, "radian": np.degrees(world), "hours": world * [15.0, 1.0]}
    inside = {}
    for unit, angles in readings.items():
        x, y = sky.to_pixels(wcs, angles, where).T
        inside[unit] = int(((x > -1) & (x < shape[1]) & (y > -1) & (y < shape[0])).sum())
    best = max(inside, key=lambda unit: inside[unit])
    if inside["degree"] >= inside[best]:
        if unsure and small and not inside["degree"]:
            raise ValueError(f"{where}: {', '.join(names)} have no unit, and may be degree or radian: give the columns "
                             "a unit")
        return world
    if unsure and best == "radian":
        if notes is not None:
            notes.append(f"{where}: {', '.join(names)} have no unit: taken as radian, which is in the image")
        return readings["radian"]
    raise ValueError(f"{where}: {', '.join(names)} are degrees without a unit, and {inside['degree']} of {len(world)} "
                     f"sources are in the image; read as {best}, {inside[best]} are: give the columns a unit")


def _pixels(where: str, table: Table, names: Sequence[str]) -> NDArray[np.float64]:
    values = []
    for name in names:
        column = table[name]
        unit = str(getattr(column, "unit", None) or "")
        if unit and unit.lower() not in ("pix", "pixel", "pixels"):
            raise ValueError(f"{where}: column {name!r}: expected a position in pixels, got the unit {unit}")
        try:
            values.append(_floats(column))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: column {name!r} is not numeric ({column.dtype}: {str(error)[:80]})") from error
    return np.stack(values, axis=1) if len(table) else np.empty((0, 2))


def _floats(column: Any) -> NDArray[np.float64]:
    """Return a column as numbers; NaN where it has no value."""
    if hasattr(column, "value") and hasattr(column, "unit") and not isinstance(column, Column):
        column = column.value  # a Quantity
    values = np.ma.asarray(column)
    if values.ndim != 1:
        raise ValueError(f"an array of {values.shape[1:]} in each row")
    if values.dtype.kind in "SUO":
        texts = ["" if gone or value is None else str(value.decode() if isinstance(value, bytes) else value).strip()
                 for value, gone in zip(np.ma.getdata(values), np.ma.getmaskarray(values), strict=True)]
        return np.array([float(text) if text not in ("", "null", "None", "--", "N/A") else np.nan for text in texts],
                        np.float64)
    return np.asarray(np.ma.filled(values.astype(np.float64), np.nan))
