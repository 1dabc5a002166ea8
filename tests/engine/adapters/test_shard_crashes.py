"""Inputs that kill their process are given up after the second time; all other inputs are deblended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from toy_model import BANDS

from deblendrt.engine.adapters import image_inputs
from deblendrt.engine.adapters.cli import main
from deblendrt.engine.adapters.shards import crash_marks
from deblendrt.engine.adapters.shards.merge import merge
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.scene.flags import Flag

KILLER = 1
Command = Callable[..., list[str]]


@pytest.fixture
def command(tmp_path: Path, toy_deblender: Deblender, scene: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Command:
    """Return a function that gives the arguments of a run of three images."""
    image, centers, _ = scene
    for k in range(3):
        fits.PrimaryHDU(image).writeto(tmp_path / f"im{k}.fits")
    Table({"x": centers[:3, 0], "y": centers[:3, 1]}).write(tmp_path / "centers.csv")
    (tmp_path / "list.txt").write_text("im0.fits\nim1.fits\nim2.fits\n")

    def arguments(*more: str, which: str = "0/1") -> list[str]:
        return ["run", str(tmp_path / "list.txt"), "--shard", which, "--out", str(tmp_path / "out"),
                "--catalog", str(tmp_path / "centers.csv"), "--model", str(toy_deblender.bundle.path),
                "--bands", "".join(BANDS), "--zero-point", "31.4", "--iterations", "3", *more]
    return arguments


def errors(tmp_path: Path) -> list[str]:
    """Return the column of errors of a finished run."""
    merge(tmp_path / "out", tmp_path / "all.fits", overwrite=True)
    with fits.open(tmp_path / "all.fits") as hdus:
        return [str(error) for error in hdus["INPUTS"].data["error"]]


def start(command: list[str], at_killer: str) -> subprocess.Popen[str]:
    """Start a process that runs the statement `at_killer` when it reads the input that kills."""
    script = ("import os, sys, time\nfrom deblendrt.engine.adapters import image_inputs\n"
              "from deblendrt.engine.adapters.cli import main\n"
              "read = image_inputs.read_inputs\n"
              f"def reading(arguments):\n    if arguments.image.name == 'im{KILLER}.fits':\n        {at_killer}\n"
              "    return read(arguments)\nimage_inputs.read_inputs = reading\nsys.exit(main.main(sys.argv[1:]))")
    return subprocess.Popen([sys.executable, "-c", script, *command], stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def wait(process: subprocess.Popen[str]) -> int:
    process.communicate()
    return process.returncode


def test_the_rest_goes_on_after_two_kills(command: Command, tmp_path: Path) -> None:
    kill = "os.kill(os.getpid(), 9)"  # like the kernel when memory runs out
    out = tmp_path / "out"
    for n_kill in (1, 2):
        assert wait(start(command(), kill)) == -signal.SIGKILL
        assert crash_marks.n_kill(crash_marks.mark(out, KILLER)) == n_kill
        assert not (out / "units/000/000002.fits").exists()
    assert main.main(command(which="1/2")) == 0  # a run with another division knows it too, and does not read the input
    assert main.main(command(which="0/2")) == 0
    assert errors(tmp_path) == ["", "killed its process twice (out of memory, a crash, or a kill from outside)", ""]
    with fits.open(tmp_path / "all.fits") as hdus:
        rows = hdus["CATALOG"].data[hdus["CATALOG"].data["input"] == KILLER]
        assert len(rows) == 1
        assert rows["flags"][0] & int(Flag.NO_DATA)
    assert not crash_marks.marks(out)
    assert main.main(command()) == 0  # it is tried again only on demand
    assert errors(tmp_path)[KILLER].startswith("killed")
    assert main.main(command("--retry-failed")) == 0
    assert errors(tmp_path) == ["", "", ""]


def test_a_stop_that_is_asked_for_does_not_count(command: Command, tmp_path: Path) -> None:
    for _ in range(3):
        process = start(command(), "print('read', file=sys.stderr, flush=True); time.sleep(60)")
        assert process.stderr is not None
        while process.stderr.readline().strip() != "read":
            assert process.poll() is None
        assert [number for number, _ in crash_marks.marks(tmp_path / "out")] == [KILLER]
        process.send_signal(signal.SIGTERM)
        assert wait(process) == -signal.SIGTERM
        assert not crash_marks.marks(tmp_path / "out")
    assert main.main(command()) == 0
    assert errors(tmp_path) == ["", "", ""]


@pytest.mark.parametrize(("error", "counts"), [(MemoryError(), True), (ImportError("gone"), False),
                                               (KeyboardInterrupt(), False)])
def test_processes_that_can_still_speak(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        error: BaseException, counts: bool) -> None:
    """An exception or a signal to stop is no input's fault. MemoryError is, because it comes back at every start."""
    original = image_inputs.read_inputs

    def read(arguments):
        if arguments.image.name == f"im{KILLER}.fits":
            raise error
        return original(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(image_inputs, "read_inputs", read)
        for n in range(1, 4):
            assert main.main(command("--max-kills", "3")) != 0
            assert crash_marks.n_kill(crash_marks.mark(tmp_path / "out", KILLER)) == (n if counts else 0)
        assert main.main(command("--max-kills", "3")) == (0 if counts else 130 if "Key" in repr(error) else 1)
    assert main.main(command()) == 0
    assert ("3 times" in errors(tmp_path)[KILLER]) == counts


def test_retries_end_whatever_restarts_them(command: Command, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that repeats a command with --retry-failed gives each input two tries in all, not two at every start."""
    killers, original, tries = {"im0.fits", "im2.fits"}, image_inputs.read_inputs, []

    def read(arguments):
        tries.append(arguments.image.name)
        if arguments.image.name in killers:
            raise MemoryError
        return original(arguments)

    monkeypatch.setattr(image_inputs, "read_inputs", read)
    for status in (1, 1, 1, 1, 0):
        assert main.main(command("--retry-failed")) == status
    assert (tries.count("im0.fits"), tries.count("im1.fits"), tries.count("im2.fits")) == (2, 1, 2)
    for status in (1, 1, 1, 1, 0):  # on demand once more
        assert main.main(command("--retry-failed")) == status
    assert (tries.count("im0.fits"), tries.count("im1.fits"), tries.count("im2.fits")) == (4, 1, 4)
    assert [bool(error) for error in errors(tmp_path)] == [True, False, True]


def test_marks(tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    path = crash_marks.mark(tmp_path, 12)
    assert crash_marks.n_kill(path) == 0
    with crash_marks.at_work(path):
        assert crash_marks.marks(tmp_path) == [(12, path)]
    path.write_text("")  # the machine died while it wrote
    assert crash_marks.n_kill(path) == 1
    with pytest.raises(OSError, match="disk"), crash_marks.at_work(path):
        raise OSError("disk")
    assert path.read_text() == "1\n"
    with crash_marks.at_work(path, part=True):
        assert path.read_text() == "2\n"
    assert path.read_text() == "1\n"
    assert "one of 256 inputs" in crash_marks.crash_reason(2, 256)
    assert main.main(command("--max-kills", "1")) == 1
    assert "2 or more" in capsys.readouterr().err
