"""The command line and the TensorRT check, without an export."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from deblendrt.engine.model import tensorrt
from deblendrt.export import cli


def test_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("galsim")
    assert cli.main(["--checkpoint", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == cli.NO_INPUT
    assert "is no checkpoint" in capsys.readouterr().err


def test_wrong_arguments() -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--out", "x"])


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["--checkpoint", "a", "--out", "b"]) == cli.UNAVAILABLE
    assert "pip install 'deblendrt[train]'" in capsys.readouterr().err


def test_tensorrt_absent_says_how_to_install(monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("galsim")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert cli.main(["--checkpoint", "a", "--out", "b", "--check-tensorrt"]) == cli.UNAVAILABLE
    assert "pip install tensorrt-rtx" in capsys.readouterr().err


def test_tensorrt_refuses_nonsense() -> None:
    if reason := tensorrt.why_unavailable(cli.TENSORRT_PACKAGE):
        pytest.skip(reason)
    with pytest.raises(tensorrt.TensorRTError, match="does not parse"):
        tensorrt.build_plan(b"not an onnx model", cli.TENSORRT_PACKAGE, cli.TENSORRT_SOURCES)
