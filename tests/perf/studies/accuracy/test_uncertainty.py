"""Pulls, coverage and covariances recover their inputs, and detect wrong errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tolerances import SAMPLE_SIGMA

pytest.importorskip("galsim")
pytest.importorskip("matplotlib")

from deblendrt.engine.scene.flags import Flag
from perf import metrics
from perf.studies.accuracy import plots, uncertainty

N = 4000


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_pulls_are_as_wide_as_errors_are_wrong(factor: float) -> None:
    rng = np.random.default_rng(0)
    true, error = rng.uniform(10, 1000, (N, 2)), rng.uniform(1, 20, (N, 2))
    measured = true + error * rng.standard_normal((N, 2))
    snr = np.where(np.arange(N) % 2, 5.0, 50.0)[:, None]
    found = uncertainty.pulls(("r", "i"), measured, error / factor, true, snr)
    assert np.isnan(found.pull[1::2]).all()
    summary = metrics.pull_summary(found.pull[:, 0])
    assert summary["n"] == N // 2
    spread = SAMPLE_SIGMA * factor / np.sqrt(N)
    assert abs(summary["standard_deviation"] - factor) < spread
    assert abs(summary["width"] - factor) < 2 * spread
    assert abs(summary["mean"]) < SAMPLE_SIGMA * factor / np.sqrt(N / 2)
    inside = metrics.coverage(found.pull[:, 0], np.array([1.0, 2.0, 3.0]))
    expected = metrics.gaussian_coverage(np.array([1.0, 2.0, 3.0]) / factor)
    np.testing.assert_allclose(inside, expected, atol=SAMPLE_SIGMA * 0.5 / np.sqrt(N / 2))
    assert (abs(inside[0] - 0.6827) < 0.05) == (factor == 1.0)


def test_trusted_sources_are_told_apart() -> None:
    flags = np.array([0, Flag.EDGE, Flag.NOT_CONVERGED, Flag.NEIGHBOUR_SUSPECT, Flag.OFF_IMAGE])
    pull = np.array([0.1, -0.2, 9.0, 4.0, np.nan])
    rows = uncertainty.by_flag(pull, flags)
    assert set(rows) == {"EDGE", "NOT_CONVERGED", "NEIGHBOUR_SUSPECT", "trusted"}
    assert rows["trusted"]["n"] == 2
    assert rows["NOT_CONVERGED"]["beyond_3"] == 1.0


def test_the_worst_group_comes_first() -> None:
    rng = np.random.default_rng(1)
    blendedness = rng.uniform(0, 1, N)
    pull = rng.standard_normal(N) * np.where(blendedness > 0.6, 5.0, 1.0)
    worst = uncertainty.worst_groups(pull, {"blendedness": blendedness})
    assert worst[0]["group"].startswith("blendedness 0.6")
    assert worst[0]["share"] > 0.9


@pytest.mark.parametrize("wrong", [False, True])
def test_the_sample_covariance_is_compared_with_the_reported_one(wrong: bool) -> None:
    rng = np.random.default_rng(2)
    true, n_band = np.array([[100.0, 200.0], [50.0, 80.0]]), 2
    root = rng.standard_normal((4, 4))
    covariance = root @ root.T + np.eye(4)
    flux = true + rng.multivariate_normal(np.zeros(4), covariance, N).reshape(N, 2, n_band)
    reported = np.diag(np.diag(covariance)) if wrong else covariance
    found = uncertainty.compare_covariance(flux, reported.reshape(2, n_band, 2, n_band), true, ("r", "i"))
    for band in ("r", "i"):
        np.testing.assert_allclose(found[band]["error_over_scatter"], 1, atol=SAMPLE_SIGMA / np.sqrt(2 * N))
        np.testing.assert_allclose(found[band]["rms_over_error"], 1, atol=SAMPLE_SIGMA / np.sqrt(2 * N))
        difference = np.subtract(found[band]["correlation"], found[band]["sample_correlation"])
        assert (np.abs(difference).max() < SAMPLE_SIGMA / np.sqrt(N)) != wrong


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    pull = np.random.default_rng(3).standard_normal((200, 2))
    quantity = {"Flux": (uncertainty.Pulls(("r", "i"), pull), np.arange(200) % 3 > 0)}
    plots.draw(quantity, "i", tmp_path / "figure.png")
    assert 5_000 < (tmp_path / "figure.png").stat().st_size < 300_000
