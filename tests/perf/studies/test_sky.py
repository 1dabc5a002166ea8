"""Figures of a field, on the example image, whose noise is known."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("galsim")
pytest.importorskip("matplotlib")

from deblendrt.engine.deblender import Deblender
from perf import report
from perf.studies.sky import fields

EXAMPLE = Path(__file__).parents[3] / "examples" / "lsst_blend.fits"


def test_field(tmp_path: Path) -> None:
    figures = fields.run_field(Deblender.load("lsst"), EXAMPLE, tmp_path, find_missed=True)
    assert figures["n_found"] == 0
    assert figures["n_fitted"] == figures["n_source"] > 3
    assert 0.9 < figures["chi2_per_pixel"] < 1.1
    assert 0.9 < figures["chi2_per_pixel_cores"] < 1.5
    assert (tmp_path / "lsst_blend.png").stat().st_size > 10_000
    assert "| lsst_blend |" in fields.markdown({"lsst_blend": figures, "environment": report.environment()})


def test_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fields.main([str(tmp_path)]) == 1
    assert "hsc_*.fits" in capsys.readouterr().err
