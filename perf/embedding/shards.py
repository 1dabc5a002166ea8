"""Shards, broken on purpose.

    python -m perf.embedding.shards

Processes of ``deblendrt run --shard`` work on a catalogue of the frozen alert cutouts. Meanwhile the script kills them,
gives one shard to two of them, damages a file, and fills a file system. Then it counts rows.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from deblendrt.engine.adapters.shards.merge import merge
from perf.embedding import record
from perf.gate import cases

PRELOAD = ("import sys; from deblendrt.engine.adapters.cli.main import main; "
           "from deblendrt.engine.adapters.shards import run_shard; run_shard.UNIT_ROWS = {rows}; "
           "sys.exit(main(sys.argv[1:]))")  # small units, so that kills meet unfinished shards


def write_catalog(path: Path, n: int) -> None:
    """Write the first cutouts of the case "burst", one of them with centres that make no sense."""
    scenes = [scene for together in cases.CASES["burst"].scenes(n) for scene in together]
    centers = np.empty(n, object)
    centers[:] = [scene.centers.ravel() for scene in scenes]
    centers[n // 2] = np.zeros(3)
    images, variances = (np.array([getattr(scene, name) for scene in scenes], np.float32)
                         for name in ("image", "variance"))
    shape = str(images.shape[:0:-1])
    width = images[0].size
    table = fits.BinTableHDU.from_columns([
        fits.Column("image", f"{width}E", array=images.reshape(n, -1), dim=shape),
        fits.Column("variance", f"{width}E", array=variances.reshape(n, -1), dim=shape),
        fits.Column("centers", "PD()", array=centers),
        fits.Column("bands", "1A", array=np.array([scenes[0].bands[0]] * n)),
        fits.Column("id", "12A", array=np.array([f"alert-{k}" for k in range(n)]))])
    table.writeto(path)


def start(catalog: Path, out: Path, shard: str, rows: int) -> subprocess.Popen[str]:
    """Start a process that does a shard."""
    return subprocess.Popen(command(catalog, out, shard, rows), stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def command(catalog: Path, out: Path, shard: str, rows: int) -> list[str]:
    """The command ``deblendrt run`` with small units."""
    return [sys.executable, "-c", PRELOAD.format(rows=rows), "run", str(catalog), "--cutouts", "--shard", shard,
            "--out", str(out), "--zero-point", "31.4", "--threads", "1",
            "--max-kills", "100"]  # the kills are not the fault of an input


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; return its exit status and its messages."""
    said = process.communicate()[1]
    return process.returncode, said


def count(out: Path, n: int) -> tuple[Table, int, int]:
    """Merge the shards; return the catalogue and the numbers of lost and repeated inputs."""
    target = out / "all.fits"
    merge(out, target, overwrite=True)
    with fits.open(target) as hdus:
        catalog, inputs = Table(hdus["CATALOG"].data), Table(hdus["INPUTS"].data)
    times = np.bincount(np.asarray(inputs["input"]), minlength=n)
    lost = n - len(np.intersect1d(np.asarray(catalog["input"]), np.arange(n)))
    return catalog, lost, int((times > 1).sum())


def measure(n: int, rows: int) -> tuple[list[record.Fault], dict[str, Any]]:
    """Cause all faults in turn; return them and the figures."""
    faults: list[record.Fault] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        catalog = root / "cutouts.fits"
        write_catalog(catalog, n)
        clock = time.perf_counter()
        assert finish(start(catalog, root / "whole", "0/1", rows))[0] == 0
        alone = time.perf_counter() - clock
        reference, lost, repeated = count(root / "whole", n)
        faults.append(record.fault("an input that makes no sense", "three numbers as centres", n, lost, repeated,
                                   "its row says why"))

        clock = time.perf_counter()
        both = [start(catalog, root / "two", f"{i}/2", rows) for i in range(2)]
        assert [finish(process)[0] for process in both] == [0, 0]
        together = time.perf_counter() - clock

        rng, kills, out = random.Random(0), 0, root / "killed"
        written: dict[Path, int] = {}
        redone = 0
        while True:
            process = start(catalog, out, "0/1", rows)
            assert process.stderr is not None
            if kills < 12:
                for line in process.stderr:
                    if " units, " in line or rng.random() < 0.4:
                        break
                time.sleep(rng.uniform(0, 0.4))
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                process.stderr.close()
            status = process.wait() if process.stderr.closed else finish(process)[0]
            for path in (out / "units").rglob("[0-9]*.fits"):
                redone += written.setdefault(path, path.stat().st_mtime_ns) != path.stat().st_mtime_ns
            if status == 0:
                break
        faults.append(compare("kill -9 at random moments", f"{kills} times, started again each time", out, n, reference,
                              f"{redone} finished units done again"))

        out = root / "same"
        twins = [start(catalog, out, "0/1", rows) for _ in range(2)]
        assert [finish(process)[0] for process in twins] == [0, 0]
        faults.append(compare("one shard given to two processes", "at the same time", out, n, reference, "same bytes"))

        out = root / "killed"
        victim = sorted((out / "units").rglob("[0-9]*.fits"))[1]
        victim.write_bytes(victim.read_bytes()[:5000])
        try:
            merge(out, root / "never.fits")
            noticed = "not noticed"
        except ValueError:
            noticed = "the merger refuses; the shard mends it"
        assert finish(start(catalog, out, "0/1", rows))[0] == 0
        faults.append(compare("a file of results cut short", "then the shard again", out, n, reference, noticed))

        out = root / "limited"
        limited = subprocess.run(["bash", "-c", "ulimit -f 8; trap '' XFSZ; exec \"$0\" \"$@\"",
                                  *command(catalog, out, "0/1", rows)], capture_output=True, text=True, check=False)
        said = limited.stderr.strip().splitlines()[-1] if limited.stderr else ""
        assert finish(start(catalog, out, "0/1", rows))[0] == 0
        faults.append(compare("no room for results", "files limited to 8 kB, then without the limit", out, n,
                              reference, f"exit status {limited.returncode}, {said.partition('error: ')[2][:60]}"))
    n_source = int((np.asarray(reference["error"]) == "").sum())
    return faults, {"cutouts": n, "sources": n_source, "one_process_seconds": alone, "two_processes_seconds": together,
                    "cutouts_per_second_two_processes": n / together}


def compare(fault: str, how: str, out: Path, n: int, reference: Table, note: str) -> record.Fault:
    """A row of the table of faults. The catalogue must equal the reference to the last bit."""
    catalog, lost, repeated = count(out, n)
    for name in reference.colnames:
        np.testing.assert_array_equal(np.asarray(catalog[name]), np.asarray(reference[name]), err_msg=name)
    return record.fault(fault, how, n, lost, repeated, f"{note}; catalogue equal to the last bit")


def main() -> int:
    """Run everything."""
    parser = argparse.ArgumentParser(prog="python -m perf.embedding.shards", description=__doc__.partition("\n")[0])
    parser.add_argument("--cutouts", type=int, default=96)
    parser.add_argument("--unit", type=int, default=8, help="cutouts a unit")
    arguments = parser.parse_args()
    return record.store("shards", parser.prog, *measure(arguments.cutouts, arguments.unit))


if __name__ == "__main__":
    sys.exit(main())
