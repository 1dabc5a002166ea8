"""BTK's metrics on BTK's blends. `perf.embedding.btk` runs it in BTK's environment: ``REQUEST.json ANSWER.json``."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import btk
import numpy as np
from astropy.table import Table

from deblendrt.engine.adapters.btk import DeblendRt, sky_variance

BAND = "i"
APERTURE = 5.0  # pixel


def blends(request: dict[str, Any]) -> Any:
    """Draw a batch of blends of galaxies of the catalogue, with all noise, in LSST stamps."""
    survey = btk.survey.get_surveys("LSST")
    sampling = btk.sampling_functions.DefaultSampling(
        max_number=request["max_number"], min_number=1, stamp_size=24.0, max_shift=3.0, min_mag=0,
        max_mag=request["max_mag"], seed=request["seed"])
    catalog = btk.catalog.CatsimCatalog.from_file(request["catalog"])
    return next(btk.draw_blends.CatsimGenerator(catalog, sampling, survey, batch_size=request["n_blend"], njobs=1,
                                                add_noise="all", seed=request["seed"]))


def deblenders(n: int, found: dict[str, str]) -> dict[str, Any]:
    """Deblenders that start, by name, with the index of `BAND` in their images; `found` gets reasons of others."""
    band = 3
    made = {"deblendrt": (DeblendRt(n), band), "deblendrt, own detection": (DeblendRt(n, detect=True), band),
            "SepSingleBand": (btk.deblend.SepSingleBand(n, thresh=1.5, use_band=band), 0)}
    try:
        import scarlet  # noqa: F401  that BTK's Scarlet starts is what is asked

        made["Scarlet"] = (btk.deblend.Scarlet(n), band)
    except ImportError as error:
        found["Scarlet"] = f"{type(error).__name__}: {error}"
    return made


def judge(batch: Any, results: dict[str, tuple[Any, int]]) -> dict[str, dict[str, Any]]:
    """Metrics of every deblender: detection over all sources, reconstruction over sources that all deblenders have."""
    matcher = btk.match.PixelHungarianMatcher(pixel_max_sep=5.0)
    matches = {name: matcher(batch.catalog_list, done.catalog_list) for name, (done, _) in results.items()}
    common = []
    for k, truth in enumerate(batch.catalog_list):
        shared = np.ones(len(truth), bool)
        for name, matching in matches.items():
            done, band = results[name]
            light = done.deblended_images[k, matching.pred_matches[k], band].sum((1, 2)) > 0
            shared &= np.isin(np.arange(len(truth)), matching.true_matches[k][light])
        common.append(shared)
    sky = float(sky_variance(batch.survey, [BAND])[0])
    detection, reconstruction = btk.metrics.detection, btk.metrics.reconstruction
    figures = {}
    for name, (done, band) in results.items():
        matching = matches[name]
        tp, t, p = matching.tp, matching.t, matching.p
        figures[name] = {"recall": float(detection.Recall(batch.batch_size)(tp, t, p)),
                         "precision": float(detection.Precision(batch.batch_size)(tp, t, p))}
        matching = matching.filter_by_true(common)
        true = matching.match_true_arrays(batch.isolated_images[:, :, 3])
        drawn = matching.match_pred_arrays(done.deblended_images[:, :, band])
        for metric in (reconstruction.MSE, reconstruction.PSNR, reconstruction.StructSim):
            figures[name][metric.__name__] = float(metric(batch.batch_size)(true, drawn))
        xs, ys = (np.zeros(true.shape[:2]) for _ in range(2))
        for k, table in enumerate(matching.match_true_catalogs(batch.catalog_list)):
            xs[k, : len(table)], ys[k, : len(table)] = table["x_peak"], table["y_peak"]
        places = xs.reshape(-1, 1), ys.reshape(-1, 1), APERTURE, sky
        fluxes = [btk.measure.get_aperture_fluxes(images.reshape(-1, *images.shape[2:]), *places)[0][:, 0]
                  for images in (true, drawn)]
        use = fluxes[0] > 0
        error = fluxes[1][use] / fluxes[0][use] - 1
        figures[name] |= {"n_common": int(sum(c.sum() for c in common)), "aperture_flux_error": float(
            np.median(np.abs(error))), "aperture_flux_bias": float(np.median(error))}
    return figures


def faults(batch: Any) -> list[dict[str, Any]]:
    """Cause faults, and count rows."""
    plugin = DeblendRt(batch.max_n_sources, n_iteration=4, photon_noise=False)
    n = batch.batch_size
    found = []

    def record(fault: str, how: str, inputs: int, tables: list[Table], note: str) -> None:
        rows = sum(len(table) for table in tables)
        found.append({"fault": fault, "how": how, "inputs": inputs, "lost": max(inputs - rows, 0),
                      "repeated": max(rows - inputs, 0), "note": note})

    empty = [Table({"ra": [], "dec": []}) for _ in range(n)]
    done = plugin(batch, reference_catalogs=empty)
    record("no source in any scene", "empty reference catalogues", 0, done.catalog_list,
           f"{int((done.deblended_images != 0).sum())} pixels with light")
    off = [Table({"x_peak": [-40.0, 60.0], "y_peak": [10.0, np.nan]}) for _ in range(n)]
    done = plugin(batch, reference_catalogs=off)
    flagged = sum(int((table["flags"] != 0).sum()) for table in done.catalog_list)
    record("positions off the stamp, and NaN", "reference catalogues", 2 * n, done.catalog_list, f"{flagged} flagged")
    kept = batch.blend_images
    batch.blend_images = kept.copy()
    batch.blend_images[:, :, 40:60] = np.nan
    batch.blend_images[0] = np.nan
    done = plugin(batch)
    rows = sum(len(table) for table in batch.catalog_list)
    unfitted = sum(int(np.isnan(table["flux_i"]).sum()) for table in done.catalog_list)
    record("NaN pixels: a sixth of every image, all of one", "blend_images", rows, done.catalog_list,
           f"{unfitted} not fitted, flagged; images hold no NaN: {bool(np.isfinite(done.deblended_images).all())}")
    batch.blend_images = kept
    try:
        DeblendRt(1)(batch)
        refused = "not refused"
    except ValueError as error:
        refused = f"ValueError: {error}"
    found.append({"fault": "more sources than max_n_sources", "how": "max_n_sources = 1", "inputs": rows, "lost": 0,
                  "repeated": 0, "note": refused})
    together, parallel = plugin(batch), plugin(batch, njobs=2)
    same = np.array_equal(together.deblended_images, parallel.deblended_images)
    one = plugin.deblend(1, batch)
    same &= np.array_equal(one.deblended_images, together.deblended_images[1])
    record("none: two threads, and one scene alone", "njobs = 2, deblend(1)", rows, together.catalog_list,
           "the same bits" if same else "OTHER BITS")
    return found


def main(asked: str, answered: str) -> None:
    """Answer a request."""
    request = json.loads(Path(asked).read_text())
    batch = blends(request)
    missing: dict[str, str] = {}
    results, seconds = {}, {}
    for name, (deblender, band) in deblenders(batch.max_n_sources, missing).items():
        start = time.process_time()
        try:
            results[name] = deblender(batch), band
        except Exception as error:  # a failure of another deblender is a result
            if isinstance(deblender, DeblendRt):
                raise
            missing[name] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        seconds[name] = time.process_time() - start
        print(f"{name}: {seconds[name]:.1f} s", flush=True)
    figures = judge(batch, results)
    n_source = sum(len(table) for table in batch.catalog_list)
    for name, cpu in seconds.items():
        figures[name]["cpu_ms_per_source"] = 1e3 * cpu / n_source
    light = {}  # tests zero points and PSFs: bright galaxies that hardly overlap must keep their light
    done = results["deblendrt"][0]
    for b, band in enumerate(batch.survey.available_filters):
        sky = float(sky_variance(batch.survey, [band])[0])
        blendedness = btk.measure.get_blendedness(batch.isolated_images[:, :, b])
        snr = btk.measure.get_snr(batch.isolated_images[:, :, b], sky)
        ratio = [float(table[f"flux_{band}"][j] / batch.isolated_images[k, j, b].sum())
                 for k, table in enumerate(done.catalog_list) for j in range(len(table))
                 if snr[k, j] > 50 and blendedness[k, j] < 0.05]
        light[band] = [float(np.median(ratio)), len(ratio)] if ratio else None
    answer = {"versions": {name: version(name) for name in ("blending_toolkit", "galsim", "numpy", "astropy")},
              "n_blend": batch.batch_size, "n_source": n_source, "figures": figures, "missing": missing,
              "bright_flux_ratio": light, "faults": faults(batch)}
    Path(answered).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
