"""The command line: the deblender's arguments, the files that are written, and the errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from deblendrt.engine.adapters.cli import deblend_files, main
from deblendrt.engine.files import atomic_write
from deblendrt.engine.model import bundle
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.units import notify

EXAMPLE = Path(__file__).parents[3] / "examples" / "lsst_blend.fits"
BUNDLED = bundle.SHIPPED / "lsst" / "manifest.json"


class FakeDeblender:
    """A stand-in for the deblender that keeps its arguments and returns the toy result."""

    def __init__(self, result: DeblendResult) -> None:
        self.result = result
        self.loaded: tuple[Any, ...] = ()
        self.image: Any = None
        self.centers: Any = None
        self.keywords: dict[str, Any] = {}

    def load(self, name: str, device: str = "cpu") -> FakeDeblender:
        self.loaded = (name, device)
        return self

    def deblend_batch(self, image: Any, centers: Any, **keywords: Any) -> DeblendResult:
        self.image, self.centers, self.keywords = image, centers, keywords
        if keywords["psf"] is None:
            notify("psf: none was given")
        return self.result


@pytest.fixture
def fake(toy_result: Callable[..., DeblendResult], monkeypatch: pytest.MonkeyPatch) -> FakeDeblender:
    deblender = FakeDeblender(toy_result(bands="gri"))
    monkeypatch.setitem(sys.modules, "deblendrt.engine.deblender", SimpleNamespace(Deblender=deblender))
    return deblender


def write_scene(folder: Path, result: DeblendResult, centers: bool = True, **keys: Any) -> Path:
    keys = {"BUNIT": "count", "ZEROPNT": 27.0, "BANDS": "gri", "PIXSCALE": 0.2} | keys
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.0, 2.0]
    wcs.wcs.crpix, wcs.wcs.cdelt = [31, 31], [-0.2 / 3600, 0.2 / 3600]
    header = wcs.to_header()
    header.update({key: value for key, value in keys.items() if value is not None})
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(result.scenes[0].image, header, name="IMAGE")]
    if centers:
        x, y = result.center.T
        hdus.append(fits.BinTableHDU(Table({"x": x, "y": y}), name="CENTERS"))
    fits.HDUList(hdus).writeto(folder / "scene.fits", overwrite=True)
    return folder / "scene.fits"


def run(*arguments: object) -> int:
    return main.main(["run", *map(str, arguments)])


def test_run_writes_everything(fake: FakeDeblender, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    assert run(write_scene(tmp_path, fake.result), "--out", out, "--stamps") == 0
    written = {"catalog.fits", "images.fits", "overview.png", "sources.png", "stamps.fits"}
    assert {path.name for path in out.iterdir()} == written

    table = Table.read(out / "catalog.fits", hdu="CATALOG", mask_invalid=False)
    assert len(table) == fake.result.n_source
    np.testing.assert_array_equal(table["flux_r"], fake.result.flux[:, 1])
    np.testing.assert_allclose(table["ra"][0], 150 - (table["x"][0] - 30) * 0.2 / 3600, atol=1e-6)
    assert table["dec"].unit == "deg"
    assert np.isnan(table["ra"][1])  # not fitted
    with fits.open(out / "images.fits") as hdus:
        np.testing.assert_array_equal(hdus["MODEL"].data, fake.result.model(0))
        np.testing.assert_array_equal(hdus["RESIDUAL"].data, fake.result.residual(0))
        assert WCS(hdus["MODEL"].header).celestial.wcs.crval.tolist() == [150, 2]
    with fits.open(out / "stamps.fits") as hdus:
        stamp, (x, y) = fake.result.stamps(5)
        np.testing.assert_array_equal(hdus["SOURCE_5"].data, stamp)
        assert (hdus["SOURCE_5"].header["X0"], hdus["SOURCE_5"].header["Y0"]) == (x, y)
        assert "SOURCE_1" not in hdus  # not fitted

    said = capsys.readouterr()
    assert "6 sources, 5 fitted, bands gri" in said.out
    assert "OFF_IMAGE 1" in said.out
    assert "reduced chi2 per source: median 1.11" in said.out
    assert "note: psf: none was given" in said.out
    assert said.err.splitlines()[0] == "read ..."


def test_defaults_reach_the_deblender(fake: FakeDeblender, tmp_path: Path) -> None:
    run(write_scene(tmp_path, fake.result), "--out", tmp_path / "out", "--no-plot")
    assert fake.loaded == ("lsst", "cpu")
    np.testing.assert_array_equal(fake.image, fake.result.scenes[0].image)
    np.testing.assert_array_equal(fake.centers, fake.result.center)
    scale = fake.keywords.pop("pixel_scale")
    assert scale == pytest.approx(0.2)
    assert fake.keywords == {
        "variance": None,
        "mask": None,
        "psf": None,
        "bands": ("g", "r", "i"),
        "zero_point": 27.0,
        "solver": "gauss_newton",
        "n_iteration": None,
        "start": "encoder",
        "robust": True,
        "detail": True,
        "sky": "subtracted", "zeros": "missing",
        "kind": None,
        "find_missed": False,
        "star_fraction": 0.1,
        "center_sigma": 0.2,
        "aperture_diameter": 1.2,
        "n_threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def test_options_reach_the_deblender(fake: FakeDeblender, tmp_path: Path) -> None:
    fits.PrimaryHDU(np.ones((5, 5))).writeto(tmp_path / "psf.fits")
    options = (
        "--no-plot --quiet --bands r,z=i,i=g --zero-point 25 --pixel-scale 0.3 --model other --device cuda "
        "--solver adam --start encoder --iterations 7 --threads 2 --sky fit --zeros data --no-robust "
        "--center-sigma 0.5 --aperture 2"
    )
    out = tmp_path / "out"
    run(write_scene(tmp_path, fake.result), "--out", out, *options.split(), "--psf", tmp_path / "psf.fits")
    assert fake.loaded == ("other", "cuda")
    assert fake.keywords.pop("psf") == str(tmp_path / "psf.fits")
    np.testing.assert_array_equal(fake.image, fake.result.scenes[0].image[[1, 2, 0]])
    expected = {"bands": ("r", "z", "i"), "zero_point": 25.0, "pixel_scale": 0.3, "solver": "adam", "n_iteration": 7}
    expected |= {
        "start": "encoder",
        "n_threads": 2,
        "robust": False,
        "detail": True,
        "sky": "fit",
        "zeros": "data",
        "center_sigma": 0.5,
        "aperture_diameter": 2.0,
        "variance": None,
        "mask": None,
        "kind": None,
        "find_missed": False,
        "star_fraction": 0.1,
    }
    assert fake.keywords == expected


def test_a_pixel_scale_against_the_file_is_noted(fake: FakeDeblender, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    scene = write_scene(tmp_path, fake.result)
    assert run(scene, "--out", tmp_path / "out", "--no-plot", "--pixel-scale", "0.3") == 0
    assert "note: pixel scale 0.3 arcsec as told; the file says 0.2" in capsys.readouterr().out
    assert run(scene, "--out", tmp_path / "out", "--no-plot", "--pixel-scale", "0.2", "--overwrite") == 0
    assert "as told" not in capsys.readouterr().out


def test_quiet_says_nothing(fake: FakeDeblender, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write_scene(tmp_path, fake.result), "--out", tmp_path / "out", "--quiet", "--no-plot") == 0
    assert capsys.readouterr() == ("", "")


def test_catalog_wins_over_centers(fake: FakeDeblender, tmp_path: Path) -> None:
    Table({"id": [f"G{i}" for i in range(6)], "x": np.arange(6.0), "y": np.ones(6)}).write(tmp_path / "c.csv")
    scene, out = write_scene(tmp_path, fake.result), tmp_path / "out"
    assert run(scene, "--out", out, "--no-plot", "--catalog", tmp_path / "c.csv", "--one-based") == 0
    np.testing.assert_array_equal(fake.centers, np.column_stack([np.arange(6) - 1, np.zeros(6)]))
    assert Table.read(out / "catalog.fits", hdu="CATALOG")["catalog_id"].tolist() == [f"G{i}" for i in range(6)]


def test_detect(fake: FakeDeblender, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sep", reason="detection needs SEP, the extra `detect`")
    scene = write_scene(tmp_path, fake.result, centers=False)
    assert run(scene, "--out", tmp_path / "out", "--no-plot", "--detect", "--threshold", 5) == 0
    assert "sources detected above 5 sigma" in capsys.readouterr().out
    true = fake.result.anchor[fake.result.fitted]
    distance = np.hypot(*(fake.centers[:, None] - true[None]).transpose(2, 0, 1))
    assert (distance.min(axis=0) < 0.2).sum() >= 4  # of five sources, one of them faint
    assert len(fake.centers) <= 5


def test_more_sources_than_panels(
    fake: FakeDeblender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deblend_files, "MAX_SOURCE_PANELS", 2)
    assert run(write_scene(tmp_path, fake.result), "--out", tmp_path / "out") == 0
    assert "note: sources.png shows the 2 brightest of 6 sources" in capsys.readouterr().out


def test_without_matplotlib(
    fake: FakeDeblender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deblend_files.importlib.util, "find_spec", lambda name: None)
    assert run(write_scene(tmp_path, fake.result), "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["catalog.fits", "images.fits"]
    assert 'note: no figures: pip install "deblendrt[plot]"' in capsys.readouterr().out


def test_results_are_not_overwritten(fake: FakeDeblender, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, out = write_scene(tmp_path, fake.result), tmp_path / "out"
    out.mkdir()
    (out / "catalog.fits").write_text("mine")
    assert run(scene, "--out", out, "--no-plot") == 1
    assert "already holds catalog.fits: use another --out, or --overwrite" in capsys.readouterr().err
    assert (out / "catalog.fits").read_text() == "mine"
    assert fake.image is None  # checked before the work
    assert run(scene, "--out", out, "--no-plot", "--overwrite") == 0


def test_no_source_fitted(fake: FakeDeblender, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                          monkeypatch: pytest.MonkeyPatch) -> None:
    scene = write_scene(tmp_path, fake.result)
    monkeypatch.setattr(type(fake.result), "fitted", property(lambda result: np.zeros(result.n_source, bool)))
    assert run(scene, "--out", tmp_path / "out", "--no-plot", "--quiet") == 1
    assert capsys.readouterr().err.startswith("deblendrt: error: no source was fitted: ")
    assert (tmp_path / "out" / "catalog.fits").is_file()


@pytest.mark.parametrize("case", ["a file", "in a file", "no permission", "a folder as target", "space", "ids"])
def test_writing_is_checked_before_the_work(fake: FakeDeblender, tmp_path: Path, case: str,
                                            monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    out, options, message = tmp_path / "out", ["--overwrite"], "out is a file, expected a folder"
    if case in ("a file", "in a file"):
        out.write_text("mine")
        out = out / "deep" if case == "in a file" else out
    elif case == "no permission":
        def refuse(**where: Any) -> Any:
            raise PermissionError(13, "Permission denied", str(where["dir"]))
        monkeypatch.setattr(atomic_write.tempfile, "TemporaryFile", refuse)
        message = "out: no file can be written in it (permission denied)"
    elif case == "a folder as target":
        (out / "catalog.fits").mkdir(parents=True)
        message = "catalog.fits is a folder, expected the name of a file"
    elif case == "space":
        monkeypatch.setattr(atomic_write.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        message = "out: 0 MB are free, and the results need 0 MB"
    else:
        Table({"id": [[1, 2]] * 6, "x": np.arange(6.0), "y": np.ones(6)}).write(tmp_path / "c.fits")
        options, message = ["--catalog", str(tmp_path / "c.fits")], "'id': expected an identifier in each row"
    assert run(write_scene(tmp_path, fake.result), "--out", out, "--no-plot", *options) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert message in said
    assert "Errno" not in said
    assert fake.image is None


@pytest.mark.parametrize(("error", "text"), [
    (FileExistsError(17, "File exists", "out/x"), "out/x: exists already"),
    (OSError(28, "No space left on device", "o/.catalog.fits.0123456789abcdef.partial"),
     "o/catalog.fits: no space is left on the device"),
    (PermissionError(13, "Permission denied"), "no permission"), (OSError(5, "Input/output error", "x"),
                                                                  "x: input/output error"),
    (OSError("x: not readable as FITS"), "x: not readable as FITS"),
])
def test_errors_of_the_system_are_sentences(error: OSError, text: str, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    def fail(arguments: Any) -> int:
        raise error
    monkeypatch.setattr(main, "_run", fail)
    assert main.main(["run", "a.fits", "--out", "b"]) == 1
    assert capsys.readouterr().err == f"deblendrt: error: {text}\n"


def test_letters_that_fits_lacks_in_ids(fake: FakeDeblender, tmp_path: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    names = ["Abell \xe9", "B", "", "D" * 300, "007", "E\u2013F"]
    rows = "".join(f"{name},{k},1\n" for k, name in enumerate(names))
    (tmp_path / "c.csv").write_text(f"id,x,y\n{rows}", encoding="utf-8")
    assert run(write_scene(tmp_path, fake.result), "--out", tmp_path / "out", "--no-plot", "--catalog",
               tmp_path / "c.csv") == 0
    found = Table.read(tmp_path / "out" / "catalog.fits", hdu="CATALOG")["catalog_id"].filled("").tolist()
    assert [name.encode().decode("unicode_escape") for name in found] == names
    assert "note: catalog_id: 2 identifiers with letters that FITS lacks" in capsys.readouterr().out


def test_a_distortion_is_kept_in_the_written_images(fake: FakeDeblender, tmp_path: Path) -> None:
    cards = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-4,
             "B_0_2": 2e-4, "CTYPE3": "BAND"}
    scene = write_scene(tmp_path, fake.result, **cards)
    assert run(scene, "--out", tmp_path / "out", "--no-plot") == 0
    before, after = (WCS(fits.getheader(path, name), naxis=2) for path, name in (
        (scene, "IMAGE"), (tmp_path / "out" / "images.fits", "MODEL")))
    assert after.sip is not None
    pixels = np.array([[0.0, 0], [60, 50]])
    np.testing.assert_allclose(after.all_pix2world(pixels, 0), before.all_pix2world(pixels, 0), rtol=0, atol=1e-9)


def test_files_by_band(fake: FakeDeblender, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    centers = ["--catalog", tmp_path / "c.csv", "--columns", "x=col,y=row"]
    Table({"col": fake.result.center[:, 0], "row": fake.result.center[:, 1]}).write(tmp_path / "c.csv")
    bands, psfs = [], []
    for k, band in enumerate("gri"):
        fits.PrimaryHDU(fake.result.scenes[0].image[k]).writeto(tmp_path / f"{band}.fits")
        fits.PrimaryHDU(np.full((5, 5), k + 1.0)).writeto(tmp_path / f"{band}_psf.fits")
        bands += ["--band", f"{band}={tmp_path / band}.fits"]
        psfs += ["--psf", f"{band}={tmp_path / band}_psf.fits"]
    assert run(*bands, *psfs, *centers, "--out", tmp_path / "out", "--no-plot", "--zero-point", "27,27,27") == 0
    np.testing.assert_array_equal(fake.image, fake.result.scenes[0].image)
    assert fake.keywords["psf"] == {band: f"{tmp_path / band}_psf.fits" for band in "gri"}
    assert fake.keywords["zero_point"] == 27
    for wrong, message in ((["--band", "g.fits"], "--band: expected BAND=FILE"),
                           ([], "expected an image file, or --band"), (["x.fits", *bands], "not both"),
                           (bands[:2] * 2, "band g is given twice")):
        assert run(*wrong, "--out", tmp_path / "out2") == 1
        assert message in capsys.readouterr().err


PROBLEMS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no bands": ({"BANDS": None}, [], "no band names in the file: say --bands"),
    "no zero point": ({"ZEROPNT": None}, [], "BUNIT 'count' and no zero point in the header: say --zero-point"),
    "no centers": ({"centers": False}, [], "no CENTERS in the file: give --catalog CAT or --detect"),
    "no catalog": ({}, ["--catalog", "absent.csv"], "absent.csv: no such file"),
    "two catalogs": ({}, ["--catalog", "absent.csv", "--detect"], "--catalog and --detect exclude each other"),
    "band count": ({}, ["--bands", "ugrizy"], "6 band names (u, g, r, i, z, y) for an image of shape (3, 60, 70)"),
    "nothing detected": ({"centers": False}, ["--detect", "--threshold", "1e9"], "no sources: nothing detected"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_problems_are_one_line(
    fake: FakeDeblender, tmp_path: Path, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, options, message = PROBLEMS[problem]
    if "--detect" in options:
        pytest.importorskip("sep", reason="detection needs SEP, the extra `detect`")
    scene = write_scene(tmp_path, fake.result, **keys)
    assert run(scene, "--out", tmp_path / "out", "--quiet", *options) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("deblendrt: error: ")
    assert message in said.err
    with pytest.raises((ValueError, OSError)):
        run(scene, "--out", tmp_path / "out", "--quiet", "--debug", *options)


@pytest.mark.parametrize(
    "arguments",
    [[], ["run"], ["run", "a.fits"], ["run", "a.fits", "--out", "b", "--threads", "0"], ["nonsense"],
     ["run", "a.fits", "--out", "b", "--zero-point", "nan"], ["run", "a.fits", "--out", "b", "--solver", "magic"]],
)  # fmt: skip
def test_wrong_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["flags"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(Flag)
    assert lines[10].split()[:3] == ["10", "1024", "POOR_FIT"]


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("python", "numpy", "onnxruntime", "CPUExecutionProvider", "NVIDIA GPUs", "kernel compiler",
                 "kernel cache", 'device="cuda"', "models"):
        assert word in said


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("deblendrt ")


@pytest.mark.parametrize("command", ["verify", "model"])
def test_missing_bundle(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([command, str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"deblendrt: error: {tmp_path} is not a bundle")


@pytest.mark.skipif(not BUNDLED.is_file(), reason="the LSST model is not in engine/bundles")
def test_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the README's commands, verify and model, with the shipped model."""
    assert main.main(["verify"]) == 0
    assert "hashes match" in capsys.readouterr().out
    assert main.main(["model"]) == 0
    assert "bands        u, g, r, i, z, y" in capsys.readouterr().out
    assert run(EXAMPLE, "--out", tmp_path / "out", "--quiet") == 0
    truth = Table.read(EXAMPLE, hdu="TRUTH")
    assert len(Table.read(tmp_path / "out" / "catalog.fits", hdu="CATALOG")) == len(truth)
