"""Image files as surveys and programs write them. Every plane is used, named as ignored, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from deblendrt import engine
from deblendrt.engine.files.fits import read_image
from deblendrt.engine.files.images.planes import is_inverse_variance

pytestmark = pytest.mark.filterwarnings("ignore::deblendrt.engine.units.InputWarning")
N_Y, N_X = 30, 40
SIGMA = 2.0
RNG = np.random.default_rng(3)
IMAGE = RNG.normal(0, SIGMA, (3, N_Y, N_X)).astype(np.float32)
VARIANCE = np.full_like(IMAGE, SIGMA**2)
BITS = np.zeros((3, N_Y, N_X), np.int16)
BITS[:, 4, 5] = 4
PSFS = np.ones((3, 5, 5), np.float32) * np.arange(1, 4)[:, None, None]


def hdu(data: Any, name: str | None = None, **cards: Any) -> fits.ImageHDU:
    found = fits.ImageHDU(data, name=name)
    found.header.update(cards)
    return found


def write(path: Path, *hdus: Any, **cards: Any) -> Path:
    first = hdus[0] if isinstance(hdus[0], fits.PrimaryHDU) else fits.PrimaryHDU()
    first.header.update(cards)
    fits.HDUList([first, *(other for other in hdus if other is not first)]).writeto(path)
    return path


def sky(shift: float = 0.0, **changes: Any) -> dict[str, Any]:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.0, 2.0]
    wcs.wcs.crpix, wcs.wcs.cdelt = [20 + shift, 15], [-0.2 / 3600, 0.2 / 3600]
    return dict(wcs.to_header()) | changes


VERSIONS = [piece for k, band in enumerate("gri") for piece in (
    hdu(IMAGE[k], "IMAGE", EXTVER=k + 1, FILTER=band), hdu(VARIANCE[k] * (k + 1), "VARIANCE", EXTVER=k + 1),
    hdu(BITS[k], "DQ", EXTVER=k + 1), hdu(PSFS[k], "PSF", EXTVER=k + 1))]
FILTERS = [piece for k, band in enumerate("gri") for piece in (
    hdu(IMAGE[k], "SCI", FILTER=band), hdu(np.sqrt(VARIANCE[k] * (k + 1)), "ERR", FILTER=band),
    hdu(BITS[k], "DQ", FILTER=band), hdu(PSFS[k], "PSF", FILTER=band))]
NAMED = [piece for k, band in enumerate("gri") for piece in (
    hdu(IMAGE[k], f"IMAGE_{band}"), hdu(1 / VARIANCE[k] / (k + 1), f"INVVAR_{band}"), hdu(BITS[k], f"{band}_MSK"),
    hdu(PSFS[k], f"{band}_PSF"))]
UNNAMED = [*(hdu(IMAGE[k], None, BAND=band) for k, band in enumerate("gri")),
           hdu(VARIANCE * np.arange(1, 4)[:, None, None], "VAR"), hdu(BITS, "BPM"), hdu(PSFS, "PSF")]
CUBE = [hdu(IMAGE, "IMAGE", BANDS="g,r,i"), *(hdu(VARIANCE[k] * (k + 1), f"{band}_VARIANCE") for k, band in
                                              enumerate("gri")), hdu(BITS[0], "MASKBITS"), hdu(PSFS, "PSF")]


@pytest.mark.parametrize("hdus", [VERSIONS, VERSIONS[::-1], FILTERS, NAMED, UNNAMED, CUBE],
                         ids=["EXTVER", "EXTVER, backwards", "FILTER", "names", "unnamed", "a cube and planes"])
@pytest.mark.parametrize("bands", [None, "gri", "ig"])
def test_bands_in_extensions(tmp_path: Path, hdus: list[Any], bands: str | None) -> None:
    file = read_image(write(tmp_path / "a.fits", *[other.copy() for other in hdus]), bands=bands)
    assert file.bands is not None
    assert sorted(file.bands) == sorted(bands or "gri")
    for k, band in enumerate(file.bands):
        i = "gri".index(band)
        np.testing.assert_array_equal(file.image[k], IMAGE[i])
        assert file.variance is not None
        assert file.mask is not None
        assert file.psf is not None
        np.testing.assert_allclose(file.variance[k], VARIANCE[i] * (i + 1), rtol=1e-6)
        np.testing.assert_array_equal(file.psf[k], PSFS[i])
        np.testing.assert_array_equal(np.broadcast_to(file.mask, file.image.shape)[k], BITS[i] > 0)
    assert not any("ignored" in note for note in file.notes)


NOISE = {
    "INVVAR": (hdu(1 / VARIANCE, "INVVAR"), "used: INVVAR (inverse variance)"),
    "IVAR": (hdu(1 / VARIANCE, "IVAR"), "used: IVAR"), "WEIGHT": (hdu(1 / VARIANCE, "WEIGHT"), "used: WEIGHT"),
    "WGT": (hdu(1 / VARIANCE, "WGT"), "used: WGT"), "ERR": (hdu(np.sqrt(VARIANCE), "ERR"), "used: ERR (standard dev"),
    "RMS": (hdu(np.sqrt(VARIANCE), "RMS"), "used: RMS"), "VAR": (hdu(VARIANCE, "VAR"), "used: VAR (variance)"),
    "CCDData": (hdu(np.sqrt(VARIANCE), "UNCERT", UTYPE="StdDevUncertainty"), "used: UNCERT"),
    "CCDData, variance": (hdu(VARIANCE, "UNCERT", UTYPE="VarianceUncertainty"), "used: UNCERT"),
    "with its unit": (hdu(VARIANCE * 1e-6, "VARIANCE", BUNIT="uJy2"), ""),
    "ERR with its unit": (hdu(np.sqrt(VARIANCE) * 1e-3, "ERR", BUNIT="uJy"), "used: ERR"),
    "INVVAR with its unit": (hdu(1e6 / VARIANCE, "INVVAR", BUNIT="uJy-2"), "used: INVVAR"),
    "the image's header": (hdu(VARIANCE, "VARIANCE", BUNIT="nJy"), "BUNIT nJy is the image's: taken as its power 2"),
}


@pytest.mark.parametrize("case", NOISE)
def test_noise(tmp_path: Path, case: str) -> None:
    plane, note = NOISE[case]
    path = write(tmp_path / "a.fits", hdu(IMAGE, "IMAGE", BANDS="g,r,i", BUNIT="nJy"), plane.copy())
    file = read_image(path)
    np.testing.assert_allclose(file.variance, VARIANCE, rtol=1e-5)
    assert note in " ".join(file.notes)


@pytest.mark.parametrize("name", ["WHT", "WEIGHT"])
def test_weights_that_are_no_inverse_variance(tmp_path: Path, name: str) -> None:
    weight = np.full_like(IMAGE, 1e4)
    weight[:, 7, 8] = 0
    file = read_image(write(tmp_path / "a.fits", hdu(IMAGE, "SCI", BANDS="g,r,i"), hdu(weight, name)))
    assert file.variance is None
    assert file.mask is not None
    np.testing.assert_array_equal(file.mask, weight == 0)
    assert f"{name} is " in file.notes[0]
    assert "ignored, except" in file.notes[0]


def test_bright_galaxies_do_not_hide_an_inverse_variance() -> None:
    y, x = np.mgrid[:N_Y, :N_X]
    galaxy = 3e3 * np.exp(-np.hypot(x - 20, y - 15) / 4)
    assert is_inverse_variance(IMAGE[0] + galaxy, VARIANCE[0])
    assert not is_inverse_variance(IMAGE[0] + galaxy, VARIANCE[0] / 100)
    assert not is_inverse_variance(IMAGE[0] + galaxy, VARIANCE[0] * 1e4)


def test_pixels_without_weight_have_infinite_variance(tmp_path: Path) -> None:
    weight = 1 / VARIANCE
    weight[1, 7, 8] = 0
    file = read_image(write(tmp_path / "a.fits", hdu(IMAGE, "IMAGE", BANDS="g,r,i"), hdu(weight, "IVAR")))
    assert file.variance is not None
    assert np.isinf(file.variance[1, 7, 8])
    assert np.isfinite(file.variance).sum() == IMAGE.size - 1


def test_planes_that_are_not_used_are_named(tmp_path: Path) -> None:
    others = [hdu(IMAGE, name) for name in ("AREA", "VAR_POISSON", "MODEL")]
    path = write(tmp_path / "a.fits", hdu(IMAGE, "SCI", BANDS="g,r,i"), hdu(VARIANCE, "VARIANCE"),
                 hdu(1 / VARIANCE, "INVVAR"), *others)
    with pytest.warns(engine.InputWarning, match=r"a\.fits: ignored: INVVAR, AREA, VAR_POISSON, MODEL"):
        read_image(path)


MASKS: dict[str, tuple[str, dict[str, Any], list[int], list[bool]]] = {  # values, and which are bad
    "DQ of HST": ("DQ", {}, [0, 1, 4, 8192], [False, True, True, True]),
    "DQ of JWST": ("DQ", {"PRIMARY": "JWST"}, [0, 1, 2, 4], [False, True, True, False]),
    "MSK of DES": ("MSK", {}, [0, 1, 2, 512], [False, True, True, True]),
    "MASKBITS": ("MASKBITS", {}, [1, 2, 4, 0x800], [False, False, True, False]),
    "MASK of LSST": ("MASK", {"MP_SAT": 2, "MP_DETECTED": 5}, [0, 4, 32, 36], [False, True, False, True]),
    "MASK of 0 and 1": ("MASK", {}, [0, 1, 0, 1], [False, True, False, True]),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks(tmp_path: Path, case: str) -> None:
    name, cards, values, expected = MASKS[case]
    data = np.zeros((N_Y, N_X), np.int16)
    data[0, :4] = values
    telescope = {"TELESCOP": cards["PRIMARY"]} if "PRIMARY" in cards else {}
    cards = {key: value for key, value in cards.items() if key != "PRIMARY"}
    path = write(tmp_path / "a.fits", hdu(IMAGE, "IMAGE", BANDS="g,r,i"), hdu(data, name, **cards), **telescope)
    file = read_image(path)
    assert file.mask is not None
    assert file.mask[0, :4].tolist() == expected
    told = read_image(tmp_path / "a.fits", bad_bits=values[2]).mask
    assert told is not None
    assert told[0, 2] == bool(values[2])


UNITS: dict[str, tuple[dict[str, Any], float]] = {
    "CGS": ({"BUNIT": "erg s-1 cm-2 Hz-1"}, 31.4), "CGS, slashes": ({"BUNIT": "erg/s/cm2/Hz"}, 31.4),
    "SI": ({"BUNIT": "W m-2 Hz-1"}, 31.4), "nanomaggies": ({"BUNIT": "nanomaggies"}, 22.5),
    "per pixel": ({"BUNIT": "uJy/pix"}, 23.9),
    "HST": ({"BUNIT": "ELECTRONS/S", "PHOTFLAM": 7.03e-20, "PHOTPLAM": 8045.0}, 25.947),
    "JWST": ({"BUNIT": "MJy/sr", "PIXAR_SR": 2.29e-14}, 8.9 - 2.5 * np.log10(2.29e-8)),
    "DES": ({"SA_ZP": 1.0, "MAGZERO": 30.0}, 30.0),
}


@pytest.mark.parametrize("case", UNITS)
def test_units(tmp_path: Path, case: str) -> None:
    cards, zero_point = UNITS[case]
    scale = 1e-32 if case.startswith("CGS") else 1e-35 if case == "SI" else 1.0  # of 1 nJy
    path = write(tmp_path / "a.fits", hdu(IMAGE.astype(float) * scale, "IMAGE", BANDS="g,r,i", **cards),
                 hdu(VARIANCE.astype(float) * scale**2, "VARIANCE"))
    file = read_image(path)
    assert file.zero_point == pytest.approx(zero_point, abs=2e-3)
    np.testing.assert_allclose(file.image, IMAGE, rtol=1e-5)
    np.testing.assert_allclose(file.variance, VARIANCE, rtol=1e-5)


@pytest.mark.parametrize("told", [27.0, [27.0, 29.5, 24.5], {"g": 27.0, "r": 29.5, "i": 24.5}])
def test_zero_points_that_are_told(tmp_path: Path, told: Any) -> None:
    path = write(tmp_path / "a.fits", hdu(IMAGE, "IMAGE", BANDS="g,r,i"), hdu(VARIANCE, "VARIANCE"))
    file = read_image(path, zero_point=told)
    factor = np.array([1, 1, 1] if told == 27.0 else [1, 0.1, 10])[:, None, None]
    assert file.zero_point == 27
    np.testing.assert_allclose(file.image, IMAGE * factor, rtol=1e-5)
    np.testing.assert_allclose(file.variance, VARIANCE * factor**2, rtol=1e-5)
    picked = read_image(path, bands="i", zero_point=24.5)
    assert picked.zero_point == 24.5
    np.testing.assert_array_equal(picked.image[0], IMAGE[2])


def test_a_told_zero_point_stands_before_the_files_bands_are_scaled(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", hdu(IMAGE[0], "g", ZEROPNT=27.0), hdu(IMAGE[1], "r", ZEROPNT=29.5))
    file = read_image(path, zero_point=25)
    np.testing.assert_array_equal(file.image, IMAGE[:2])
    assert "zero point 25 as told; the file says 27, 29.5" in file.notes


def test_renamed_bands(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", hdu(IMAGE, "IMAGE", BANDS="HSC-G,HSC-R,F814W"))
    assert read_image(path, bands="rg").bands == ("r", "g")
    file = read_image(path, bands={"i": "F814W", "g": "HSC-G"})
    assert file.bands == ("i", "g")
    np.testing.assert_array_equal(file.image, IMAGE[[2, 0]])


def test_files_by_band(tmp_path: Path) -> None:
    for k, band in enumerate("gri"):
        cards = {"FILTER": f"HSC-{band.upper()}", "ZEROPNT": 27 + k, **sky()}
        write(tmp_path / f"{band}.fits", fits.PrimaryHDU(IMAGE[k]), **cards)
        write(tmp_path / f"{band}w.fits", hdu(1 / VARIANCE[k], "INVVAR"))
        write(tmp_path / f"{band}m.fits", hdu(BITS[k], None))
    paths = {band: tmp_path / f"{band}.fits" for band in "gri"}
    file = read_image(paths, weight={band: tmp_path / f"{band}w.fits" for band in "gri"},
                      mask={band: tmp_path / f"{band}m.fits" for band in "gri"})
    factor = 10 ** (-0.4 * np.arange(3))[:, None, None]
    assert (file.bands, file.zero_point, file.wcs is not None) == (("g", "r", "i"), 27, True)
    np.testing.assert_allclose(file.image, IMAGE * factor, rtol=1e-5)
    np.testing.assert_allclose(file.variance, VARIANCE * factor**2, rtol=1e-5)
    np.testing.assert_array_equal(file.mask, BITS > 0)
    with pytest.raises(ValueError, match=r"r\.fits: expected an image of band g, found HSC-R"):
        read_image({"g": tmp_path / "r.fits"})
    with pytest.raises(ValueError, match="weight: expected a file for each of the bands g, r, i, got g"):
        read_image(paths, weight={"g": tmp_path / "gw.fits"})
    write(tmp_path / "exposure.fits", hdu(np.full((N_Y, N_X), 1e4), None))
    with pytest.raises(ValueError, match="weight: expected the inverse variance of the image's noise, got a plane of"):
        read_image(paths["g"], weight=tmp_path / "exposure.fits")
    with pytest.raises(ValueError, match=r"expected one image that is the variance, found INVVAR \(inverse variance\)"):
        read_image(paths["g"], variance=tmp_path / "gw.fits")


@pytest.mark.parametrize("kind", ["PLIO_1", "HCOMPRESS_1"])
def test_compressions_on_request(tmp_path: Path, kind: str) -> None:
    data = (np.arange(N_Y * N_X).reshape(N_Y, N_X) % 50).astype(np.int32)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, name="IMAGE", compression_type=kind, tile_shape=(10, N_X))
                  ]).writeto(tmp_path / "a.fits")
    with pytest.raises(OSError, match=r"for a file that you trust say any_compression \(--any-compression\)"):
        read_image(tmp_path / "a.fits")
    np.testing.assert_allclose(read_image(tmp_path / "a.fits", any_compression=True).image[0], data, atol=0.5)


REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "chips": ([hdu(IMAGE[k], "SCI", EXTVER=k + 1, FILTER="F814W") for k in (0, 1)], {}, "2 images.*chips or exposures"),
    "bands that contradict": ([hdu(IMAGE, "IMAGE", BANDS="g,r,i")], {"bands": "ugr"},
                              r"whose bands are g, r, i; to rename a band say u=NAME"),
    "some noise": ([hdu(IMAGE[0], "IMAGE", EXTVER=1, FILTER="g"), hdu(IMAGE[1], "IMAGE", EXTVER=2, FILTER="r"),
                    hdu(VARIANCE[0], "VARIANCE", EXTVER=1)], {}, "VARIANCE only for band g of g, r"),
    "some units": ([hdu(IMAGE[0], "IMAGE", EXTVER=1, FILTER="g", BUNIT="nJy"),
                    hdu(IMAGE[1], "IMAGE", EXTVER=2, FILTER="r")], {}, "for some bands only"),
    "shifted": ([hdu(IMAGE[0], "g", **sky()), hdu(IMAGE[1], "r", **sky(0.5))], {}, "r is off that of g by 0.50 pixel"),
    "oblong pixels": ([hdu(IMAGE[0], "g", **sky(CDELT1=-0.3 / 3600))], {}, "expected square pixels"),
    "unit of the noise": ([hdu(IMAGE, "IMAGE", BANDS="g,r,i", BUNIT="nJy"), hdu(VARIANCE, "VARIANCE", BUNIT="uJy")], {},
                          "VARIANCE.*expected a BUNIT that is the power 2 of the image's nJy, got uJy"),
    "no variance above 0": ([hdu(IMAGE, "IMAGE", BANDS="g,r,i"), hdu(VARIANCE * 0, "VARIANCE")], {},
                            "expected positive"),
    "zero points that disagree": ([hdu(IMAGE, "IMAGE", BANDS="g,r,i", MAGZERO=25.0, ZEROPNT=27.0)], {},
                                  r"disagree, \{'ZEROPNT': 27.0, 'MAGZERO': 25.0\}: say zero_point"),
    "underflow": ([hdu(IMAGE * 1e-60, "IMAGE", BANDS="g,r,i")], {}, "below the range of float32"),
    "a zero point too few": ([hdu(IMAGE, "IMAGE", BANDS="g,r,i")], {"zero_point": [27, 28]},
                             "zero_point: expected a number, or one for each of 3 bands"),
    "zero points of others": ([hdu(IMAGE, "IMAGE", BANDS="g,r,i")], {"zero_point": {"u": 27}},
                              "zero_point: expected numbers for the bands g, r, i, got u"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    hdus, options, message = REFUSED[case]
    if case == "underflow":
        hdus = [hdu(IMAGE.astype(float) * 1e-60, "IMAGE", BANDS="g,r,i")]
    path = write(tmp_path / "a.fits", *[other.copy() for other in hdus])
    with pytest.raises(ValueError, match=message):
        read_image(path, **options)


def test_the_list_of_sources_has_ids_kinds_and_a_first_pixel(tmp_path: Path) -> None:
    table = Table({"x": [4.0, 5], "y": [6.0, 7], "id": np.ma.array([7, 8], mask=[False, True]),
                   "kind": ["star", "auto"]})
    path = write(tmp_path / "a.fits", hdu(IMAGE, "IMAGE", BANDS="g,r,i"), fits.BinTableHDU(table, name="CENTERS"))
    file = read_image(path, one_based=True)
    np.testing.assert_array_equal(file.centers, [[3, 5], [4, 6]])
    assert (file.ids.tolist(), file.kinds) == ([7, None], ["star", "auto"])
