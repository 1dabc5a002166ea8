"""Positions of sources from arrays, tables and sky coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.scene.objects import world
from deblendrt.engine.scene.objects.arrays import came, is_a, is_data_array, is_sequence, opened
from deblendrt.engine.units import notify


def read_positions(given: Any, name: str, wcs: Any = None, shape: tuple[int, int] | None = None,
                   ) -> tuple[NDArray[np.float64], list[str] | None]:
    """Return the positions of a scene's sources.

    Parameters
    ----------
    given : float (n_source, 2) [pixel], a table, or SkyCoord
        (x, y); an empty sequence stands for no source. A table is of astropy, pandas, polars, pyarrow or xarray, a
        structured array, or a dict of columns; its columns are found by name, see `deblendrt.engine.files.catalogues`.
    name : str
        Name of the argument, for messages.
    wcs : WCS, optional
        WCS of the image, for positions on the sky.
    shape : (int, int), optional
        n_y, n_x of the image.

    Returns
    -------
    positions : float64 (n_source, 2) [pixel]
        A copy.
    kinds : list of str (n_source,), or None
        The column kind of a table.
    """
    if given is None:
        raise ValueError(f"{name}: expected positions (n_source, 2), got None")
    if is_sequence(given) and len(given) and all(is_a(item, "astropy.coordinates", "SkyCoord") for item in given):
        from astropy.coordinates import SkyCoord

        ra, dec = (np.concatenate([np.ravel(getattr(item.icrs, axis).deg) for item in given]) for axis in ("ra", "dec"))
        given = SkyCoord(ra, dec, unit="deg")
    if is_a(given, "astropy.coordinates", "SkyCoord") or is_a(given, "astropy.coordinates", "BaseCoordinateFrame"):
        return world.sky_pixels(given, wcs, name), None
    table = _table(given, name)
    if table is not None:
        return _from_table(table, name, wcs, shape)
    return _from_array(given, name), None


def _from_array(given: Any, name: str) -> NDArray[np.float64]:
    """Return positions from an array (n_source, 2) of x and y."""
    from astropy import units

    if is_data_array(given):
        given = _xy_order(given, name)
    if is_sequence(given) and any(hasattr(part, "unit") for item in given
                                  for part in (item if is_sequence(item) else [item])):
        try:
            given = units.Quantity([units.Quantity(list(item)) if is_sequence(item) else item for item in given])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: expected positions of one unit, got {came(given)} ({error})") from error
    inner, unit, masked = opened(given, name)
    if unit is not None and unit != units.pix:
        hint = ("; give positions on the sky as a SkyCoord and wcs=" if unit.is_equivalent(units.deg) else "")
        raise ValueError(f"{name}: expected positions in pixels, got the unit {unit}{hint}")
    if getattr(getattr(inner, "dtype", None), "kind", "") == "c":
        raise ValueError(f"{name}: expected numbers of shape (n_source, 2), got complex numbers")
    try:
        array = np.array(np.ma.filled(np.ma.asarray(inner, dtype=np.float64), np.nan))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{name}: expected numbers of shape (n_source, 2), got {came(given)}") from error
    if array.shape == (0,):
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{name}: expected shape (n_source, 2), (x, y) of each source, got {array.shape}")
    if masked is not None:
        array[np.broadcast_to(masked, array.shape)] = np.nan
    return array


def _xy_order(given: Any, name: str) -> Any:
    """Return a DataArray of positions with the dimensions source and axis, in the order x, y."""
    for dim in given.dims:
        values = given.coords[dim].values.tolist() if dim in given.coords else []
        if values and all(isinstance(value, str) for value in values):
            words = [value.lower() for value in values]
            if sorted(words) != ["x", "y"]:
                raise ValueError(f"{name}: expected the coordinates x, y along {dim}, got {', '.join(values)}")
            others = [other for other in given.dims if other != dim]
            return given.transpose(*others, dim).isel({dim: [words.index("x"), words.index("y")]})
    return given


def _table(given: Any, name: str) -> Any:
    """Return a table, a dict of columns or a structured array as an astropy Table; None for other values."""
    from astropy.table import QTable, Row, Table

    try:
        if isinstance(given, QTable):
            return Table(given, copy=False)  # columns with units in place of Quantities
        if isinstance(given, Table):
            return given
        if isinstance(given, Row):
            return given.table[given.index:given.index + 1]
        if isinstance(given, np.ndarray | np.void) and given.dtype.names:
            return _from_records(given)
        if is_sequence(given) and len(given) and all(_has_names(item) for item in given):
            return _from_rows(given)
        if is_data_array(given):
            return None
        if hasattr(given, "column_names") and hasattr(given, "to_pandas"):  # pyarrow
            return Table.from_pandas(given.to_pandas())
        if hasattr(given, "columns") and hasattr(given, "to_numpy") and not isinstance(given, Mapping):
            labels = [str(column) for column in given.columns]
            if len(set(labels)) < len(labels):
                raise ValueError(f"two columns of one name among {', '.join(labels)}")
            return Table({str(column): _column(given[column]) for column in given.columns})
        if isinstance(given, Mapping):
            return Table({str(key): _column(value) for key, value in given.items()})
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{name}: expected a table with columns of one length, got {type(given).__name__} "
                         f"({str(error)[:200]})") from error
    return None


def _from_records(given: Any) -> Any:
    """Return a structured array as a table, with the units of a FITS table."""
    from astropy.table import Table

    table, columns = Table(np.atleast_1d(given)), getattr(given, "columns", None)
    for column in table.columns.values():
        unit = getattr(columns[column.name], "unit", None) if columns is not None else None
        column.unit = unit or column.unit
    return table


def _has_names(item: Any) -> bool:
    """Return whether a row of positions names its columns: a dict, a Row, a Series, a record or a named tuple."""
    return isinstance(item, Mapping) or hasattr(item, "colnames") or hasattr(item, "_fields") or (
        is_a(item, "pandas", "Series") and all(isinstance(key, str) for key in item.index)) or bool(
        isinstance(item, np.void) and item.dtype.names)


def _from_rows(rows: Any) -> Any:
    """Return rows that name their columns as a table."""
    from astropy.table import QTable, Table

    names = [str(name) for name in (getattr(rows[0], "colnames", None) or getattr(rows[0], "_fields", None) or (
        rows[0] if isinstance(rows[0], Mapping) else rows[0].index if hasattr(rows[0], "to_dict") else
        rows[0].dtype.names))]
    columns = {}
    for k, name in enumerate(names):
        columns[name] = [row[k] if hasattr(row, "_fields") else row[name] for row in rows]
    return Table(QTable(columns))


def _column(values: Any) -> Any:
    """Return a column of a dict or a DataFrame in a form that astropy's Table takes."""
    if is_data_array(values):
        inner, unit, _ = opened(values, "column")
        return np.asarray(inner) if unit is None else np.asarray(inner) * unit
    if hasattr(values, "isna") and hasattr(values, "to_numpy"):  # pandas, whose missing values may be objects
        missing = np.asarray(values.isna())
        array = values.to_numpy(dtype=object) if missing.any() else values.to_numpy()
        if missing.any() and all(isinstance(v, int | float | np.number) for v in array[~missing]):
            array = np.array([0 if gone else v for v, gone in zip(array, missing, strict=True)])
        return np.ma.masked_array(array, missing) if missing.any() else array
    return values if hasattr(values, "unit") or np.ma.isMA(values) else np.asarray(values)


def _from_table(table: Any, name: str, wcs: Any, shape: tuple[int, int] | None,
                ) -> tuple[NDArray[np.float64], list[str] | None]:
    """Return positions and kinds from a table; assumptions become notices."""
    from deblendrt.engine.files import catalogues

    own = wcs if world.is_fits_wcs(wcs) and wcs.has_celestial else None
    try:
        found = catalogues.source_list(name, table, None if own is None else own.celestial, shape=shape)
    except ValueError:
        sky = catalogues.sky_columns(name, table) if wcs is not None and own is None else None
        if sky is None:
            raise
        from astropy import units  # a WCS of another package, or one that cannot take positions on the sky
        from astropy.coordinates import SkyCoord

        return world.sky_pixels(SkyCoord(*sky.T, unit=units.deg), wcs, name), None
    for note in found.notes:
        notify(note)
    if found.ids is not None:
        notify(f"{name}: the result has no place for the identifiers of the table; its rows are in the table's order")
    return np.array(found.centers, np.float64), found.kinds
