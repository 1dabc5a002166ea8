"""Files appear whole or not at all, also if several processes write one file; leftovers of killed processes go."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from deblendrt.engine.files import atomic_write


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write.in_place_of(path) as partial:
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with pytest.raises(UnicodeEncodeError), atomic_write.in_place_of(path) as partial:
        partial.write_text("no letter: \udc80", encoding="utf-8")  # fails with the file open
    assert [file.read_text() for file in tmp_path.iterdir()] == ["new"]


def test_processes_of_one_number_do_not_meet(tmp_path: Path) -> None:
    """The two writers share their process number, as processes in two containers on one file system may."""
    path = tmp_path / "file"
    with atomic_write.in_place_of(path) as first:
        first.write_text("first")
        with atomic_write.in_place_of(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def test_leftovers_are_removed_and_the_living_are_not(tmp_path: Path) -> None:
    names = [".a[1].fits.77.partial", ".a[1].fits.0123456789abcdef.partial", ".a1.fits.0123456789abcdef.partial",
             ".a[1].fits.fedcba9876543210.partial", "a[1].fits"]
    long_ago = time.time() - 2 * atomic_write.STALE_SECONDS
    for name in names:
        (tmp_path / name).touch()
        if name != names[3]:
            os.utime(tmp_path / name, (long_ago, long_ago))
    atomic_write.remove_stale(tmp_path, "a[1].fits")
    assert {file.name for file in tmp_path.iterdir()} == set(names[2:])
    atomic_write.remove_stale(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(names[3:])
