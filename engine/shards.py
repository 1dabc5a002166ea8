"""``deblendrt run --shard i/N``: a long list of inputs, divided among processes that know nothing of each other.

    OUT/run.json              what is run: inputs, model, settings, and their fingerprint
    OUT/units/000/000012.fits results of one unit: an image, or some hundred rows of a catalogue of cutouts
    OUT/shards/3-of-8.json    manifest of a shard, written last: its units and their hashes; the mark that it is done

Unit k is shard k mod N's. A file of results appears whole or not at all, its bits depend on nothing but its inputs, and
one that is there is not computed again: a shard that was killed is started again as it was, with another N if wanted,
and two that do the same by mistake write the same bytes. No locks, so any shared file system will do. An input that
fails has its rows, with the reason in the column ``error``. `merge` sees to it that every input is there once.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from deblendrt.engine import job, output
from deblendrt.engine.cutout_catalog import CutoutCatalog
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.doctor import version
from deblendrt.engine.input_rows import NOT_THE_INPUT, Outcome, columns, deblend_inputs

UNIT_ROWS = 256  # cutouts a unit: some ten seconds' work, which is what a kill may cost
REVISION = 1
RUN, UNITS, SHARDS = "run.json", "units", "shards"
DIGEST = "DIGEST"  # card of a unit's primary header
SUFFIXES = (".fits", ".fit", ".fits.gz", ".fits.fz")


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


def parse_shard(text: str) -> tuple[int, int]:
    """``i/N``, i from 0 to N - 1."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise ValueError(f"--shard: expected i/N with i from 0 to N - 1, got {text}")
    return int(first), int(second)


def list_inputs(given: list[Path]) -> list[Path]:
    """Files of the command line: lists (``.txt``, ``.lst``) and folders are replaced by what they hold.

    Raises
    ------
    ValueError
        There is none, or one is named twice.
    """
    found: list[Path] = []
    for path in given:
        if path.suffix in (".txt", ".lst"):
            lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
            found += [path.parent / line for line in lines if line]
        elif path.is_dir():
            found += sorted(file for file in path.iterdir() if file.name.endswith((*SUFFIXES, ".parquet")))
        else:
            found.append(path)
    if not found:
        raise ValueError(f"no inputs in {', '.join(map(str, given))}")
    if twice := sorted({str(path) for path in found if found.count(path) > 1}) if len(set(found)) < len(found) else []:
        raise ValueError(f"inputs named twice: {', '.join(twice[:5])}")
    return found


def divide(paths: list[Path], cutouts: bool) -> list[Unit]:
    """All units, the same whoever asks.

    Parameters
    ----------
    paths : list of Path
    cutouts : bool
        FITS files are catalogues of cutouts too, as Parquet files always are.
    """
    units: list[Unit] = []
    start = 0
    for path in paths:
        if not (cutouts or path.suffix == ".parquet"):
            units.append(Unit(len(units), path, start, start + 1))
            start += 1
            continue
        n_row = CutoutCatalog(path).n_row
        for row in range(0, n_row, UNIT_ROWS):
            n = min(UNIT_ROWS, n_row - row)
            units.append(Unit(len(units), path, start, start + n, row))
            start += n
    return units


def run_shard(arguments: argparse.Namespace) -> None:
    """Do one shard's units that are not done yet; arguments as `deblendrt.engine.cli` parses them."""
    number, n_shard = arguments.shard
    say: Callable[[str], None] = (lambda line: None) if arguments.quiet else _log
    if arguments.overwrite:
        raise ValueError("--overwrite: other shards may be at work in the folder; use another --out")
    if arguments.stamps:
        raise ValueError("--stamps: with --shard, catalogues alone are written")
    out: Path = arguments.out
    paths = list_inputs(arguments.image)
    units = divide(paths, arguments.cutouts)
    deblender = Deblender.load(arguments.model, device=arguments.device)
    options = job.options(arguments)
    run = _describe(arguments, options, paths, units, deblender)
    _claim(out, run)
    mine = [unit for unit in units if unit.number % n_shard == number]
    say(f"shard {number}/{n_shard}: {len(mine)} of {len(units)} units, "
        f"{sum(unit.stop - unit.start for unit in mine)} of {units[-1].stop if units else 0} inputs")
    n_done = 0
    for unit in mine:
        file = unit.file(out)
        found = read_unit(file, run["fingerprint"], unit)
        if found is not None and not (arguments.retry_failed and any(found["error"])):
            n_done += 1
            continue
        clock = time.monotonic()
        inputs = list(_read(unit, arguments))
        catalog, table = deblend_unit(deblender, unit, inputs, options)
        _write(file, run["fingerprint"], unit, catalog, table)
        n_failed = int((np.asarray(table["error"]) != "").sum())
        say(f"unit {unit.number}: {len(table)} inputs, {len(catalog)} rows, {n_failed} failed, "
            f"{time.monotonic() - clock:.1f} s")
    _finish(out, run, number, n_shard, mine)
    say(f"shard {number}/{n_shard} done; {n_done} of its units were there already")


def deblend_unit(deblender: Deblender, unit: Unit, inputs: list[Any], options: dict[str, Any]) -> tuple[Table, Table]:
    """Deblend a unit.

    Parameters
    ----------
    deblender : Deblender
    unit : Unit
    inputs : list
        Scenes as `input_rows.deblend_inputs` takes them; ``_extra`` of an image: ids of its catalogue, and its WCS.
    options : dict
        Of `Deblender.deblend_batch`.

    Returns
    -------
    catalog : Table
        A row a source, and one for an input that has none.
    inputs : Table
        A row an input.
    """
    extras = [scene.pop("_extra") if isinstance(scene, dict) and "_extra" in scene else None for scene in inputs]
    outcomes = deblend_inputs(deblender, inputs, options)
    found = columns(outcomes, deblender.deblend_batch([], []))
    number = found.pop("scene")
    catalog = Table({"input": unit.start + number, **{name: _texts(values) for name, values in found.items()}})
    if unit.row is None:
        _add_catalog(catalog, outcomes[0], extras[0])
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


def _read(unit: Unit, arguments: argparse.Namespace) -> Iterator[Any]:
    """A unit's inputs; what cannot be read is an exception in its place."""
    if unit.row is not None:
        told = {name: value for name in ("bands", "zero_point", "pixel_scale", "kind")
                if (value := getattr(arguments, name)) is not None}
        for scene in CutoutCatalog(unit.path).rows(unit.row, unit.row + unit.stop - unit.start):
            yield scene if isinstance(scene, ValueError) else told | scene  # what a row says goes before
        return
    one = copy.copy(arguments)
    one.image = unit.path
    if arguments.catalog is not None:
        one.catalog = Path(str(arguments.catalog).format(stem=unit.path.name.split(".")[0], folder=unit.path.parent))
    try:
        image, catalog, _ = job.read(one)
    except NOT_THE_INPUT:
        raise
    except Exception as error:  # of astropy, for a file of any kind
        yield error
        return
    kind = arguments.kind or catalog.kinds
    yield {"image": image.image, "centers": catalog.centers, "variance": image.variance, "mask": image.mask,
           "psf": image.psf, "bands": image.bands, "zero_point": image.zero_point, "pixel_scale": image.pixel_scale,
           "kind": kind, "id": unit.path.name, "_extra": (catalog.ids, image.wcs)}


def _describe(arguments: argparse.Namespace, options: dict[str, Any], paths: list[Path], units: list[Unit],
              deblender: Deblender) -> dict[str, Any]:
    """What results depend on, and its fingerprint."""
    told = {name: str(value) for name in ("catalog", "one_based", "detect", "threshold", "kind", "bands", "zero_point",
                                          "pixel_scale", "psf", "bad_bits")
            if (value := getattr(arguments, name)) is not None}
    run: dict[str, Any] = {
        "revision": REVISION, "deblendrt": version("deblendrt") or "unknown", "model": deblender.bundle.name,
        "model_sha256": deblender.bundle.sha256, "options": {**options, "n_threads": None}, "told": told,
        "n_unit": len(units), "n_input": units[-1].stop if units else 0,
        "inputs_sha256": hashlib.sha256("\n".join(
            f"{unit.path} {unit.row} {unit.stop - unit.start}" for unit in units).encode()).hexdigest(),
        "first_inputs": [str(path) for path in paths[:3]]}
    run["fingerprint"] = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    return run


def _claim(out: Path, run: dict[str, Any]) -> None:
    """Write what is run, or see that the folder holds the same."""
    for folder in (out / UNITS, out / SHARDS):
        folder.mkdir(parents=True, exist_ok=True)
    path = out / RUN
    if not path.exists():
        _write_json(path, run)
    there = json.loads(path.read_text())
    if there != run:
        other = [name for name in run if there.get(name) != run[name] and name != "fingerprint"]
        raise ValueError(f"{out} holds results of another run, with other {', '.join(other)}: use another --out")


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


def _write(file: Path, fingerprint: str, unit: Unit, catalog: Table, inputs: Table) -> None:
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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with output.in_place_of(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def _finish(out: Path, run: dict[str, Any], number: int, n_shard: int, mine: list[Unit]) -> None:
    """Write a shard's manifest."""
    units = [{"unit": unit.number, "file": str(unit.file(out).relative_to(out)), "start": unit.start, "stop": unit.stop,
              "sha256": _sha256(unit.file(out))} for unit in mine]
    _write_json(out / SHARDS / f"{number}-of-{n_shard}.json",
                {"revision": REVISION, "fingerprint": run["fingerprint"], "shard": number, "n_shard": n_shard,
                 "units": units})
    output.remove_stale(out, RUN)  # what else is there is not of the shards
    for folder in {out / SHARDS, *(unit.file(out).parent for unit in mine)}:
        output.remove_stale(folder)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _log(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}", file=sys.stderr, flush=True)
