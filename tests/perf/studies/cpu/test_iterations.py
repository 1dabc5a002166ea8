"""The arithmetic of `perf.studies.cpu.iterations`: errors, gaps, the rule for when accuracy stops improving."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("galsim")

from perf.studies.cpu import iterations, plots

LONG = 0.03  # error of the long run


def row(n_iteration, error, gap=0.0, blended=None, solver="gauss_newton", scatter=0.0, long_blended=LONG):
    def one(value, n):
        return {"n": n, **{band + end: value for band in "ri" for end in ("", "_mean", "_p90")}}

    blended = error if blended is None else blended
    return {"solver": solver, "n_iteration": n_iteration, "ms_per_source": 10.0 + n_iteration,
            "errors": {"all": one(error, 40), "blended": one(blended, 9)},
            "excess": {"all": {band: [error - LONG, scatter] for band in "ri"},
                       "blended": {band: [blended - long_blended, scatter] for band in "ri"}},
            "gap": {"median": gap, "p90": 3 * gap, "negative": 0.0, "least": 0.0}}


def test_errors_leave_out_sources_without_a_flux():
    truth = np.full((4, 2), 10.0)
    flux = np.array([[11.0, 10.0], [9.5, 10.0], [np.nan, np.nan], [12.0, 15.0]])
    found = iterations.errors(flux, truth, ("r", "i"), np.array([False, True, True, False]))
    assert found["all"]["n"] == 4
    assert found["all"]["r"] == pytest.approx(0.1)
    assert found["blended"]["r"] == pytest.approx(0.05)
    assert found["all"]["i_p90"] == pytest.approx(0.4)
    assert found["all"]["i_mean"] == pytest.approx(0.5 / 3)
    assert iterations.errors(9 * truth, truth, ("r", "i"), np.ones(4, bool))["all"]["r_mean"] == iterations.ERROR_CLIP
    assert np.isnan(iterations.errors(flux, truth, ("r", "i"), np.zeros(4, bool))["blended"]["r"])


def test_gaps_are_per_source_and_tell_negative_ones():
    found = iterations.gap(np.array([12.0, 20.0, 7.0]), np.array([10.0, 20.0, 8.0]), np.array([4, 5, 2]))
    assert found == {"median": 0.0, "p90": pytest.approx(0.4), "negative": pytest.approx(1 / 3), "least": -0.5}
    rounding = iterations.gap(np.array([10.0]), np.array([10.0001]), np.array([1]))
    assert rounding["negative"] == 0.0


def test_saturation_is_the_first_count_that_stays_as_good():
    rows = [row(1, 0.09, 8.0), row(4, 0.0305, 0.2), row(8, 0.0303, 0.05), row(12, 0.0302), row(60, 0.03)]
    assert iterations.saturation(rows, 60) == 8  # the error alone had arrived at 4
    assert iterations.saturation(rows, 60, largest_gap=1.0) == 4
    assert iterations.saturation(rows, 60, within=0.001) is None
    assert iterations.saturation(list(reversed(rows)), 60) == 8


def test_saturation_is_not_fooled_by_an_early_chance():
    rows = [row(2, 0.02, 0.01), row(4, 0.04, 0.01), row(8, 0.03), row(12, 0.03), row(60, 0.03)]
    assert iterations.saturation(rows, 60) == 8


def test_saturation_of_all_does_not_ask_for_the_blended():
    rows = [row(n, 0.03, blended=b, long_blended=0.1) for n, b in ((4, 0.2), (12, 0.1), (60, 0.1))]
    assert iterations.saturation(rows, 60, ("all",)) == 4
    assert iterations.saturation(rows, 60) == 12


def test_saturation_allows_for_scatter():
    rows = [row(4, 0.04), row(8, 0.033, scatter=0.003), row(60, 0.03)]
    assert iterations.saturation(rows, 60) == 8
    assert iterations.saturation([row(8, 0.033), rows[-1]], 60) is None


def test_excess_is_source_by_source():
    truth = np.full((3, 2), 10.0)
    long = np.array([[11.0, 10.0], [13.0, 10.0], [np.nan, 10.0]])
    new = np.array([[12.0, 10.0], [14.0, 10.0], [11.0, 10.0]])
    found = iterations.excess(new, long, truth, ("r", "i"), np.array([True, False, False]))
    assert found["all"]["r"] == [pytest.approx(0.1), pytest.approx(0.0, abs=1e-12)]
    assert found["all"]["i"] == [0.0, 0.0]
    assert iterations.excess(new, long, truth, ("r", "i"), np.zeros(3, bool))["blended"]["r"] == [0.0, 0.0]


def test_words_and_figure(tmp_path):
    rows = [row(1, 0.09, 8.0), row(12, 0.03), row(60, 0.03), row(50, 0.04, 2.0, solver="adam")]
    rows[1]["gap"] |= {"negative": 0.25, "least": -0.5}
    figures = {"n_scene": 4, "n_source": 40, "reference": 60, "default": 12, "rows": rows,
               "noise_floor": row(0, 0.02)["errors"], "saturation": {"all": 12, "all and blended": None}}
    words = iterations.verdict(figures)
    assert "It is 12 iterations over all sources, and none of the counts if the 9 sources" in words
    assert "| 25.0%, least -0.5 |" in iterations.table(figures)
    plots.draw_iterations(figures, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
