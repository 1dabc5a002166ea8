"""The solver's graph in Node against the engine in Python.

    python -m perf.embedding.other_languages

It needs `npm install` in examples/node. Scenes go to Node as FITS files, and rows come back as JSON. Then the script
breaks files and processes. It writes ``perf/results/embedding/other_languages.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult
from deblendrt.export.solver.solver_graph import solver_graph, write_solver
from perf import report
from perf.embedding import record
from perf.gate import cases

NODE = report.ROOT / "examples" / "node" / "index.js"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
Row = dict[str, Any]


def in_all_bands(scene: cases.CaseScene) -> tuple[np.ndarray, np.ndarray]:
    """Image and variance in all of the model's bands; bands that the scene lacks are masked."""
    shape = (len(cases.BANDS), *scene.image.shape[1:])
    image, variance = np.zeros(shape, np.float32), np.full(shape, np.inf, np.float32)
    for band, data, noise in zip(scene.bands, scene.image, scene.variance, strict=True):
        image[cases.BANDS.index(band)], variance[cases.BANDS.index(band)] = data, noise
    return image, variance


def write(path: Path, image: np.ndarray, variance: np.ndarray, centers: np.ndarray) -> Path:
    """Write a file that examples/node reads."""
    table = fits.BinTableHDU(Table({"x": centers[:, 0], "y": centers[:, 1]}), name="CENTERS")
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, name="IMAGE"), fits.ImageHDU(variance, name="VARIANCE"),
                  table]).writeto(path)
    return path


def node(graph: Path, files: list[Path]) -> list[Row]:
    """Rows that Node prints for these files."""
    done = subprocess.run(["node", str(NODE), "--json", str(graph), *map(str, files)], capture_output=True, text=True,
                          check=False, env=ENVIRONMENT)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def differences(rows: list[Row], expected: DeblendResult) -> tuple[np.ndarray, np.ndarray]:
    """|flux - engine's flux| / flux_err of a scene, (n_source, n_band), and the mask of trusted sources."""
    flux = np.array([row["flux"] for row in rows], np.float64)
    assert (np.isfinite(flux) == np.isfinite(expected.flux)).all()
    return np.abs(flux - expected.flux) / expected.flux_err, expected.trusted


def agreement(deblender: Deblender, folder: Path, name: str, n_scene: int) -> dict[str, Any]:
    """Compare Node with the engine on a frozen case."""
    scenes = [scene for call in cases.CASES[name].scenes(n_scene) for scene in call]
    bands = scenes[0].bands
    images = cases.psf(bands)
    places = max(scene.n_source for scene in scenes)
    shape = scenes[0].image.shape[1:]
    graph = folder / f"{name}.onnx"
    start = time.perf_counter()
    every = np.broadcast_to(images, (len(cases.BANDS), *images.shape[1:])) if len(images) == 1 else images
    write_solver(solver_graph(deblender.bundle, places, (shape[0], shape[1]), psf=every), graph)
    export = time.perf_counter() - start
    files = [write(folder / f"{name}{k}.fits", *in_all_bands(scene), scene.centers) for k, scene in enumerate(scenes)]
    start = time.perf_counter()
    lines = node(graph, files)
    total = time.perf_counter() - start
    deblender.warmup()
    deblender.deblend_batch(scenes[0].image, scenes[0].centers, variance=scenes[0].variance, psf=images, bands=bands)
    apart, settled, seconds, reversed_order, same_flags = [], [], [], [], 0
    for line, scene in zip(lines, scenes, strict=True):
        start = time.process_time()
        expected = deblender.deblend_batch(scene.image, scene.centers, variance=scene.variance, psf=images, bands=bands)
        seconds.append(time.process_time() - start)
        again = deblender.deblend_batch(scene.image, scene.centers[::-1], variance=scene.variance, psf=images,
                                        bands=bands)
        other_order = np.abs(again.flux[::-1] - expected.flux) / expected.flux_err
        reversed_order.append(other_order[np.isfinite(other_order)])
        difference, converged = differences(line["rows"], expected)
        apart.append(difference[np.isfinite(difference)])
        settled.append(difference[converged][np.isfinite(difference[converged])])
        same_flags += int((np.array([row["flags"] for row in line["rows"]]) == expected.flags).sum())
    difference, converged = np.concatenate(apart), np.concatenate(settled)
    n_source = sum(scene.n_source for scene in scenes)
    in_node = [line["cpu_seconds"] for line in lines]
    return {
        "scenes": len(scenes), "sources": n_source, "places in the graph": places, "image": list(shape),
        "file [MB]": graph.stat().st_size / 1e6, "seconds to export": export,
        "difference of fluxes in units of flux_err: median": float(np.median(difference)),
        "99th percentile": float(np.quantile(difference, 0.99)), "worst": float(difference.max()),
        "worst among trusted sources": float(converged.max()),
        "the engine against itself, sources in reverse order: median": float(np.median(np.concatenate(reversed_order))),
        "its 99th percentile": float(np.quantile(np.concatenate(reversed_order), 0.99)),
        "its worst": float(np.concatenate(reversed_order).max()),
        "sources with the engine's very flags": same_flags,
        "Node: processor seconds per scene, median": float(np.median(in_node)),
        "Node: seconds from start to the end of loading": total - sum(line["seconds"] for line in lines),
        "engine: processor seconds per scene, median": float(np.median(seconds)),
    }


def faults(folder: Path) -> list[dict[str, Any]]:
    """Break inputs and the process, with the graph of single_stream."""
    graph = folder / "single_stream.onnx"
    found = []

    def put(fault: str, how: str, inputs: int, rows: int, note: str, repeated: int = 0) -> None:
        found.append(record.fault(fault, how, inputs, inputs - rows, repeated, note))

    scene = cases.blend_scene(1, 2)
    image, variance, n = scene.image, scene.variance, scene.n_source
    places = solver_places(folder)
    nothing = np.full_like(variance, np.inf)
    spoilt = image.copy()
    spoilt[:, 40:60, 45:50] = np.nan
    outside = np.concatenate([scene.centers[: places - 2], [(-40.0, 20.0), (np.nan, 3.0)]])
    given = {"masked": (image, nothing, scene.centers), "nan": (spoilt, variance, scene.centers),
             "outside": (image, variance, outside), "fewer": (image, variance, scene.centers[:2]),
             "many": (image, variance, np.tile(scene.centers, (3, 1)))}
    files = [write(folder / f"{name}.fits", *arrays) for name, arrays in given.items()]
    cut = folder / "cut.fits"
    cut.write_bytes(files[0].read_bytes()[:100_000])
    lines = {Path(line["file"]).stem: line for line in node(graph, [*files, cut, folder / "absent.fits"])}

    def flags(name: str) -> str:
        counts: dict[str, int] = {}
        for row in lines[name]["rows"]:
            for flag in row["flag_names"]:
                counts[flag] = counts.get(flag, 0) + 1
        return ", ".join(f"{flag} x {count}" for flag, count in sorted(counts.items()))

    put("no usable pixel", "variance infinite everywhere", n, len(lines["masked"]["rows"]), flags("masked"))
    put("NaN pixels", "a block of 20 x 5 in all bands, across sources", n, len(lines["nan"]["rows"]), flags("nan"))
    put("centres off the image, and NaN", "two of the list", len(outside), len(lines["outside"]["rows"]),
           flags("outside"))
    put("fewer sources than places", f"2 of {places}", 2, len(lines["fewer"]["rows"]),
           "2 rows; the other places return NaN and flags 0, which the example leaves out")
    for name, how in (("many", f"{3 * n} sources for {places} places"), ("cut", "a file that ends in mid-image"),
                      ("absent", "a file that is not there")):
        put("refused", how, 1, int(bool(lines[name].get("error"))), lines[name]["error"].replace(str(folder), "..."))
    put(*killed(folder, graph))
    return found


def solver_places(folder: Path) -> int:
    """Number of places in the graph of single_stream, from its metadata."""
    import onnx

    model = onnx.load(str(folder / "single_stream.onnx"))
    return int({entry.key: entry.value for entry in model.metadata_props}["n_source"])


def killed(folder: Path, graph: Path) -> tuple[str, str, int, int, str, int]:
    """Kill Node while it works, and give the files without a row to another process."""
    files = sorted(folder.glob("single_stream[0-9]*.fits"))
    process = subprocess.Popen(["node", str(NODE), "--json", str(graph), *map(str, files)], stdout=subprocess.PIPE,
                               text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.readlines()
    process.wait()
    whole = [json.loads(line)["file"] for line in lines if line.endswith("\n")]
    again = [line["file"] for line in node(graph, [path for path in files if str(path) not in whole])]
    every = [*whole, *again]
    return ("kill -9", "after the second scene; another process gets the files without a line", len(files),
            len(set(every)), f"{len(whole)} before, {len(again)} after", len(every) - len(set(every)))


def main() -> int:
    """Run everything."""
    parser = argparse.ArgumentParser(prog="python -m perf.embedding.other_languages",
                                     description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=20)
    n_scene = parser.parse_args().scenes
    if shutil.which("node") is None or not (NODE.parent / "node_modules").is_dir():
        raise SystemExit("needs node, and: cd examples/node && npm install")
    deblender = Deblender.load("lsst")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        figures: dict[str, Any] = {name: agreement(deblender, folder, name, n_scene)
                                   for name in ("single_stream", "burst")}
        broken = faults(folder)
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    package = json.loads((NODE.parent / "node_modules" / "onnxruntime-node" / "package.json").read_text())["version"]
    figures |= {"Node": version, "onnxruntime-node": package, "load average at the end": os.getloadavg()[0]}
    return record.store("other_languages", f"{parser.prog} --scenes {n_scene}", broken, figures)


if __name__ == "__main__":
    sys.exit(main())
