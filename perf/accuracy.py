"""Accuracy on the frozen test scenes: ``python -m perf.accuracy`` from a clone with ``deblendrt[train]`` installed.

Both solvers deblend the 200 scenes of `perf.scenes` in one call each, given the true positions, variance and PSF; with
the default robust likelihood and with the plain one. Final objectives are compared under the plain one, which is the
same function for both solvers (the robust bound depends on the model). All metrics are defined in `perf.metrics`.
Written: ``perf/results/accuracy-NAME.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from perf import metrics, report, scenes

FloatArray = NDArray[np.float64]
SOLVERS = {"gauss_newton": 15, "adam": 200}
FLUX_BANDS = ("r", "i")
SHAPE_BAND = "r"  # of SNR, blendedness, cosine and SSIM
APERTURE_STAMP = 11  # pixel, holds the aperture
RESULTS = Path(__file__).with_name("results")
LABELS = {
    "flux_error_r": "flux error r", "flux_error_i": "flux error i", "map_flux_error_r": "MAP flux error r",
    "aperture_error_r": "aperture error r", "aperture_error_i": "aperture error i", "color_error": "abs d(g-r) [mag]",
    "cosine": "cosine", "ssim": "SSIM",
}


def truth_columns(tests: scenes.SceneSet) -> dict[str, Any]:
    """What is known of each source before any deblending: SNR, blendedness, the noise floor."""
    r = tests.bands.index(SHAPE_BAND)
    columns: dict[str, list[FloatArray]] = {"snr": [], "blendedness": [], "floor": []}
    for scene in tests:
        error = metrics.isolated_error(scene.truth[:, r], scene.flux[:, r], tests.sky_sigma[r], tests.counts_per_njy[r])
        columns["snr"].append(scene.flux[:, r] / error)
        columns["blendedness"].append(metrics.blendedness(scene.truth[:, r]))
        columns["floor"].append(np.stack(
            [metrics.noise_floor(scene.image[b], scene.variance[b], scene.truth[:, b], scene.flux[:, b])[0]
             for b in range(len(tests.bands))], 1))
    return {name: np.concatenate(values) for name, values in columns.items()}


def flux_columns(flux: FloatArray, true_flux: FloatArray, bands: tuple[str, ...]) -> dict[str, FloatArray]:
    """Flux and colour errors of every source."""
    columns = {f"flux_error_{b}": np.abs(flux[:, bands.index(b)] / true_flux[:, bands.index(b)] - 1)
               for b in FLUX_BANDS}
    columns["color_error"] = metrics.color_error(flux, true_flux, bands.index("g"), bands.index("r"))
    return columns


def image_columns(result: Any, tests: scenes.SceneSet) -> dict[str, FloatArray]:
    """Aperture errors, cosine and SSIM of every source's model image."""
    r, radius = tests.bands.index(SHAPE_BAND), metrics.APERTURE_DIAMETER / 2 / scenes.RECIPE["survey"]["pixel_scale"]
    values: dict[str, list[float]] = {name: [] for name in ("aperture_error_r", "aperture_error_i", "cosine", "ssim")}
    i_source = 0
    for scene in tests:
        for truth, center in zip(scene.truth, scene.centers, strict=True):
            stamp, corner = result.stamps(i_source)
            model = metrics.place(stamp, corner, truth.shape[1:])
            near = metrics.stamp(model, center, APERTURE_STAMP), metrics.stamp(truth, center, APERTURE_STAMP)
            weights = metrics.aperture_weights((APERTURE_STAMP, APERTURE_STAMP),
                                               center - np.rint(center) + APERTURE_STAMP // 2, radius)
            for b in FLUX_BANDS:
                measured, true = ((weights * image[tests.bands.index(b)]).sum() for image in near)
                values[f"aperture_error_{b}"].append(abs(float(measured / true) - 1))
            values["cosine"].append(float(metrics.cosine(model[r], truth[r])))
            values["ssim"].append(metrics.ssim(metrics.stamp(model[r], center), metrics.stamp(truth[r], center)))
            i_source += 1
    return {name: np.array(v) for name, v in values.items()}


def run_solver(deblender: Deblender, tests: scenes.SceneSet, solver: str, robust: bool) -> tuple[Any, dict[str, Any]]:
    """Deblend every scene in one call; wall time on one thread and the process's peak memory so far."""
    n_iteration = SOLVERS[solver]
    loaded = [[tests.field(name, k) for k in range(len(tests))] for name in ("image", "centers", "variance")]
    images, centers, variance = loaded
    start = time.perf_counter()
    result = deblender.deblend_batch(images, centers, variance=variance, psf=tests.psf, bands=tests.bands,
                                     solver=solver, n_iteration=n_iteration, robust=robust, n_threads=1)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    return result, {"n_iteration": n_iteration, "seconds": seconds, "ms_per_source": 1e3 * seconds / len(result.flux),
                    "peak_memory_mb": peak}


def summarise(columns: dict[str, FloatArray], truth: dict[str, Any]) -> dict[str, Any]:
    """Medians over all sources, per SNR and per blendedness."""
    return {"all": {name: report.median(values) for name, values in columns.items()},
            "blendedness_above_0.3": {name: report.median(values[truth["blendedness"] > 0.3])
                                      for name, values in columns.items()},
            "by_snr": report.binned(columns, truth["snr"], report.SNR_EDGES),
            "by_blendedness": report.binned(columns, truth["blendedness"], report.BLENDEDNESS_EDGES)}


def compare_objectives(first: Any, second: Any) -> dict[str, float]:
    """How often, and by how much, the first solver's final objective is below the second's."""
    n_source = np.diff(first.source_start)
    difference = (first.objective - second.objective) / n_source
    return {"fraction_of_scenes_lower": float((difference < 0).mean()),
            "median_difference_per_source": float(np.median(difference)),
            "percentile_5_per_source": float(np.percentile(difference, 5)),
            "percentile_95_per_source": float(np.percentile(difference, 95))}


def markdown(figures: dict[str, Any]) -> str:
    """The figures as a page."""
    solvers = list(figures["solvers"])

    def row(label: str, key: str, part: str) -> list[str]:
        cells = [report.number(figures["summary"][s][part].get(key, float("nan"))) for s in solvers]
        return [label, *cells, report.number(figures["summary"]["noise floor"][part].get(key, float("nan")))]

    header = ["median of", *(f"{s} ({figures['solvers'][s]['n_iteration']})" for s in solvers), "noise floor"]
    lines = [f"# Accuracy of {figures['bundle']}", "",
             f"{figures['n_scene']} scenes, {figures['n_source']} galaxies, "
             f"scenes sha256 `{figures['scenes_sha256'][:16]}`. Metrics: `perf/metrics.py`."]
    for part, title in (("all", "All sources"), ("blendedness_above_0.3", "Blendedness above 0.3")):
        rows = [row(label, key, part) for key, label in LABELS.items()]
        lines += ["", f"## {title}", "", report.markdown_table(header, rows)]
    for part, title in (("by_snr", "SNR in r"), ("by_blendedness", "blendedness in r")):
        for s in solvers:
            if "plain" in s:
                continue  # the JSON file has them
            lines += ["", f"## {s} by {title}", ""]
            floor = figures["summary"]["noise floor"][part]
            rows = [[f"{report.number(b['low'])} to {report.number(b['high'])}", str(b["n"]),
                     *(report.number(b[key]) for key in LABELS), report.number(f["flux_error_r"])]
                    for b, f in zip(figures["summary"][s][part], floor, strict=True)]
            lines += [report.markdown_table([title, "n", *LABELS.values(), "floor, flux error r"], rows)]
    lines += ["", "## Cost (one thread)", ""]
    lines += [report.markdown_table(["solver", "iterations", "ms per source", "peak memory of the process so far [MB]",
                                     "sources without a flux", "width of the pull r, i"],
                                    [[s, str(v["n_iteration"]), report.number(v["ms_per_source"]),
                                      f"{v['peak_memory_mb']:.0f}", str(v["n_failed"]),
                                      ", ".join(report.number(v["pull_width"][b]) for b in FLUX_BANDS)]
                                     for s, v in figures["solvers"].items()])]
    if figures["objective"]:
        o = figures["objective"]
        share = 100 * o["fraction_of_scenes_lower"]
        lines += ["", f"Final objective, plain: gauss_newton is lower than adam in {share:.1f}% of the scenes;"
                  f" difference per source {o['median_difference_per_source']:.2f} (median; 5% to 95%: "
                  f"{o['percentile_5_per_source']:.2f} to {o['percentile_95_per_source']:.2f})."]
    machine = figures["environment"]
    lines += ["", f"Machine: {machine['processor']}, {machine['platform']}, Python {machine['python']}, "
              + ", ".join(f"{k} {v}" for k, v in machine["packages"].items()) + f", commit {machine['commit']}.", ""]
    return "\n".join(lines)


def measure(bundle: str, tests: scenes.SceneSet, solvers: list[str]) -> dict[str, Any]:
    """Run the solvers and collect every figure."""
    truth = truth_columns(tests)
    true_flux = np.concatenate([tests.field("flux", k) for k in range(len(tests))])
    deblender = Deblender.load(bundle)
    deblender.warmup(64)
    results, summary, costs = {}, {}, {}
    for robust in (True, False):
        for solver in solvers:
            name = solver if robust else f"{solver}, plain"
            results[name], costs[name] = run_solver(deblender, tests, solver, robust)
            print(f"{name}: {costs[name]['ms_per_source']:.2f} ms per source", file=sys.stderr)
    for name, result in results.items():
        columns = flux_columns(result.flux, true_flux, tests.bands)
        columns["map_flux_error_r"] = flux_columns(result.map_flux, true_flux, tests.bands)["flux_error_r"]
        columns.update(image_columns(result, tests))
        costs[name]["n_failed"] = int((~np.isfinite(result.flux).all(1)).sum())
        costs[name]["pull_width"] = dict(zip(tests.bands, metrics.pull_width(result.flux, result.flux_err, true_flux),
                                             strict=True))
        summary[name] = summarise(columns, truth)
    summary["noise floor"] = summarise(flux_columns(truth["floor"], true_flux, tests.bands), truth)
    both = {"gauss_newton, plain", "adam, plain"} <= set(results)
    objective = compare_objectives(results["gauss_newton, plain"], results["adam, plain"]) if both else None
    return {"bundle": bundle, "n_scene": len(tests), "n_source": len(true_flux), "scenes_sha256": tests.sha256,
            "solvers": costs, "summary": summary, "objective": objective, "environment": report.environment()}


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", default="lsst", help="shipped name or path of a bundle")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the test scenes; ~/.cache/deblendrt")
    parser.add_argument("--n-scene", type=int, default=scenes.N_SCENE, help="fewer, for a quick look")
    parser.add_argument("--solver", action="append", choices=sorted(SOLVERS), help="repeatable; default both")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON and markdown files")
    args = parser.parse_args(argv)
    tests = scenes.load_scenes(args.cache, args.n_scene)
    figures = measure(args.bundle, tests, args.solver or list(SOLVERS))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"accuracy-{Path(args.bundle).name}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    page = markdown(figures)
    path.with_suffix(".md").write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
