"""Shards and their merger: every input has its rows, the bits do not depend on the division, and kills lose nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from toy_model import BANDS, N_BAND
from toy_scenes import VARIANCE

from deblendrt.engine.adapters.cli import main
from deblendrt.engine.adapters.input_rows import Outcome
from deblendrt.engine.adapters.shards import run_shard
from deblendrt.engine.adapters.shards.merge import merge
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.files import atomic_write
from deblendrt.engine.files.cutouts import CutoutCatalog

N = 7


@pytest.fixture
def model(toy_deblender: Deblender) -> Path:
    return Path(toy_deblender.bundle.path)


@pytest.fixture
def cutouts(tmp_path: Path, scene: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Path:
    """Return a FITS catalogue of cutouts of a scene. The third row is invalid, and the fourth has no centre."""
    image, centers, _ = scene
    rng = np.random.default_rng(0)
    images = np.array([image + rng.normal(0, 0.1, image.shape) for _ in range(N)], np.float32)
    given = [centers[: 1 + k % len(centers)] for k in range(N)]
    flat = np.empty(N, object)
    flat[:] = [c.ravel().astype(np.float64) for c in given]
    flat[2], flat[3] = np.zeros(3), np.zeros(0)
    table = fits.BinTableHDU.from_columns([
        fits.Column("image", f"{images[0].size}E", array=images.reshape(N, -1), dim=str(images.shape[:0:-1])),
        fits.Column("centers", "PD()", array=flat),
        fits.Column("variance", f"{N_BAND}E", array=np.tile(np.float32(VARIANCE).ravel(), (N, 1))),
        fits.Column("id", "5A", array=np.array([f"c{k}" for k in range(N)]))])
    path = tmp_path / "cutouts.fits"
    table.writeto(path)
    return path


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_shard, "UNIT_ROWS", 2)


def run(model: Path, out: Path, shard: str, *given: str | Path) -> int:
    return main.main(["run", *map(str, given), "--shard", shard, "--out", str(out), "--model", str(model),
                     "--bands", "".join(BANDS), "--zero-point", "31.4", "--quiet", "--iterations", "3"])


def same(a: Table, b: Table) -> None:
    assert a.colnames == b.colnames
    for name in a.colnames:
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


def read(path: Path) -> tuple[Table, Table]:
    with fits.open(path) as hdus:
        return Table(hdus["CATALOG"].data), Table(hdus["INPUTS"].data)


def test_every_input_is_there_once_in_any_division(model: Path, cutouts: Path, tmp_path: Path,
                                                   toy_deblender: Deblender) -> None:
    results = []
    for n_shard in (1, 3):
        out = tmp_path / f"out{n_shard}"
        for i in range(n_shard):
            assert run(model, out, f"{i}/{n_shard}", cutouts, "--cutouts") == 0
        done = merge(out, tmp_path / f"{n_shard}.fits")
        assert (done.n_input, done.n_failed, done.missing) == (N, 2, [])
        results.append(read(tmp_path / f"{n_shard}.fits"))
    for a, b in zip(*results, strict=True):
        same(a, b)
    catalog, inputs = results[0]
    assert inputs["input"].tolist() == list(range(N))
    assert inputs["id"].tolist()[:2] == ["c0", "c1"]
    assert "centers" in inputs["error"][2]
    assert inputs["error"][3] == "no sources"
    assert set(catalog["input"].tolist()) == set(range(N))
    assert (catalog["flags"][catalog["error"] != ""] != 0).all()
    alone = CutoutCatalog(cutouts).rows(5, 6)
    row = next(alone)
    assert isinstance(row, dict)
    result = toy_deblender.deblend_batch(row["image"], row["centers"], variance=row["variance"], bands=BANDS,
                                         zero_point=31.4, n_iteration=3, psf="nominal")
    ours = catalog[catalog["input"] == 5]
    np.testing.assert_array_equal(np.asarray(ours[f"flux_{BANDS[0]}"]), result.flux[:, 0])


def test_what_is_done_is_not_done_again(model: Path, cutouts: Path, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    out, calls = tmp_path / "out", []
    original = run_shard.write_unit
    monkeypatch.setattr(run_shard, "write_unit", lambda *given: calls.append(given[2].number) or original(*given))
    assert run(model, out, "0/1", cutouts, "--cutouts") == 0
    assert calls == [0, 1, 2, 3]
    unit = out / "units/000/000002.fits"
    content = unit.read_bytes()
    unit.write_bytes(content[: len(content) // 2])  # a failing disk, for no process leaves such a file
    (out / "units/000/000003.fits").unlink()
    assert run(model, out, "0/1", cutouts, "--cutouts") == 0
    assert calls[4:] == [2, 3]
    assert unit.read_bytes() == content
    assert run(model, out, "0/2", cutouts, "--cutouts", "--retry-failed") == 0
    assert calls[6:] == []  # units 0 and 2 have no failed input
    assert run(model, out, "1/2", cutouts, "--cutouts", "--retry-failed") == 0
    assert calls[6:] == [1]
    assert merge(out, tmp_path / "all.fits").n_input == N


def test_leftovers_of_killed_processes_are_removed(model: Path, cutouts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    left = [out / name for name in ("units/000/.000000.fits.77.partial", "units/000/.000001.fits.0a1b2c3d.partial",
                                    ".run.json.77.partial", "shards/.0-of-1.json.77.partial")]
    living = out / "units/000/.000002.fits.77.partial"
    others = out / ".mine.77.partial"
    merging = tmp_path / ".all.fits.77.partial"
    long_ago = time.time() - 2 * atomic_write.STALE_SECONDS
    for path in (*left, living, others, merging):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if path != living:
            os.utime(path, (long_ago, long_ago))
    assert run(model, out, "0/1", cutouts, "--cutouts") == 0
    assert not any(path.exists() for path in left)
    assert living.exists()
    assert others.exists()
    merge(out, tmp_path / "all.fits")
    assert not merging.exists()


def test_another_run_is_kept_out(model: Path, cutouts: Path, tmp_path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(model, out, "0/2", cutouts, "--cutouts") == 0
    assert run(model, out, "1/2", cutouts, "--cutouts", "--center-sigma", "0.3") == 1
    assert "other options" in capsys.readouterr().err
    for shard in ("2/2", "x", "1", "-1/2"):
        assert main.main(["run", str(cutouts), f"--shard={shard}", "--out", str(out)]) == 1
    assert main.main(["run", str(cutouts), str(cutouts), "--out", str(out)]) == 1


def test_a_merger_finds_what_is_wrong(model: Path, cutouts: Path, tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    out, target = tmp_path / "out", tmp_path / "all.fits"
    assert run(model, out, "0/2", cutouts, "--cutouts") == 0
    assert main.main(["merge", str(out), "--out", str(target)]) == 1
    assert "2 of 4 units are not there, among them 1, 3" in capsys.readouterr().err
    assert main.main(["merge", str(out), "--out", str(target), "--partial"]) == 0
    assert main.main(["merge", str(out), "--out", str(target), "--partial"]) == 1  # it exists
    assert run(model, out, "1/2", cutouts, "--cutouts") == 0
    assert main.main(["merge", str(out), "--out", str(target), "--overwrite"]) == 0
    unit = out / "units/000/000001.fits"
    content = bytearray(unit.read_bytes())
    content[-3000] ^= 1
    unit.write_bytes(content)
    assert main.main(["merge", str(out), "--out", str(target), "--overwrite"]) == 1
    assert "changed since" in capsys.readouterr().err
    manifest = out / "shards/0-of-2.json"
    told = json.loads(manifest.read_text())
    told["fingerprint"] = "0"
    manifest.write_text(json.dumps(told))
    assert main.main(["merge", str(out), "--out", str(target), "--overwrite"]) == 1
    assert "another run" in capsys.readouterr().err


def test_parquet_in_and_out(model: Path, cutouts: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    with fits.open(cutouts) as hdus:
        data = hdus[1].data
        columns = {"image": [row.ravel().tolist() for row in data["image"]],
                   "shape": [list(row.shape) for row in data["image"]],
                   "centers": [np.asarray(row).tolist() for row in data["centers"]],
                   "variance": [row.tolist() for row in data["variance"]], "id": [str(i) for i in data["id"]],
                   "mask": [None] * N, "unknown": list(range(N))}
    given = tmp_path / "cutouts.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), given, row_group_size=3)
    for path, out in ((given, "a"), (cutouts, "b")):
        assert run(model, tmp_path / out, "0/1", path, "--cutouts") == 0
        merge(tmp_path / out, tmp_path / f"{out}.parquet")
        merge(tmp_path / out, tmp_path / f"{out}.fits")
    (first, _), (second, inputs) = read(tmp_path / "a.fits"), read(tmp_path / "b.fits")
    same(first, second)
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.num_rows == len(first)
    np.testing.assert_array_equal(table["flux_i"].to_numpy(), np.asarray(first["flux_i"]))
    assert pyarrow.parquet.read_table(tmp_path / "a.inputs.parquet").num_rows == len(inputs)


def test_images_and_their_own_catalogues(model: Path, tmp_path: Path,
                                         scene: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, centers, _ = scene
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(2):
        fits.PrimaryHDU(image).writeto(folder / f"im{k}.fits")
        Table({"id": [f"s{i}" for i in range(3)], "x": centers[:3, 0], "y": centers[:3, 1]}).write(
            folder / f"im{k}.cat.csv")
    (folder / "im2.fits").write_bytes(b"SIMPLE  =")
    (tmp_path / "list.txt").write_text("images/im0.fits  # the first\n\nimages/im1.fits\nimages/im2.fits\nnone.fits\n")
    assert run(model, tmp_path / "out", "0/1", tmp_path / "list.txt", "--catalog",
               "{folder}/{stem}.cat.csv") == 0
    assert merge(tmp_path / "out", tmp_path / "all.fits").n_failed == 2
    catalog, inputs = read(tmp_path / "all.fits")
    assert inputs["n_row"].tolist() == [3, 3, 1, 1]
    assert catalog["catalog_id"].tolist()[:3] == ["s0", "s1", "s2"]
    assert "no such file" in inputs["error"][3]


@pytest.mark.parametrize("given", [{"image": None}, {"image": np.zeros(5), "shape": (1, 2, 3)}, {"image": np.zeros(6)},
                                   {"image": "x"}, {"image": np.zeros((1, 2, 3)), "psf": np.zeros(5)},
                                   {"image": np.zeros((1, 2, 3)), "centers": np.zeros(3)},
                                   {"image": np.zeros((2, 3, 3)), "variance": np.zeros(5)},
                                   {"image": np.zeros(4), "shape": (-1, -2, 2)}])
def test_rows_that_make_no_sense(given: dict[str, object]) -> None:
    from deblendrt.engine.files.cutouts import row_to_scene as as_scene

    with pytest.raises(ValueError, match=r"image|psf|centers|variance"):
        as_scene(given)


@pytest.mark.parametrize(("kills", "given_up", "n_start"), [
    (lambda inputs: {"c1", "c5"} & {getattr(given, "get", {}.get)("id") for given in inputs}, ["c1", "c5"], 6),
    (lambda inputs: len(inputs) > 1, [], 2)], ids=["two inputs", "all together"])
def test_which_cutout_kills_is_found_out(model: Path, cutouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         kills: Callable[[list[Any]], bool], given_up: list[str], n_start: int) -> None:
    """The other inputs of the unit get the same bits as in a run without a kill."""
    monkeypatch.setattr(run_shard, "UNIT_ROWS", N)
    assert run(model, tmp_path / "whole", "0/1", cutouts, "--cutouts") == 0
    merge(tmp_path / "whole", tmp_path / "whole.fits")
    original, out = run_shard.deblend_inputs, tmp_path / "out"

    def deblend(deblender: Deblender, inputs: list[Any], options: dict[str, Any]) -> list[Outcome]:
        if kills(inputs):
            raise MemoryError  # ends the process and leaves its mark, like a kill
        return original(deblender, inputs, options)

    monkeypatch.setattr(run_shard, "deblend_inputs", deblend)
    for status in [*[1] * (n_start - 1), 0]:
        assert run(model, out, "0/1", cutouts, "--cutouts") == status
    merge(out, tmp_path / "all.fits")
    (expected, before), (catalog, inputs) = read(tmp_path / "whole.fits"), read(tmp_path / "all.fits")
    assert [str(row["id"]) for row in inputs if "killed its process twice" in row["error"]] == given_up
    assert inputs["n_row"].tolist() == before["n_row"].tolist()  # inputs that were given up have their rows, too
    fine = ~np.isin(catalog["id"], given_up)
    assert (np.asarray(catalog["error"])[~fine] != "").all()
    same(catalog[fine], expected[fine])
    assert not list((out / "in_progress").iterdir())


@pytest.mark.parametrize("place", ["read", "tables"])
def test_a_unit_that_kills_elsewhere_is_given_up(model: Path, cutouts: Path, tmp_path: Path, place: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    original = run_shard.unit_tables

    def tables(unit: run_shard.Unit, outcomes: list[Outcome], *given: Any) -> tuple[Table, Table]:
        if unit.number == 2 and outcomes[0].result is not None:
            raise MemoryError
        return original(unit, outcomes, *given)

    def rows(self: CutoutCatalog, start: int, stop: int) -> Iterator[Any]:
        if start == 4:
            raise MemoryError
        yield from original_rows(self, start, stop)

    original_rows = CutoutCatalog.rows
    monkeypatch.setattr(*(CutoutCatalog, "rows", rows) if place == "read" else (run_shard, "unit_tables", tables))
    for status in (1, 1, 0):
        assert run(model, tmp_path / "out", "0/1", cutouts, "--cutouts") == status
    assert merge(tmp_path / "out", tmp_path / "all.fits").n_failed == 4
    _, inputs = read(tmp_path / "all.fits")
    assert all("one of 2 inputs" in error for error in inputs["error"][4:6])


def test_killed_at_any_moment(model: Path, cutouts: Path, tmp_path: Path) -> None:
    """Kill -9, again and again, loses nothing, and finished units stay as they are."""
    out, rng, written = tmp_path / "out", random.Random(1), {}
    script = ("import sys\nfrom deblendrt.engine.adapters.cli import main\n"
              "from deblendrt.engine.adapters.shards import run_shard\nrun_shard.UNIT_ROWS = 1\n"
              f"sys.exit(main.main(['run', {str(cutouts)!r}, '--cutouts', '--shard', '0/1', '--out', {str(out)!r}, "
              f"'--model', {str(model)!r}, '--bands', {''.join(BANDS)!r}, '--zero-point', '31.4', "
              "'--max-kills', '5']))")
    for attempt in range(40):
        process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        assert process.stderr is not None
        if attempt < 4:
            for line in process.stderr:  # wait for the first unit, then kill the process in the next
                if "units" in line or ("unit " in line and rng.random() < 0.5):
                    break
            time.sleep(rng.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
        process.stderr.read()
        status = process.wait()
        for path in (out / "units").rglob("[0-9]*.fits"):
            stamp = path.stat().st_mtime_ns
            assert written.setdefault(path, stamp) == stamp, "done twice"
        if status == 0:
            break
    assert status == 0
    done = merge(out, tmp_path / "all.fits")
    assert (done.n_input, done.n_failed) == (N, 2)
