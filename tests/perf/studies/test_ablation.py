"""The prior and the expected median of the ablation."""

from __future__ import annotations

import numpy as np
import pytest

from perf.studies import ablation


class Flow:
    """Stands for a runtime."""

    def decode(self, latent):
        return latent


def test_normal_prior_replaces_the_flow_only():
    runtime = ablation.NormalPrior(Flow(), 3)
    latent = np.random.default_rng(0).standard_normal((4, 8))
    log_prob, gradient = runtime.log_prior(latent)
    np.testing.assert_allclose(log_prob, -0.5 * (latent[:, 5:] ** 2).sum(1), rtol=1e-6)
    np.testing.assert_allclose(gradient[:, 5:], -latent[:, 5:], rtol=1e-6)
    assert not gradient[:, :5].any()
    assert runtime.decode(latent) is latent


def test_expected_median():
    assert ablation.expected_median(np.full(5, 2.0)) == pytest.approx(2 * 0.67449, rel=1e-4)
    rng = np.random.default_rng(0)
    sigma = np.exp(rng.standard_normal(300))
    drawn = np.abs(sigma * rng.standard_normal((2000, 300)))
    assert ablation.expected_median(sigma) == pytest.approx(np.median(drawn), rel=0.01)


def test_row():
    true = np.full((4, 3), 100.0)
    flux = true * np.array([1.01, 0.97, 1.02, 1.20])[:, None]
    found = ablation.Fluxes(flux, np.full((4, 3), 2.0), np.array([0.9, 0.95, 0.99, 1.0]), seconds=0.4)
    snr, blended = np.full((4, 3), 50.0), np.array([0.0, 0.0, 0.0, 0.9])
    snr[0] = 15.0
    row = ablation.row(found, true, snr, blended, ("g", "r", "i"))
    assert set(row) == set(ablation.COLUMNS)
    assert row["flux_error_r"] == pytest.approx(0.025)
    assert row["snr_10_20"] == pytest.approx(0.01)
    assert row["blended"] == pytest.approx(0.20)
    assert row["bias"] == pytest.approx(0.02)
    assert row["beyond_3"] == pytest.approx(0.25)
    assert row["color_error"] == pytest.approx(0.0, abs=1e-12)
    assert row["expected"] == pytest.approx(0.67449 * 0.02, rel=1e-4)
    assert row["ms_per_source"] == pytest.approx(100.0)
