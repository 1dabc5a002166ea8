"""The workloads are frozen, and `perf.gate.mixtures` draws them right."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from perf.gate import cases, mixtures

BLEND = cases.blend_scene(1, 0)


@pytest.mark.parametrize("name", cases.CASES)
def test_inputs_are_frozen(name):
    assert cases.digest(name, cases.CASES[name].short) == cases.DIGESTS[name]


@pytest.mark.parametrize(("field", "step"), [("image", cases.IMAGE_STEP), ("variance", cases.VARIANCE_STEP),
                                             ("centers", cases.CENTER_STEP), ("flux", cases.IMAGE_STEP)])
def test_the_hash_guards_what_is_given_and_the_truth_but_not_low_bits(monkeypatch, field, step):
    def digest(changed):
        case = dataclasses.replace(cases.CASES["cold_start"], scene=lambda k, size: changed)
        monkeypatch.setitem(cases.CASES, "cold_start", case)
        return cases.digest("cold_start", 1)

    frozen = digest(BLEND)
    values = getattr(BLEND, field).astype(np.float64)
    values.flat[7] += step
    assert digest(dataclasses.replace(BLEND, **{field: values})) != frozen
    rounding = getattr(BLEND, field).astype(np.float64)
    if field == "flux":  # as it is, not a multiple of the step
        rounding = np.rint(rounding / step) * step
        frozen = digest(dataclasses.replace(BLEND, flux=rounding))
    assert digest(dataclasses.replace(BLEND, **{field: rounding + 1e-3 * step})) == frozen


def test_scenes_do_not_depend_on_how_many_there_are():
    few, more = (list(cases.CASES["burst"].scenes(n)) for n in (2, 3))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(few[0], more[0][:2], strict=True))
    assert [len(together) for together in cases.CASES["burst"].scenes(65)] == [64, 1]


def test_noise_is_what_the_variance_says():
    pull = (BLEND.image - BLEND.truth) / np.sqrt(BLEND.variance)
    assert abs(pull.std() - 1) < 0.01
    assert abs(pull.mean()) < 0.01
    assert BLEND.truth[cases.REFERENCE].sum() == pytest.approx(BLEND.flux[:, cases.REFERENCE].sum(), rel=0.05)


def test_the_burst_arrives_at_its_rate():
    due = cases.arrivals(10_000)
    assert (np.diff(due) > 0).all()
    assert due[-1] == pytest.approx(5.0, rel=0.05)
    assert np.array_equal(due[:10], cases.arrivals(10))


def direct(galaxy, sigma, x, y):
    """A galaxy in one band, summed Gaussian by Gaussian in pixels."""
    turn = np.array([[np.cos(galaxy.angle), -np.sin(galaxy.angle)], [np.sin(galaxy.angle), np.cos(galaxy.angle)]])
    image = np.zeros(np.broadcast_shapes(x.shape, y.shape))
    for flux, radius, ratio, profile in (
            (galaxy.bulge_flux, galaxy.bulge_radius, galaxy.bulge_axis_ratio, mixtures.DE_VAUCOULEURS),
            (galaxy.disk_flux, galaxy.disk_radius, galaxy.disk_axis_ratio, mixtures.EXPONENTIAL)):
        shape = turn @ np.diag([radius**2 / ratio, radius**2 * ratio]) @ turn.T
        for amplitude, variance in zip(*mixtures.mixture(profile), strict=True):
            for share, width in ((1 - mixtures.WING_SHARE, sigma), (mixtures.WING_SHARE, mixtures.WING_WIDTH * sigma)):
                a = np.linalg.inv(variance * shape + width**2 * np.eye(2))
                square = a[0, 0] * x**2 + 2 * a[0, 1] * x * y + a[1, 1] * y**2
                image += flux[0] * amplitude * share * np.sqrt(np.linalg.det(a)) / (2 * np.pi) * np.exp(-0.5 * square)
    return image


@pytest.mark.parametrize("radius", [0.3, 4.0])
def test_drawing_agrees_with_the_sum_in_pixels(radius):
    galaxy = mixtures.Galaxy(40.3, -7.6, np.array([30.0]), np.array([70.0]), radius, 1.3 * radius, 0.7, 0.4, 0.6)
    image, (x, y) = mixtures.draw(galaxy, (3.9,))
    row, column = np.mgrid[: image.shape[1], : image.shape[2]]
    expected = direct(galaxy, mixtures.psf_sigma(np.array(3.9)), column + x - galaxy.x, row + y - galaxy.y)
    # aliasing, the table, and the light that the periodic field wraps around
    assert np.abs(image[0] - expected).max() < 2e-6 * 100
    assert image.sum() == pytest.approx(100.0, rel=1e-9)


def test_half_of_a_profile_lies_within_its_half_light_radius():
    for profile in (mixtures.EXPONENTIAL, mixtures.DE_VAUCOULEURS):
        amplitude, variance = mixtures.mixture(profile)
        assert amplitude.sum() == pytest.approx(1)
        assert (amplitude * np.exp(-0.5 / variance)).sum() == pytest.approx(0.5)


def test_psf_images_sum_to_one():
    assert np.abs(cases.psf().sum((1, 2)) - 1).max() < 1e-6
