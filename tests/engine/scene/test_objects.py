"""Objects of astropy, pandas and xarray: all that they state is honoured, or refused with the argument's name."""

from __future__ import annotations

import types
import warnings
from typing import Any

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    Cutout2D,
    InverseVariance,
    NDData,
    StdDevUncertainty,
    UnknownUncertainty,
    VarianceUncertainty,
)
from astropy.table import Column
from astropy.time import Time
from astropy.utils.masked import Masked

from deblendrt.engine.scene.psf.field import CellPsf
from deblendrt.engine.scene.scene import Scene, make_scenes
from deblendrt.engine.units import InputWarning

BANDS = ("g", "r", "i")
MODEL: dict[str, Any] = {"bundle_bands": BANDS, "bundle_pixel_scale": 0.2, "window_half": 4}
CENTER = [(10.0, 8.0)]
SHAPE = (3, 20, 24)
RANDOM = np.random.default_rng(0)
IMAGE, VARIANCE = RANDOM.normal(size=SHAPE), RANDOM.uniform(1, 2, SHAPE)
BAD = RANDOM.random(SHAPE) > 0.9
PSF = RANDOM.uniform(0.5, 1, (3, 7, 7)) * np.exp(-np.hypot(*np.mgrid[-3:4, -3:4]))
PSF += PSF[:, ::-1, ::-1]  # centred
PSF /= PSF.sum((1, 2), keepdims=True)
STATED = (0.5, 0.25, 0.125)


def one(cutouts: Any = IMAGE, **options: Any) -> Scene:
    (scene,) = make_scenes(cutouts, **(MODEL | {"centers": CENTER} | options))
    return scene


def same(scene: Scene, expected: Scene) -> None:
    np.testing.assert_allclose(scene.image, expected.image, rtol=2e-7)
    np.testing.assert_allclose(scene.inverse_variance, expected.inverse_variance, rtol=2e-7)
    assert (scene.psf is None) == (expected.psf is None)
    if expected.psf is not None:
        np.testing.assert_array_equal(scene.psf, expected.psf)


def ccd(planes: Any = IMAGE, **parts: Any) -> CCDData:
    return CCDData(planes, **({"unit": "nJy"} | parts))


def planes(**parts: Any) -> list[CCDData]:
    """A CCDData for each band; a part with an entry for each band is divided among them."""
    return [ccd(IMAGE[b], **{key: part[b] for key, part in parts.items()}) for b in range(3)]


def data_array(values: Any, dims: tuple[str, ...] = ("band", "y", "x"), **options: Any) -> Any:
    return pytest.importorskip("xarray").DataArray(values, dims=dims, **options)


def series(values: Any, index: Any) -> Any:
    return pytest.importorskip("pandas").Series(values, index=index)


# ---- honoured: the call and its form with plain arrays in nJy

MICRO, CGS = 1e-3 * u.uJy, "erg / (s cm2 Hz)"
PLAIN = {"variance": VARIANCE}
HONOURED: dict[str, tuple[Any, Any]] = {
    "CCDData, uJy": (lambda: one(ccd(IMAGE * 1e-3, unit="uJy"), variance=VARIANCE * u.nJy**2), PLAIN),
    "CCDData, nanomaggies": (lambda: one(ccd(IMAGE / 10**3.56, unit="nmgy"), variance=VARIANCE * u.nJy**2), PLAIN),
    "Quantity, nJy per pixel": (
        lambda: one(IMAGE * u.nJy / u.pix, variance=VARIANCE * u.nJy**2 / u.pix**2), PLAIN),
    "Quantity, cgs": (lambda: one((IMAGE * u.nJy).to(CGS), variance=(VARIANCE * u.nJy**2).to(u.Unit(CGS)**2)), PLAIN),
    "Quantity, variance in nanomaggies": (
        lambda: one(IMAGE * u.nJy, variance=VARIANCE / 10**7.12 * u.nmgy**2), PLAIN),
    "mask of CCDData": (lambda: one(ccd(mask=BAD), variance=VARIANCE * u.nJy**2), PLAIN | {"mask": BAD}),
    "mask of CCDData and argument": (
        lambda: one(ccd(mask=BAD), mask=BAD[::-1], variance=VARIANCE * u.nJy**2), PLAIN | {"mask": BAD | BAD[::-1]}),
    "mask of one plane for all": (lambda: one(NDData(IMAGE, mask=BAD[0]), variance=VARIANCE), PLAIN | {"mask": BAD[0]}),
    "mask of 0 and 1": (lambda: one(NDData(IMAGE, mask=BAD.astype(int)), variance=VARIANCE), PLAIN | {"mask": BAD}),
    "StdDevUncertainty": (lambda: one(ccd(uncertainty=StdDevUncertainty(np.sqrt(VARIANCE)))), PLAIN),
    "VarianceUncertainty": (lambda: one(ccd(uncertainty=VarianceUncertainty(VARIANCE))), PLAIN),
    "InverseVariance": (lambda: one(ccd(uncertainty=InverseVariance(1 / VARIANCE))), PLAIN),
    "InverseVariance of 0": (
        lambda: one(ccd(uncertainty=InverseVariance(np.where(BAD, 0, 1 / VARIANCE)))), PLAIN | {"mask": BAD}),
    "uncertainty in another unit": (
        lambda: one(ccd(uncertainty=StdDevUncertainty(np.sqrt(VARIANCE) * 1e-3, unit="uJy"))), PLAIN),
    "uncertainty without units": (lambda: one(NDData(IMAGE, uncertainty=StdDevUncertainty(np.sqrt(VARIANCE)))), PLAIN),
    "uncertainty as variance": (lambda: one(variance=StdDevUncertainty(np.sqrt(VARIANCE))), PLAIN),
    "uncertainty of counts": (
        lambda: one(ccd(unit="adu", uncertainty=StdDevUncertainty(np.sqrt(VARIANCE))), zero_point=31.4), PLAIN),
    "CCDData for each band": (
        lambda: one(planes(uncertainty=[VarianceUncertainty(plane) for plane in VARIANCE], mask=BAD)),
        PLAIN | {"mask": BAD}),
    "mixed units of bands": (
        lambda: one([ccd(IMAGE[0]), ccd(IMAGE[1] / 1e3, unit="uJy"), ccd(IMAGE[2] / 1e6, unit="mJy")],
                    variance=VARIANCE * u.nJy**2), PLAIN),
    "PSF of NDData": (lambda: one(NDData(IMAGE, psf=PSF), variance=VARIANCE, psf=None), PLAIN | {"psf": PSF}),
    "PSF of each band's CCDData": (
        lambda: one([NDData(IMAGE[b], psf=PSF[b]) for b in range(3)], variance=VARIANCE, psf=None),
        PLAIN | {"psf": PSF}),
    "Cutout2D": (lambda: one([Cutout2D(plane, (11.5, 9.5), (20, 24)) for plane in IMAGE], variance=VARIANCE), PLAIN),
    "Masked Quantity": (lambda: one(Masked(IMAGE * u.nJy, mask=BAD), variance=VARIANCE * u.nJy**2),
                        PLAIN | {"mask": BAD}),
    "masked background": (
        lambda: one(variance=VARIANCE, background=np.ma.masked_array(0 * IMAGE, BAD)), PLAIN | {"mask": BAD}),
    "masked mask": (lambda: one(variance=VARIANCE, mask=np.ma.masked_array(np.zeros(SHAPE, bool), BAD)),
                    PLAIN | {"mask": BAD}),
    "dict of bands": (lambda: one(dict(zip("irg", IMAGE[::-1], strict=True)),
                                  variance=dict(zip("gri", VARIANCE, strict=True)), bands="gri"), PLAIN),
    "dict of bands that names them": (lambda: one(dict(zip("irg", IMAGE[::-1], strict=True)),
                                                  variance=dict(zip("gri", VARIANCE, strict=True))), PLAIN),
    "dict of numbers, psfs and masks": (
        lambda: one(variance=dict(zip("irg", STATED[::-1], strict=True)), psf=dict(zip("irg", PSF[::-1], strict=True)),
                    mask=dict(zip("irg", BAD[::-1], strict=True))), {"variance": STATED, "psf": PSF, "mask": BAD}),
    "dict that holds more bands": (
        lambda: one(dict(zip("gri", IMAGE, strict=True)), bands="ig", variance={"g": 1.0, "i": 2.0, "r": 9.0}),
        {"cutouts": IMAGE[[2, 0]], "bands": "ig", "variance": [2.0, 1.0]}),
    "dict of CCDData": (lambda: one({b: ccd(IMAGE[k] / 1e3, unit="uJy") for k, b in enumerate(BANDS)},
                                    variance=VARIANCE * u.nJy**2), PLAIN),
    "DataArray, order of bands": (
        lambda: one(data_array(IMAGE[::-1], coords={"band": list("irg")}), variance=VARIANCE, bands="gri"), PLAIN),
    "DataArray that names its bands": (
        lambda: one(data_array(IMAGE[::-1], coords={"band": list("irg")}), variance=VARIANCE[::-1]), PLAIN),
    "DataArray, order of axes": (
        lambda: one(data_array(IMAGE.transpose(2, 1, 0), ("x", "y", "filter")), variance=VARIANCE), PLAIN),
    "DataArray with a unit": (
        lambda: one(data_array(IMAGE * 1e-3, attrs={"units": "uJy"}), variance=data_array(
            VARIANCE[::-1], coords={"band": list("irg")}, attrs={"units": "nJy^2"})), PLAIN),
    "DataArray planes": (
        lambda: one([data_array(IMAGE[k], ("y", "x"), coords={"band": BANDS[k]}) for k in (1, 0, 2)],
                    variance=VARIANCE[[1, 0, 2]]), PLAIN),
    "DataArray without names": (lambda: one(data_array(IMAGE, ("dim_0", "dim_1", "dim_2")), variance=VARIANCE), PLAIN),
    "DataArray as psf": (
        lambda: one(variance=VARIANCE, psf=data_array(PSF[::-1], coords={"band": list("irg"), "x": np.arange(-3, 4)})),
        PLAIN | {"psf": PSF}),
    "Series": (lambda: one(variance=series(STATED[::-1], list("irg"))), {"variance": STATED}),
    "Series of numbers": (lambda: one(variance=series(STATED, [0, 1, 2])), {"variance": STATED}),
    "Column": (lambda: one(variance=Column(np.array(STATED) * 1e-6, unit="uJy2")), {"variance": STATED}),
    "pint": (lambda: one(types.SimpleNamespace(units="uJy", magnitude=IMAGE * 1e-3, ndim=3),
                         variance=VARIANCE * u.nJy**2), PLAIN),
    "zero point with a unit": (
        lambda: one(IMAGE * u.adu, variance=VARIANCE * u.adu**2, zero_point=31.4 * u.ABmag), PLAIN),
    "zero points by band": (
        lambda: one(IMAGE, variance=VARIANCE, zero_point={"i": 28.9, "g": 31.4, "r": 30.4}),
        {"variance": VARIANCE, "zero_point": [31.4, 30.4, 28.9]}),
    "pixel scale per pixel": (lambda: one(variance=VARIANCE, pixel_scale=0.2 * u.arcsec / u.pix), PLAIN),
}


@pytest.mark.parametrize("case", HONOURED)
def test_honoured(case: str) -> None:
    call, plain = HONOURED[case]
    same(call(), one(**plain))


FLUB = u.Unit("flub", parse_strict="silent")


class Recording:
    """A tensor that refuses to become an array."""

    ndim, shape, dtype = 3, SHAPE, "float32"

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("Use tensor.detach()")


# ---- refused: the options of a call, and words of the message

REFUSED: dict[str, tuple[Any, str]] = {
    "counts": (lambda: one(ccd(unit="adu")), "cutouts: expected a unit of flux density, or zero_point= .* adu"),
    "surface brightness": (lambda: one(ccd(unit="MJy/sr")), "cutouts: expected a unit of flux density"),
    "an unknown unit": (
        lambda: one(ccd(unit=FLUB)), "cutouts: expected a unit of flux density.* flub"),
    "background in an unknown unit": (
        lambda: one(background=NDData(np.ones(3), unit=FLUB)), "background: expected a unit .* flub"),
    "variance in an unknown unit": (
        lambda: one(IMAGE, variance=NDData(VARIANCE, unit=FLUB), zero_point=27), "variance: expected a unit .* flub"),
    "positions as cutouts": (lambda: one(SkyCoord([1, 2], [3, 4], unit="deg")), "cutouts: expected an image"),
    "times": (lambda: one(centers=Time(["2020-01-01"])), "centers: expected numbers"),
    "a tensor that records gradients": (lambda: one(Recording()), r"cutouts: expected an array .*detach"),
    "magnitudes": (lambda: one(IMAGE * u.ABmag), "cutouts: expected a linear unit, got mag"),
    "magnitudes with a zero point": (lambda: one(IMAGE * u.mag, zero_point=27), "cutouts: expected a linear unit"),
    "variance as sigma": (lambda: one(IMAGE * u.nJy, variance=VARIANCE * u.nJy), "variance: .* nJy2, got the unit nJy"),
    "variance as weight": (lambda: one(variance=1 / VARIANCE * u.nJy**-2), "variance: expected a unit .* nJy2"),
    "variance without a unit": (
        lambda: one(IMAGE * u.uJy, variance=VARIANCE), "variance: expected a unit such as uJy2"),
    "variance number without a unit": (lambda: one(ccd(), variance=1.0), "variance: expected a unit such as nJy2"),
    "variance of other counts": (
        lambda: one(IMAGE * u.adu, variance=VARIANCE * u.electron**2, zero_point=27), "variance: expected a unit"),
    "sigma of counts": (lambda: one(variance=VARIANCE * u.adu, zero_point=27), "variance: expected a unit"),
    "variance in counts": (lambda: one(variance=VARIANCE * u.adu**2), "variance: expected a unit"),
    "background in counts": (lambda: one(background=50 * u.adu), "background: expected a unit .* nJy"),
    "background as magnitude": (lambda: one(background=22 * u.mag), "background: expected a linear unit"),
    "background without a unit": (
        lambda: one(IMAGE * u.nJy, background=5.0), "background: expected a unit such as nJy"),
    "mask with a unit": (lambda: one(mask=BAD * u.nJy), "mask: expected bool, True meaning bad, got the unit nJy"),
    "background with an uncertainty": (
        lambda: one(background=NDData(IMAGE, uncertainty=StdDevUncertainty(IMAGE))),
        "background: expected no uncertainty"),
    "variance with an uncertainty": (
        lambda: one(variance=NDData(VARIANCE, uncertainty=StdDevUncertainty(IMAGE))),
        "variance: expected no uncertainty"),
    "cells in arcsec": (lambda: one(psf=CellPsf([[PSF]], [0, 50] * u.arcsec, [0, 40])), "x_edges: expected pixels"),
    "HDU": (lambda: one(fits.ImageHDU(IMAGE)), "cutouts: expected an image"),
    "mask of bits": (lambda: one(NDData(IMAGE, mask=BAD * 4)), r"cutouts.mask: expected bool"),
    "flags": (lambda: one(ccd(flags=BAD.astype(int))), "cutouts: expected no flags"),
    "unknown uncertainty": (lambda: one(ccd(uncertainty=UnknownUncertainty(VARIANCE))),
                            "cutouts.uncertainty: expected a StdDevUncertainty, .* got UnknownUncertainty"),
    "two variances": (lambda: one(ccd(uncertainty=StdDevUncertainty(VARIANCE)), variance=1 * u.nJy**2),
                      "variance: expected None, since cutouts has an uncertainty"),
    "two PSFs": (lambda: one(NDData(IMAGE, psf=PSF), psf=PSF), "psf: expected None, since cutouts has a PSF"),
    "uncertainty of some bands": (
        lambda: one([ccd(IMAGE[0], uncertainty=StdDevUncertainty(VARIANCE[0])), ccd(IMAGE[1]), ccd(IMAGE[2])]),
        "cutouts: expected uncertainty in all bands or in none, got none in 2 of 3"),
    "units of some bands": (lambda: one([IMAGE[0] * u.nJy, IMAGE[1], IMAGE[2]]), "cutouts: expected a unit for all"),
    "zero point as flux": (lambda: one(zero_point=3631 * u.Jy), "zero_point: .* in AB magnitudes, got the unit Jy"),
    "zero point STmag": (lambda: one(zero_point=27 * u.STmag), "zero_point: .* in AB magnitudes"),
    "zero point of a band missing": (lambda: one(zero_point={"g": 27, "r": 27}), "zero_point: .*no i"),
    "pixel scale in pixels": (lambda: one(pixel_scale=0.2 * u.pix), "pixel_scale: expected arcsec"),
    "masked psf": (lambda: one(psf=np.ma.masked_array(PSF, PSF > 0.03)), "psf: expected images without masked pixels"),
    "psf in nJy": (lambda: one(psf=PSF * u.nJy), "psf: expected images without a unit, got the unit nJy"),
    "bands as a set": (lambda: one(bands=set("gri")), "bands: expected distinct names"),
    "bands as a dict": (lambda: one(bands={"g": 0, "r": 1, "i": 2}), "bands: expected distinct names"),
    "dict of other bands": (
        lambda: one(dict(zip("grz", IMAGE, strict=True))), "cutouts: expected bands among .* got z"),
    "dict without a band": (lambda: one({"g": IMAGE[0], "r": IMAGE[1]}, bands="gri"), "cutouts: .* no i"),
    "dict of cubes": (lambda: one({"g": IMAGE}), "cutouts: expected a dict of bands, an image"),
    "variance of other bands": (lambda: one(variance={"g": 1.0, "r": 1.0}), "variance: expected the bands .* no i"),
    "DataArray of wavelengths": (
        lambda: one(data_array(IMAGE, coords={"band": [480.0, 620.0, 750.0]})), "cutouts: expected names of bands"),
    "DataArray of part of an image": (
        lambda: one(data_array(IMAGE, coords={"x": np.arange(100, 124)})), "cutouts: expected coordinates 0, 1, 2"),
    "DataArray upside down": (
        lambda: one(data_array(IMAGE, coords={"y": np.arange(20)[::-1]})), "cutouts: expected coordinates 0, 1, 2"),
    "DataArray of unknown axes": (
        lambda: one(data_array(IMAGE, ("a", "b", "c"))), "cutouts: expected the dimensions band, y, x, got a, b, c"),
    "DataArray of an unknown unit": (
        lambda: one(data_array(IMAGE, attrs={"units": "jansky-ish"})), "cutouts: expected a unit that astropy knows"),
    "DataArray of another band": (
        lambda: one(data_array(IMAGE[0], ("y", "x"), coords={"band": "g"}), bands="r"), "cutouts: .* no r"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_an_image_object_is_not_copied() -> None:
    image = IMAGE.astype(np.float32)
    for cutouts in (ccd(image), image * u.nJy, data_array(image)):
        assert np.shares_memory(one(cutouts, variance=np.ones(3) * u.nJy**2).images.pixels.image, getattr(
            cutouts, "data", None) if not isinstance(cutouts, u.Quantity) else cutouts.value)


# ---- many scenes: entries for scenes or for bands


def many(n: int = 3, **options: Any) -> list[Scene]:
    return make_scenes([IMAGE] * n, [CENTER] * n, **(MODEL | options))


@pytest.mark.parametrize(("argument", "entries"), [
    ("variance", list(STATED)), ("variance", [number * u.nJy**2 for number in STATED]),
    ("background", list(STATED)), ("zero_point", [27.0, 28.0, 29.0]), ("psf", list(PSF)),
    ("mask", list(BAD)), ("mask", BAD),
])
def test_entries_of_scenes_or_bands(argument: str, entries: Any) -> None:
    with pytest.raises(ValueError, match=f"{argument}: expected .* the 3 bands or to the 3 scenes"):
        many(**{argument: entries})
    by_band = dict(zip(BANDS, entries, strict=True))
    scenes = many(**{argument: by_band}) if argument != "mask" else many(mask=[by_band] * 3)
    for scene in scenes:
        same(scene, one(**{argument: by_band}))
    equal = many(**{argument: [entries[0]] * 3})  # one meaning
    for scene in equal:
        same(scene, one(**{argument: dict.fromkeys(BANDS, entries[0])}))
    if argument != "psf":
        for n in (2, 4):  # not as many scenes as bands: an entry for each scene
            entry = [entries[0], entries[2], entries[1], entries[0]][:n]
            for scene, own in zip(many(n, **{argument: entry}), entry, strict=True):
                same(scene, one(**{argument: dict.fromkeys(BANDS, own)}))


@pytest.mark.parametrize(("argument", "entries"), [
    ("psf", PSF), ("variance", np.array(STATED)), ("variance", STATED * u.nJy**2),
    ("zero_point", np.arange(27.0, 30.0)),
])
def test_an_array_means_bands_and_says_so(argument: str, entries: Any) -> None:
    with pytest.warns(InputWarning, match=f"{argument}: the array .* is taken for the 3 bands"):
        scenes = many(**{argument: entries})
    for scene in scenes:
        same(scene, one(**{argument: entries}))


@pytest.mark.parametrize(("options", "noticed"), [
    ({"variance": VARIANCE}, True), ({"variance": STATED}, True), ({"psf": PSF}, True),
    ({"zero_point": [27, 28, 29]}, True), ({"variance": 1.0}, False), ({"mask": BAD[0]}, False),
    ({"variance": dict(zip(BANDS, STATED, strict=True))}, False),
])
def test_arguments_without_names_beside_cutouts_with_names(options: Any, noticed: bool) -> None:
    cutouts = dict(zip("irg", IMAGE[::-1], strict=True))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", InputWarning)
        one(cutouts, bands="gri", **options)
        one(dict(zip("gri", IMAGE, strict=True)), bands="gri", **options)
    texts = [str(notice.message) for notice in found if "are read by name" in str(notice.message)]
    assert texts == [f"cutouts: the bands are read by name, g, r, i; {next(iter(options))} without names must have "
                     "this order"] * noticed


def test_scenes_of_dicts_and_data_arrays() -> None:
    dicts = [dict(zip("irg", IMAGE[::-1], strict=True)), dict(zip("gri", IMAGE, strict=True))]
    stack = data_array(np.stack([IMAGE, IMAGE])[:, ::-1], ("scene", "band", "y", "x"), coords={"band": list("irg")})
    for cutouts in (dicts, stack):
        for scene in make_scenes(cutouts, [CENTER] * 2, bands="gri", **MODEL):
            same(scene, one())
    with pytest.raises(ValueError, match=r"cutouts\[1\]: expected the bands of the first scene"):
        make_scenes([dicts[0], {"g": IMAGE[0], "r": IMAGE[1]}], [CENTER] * 2, **MODEL)
    with pytest.raises(ValueError, match="centers: expected one entry for each of the 2 scenes"):
        make_scenes(dicts, {"x": [1.0], "y": [2.0]}, **MODEL)
