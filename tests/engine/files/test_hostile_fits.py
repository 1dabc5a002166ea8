"""FITS files that announce what they do not hold: refused before memory is taken, and with an error that says so.

Most are minimised from what `python -m perf.fuzz` found.
"""

from __future__ import annotations

import gzip
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from deblendrt.engine.files.catalogues import read_source_list
from deblendrt.engine.files.fits import read_image, read_psf
from deblendrt.engine.files.fits_check import open_fits

pytestmark = pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
IMAGE = ("SIMPLE  = T", "BITPIX  = -32", "NAXIS   = 2", "NAXIS1  = 3", "NAXIS2  = 2")
TABLE = ("XTENSION= 'BINTABLE'", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 8", "NAXIS2  = 1", "PCOUNT  = 0",
         "GCOUNT  = 1", "TFIELDS = 1", "TFORM1  = 'D       '", "TTYPE1  = 'x       '")
PRIMARY = ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0")
TILES = (*TABLE[:5], "PCOUNT  = 20", *TABLE[6:8], "TFORM1  = '1PB(20) '", "TTYPE1  = 'COMPRESSED_DATA'",
         "ZIMAGE  = T", "ZBITPIX = 32", "ZNAXIS  = 2",
         "ZNAXIS1 = 9", "ZNAXIS2 = 8", "ZTILE1  = 9", "ZTILE2  = 8", "ZCMPTYPE= 'RICE_1  '")


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """Allow two more gigabytes of memory, so that a reader that trusts a header fails and does not fill the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def unit(*cards: str, data: bytes = b"") -> bytes:
    """Return header and data, each padded to whole blocks."""
    header = "".join(card.ljust(80) for card in (*cards, "END")).encode("latin-1")
    return header + b" " * (-len(header) % 2880) + data + bytes(-len(data) % 2880)


def changed(cards: tuple[str, ...], **values: Any) -> tuple[str, ...]:
    """Return cards with other values; new cards are appended."""
    new = {key: f"{key:8}= {value}" for key, value in values.items()}
    kept = [new.pop(card[:8].strip(), card) for card in cards]
    return (*kept, *new.values())


def image(data: bytes = bytes(24), **values: Any) -> bytes:
    return unit(*changed(IMAGE, **values), data=data)


def table(data: bytes = bytes(8), cards: tuple[str, ...] = TABLE, **values: Any) -> bytes:
    return unit(*PRIMARY) + unit(*changed(cards, **values), data=data)


def tiles(data: bytes = bytes(28), **values: Any) -> bytes:
    return table(data, TILES, **values)


def test_what_is_changed_below_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.fits"
    path.write_bytes(image())
    np.testing.assert_array_equal(read_image(path).image, np.zeros((1, 2, 3)))
    path.write_bytes(image() + bytes(2880))
    assert read_image(path).image.shape == (1, 2, 3)
    for content in (table(), tiles()):
        path.write_bytes(content)
        with open_fits(path) as hdus:
            assert len(hdus) == 2


POINTER = np.array([30, 0], ">i4").tobytes() + bytes(20)
BOMB = gzip.compress(bytes(10**7))
STRUCTURES = {
    "nothing": (b"", "empty|begin"), "text": (b"not FITS", "END|begin"), "a PNG": (b"\x89PNG" + bytes(6000), "begin"),
    "only a primary's word": (b"SIMPLE  =".ljust(2880), "card"),
    "no END": (image().replace(b"END", b"EMD"), "without END"),
    "END that is not alone": (image().replace(b"END     ", b"END  X  "), "END"),
    "huge axis": (image(NAXIS1=2**39), "truncated"), "axis beyond 64 bits": (image(NAXIS1=2**63), "NAXIS1"),
    "negative axis": (image(NAXIS2=-1), "NAXIS2"), "four billion axes": (image(NAXIS=2**32), "NAXIS"),
    "axes from nowhere": (image(NAXIS=3), "NAXIS3"), "an axis too many": (image(NAXIS3=2), "more axes"),
    "real axis": (image(NAXIS1=3.0), "NAXIS1"), "text axis": (image(NAXIS1="'3       '"), "NAXIS1"),
    "BITPIX": (image(BITPIX=7), "BITPIX"), "BITPIX true": (image(BITPIX="T"), "BITPIX"),
    "twice": (unit(*IMAGE, "NAXIS1  = 2147483647", data=bytes(24)), "twice"),
    "in small letters": (unit(*IMAGE, "naxis3  = 2", data=bytes(24)), "written"),
    "HIERARCH": (unit(*IMAGE, "HIERARCH NAXIS1 = 2147483647", data=bytes(24)), "written"),
    "groups": (image(GROUPS="T"), "groups"), "GCOUNT": (image(GCOUNT=0), "GCOUNT"),
    "PCOUNT": (image(PCOUNT=-24), "PCOUNT"), "not SIMPLE": (image(SIMPLE="F"), "SIMPLE"),
    "odd extension": (table(XTENSION="'FOREIGN '"), "kind"),
    "something behind": (image() + unit("XTENSIOM= 'IMAGE   '", *changed(IMAGE[1:], NAXIS=2**32)), "begin"),
    "a lot behind": (image() + bytes(2880 * 11), "begin"), "a little behind": (image() + b"x", "without END"),
    "cut": (image()[:2890], "truncated"), "rows": (table(NAXIS2=10**9), "truncated"),
    "wide columns": (table(TFORM1="'999999999D'"), "columns of"), "no format": (table(TFIELDS=2), "TFORM2"),
    "strange format": (table(TFORM1="'65535'"), "TFORM1"), "fields": (table(TFIELDS=10**6), "TFIELDS"),
    "text table": (table(XTENSION="'TABLE   '", TFORM1="'A8      '", TBCOL1=5), "behind its rows"),
    "array outside of its heap": (table(POINTER, TFORM1="'1PB     '", PCOUNT=20), "outside"),
    "negative length": (table(np.array([-1, 0], ">i4").tobytes(), TFORM1="'1PB     '"), "outside"),
    "huge length": (table(np.array([2**62, 0], ">i8").tobytes(), TFORM1="'1QD     '", NAXIS1=16), "outside|truncated"),
    "heap": (table(POINTER, TFORM1="'1PB     '", PCOUNT=20, THEAP=10**9), "THEAP"),
    "shared data": (table(np.array([20, 0] * 2, ">i4").tobytes() + bytes(20), TFORM1="'1PB     '", NAXIS2=2, PCOUNT=20),
                    "share"),
    "an image to astropy alone": (tiles(ZIMAGE=1, ZNAXIS1=2**31 - 1), "ZIMAGE"),
    "huge tiles": (tiles(ZNAXIS1=10**6, ZNAXIS2=10**6, ZTILE1=10**6, ZTILE2=10**6), "unpacks to"),
    "many tiles": (tiles(ZNAXIS1=10**6, ZTILE1=1), "tiles"), "tile above its image": (tiles(ZTILE1=10**9), "ZTILE1"),
    "no tile": (tiles(ZTILE2=0), "ZTILE2"), "negative image": (tiles(ZNAXIS2=-1), "ZNAXIS2"),
    "axes of an image": (tiles(ZNAXIS=999), "ZNAXIS"), "PLIO": (tiles(ZCMPTYPE="'PLIO_1  '"), "compression"),
    "HCOMPRESS": (tiles(ZCMPTYPE="'HCOMPRESS_1'"), "compression"), "ZBITPIX": (tiles(ZBITPIX=7), "ZBITPIX"),
    "block": (tiles(ZNAME1="'BLOCKSIZE'", ZVAL1=0), "ZVAL1"), "bytes": (tiles(ZNAME1="'BYTEPIX '", ZVAL1=9), "BYTEPIX"),
    "a bomb in a tile": (tiles(np.array([len(BOMB), 0], ">i4").tobytes() + BOMB, PCOUNT=len(BOMB),
                               ZCMPTYPE="'GZIP_1  '"), "unpacks to more"),
    "two members in a tile": (tiles(np.array([42, 0], ">i4").tobytes() + gzip.compress(b"", mtime=0) * 2 + bytes(9),
                                    PCOUNT=49, ZCMPTYPE="'GZIP_1  '"), "unpacks to more"),
    "gzip, cut": (gzip.compress(image())[:-20], "not readable"), "no gzip": (b"\x1f\x8b" + bytes(50), "not readable"),
    "gzip, damaged": (gzip.compress(image())[:20] + b"\xff" * 50, "not readable"),
}


@pytest.mark.parametrize("read", [read_image, lambda path: read_psf(path, 1), read_source_list],
                         ids=["read_image", "read_psf", "read_source_list"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    content, message = STRUCTURES[name]
    path = tmp_path / "x.fits"
    path.write_bytes(content)
    with pytest.raises((OSError, ValueError), match=message):
        read(path)


def test_a_file_of_gzip_that_unpacks_without_end(tmp_path: Path) -> None:
    path = tmp_path / "x.fits.gz"
    with gzip.open(path, "wb") as file:
        file.write(unit(*changed(IMAGE, NAXIS1=10**5, NAXIS2=10**4)))
        for _ in range(160):
            file.write(bytes(2**20))
    with pytest.raises(OSError, match="unpacks to more than 134217728 bytes"):
        read_image(path)


@pytest.mark.parametrize(("cards", "message"), [
    ({"WCSAXES": 65536}, "WCSAXES"),  # wcslib: a segmentation fault
    ({"WCSAXESA": 65536, "CTYPE12A": "'RA---TAN'", "CRPIX99A": 1.0}, None),  # an alternative WCS, which is not used
    ({"CRPIX99": 1.0}, "above 9"), ({"PC99_99": 1.0}, "above 9"), ({"PC001099": 1.0}, "above 9"),
    ({"A_ORDER": 65536, "B_ORDER": 2}, "A_ORDER"), ({"AP_ORDER": "'x       '"}, "AP_ORDER"),
    ({"CTYPE2": 1}, "WCS"), ({"CRVAL1": "1E999"}, "CRVAL1"), ({"CPDIS1": "'LOOKUP  '", "DP1": "'NAXES: 2'"}, "WCS"),
    ({"BUNIT": "'m**99999999999'"}, "BUNIT"), ({"BUNIT": "'nJy/sr'"}, "surface brightness"),
    ({"ZEROPNT": "'x       '"}, "ZEROPNT"), ({"MAGZERO": "1E999"}, "MAGZERO"), ({"FLUXMAG0": -1.0}, "FLUXMAG0"),
    ({"FLUXMAG0": "T"}, None), ({"PIXSCALE": "'abc     '", "CTYPE1": "'LINEAR  '", "CTYPE2": "'LINEAR  '"}, "PIXSCALE"),
    ({"BANDS": "'ggg     '"}, "distinct names"), ({"FILTER": "=  ' "}, "FILTER"), ({"CONTINUE": "1"}, "CONTINUE"),
])
def test_headers(tmp_path: Path, cards: dict[str, Any], message: str | None) -> None:
    sky = {"CTYPE1": "'RA---TAN'", "CTYPE2": "'DEC--TAN'", "CRVAL1": 150.0, "CRVAL2": 2.0, "CD1_1": -5e-5,
           "CD2_2": 5e-5}
    path = tmp_path / "x.fits"
    path.write_bytes(image(**sky | cards))
    if message is None:
        read_image(path)
        return
    with pytest.raises((OSError, ValueError), match=message):
        read_image(path)


def test_a_keyword_twice(tmp_path: Path) -> None:
    path = tmp_path / "x.fits"
    path.write_bytes(unit(*IMAGE, "CTYPE1  = 'RA---TAN'", "WCSAXES = 2", "WCSAXES = 65536", data=bytes(24)))
    with pytest.raises(ValueError, match="WCSAXES is given twice"):
        read_image(path)


def write(path: Path, *hdus: Any) -> Path:
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path


def test_psfs_of_unequal_bands_are_not_padded_without_end(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fits", *[fits.ImageHDU(np.ones((4, 4), np.float32), name=name) for name in "gr"],
                 fits.ImageHDU(np.ones((1, 200_000), np.uint8), name="g_PSF"),
                 fits.ImageHDU(np.ones((3, 3), np.uint8), name="r_PSF"))
    with pytest.raises(ValueError, match="1023 pixels at most"):
        read_image(path)


@pytest.mark.parametrize("plane", [-1, 63, 10**9, 1.5, "x"])
def test_bits_of_a_mask(tmp_path: Path, plane: Any) -> None:
    mask = fits.ImageHDU(np.ones((4, 4), np.int32), name="MASK")
    mask.header["MP_BAD"] = plane
    path = write(tmp_path / "x.fits", fits.ImageHDU(np.ones((4, 4), np.float32), name="IMAGE"), mask)
    with pytest.raises(ValueError, match="bits from 0 to 62"):
        read_image(path)


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "GZIP_2"])
def test_compressed_images_are_read(tmp_path: Path, kind: str) -> None:
    data = (100 * np.random.default_rng(0).normal(size=(40, 50))).astype(np.int32)
    path = write(tmp_path / "x.fits", fits.CompImageHDU(data, name="IMAGE", compression_type=kind),
                 fits.CompImageHDU(np.zeros((40, 50), np.uint8), name="MASK", compression_type=kind))
    file = read_image(path)
    np.testing.assert_array_equal(file.image[0], data)
    assert file.mask is not None


def test_catalogues_with_arrays_beside_positions_are_read(tmp_path: Path) -> None:
    table = fits.BinTableHDU.from_columns([
        fits.Column("x", "D", array=[1.0, 2]), fits.Column("y", "E", array=[3.0, 4]),
        fits.Column("more", "PJ()", array=np.array([np.arange(3), np.arange(2)], object))])
    np.testing.assert_array_equal(read_source_list(write(tmp_path / "x.fits", table)).centers, [[1, 3], [2, 4]])


@pytest.mark.parametrize(("name", "text", "message"), [
    ("x.csv", b"x," * 10**6 + b"y\n1,2", "first line"), ("x.ecsv", b"# %ECSV 1.0\n" + b"# - {}\n" * 10**5, "header"),
    ("x.csv", b"", "not readable|expected columns"), ("x.csv", b"\xff\xfe\x00", "not readable|expected columns"),
    ("x.ecsv", b"# %ECSV 1.0\n# ---\n# !!python/object/apply:os.system ['true']\nx y\n1 2\n", "not readable"),
    ("x.ecsv", b"# %ECSV 1.0\n# ---\n# datatype:\n# - {name: x, datatype: object}\nx\n1\n", "not readable|expected"),
])
def test_text_catalogues(tmp_path: Path, name: str, text: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_source_list(path)


def test_quantities_in_ecsv_are_read(tmp_path: Path) -> None:
    from astropy import units
    from astropy.table import QTable

    path = tmp_path / "x.ecsv"
    QTable({"x": [1.0, 2] * units.pix, "y": [3.0, 4] * units.pix}).write(path)
    np.testing.assert_array_equal(read_source_list(path).centers, [[1, 3], [2, 4]])
