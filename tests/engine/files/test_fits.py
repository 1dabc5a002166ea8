"""Files in the forms that surveys write, and files with one error each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from deblendrt.engine.files.catalogues import read_source_list
from deblendrt.engine.files.fits import read_image, read_psf
from deblendrt.engine.files.fits_header import parse_bands

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
N_Y, N_X = 12, 15


def array(n_band: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_band, N_Y, N_X)).astype(">f4")


def write(path: Path, *hdus: Any, **keys: Any) -> Path:
    primary = hdus[0] if isinstance(hdus[0], fits.PrimaryHDU) else fits.PrimaryHDU()
    for key, value in keys.items():
        primary.header[key] = value
    fits.HDUList([primary, *(hdu for hdu in hdus if hdu is not primary)]).writeto(path)
    return path


def image_hdu(data: np.ndarray, name: str, **keys: Any) -> fits.ImageHDU:
    return fits.ImageHDU(data, fits.Header(keys), name=name)


def sky_wcs() -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [150.0, 2.0], [8, 6], [-0.2 / 3600, 0.2 / 3600]
    return wcs


@pytest.mark.parametrize(
    ("text", "names"),
    [("ugrizy", tuple("ugrizy")), ("g,r, i", ("g", "r", "i")), ("HSC-G HSC-R", ("HSC-G", "HSC-R")), ("VIS,", ("VIS",))],
)
def test_parse_bands(text: str, names: tuple[str, ...]) -> None:
    assert parse_bands(text) == names


@pytest.mark.parametrize("text", ["", "  ", "gg", "g,g"])
def test_parse_bands_rejects(text: str) -> None:
    with pytest.raises(ValueError, match="bands: expected distinct"):
        parse_bands(text)


def test_extensions(tmp_path: Path) -> None:
    data, centers = array(), Table({"x": [3.5, 4], "y": [2.0, 7]})
    path = write(
        tmp_path / "scene.fits",
        image_hdu(data, "IMAGE", BUNIT="count"),
        image_hdu(data**2, "VARIANCE"),
        image_hdu((data > 1).astype(np.uint8), "MASK"),
        image_hdu(np.ones((3, 5, 5)), "PSF"),
        fits.BinTableHDU(Table({"band": ["g", "r", "i"], "sky_sigma": [1.0, 2, 3]}), name="BANDS"),
        fits.BinTableHDU(centers, name="CENTERS"),
        ZEROPNT=27.0,
        PIXSCALE=0.2,
    )
    file = read_image(path)
    assert file.bands == ("g", "r", "i")
    assert file.image.dtype == np.dtype("float32")
    assert file.image.dtype.isnative
    np.testing.assert_array_equal(file.image, data)
    np.testing.assert_array_equal(file.variance, data**2)
    np.testing.assert_array_equal(file.mask, data > 1)
    assert file.psf is not None
    assert file.psf.shape == (3, 5, 5)
    np.testing.assert_array_equal(file.centers, [[3.5, 2], [4, 7]])
    assert (file.zero_point, file.pixel_scale, file.wcs, file.notes) == (27.0, 0.2, None, ())


def test_sky_sigma_stands_for_variance(tmp_path: Path) -> None:
    bands = fits.BinTableHDU(Table({"band": ["g", "r"], "sky_sigma": [2.0, 3]}), name="BANDS")
    file = read_image(write(tmp_path / "a.fits", image_hdu(array(2), "IMAGE"), bands))
    np.testing.assert_array_equal(file.variance, [4, 9])
    assert "sky_sigma" in file.notes[0]


@pytest.mark.parametrize("keys", [{"BANDS": "gri"}, {"BANDS": "g,r,i"}])
def test_primary_image(tmp_path: Path, keys: dict[str, str]) -> None:
    file = read_image(write(tmp_path / "a.fits", fits.PrimaryHDU(array()), BUNIT="nJy", **keys))
    assert file.bands == ("g", "r", "i")
    assert file.zero_point == pytest.approx(31.4)
    with pytest.raises(ValueError, match=r"whose bands are g, r, i; to rename a band say u=NAME_IN_THE_FILE"):
        read_image(tmp_path / "a.fits", bands="ugr")
    renamed = read_image(tmp_path / "a.fits", bands={"u": "g", "g": "r", "r": "i"})
    assert renamed.bands == ("u", "g", "r")
    picked = read_image(tmp_path / "a.fits", bands="ig")
    assert picked.bands == ("i", "g")
    np.testing.assert_array_equal(picked.image, file.image[[2, 0]])


def test_single_band(tmp_path: Path) -> None:
    file = read_image(write(tmp_path / "a.fits", fits.PrimaryHDU(array()[0]), FILTER="i"))
    assert file.image.shape == (1, N_Y, N_X)
    assert file.bands == ("i",)


def test_extension_per_band_brings_zero_points_together(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.fits",
        image_hdu(array(seed=1)[0], "g", ZEROPNT=27.0),
        image_hdu(array(seed=2)[0], "r", ZEROPNT=29.5),
        image_hdu(np.ones((N_Y, N_X)), "g_VARIANCE"),
        image_hdu(np.ones((N_Y, N_X)), "r_VARIANCE"),
        image_hdu(np.ones((5, 5)), "g_PSF"),
        image_hdu(np.ones((7, 7)), "r_PSF"),
    )
    file = read_image(path)
    assert file.bands == ("g", "r")
    assert file.zero_point == 27.0
    np.testing.assert_allclose(file.image[1], array(seed=2)[0] * 0.1, rtol=1e-6)
    assert file.variance is not None
    assert file.psf is not None
    np.testing.assert_allclose(file.variance[:, 0, 0], [1, 0.01], rtol=1e-6)
    assert file.psf.shape == (2, 7, 7)
    assert file.psf[0].sum() == 25
    assert file.psf[0, 3, 3] == 1
    assert file.psf[0, 0].sum() == 0
    assert read_image(path, bands=["r"]).image.shape == (1, N_Y, N_X)


@pytest.mark.parametrize(
    ("unit", "zero_point"), [("nJy", 31.4), ("uJy", 23.9), ("Jy", 8.9), ("nmgy", 22.5), ("mgy", 0.0)]
)
def test_units(tmp_path: Path, unit: str, zero_point: float) -> None:
    file = read_image(write(tmp_path / "a.fits", image_hdu(array(), "IMAGE", BUNIT=unit)))
    assert file.zero_point == pytest.approx(zero_point)


def test_fluxmag0(tmp_path: Path) -> None:
    file = read_image(write(tmp_path / "a.fits", image_hdu(array(), "IMAGE", FLUXMAG0=10**10.8)))
    assert file.zero_point == pytest.approx(27)


def test_no_zero_point(tmp_path: Path) -> None:
    assert read_image(write(tmp_path / "a.fits", image_hdu(array(), "IMAGE", BUNIT="adu"))).zero_point is None


@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")  # LSST has keys of more than 8 letters
def test_mask_planes_are_found_by_name(tmp_path: Path) -> None:
    planes = np.zeros((N_Y, N_X), dtype=np.int32)
    planes[0, :4] = [1 << 3, 1 << 5, 1 << 20, (1 << 5) | (1 << 20)]
    mask = image_hdu(planes, "MASK", MP_SAT=3, MP_DETECTED=5, MP_NO_DATA=20)
    path = write(tmp_path / "a.fits", image_hdu(array(), "IMAGE"), mask)
    file = read_image(path)
    assert file.mask is not None
    assert file.mask.shape == (N_Y, N_X)
    assert file.mask[0, :5].tolist() == [True, False, True, True, False]
    told = read_image(path, bad_bits=1 << 5).mask
    assert told is not None
    assert told[0, :5].tolist() == [False, True, False, True, False]


def test_mask_planes_without_names_are_lsst(tmp_path: Path) -> None:
    planes = np.zeros((N_Y, N_X), dtype=np.int32)
    planes[0, :5] = [1, 2, 32, 32 + 16, 256]  # BAD, SAT, DETECTED, DETECTED and EDGE, NO_DATA
    file = read_image(write(tmp_path / "a.fits", image_hdu(array(), "IMAGE"), image_hdu(planes, "MASK")))
    assert file.mask is not None
    assert file.mask[0, :6].tolist() == [True, True, False, True, True, False]
    assert "standard bits" in file.notes[0]


def test_wcs(tmp_path: Path) -> None:
    header = sky_wcs().to_header()
    path = write(
        tmp_path / "a.fits",
        fits.ImageHDU(array(), header, name="IMAGE"),
        fits.BinTableHDU(Table({"ra": [150.0], "dec": [2.0]}), name="CENTERS"),
    )
    file = read_image(path)
    assert file.pixel_scale == pytest.approx(0.2)
    assert file.wcs is not None
    assert file.wcs.naxis == 2
    np.testing.assert_allclose(file.centers, [[7, 5]], atol=1e-8)  # 0-based: CRPIX - 1


def test_compressed(tmp_path: Path) -> None:
    path = tmp_path / "a.fits.gz"
    write(path, image_hdu(array(), "IMAGE"))
    assert read_image(path).image.shape == (3, N_Y, N_X)


WRONG: dict[str, tuple[list[Any], str]] = {
    "table as image": ([fits.BinTableHDU(Table({"a": [1]}), name="IMAGE")], r"IMAGE\].*found a table"),
    "four axes": ([image_hdu(np.zeros((1, 2, 3, 4)), "IMAGE")], r"found shape \(1, 2, 3, 4\)"),
    "variance shape": ([image_hdu(array(), "IMAGE"), image_hdu(np.ones((3, 4, 4)), "VARIANCE")], r"VARIANCE\]: shape"),
    "mask shape": ([image_hdu(array(), "IMAGE"), image_hdu(np.ones((4, 4), np.uint8), "MASK")], r"MASK\]: shape"),
    "psf bands": ([image_hdu(array(), "IMAGE"), image_hdu(np.ones((2, 5, 5)), "PSF")], r"PSF\]: shape"),
    "centers columns": (
        [image_hdu(array(), "IMAGE"), fits.BinTableHDU(Table({"a": [1]}), name="CENTERS")],
        r"CENTERS\]: expected columns x, y",
    ),
    "sky without wcs": (
        [image_hdu(array(), "IMAGE"), fits.BinTableHDU(Table({"ra": [1.0], "dec": [1.0]}), name="CENTERS")],
        "no WCS",
    ),
    "bands and image": ([image_hdu(array(), "IMAGE", BANDS="gr")], r"2 band names \(g, r\)"),
    "surface brightness": ([image_hdu(array(), "IMAGE", BUNIT="MJy/sr")], "surface brightness"),
    "nothing": ([fits.PrimaryHDU()], "no IMAGE, no primary image"),
    "different grids": ([image_hdu(np.ones((4, 4)), "g"), image_hdu(np.ones((5, 5)), "r")], "different shape"),
    "half a variance": (
        [image_hdu(np.ones((4, 4)), "g"), image_hdu(np.ones((4, 4)), "r"), image_hdu(np.ones((4, 4)), "r_VARIANCE")],
        "VARIANCE only for band r of g, r",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_the_file(tmp_path: Path, case: str) -> None:
    hdus, message = WRONG[case]
    path = write(tmp_path / "wrong.fits", *(hdu.copy() for hdu in hdus))
    with pytest.raises(ValueError, match=r"wrong\.fits.*" + message):
        read_image(path)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_image(tmp_path / "absent.fits")
    (tmp_path / "text.fits").write_text("not FITS")
    with pytest.raises(OSError, match=r"text\.fits: not readable as FITS"):
        read_image(tmp_path / "text.fits")
    whole = write(tmp_path / "whole.fits", image_hdu(np.ones((3, 100, 100)), "IMAGE")).read_bytes()
    (tmp_path / "cut.fits").write_bytes(whole[:28800])
    with pytest.raises(OSError, match=r"cut\.fits: .*truncated"):
        read_image(tmp_path / "cut.fits")


def test_missing_band(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", image_hdu(np.ones((4, 4)), "g"))
    with pytest.raises(ValueError, match=r"no extension for band 'z'; extensions found: unnamed, G"):
        read_image(path, bands="gz")


def test_read_psf(tmp_path: Path) -> None:
    one = write(tmp_path / "one.fits", fits.PrimaryHDU(np.ones((5, 5))))
    assert read_psf(one, 3).shape == (3, 5, 5)
    many = write(tmp_path / "many.fits", image_hdu(np.ones((3, 5, 5)), "PSF"))
    assert read_psf(many, 3).shape == (3, 5, 5)
    with pytest.raises(ValueError, match=r"expected \(2, q, q\)"):
        read_psf(many, 2)


@pytest.mark.parametrize("name", ["c.fits", "c.ecsv", "c.csv"])
def test_catalog_formats(tmp_path: Path, name: str) -> None:
    Table({"ID": [7, 8], "X": [1.5, 2.5], "Y": [0.0, 3.0]}).write(tmp_path / name)
    catalog = read_source_list(tmp_path / name)
    np.testing.assert_array_equal(catalog.centers, [[1.5, 0], [2.5, 3]])
    assert catalog.ids is not None
    assert catalog.ids.tolist() == [7, 8]


def test_catalog_one_based(tmp_path: Path) -> None:
    Table({"x_image": [1.0], "y_image": [2.0]}).write(tmp_path / "c.csv")
    for told in (True, False):  # SourceExtractor always counts from 1
        np.testing.assert_array_equal(read_source_list(tmp_path / "c.csv", one_based=told).centers, [[0, 1]])
    assert "count pixels from 1" in read_source_list(tmp_path / "c.csv").notes[0]


def test_catalog_sky_units_and_gaps(tmp_path: Path) -> None:
    table = Table({"ra": np.ma.array([150.0, 1.0], mask=[False, True]), "dec": [2.0, 2.0]}, units=["deg", "deg"])
    table["coord_ra"], table["coord_dec"] = np.deg2rad(table["ra"]), np.deg2rad(table["dec"])
    table.write(tmp_path / "deg.ecsv")
    radians = Table({"coord_ra": table["coord_ra"], "coord_dec": table["coord_dec"]}, units=["rad", "rad"])
    radians.write(tmp_path / "rad.ecsv")
    for name in ("deg.ecsv", "rad.ecsv"):
        centers = read_source_list(tmp_path / name, sky_wcs()).centers
        np.testing.assert_allclose(centers[0], [7, 5], atol=1e-6)
        assert np.isnan(centers[1]).all()


def test_catalog_errors(tmp_path: Path) -> None:
    (tmp_path / "bad.fits").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match=r"bad\.fits: not readable as a table"):
        read_source_list(tmp_path / "bad.fits")
    (tmp_path / "text.csv").write_text("x,y\nleft,right\n")
    with pytest.raises(ValueError, match="column 'x' is not numeric"):
        read_source_list(tmp_path / "text.csv")
    (tmp_path / "empty.csv").write_text("x,y\n")
    assert read_source_list(tmp_path / "empty.csv").centers.shape == (0, 2)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real images are not in the repository (../shared/data)")
@pytest.mark.parametrize(
    ("name", "bands", "n_source"),
    [("dc2_field_1", "ugrizy", 43), ("dc2_field_2", "ugrizy", 40), ("hsc_cosmos_35", "grizy", 7)],
)
def test_real_images(name: str, bands: str, n_source: int) -> None:
    file = read_image(SHARED / f"{name}.fits")
    assert "".join(file.bands or ()) == bands
    assert file.centers is not None
    assert file.centers.shape == (n_source, 2)
    assert file.zero_point == 27.0
    assert file.variance is not None
    assert file.psf is not None
