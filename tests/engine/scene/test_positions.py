"""Positions of sources: tables by name, positions on the sky by the WCS, units, and forms that are refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import CCDData, Cutout2D
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.scene.scene import Scene, make_scenes
from deblendrt.engine.units import InputWarning

MODEL: dict[str, Any] = {"bundle_bands": ("g", "r"), "bundle_pixel_scale": 0.2, "window_half": 4}
IMAGE = np.random.default_rng(0).normal(size=(2, 40, 50))
X, Y = np.array([10.25, 30.5, 44.0]), np.array([8.5, 20.0, 31.75])
XY = np.column_stack([X, Y])


def one(centers: Any, cutouts: Any = IMAGE, **options: Any) -> Scene:
    (scene,) = make_scenes(cutouts, centers, **(MODEL | {"variance": 1.0} | options))
    return scene


def sky_wcs(frame: str = "RA---TAN", scale: float = 0.2, shift: float = 0.0, turn: float = 30.0) -> WCS:
    wcs = WCS(naxis=2)
    galactic = frame.startswith("GLON")
    wcs.wcs.ctype = ["GLON-TAN", "GLAT-TAN"] if galactic else ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [236.8, 42.1] if galactic else [150.1, 2.2]
    wcs.wcs.crpix = [20.0 + shift, 25.0]
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    wcs.wcs.cd = np.array([[-cos, sin], [sin, cos]]) * scale / 3600
    if frame == "FK4":
        wcs.wcs.radesys, wcs.wcs.equinox = "FK4", 1950.0
    return wcs


WORLD = sky_wcs()
SKY = WORLD.pixel_to_world(X, Y)


DEC_FIRST = WORLD.swapaxes(0, 1)


def frame(columns: Any) -> Any:
    return pytest.importorskip("pandas").DataFrame(columns)


def data_array(values: Any, dims: tuple[str, ...], **options: Any) -> Any:
    return pytest.importorskip("xarray").DataArray(values, dims=dims, **options)


HONOURED: dict[str, Any] = {
    "list": lambda: one(XY.tolist()),
    "Quantity": lambda: one(XY * u.pix),
    "list of Quantities": lambda: one([(x * u.pix, y * u.pix) for x, y in XY]),
    "Table": lambda: one(Table({"flux": X, "y": Y, "x": X})),
    "QTable": lambda: one(QTable({"y": Y * u.pix, "x": X * u.pix})),
    "photutils' names": lambda: one(Table({"ycentroid": Y, "xcentroid": X})),
    "DataFrame": lambda: one(frame({"y": Y, "x": X})),
    "DataFrame of capitals": lambda: one(frame({"id": [7, 8, 9], "Y": Y, "X": X})),
    "dict of columns": lambda: one({"y": Y.tolist(), "x": X.tolist()}),
    "structured array": lambda: one(np.array(list(zip(Y, X, strict=True)), [("y", float), ("x", float)])),
    "record array": lambda: one(np.rec.fromarrays([Y, X], names="y,x")),
    "Row": lambda: one([Table({"y": [y], "x": [x]})[0] for x, y in XY]),
    "rows of a table": lambda: one(list(Table({"y": Y, "x": X}))),
    "dicts": lambda: one([{"y": y, "x": x} for x, y in XY]),
    "dicts with units": lambda: one([{"y": y * u.pix, "x": x * u.pix} for x, y in XY]),
    "named tuples": lambda: one(list(frame({"y": Y, "x": X}).itertuples(index=False))),
    "records": lambda: one(list(np.array(list(zip(Y, X, strict=True)), [("y", float), ("x", float)]))),
    "FITS table": lambda: one(fits.BinTableHDU(Table({"y": Y, "x": X})).data),
    "Dataset": lambda: one(pytest.importorskip("xarray").Dataset({"y": ("s", Y), "x": ("s", X)})),
    "DataArray": lambda: one(data_array(XY, ("source", "xy"))),
    "DataArray by name": lambda: one(data_array(XY[:, ::-1], ("source", "axis"), coords={"axis": ["y", "x"]})),
    "DataArray, other order": lambda: one(data_array(XY.T, ("axis", "source"), coords={"axis": ["x", "y"]})),
    "SkyCoord": lambda: one(SKY, wcs=WORLD),
    "SkyCoord, galactic": lambda: one(SKY.galactic, wcs=WORLD),
    "SkyCoord, FK5": lambda: one(SKY.fk5, wcs=WORLD),
    "list of SkyCoord": lambda: one(list(SKY), wcs=WORLD),
    "WCS with the declination first": lambda: one(DEC_FIRST.pixel_to_world(X, Y), wcs=DEC_FIRST),
    "Series": lambda: one([row for _, row in frame({"y": Y, "x": X}).iterrows()]),
    "WCS in galactic": lambda: one(sky_wcs("GLON").pixel_to_world(X, Y).icrs, wcs=sky_wcs("GLON")),
    "WCS in FK4": lambda: one(sky_wcs("FK4").pixel_to_world(X, Y).icrs, wcs=sky_wcs("FK4")),
    "ra, dec": lambda: one(Table({"dec": SKY.dec.deg, "ra": SKY.ra.deg}), wcs=WORLD),
    "ra, dec in radians": lambda: one(QTable({"dec": SKY.dec.to(u.rad), "ra": SKY.ra.to(u.rad)}), wcs=WORLD),
    "DataFrame of ra, dec": lambda: one(frame({"ra": SKY.ra.deg, "dec": SKY.dec.deg}), wcs=WORLD),
    "column of SkyCoord": lambda: one(QTable({"position": SKY}), wcs=WORLD),
    "WCS of CCDData": lambda: one(SKY, CCDData(IMAGE, unit="nJy", wcs=three(WORLD)), variance=1 * u.nJy**2),
    "WCS of planes": lambda: one(SKY, [CCDData(plane, unit="nJy", wcs=WORLD) for plane in IMAGE],
                                 variance=1 * u.nJy**2),
    "WCS of Cutout2D": lambda: one(SKY, cutouts(), variance=1.0),
    "WCS of each band": lambda: one(SKY, wcs=[WORLD, WORLD.deepcopy()]),
    "WCS by band": lambda: one(SKY, wcs={"r": WORLD, "g": WORLD}),
    "WCS of another package": lambda: one(SKY, wcs=Other()),
    "table and WCS of another package": lambda: one(QTable({"position": SKY}), wcs=Other()),
}


def three(wcs: WCS) -> WCS:
    """A WCS with a band axis."""
    cube = wcs.sub([1, 2, 0])
    cube.wcs.ctype = [*wcs.wcs.ctype, "BAND"]
    return cube


def cutouts() -> list[Cutout2D]:
    big = np.zeros((2, 60, 80))
    big[:, 5:45, 10:60] = IMAGE
    wcs = sky_wcs()
    wcs.wcs.crpix += [10, 5]
    return [Cutout2D(plane, (34.5, 24.5), (40, 50), wcs=wcs) for plane in big]


class Other:
    """A WCS of another package, with the interface that astropy defines."""

    def world_to_pixel(self, sky: SkyCoord) -> Any:
        return WORLD.world_to_pixel(sky)


@pytest.mark.parametrize("case", HONOURED)
def test_honoured(case: str) -> None:
    np.testing.assert_allclose(HONOURED[case]().centers, XY, atol=1e-6)


def test_identifiers_of_a_table_are_named() -> None:
    with pytest.warns(InputWarning, match="centers: the result has no place for the identifiers of the table"):
        one(frame({"id": [7, 8, 9], "y": Y, "x": X}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        one(frame({"y": Y, "x": X}))


REFUSED: dict[str, tuple[Any, str]] = {
    "arcsec": (lambda: one(XY * u.arcsec), "centers: expected positions in pixels, got the unit arcsec.*SkyCoord"),
    "degrees": (lambda: one([(x * u.deg, y * u.deg) for x, y in XY]), "centers: .* got the unit deg"),
    "flux": (lambda: one(XY * u.nJy), "centers: expected positions in pixels, got the unit nJy"),
    "column in arcsec": (lambda: one(QTable({"x": X * u.arcsec, "y": Y * u.arcsec})), "centers: column 'x'"),
    "FITS table in arcsec": (lambda: one(fits.BinTableHDU(QTable({"x": X * u.arcsec, "y": Y})).data),
                             "centers: column 'x': expected a position in pixels, got the unit arcsec"),
    "dicts in arcsec": (lambda: one([{"y": y * u.arcsec, "x": x * u.arcsec} for x, y in XY]), "centers: column 'x'"),
    "complex": (lambda: one(XY + 0j), "centers: expected numbers .* complex"),
    "WCS of bands on shifted grids": (
        lambda: one(SKY, wcs=[WORLD, sky_wcs(shift=1)]), "cutouts: expected bands on one pixel grid"),
    "path for positions in pixels": (lambda: one(XY, wcs="image.fits"), "wcs: expected an astropy.wcs.WCS"),
    "SkyCoord without WCS": (lambda: one(SKY), "centers: expected wcs= with positions on the sky"),
    "table of ra, dec without WCS": (
        lambda: one(frame({"ra": SKY.ra.deg, "dec": SKY.dec.deg})), "centers: sky positions .* no WCS"),
    "DataFrame of other columns": (lambda: one(frame({"a": X, "b": Y})), "centers: expected columns x, y or ra, dec"),
    "DataFrame without names": (lambda: one(frame(XY)), "centers: expected columns x, y or ra, dec; found 0, 1"),
    "dict of other columns": (lambda: one({"a": X, "b": Y}), "centers: expected columns x, y"),
    "dict of two lengths": (lambda: one({"x": X, "y": Y[:2]}), "centers: expected a table"),
    "x, y and ra, dec that disagree": (
        lambda: one(Table({"x": X + 3, "y": Y, "ra": SKY.ra.deg, "dec": SKY.dec.deg}), wcs=WORLD), "disagree"),
    "DataArray of other axes": (
        lambda: one(data_array(XY, ("s", "axis"), coords={"axis": ["ra", "dec"]})),
        "centers: expected the coordinates"),
    "WCS without sky": (lambda: one(SKY, wcs=WCS(naxis=2)), "centers: expected a WCS with celestial axes"),
    "header": (lambda: one(SKY, wcs=WORLD.to_header()), "wcs: expected an astropy.wcs.WCS .* got Header"),
    "no WCS": (lambda: one(SKY, wcs="image.fits"), "wcs: expected an astropy.wcs.WCS"),
    "WCS of another scale": (lambda: one(XY, wcs=sky_wcs(scale=0.168)), "wcs: expected the model's 0.2 arcsec"),
    "bands on shifted grids": (
        lambda: one(XY, [CCDData(plane, unit="nJy", wcs=sky_wcs(shift=k)) for k, plane in enumerate(IMAGE)],
                    variance=1 * u.nJy**2), "cutouts: expected bands on one pixel grid, .* differ by 1.00 pixel"),
    "bands on turned grids": (
        lambda: one(XY, [CCDData(plane, unit="nJy", wcs=sky_wcs(turn=k)) for k, plane in enumerate(IMAGE)],
                    variance=1 * u.nJy**2), "cutouts: expected bands on one pixel grid"),
    "kind of another word": (lambda: one(Table({"x": X, "y": Y, "kind": ["star", "quasar", "auto"]})), "kind"),
    "regions": (lambda: one([object(), object()]), "centers: expected numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, message = REFUSED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas and numpy warn of odd columns
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("centers", [
    Table({"x": MaskedColumn(X, mask=[0, 1, 0]), "y": Y}), np.ma.masked_array(XY, [[0, 0], [1, 0], [0, 0]]),
    Masked(XY * u.pix, mask=[[0, 0], [1, 0], [0, 0]]), {"x": [X[0], np.nan, X[2]], "y": Y},
])
def test_a_missing_position_stays_missing(centers: Any) -> None:
    scene = one(centers)
    assert (scene.flags & Flag.CENTER_NOT_FINITE != 0).tolist() == [False, True, False]
    np.testing.assert_array_equal(scene.centers[::2], XY[::2])


def test_missing_values_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    for column in (pandas.array([10, None, 44], "Int64"), pandas.Series([10.0, pandas.NA, 44.0], dtype=object)):
        scene = one(frame({"x": column, "y": Y}))
        assert np.isnan(scene.centers[1]).any()
        assert scene.centers[::2, 0].tolist() == [10.0, 44.0]


def test_kinds_of_a_table() -> None:
    table = Table({"x": X, "y": Y, "kind": ["star", "galaxy", "auto"]})
    scene = one(table)
    assert scene.star.tolist() == [True, False, False]
    assert scene.auto.tolist() == [False, False, True]
    assert one(table, kind="galaxy").star.tolist() == [False] * 3  # an argument has precedence


def test_no_source() -> None:
    none = {"x": X[:0], "y": Y[:0]}
    for centers in ([], np.zeros((0, 2)), none, Table(none), frame(none), {"x": [], "y": []}):
        assert one(centers).centers.shape == (0, 2)
    assert one(SKY[:0], wcs=WORLD).centers.shape == (0, 2)


def test_an_entry_for_each_scene() -> None:
    moved = sky_wcs(shift=2)
    scenes = make_scenes([IMAGE] * 2, [SKY, Table({"y": Y, "x": X})], wcs=[WORLD, moved], variance=1.0, **MODEL)
    for scene in scenes:
        np.testing.assert_allclose(scene.centers, XY, atol=1e-6)
    scenes = make_scenes([IMAGE] * 2, [SKY] * 2, wcs=[WORLD, moved], variance=1.0, **MODEL)
    np.testing.assert_allclose(scenes[1].centers, XY + np.array([2, 0]), atol=1e-6)
    with pytest.raises(ValueError, match="wcs: expected one entry for each of the 2 scenes"):
        make_scenes([IMAGE] * 2, [SKY] * 2, wcs=[WORLD], variance=1.0, **MODEL)


def test_a_wcs_of_a_larger_image_is_noticed() -> None:
    large = sky_wcs()
    large.pixel_shape = (400, 500)
    with pytest.warns(InputWarning, match="wcs: states an image of 400 x 500 pixels, the image has 50 x 40"):
        one(XY, wcs=large)


@settings(deadline=None)  # the first conversion of FK4 takes a second
@given(st.integers(0, 10_000), st.sampled_from(["RA---TAN", "GLON", "FK4"]), st.floats(0, 360))
def test_the_sky_and_back(seed: int, kind: str, turn: float) -> None:
    wcs, expected = sky_wcs(kind, turn=turn), np.random.default_rng(seed).uniform(-5, 60, (4, 2))
    np.testing.assert_allclose(one(wcs.pixel_to_world(*expected.T).icrs, wcs=wcs).centers, expected, atol=1e-6)
