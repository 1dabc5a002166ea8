"""Filter curves from speclite, from GalSim and from files; every mistake is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

galsim = pytest.importorskip("galsim")

from deblendrt.training import config  # noqa: E402
from deblendrt.training.simulation import bandpass, population  # noqa: E402


def test_galsim_file() -> None:
    curve = bandpass.filter_curve("LSST_{band}.dat", "i")
    assert curve.effective_wavelength == pytest.approx(755, abs=5)  # nm


def test_speclite() -> None:
    pytest.importorskip("speclite")
    curves = [bandpass.filter_curve("speclite:hsc2017-{band}", band) for band in "grizy"]
    # Kawanomoto et al. (2018), table 4: 481, 623, 771, 890, 978 nm
    np.testing.assert_allclose([c.effective_wavelength for c in curves], [481, 623, 771, 890, 978], atol=10)
    with pytest.raises(ValueError, match=r"survey\.bandpass, band 'q': speclite has no curve 'hsc2017-q'"):
        bandpass.filter_curve("speclite:hsc2017-{band}", "q")


def test_speclite_and_galsim_agree_on_lsst() -> None:
    """Two versions of LSST's curves give the templates colours that agree to a few hundredths of a magnitude."""
    pytest.importorskip("speclite")
    bands = ("g", "r", "i", "z")
    _, ours = population.template_magnitudes("LSST_{band}.dat", bands)
    _, theirs = population.template_magnitudes("speclite:lsst2016-{band}", bands)
    near = slice(0, 21)  # to redshift 1
    difference = np.diff(ours, axis=2)[:, near] - np.diff(theirs, axis=2)[:, near]
    assert np.abs(difference).max() < 0.08


def write_curves(folder: Path, scale: float = 1.0) -> None:
    for band, middle in (("v", 550.0), ("w", 700.0)):
        wavelength = np.linspace(middle - 50, middle + 50, 21)
        curve = np.exp(-0.5 * ((wavelength - middle) / 20) ** 2)
        np.savetxt(folder / f"{band}.dat", np.column_stack([scale * wavelength, curve]), header="nm, throughput")


def test_own_files(tmp_path: Path) -> None:
    write_curves(tmp_path)
    name = str(tmp_path / "{band}.dat")
    assert bandpass.filter_curve(name, "v").effective_wavelength == pytest.approx(550, abs=1)
    survey = config.Survey(None, ["v", "w"], "w", 0.25, name,
                           config.DepthTable(*({"v": value, "w": value} for value in (0.8, 3.0, 100.0))))
    spec = config.Population(n_galaxy=50, magnitude_min=20.0, magnitude_max=25.0, uniform_fraction=0.5,
                             surface_brightness_limit=27.0)
    galaxies = population.draw(spec, survey, 50, np.random.default_rng(0))
    assert galaxies.flux.shape == (50, 2)
    assert (galaxies.flux[:, 0] < 1.3 * galaxies.flux[:, 1]).all()  # hardly any galaxy is bluer than a flat spectrum


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"band 'v': no file .*LSST_v\.dat; a curve of your own needs a folder"):
        bandpass.filter_curve("LSST_{band}.dat", "v")
    with pytest.raises(ValueError, match=r"band 'v': no file .*v\.dat$"):
        bandpass.filter_curve(str(tmp_path / "{band}.dat"), "v")
    write_curves(tmp_path, scale=10.0)
    with pytest.raises(ValueError, match=r"expected wavelengths from .* got 5000 to 6000 \(not in Angstrom\?\)"):
        bandpass.filter_curve(str(tmp_path / "{band}.dat"), "v")
    (tmp_path / "v.dat").write_text("500 0.1 7\n600 0.2 7\n")
    with pytest.raises(ValueError, match=r"v\.dat: expected two columns of numbers"):
        bandpass.filter_curve(str(tmp_path / "{band}.dat"), "v")
    (tmp_path / "v.dat").write_text("wavelength,throughput\n500,0.1\n")
    with pytest.raises(ValueError, match="expected two columns of numbers"):
        bandpass.filter_curve(str(tmp_path / "{band}.dat"), "v")
