r"""Depth of a survey's coadds, from galcheat or the configuration, and their point-spread functions, from GalSim.

Depth. galcheat gives the counts of one nJy in the full exposure and the sky counts of a pixel. From them follows the
noise of the coadd,

    sky_sigma[b] = sqrt(sky_counts[b]) / counts_per_njy[b]    [nJy per pixel],

and the variance of a source's photon noise, flux / counts_per_njy [nJy^2]. Read noise and dark current are orders of
magnitude below the sky in broad-band coadds; they are left out, as in galcheat and in WeakLensingDeblending.

PSF. A Kolmogorov or Moffat profile convolved with the pixel: the *effective* PSF, which pipelines measure. An image of
41 x 41 pixels of 0.2 arcsec holds 99.5% of a Kolmogorov profile with a FWHM of 0.8 arcsec. The images are normalised to
one, and the profiles are scaled with them: a drawn galaxy agrees with its PSF image in the core. So fluxes are
calibrated to the aperture of the PSF image, as in real surveys, and 0.5% more light lies in the far wings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import galcheat
import galcheat.utilities
import galsim
import numpy as np
from numpy.typing import ArrayLike, NDArray

from deblendrt.engine.units import AB_ZERO_POINT
from deblendrt.training import config

PSF_IMAGE_SIZE = 41  # pixel
# Half of GalSim's default folding threshold: takes 1.5 times as long and keeps aliased light below 0.25%.
GSPARAMS = galsim.GSParams(folding_threshold=2.5e-3)


@dataclasses.dataclass(frozen=True)
class Depth:
    """Noise and nominal seeing of a survey's full-depth coadds.

    Attributes
    ----------
    bands : tuple of str
    pixel_scale : float [arcsec]
    counts_per_njy : float64 (n_band,) [electron / nJy]
        In the full exposure.
    sky_counts : float64 (n_band,) [electron / pixel]
    psf_fwhm : float64 (n_band,) [arcsec]
        FWHM of the atmosphere, without the pixel.
    """

    bands: tuple[str, ...]
    pixel_scale: float
    counts_per_njy: NDArray[np.float64]
    sky_counts: NDArray[np.float64]
    psf_fwhm: NDArray[np.float64]

    @property
    def sky_sigma(self) -> NDArray[np.float64]:
        """Sky noise, float64 (n_band,) [nJy / pixel]."""
        return np.sqrt(self.sky_counts) / self.counts_per_njy


@dataclasses.dataclass(frozen=True)
class Psf:
    """The PSF of every band, as a profile to draw with and as an image for the deblender.

    Attributes
    ----------
    image : float64 (n_band, n_y, n_x)
        Effective PSF (pixel included), odd-sized, sum one.
    profiles : tuple of galsim.GSObject
        Profile of every band, without the pixel, scaled so that it is drawn as `image`.
    """

    image: NDArray[np.float64]
    profiles: tuple[Any, ...]


def depth(survey: config.Survey) -> Depth:
    """A survey's depth, from its configuration or from galcheat.

    Parameters
    ----------
    survey : config.Survey
        Its pixel scale overrides galcheat's.

    Raises
    ------
    ValueError
        galcheat lacks the survey or one of its bands.
    """
    if survey.depth is not None:
        written = {f.name: np.array([getattr(survey.depth, f.name)[band] for band in survey.bands])
                   for f in dataclasses.fields(survey.depth)}
        sky = (written["sky_sigma"] * written["counts_per_njy"]) ** 2
        return Depth(tuple(survey.bands), survey.pixel_scale, written["counts_per_njy"], sky, written["psf_fwhm"])
    if survey.galcheat_name not in galcheat.available_surveys:
        raise ValueError(f"survey.galcheat_name: {survey.galcheat_name!r} is none of galcheat's "
                         f"{galcheat.available_surveys}; a table [survey.depth] serves any survey")
    found = galcheat.get_survey(survey.galcheat_name)
    unknown = [band for band in survey.bands if band not in found.available_filters]
    if unknown:
        raise ValueError(f"survey.bands: {unknown} not among galcheat's {survey.galcheat_name} filters "
                         f"{found.available_filters}")
    counts, sky, fwhm = [], [], []
    for band in survey.bands:
        # galcheat truncates counts to integers, which is harmless at magnitude 0
        zero = galcheat.utilities.mag2counts(0.0, found, band).value
        counts.append(zero * 10 ** (-0.4 * AB_ZERO_POINT))
        pixels = (survey.pixel_scale / found.pixel_scale.to_value("arcsec")) ** 2
        sky.append(galcheat.utilities.mean_sky_level(found, band).value * pixels)
        fwhm.append(found.get_filter(band).psf_fwhm.to_value("arcsec"))
    return Depth(tuple(survey.bands), survey.pixel_scale, np.array(counts), np.array(sky), np.array(fwhm))


def psf_from_profiles(profiles: Sequence[Any], pixel_scale: float, size: int = PSF_IMAGE_SIZE) -> Psf:
    """PSFs from one profile per band, which does not include the pixel.

    Parameters
    ----------
    profiles : sequence of galsim.GSObject
    pixel_scale : float [arcsec]
    size : int [pixel]
        Odd.
    """
    if size % 2 == 0:
        raise ValueError(f"size: expected an odd number of pixels, got {size}")
    images, scaled = [], []
    for profile in profiles:
        image = profile.drawImage(nx=size, ny=size, scale=pixel_scale, dtype=np.float64).array
        scaled.append(profile / image.sum())
        images.append(image / image.sum())
    return Psf(np.array(images), tuple(scaled))


def psf_from_fwhm(fwhm: ArrayLike, pixel_scale: float, *, ellipticity: ArrayLike = (0.0, 0.0),
                  moffat_beta: float | None = None, size: int = PSF_IMAGE_SIZE) -> Psf:
    """Return PSFs of given widths and ellipticities.

    Parameters
    ----------
    fwhm : float (n_band,) [arcsec]
        FWHM without the pixel.
    pixel_scale : float [arcsec]
    ellipticity : float (2,) or (n_band, 2)
        Reduced shear (g1, g2), common to the bands or of each band.
    moffat_beta : float, optional
        Slope of a Moffat profile; by default the profile is Kolmogorov's.
    size : int [pixel]
        Odd.
    """
    fwhm = np.atleast_1d(np.asarray(fwhm, np.float64))
    shear = np.broadcast_to(np.asarray(ellipticity, np.float64), (len(fwhm), 2))
    profiles = []
    for width, (g1, g2) in zip(fwhm, shear, strict=True):
        if moffat_beta is None:
            profile = galsim.Kolmogorov(fwhm=width, gsparams=GSPARAMS)
        else:
            profile = galsim.Moffat(beta=moffat_beta, fwhm=width, gsparams=GSPARAMS)
        profiles.append(profile.shear(g1=g1, g2=g2) if g1 or g2 else profile)
    return psf_from_profiles(profiles, pixel_scale, size)


def nominal_psf(depth: Depth, size: int = PSF_IMAGE_SIZE) -> Psf:
    """Round Kolmogorov PSFs at the survey's nominal seeing."""
    return psf_from_fwhm(depth.psf_fwhm, depth.pixel_scale, size=size)


def random_psf(depth: Depth, rng: np.random.Generator, *, scatter: float = 0.12, band_scatter: float = 0.06,
               ellipticity: float = 0.03, size: int = PSF_IMAGE_SIZE) -> Psf:
    """Draw a random PSF of a coadd, as PSFs vary over a survey.

    Half of the PSFs are Kolmogorov, half Moffat with beta uniform in 2.5-4.5: coadds have heavier wings than one
    turbulent exposure. The widths scatter log-normally, in common and per band. Measured DC2 coadds differ from the
    nominal widths by up to 45% in y, the worst band.

    Parameters
    ----------
    depth : Depth
    rng : numpy.random.Generator
    scatter, band_scatter : float
        Standard deviation of ln FWHM: common to the bands, and of each band.
    ellipticity : float
        Standard deviation of the shear components that the bands share.
        Each band adds its own scatter, a third as large.
    size : int [pixel]
    """
    n_band = len(depth.bands)
    fwhm = depth.psf_fwhm * np.exp(scatter * rng.normal() + band_scatter * rng.normal(size=n_band))
    shear = np.clip(ellipticity * (rng.normal(size=2) + rng.normal(size=(n_band, 2)) / 3.0), -0.3, 0.3)
    beta = None if rng.random() < 0.5 else float(rng.uniform(2.5, 4.5))
    return psf_from_fwhm(fwhm, depth.pixel_scale, ellipticity=shear, moffat_beta=beta, size=size)
