"""The page and the picture of the study of real blends, on a made-up blend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("galsim")
pytest.importorskip("matplotlib")

from perf import report
from perf.studies.sky import __main__ as sky
from perf.studies.sky import injection, page, worst
from perf.studies.sky.blends import Blend
from perf.studies.sky.solutions import Solution


@pytest.fixture
def blend() -> Blend:
    image = np.random.default_rng(0).standard_normal((5, 40, 30)) + 20.0
    return Blend(1, image, np.ones(image.shape), np.array([[10.0, 12.0], [20.0, 30.0]]), np.ones((5, 3, 3)))


def solved(model: np.ndarray, flux: np.ndarray) -> Solution:
    none = np.zeros(0, np.int64)
    return Solution({2: [model], 4: [model]}, {"flux": flux}, none, none, 3.0)


def test_excess_is_found_where_it_is(blend: Blend) -> None:
    model = np.full(blend.image.shape, 20.0)
    assert worst.described(blend, model)["chi2"] == pytest.approx(1, abs=0.1)
    model[3, 29, 19] -= 200.0
    said = worst.described(blend, model)
    assert said["band"] == "z"
    assert said["source"] == 1
    assert said["place"] == [19, 29]
    assert "z alone" in said["sentence"]


def test_page(blend: Blend, tmp_path: Path) -> None:
    scenes = [injection.Injected(blend, blend.image, blend.peaks, np.full(5, 100.0), 30.0, np.zeros(2))]
    made = solved(np.full(blend.image.shape, 20.0), np.full((1, 5), 90.0))
    figures = {"rows": {"a peer": {"all": made.figures([blend], scenes, {1})}}, "options": {"a peer": {}},
               "missing": {"another": "not there"}, "n_peak": 2, "environment": report.environment(), "galsim": "2.8",
               "command": "python -m this", "worst": worst.draw_worst([blend], made, tmp_path / "sky.png")}
    text = page.markdown(figures)
    assert "| a peer |" in text
    assert "10.0%" in text
    assert "another, not there" in text
    assert (tmp_path / "sky.png").stat().st_size > 5000


def test_rows() -> None:
    assert sky.parsed('no detail@lsst={"detail": false}', "hsc") == sky.Row("no detail", "lsst", {"detail": False})
    assert sky.parsed("plain", "hsc") == sky.Row("plain", "hsc", {})
    with pytest.raises(ValueError, match="--row: expected a JSON object"):
        sky.parsed("a=1", "hsc")
    with pytest.raises(ValueError, match="--row: expected a JSON object"):
        sky.parsed("a={", "hsc")
