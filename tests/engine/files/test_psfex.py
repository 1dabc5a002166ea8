"""PSFEx files: against GalSim's reader, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from deblendrt.engine.files import psfex
from deblendrt.engine.files.psfex import read_psfex
from deblendrt.engine.scene.psf.images import psf_centroid

SIDE, TERMS = 31, 6  # a polynomial of degree 2


def write(path: Path, *, sampling: float = 0.7, degree: int = 2, mask: Any = None, **cards: Any) -> Path:
    """A PSF of FWHM 4 image pixels whose width and ellipticity vary over 1000 pixels."""
    rng, offset = np.random.default_rng(2), (np.arange(SIDE) - SIDE // 2) * sampling
    x, y = np.meshgrid(offset, offset)
    base = np.exp(-0.5 * (x**2 + y**2) / 1.7**2)
    shapes = [base, base * x**2, base * x * y, base * y**2, base * (x**2 - y**2), base * (x**2 + y**2)]
    images = np.array([shapes[0], *(0.02 * rng.normal() * shape for shape in shapes[1:])])
    images = images[: (degree + 1) * (degree + 2) // 2]
    column = fits.Column("PSF_MASK", f"{images.size}E", dim=str(images.shape[::-1]),
                         array=(images if mask is None else mask)[None].astype(np.float32))
    table = fits.BinTableHDU.from_columns([column], name="PSF_DATA")
    header = {"POLNAXIS": 2, "POLGRP1": 1, "POLNAME1": "X_IMAGE", "POLZERO1": 500.0, "POLSCAL1": 480.0, "POLGRP2": 1,
              "POLNAME2": "Y_IMAGE", "POLZERO2": 510.0, "POLSCAL2": 490.0, "POLNGRP": 1, "POLDEG1": degree,
              "PSF_SAMP": sampling, "PSFNAXIS": 3, "PSFAXIS1": SIDE, "PSFAXIS2": SIDE, "PSFAXIS3": len(images),
              "PSF_FWHM": 4.0, "CHI2": 1.0, "LOADED": 100, "ACCEPTED": 90} | cards
    table.header.update(header)
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, overwrite=True)
    return path


@pytest.mark.parametrize("sampling", [0.5, 0.7, 1.0])
def test_as_galsim_reads_it(tmp_path: Path, sampling: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psfex, "LANCZOS", 3)  # GalSim's choice; PSFEx itself has 4
    galsim = pytest.importorskip("galsim")
    pytest.importorskip("galsim.des")
    path = write(tmp_path / "a.psf", sampling=sampling)
    mine, theirs = read_psfex(path), galsim.des.DES_PSFEx(str(path))
    for x, y in ((0.0, 0.0), (500.0, 20.0), (900.0, 950.0)):
        image = mine(x, y)
        assert image.shape[0] == image.shape[1]
        assert image.shape[0] % 2 == 1
        psf = theirs.getPSF(galsim.PositionD(x + 1, y + 1))
        expected = psf.drawImage(nx=len(image), ny=len(image), scale=1, method="no_pixel").array
        np.testing.assert_allclose(image / image.sum(), expected / expected.sum(), atol=2e-5 * expected.max())
        np.testing.assert_allclose(psf_centroid(image), len(image) // 2, atol=0.01)
    assert not np.allclose(mine(0, 0), mine(900, 900), rtol=0.01)


def test_the_interpolation(tmp_path: Path) -> None:
    image = read_psfex(write(tmp_path / "a.psf", sampling=0.7))(499, 509)  # where the first term alone is there
    np.testing.assert_allclose(image, np.exp(-0.5 * (np.indices(image.shape) - len(image) // 2) ** 2 / 1.7**2).prod(0),
                               atol=2e-3)


def test_a_constant_psf(tmp_path: Path) -> None:
    path = write(tmp_path / "a.psf", degree=0, sampling=1.0, POLNAXIS=0)
    assert read_psfex(path)(3, 4).shape == (SIDE, SIDE)


@pytest.mark.parametrize(("cards", "message"), [
    ({"POLNAME1": "MAG_AUTO"}, "depends on the position .* got MAG_AUTO"),
    ({"POLGRP2": 2}, "one polynomial in x and y"), ({"POLDEG1": 3}, "expected 10 finite images"),
    ({"PSF_SAMP": 0.0}, "PSF_SAMP is 0"), ({"POLSCAL1": 0.0}, "POLSCAL"),
    ({"mask": np.full((TERMS, SIDE, SIDE), np.nan)}, "finite images"),
])
def test_mistakes(tmp_path: Path, cards: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_psfex(write(tmp_path / "a.psf", **cards))


def test_another_file(tmp_path: Path) -> None:
    fits.ImageHDU(np.zeros((5, 5)), name="G").writeto(tmp_path / "a.psf")
    with pytest.raises(ValueError, match="expected a PSFEx file with a column PSF_MASK; found extensions PRIMARY, G"):
        read_psfex(tmp_path / "a.psf")
