"""Every line of the page of inputs about Python objects runs, or is refused, as the page says."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.modeling.models import Moffat2D
from astropy.nddata import CCDData, Cutout2D, InverseVariance, StdDevUncertainty, UnknownUncertainty
from astropy.table import Table
from astropy.wcs import WCS

from deblendrt.engine import CellPsf
from deblendrt.engine.scene.psf.images import kolmogorov_psf
from deblendrt.engine.scene.scene import make_scenes

PAGE = (Path(__file__).parents[2] / "docs" / "inputs.md").read_text(encoding="utf-8")
pandas = pytest.importorskip("pandas")
xarray = pytest.importorskip("xarray")


def section(title: str) -> str:
    """Text of a section of the page."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def codes(text: str, column: int) -> list[str]:
    """Calls in one column of the tables of a text."""
    rows = [re.split(r" \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    return [row[column][1:-1] for row in rows if row[column].startswith("`deblend_batch(")]


def wcs(scale: float = 0.2, shift: float = 0.0) -> WCS:
    found = WCS(naxis=2)
    found.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    found.wcs.crval, found.wcs.crpix = [150.1, 2.2], [25.0 + shift, 20.0]
    found.wcs.cd = np.array([[-1, 0], [0, 1]]) * scale / 3600
    return found


def deblend_batch(cutouts: Any, centers: Any, **options: Any) -> Any:
    return make_scenes(cutouts, centers, bundle_bands=("g", "r", "i"), bundle_pixel_scale=0.2, window_half=4, **options)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """Objects that the page's lines name."""
    rng = np.random.default_rng(0)
    image, sigma, bad = rng.normal(size=(3, 40, 50)), np.full((3, 40, 50), 1.5), rng.random((3, 40, 50)) > 0.9
    centers, world = np.array([[10.0, 8.0], [30.0, 20.0]]), wcs()
    planes = {f"ccd_{b}": CCDData(image[k] / 1e3, unit="uJy", mask=bad[k], wcs=world,
                                  uncertainty=StdDevUncertainty(sigma[k] / 1e3)) for k, b in enumerate("gri")}
    cube = world.sub([1, 2, 0])
    cube.wcs.ctype = [*world.wcs.ctype, "BAND"]
    sky = world.pixel_to_world(*centers.T)
    return {
        **planes, "ccd": CCDData(image, unit="nJy", mask=bad, uncertainty=StdDevUncertainty(sigma), wcs=cube),
        **{f"cutout_{b}": Cutout2D(image[k], (24.5, 19.5), (40, 50), wcs=world) for k, b in enumerate("gri")},
        "deblend_batch": deblend_batch, "np": np, "u": u, "image": image, "variance": sigma**2, "sigma": sigma,
        "weight": sigma**-2, "bad": bad, "bits": bad * 5 + 2, "counts": image, "counts_variance": sigma**2,
        "g": image[0], "r": image[1], "i": image[2], "small": image[:, :30, :30], "small_centers": centers[:1],
        "array": xarray.DataArray(image, dims=("band", "y", "x"), coords={"band": list("gri")}),
        "StdDevUncertainty": StdDevUncertainty, "InverseVariance": InverseVariance,
        "UnknownUncertainty": UnknownUncertainty, "series": pandas.Series([2.0, 1.0, 1.5], index=list("igr")),
        "centers": centers, "table": Table({"y": centers[:, 1], "x": centers[:, 0], "kind": ["star", "auto"]}),
        "other": pandas.DataFrame({"row": centers[:, 1], "col": centers[:, 0]}), "sky": SkyCoord(sky).galactic,
        "radec": pandas.DataFrame({"ra": sky.ra.deg, "dec": sky.dec.deg}), "wcs": world, "coarse": wcs(0.4),
        "psfs": np.stack([kolmogorov_psf(4.0)] * 3), "psf_g": kolmogorov_psf(4.5)[2:-2, 2:-2],
        "psf_r": kolmogorov_psf(4.0),
        "psf_small": kolmogorov_psf(3.5)[8:-8, 8:-8], "psf_even": kolmogorov_psf(4.0)[:-1, :-1],
        "Moffat2D": Moffat2D, "CellPsf": CellPsf, "filled": np.where(np.arange(50) < 20, 0, image),
        "holed": np.where(np.arange(50) < 20, np.nan, image),
        "flagged": CCDData(image, unit="nJy", flags=bad.astype(int)),
        "shifted_i": CCDData(image[2], unit="nJy", mask=bad[2], wcs=wcs(shift=0.5),
                             uncertainty=StdDevUncertainty(sigma[2]))}


def run(code: str, names: dict[str, Any]) -> Any:
    """Run a call that the page shows."""
    scope = dict(names)
    exec(code, scope)
    return scope["found"]


@pytest.fixture
def psf_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: dict[str, Any]) -> None:
    """Work in a folder with files of PSFs."""
    monkeypatch.chdir(tmp_path)
    fits.PrimaryHDU(names["psfs"]).writeto("psf.fits")
    image = names["psf_g"]
    table = fits.BinTableHDU.from_columns([fits.Column("PSF_MASK", f"{image.size}E", dim=str((*image.shape, 1)),
                                                       array=image[None, None])], name="PSF_DATA")
    table.header["POLNAXIS"], table.header["PSF_SAMP"] = 0, 1.0
    for band in "gri":
        table.writeto(f"{band}.psf")


@pytest.mark.parametrize("code", [code for title in ("Python objects", "PSFs", "Pixels without data")
                                  for code in codes(section(title), 1)])
@pytest.mark.usefixtures("psf_files")
def test_what_you_write(code: str, names: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scenes = run(f"found = {code}", names)
    for scene in scenes:
        first = scene.centers[0]
        np.testing.assert_allclose(first, names["centers"][0] - ("centers - 1" in code), atol=1e-6)
        assert scene.band_present.any()


@pytest.mark.parametrize("code", codes(section("What is refused, and why"), 0))
def test_what_is_refused(code: str, names: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|sky positions"):
        run(f"found = {code}", names)


def test_the_tables_are_found() -> None:
    assert len(codes(section("Python objects"), 1)) >= 30
    assert len(codes(section("What is refused, and why"), 0)) >= 18
