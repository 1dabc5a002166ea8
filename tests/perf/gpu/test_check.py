"""Every section of perf.gpu.check runs, on a device that is the host, and what is known is written at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shim import ShimDevice, missing

pytest.importorskip("onnx")

from deblendrt.engine.compute.cuda.streams import DevicePool
from deblendrt.engine.deblender import Deblender
from perf.gpu import check, descent_alone, drawn_scenes
from perf.gpu.report import Report


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_every_section(toy_deblender: Deblender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "N_LATENCY", 1)
    monkeypatch.setattr(drawn_scenes, "SIDE", 61)
    monkeypatch.setattr(drawn_scenes, "N_SOURCE", (2, 3))
    monkeypatch.setattr(descent_alone, "REPEATS", 1)
    monkeypatch.setattr(check, "COPIED", 1 << 12)
    arguments = check.parse(["--out", str(tmp_path), "--sizes", "2", "--descent-sizes", "4", "--kernel-sources", "1",
                           "--threads", "1", "--streams", "2"])
    scenes = drawn_scenes.draw_scenes(toy_deblender, 2)

    def open_pool(n: int) -> DevicePool:
        return DevicePool.open(toy_deblender.bundle, ShimDevice, n)

    pool = open_pool(1)
    on_device = Deblender(toy_deblender.bundle, toy_deblender.runtime, pool)
    report = Report(tmp_path)
    report.section("machine", check.machine)
    check.measure(report, on_device, toy_deblender, scenes, arguments, open_pool)
    assert not report.failed
    assert on_device.pool is pool
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["parity"]["same_bits_again"]
    assert figures["parity"]["same_bits_in_another_batch"]
    assert figures["throughput gpu"][0]["sources_per_second"] > 0
    assert figures["throughput gpu, 2 streams"]
    ours = [row for row in figures["descent alone"] if row["engine"] == "deblendrt"]
    assert ours[0]["n_source"] >= 4
    page = (tmp_path / "gpu.md").read_text()
    for title in ("Answers", "Throughput", "The descent alone", "Kernels", "The floor"):
        assert f"## {title}" in page


def test_what_fails_is_told_and_what_is_known_is_kept(tmp_path: Path) -> None:
    report = Report(tmp_path)

    def rows() -> Iterator[dict[str, Any]]:
        yield {"n_source": 3, "sources_per_second": 7.0}
        assert json.loads((tmp_path / "gpu.json").read_text())["throughput gpu"]
        raise MemoryError("too much")

    report.section("throughput gpu", rows)
    report.section("latency", lambda: {"p50": 1.0})
    assert list(report.failed) == ["throughput gpu"]
    page = (tmp_path / "gpu.md").read_text()
    assert "throughput gpu: failed" in page
    assert "| gpu | 3 | 7 |" in page
    assert "p50" in page
