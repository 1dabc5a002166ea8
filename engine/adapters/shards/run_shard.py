"""``deblendrt run --shard i/N``: a long list of inputs, divided among processes that do not talk to each other.

    OUT/run.json              the run: inputs, model, settings, and their fingerprint
    OUT/units/000/000012.fits results of one unit: an image, or some hundred rows of a catalogue of cutouts
    OUT/in_progress/000012    mark of a unit in progress, or of a unit that ended its process: see `crash_marks`
    OUT/shards/3-of-8.json    manifest of a finished shard: its units and their hashes

Shard k mod N does unit k. A file of results appears whole or not at all, and its bits depend only on its inputs. An
existing file is not computed again: a killed shard is started again with the same command, or with another N. Two
processes that do the same unit by mistake write the same bytes. There are no locks, so any shared file system will do.
An input that fails keeps its rows, with the reason in the column ``error``. `merge` checks that every input occurs
once.
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

from deblendrt.engine.adapters import image_inputs
from deblendrt.engine.adapters.input_rows import NOT_THE_INPUT, Outcome, deblend_inputs, failed
from deblendrt.engine.adapters.shards import crash_marks
from deblendrt.engine.adapters.shards.work_units import UNITS, Unit, read_unit, unit_tables, write_unit
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.files import atomic_write
from deblendrt.engine.files.cutouts import CutoutCatalog
from deblendrt.engine.files.installation import package_version

UNIT_ROWS = 256  # cutouts per unit: a kill then loses some ten seconds of work
SHARD_REVISION = 1
RUN_FILE, SHARDS = "run.json", "shards"
SUFFIXES = (".fits", ".fit", ".fits.gz", ".fits.fz")


def parse_shard(text: str) -> tuple[int, int]:
    """Return i and N of a text ``i/N``; i is 0 to N - 1."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise ValueError(f"--shard: expected i/N with i from 0 to N - 1, got {text}")
    return int(first), int(second)


def list_inputs(given: list[Path]) -> list[Path]:
    """Return the files that the command line names. Lists (``.txt``, ``.lst``) and folders are replaced by their files.

    Raises
    ------
    ValueError
        There is no file, or a file is named twice.
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
    """Divide the inputs of a run into units. All shards get the same units.

    Parameters
    ----------
    paths : list of Path
    cutouts : bool
        Whether FITS files are catalogues of cutouts and not images. Parquet files are always catalogues of cutouts.
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
    """Compute the missing units of a shard; `deblendrt.engine.adapters.cli.main` parses the arguments."""
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
    atomic_write.claim_folder(out)
    paths = list_inputs(arguments.image)
    units = split_into_units(paths, arguments.cutouts)
    for_images = [name for name in ("catalog", "columns", "detect", "psf", "bad_bits", "variance", "weight",
                                  "error", "mask") if getattr(arguments, name)]
    if units and for_images and all(unit.row is not None for unit in units):
        raise ValueError(f"--{for_images[0].replace('_', '-')}: for images, but all inputs are catalogues of cutouts")
    deblender = Deblender.load(arguments.model, device=arguments.device)
    options = image_inputs.options(arguments)
    run = _describe(arguments, options, paths, units, deblender)
    _claim(out, run)
    mine = [unit for unit in units if unit.number % n_shard == number]
    say(f"shard {number}/{n_shard}: {len(mine)} of {len(units)} units, "
        f"{sum(unit.stop - unit.start for unit in mine)} of {units[-1].stop if units else 0} inputs")
    n_done = n_lost = 0
    for unit in mine:
        file = unit.file(out)
        found = read_unit(file, run["fingerprint"], unit)
        if found is not None and not (arguments.retry_failed and any(found["error"])):
            n_done += 1
            n_lost += sum(bool(error) for error in found["error"])
            continue
        clock = time.monotonic()
        with image_inputs.gathered_notices() as notices:
            table = _do(deblender, unit, arguments, options, run["fingerprint"], max_kills)
        for text in notices:
            say(f"unit {unit.number}: {text}")
        n_failed = int((np.asarray(table["error"]) != "").sum())
        n_lost += n_failed
        say(f"unit {unit.number}: {len(table)} inputs, {table['n_row'].sum()} rows, {n_failed} failed, "
            f"{time.monotonic() - clock:.1f} s")
    _finish(out, run, number, n_shard, mine)
    say(f"shard {number}/{n_shard} done; {n_done} of its units were there already; {n_lost} inputs failed")
    if n_lost and n_lost == sum(unit.stop - unit.start for unit in mine):
        _log(f"shard {number}/{n_shard}: EVERY INPUT FAILED; the column error of its units has the reasons")


def _do(deblender: Deblender, unit: Unit, arguments: argparse.Namespace, options: dict[str, Any], fingerprint: str,
        max_kills: int) -> Table:
    """Deblend a unit, write its results and return the table of its inputs. After a kill, inputs are done singly."""
    def write(outcomes: list[Outcome], extra: Any = None) -> Table:
        catalog, table = unit_tables(unit, outcomes, deblender.deblend_batch([], []), extra)
        write_unit(unit.file(arguments.out), fingerprint, unit, catalog, table)
        return table

    n, mark = unit.stop - unit.start, crash_marks.mark(arguments.out, unit.number)
    n_kill = crash_marks.n_kill(mark)
    if n_kill >= max_kills:  # the input is not read; the mark stays, so that the next start does not try again
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
    """Deblend inputs singly, each with a mark of its own, to find the input that kills. The results have the same
    bits, because they do not depend on the other inputs."""
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
    """Yield a unit's inputs. An exception stands for an input that cannot be read."""
    if unit.row is not None:
        told = {name: value for name in ("bands", "zero_point", "pixel_scale", "kind")
                if (value := getattr(arguments, name)) is not None}
        if isinstance(arguments.zero_point, dict):
            raise ValueError("--zero-point: for catalogues of cutouts a number, or numbers in the order of the bands")
        for scene in CutoutCatalog(unit.path).rows(unit.row, unit.row + unit.stop - unit.start):
            if not isinstance(scene, ValueError):
                scene = told | scene  # the row's own values have precedence
                scene["centers"] = scene["centers"] - float(arguments.one_based)
            yield scene
        return
    one = copy.copy(arguments)
    one.image = unit.path
    if arguments.catalog is not None:
        one.catalog = Path(str(arguments.catalog).format(stem=unit.path.name.split(".")[0], folder=unit.path.parent))
    try:
        image, catalog, notes = image_inputs.read_inputs(one)
    except NOT_THE_INPUT:
        raise
    except Exception as error:  # astropy raises any class for a damaged file
        yield error
        return
    for note in () if arguments.quiet else notes:
        _log(f"{unit.path.name}: {note}")
    kind = arguments.kind or catalog.kinds
    yield {"image": image.image, "centers": catalog.centers, "variance": image.variance, "mask": image.mask,
           "psf": image.psf, "bands": image.bands, "zero_point": image.zero_point, "pixel_scale": image.pixel_scale,
           "kind": kind, "id": unit.path.name, "_extra": (catalog.ids, image.wcs)}


def _describe(arguments: argparse.Namespace, options: dict[str, Any], paths: list[Path], units: list[Unit],
              deblender: Deblender) -> dict[str, Any]:
    """Return everything that the results depend on, and its fingerprint."""
    told = {name: str(value) for name in ("catalog", "one_based", "columns", "detect", "threshold", "kind", "bands",
                                          "zero_point", "pixel_scale", "psf", "bad_bits", "variance", "weight", "error",
                                          "mask")
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
    """Write the description of the run, or check that the folder holds the same run."""
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
    with atomic_write.in_place_of(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def _finish(out: Path, run: dict[str, Any], number: int, n_shard: int, mine: list[Unit]) -> None:
    """Write a shard's manifest and remove its marks, so that --retry-failed may try units again."""
    units = [{"unit": unit.number, "file": str(unit.file(out).relative_to(out)), "start": unit.start, "stop": unit.stop,
              "sha256": _sha256(unit.file(out))} for unit in mine]
    _write_json(out / SHARDS / f"{number}-of-{n_shard}.json",
                {"revision": SHARD_REVISION, "fingerprint": run["fingerprint"], "shard": number, "n_shard": n_shard,
                 "units": units})
    numbers = {unit.number for unit in mine}
    for k, mark in crash_marks.marks(out):
        if k in numbers:
            mark.unlink(missing_ok=True)
    atomic_write.remove_stale(out, RUN_FILE)
    for folder in {out / SHARDS, out / crash_marks.CRASH_MARKS, *(unit.file(out).parent for unit in mine)}:
        atomic_write.remove_stale(folder)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _log(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}", file=sys.stderr, flush=True)
