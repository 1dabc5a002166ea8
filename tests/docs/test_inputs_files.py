"""Every line of the page of inputs about files reads the right image and positions, or is refused."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from deblendrt.engine.adapters.cli.main import parser
from deblendrt.engine.adapters.image_inputs import by_band, read_inputs
from deblendrt.engine.files.fits import read_image

PAGE = (Path(__file__).parents[2] / "docs" / "inputs.md").read_text(encoding="utf-8")
RNG = np.random.default_rng(2)
IMAGE = RNG.normal(0, 2.0, (3, 40, 50)).astype(np.float32)  # nJy
VARIANCE = np.full_like(IMAGE, 4.0)
CENTERS = np.array([[10.25, 8.5], [30.0, 20.75]])
NANOMAGGY = 10 ** (0.4 * (31.4 - 22.5))  # nJy


def lines(title: str, column: int, begin: str) -> list[str]:
    """Codes of one column of a section's tables, which begin with some text."""
    text = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [re.split(r" \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    return [row[column][1:-1] for row in rows if row[column].startswith(f"`{begin}")]


def sky(longitude: str = "RA---TAN", latitude: str = "DEC--TAN", shift: float = 0.0,
        scale: float = 0.2) -> dict[str, Any]:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = [longitude, latitude], [150.1, 2.2], [25 + shift, 20]
    wcs.wcs.cdelt = [-scale / 3600, 0.2 / 3600]
    return dict(wcs.to_header())


def hdu(data: Any, name: str | None = None, **cards: Any) -> fits.ImageHDU:
    found = fits.ImageHDU(data, name=name)
    found.header.update(cards)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the page names."""
    folder = tmp_path_factory.mktemp("inputs")

    def write(name: str, *hdus: Any) -> None:
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(folder / name)

    centers = fits.BinTableHDU(Table(CENTERS, names=["x", "y"]), name="CENTERS")
    image = hdu(IMAGE, "IMAGE", BANDS="g,r,i", BUNIT="nJy", **sky())
    variance, mask = hdu(VARIANCE, "VARIANCE"), hdu(np.zeros(IMAGE.shape, np.uint8), "MASK")
    psf, ones = hdu(np.ones((3, 5, 5)), "PSF"), np.ones((5, 5))
    write("scene.fits", image, variance, mask, psf, centers)
    write("one_based.fits", image, variance, fits.BinTableHDU(Table(CENTERS + 1, names=["x", "y"]), name="CENTERS"))
    write("hst.fits", *(piece for k, band in enumerate("gri") for piece in (
        hdu(IMAGE[k], "SCI", EXTVER=k + 1, FILTER=band, BUNIT="nJy", **sky()),
        hdu(np.sqrt(VARIANCE[k]), "ERR", EXTVER=k + 1), hdu(np.zeros((40, 50), np.int16), "DQ", EXTVER=k + 1))),
          centers)
    write("legacy.fits", hdu(IMAGE / NANOMAGGY, "IMAGE", BANDS="gri", BUNIT="nanomaggy", **sky()),
          hdu(NANOMAGGY**2 / VARIANCE, "INVVAR"))
    write("variance.fits", hdu(VARIANCE / NANOMAGGY**2))
    write("mask.fits", hdu(np.zeros(IMAGE.shape, np.int16)))
    for k, band in enumerate("gri"):
        write(f"{band}.fits", hdu(IMAGE[k], None, FILTER=f"HSC-{band.upper()}", ZEROPNT=31.4, **sky()))
        write(f"{band}w.fits", hdu(1 / VARIANCE[k], "INVVAR"))
        write(f"{band}p.fits", hdu(ones))
    write("hsc.fits", hdu(IMAGE, "IMAGE", BANDS="HSC-G,HSC-R,HSC-I", BUNIT="nJy", **sky()))
    write("nameless.fits", hdu(IMAGE, "IMAGE", BUNIT="nJy", **sky()))
    write("counts.fits", hdu(IMAGE, "IMAGE", BANDS="gri", BUNIT="adu", **sky()))
    write("cgs.fits", hdu(IMAGE.astype(float) * 1e-32, "IMAGE", BANDS="gri", BUNIT="erg/s/cm2/Hz"),
          hdu(VARIANCE.astype(float) * 1e-64, "VARIANCE"))
    world = SkyCoord(*WCS(sky()).all_pix2world(CENTERS, 0).T, unit="deg")
    own = SkyCoord(150.1, 2.2, unit="deg").galactic
    galactic = sky("GLON-TAN", "GLAT-TAN") | {"CRVAL1": own.l.deg, "CRVAL2": own.b.deg}
    write("galactic.fits", hdu(IMAGE, "IMAGE", BANDS="gri", BUNIT="nJy", **galactic))
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(np.ones((40, 50), np.int32), name="IMAGE",
                                                       compression_type="PLIO_1")]).writeto(folder / "plio.fits")
    write("chips.fits", *(hdu(IMAGE[k], "SCI", EXTVER=k + 1, FILTER="g", BUNIT="nJy") for k in (0, 1)))
    write("shifted.fits", *(hdu(IMAGE[k], band, BUNIT="nJy", **sky(shift=k)) for k, band in enumerate("gr")))
    write("oblong.fits", hdu(IMAGE, "IMAGE", BANDS="gri", BUNIT="nJy", **sky(scale=0.3)))
    write("brightness.fits", hdu(IMAGE, "IMAGE", BANDS="gri", BUNIT="MJy/sr"))
    write("points.fits", hdu(IMAGE, "IMAGE", BANDS="gri", ZEROPNT=27.0, MAGZERO=25.0))
    write("unit.fits", image, hdu(VARIANCE, "VARIANCE", BUNIT="uJy"))
    write("half.fits", hdu(IMAGE[0], "g", BUNIT="nJy"), hdu(IMAGE[1], "r", BUNIT="nJy"), hdu(VARIANCE[0], "g_VARIANCE"))

    x, y = CENTERS.T
    ra, dec = world.ra.deg, world.dec.deg
    Table({"id": ["A", "007"], "x": x, "y": y, "kind": ["star", "auto"]}).write(folder / "list.csv")
    Table({"x": x + 1, "y": y + 1}).write(folder / "ds9.csv")
    (folder / "sextractor.cat").write_text("# 1 NUMBER Number\n# 2 X_IMAGE Position [pixel]\n# 3 Y_IMAGE Position"
                                           f" [pixel]\n 1 {x[0] + 1} {y[0] + 1}\n 2 {x[1] + 1} {y[1] + 1}\n")
    Table({"label": [1, 2], "xcentroid": x, "ycentroid": y}).write(folder / "photutils.ecsv")
    Table({"ra": ra, "dec": dec}).write(folder / "radec.csv")
    targets = SkyCoord(*WCS(galactic).all_pix2world(CENTERS, 0).T, unit="deg", frame="galactic").icrs
    Table({"ra": targets.ra.deg, "dec": targets.dec.deg}).write(folder / "targets.csv")
    hms, dms = world.ra.to_string("hour", sep=":", precision=5), world.dec.to_string("deg", sep=":", precision=4)
    Table({"ra": hms, "dec": dms}).write(folder / "hms.csv")
    Table({"RAJ2000": ra, "DEJ2000": dec}, units=["deg", "deg"]).write(folder / "vizier.vot", format="votable")
    Table({"coord_ra": np.radians(ra), "coord_dec": np.radians(dec)}).write(folder / "radians.fits")
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet`")
    import pyarrow as arrow
    pyarrow.write_table(arrow.table({"x": x, "y": y}), folder / "list.parquet")
    Table({"nr": [1, 2], "col": x, "row": y}).write(folder / "other.csv")
    (folder / "nameless.txt").write_text(f"1 {x[0]} {y[0]}\n2 {x[1]} {y[1]}\n")
    Table({"x": x + 3, "y": y, "ra": ra, "dec": dec}).write(folder / "both.csv")
    Table({"ra": ra / 15, "dec": dec}).write(folder / "hours.csv")
    Table({"x": x, "y": y, "kind": ["star", "quasar"]}).write(folder / "kinds.csv")
    return folder


def read(line: str) -> Any:
    """Read the inputs of a command line."""
    arguments = parser().parse_args([*shlex.split(line)[1:], "--out", "out"])
    arguments.image = by_band("band", arguments.band) if arguments.band else arguments.image[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_inputs(arguments)


def check(file: Any) -> None:
    scale = 10 ** (0.4 * (31.4 - file.zero_point))
    index = ["gri".index(band.lower()[-1]) for band in file.bands]
    np.testing.assert_allclose(file.image * scale, IMAGE[index], rtol=1e-5)
    if file.variance is not None:
        np.testing.assert_allclose(file.variance * scale**2, VARIANCE[index], rtol=1e-5)


@pytest.mark.parametrize("line", [*lines("FITS files", 1, "deblendrt run"), *lines("Catalogues", 1, "deblendrt run")])
def test_what_you_write(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if "--detect" in line:
        pytest.importorskip("sep", reason="detection needs SEP, the extra `detect`")
        with pytest.raises(ValueError, match="nothing detected"):  # the image is noise
            read(f"{line} --threshold 1e9")
        return
    file, catalog, _ = read(line)
    if "plio" not in line:
        check(file)
    np.testing.assert_allclose(catalog.centers, CENTERS, atol=2e-3)
    if "list.csv" in line:
        assert (catalog.ids.tolist(), catalog.kinds) == (["A", "007"], ["star", "auto"])


@pytest.mark.parametrize("line", lines("FITS files", 1, "read_image"))
def test_what_you_write_in_python(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    check(eval(line, {"read_image": read_image}))


@pytest.mark.parametrize("line", lines("What is refused, and why", 0, "deblendrt run"))
def test_what_is_refused(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = r"expected|say|disagree|off that of|chips|unit|only for|pixel's area|takes no list"
    with pytest.raises((ValueError, OSError), match=words):
        read(line)


def test_the_tables_are_found() -> None:
    assert len(lines("FITS files", 1, "")) >= 17
    assert len(lines("Catalogues", 1, "")) >= 13
    assert len(lines("What is refused, and why", 0, "deblendrt")) >= 15
