"""The forms in which a caller may give PSFs: each against the images that it means, or its error."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy import units as u
from astropy.convolution import Gaussian2DKernel
from astropy.io import fits
from astropy.modeling.models import Gaussian2D, Moffat2D
from toy_model import gaussian_psf

from deblendrt import engine
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.scene.psf.field import PsfField
from deblendrt.engine.scene.psf.images import CENTRED, centred_psf, kolmogorov_psf, psf_centroid, psf_fwhm
from deblendrt.engine.scene.scene import Scene, make_scenes

MODEL: dict[str, Any] = {"bundle_bands": ("g", "r", "i"), "bundle_pixel_scale": 0.2, "window_half": 4,
                         "bundle_psf_fwhm": [0.8, 0.7, 0.65]}
IMAGE = np.random.default_rng(0).normal(size=(3, 20, 24))
PSF = np.array([gaussian_psf(f) for f in (4.0, 3.6, 3.4)])
Q = PSF.shape[1]


def gaussian(n_x: int, n_y: int, x: float, y: float, fwhm: float = 4.0) -> np.ndarray:
    """A Gaussian with its centre at a position; narrow enough that no image cuts it."""
    sigma = fwhm / 2.35482
    image = np.exp(-0.5 * ((np.arange(n_x) - x) ** 2 + ((np.arange(n_y) - y) ** 2)[:, None]) / sigma**2)
    return np.asarray(image / image.sum())


def scenes(psf: Any, n: int = 1, n_band: int = 3) -> list[Scene]:
    bands = "gri"[:n_band]
    if n == 1:
        return make_scenes(IMAGE[:n_band], [(10, 8)], variance=1.0, psf=psf, bands=bands, **MODEL)
    return make_scenes([IMAGE[:n_band]] * n, [[(10, 8)]] * n, variance=1.0, psf=psf, bands=bands, **MODEL)


def images(scene: Scene) -> np.ndarray:
    psf = scene.psf
    assert psf is not None
    return psf.images[0] if isinstance(psf, PsfField) else psf


def quiet(psf: Any, n: int = 1, n_band: int = 3) -> list[Scene]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", engine.InputWarning)
        return scenes(psf, n, n_band)


# --- the centre of an image


@pytest.mark.parametrize(("n_x", "n_y", "x", "y"), [
    (40, 40, 19.5, 19.5), (40, 40, 20.0, 20.0), (41, 41, 20.3, 19.6), (41, 40, 20.0, 19.5), (30, 44, 16.2, 20.4),
    (41, 41, 23.0, 17.0)])
def test_an_image_is_moved_to_its_centroid(n_x: int, n_y: int, x: float, y: float) -> None:
    psf = centred_psf(gaussian(n_x, n_y, x, y))
    side = len(psf.image)
    assert psf.image.shape == (side, side)
    assert side % 2 == 1
    np.testing.assert_allclose(psf.image, gaussian(side, side, side // 2, side // 2), atol=1e-7)
    assert psf.shift is not None


def test_a_centred_image_keeps_its_bits() -> None:
    for x in (20.0, 20.0 + 0.9 * CENTRED):
        image = gaussian(41, 41, x, 20.0)
        psf = centred_psf(image)
        assert psf.shift is None
        np.testing.assert_array_equal(psf.image, image)
    assert centred_psf(gaussian(41, 41, 20 + 1.1 * CENTRED, 20)).shift is not None


def test_the_centroid_does_not_follow_noise_and_cut_wings() -> None:
    rng = np.random.default_rng(1)
    image = gaussian(41, 41, 20, 20)
    noisy = image + 1e-3 * image.max() * rng.normal(size=image.shape)
    assert np.abs(psf_centroid(noisy) - 20).max() < 0.3 * CENTRED
    assert np.hypot(*(np.indices(image.shape) * noisy).sum((1, 2)) / noisy.sum() - 20) > CENTRED  # the plain one does


@pytest.mark.parametrize(("image", "message"), [
    (np.fft.ifftshift(gaussian(41, 41, 20, 20)), "near the middle.*fftshift"),
    (gaussian(41, 41, 33, 20), r"centroid \(33.0, 20.0\) in 41 x 41"), (np.zeros((5, 5)), "positive sum"),
    (np.full((5, 5), np.nan), "finite"), (np.zeros(5), r"image \(q, q\)")])
def test_images_without_a_centre(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        centred_psf(image)


# --- a width


@pytest.mark.parametrize("fwhm", [2.0, 2.5, 4.0, 6.3])
def test_kolmogorov(fwhm: float) -> None:
    image = kolmogorov_psf(fwhm)
    assert psf_fwhm(image) == pytest.approx(fwhm, rel=0.01)
    assert image.sum() == pytest.approx(1)
    np.testing.assert_allclose(psf_centroid(image), len(image) // 2, atol=1e-6)
    galsim = pytest.importorskip("galsim")
    drawn = galsim.Kolmogorov(fwhm=fwhm).drawImage(nx=len(image), ny=len(image), scale=1, method="no_pixel").array
    np.testing.assert_allclose(image, drawn / drawn.sum(), atol=1e-3 * image.max())


# --- forms of one scene that mean the same


class GridModel(SimpleNamespace):
    """A stand-in for an astropy model with images, such as photutils' GriddedPSFModel, of oversampling 2."""

    n_inputs, param_names, oversampling = 2, ("flux", "x_0", "y_0"), (2, 2)
    data = np.zeros((4, 51, 51))
    flux, x_0, y_0 = (SimpleNamespace(value=v, unit=None) for v in (1.0, 0.0, 0.0))

    def evaluate(self, x: Any, y: Any, flux: float, x_0: float, y_0: float) -> np.ndarray:
        return flux * np.exp(-0.5 * ((x - x_0) ** 2 + (y - y_0) ** 2) / 1.7**2)


class PiffModel:
    """A stand-in for piff.PSF: positions from 1, and `center=True` for the middle of the stamp."""

    def draw(self, x: float, y: float, center: bool, stamp_size: int) -> Any:
        assert (x, y, center, stamp_size % 2) == (12.5, 10.5, True, 1)  # the middle of the image
        return SimpleNamespace(array=7 * gaussian(stamp_size, stamp_size, stamp_size // 2, stamp_size // 2))


def of_sigma(sigma: float, side: int) -> np.ndarray:
    return np.array([gaussian(side, side, side // 2, side // 2, 2.35482 * sigma)] * 3)


SAME: dict[str, tuple[Callable[[], Any], np.ndarray]] = {
    "array": (lambda: PSF, PSF),
    "list": (lambda: list(PSF), PSF),
    "dict in another order": (lambda: dict(zip("irg", PSF[::-1], strict=True)), PSF),
    "one image": (lambda: PSF[0], PSF[[0, 0, 0]]),
    "one image with a band axis": (lambda: PSF[:1], PSF[[0, 0, 0]]),
    "kernel": (lambda: Gaussian2DKernel(1.7, x_size=31, y_size=31), of_sigma(1.7, 31)),
    "FWHM": (lambda: 0.8, np.array([kolmogorov_psf(4.0)] * 3)),
    "FWHM of NumPy": (lambda: np.float32(0.8), np.array([kolmogorov_psf(4.0)] * 3)),
    "Quantity": (lambda: 800 * u.mas, np.array([kolmogorov_psf(4.0)] * 3)),
    "Quantity in pixels": (lambda: 4 * u.pix, np.array([kolmogorov_psf(4.0)] * 3)),
    "FWHM of each band": (lambda: [0.8, 0.8, 0.8], np.array([kolmogorov_psf(4.0)] * 3)),
    "Quantity of each band": (lambda: [0.8, 0.8, 0.8] * u.arcsec, np.array([kolmogorov_psf(4.0)] * 3)),
    "function of all bands": (lambda: lambda x, y: PSF, PSF),
    "function of one image": (lambda: lambda x, y: PSF[0], PSF[[0, 0, 0]]),
    "function of a FWHM": (lambda: lambda x, y: 0.8, np.array([kolmogorov_psf(4.0)] * 3)),
    "cells": (lambda: engine.CellPsf([[PSF, None]], [0, 60, 99], [0, 99]), PSF),
    "astropy's Gaussian": (lambda: Gaussian2D(5, 0, 0, 1.7, 1.7), of_sigma(1.7, 51)),
    "models of the bands": (lambda: [Gaussian2D(5, 0, 0, 1.7, 1.7)] * 3, of_sigma(1.7, 51)),
}


@pytest.mark.parametrize("name", SAME)
def test_forms(name: str) -> None:
    make, expected = SAME[name]
    (scene,) = quiet(make())
    got = images(scene)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected / expected.sum((1, 2), keepdims=True), atol=3e-7)
    assert not scene.flags & (Flag.PSF_NOMINAL | Flag.PSF_NOT_NORMALIZED)


def test_models_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "piff", SimpleNamespace(PSF=PiffModel))
    got = images(quiet(PiffModel())[0])
    np.testing.assert_allclose(got, of_sigma(4 / 2.35482, 51), atol=1e-7)
    monkeypatch.setattr("astropy.modeling.Model", GridModel)
    got = images(quiet(GridModel())[0])
    assert got.shape == (3, 25, 25)  # the model's images have 51 pixels of half the size
    np.testing.assert_allclose(got[0], of_sigma(1.7, 25)[0], atol=1e-6)


def test_the_real_models() -> None:
    piff, galsim = pytest.importorskip("piff"), pytest.importorskip("galsim")
    photutils = pytest.importorskip("photutils.psf")
    from astropy.nddata import NDData

    interpolation = piff.Mean()
    interpolation.mean = np.array([0.8, 0.0, 0.0])
    model = piff.SimplePSF(piff.GSObjectModel(galsim.Kolmogorov(fwhm=1.0)), interpolation)
    model.wcs, model.pointing = {0: galsim.PixelScale(0.2)}, None
    expected = galsim.Kolmogorov(fwhm=0.8).drawImage(nx=51, ny=51, scale=0.2).array
    np.testing.assert_allclose(images(quiet(model)[0])[0], expected / expected.sum(), atol=1e-6)
    fine = gaussian(101, 101, 50, 50, 16.0)
    grid = photutils.GriddedPSFModel(NDData(np.array([fine] * 4), meta={
        "grid_xypos": [(0, 0), (24, 0), (0, 20), (24, 20)], "oversampling": 4}))
    np.testing.assert_allclose(images(quiet(grid)[0])[0], gaussian(25, 25, 12, 12, 4.0), atol=1e-5)


def test_galsim_objects() -> None:
    galsim = pytest.importorskip("galsim")
    profile = galsim.Gaussian(fwhm=0.8)
    expected = profile.drawImage(nx=51, ny=51, scale=0.2).array  # with the pixel
    np.testing.assert_allclose(images(quiet(profile)[0])[1], expected / expected.sum(), atol=1e-7)


def test_files(tmp_path: Path) -> None:
    cube, one = tmp_path / "cube.fits", tmp_path / "one.fits"
    fits.PrimaryHDU(PSF).writeto(cube)
    fits.PrimaryHDU(PSF[1]).writeto(one)
    for psf, expected in ((cube, PSF), (str(cube), PSF), (one, PSF[[1, 1, 1]]),
                          ({"g": one, "r": PSF[0], "i": str(one)}, PSF[[1, 0, 1]])):
        np.testing.assert_allclose(images(quiet(psf)[0]), expected, atol=1e-8)


# --- several scenes


def test_entries_of_scenes() -> None:
    wide = kolmogorov_psf(4.0)
    for psf, n in (([0.8, 0.7], 2), ([[0.8, 0.7, 0.7], [0.7, 0.7, 0.7]], 2), ([PSF, 0.7], 2), ([wide, PSF[0]], 2),
                   ([{"g": 0.8, "r": 0.7, "i": 0.6}, PSF], 2), ([lambda x, y: wide, lambda x, y: PSF[0]], 2)):
        first, second = quiet(psf, n)
        assert not np.array_equal(images(first)[0], images(second)[0])
    for psf in (0.8, [0.8, 0.7, 0.6], PSF, PSF[0], {"g": 0.8, "r": 0.7, "i": 0.6}):
        first, second = quiet(psf, 2)
        assert first.psf is second.psf
    for psf in (0.8, PSF[0], [0.8, 0.7], [PSF[0], PSF[1]], PSF[:2, None]):
        assert images(quiet(psf, 2, n_band=1)[0]).shape[0] == 3
    for psf in ([0.8, 0.7, 0.6], list(PSF)):
        with pytest.raises(ValueError, match="psf: expected entries that belong either to the 3 bands or to the 3"):
            scenes(psf, 3)


# --- what is said


def test_no_psf_is_said_and_flagged() -> None:
    with pytest.warns(engine.InputWarning, match=r'psf: none was given; .*FWHM g 0.80, r 0.70, i 0.65.*psf="nominal"'):
        (scene,) = scenes(None)
    assert scene.psf is None
    assert (scene.flags & Flag.PSF_NOMINAL).all()
    with pytest.warns(engine.InputWarning, match="for 1 of 2 scenes"):
        first, second = scenes([PSF, None], 2)
    assert not first.flags & Flag.PSF_NOMINAL
    assert second.flags & Flag.PSF_NOMINAL


def test_the_nominal_psf_by_name() -> None:
    for psf, n in (("nominal", 1), ("nominal", 3), (["nominal"] * 3, 3), ([PSF, "nominal"], 2)):
        made = quiet(psf, n)
        assert made[-1].psf is None
        assert not any(scene.flags[0] & Flag.PSF_NOMINAL for scene in made)


def test_a_scene_without_sources_needs_no_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", engine.InputWarning)
        make_scenes(IMAGE, np.zeros((0, 2)), variance=1.0, psf=None, **MODEL)


def test_recentred_images_are_said() -> None:
    even = gaussian(30, 30, 14.5, 14.5)
    with pytest.warns(engine.InputWarning,
                      match=r"psf of band r: 30 x 30 pixels with the centroid at \(14.50, 14.50\): recentred"):
        (scene,) = scenes([PSF[0], even, PSF[2]])
    np.testing.assert_allclose(images(scene)[1], gaussian(31, 31, 15, 15), atol=1e-6)
    with pytest.warns(engine.InputWarning, match="likewise 2 other images"):
        scenes(even)


# --- refused


@pytest.mark.parametrize(("psf", "message"), [
    ("nominall", "psf: expected images .*got 'nominall', which is no file"),
    (Path("/no/such.psf"), "which is no file"), (object(), "psf: expected images .*object"),
    (-0.8, "FWHM in arcsec.*got -0.8"), (0, "FWHM"), (np.nan, "FWHM"), (True, "FWHM"), (60.0, "up to 10.2"),
    (0.8 * u.nJy, "FWHM"), ([0.8, 0.7], "3, q, q"), (PSF[:2], r"images \(3, q, q\) for the bands g, r, i"),
    (PSF[None], r"images \(3, q, q\)"), (PSF * 1j, "real numbers"), ({"g": PSF[0]}, "expected the bands g, r, i"),
    ({"g": PSF[0], "r": PSF[0], "i": PSF}, "band i|images"), ({"g": 0.8, "r": 0.7, "i": -1}, "psf of band i: .*FWHM"),
    (Moffat2D(1, 0, 0, 3 * u.arcsec, 2.5), "parameters in pixels, got arcsec"),
    (np.ma.masked_array(PSF, PSF > 0.01), "masked pixels"), (PSF * u.nJy, "without a unit"),
    (lambda x, y: -1.0, r"psf of cell \(0, 0\): expected a FWHM"),
    (lambda x, y: "nominal", r"psf of cell \(0, 0\): expected images"),
])
def test_refused(psf: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenes(psf)
