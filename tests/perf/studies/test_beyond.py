"""Each case of perf.studies.beyond differs from the control in the thing that its name says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("galsim")
pytest.importorskip("galcheat")

from perf.studies.beyond import __main__ as beyond
from perf.studies.beyond import departures, page
from perf.studies.beyond.departures import DEPARTURES, Departure


def case(name: str) -> Departure:
    return next(c for c in DEPARTURES if c.name == name)


def test_names_are_unique_and_the_control_is_first() -> None:
    names = [c.name for c in DEPARTURES]
    assert len(set(names)) == len(names)
    assert names[0] == "control"


@pytest.mark.parametrize("name", ["Sersic n = 6", "clumpy", "ring", "spiral arms"])
def test_galaxies_keep_their_fluxes(name: str) -> None:
    pool = departures.sky()[0]
    for row in range(5):
        parts = case(name).galaxy(pool, row, np.random.default_rng(row))
        np.testing.assert_allclose(np.sum([flux for _, flux in parts], 0), pool.flux[row], rtol=1e-12)
        assert all(abs(profile.flux - 1) < 1e-6 for profile, _ in parts)


def test_a_color_gradient_keeps_the_reference_flux() -> None:
    pool, _, depth = departures.sky()
    (_, bulge), (_, disk) = case("colour gradient").galaxy(pool, 0, np.random.default_rng(0))
    i, g, z = (depth.bands.index(b) for b in "igz")
    np.testing.assert_allclose((bulge + disk)[i], pool.flux[0, i])
    assert bulge[z] / bulge[g] > 1.5 * disk[z] / disk[g]


def test_cases_share_everything_but_what_they_name() -> None:
    alone, blend = departures.layouts()[0], departures.layouts()[-1]
    assert [len(layout.rows) for layout in (alone, blend)] == [1, departures.BLEND_SIZE]
    control, psf, moved, masked, background = (
        departures.make_field(case(name), alone)
        for name in ("control", "PSF 3% too wide", "centres off, prior 0.2", "cores masked", "background off"))
    np.testing.assert_array_equal(psf.image, control.image)
    assert abs(psf.psf - control.psf).max() > 1e-4
    np.testing.assert_allclose(np.hypot(*(moved.centers - control.centers).T), 0.5)
    assert masked.mask.sum() > 9
    assert not control.mask.any()
    offset = (background.image - control.image) / departures.sky()[2].sky_sigma[:, None, None]
    np.testing.assert_allclose(abs(offset), 0.1, rtol=0.01)


def test_correlated_noise_has_the_pixels_variance() -> None:
    field = departures.make_field(case("control"), departures.layouts()[0])
    mean = np.full((6, 400, 400), 0.0)
    flat = dataclasses.replace(field, variance=np.ones(mean.shape, np.float32))
    noise = departures.correlated_noise(flat, mean, np.random.default_rng(0)).image
    np.testing.assert_allclose(noise.std(), 1, rtol=0.01)
    for axis in (1, 2):
        np.testing.assert_allclose((noise * np.roll(noise, 1, axis)).mean(), 0.2 / 1.02, atol=0.01)


def test_summaries() -> None:
    found = {"relative": np.array([0.0, 0.5, 0.2, -0.01]), "color": np.zeros(4), "pull": np.array([0.0, 10, 4, -1]),
             "pull_total": np.array([0.0, 2, 1, -1]), "systematic": np.full(4, 0.01),
             "untrusted": np.array([True, True, False, False]), "poor": np.zeros(4, bool), "snr": np.full(4, 20.0),
             "alone": np.ones(4, bool)}
    row = beyond.summarise(found, np.ones(4, bool))
    expected = {"n": 4, "beyond_3": 0.5, "beyond_3_total": 0.0, "caught": 0.5, "caught_wrong": 0.5, "silent": 0.25,
                "false_alarm": 0.5, "untrusted": 0.5, "flux_error": 0.105}
    for key, value in expected.items():
        np.testing.assert_allclose(row[key], value, err_msg=key)
    assert set(beyond.groups(found)) == {"all", "alone", "blends", "S/N 10 to 50", "S/N 50 to 300", "S/N above 300"}


@pytest.mark.parametrize(("silent", "flux_error", "width", "expected"), [
    (0.0, 0.01, 1.0, "same"), (0.0, 0.02, 1.0, "says so"), (0.0, 0.01, 2.0, "says so"), (0.1, 0.01, 1.0, "silent")])
def test_verdicts(silent: float, flux_error: float, width: float, expected: str) -> None:
    control = {"silent": 0.01, "flux_error": 0.01, "width_total": 1.0}
    row = {"silent": silent, "flux_error": flux_error, "width_total": width}
    assert page.verdict(row, control) == expected
