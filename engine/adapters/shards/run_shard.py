"""``deblendrt run --shard i/N``: a long list of inputs, divided among processes that know nothing of each other.

    OUT/run.json              what is run: inputs, model, settings, and their fingerprint
    OUT/units/000/000012.fits results of one unit: an image, or some hundred rows of a catalogue of cutouts
    OUT/in_progress/000012    mark of a unit at work, or of one that ended its process: see `crash_marks`
    OUT/shards/3-of-8.json    manifest of a shard, written last: its units and their hashes; the mark that it is done

Unit k is shard k mod N's. A file of results appears whole or not at all, its bits depend on nothing but its inputs, and
one that is there is not computed again: a shard that was killed is started again as it was, with another N if wanted,
and two that do the same by mistake write the same bytes. No locks, so any shared file system will do. An input that
fails has its rows, with the reason in the column ``error``. `merge` sees to it that every input is there once.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from deblendrt.engine.adapters.cli import deblend_files
from deblendrt.engine.adapters.input_rows import NOT_THE_INPUT, Outcome, deblend_inputs, failed
from deblendrt.engine.adapters.shards import crash_marks
from deblendrt.engine.adapters.shards.work_units import UNITS, Unit, read_unit, unit_tables, write_unit
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.files import output
from deblendrt.engine.files.cutouts import CutoutCatalog
from deblendrt.engine.files.installation import package_version

UNIT_ROWS = 256  # cutouts a unit: some ten seconds' work, which is what a kill may cost
SHARD_REVISION = 1
RUN_FILE, SHARDS = "run.json", "shards"
SUFFIXES = (".fits", ".fit", ".fits.gz", ".fits.fz")


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


def split_into_units(paths: list[Path], cutouts: bool) -> list[Unit]:
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
    """Do one shard's units that are not done yet; arguments as `deblendrt.engine.adapters.cli.main` parses them."""
    number, n_shard = arguments.shard
    say: Callable[[str], None] = (lambda line: None) if arguments.quiet else _log
    if arguments.overwrite:
        raise ValueError("--overwrite: other shards may be at work in the folder; use another --out")
    if arguments.stamps:
        raise ValueError("--stamps: with --shard, catalogues alone are written")
    max_kills = crash_marks.MAX_KILLS if arguments.max_kills is None else arguments.max_kills
    if max_kills < 2:
        raise ValueError("--max-kills: expected 2 or more, for one may be anybody's kill -9")
    out: Path = arguments.out
    paths = list_inputs(arguments.image)
    units = split_into_units(paths, arguments.cutouts)
    deblender = Deblender.load(arguments.model, device=arguments.device)
    options = deblend_files.options(arguments)
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
        table = _do(deblender, unit, arguments, options, run["fingerprint"], max_kills)
        n_failed = int((np.asarray(table["error"]) != "").sum())
        say(f"unit {unit.number}: {len(table)} inputs, {table['n_row'].sum()} rows, {n_failed} failed, "
            f"{time.monotonic() - clock:.1f} s")
    _finish(out, run, number, n_shard, mine)
    say(f"shard {number}/{n_shard} done; {n_done} of its units were there already")


def _do(deblender: Deblender, unit: Unit, arguments: argparse.Namespace, options: dict[str, Any], fingerprint: str,
        max_kills: int) -> Table:
    """Do a unit and write its results; after a kill, its inputs one by one. Returns the table of its inputs."""
    def write(outcomes: list[Outcome], extra: Any = None) -> Table:
        catalog, table = unit_tables(unit, outcomes, deblender.deblend_batch([], []), extra)
        write_unit(unit.file(arguments.out), fingerprint, unit, catalog, table)
        return table

    n, mark = unit.stop - unit.start, crash_marks.mark(arguments.out, unit.number)
    n_kill = crash_marks.n_kill(mark)
    if n_kill >= max_kills:  # not even read; the mark stays, or the shard's next start would try it again
        return write([failed(None, ValueError(crash_marks.crash_reason(n_kill, n)))] * n)
    if n == 1 or not n_kill:
        with crash_marks.at_work(mark):
            inputs = list(_read(unit, arguments))
            extra = inputs[0].pop("_extra", None) if unit.row is None and isinstance(inputs[0], dict) else None
            return write(deblend_inputs(deblender, inputs, options), extra)
    with crash_marks.at_work(mark, part=True):
        inputs = list(_read(unit, arguments))
    outcomes = _one_by_one(deblender, inputs, options, mark, max_kills)
    with crash_marks.at_work(mark, part=True):
        return write(outcomes)


def _one_by_one(deblender: Deblender, inputs: list[Any], options: dict[str, Any], mark: Path,
                max_kills: int) -> list[Outcome]:
    """`deblend_inputs` with a mark for each, to learn which kills: the same bits, for they depend on no neighbour."""
    outcomes: list[Outcome] = []
    for k, given in enumerate(inputs):
        own = crash_marks.mark_of_input(mark, k)
        n_kill = crash_marks.n_kill(own)
        if n_kill >= max_kills:
            outcomes.append(failed(given, ValueError(crash_marks.crash_reason(n_kill, 1))))
        else:
            with crash_marks.at_work(own):
                outcomes += deblend_inputs(deblender, [given], options)
    return outcomes


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
        image, catalog, _ = deblend_files.read_inputs(one)
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
        "revision": SHARD_REVISION, "deblendrt": package_version("deblendrt") or "unknown",
        "model": deblender.bundle.name,
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
    path = out / RUN_FILE
    if not path.exists():
        _write_json(path, run)
    there = json.loads(path.read_text())
    if there != run:
        other = [name for name in run if there.get(name) != run[name] and name != "fingerprint"]
        raise ValueError(f"{out} holds results of another run, with other {', '.join(other)}: use another --out")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with output.in_place_of(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def _finish(out: Path, run: dict[str, Any], number: int, n_shard: int, mine: list[Unit]) -> None:
    """Write a shard's manifest; only now may a unit that was given up be tried again, with --retry-failed."""
    units = [{"unit": unit.number, "file": str(unit.file(out).relative_to(out)), "start": unit.start, "stop": unit.stop,
              "sha256": _sha256(unit.file(out))} for unit in mine]
    _write_json(out / SHARDS / f"{number}-of-{n_shard}.json",
                {"revision": SHARD_REVISION, "fingerprint": run["fingerprint"], "shard": number, "n_shard": n_shard,
                 "units": units})
    numbers = {unit.number for unit in mine}
    for k, mark in crash_marks.marks(out):
        if k in numbers:
            mark.unlink(missing_ok=True)
    output.remove_stale(out, RUN_FILE)  # what else is there is not of the shards
    for folder in {out / SHARDS, out / crash_marks.CRASH_MARKS, *(unit.file(out).parent for unit in mine)}:
        output.remove_stale(folder)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _log(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}", file=sys.stderr, flush=True)
