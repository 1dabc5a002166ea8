"""Survey depth and PSFs."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("galsim")
pytest.importorskip("galcheat")

from deblendrt.engine.units import to_magnitude
from deblendrt.training import config
from deblendrt.training.simulation import survey

LSST = config.Survey("LSST", ["u", "g", "r", "i", "z", "y"], "i", 0.2, "LSST_{band}.dat")
HSC = config.Survey("HSC", ["g", "r", "i", "z", "y"], "i", 0.168, "LSST_{band}.dat")


@pytest.mark.parametrize("spec", [LSST, HSC], ids=["LSST", "HSC"])
def test_depth_counts(spec):
    depth = survey.depth(spec)
    assert depth.bands == tuple(spec.bands)
    for values in (depth.counts_per_njy, depth.sky_counts, depth.sky_sigma, depth.psf_fwhm):
        assert values.shape == (len(spec.bands),)
        assert np.all(values > 0)
    np.testing.assert_allclose(depth.sky_sigma * depth.counts_per_njy, np.sqrt(depth.sky_counts))


def test_depth_matches_published_coadd_depths():
    """Five-sigma point-source depths within 0.5 mag of the LSST Science Requirements (Ivezic et al. 2019, table 1).

    galcheat's exposure times and sky differ from the current baseline; y and u by most.
    """
    depth = survey.depth(LSST)
    psf = survey.nominal_psf(depth)
    error = depth.sky_sigma / np.sqrt((psf.image**2).sum((1, 2)))
    magnitude = to_magnitude(5 * error)
    assert np.all(np.abs(magnitude - [26.1, 27.4, 27.5, 26.8, 26.1, 24.9]) < 0.5)


def test_sky_scales_with_pixel_area():
    wide = config.Survey("LSST", ["r"], "r", 0.4, "LSST_{band}.dat")
    narrow = config.Survey("LSST", ["r"], "r", 0.2, "LSST_{band}.dat")
    np.testing.assert_allclose(survey.depth(wide).sky_counts, 4 * survey.depth(narrow).sky_counts)


def test_unknown_band_is_named():
    with pytest.raises(ValueError, match="w"):
        survey.depth(config.Survey("LSST", ["w"], "w", 0.2, ""))


def test_unknown_survey_is_named():
    with pytest.raises(ValueError, match=r"galcheat_name: 'Roman' is none of galcheat's .*HSC.*\[survey\.depth\]"):
        survey.depth(config.Survey("Roman", ["r"], "r", 0.11, ""))


def test_written_depth():
    """A depth in the configuration is taken unchanged, in the order of the bands."""
    table = config.DepthTable(psf_fwhm={"i": 0.6, "r": 0.7}, sky_sigma={"r": 1.5, "i": 2.0},
                         counts_per_njy={"i": 80.0, "r": 90.0})
    depth = survey.depth(config.Survey(None, ["r", "i"], "i", 0.168, "", table))
    assert depth.bands == ("r", "i")
    np.testing.assert_allclose(depth.psf_fwhm, [0.7, 0.6])
    np.testing.assert_allclose(depth.sky_sigma, [1.5, 2.0])
    np.testing.assert_allclose(depth.counts_per_njy, [90, 80])
    np.testing.assert_allclose(depth.sky_counts, [(90 * 1.5) ** 2, (80 * 2.0) ** 2])


def test_hsc_is_between_the_survey_s_layers():
    """The shipped HSC depth is less than two magnitudes deeper than galcheat's, which is the Wide layer's."""
    written, wide = survey.depth(config.load("hsc.toml").survey), survey.depth(HSC)
    deeper = 2.5 * np.log10(wide.sky_sigma / written.sky_sigma)
    assert np.all((deeper > 0.3) & (deeper < 1.5))
    np.testing.assert_allclose(written.psf_fwhm, wide.psf_fwhm)


def _second_moments(image):
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    y, x = y - image.shape[0] // 2, x - image.shape[1] // 2
    weight = image * np.exp(-(x**2 + y**2) / (2 * 3.0**2))
    return (weight * x**2).sum(), (weight * y**2).sum(), (weight * x * y).sum()


def test_psf_images_are_normalised_centred_and_sheared():
    psf = survey.psf_from_fwhm([0.7, 0.9], 0.2, ellipticity=[[0.0, 0.0], [0.1, 0.0]])
    assert psf.image.shape == (2, survey.PSF_IMAGE_SIZE, survey.PSF_IMAGE_SIZE)
    np.testing.assert_allclose(psf.image.sum((1, 2)), 1.0, rtol=1e-12)
    for image in psf.image:
        assert np.unravel_index(image.argmax(), image.shape) == (survey.PSF_IMAGE_SIZE // 2,) * 2
    round_x, round_y, _ = _second_moments(psf.image[0])
    long_x, long_y, _ = _second_moments(psf.image[1])
    assert round_x == pytest.approx(round_y, rel=1e-3)
    assert long_x > 1.1 * long_y


def test_profile_draws_the_image():
    psf = survey.psf_from_fwhm([0.8], 0.2, moffat_beta=3.0, size=31)
    drawn = psf.profiles[0].drawImage(nx=31, ny=31, scale=0.2, dtype=np.float64).array
    np.testing.assert_allclose(drawn, psf.image[0], atol=1e-12)


def test_bad_psf_sizes_raise():
    with pytest.raises(ValueError, match="size"):
        survey.psf_from_fwhm([0.8], 0.2, size=40)


def test_random_psf_is_seeded_and_varies():
    depth = survey.depth(LSST)
    first, again = (survey.random_psf(depth, np.random.default_rng(3)).image for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = survey.random_psf(depth, np.random.default_rng(4)).image
    assert np.abs(first - other).max() > 1e-3
