"""A short campaign; the harness notices every kind of failure."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deblendrt.engine.model.bundle import SHIPPED
from perf.fuzz import campaign, child, mutations, page, seeds, tampering, targets, wire


def test_campaign(tmp_path: Path) -> None:
    state = tmp_path / "state"
    names = ["manifest", "arrays", "fits"]
    for n in (600, 600, 700):  # run; nothing more to do; the rest
        campaign.Campaign(state, n, names, 0, "mutate").run(1)
    records = campaign.read_records(state)
    assert sum(record["n"] for record in records) >= 700
    assert [record["failures"] for record in records] == [{}] * len(records)
    figures = campaign.summary(records)
    assert figures["n_input"] == figures["n_input_present_code"] == sum(t["n"] for t in figures["targets"].values())
    page.write(figures, tmp_path)
    assert "manifest" in (tmp_path / "fuzz.md").read_text()
    assert json.loads((tmp_path / "fuzz.json").read_text()) == figures


def noticed(read: Callable[[bytes], object], tmp_path: Path, **options: Any) -> dict[str, Any]:
    target = targets.Target("x", "", lambda: read, lambda: [b"x"], **options)
    tally = child.Tally(target, read, tmp_path)
    tally.feed(b"x")
    return tally.record()


def fail(error: BaseException) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        raise error
    return read


def test_what_is_a_failure(tmp_path: Path) -> None:
    assert noticed(lambda data: None, tmp_path)["accepted"] == 1
    assert noticed(fail(ValueError("a")), tmp_path)["refused"] == {"ValueError": 1}
    assert noticed(fail(KeyError("a")), tmp_path, expected=("KeyError",))["refused"] == {"KeyError": 1}
    for error in (KeyError("a"), MemoryError(), RecursionError(), child.TimeLimit("x")):
        failures = noticed(fail(error), tmp_path)["failures"]
        (key, found), = failures.items()
        assert key.startswith(type(error).__name__)
        assert (tmp_path / found["files"][0]).read_bytes() == b"x"


def test_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "TIME_LIMIT", 0.2)
    before = signal.signal(signal.SIGPROF, child._too_long)
    try:
        failures = noticed(lambda data: next(k for k in iter(time.monotonic, None) if k < 0), tmp_path)["failures"]
    finally:
        signal.signal(signal.SIGPROF, before)
    assert [key.split()[0] for key in failures] == ["TimeLimit"]


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GROWTH", 10 << 20)
    hold: list[bytearray] = []
    size = child._peak()  # above the memory that the process has used so far
    failures = noticed(lambda data: hold.append(bytearray(b"x") * size), tmp_path)["failures"]
    assert [key.split()[0] for key in failures] == ["Memory"]


def test_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = ("import json, os, sys; from pathlib import Path; from perf.fuzz import child; "
             "c = json.loads(sys.argv[1]); child.Current(Path(c['current'])).put(4, b'evil'); os.abort()")
    popen = campaign.subprocess.Popen
    monkeypatch.setattr(campaign.subprocess, "Popen",
                        lambda command, **options: popen([command[0], "-c", dying, command[-1]], **options))
    state = tmp_path / "state"
    started = campaign.Campaign(state, 200, ["manifest"], 0, "mutate")
    chunk = started._take(0)
    assert chunk is not None
    record = campaign.run_chunk(chunk, state)
    (key, failure), = record["failures"].items()
    assert key.startswith("crash, exit status -6")
    assert (Path(chunk["out"]) / failure["files"][0]).read_bytes() == b"evil"
    assert record["n"] == 5


@pytest.mark.parametrize("name", ["manifest", "onnx", "arrays", "header", "alert_schema"])
def test_inputs_follow_from_the_seed(name: str) -> None:
    import random

    target = targets.targets()[name]
    if target is None:
        pytest.skip("its reader is not there")
    files = target.seeds()
    once, again = ([targets.make_input(target, files, random.Random(5)) for _ in range(3)] for _ in range(2))
    assert once == again
    rng = random.Random(0)
    inputs = {targets.make_input(target, files, rng) for _ in range(200)}
    assert len(inputs) > 150
    assert max(map(len, inputs)) <= mutations.MAX_BYTES


def test_wire_format() -> None:
    for content in (seeds._shipped("decode.onnx"), *seeds.graphs()):
        assert wire.encode(wire.decode(content)) == content


def test_valid_files_are_accepted() -> None:
    for name in ("manifest", "onnx", "arrays", "session", "bundle", "psf", "header"):
        target = targets.targets()[name]
        read = target.prepare()
        for content in target.seeds():
            read(content)
    targets.clean_up()
    assert not any(str(os.getpid()) in path.name for path in Path("/tmp").glob("fuzz-*"))


@pytest.mark.parametrize("name", [name for name in tampering.KINDS if name != "a huge file"])
def test_tampering(name: str) -> None:
    row = tampering.tamper(name, SHIPPED / "lsst")
    expected = {"nothing": "", "another model": "", "other weights": "at verify", "a zip bomb": "at verify"}
    assert row["refused"] == expected.get(name, "at load"), row["note"]
    assert row["memory_MiB"] < 100
