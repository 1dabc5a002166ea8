"""``deblendrt merge``: the results of all shards as one catalogue, in which every input occurs once.

A unit may be in several manifests: after a run with another N, or after failed inputs were tried again. The manifests
then hold different hashes if the results differ. The file must have the hash of one of these manifests, because the
process that wrote the file last also wrote a manifest. A file that was damaged, or written by a process that has not
finished, is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack

from deblendrt.engine.adapters.shards.run_shard import RUN_FILE, SHARD_REVISION, SHARDS
from deblendrt.engine.files import atomic_write


@dataclasses.dataclass(frozen=True)
class Merged:
    """Summary of a merge.

    Attributes
    ----------
    n_input, n_row, n_failed : int
    missing : list of int
        Units without results.
    """

    n_input: int
    n_row: int
    n_failed: int
    missing: list[int]


def merge(folder: str | Path, target: str | Path, *, partial: bool = False, overwrite: bool = False) -> Merged:
    """Merge a run's shards.

    Parameters
    ----------
    folder : str or Path
        The folder ``--out`` of the shards.
    target : str or Path
        A ``.parquet`` file (needs the extra ``parquet``) is written unit by unit, with the inputs beside it in
        ``<name>.inputs.parquet``. Other names give FITS with the tables CATALOG and INPUTS, which are held in memory.
    partial : bool
        Merge the existing units even if others are missing.
    overwrite : bool

    Returns
    -------
    Merged

    Raises
    ------
    ValueError
        Units are missing, damaged or of another run, or differ from every manifest.
    FileExistsError
        The target exists.
    """
    folder, target = Path(folder), Path(target)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists: use another --out, or --overwrite")
    atomic_write.check_target(target)
    if target.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ImportError('catalogues in Parquet need pyarrow: pip install "deblendrt[parquet]"')
    run = _json(folder / RUN_FILE)
    units = _units(folder, run)
    missing = sorted(set(range(run["n_unit"])) - set(units))
    if missing and not partial:
        raise ValueError(f"{folder}: {len(missing)} of {run['n_unit']} units are not there, among them "
                         f"{', '.join(map(str, missing[:10]))}: run their shards again, or take the rest with "
                         "--partial")
    edges = [(units[k]["start"], units[k]["stop"]) for k in sorted(units)]
    if not missing and [0, *(stop for _, stop in edges)] != [*(start for start, _ in edges), run["n_input"]]:
        raise ValueError(f"{folder}: the manifests' units do not cover the {run['n_input']} inputs once")
    counts = np.zeros(3, np.int64)
    for name in (target.name, _beside(target).name):
        atomic_write.remove_stale(target.parent, name)
    write = _write_parquet if target.suffix == ".parquet" else _write_fits
    write(target, _tables(folder, [units[k] for k in sorted(units)], counts))
    n_input, n_row, n_failed = counts.tolist()
    return Merged(n_input, n_row, n_failed, missing)


def _units(folder: Path, run: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the units of all manifests by number; ``sha256`` is the set of hashes that the manifests give."""
    units: dict[int, dict[str, Any]] = {}
    for path in sorted((folder / SHARDS).glob("*.json")):
        manifest = _json(path)
        if manifest["fingerprint"] != run["fingerprint"]:
            raise ValueError(f"{path}: of another run than {RUN_FILE}")
        for unit in manifest["units"]:
            known = units.setdefault(unit["unit"], unit | {"sha256": set()})
            if known | {"sha256": unit["sha256"]} != unit:
                raise ValueError(f"{path}: unit {unit['unit']} has other inputs than in another manifest")
            known["sha256"].add(unit["sha256"])
    return units


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict) or found.get("revision") != SHARD_REVISION:
        raise ValueError(f"{path}: expected revision {SHARD_REVISION} of a run's files")
    return found


def _tables(folder: Path, units: list[dict[str, Any]], counts: Any) -> Iterator[tuple[Table, Table]]:
    """Yield the checked rows and inputs of each unit, and count its inputs, rows and failed inputs."""
    for unit in units:
        path = folder / unit["file"]
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() not in unit["sha256"]:
            raise ValueError(f"{path}: changed since its shard was done: run the shard again")
        with fits.open(io.BytesIO(content)) as hdus:  # the checked bytes: a shard may write to the file now
            catalog, inputs = Table(hdus["CATALOG"].data), Table(hdus["INPUTS"].data)
        counts += [len(inputs), len(catalog), int((np.asarray(inputs["error"]) != "").sum())]
        yield catalog, inputs


def _write_fits(target: Path, parts: Iterator[tuple[Table, Table]]) -> None:
    every = list(parts)
    tables = [vstack([part[k] for part in every], metadata_conflicts="silent") if every else Table() for k in (0, 1)]
    hdus = [fits.PrimaryHDU(), *(fits.BinTableHDU(table, name=name)
                                 for table, name in zip(tables, ("CATALOG", "INPUTS"), strict=True))]
    with atomic_write.in_place_of(target) as partial:
        fits.HDUList(hdus).writeto(partial, overwrite=True)


def _write_parquet(target: Path, parts: Iterator[tuple[Table, Table]]) -> None:
    import pyarrow
    import pyarrow.parquet

    with atomic_write.in_place_of(_beside(target)) as partial_inputs, atomic_write.in_place_of(target) as partial:
        writers: list[Any] = []
        try:
            for tables in parts:
                arrow = [pyarrow.table({name: _plain(table[name]) for name in table.colnames}) for table in tables]
                if not writers:
                    writers = [pyarrow.parquet.ParquetWriter(path, table.schema)
                               for path, table in zip((partial, partial_inputs), arrow, strict=True)]
                for writer, table in zip(writers, arrow, strict=True):
                    writer.write_table(table)
            if not writers:
                for path in (partial, partial_inputs):
                    pyarrow.parquet.write_table(pyarrow.table({}), path)
        finally:
            for writer in writers:
                writer.close()


def _beside(target: Path) -> Path:
    """Return the path of the inputs that belong to a catalogue in Parquet."""
    return target.with_name(f"{target.stem}.inputs.parquet")


def _plain(column: Any) -> Any:
    """Return a column in the machine's byte order; text becomes str."""
    values = np.asarray(column)
    if values.dtype.kind in "SU":
        return [str(value) for value in np.char.strip(values.astype(str))]
    return values.astype(values.dtype.newbyteorder("="))
