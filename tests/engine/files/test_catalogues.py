"""Catalogues as people have them: names of columns, formats, identifiers, frames. Each is right or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table
from astropy.wcs import WCS

from deblendrt.engine.files.catalogues import read_source_list
from deblendrt.engine.files.sky_positions import to_icrs, to_pixels
from deblendrt.engine.files.tables.identifiers import id_column

CENTERS = np.array([[30.25, 40.5], [52.0, 43.75]])
SHAPE = (81, 91)


def sky_wcs(longitude: str = "RA---TAN", latitude: str = "DEC--TAN", **keys: Any) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = [longitude, latitude], [150.1, 2.2], [41, 41]
    wcs.wcs.cdelt = [-0.2 / 3600, 0.2 / 3600]
    for key, value in keys.items():
        setattr(wcs.wcs, key, value)
    return wcs


RA, DEC = sky_wcs().all_pix2world(CENTERS, 0).T
SKY = SkyCoord(RA, DEC, unit="deg")
HMS, DMS = SKY.ra.to_string(u.hourangle, sep=":", precision=6), SKY.dec.to_string(u.deg, sep=":", precision=5)
FK4 = SKY.transform_to("fk4")

POSITIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "x, y": ({"x": CENTERS[:, 0], "y": CENTERS[:, 1]}, {}),
    "X, Y in another order": ({"Y": CENTERS[:, 1], "X": CENTERS[:, 0]}, {}),
    "x, y beside X, Y": ({"x": CENTERS[:, 0], "y": CENTERS[:, 1], "X": [1.0, 2], "Y": [1.0, 2]}, {}),
    "photutils": ({"label": [1, 2], "xcentroid": CENTERS[:, 0], "ycentroid": CENTERS[:, 1]}, {}),
    "SourceExtractor": ({"X_IMAGE": CENTERS[:, 0] + 1, "Y_IMAGE": CENTERS[:, 1] + 1}, {}),
    "SourceExtractor, windowed": ({"XWIN_IMAGE": CENTERS[:, 0] + 1, "YWIN_IMAGE": CENTERS[:, 1] + 1}, {}),
    "ds9": ({"x": CENTERS[:, 0] + 1, "y": CENTERS[:, 1] + 1}, {"one_based": True}),
    "ra, dec": ({"ra": RA, "dec": DEC}, {}),
    "VizieR": ({"RAJ2000": RA, "DEJ2000": DEC}, {}),
    "VizieR, ICRS": ({"RA_ICRS": RA, "DE_ICRS": DEC}, {}),
    "with units in their names": ({"ra_deg": RA, "dec_deg": DEC}, {}),
    "SourceExtractor, sky": ({"ALPHA_J2000": RA, "DELTA_J2000": DEC}, {}),
    "radians by unit": ({"coord_ra": np.radians(RA) * u.rad, "coord_dec": np.radians(DEC) * u.rad}, {}),
    "radians without a unit": ({"coord_ra": np.radians(RA), "coord_dec": np.radians(DEC)}, {}),
    "degrees without a unit": ({"coord_ra": RA, "coord_dec": DEC}, {}),
    "sexagesimal": ({"ra": HMS, "dec": DMS}, {}),
    "sexagesimal with letters": ({"ra": SKY.ra.to_string(u.hourangle, precision=6),
                                  "dec": SKY.dec.to_string(u.deg, precision=5)}, {}),
    "B1950": ({"RAB1950": FK4.ra.deg, "DEB1950": FK4.dec.deg}, {}),
    "galactic": ({"GLON": SKY.galactic.l.deg, "GLAT": SKY.galactic.b.deg}, {}),
    "told": ({"col": CENTERS[:, 0], "row": CENTERS[:, 1]}, {"columns": {"x": "col", "y": "row"}}),
    "told by number": ({"a": [1, 2], "b": CENTERS[:, 0], "c": CENTERS[:, 1]}, {"columns": {"x": "2", "y": "3"}}),
    "told, sky": ({"lon": RA, "lat": DEC, "x": [1.0, 2], "y": [3.0, 4]}, {"columns": {"ra": "lon", "dec": "lat"}}),
    "pixels and sky that agree": ({"x": CENTERS[:, 0], "y": CENTERS[:, 1], "ra": RA, "dec": DEC}, {}),
    "both, pixels told": ({"x": CENTERS[:, 0], "y": CENTERS[:, 1], "ra": DEC, "dec": DEC},
                          {"columns": {"x": "x", "y": "y"}}),
}


@pytest.mark.parametrize("form", ["fits", "ecsv", "csv", "vot"])
@pytest.mark.parametrize("case", POSITIONS)
def test_positions(tmp_path: Path, case: str, form: str) -> None:
    columns, options = POSITIONS[case]
    if form == "csv" and any(isinstance(column, u.Quantity) for column in columns.values()):
        pytest.skip("CSV has no units")
    table = QTable(columns)
    if form == "vot":
        table.write(tmp_path / "c.vot", format="votable")
    else:
        table.write(tmp_path / f"c.{form}")
    centers = read_source_list(tmp_path / f"c.{form}", sky_wcs(), shape=SHAPE, **options).centers
    np.testing.assert_allclose(centers, CENTERS, atol=2e-3)


def test_hours_by_unit(tmp_path: Path) -> None:
    QTable({"ra": RA / 15 * u.hourangle, "dec": DEC * u.deg}).write(tmp_path / "c.ecsv")  # FITS has no such unit
    np.testing.assert_allclose(read_source_list(tmp_path / "c.ecsv", sky_wcs()).centers, CENTERS, atol=1e-5)


def test_a_column_of_sky_coordinates(tmp_path: Path) -> None:
    QTable({"sky_centroid": SKY}).write(tmp_path / "c.ecsv")
    np.testing.assert_allclose(read_source_list(tmp_path / "c.ecsv", sky_wcs()).centers, CENTERS, atol=1e-6)


TEXTS = {
    "blanks": "x y\n30.25 40.5\n52.0 43.75\n",
    "aligned": "  x      y\n30.25   40.5\n\n 52.0  43.75\n",
    "np.savetxt": "# x y\n30.25 40.5\n52.0 43.75\n",
    "np.savetxt with commas": "# x,y\n30.25 40.5\n52.0 43.75\n",
    "comments": "# made by hand\nx,y\n30.25,40.5\n# a note\n52.0,43.75\n",
    "tabs": "x\ty\n30.25\t40.5\n52.0\t43.75\n",
    "semicolons": "x;y\n30.25;40.5\n52.0;43.75\n",
    "Excel": "\ufeffx,y\r\n30.25,40.5\r\n52.0,43.75\r\n",
    "SourceExtractor": "#   1 NUMBER  Running number\n#   2 X_IMAGE  Position along x  [pixel]\n"
                       "#   3 Y_IMAGE  Position along y  [pixel]\n 1 31.25 41.5\n 2 53.0 44.75\n",
    "quotes": 'name,x,y\n"a, b",30.25,40.5\n"c",52.0,43.75\n',
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts(tmp_path: Path, case: str) -> None:
    (tmp_path / "c.txt").write_bytes(TEXTS[case].encode())
    np.testing.assert_array_equal(read_source_list(tmp_path / "c.txt").centers, CENTERS)


def test_text_without_names(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("7,30.25,40.5\n8,52.0,43.75\n")
    found = read_source_list(tmp_path / "c.csv", columns={"x": "2", "y": "3", "id": "1"})
    np.testing.assert_array_equal(found.centers, CENTERS)
    assert found.ids.tolist() == [7, 8]
    with pytest.raises(ValueError, match=r"found col1, col2, col3; name them with columns \(--columns"):
        read_source_list(tmp_path / "c.csv")


def test_tables_after_others(tmp_path: Path) -> None:
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU(Table({"Field Header Card": ["a"]}), name="LDAC_IMHEAD"),
            fits.BinTableHDU(Table(POSITIONS["SourceExtractor"][0]), name="LDAC_OBJECTS")]
    fits.HDUList(hdus).writeto(tmp_path / "c.cat")
    np.testing.assert_array_equal(read_source_list(tmp_path / "c.cat").centers, CENTERS)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet`")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet`")
    table = pyarrow.table({"id": pyarrow.array([2**60 + 1, None]), "x": CENTERS[:, 0], "y": CENTERS[:, 1],
                           "kind": pyarrow.array(["star", None]), "more": [[1], [2, 3]]})
    parquet.write_table(table, tmp_path / "c.parquet")
    found = read_source_list(tmp_path / "c.parquet")
    np.testing.assert_array_equal(found.centers, CENTERS)
    assert found.ids.tolist() == [2**60 + 1, None]
    assert found.kinds == ["star", "galaxy"]
    assert "1 sources without a kind" in found.notes[0]


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no positions": ({"a": [1.0]}, {}, "expected columns x, y or ra, dec; found a"),
    "parent coordinates": ({"base_SdssCentroid_x": [1.0], "base_SdssCentroid_y": [1.0]}, {}, "expected columns x, y"),
    "one-based beside sky": ({"x": CENTERS[:, 0] + 1, "y": CENTERS[:, 1] + 1, "ra": RA, "dec": DEC}, {},
                             r"disagree, by -1.00, -1.00 pixel \(median\); the pixels seem to count from 1"),
    "elsewhere": ({"x": CENTERS[:, 0] + 9, "y": CENTERS[:, 1], "ra": RA, "dec": DEC}, {}, "disagree, by -9.00, -0.00"),
    "text": ({"x": ["left"], "y": ["right"]}, {}, "column 'x' is not numeric"),
    "degrees as hours": ({"ra": ["150:06:00"], "dec": ["2:12:00"]}, {}, "'ra' is not numeric.*range"),
    "unit of length": ({"ra": [1.0] * u.m, "dec": [2.0] * u.m}, {}, "'ra': expected a unit of angle, got m"),
    "pixels in arcsec": ({"x": [1.0] * u.arcsec, "y": [2.0] * u.arcsec}, {}, "'x': expected a position in pixels"),
    "radian or degree": ({"coord_ra": [0.1], "coord_dec": [0.1]}, {}, "have no unit, and may be degree or radian"),
    "hours without a unit": ({"ra": RA / 15, "dec": DEC}, {}, "0 of 2 sources are in the image; read as hours, 2 are"),
    "radians as degrees": ({"ra": np.radians(RA), "dec": np.radians(DEC)}, {}, "read as radian, 2 are: give the col"),
    "kind": ({"x": [1.0], "y": [1.0], "kind": ["quasar"]}, {}, "'kind': expected galaxy, star, auto, found 'quasar'"),
    "told role": ({"x": [1.0], "y": [1.0]}, {"columns": {"z": "x"}}, "columns: expected names for x, y.*'z'"),
    "told name": ({"x": [1.0], "y": [1.0]}, {"columns": {"x": "u", "y": "v"}}, "no column 'u'; found x, y"),
    "half told": ({"x": [1.0], "y": [1.0]}, {"columns": {"x": "x"}}, "expected both x and y"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    columns, options, message = REFUSED[case]
    QTable(columns).write(tmp_path / "c.ecsv")
    with pytest.raises(ValueError, match=message):
        read_source_list(tmp_path / "c.ecsv", sky_wcs(), shape=SHAPE, **options)


@pytest.mark.parametrize(("name", "text", "message"), [
    ("c.csv", b"x,y\n1,2,3\n", "line 2: 3 entries, expected 2"), ("c.csv", b"x,x\n1,2\n", "column named twice"),
    ("c.csv", "id,x,y\né,1,2\n".encode("latin-1"), "not readable"), ("c.reg", b"circle(1,2,3)\n", "regions of ds9"),
])
def test_texts_refused(tmp_path: Path, name: str, text: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_source_list(tmp_path / name)


def test_few_that_disagree_are_noted(tmp_path: Path) -> None:
    x, y = np.linspace(10, 70, 9), np.full(9, 40.0)
    ra, dec = sky_wcs().all_pix2world(np.column_stack([x, y]), 0).T
    x[3] += 2
    Table({"x": x, "y": y, "ra": ra, "dec": dec}).write(tmp_path / "c.csv")
    found = read_source_list(tmp_path / "c.csv", sky_wcs())
    np.testing.assert_array_equal(found.centers[:, 0], x)
    assert "disagree for 1 of 9 sources; x, y are used" in found.notes[0]


IDS: dict[str, tuple[str, list[Any]]] = {  # entries of a CSV file; ids as they come back, None: missing
    "integers": ("11 12", [11, 12]), "a gap": ("11 ", [11, None]), "a gap between texts": ("A ", ["A", None]),
    "leading zeros": ("007 008", ["007", "008"]), "many digits": (f"{2**62} {2**70}", [str(2**62), str(2**70)]),
    "like numbers": ("1e5 1.50", ["1e5", "1.50"]), "accents": ("Abell\xa0\xe9 B", ["Abell\xa0\xe9", "B"]),
    "a long name": ("A" * 900 + " B", ["A" * 900, "B"]), "999999": ("999999 ", [999999, None]),
    "negative": ("-1 0", [-1, 0]), "words": ("nan NA", ["nan", "NA"]),
}


@pytest.mark.parametrize("case", IDS)
def test_ids(tmp_path: Path, case: str) -> None:
    text, expected = IDS[case]
    first, second = text.split(" ")
    (tmp_path / "c.csv").write_text(f"id,x,y\n{first},1,2\n{second},3,4\n", encoding="utf-8")
    ids = read_source_list(tmp_path / "c.csv").ids
    assert ids.tolist() == expected
    Table([id_column(ids, 3)]).write(tmp_path / "out.fits")
    back = Table.read(tmp_path / "out.fits")["catalog_id"]
    assert [None if np.ma.is_masked(value) else str(value).encode().decode("unicode_escape") for value in back] == [
        None if value is None else str(value) for value in [*expected, -1]]


@pytest.mark.parametrize(("column", "expected"), [
    (MaskedColumn([11, 12], mask=[False, True]), [11, None]), (np.array([11.0, np.nan]), [11, None]),
    (np.array([2**63 + 5, 2], np.uint64), [str(2**63 + 5), "2"]), (np.array([3, 4], np.uint8), [3, 4]),
    (np.array([1.5, 2.0]), [1.5, 2.0]), (MaskedColumn(["A", "B"], mask=[False, True]), ["A", None]),
    (np.array([b"A", b"  "]), ["A", None]),
])
def test_ids_of_fits(tmp_path: Path, column: Any, expected: list[Any]) -> None:
    Table({"id": column, "x": [1.0, 2], "y": [3.0, 4]}).write(tmp_path / "c.fits")
    assert read_source_list(tmp_path / "c.fits").ids.tolist() == expected


FRAMES = [("RA---TAN", "DEC--TAN", "icrs", {}), ("GLON-TAN", "GLAT-TAN", "galactic", {}),
          ("RA---TAN", "DEC--TAN", "fk4", {"radesys": "FK4", "equinox": 1950.0}),
          ("RA---TAN", "DEC--TAN", "fk5", {"radesys": "FK5", "equinox": 2000.0})]


@pytest.mark.parametrize(("longitude", "latitude", "frame", "keys"), FRAMES)
def test_frames(longitude: str, latitude: str, frame: str, keys: dict[str, Any]) -> None:
    wcs = sky_wcs(longitude, latitude, **keys)
    true = SkyCoord(*wcs.all_pix2world(CENTERS, 0).T, unit="deg", frame=frame).icrs
    found = to_icrs(wcs, CENTERS)
    assert (SkyCoord(*found.T, unit="deg").separation(true) < 1e-3 * u.arcsec).all()
    np.testing.assert_allclose(to_pixels(wcs, found), CENTERS, atol=1e-5)


def test_a_frame_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="expected equatorial or galactic coordinates, got the axes HPLN-TAN"):
        to_icrs(sky_wcs("HPLN-TAN", "HPLT-TAN"), CENTERS)
