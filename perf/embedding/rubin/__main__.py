"""Rubin's objects and scarlet_lite's models, in and out.

    python -m perf.embedding.rubin --environment FOLDER --meas CLONE --images-python INTERPRETER

The script breaks objects that a pipeline hands over (stand-ins of afw's classes, which no registry has) and counts
rows. Then real components judge the results, if they are available:

- scarlet_lite (w.2025.43) in ``FOLDER/scarlet_lite``, which ``python -m perf.peers.environments FOLDER --peer
  scarlet_lite`` makes;
- Rubin's own reader of its ``.scarlet`` files, from a clone of lsst/meas_extensions_scarlet (w.2026.12);
- lsst.images, in an environment of Python 3.12 or newer with ``lsst_images.txt``.

It prints the figures and writes ``perf/results/embedding/rubin.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from deblendrt.engine.adapters import rubin, scarlet
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.files.fits import read_image
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.units import AB_ZERO_POINT, to_flux
from perf import metrics
from perf.embedding import own_environment, record
from perf.peers.peer import Missing

sys.path.append(str(own_environment.ROOT / "tests"))
from rubin_standins import Exposure, Peak, PhotoCalib, Psf, Record

EXAMPLE = own_environment.ROOT / "examples" / "lsst_blend.fits"
XY0 = (12_000, 8_000)
MANY = 10_000


def exposures(scene: Any) -> dict[str, Any]:
    """The example image as exposures of a patch."""
    n_band = len(scene.bands)
    points = np.broadcast_to(AB_ZERO_POINT if scene.zero_point is None else scene.zero_point, n_band)
    return {band: Exposure(band, np.array(scene.image[b], np.float32), np.array(scene.variance[b], np.float32),
                           np.zeros(np.shape(scene.image[b]), np.int32), Psf(np.asarray(scene.psf[b])), XY0,
                           PhotoCalib(float(to_flux(points[b])))) for b, band in enumerate(scene.bands)}


def faults(deblender: Deblender, scene: Any) -> list[dict[str, Any]]:
    """Cause faults, and count rows."""
    centers = np.asarray(scene.centers) + XY0
    found: list[dict[str, Any]] = []

    def run(fault: str, how: str, given: Any, catalog: Any, inputs: int, note: Callable[..., str]) -> None:
        taken = rubin.read_exposures(given, catalog)
        result = taken.deblend(deblender)
        ids = taken.table(result)["id"].tolist()
        found.append(record.fault(fault, how, inputs, inputs - len(set(ids)), len(ids) - len(set(ids)),
                                  note(taken, result)))

    def flagged(flag: Flag) -> Callable[..., str]:
        return lambda taken, result: (f"{int(((result.flags & flag) != 0).sum())} flagged {flag.name}, "
                                      f"{int(result.fitted.sum())} fitted")

    n = len(centers)
    made = exposures(scene)
    made["g"] = None
    run("a band is missing", "exposures['g'] = None", made, centers, n, flagged(Flag.BAND_MISSING))
    made = exposures(scene)
    for exposure in made.values():
        exposure.variance.array[40:60] = np.nan
    run("NaN variance", "20 rows of every variance plane", made, centers, n, flagged(Flag.BAD_VARIANCE))
    odd = np.concatenate([centers, [[XY0[0] - 30.0, XY0[1]], [np.nan, XY0[1]], [0.0, 0.0]]])
    run("sources off the box, and without a position", "(x, y) below the box, NaN, (0, 0)", exposures(scene), odd,
        n + 3, flagged(Flag.OFF_IMAGE | Flag.CENTER_NOT_FINITE))
    middle = np.array(np.shape(scene.image)[:0:-1]) / 2 - 0.5 + XY0
    made = exposures(scene)
    made["r"]._psf.valid = lambda x, y: np.hypot(x - middle[0], y - middle[1]) > 1
    run("a PSF raises at the cell's centre", "r; asked again at a source", made, centers, n,
        lambda taken, result: f"{made['r']._psf.asked} calls, {len(taken.lost)} failures, {result.fitted.sum()} fitted")
    made = exposures(scene)
    made["r"]._psf.valid = lambda x, y: False
    run("a PSF raises everywhere, in one band", "r; its pixels are left out", made, centers, n,
        flagged(Flag.BAND_MISSING))
    made = exposures(scene)
    for exposure in made.values():
        exposure._psf.valid = lambda x, y: False
    run("PSFs raise everywhere, in all bands", "nothing can be fitted", made, centers, n, flagged(Flag.NO_DATA))
    run("an empty catalogue", "[]", exposures(scene), [], 0, lambda taken, result: "no row, models of zero")
    peaks = [Peak(1 + k, x, y) for k, (x, y) in enumerate(centers.tolist())]
    run("one parent with all peaks, one record without a footprint", "afw SourceCatalog", exposures(scene),
        [Record(900, peaks=peaks), Record(901, *centers[0].tolist())], n + 1, flagged(Flag.TOO_CLOSE))
    far = np.random.default_rng(1).uniform(-30_000, XY0[0] - 500, (MANY - n, 2))
    table = Table({"id": np.arange(MANY) * 7, "x": np.concatenate([far, centers])[:, 0],
                   "y": np.concatenate([far, centers])[:, 1]})
    start = time.perf_counter()
    run(f"the {MANY} sources of a tract for one box", f"{MANY - n} of them elsewhere", exposures(scene), table, MANY,
        lambda taken, result: f"{flagged(Flag.OFF_IMAGE)(taken, result)}, {time.perf_counter() - start:.1f} s")
    return found


def write_models(deblender: Deblender, scene: Any, folder: Path) -> dict[str, Any]:
    """Write model files of the example, with two sources that cannot be fitted, and the engine's images of sources."""
    centers = np.concatenate([np.asarray(scene.centers), [[-9.0, 4.0], [np.nan, 3.0]]]) + XY0
    taken = rubin.read_exposures(exposures(scene), centers)
    result = taken.deblend(deblender, kind=["star", *["galaxy"] * (len(centers) - 1)])
    ids = 5000 + np.arange(len(centers))
    images: dict[str, Any] = {"model": result.model(0), "x0": XY0[0], "y0": XY0[1]}
    for row, number in enumerate(ids):
        stamp, corner = result.stamps(row)
        images[f"source_{number}"] = metrics.place(stamp, corner, result.scenes[0].shape)
    np.savez(folder / "images.npz", **images)
    written: dict[str, Any] = {"ids": ids.tolist(), "images": str(folder / "images.npz"), "xy0": XY0}
    for key, container in (("json", "scarlet_lite"), ("zip", "lsst")):
        written[key] = str(folder / ("model.json" if key == "json" else "model.scarlet"))
        start = time.perf_counter()
        scarlet.write_model(
            written[key],
            scarlet.model_data(result, deblender.bundle, source_ids=ids, xy0=XY0, container=container),
        )
        written[f"{key}_ms_per_source"] = 1e3 * (time.perf_counter() - start) / len(ids)
        written[f"{key}_kb_per_source"] = Path(written[key]).stat().st_size / 1e3 / len(ids)
        again = scarlet.read_model(written[key])
        assert sorted(again.source_id) == ids.tolist()
    return written


def real_components(args: argparse.Namespace, deblender: Deblender, scene: Any) -> tuple[dict[str, Any], list[Any]]:
    """Figures and faults of the components that are available; the reason for the others."""
    figures: dict[str, Any] = {}
    broken: list[Any] = []
    with tempfile.TemporaryDirectory() as name:
        written = write_models(deblender, scene, Path(name))
        figures["model_files"] = {key: value for key, value in written.items() if "per_source" in key}
        try:
            if args.environment is None:
                raise Missing("no --environment was given")
            python = args.environment.absolute() / "scarlet_lite" / "bin" / "python"
            if not python.exists():
                raise Missing(f"{args.environment} has none: python -m perf.peers.environments")
            found = own_environment.run(python, "perf.embedding.rubin.scarlet_reader", {
                **written, "meas_extensions_scarlet": str(args.meas.absolute()) if args.meas else ""})
            figures["scarlet_lite"] = found
            for key in ("json", "zip"):
                if key in found:
                    ids = found[key].pop("ids")
                    reader = "scarlet_lite" if key == "json" else "meas_extensions_scarlet"
                    broken.append(record.fault(
                        "two of the sources have no fit", f"the {key} model, read by {reader}", len(written["ids"]),
                        len(set(written["ids"]) - set(ids)), len(ids) - len(set(ids)), "they are pixels of zero flux"))
        except Missing as why:
            figures["scarlet_lite"] = str(why)
        try:
            if args.images_python is None:
                raise Missing("no --images-python was given")
            found = own_environment.run(args.images_python.absolute(), "perf.embedding.rubin.lsst_images",
                                        {"example": str(EXAMPLE)})
            broken += found.pop("faults")
            figures["lsst_images"] = {key: value for key, value in found.items() if key != "ids"}
        except Missing as why:
            figures["lsst_images"] = str(why)
    return figures, broken


def main(argv: list[str] | None = None) -> int:
    """Run everything; returns 1 if a row was lost or came twice."""
    parser = argparse.ArgumentParser(prog="python -m perf.embedding.rubin", description=__doc__.partition("\n")[0])
    parser.add_argument("--environment", type=Path, help="folder of environments, with scarlet_lite")
    parser.add_argument("--meas", type=Path, help="clone of lsst/meas_extensions_scarlet")
    parser.add_argument("--images-python", type=Path, help="interpreter with lsst.images")
    args = parser.parse_args(argv)
    scene, deblender = read_image(str(EXAMPLE)), Deblender.load("lsst")
    broken = faults(deblender, scene)
    figures, more = real_components(args, deblender, scene)
    return record.store("rubin", f"{parser.prog} --environment FOLDER --meas CLONE --images-python INTERPRETER",
                        broken + more, figures)


if __name__ == "__main__":
    sys.exit(main())
