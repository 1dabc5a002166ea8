"""The solver as one ONNX graph against the engine, in Python and in Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray
from tolerances import FLOAT32, SOLVER_GRAPH, relative_error

from deblendrt.engine.compute import drawing
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import Flag
from perf.gate import cases

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from deblendrt.export import cli  # noqa: E402
from deblendrt.export.solver.drawing import DrawingGraph  # noqa: E402
from deblendrt.export.solver.graph_builder import Builder, Value  # noqa: E402
from deblendrt.export.solver.linear_algebra import inverse_by_blocks, positive_part, symmetric_inverse  # noqa: E402
from deblendrt.export.solver.solver_graph import SOLVER_INPUTS, SOLVER_OUTPUTS, solver_graph  # noqa: E402

N_SOURCE, SHAPE = 5, (71, 80)
PSF = cases.psf().astype(np.float32)  # float32, as in a FITS file: other last bits are another PSF for the engine
NODE = Path(__file__).parents[3] / "examples" / "node"
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def deblender() -> Deblender:
    return Deblender.load("lsst")


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by the command line, for the PSFs of the frozen scenes."""
    folder = tmp_path_factory.mktemp("solver")
    hdu = fits.ImageHDU(PSF, name="PSF")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(folder / "psf.fits")
    size = list(map(str, SHAPE))
    assert cli.main(["--solver", "lsst", "--sources", str(N_SOURCE), "--size", *size, "--psf", str(folder / "psf.fits"),
                     "--out", str(folder / "solver.onnx")]) == 0
    return folder / "solver.onnx"


def session_of(model: bytes | str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def solve(graph_file: Path) -> Callable[..., Arrays]:
    """A function from image, variance and centres to the rows of the centres, and the other outputs."""
    session = session_of(str(graph_file))

    def run(image: NDArray[Any], variance: NDArray[Any], centers: NDArray[Any]) -> Arrays:
        given = np.full((N_SOURCE, 2), np.nan, np.float32)
        given[: len(centers)] = centers
        valid = np.arange(N_SOURCE) < len(centers)
        given_inputs = {"image": image, "variance": variance, "centers": given, "valid": valid}
        values = session.run(list(SOLVER_OUTPUTS), given_inputs)
        found = dict(zip(SOLVER_OUTPUTS, values, strict=True))
        assert all(np.isnan(found[name][~valid]).all() for name in ("flux", "flux_err", "position", "chi2"))
        assert not found["flags"][~valid].any()
        assert (found["blend"][~valid] == -1).all()
        return {name: value[valid] if SOLVER_OUTPUTS[name][1][0] == "N" else value for name, value in found.items()}

    return run


def scene(seed: int, n: int = N_SOURCE) -> cases.CaseScene:
    """A blend of galaxies, one of them bright."""
    rng = np.random.RandomState(seed)
    centers = cases.positions(rng, n, lambda: np.clip(np.array([40.0, 35.0]) + 9 * rng.standard_normal(2), 8, 62), 4.0)
    magnitudes = [(20.0, 21.5), *[(21.5, 24.5)] * (n - 1)]
    galaxies = [cases.galaxy(rng, center, limits) for center, limits in zip(centers, magnitudes, strict=True)]
    return cases.expose(rng, galaxies, SHAPE)


def check_agreement(found: Arrays, expected: DeblendResult) -> None:
    """Compare with the engine: fluxes within `SOLVER_GRAPH` of their errors, other values likewise."""
    assert (np.isfinite(found["flux"]) == np.isfinite(expected.flux)).all()
    assert np.nanmax(np.abs(found["flux"] - expected.flux) / expected.flux_err) < SOLVER_GRAPH
    assert np.nanmax(np.abs(found["map_flux"] - expected.map_flux) / expected.flux_err) < SOLVER_GRAPH
    assert np.nanmax(np.abs(found["position"] - expected.position) / expected.position_err) < SOLVER_GRAPH
    np.testing.assert_allclose(found["flux_err"], expected.flux_err, rtol=SOLVER_GRAPH)
    np.testing.assert_allclose(found["position_err"], expected.position_err, rtol=SOLVER_GRAPH)
    assert abs(found["objective"][0] - expected.objective[0]) < SOLVER_GRAPH
    assert abs(found["scene_chi2"][0] - expected.scene_chi2[0]) < 0.1
    np.testing.assert_array_equal(found["n_pixel"], expected.n_pixel)
    # unlike the objective, it is not stationary: an error SOLVER_GRAPH of a latent z changes it by z SOLVER_GRAPH
    np.testing.assert_allclose(found["log_prior"], expected.log_prior, atol=3 * SOLVER_GRAPH)
    np.testing.assert_array_equal(found["flags"], expected.flags)
    np.testing.assert_array_equal(found["blend"], expected.blend)


def test_same_catalogue_as_the_engine(deblender: Deblender, solve: Callable[..., Arrays]) -> None:
    given = scene(7)
    expected = deblender.deblend_batch(given.image, given.centers, variance=given.variance, psf=PSF, detail=False)
    assert set(expected.extent.tolist()) >= {1, 0, -2, -3}  # all kinds of windows
    found = solve(given.image, given.variance, given.centers)
    check_agreement(found, expected)
    assert relative_error(found["model"], expected.model(0)) < 1e-3


def test_every_fault_keeps_its_row_and_says_what_it_is(deblender: Deblender, solve: Callable[..., Arrays]) -> None:
    given = scene(2, 3)  # the engine would search for light without a centre
    image, variance = given.image.copy(), given.variance.copy()
    centers = np.concatenate([given.centers, [(-5.0, 20.0), (np.nan, 10.0)]])
    image[:, 20, 30:33] = np.nan
    image[2, 40, 40] = 1e30
    variance[0, 50] = 0.0
    variance[1, :, :22] = np.inf
    variance[4] = np.inf
    expected = deblender.deblend_batch(image, centers, variance=variance, psf=PSF, robust=True, detail=False)
    found = solve(image, variance, centers)
    check_agreement(found, expected)
    every = int(np.bitwise_or.reduce(found["flags"]))
    for flag in (Flag.NON_FINITE, Flag.BAD_VARIANCE, Flag.OFF_IMAGE, Flag.CENTER_NOT_FINITE, Flag.BAND_MISSING,
                 Flag.EDGE):
        assert every & flag, flag


def test_fewer_sources_than_places(deblender: Deblender, solve: Callable[..., Arrays]) -> None:
    given = scene(3, 2)
    expected = deblender.deblend_batch(given.image, given.centers, variance=given.variance, psf=PSF, detail=False)
    check_agreement(solve(given.image, given.variance, given.centers), expected)


@pytest.mark.parametrize("n", [0, 2])
def test_no_source_and_no_data(solve: Callable[..., Arrays], n: int) -> None:
    image, variance = np.full((6, *SHAPE), np.nan, np.float32), np.full((6, *SHAPE), np.inf, np.float32)
    found = solve(image, variance, np.full((n, 2), 30.0, np.float32))
    assert len(found["flux"]) == n
    assert np.isnan(found["flux"]).all()
    assert all(flags & Flag.NO_DATA for flags in found["flags"])
    assert not found["model"].any()
    assert found["scene_chi2"][0] == 0


def test_coincident_sources(deblender: Deblender, solve: Callable[..., Arrays]) -> None:
    given = scene(4, 2)
    centers = given.centers[[0, 0, 1]]
    found = solve(given.image, given.variance, centers)
    expected = deblender.deblend_batch(given.image, centers, variance=given.variance, psf=PSF, detail=False)
    assert found["flags"][:2].all()
    assert np.isfinite(found["flux"]).all()
    together, alone = found["flux"][:2].sum(0), expected.flux[:2].sum(0)
    assert (np.abs(together - alone) / expected.flux_err[0]).max() < 1


def test_file_is_plain_onnx(graph_file: Path) -> None:
    model = onnx.load(str(graph_file), load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [value.name for value in model.graph.input] == list(SOLVER_INPUTS)
    assert [value.name for value in model.graph.output] == list(SOLVER_OUTPUTS)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["bands"]) == ["u", "g", "r", "i", "z", "y"]
    assert json.loads(about["flags"])["EDGE"]["bit"] == Flag.EDGE
    assert graph_file.stat().st_size < 40e6


def test_arguments(deblender: Deblender, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="n_source"):
        solver_graph(deblender.bundle, 0, SHAPE)
    with pytest.raises(ValueError, match="psf"):
        solver_graph(deblender.bundle, 1, SHAPE, psf=np.ones((5, 3, 3)))
    out = ["--sources", "1", "--size", "9", "9", "--out", str(tmp_path / "a.onnx")]
    assert cli.main(["--solver", "no-such-bundle", *out]) == cli.NO_INPUT
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--solver", "lsst", "--out", str(tmp_path / "a.onnx")])
    (tmp_path / "a.onnx").touch()
    assert cli.main(["--solver", "lsst", *out]) == cli.NO_INPUT
    assert "--overwrite" in capsys.readouterr().err


def computed(compute: Callable[[Builder, Value], Value], given: NDArray[Any]) -> NDArray[Any]:
    b = Builder(18)
    x = b.input("x", given.dtype, given.shape)
    result = compute(b, x)
    b.output("y", result, given.shape)
    return np.asarray(session_of(b.model({}).SerializeToString()).run(None, {"x": given})[0])


def test_linear_algebra() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((4, 6, 6))
    matrix = root @ root.transpose(0, 2, 1) + 0.01 * np.eye(6)
    expected = np.linalg.inv(matrix)
    assert relative_error(computed(lambda b, x: symmetric_inverse(b, x, 6), matrix), expected) < 1e-10
    assert relative_error(computed(lambda b, x: inverse_by_blocks(b, x, 3, 2), matrix[0]), expected[0]) < 1e-10
    symmetric = root + root.transpose(0, 2, 1)
    values, vectors = np.linalg.eigh(symmetric)
    positive = (vectors * np.maximum(values, 0)[:, None]) @ vectors.transpose(0, 2, 1)
    assert relative_error(computed(lambda b, x: positive_part(b, x, 6), symmetric), positive) < 1e-8


@pytest.mark.parametrize("extent", [[0, -1, -2, -3, 1], [0] * 5, [-3] * 5, [1] * 5])
def test_drawing(deblender: Deblender, extent: list[int]) -> None:
    folded, shape = deblender.fold(None), (60, 75)
    anchor = np.array([[0, 0], [40, 30], [74, 59], [10, 50], [40, 31]])
    rng = np.random.default_rng(1)
    coefficients = rng.standard_normal((5, 6, folded.n_basis)).astype(np.float32)
    image = rng.standard_normal((6, *shape)).astype(np.float32)
    b = Builder(18)
    c, y = b.input("c", np.float32, coefficients.shape), b.input("y", np.float32, image.shape)
    draw = DrawingGraph(b, folded, 5, shape, b.constant(anchor))
    groups = draw.groups(b.constant(np.array(extent)))
    by_band = c.transpose(1, 0, 2)
    b.output("drawn", draw.render(by_band, groups), image.shape)
    b.output("each", draw.placed(by_band, groups, 6), (6, 5, shape[0] * shape[1]))
    b.output("projected", draw.project(y, groups).transpose(1, 0, 2), coefficients.shape)
    drawn, each, projected = session_of(b.model({}).SerializeToString()).run(None, {"c": coefficients, "y": image})
    half, reach, first = folded.half, np.array(extent, np.int8), np.zeros(5, np.int64)
    border = ((0, 0), (half, half), (half, half))
    canvas = [np.pad(np.zeros_like(image), border)]
    drawing.render(coefficients, folded, anchor, reach, canvas, first)
    assert relative_error(drawn, canvas[0][:, half:-half, half:-half]) < FLOAT32
    assert relative_error(each.sum(1).reshape(drawn.shape), drawn) < FLOAT32
    assert relative_error(projected, drawing.project([np.pad(image, border)], folded, anchor, reach, first)) < FLOAT32


def test_node(deblender: Deblender, graph_file: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules" / "onnxruntime-node").is_dir():
        pytest.skip("needs node, and `npm install` in examples/node")
    given = scene(5, 3)
    image, centers = given.image.copy(), np.concatenate([given.centers, [(200.0, 20.0)]])
    image[3, 30, 40] = np.nan
    for name, listed in (("good", centers), ("many", np.ones((N_SOURCE + 1, 2)))):
        table = fits.BinTableHDU(Table({"x": listed[:, 0], "y": listed[:, 1]}), name="CENTERS")
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, name="IMAGE"),
                      fits.ImageHDU(given.variance, name="VARIANCE"), table]).writeto(tmp_path / f"{name}.fits")
    done = subprocess.run([node, str(NODE / "index.js"), "--json", str(graph_file), str(tmp_path / "good.fits"),
                           str(tmp_path / "many.fits"), str(tmp_path / "none.fits")], capture_output=True, text=True,
                          check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 1, done.stderr
    good, many, none = map(json.loads, done.stdout.splitlines())
    assert "6 sources, this solver has 5 places" in many["error"]
    assert "ENOENT" in none["error"]
    expected = deblender.deblend_batch(image, centers, variance=given.variance, psf=PSF, detail=False)
    rows = good["rows"]
    assert len(rows) == len(centers)
    np.testing.assert_array_equal([row["flags"] for row in rows], expected.flags)
    assert rows[3]["flag_names"] == ["OFF_IMAGE"]
    flux = np.array([row["flux"] for row in rows], np.float64)  # JSON has null for NaN
    assert np.nanmax(np.abs(flux - expected.flux) / expected.flux_err) < SOLVER_GRAPH
    assert np.isnan(flux[3]).all()


def test_names_of_flags_in_node() -> None:
    text = (NODE / "deblend.js").read_text()
    listed = text.partition("const FLAGS = [")[2].partition("];")[0].replace("'", " ").replace(",", " ").split()
    assert listed == [flag.name for flag in Flag]
