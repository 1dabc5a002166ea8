"""A unit of a shard's work: what is computed and written at once, and the file of its results."""

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
from deblendrt.engine.files import output
from deblendrt.engine.result.result import DeblendResult

UNITS = "units"  # folder of results
DIGEST = "DIGEST"  # card of a unit's primary header


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is computed and written at once.

    Attributes
    ----------
    number : int
    path : Path
        An image, or a catalogue of cutouts.
    start, stop : int
        Numbers of the inputs among all, the latter one past the last.
    row : int or None
        The first input's row in the catalogue; None: an image.
    """

    number: int
    path: Path
    start: int
    stop: int
    row: int | None = None

    def file(self, out: Path) -> Path:
        """Where its results are."""
        return out / UNITS / f"{self.number // 1000:03d}" / f"{self.number:06d}.fits"


def unit_tables(unit: Unit, outcomes: list[Outcome], empty: DeblendResult,
           extra: tuple[Any, Any] | None = None) -> tuple[Table, Table]:
    """What became of a unit.

    Parameters
    ----------
    unit : Unit
    outcomes : list of Outcome
        Of its inputs.
    empty : DeblendResult
        Of no scene.
    extra : tuple, optional
        Of an image that could be read: the ids of its catalogue and its WCS, each may be None.

    Returns
    -------
    catalog : Table
        A row a source, and one for an input that has none.
    inputs : Table
        A row an input.
    """
    found = columns(outcomes, empty)
    number = found.pop("scene")
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
    """What an image's own list and WCS know of its sources."""
    n = len(catalog)
    sky, ids = np.full((n, 2), np.nan), np.full(n, "", object)
    if extra is not None and outcome.result is not None:
        catalog_ids, wcs = extra
        if catalog_ids is not None:
            listed = min(len(catalog_ids), n)
            ids[:listed] = [str(name) for name in catalog_ids[:listed]]
        if wcs is not None:
            fitted = np.isfinite(np.asarray(catalog["x"], float))
            sky[fitted] = np.column_stack(wcs.all_pix2world(catalog["x"][fitted], catalog["y"][fitted], 0))
    catalog["catalog_id"], catalog["ra"], catalog["dec"] = _texts(ids), sky[:, 0], sky[:, 1]


def _texts(values: Any) -> Any:
    """Columns of objects as text; FITS holds ASCII."""
    if np.asarray(values).dtype.kind != "O":
        return values
    plain = [str(value).encode("ascii", "replace").decode()[:500] for value in values]
    return np.array(plain) if plain else np.zeros(0, "U1")


def read_unit(file: Path, fingerprint: str, unit: Unit) -> Table | None:
    """The table of inputs of a unit's results; None where they are not there, or damaged."""
    try:
        content = file.read_bytes()
        with fits.open(io.BytesIO(content)) as hdus:
            whole = hdus[0].header.get(DIGEST) == _digest(content)
            header, inputs = hdus["INPUTS"].header, Table(hdus["INPUTS"].data)
            n_row = len(hdus["CATALOG"].data)
    except Exception:  # not there, or whatever a damaged file makes astropy say: the unit is done again
        return None
    good = (whole and header.get("RUN") == fingerprint[:32] and header.get("UNIT") == unit.number
            and np.array_equal(inputs["input"], np.arange(unit.start, unit.stop))
            and int(inputs["n_row"].sum()) == n_row)
    return inputs if good else None


def write_unit(file: Path, fingerprint: str, unit: Unit, catalog: Table, inputs: Table) -> None:
    """Write a unit's results; the file appears whole or not at all, and is on the disk when it does."""
    header = fits.Header([("RUN", fingerprint[:32], "of run.json"), ("UNIT", unit.number, "number of the unit")])
    hdus = [fits.PrimaryHDU(), *(fits.BinTableHDU(table.as_array(), header, name=name)
                                 for name, table in (("CATALOG", catalog), ("INPUTS", inputs)))]
    written = io.BytesIO()
    fits.HDUList(hdus).writeto(written)
    hdus[0].header[DIGEST] = _digest(written.getvalue())
    file.parent.mkdir(parents=True, exist_ok=True)
    with output.in_place_of(file) as partial, open(partial, "wb") as opened:
        fits.HDUList(hdus).writeto(opened)
        opened.flush()
        os.fsync(opened.fileno())  # before it gets its name: a machine that dies must not leave a name without data


def _digest(content: bytes) -> str:
    """Of all that follows the primary header: a shard's new manifest must not vouch for a file that is damaged."""
    return hashlib.sha256(content[output.FITS_BLOCK:]).hexdigest()
