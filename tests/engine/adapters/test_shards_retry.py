"""Repeated shards: failed inputs, another number of shards, and inputs that kill their process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from toy_model import BANDS

from deblendrt.engine.adapters.cli import main
from deblendrt.engine.adapters.shards import run_shard
from deblendrt.engine.adapters.shards.merge import merge
from deblendrt.engine.deblender import Deblender

N = 4
Run = Callable[..., int]


@pytest.fixture
def images(tmp_path: Path, scene: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Path:
    """Return a list of images. im1 and im2 do not exist yet; they get the content of im0."""
    image, centers, _ = scene
    folder = tmp_path / "images"
    folder.mkdir()
    for k in (0, 3):
        fits.PrimaryHDU(image).writeto(folder / f"im{k}.fits")
    Table({"x": centers[:3, 0], "y": centers[:3, 1]}).write(tmp_path / "centers.csv")
    (tmp_path / "list.txt").write_text("".join(f"images/im{k}.fits\n" for k in range(N)))
    return tmp_path / "list.txt"


@pytest.fixture
def run(toy_deblender: Deblender, images: Path) -> Run:
    def shard(out: Path, which: str, *more: str) -> int:
        return main.main(["run", str(images), "--shard", which, "--out", str(out), "--model",
                         str(toy_deblender.bundle.path), "--bands", "".join(BANDS), "--zero-point", "31.4", "--quiet",
                         "--catalog", str(images.parent / "centers.csv"), "--iterations", "3", *more])
    return shard


def arrive(images: Path, *numbers: int) -> None:
    """Make the missing images."""
    for k in numbers:
        (images.parent / f"images/im{k}.fits").write_bytes((images.parent / "images/im0.fits").read_bytes())


def test_failed_inputs_are_done_again_with_another_number_of_shards(run: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for k in range(2):
        assert run(out, f"{k}/2") == 0
    assert merge(out, tmp_path / "first.fits").n_failed == 2
    arrive(images, 1)
    for k in range(3):
        assert run(out, f"{k}/3", "--retry-failed") == 0
    assert merge(out, tmp_path / "second.fits").n_failed == 1
    arrive(images, 2)
    assert run(out, "0/1", "--retry-failed") == 0
    assert merge(out, tmp_path / "third.fits").n_failed == 0
    said = [{unit["sha256"] for path in (out / "shards").glob("*.json")
             for unit in json.loads(path.read_text())["units"] if unit["unit"] == number} for number in range(N)]
    assert [len(hashes) for hashes in said] == [1, 2, 2, 1]


def test_what_no_manifest_says_is_refused(run: Run, images: Path, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    out, target = tmp_path / "out", tmp_path / "all.fits"
    assert run(out, "0/1") == 0
    arrive(images, 1)
    with monkeypatch.context() as patch:
        patch.setattr(run_shard, "_finish", lambda *_: None)  # as if the process was killed before
        assert run(out, "0/2", "--retry-failed") == 0
        assert run(out, "1/2", "--retry-failed") == 0
    with pytest.raises(ValueError, match=r"000001\.fits: changed since"):
        merge(out, target)
    for k in range(3):
        assert run(out, f"{k}/3") == 0
    assert merge(out, target).n_failed == 1


def test_a_new_manifest_does_not_vouch_for_a_damaged_file(run: Run, tmp_path: Path) -> None:
    out, target = tmp_path / "out", tmp_path / "all.fits"
    assert run(out, "0/1") == 0
    file = out / "units/000/000003.fits"
    with fits.open(file) as hdus:
        place = hdus["CATALOG"].fileinfo()["datLoc"] + 20
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[place] ^= 1  # changes a number of the catalogue, which remains a valid table
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"000003\.fits: changed since"):
        merge(out, target)
    for k in range(2):
        assert run(out, f"{k}/2") == 0
    assert file.read_bytes() == content
    assert merge(out, target).n_input == N


def test_manifests_of_other_units_are_refused(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for which in ("0/1", "0/2"):
        assert run(out, which) == 0
    manifest = out / "shards/0-of-2.json"
    told = json.loads(manifest.read_text())
    told["units"][1]["start"] -= 1
    manifest.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="other inputs than in another"):
        merge(out, tmp_path / "all.fits")
