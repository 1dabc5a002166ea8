"""Identifiers and kinds of a catalogue's sources, and the form in which FITS can hold identifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from astropy.table import MaskedColumn, Table

ID_COLUMNS = ("id", "objectid", "object_id", "objid", "source_id", "sourceid", "coadd_object_id", "number", "label",
              "name")
KINDS = ("galaxy", "star", "auto")


def by_small_letters(table: Table) -> dict[str, str]:
    """Return the table's names of columns by the names in small letters. A name in small letters has precedence."""
    found = {name.lower(): name for name in reversed(table.colnames)}
    return found | {name: name for name in table.colnames if name == name.lower()}


def identifiers(table: Table, where: str = "catalogue", told: Mapping[str, str] | None = None,
                notes: list[str] | None = None) -> tuple[Any, list[str] | None]:
    """Return the identifiers (`ID_COLUMNS`) and the kinds of a table's sources; None if the column is missing."""
    told, columns = told or {}, by_small_letters(table)
    key = told.get("id", next((columns[name] for name in ID_COLUMNS if name in columns), None))
    word = told.get("kind", columns.get("kind"))
    return (None if key is None else _ids(where, key, table[key]),
            None if word is None else _kinds(where, word, table[word], notes))


def _ids(where: str, name: str, column: Any) -> Any:
    """Return identifiers as a masked array of int64, float64 or str; masked where there is none."""
    values = np.ma.asarray(column)
    if values.ndim != 1:
        raise ValueError(f"{where}: column {name!r}: expected an identifier in each row, got arrays {values.shape[1:]}")
    data, missing = np.ma.getdata(values), np.ma.getmaskarray(values).copy()
    if data.dtype.kind in "iu" and (data.dtype.kind == "i" or not len(data) or data.max() < 2**63):
        return np.ma.array(data.astype(np.int64), mask=missing)
    if data.dtype.kind == "f":
        missing |= ~np.isfinite(data)  # pandas turns integers with gaps into floats
        whole = np.where(missing, 0, data)
        if (whole == np.rint(whole)).all() and (np.abs(whole) < 2**53).all():
            return np.ma.array(whole.astype(np.int64), mask=missing)
        return np.ma.array(data.astype(np.float64), mask=missing)
    texts = ["" if gone or value is None else value.decode() if isinstance(value, bytes) else str(value)
             for value, gone in zip(data.tolist(), missing.tolist(), strict=True)]
    texts = [text.strip() for text in texts]
    return np.ma.array(np.array(texts, str) if texts else np.zeros(0, "U1"), mask=[not text for text in texts])


def _kinds(where: str, name: str, column: Any, notes: list[str] | None) -> list[str]:
    """Return the kinds of sources. A missing kind is "galaxy", the default of `Deblender.deblend_batch`."""
    values = np.ma.asarray(column)
    words = ["" if gone or value is None else str(value.decode() if isinstance(value, bytes) else value).strip().lower()
             for value, gone in zip(np.ma.getdata(values), np.ma.getmaskarray(values), strict=True)]
    if other := sorted({word for word in words if word and word not in KINDS}):
        raise ValueError(f"{where}: column {name!r}: expected {', '.join(KINDS)}, found {other[0][:40]!r}")
    if "" in words and notes is not None:
        notes.append(f"{where}: {words.count('')} sources without a kind are taken as galaxies")
    return [word or "galaxy" for word in words]


def fits_text(value: Any) -> str:
    """Return text that FITS can hold, ASCII without control characters; other characters become escapes of Python."""
    text = str(value).encode("ascii", "backslashreplace").decode()
    return "".join(letter if " " <= letter <= "~" else f"\\x{ord(letter):02x}" for letter in text)


def id_column(ids: Any, n_row: int) -> MaskedColumn:
    """Return the column ``catalog_id`` of a result's `n_row` rows: -1 for the sources that were found, after the list.

    Parameters
    ----------
    ids : masked array (n_source,)
        The catalogue's identifiers.
    n_row : int
        At least n_source.
    """
    n_found = n_row - len(ids)
    missing = np.concatenate([np.ma.getmaskarray(ids), np.zeros(n_found, bool)])
    about = "id of the catalogue; -1: found in the residual"
    if ids.dtype.kind in "if":
        values = np.concatenate([np.ma.getdata(ids), np.full(n_found, -1, ids.dtype)])
        column = MaskedColumn(values, mask=missing, name="catalog_id", description=about)
        column.fill_value = np.iinfo(np.int64).min if ids.dtype.kind == "i" else np.nan
        return column
    texts = [fits_text(text) for text in ids.filled("")] + ["-1"] * n_found
    return MaskedColumn(np.array(texts, str) if texts else np.zeros(0, "U1"), mask=missing, name="catalog_id",
                        description=about, fill_value="")
