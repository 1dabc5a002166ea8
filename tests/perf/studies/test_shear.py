"""Shear biases: zero without a bias, the injected bias otherwise, with right errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tolerances import SAMPLE_SIGMA

pytest.importorskip("galsim")
pytest.importorskip("galcheat")
pytest.importorskip("matplotlib")

import galsim

from perf.studies.shear import __main__ as shear
from perf.studies.shear import bias, page, shapes
from perf.studies.shear import scenes as ring

SCALE = 0.2
MIDDLE = np.full(2, shapes.STAMP // 2)
PSF = galsim.Kolmogorov(fwhm=0.7)
PROFILES = [galsim.Gaussian(half_light_radius=0.4), galsim.Exponential(half_light_radius=0.5),
            galsim.Exponential(half_light_radius=0.6) + 0.4 * galsim.DeVaucouleurs(half_light_radius=0.3)]
SECOND_ORDER = 2e-3  # of a response, under the shears here; regauss is not linear in them


def drawn(profile, psf, g1, method="auto"):
    return galsim.Convolve(profile.shear(g1=g1), psf).drawImage(
        nx=shapes.STAMP, ny=shapes.STAMP, scale=SCALE, method=method, dtype=np.float64).array


def model_e1(profile, g1):
    image = drawn(profile, galsim.Gaussian(sigma=SCALE), g1, "no_pixel")
    return shapes.first_ellipticity(shapes.moments(image[None], MIDDLE[None]))[0]


def regauss_e1(profile, g1):
    psf = PSF.drawImage(nx=41, ny=41, scale=SCALE, dtype=np.float64).array
    return shapes.regauss(drawn(profile, PSF, g1), psf, 1.0, MIDDLE)[0]


@pytest.mark.parametrize("injected", [0.0, 0.05])
@pytest.mark.parametrize("measure", [model_e1, regauss_e1])
def test_m_is_what_was_put_in(measure, injected: float) -> None:
    galaxies = [p.shear(g=0.3, beta=galsim.Angle(a, galsim.degrees)) for p in PROFILES for a in (20, 110)]

    def response(applied: float) -> np.ndarray:
        e1 = np.array([[measure(g, sign * applied) for sign in (1, -1)] for g in galaxies]).reshape(-1, 2, 2)
        return bias.response(e1[..., 0], e1[..., 1], shear.SHEAR)

    found = bias.multiplicative(response((1 + injected) * shear.SHEAR), response(shear.SHEAR))
    assert found.value == pytest.approx(injected, abs=SECOND_ORDER)
    assert found.n == len(PROFILES)


def test_the_response_of_an_image_is_that_of_what_lies_behind_its_psf() -> None:
    for profile in PROFILES:
        profile = profile.shear(g1=0.2, g2=-0.1)
        expected = (model_e1(profile, shear.SHEAR) - model_e1(profile, -shear.SHEAR)) / (2 * shear.SHEAR)
        image = drawn(profile, galsim.Gaussian(sigma=SCALE), 0.0, "no_pixel")
        found = shapes.model_response(image[None], MIDDLE[None], 1.0)[0]
        assert found == pytest.approx(expected, rel=SECOND_ORDER)


def test_shapes_cancel_between_the_angles() -> None:
    pairs = ring.draw_pairs(3, 0.05)
    for k in range(3):
        images = [shapes.reference_image(pairs, 2 * k, ring.turned(pairs.center[k, 0], a), a, 0.0, 1.0, 3)
                  for a in ring.ANGLES]
        center = np.array([ring.turned(pairs.center[k, 0], a) + MIDDLE for a in ring.ANGLES])
        e1 = shapes.first_ellipticity(shapes.moments(np.array(images), center))
        assert abs(e1.sum()) < 1e-6
        assert abs(e1[0]) > 1e-3


def test_pairs_do_not_depend_on_how_many_there_are() -> None:
    few, many = ring.draw_pairs(2, 0.05), ring.draw_pairs(5, 0.05)
    np.testing.assert_array_equal(few.center, many.center[:2])
    np.testing.assert_array_equal(few.galaxies.flux, many.galaxies.flux[:4])
    separation = np.hypot(*(many.center[:, 1] - many.center[:, 0]).T) * SCALE
    assert (separation >= ring.SEPARATION[0]).all()
    assert (separation <= ring.SEPARATION[1]).all()


def test_errors_are_the_scatter_of_samples_and_failures_are_left_out() -> None:
    rng = np.random.default_rng(0)
    n_sample, n = 400, 100
    true = rng.uniform(0.5, 1.5, (n_sample, n))
    measured = 0.97 * true + 0.2 * rng.standard_normal(true.shape)
    measured[:, :10] = np.nan
    found = [bias.multiplicative(a, b) for a, b in zip(measured, true, strict=True)]
    values, errors = np.array([f.value for f in found]), np.array([f.error for f in found])
    assert {f.n for f in found} == {n - 10}
    assert abs(values.mean() + 0.03) < SAMPLE_SIGMA * values.std() / np.sqrt(n_sample)
    assert errors.mean() == pytest.approx(values.std(), rel=SAMPLE_SIGMA / np.sqrt(2 * n_sample))


def test_shrinkage_of_a_gaussian_prior() -> None:
    rng = np.random.default_rng(1)
    n, prior, noise = 20000, 0.3, 0.15
    weight = prior**2 / (prior**2 + noise**2)
    posterior_mean = weight * (prior * rng.standard_normal(n) + noise * rng.standard_normal(n))
    factor = bias.shrinkage(posterior_mean[:, None], np.full(n, weight * noise**2), rng.uniform(1, 9, n))
    np.testing.assert_allclose(factor, weight, rtol=SAMPLE_SIGMA * np.sqrt(2 * bias.N_SIZE / n))


@pytest.mark.slow  # 44 small fits, which fill no tile
def test_it_runs_from_pixels_to_page_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    columns = tmp_path / "columns.npz"
    arguments = ["--quick", "--columns", str(columns), "--out", str(tmp_path)]
    assert shear.main(arguments) == 0
    text, written = (tmp_path / "shear.md").read_text(), columns.stat().st_mtime_ns
    figures = json.loads((tmp_path / "shear.json").read_text())
    assert figures["biases"]["isolated: model"]["m"]["all sizes"]["n"] == shear.N_QUICK
    assert abs(figures["biases"]["isolated: model"]["m"]["all sizes"]["value"]) < 0.3
    assert all(title in text for title in page.SHEAR_SOURCES.values())
    assert (tmp_path / "shear.png").stat().st_size > 5_000
    assert shear.main(arguments) == 0
    assert columns.stat().st_mtime_ns == written
