"""Units of a shard's work, and the files of their results."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from deblendrt.engine.adapters.input_rows import Outcome, columns
from deblendrt.engine.files import atomic_write
from deblendrt.engine.files.fits_check import FITS_BLOCK
from deblendrt.engine.files.sky_positions import to_icrs
from deblendrt.engine.files.tables.identifiers import fits_text
from deblendrt.engine.result.result import DeblendResult

UNITS = "units"  # folder of results
MAX_ERROR = 500  # letters: one long reason would widen the column for all rows
DIGEST = "DIGEST"  # card of a unit's primary header


@dataclasses.dataclass(frozen=True)
class Unit:
    """Inputs that are deblended together and written to one file.

    Attributes
    ----------
    number : int
    path : Path
        An image, or a catalogue of cutouts.
    start, stop : int
        The unit holds the inputs with the numbers start to stop - 1 of the whole run.
    row : int or None
        Row of the first input in the catalogue of cutouts; None for an image.
    """

    number: int
    path: Path
    start: int
    stop: int
    row: int | None = None

    def file(self, out: Path) -> Path:
        """Return the path of the unit's results."""
        return out / UNITS / f"{self.number // 1000:03d}" / f"{self.number:06d}.fits"


def unit_tables(unit: Unit, outcomes: list[Outcome], empty: DeblendResult,
           extra: tuple[Any, Any] | None = None) -> tuple[Table, Table]:
    """Return the tables of a unit's results.

    Parameters
    ----------
    unit : Unit
    outcomes : list of Outcome
        An outcome for each input of the unit.
    empty : DeblendResult
        A result without scenes, which gives the columns.
    extra : tuple, optional
        The identifiers of the catalogue and the WCS of an image that could be read. Each may be None.

    Returns
    -------
    catalog : Table
        A row per source, and one row for an input without sources.
    inputs : Table
        A row per input.
    """
    found = columns(outcomes, empty)
    number = found.pop("scene")
    found["error"] = np.array([text[:MAX_ERROR] for text in found["error"]], object)
    catalog = Table({"input": unit.start + number, **{name: _texts(values) for name, values in found.items()}})
    if unit.row is None:
        _add_catalog(catalog, outcomes[0], extra)
    n_row = np.bincount(number, minlength=len(outcomes))
    names = [f"{unit.path}:{unit.row + k}" if unit.row is not None else str(unit.path) for k in range(len(outcomes))]
    table = Table({"input": np.arange(unit.start, unit.stop), "name": _texts(np.array(names, object)),
                   "id": _texts(np.array([outcome.id for outcome in outcomes], object)),
                   "n_source": np.array([len(outcome.centers) for outcome in outcomes], np.int64), "n_row": n_row,
                   "error": _texts(found["error"][np.cumsum(n_row) - n_row])})
    return catalog, table


def _add_catalog(catalog: Table, outcome: Outcome, extra: tuple[Any, Any] | None) -> None:
    """Add the identifiers of an image's catalogue and the sky positions to the rows of its sources."""
    n = len(catalog)
    sky, ids = np.full((n, 2), np.nan), np.full(n, "", object)
    if extra is not None and outcome.result is not None:
        catalog_ids, wcs = extra
        if catalog_ids is not None:
            listed = min(len(catalog_ids), n)
            missing = np.ma.getmaskarray(catalog_ids)
            ids[:listed] = ["" if missing[k] else fits_text(catalog_ids[k]) for k in range(listed)]
            ids[listed:] = "-1"
        if wcs is not None:
            fitted = np.isfinite(np.asarray(catalog["x"], float))
            sky[fitted] = to_icrs(wcs, np.column_stack([catalog["x"][fitted], catalog["y"][fitted]]))
    catalog["catalog_id"], catalog["ra"], catalog["dec"] = _texts(ids), sky[:, 0], sky[:, 1]


def _texts(values: Any) -> Any:
    """Return columns of objects as ASCII text, which FITS requires; other characters become escapes."""
    if np.asarray(values).dtype.kind != "O":
        return values
    plain = [fits_text(value) for value in values]
    return np.array(plain) if plain else np.zeros(0, "U1")


def read_unit(file: Path, fingerprint: str, unit: Unit) -> Table | None:
    """Return the table of inputs from the file of a unit's results; None if the file is missing or damaged."""
    try:
        content = file.read_bytes()
        with fits.open(io.BytesIO(content)) as hdus:
            whole = hdus[0].header.get(DIGEST) == _digest(content)
            header, inputs = hdus["INPUTS"].header, Table(hdus["INPUTS"].data)
            n_row = len(hdus["CATALOG"].data)
    except Exception:  # astropy raises any class for a damaged file; the unit is computed again
        return None
    good = (whole and header.get("RUN") == fingerprint[:32] and header.get("UNIT") == unit.number
            and np.array_equal(inputs["input"], np.arange(unit.start, unit.stop))
            and int(inputs["n_row"].sum()) == n_row)
    return inputs if good else None


def write_unit(file: Path, fingerprint: str, unit: Unit, catalog: Table, inputs: Table) -> None:
    """Write a unit's results. The file appears whole or not at all, and only after its data are on the disk."""
    header = fits.Header([("RUN", fingerprint[:32], "of run.json"), ("UNIT", unit.number, "number of the unit")])
    hdus = [fits.PrimaryHDU(), *(fits.BinTableHDU(table.as_array(), header, name=name)
                                 for name, table in (("CATALOG", catalog), ("INPUTS", inputs)))]
    written = io.BytesIO()
    fits.HDUList(hdus).writeto(written)
    hdus[0].header[DIGEST] = _digest(written.getvalue())
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write.in_place_of(file) as partial, open(partial, "wb") as opened:
        fits.HDUList(hdus).writeto(opened)
        opened.flush()
        os.fsync(opened.fileno())  # before the file gets its name: a crash must not leave a name without data


def _digest(content: bytes) -> str:
    """Return the SHA-256 of everything after the primary header, so that damage is found before a file is reused."""
    return hashlib.sha256(content[FITS_BLOCK:]).hexdigest()
