"""Deblend the test scenes with both solvers, and compare fluxes, images and errors with the truth."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import galsim
import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.measure import apertures
from deblendrt.engine.scene.flags import UNTRUSTED, Flag
from deblendrt.engine.solve import constants
from deblendrt.training.simulation import blend_scenes, components, population
from perf import metrics, report, scenes
from perf.studies.accuracy import uncertainty

FloatArray = NDArray[np.float64]
SOLVERS = constants.ITERATIONS
SHAPE_BAND = "r"  # for SNR, blendedness, cosine and SSIM
REFERENCE_BAND = "i"  # for pulls by SNR and blendedness, and for moments
APERTURE_STAMP = 11  # pixel, holds the aperture
REFERENCE_STAMP = 101  # pixel, for adaptive moments
PIXEL_SCALE = scenes.RECIPE["survey"]["pixel_scale"]
JITTER_SEED = 3
COLOR_BANDS = (("g", "r"), ("r", "i"))


def truth_columns(tests: scenes.SceneSet) -> dict[str, Any]:
    """SNR and blendedness in each band, noise floor and distance of the nearest neighbour of each source [arcsec]."""
    bands = range(len(tests.bands))
    columns: dict[str, list[FloatArray]] = {"snr": [], "blendedness": [], "floor": [], "nearest": []}
    for scene in tests:
        truth, flux = scene.truth, scene.flux
        columns["snr"].append(np.stack(
            [flux[:, b] / metrics.isolated_error(truth[:, b], flux[:, b], tests.sky_sigma[b], tests.counts_per_njy[b])
             for b in bands], 1))
        columns["blendedness"].append(np.stack([metrics.blendedness(truth[:, b]) for b in bands], 1))
        columns["floor"].append(np.stack(
            [metrics.noise_floor(scene.image[b], scene.variance[b], truth[:, b], flux[:, b])[0] for b in bands], 1))
        distance = np.hypot(*(scene.centers[:, None] - scene.centers).transpose(2, 0, 1))
        columns["nearest"].append(np.where(distance > 0, distance, np.inf).min(1) * PIXEL_SCALE)
    return {name: np.concatenate(values) for name, values in columns.items()}


def drawn_galaxies(tests: scenes.SceneSet) -> population.Galaxies:
    """The galaxies of the scenes' sources, found as `scenes.make_scene` draws them: their number, then their rows."""
    pool = scenes.sky()[0]
    rows = []
    for k in range(len(tests)):
        rng = np.random.default_rng([scenes.SEED, 2, k])
        low, high = scenes.RECIPE["n_source"]
        rows.append(rng.choice(len(pool), int(rng.integers(low, high + 1)), replace=False))
    galaxies = pool[np.concatenate(rows)]
    if not np.allclose(galaxies.flux, tests.joined("flux"), rtol=1e-9):
        raise RuntimeError(f"{tests.path}: its galaxies are not those that perf.scenes draws; delete it")
    return galaxies


def reference_truth(galaxies: population.Galaxies, centers: FloatArray, band: int,
                    psf_sigma: float) -> dict[str, FloatArray]:
    """True aperture fluxes and ellipticities, from the galaxies drawn again under the reference PSF.

    Parameters
    ----------
    galaxies : Galaxies
    centers : float64 (n, 2) [pixel]
    band : int
        Index of the band of the ellipticity.
    psf_sigma : float [pixel]

    Returns
    -------
    dict
        ``aperture_flux`` float64 (n, n_band) [nJy] and ``ellipticity`` float64 (n, 2), by GalSim's adaptive moments;
        NaN where those fail.
    """
    offsets = centers - np.rint(centers)
    circle = apertures.circle((REFERENCE_STAMP, REFERENCE_STAMP), offsets + REFERENCE_STAMP // 2,
                              metrics.APERTURE_DIAMETER / 2 / PIXEL_SCALE)
    aperture_flux, ellipticity = np.zeros_like(galaxies.flux), np.full((len(galaxies), 2), np.nan)
    for i, (offset, inside) in enumerate(zip(offsets, circle, strict=True)):
        light = np.zeros((REFERENCE_STAMP, REFERENCE_STAMP))
        for component, flux in zip(galaxies.components, galaxies[i : i + 1].component_flux[0], strict=True):
            if flux.max() <= blend_scenes.NEGLIGIBLE * galaxies.flux[i].max():
                continue
            drawn = components.component_map(galaxies, i, component, REFERENCE_STAMP, PIXEL_SCALE, psf_sigma,
                                             tuple(offset))
            aperture_flux[i] += flux * (inside * drawn).sum()
            light += flux[band] * drawn
        found = galsim.hsm.FindAdaptiveMom(galsim.Image(light / light.sum()), strict=False)
        if found.moments_status == 0:
            ellipticity[i] = found.observed_shape.e1, found.observed_shape.e2
    return {"aperture_flux": aperture_flux, "ellipticity": ellipticity}


def flux_columns(flux: FloatArray, true_flux: FloatArray, bands: tuple[str, ...]) -> dict[str, FloatArray]:
    """Flux and colour errors of every source."""
    columns = {f"flux_error_{b}": np.abs(flux[:, bands.index(b)] / true_flux[:, bands.index(b)] - 1)
               for b in report.FLUX_BANDS}
    columns["color_error"] = metrics.color_error(flux, true_flux, bands.index("g"), bands.index("r"))
    return columns


def image_columns(result: Any, tests: scenes.SceneSet) -> dict[str, FloatArray]:
    """Aperture errors, cosine and SSIM of every source's model image."""
    r, radius = tests.bands.index(SHAPE_BAND), metrics.APERTURE_DIAMETER / 2 / PIXEL_SCALE
    values: dict[str, list[float]] = {name: [] for name in ("aperture_error_r", "aperture_error_i", "cosine", "ssim")}
    i_source = 0
    for scene in tests:
        for truth, center in zip(scene.truth, scene.centers, strict=True):
            stamp, corner = result.stamps(i_source)
            model = metrics.place(stamp, corner, truth.shape[1:])
            near = metrics.stamp(model, center, APERTURE_STAMP), metrics.stamp(truth, center, APERTURE_STAMP)
            weights = metrics.aperture_weights((APERTURE_STAMP, APERTURE_STAMP),
                                               center - np.rint(center) + APERTURE_STAMP // 2, radius)
            for b in report.FLUX_BANDS:
                measured, true = ((weights * image[tests.bands.index(b)]).sum() for image in near)
                values[f"aperture_error_{b}"].append(abs(float(measured / true) - 1))
            values["cosine"].append(float(metrics.cosine(model[r], truth[r])))
            values["ssim"].append(metrics.ssim(metrics.stamp(model[r], center), metrics.stamp(truth[r], center)))
            i_source += 1
    return {name: np.array(v) for name, v in values.items()}


def run_solver(deblender: Deblender, tests: scenes.SceneSet, solver: str, robust: bool) -> tuple[Any, dict[str, Any]]:
    """Deblend every scene in one call on one thread; also return wall time and peak memory of the process."""
    n_iteration = SOLVERS[solver]
    given = tests.given()
    start = time.perf_counter()
    result = deblender.deblend_batch(**given, solver=solver, n_iteration=n_iteration, robust=robust, n_threads=1)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    return result, {"n_iteration": n_iteration, "seconds": seconds, "ms_per_source": 1e3 * seconds / len(result.flux),
                    "peak_memory_mb": peak}


def summarise(columns: dict[str, FloatArray], snr: FloatArray, blendedness: FloatArray) -> dict[str, Any]:
    """Medians over all sources, per SNR and per blendedness."""
    return {"all": {name: report.median(values) for name, values in columns.items()},
            "blendedness_above_0.3": {name: report.median(values[blendedness > 0.3])
                                      for name, values in columns.items()},
            "by_snr": report.binned(columns, snr, report.SNR_EDGES),
            "by_blendedness": report.binned(columns, blendedness, report.BLENDEDNESS_EDGES)}


def compare_objectives(first: Any, second: Any) -> dict[str, float]:
    """How often the first solver ends at a lower objective than the second, and the difference per source."""
    n_source = np.diff(first.source_start)
    difference = (first.objective - second.objective) / n_source
    return {"fraction_of_scenes_lower": float((difference < 0).mean()),
            "median_difference_per_source": float(np.median(difference)),
            "percentile_5_per_source": float(np.percentile(difference, 5)),
            "percentile_95_per_source": float(np.percentile(difference, 95))}


def jittered(deblender: Deblender, tests: scenes.SceneSet) -> tuple[Any, FloatArray]:
    """Deblend with errors in the given centres, and otherwise default settings; also return the given centres."""
    rng = np.random.default_rng([scenes.SEED, JITTER_SEED])
    given = tests.given()
    given["centers"] = [c + uncertainty.CENTER_SIGMA * rng.standard_normal(c.shape) for c in given["centers"]]
    result = deblender.deblend_batch(**given, center_sigma=uncertainty.CENTER_SIGMA)
    return result, np.concatenate(given["centers"])


def calibrate(deblender: Deblender, tests: scenes.SceneSet, solver: str, result: Any,
              truth: dict[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[uncertainty.Pulls, Any]]]:
    """Compare every reported error with the truth; also return the pulls, for the figure."""
    bands = tests.bands
    i = bands.index(REFERENCE_BAND)
    flux, centers = tests.joined("flux"), tests.joined("centers")
    galaxies = drawn_galaxies(tests)
    reference = reference_truth(galaxies, centers, i, deblender.bundle.reference_psf_sigma)
    moved, given = jittered(deblender, tests)
    snr, snr_i = truth["snr"], truth["snr"][:, i : i + 1]
    good, moved_good = result.trusted, moved.trusted
    axes = ("x", "y")
    quantities = {
        "Flux": (uncertainty.pulls(bands, result.flux, result.flux_err, flux, snr), good),
        "Flux, redistributed": (uncertainty.pulls(bands, result.redistributed_flux, result.redistributed_flux_err,
                                                  flux, snr), good),
        "Flux in an aperture": (uncertainty.pulls(bands, result.aperture_flux, result.aperture_flux_err,
                                                  reference["aperture_flux"], snr), good),
        "Colour": (_color_pulls(result, flux, snr), good),
        "Position, errors in the given centres": (uncertainty.pulls(axes, moved.position, moved.position_err, centers,
                                                                    snr_i), moved_good),
        "Flux, errors in the given centres": (uncertainty.pulls(bands, moved.flux, moved.flux_err, flux, snr),
                                              moved_good),
        "Ellipticity": (uncertainty.pulls(("e1", "e2"), result.ellipticity, result.ellipticity_err,
                                          reference["ellipticity"], snr_i), good),
    }
    pull_i = quantities["Flux"][0].pull[:, i]
    share = galaxies.bulge_fraction
    radius = share * galaxies.bulge_half_light_radius + (1 - share) * galaxies.disk_half_light_radius
    largest = np.concatenate([np.full(stop - start, radius[start:stop].max()) for start, stop in
                              zip(result.source_start[:-1], result.source_start[1:], strict=True)])
    properties = dict(zip(uncertainty.GROUP_EDGES, (snr[:, i], truth["blendedness"][:, i], radius, share,
                                                    truth["nearest"], largest), strict=True))
    before, after = given - centers, moved.position - centers
    every = (result.flux[:, i] - flux[:, i]) / result.flux_err[:, i]
    found = {
        "solver": solver, "min_snr": uncertainty.MIN_SNR, "n_source": len(good), "n_trusted": int(good.sum()),
        "untrusted": [flag.name for flag in Flag if flag & UNTRUSTED],
        "notes": {**NOTES, "Position, errors in the given centres": _position_note(before, after, moved_good)},
        "quantities": uncertainty.summaries(quantities),
        "by_snr": uncertainty.in_bins(every, good, snr[:, i], report.SNR_EDGES),
        "by_blendedness": uncertainty.in_bins(pull_i, good, truth["blendedness"][:, i], report.BLENDEDNESS_EDGES),
        "by_flag": uncertainty.by_flag(pull_i, result.flags),
        "worst_all": uncertainty.worst_groups(pull_i, properties),
        "worst_trusted": uncertainty.worst_groups(np.where(good, pull_i, np.nan), properties)}
    return found, quantities


NOTES = {
    "Flux, redistributed": "Its error is the noise of the shared pixels, plus the part of the model flux's error "
                           "that is due to the shapes.",
    "Flux in an aperture": "The truth is drawn again under the reference PSF.",
    "Ellipticity": "The truth is GalSim's adaptive moments of the galaxy drawn again under the reference PSF.",
}


def _color_pulls(result: Any, flux: FloatArray, snr: FloatArray) -> uncertainty.Pulls:
    """Pulls of g - r and r - i, for sources above the SNR in both bands."""
    columns = []
    for blue, red in COLOR_BANDS:
        a, b = result.bands.index(blue), result.bands.index(red)
        color, error = result.color(blue, red)
        true = -2.5 * np.log10(flux[:, a] / flux[:, b])
        columns.append(uncertainty.pulls((f"{blue}-{red}",), color[:, None], error[:, None], true[:, None],
                                         snr[:, [a, b]].min(1, keepdims=True)).pull)
    return uncertainty.Pulls(tuple(f"{blue}-{red}" for blue, red in COLOR_BANDS), np.concatenate(columns, 1))


def _position_note(before: FloatArray, after: FloatArray, good: NDArray[np.bool_]) -> str:
    """Errors of the given centres and of the fitted positions, as a sentence."""
    def figures(error: FloatArray) -> str:
        return (f"{np.sqrt(np.nanmean(error**2)):.3f} pixel ({np.sqrt(np.nanmean(error[good] ** 2)):.3f} trusted; "
                f"1.48 times the median absolute error {1.4826 * report.median(np.abs(error).ravel()):.3f})")

    return (f"Errors of the given centres: N(0, {uncertainty.CENTER_SIGMA} pixel) per axis. RMS error per axis before "
            f"{figures(before)}, after {figures(after)}.")


def measure(bundle: str, tests: scenes.SceneSet, solvers: list[str], realisations: bool) -> tuple[dict[str, Any], Any]:
    """Run the solvers and collect every figure; also return the pulls of `calibrate`."""
    truth = truth_columns(tests)
    r = tests.bands.index(SHAPE_BAND)
    snr, blendedness = truth["snr"][:, r], truth["blendedness"][:, r]
    true_flux = tests.joined("flux")
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
        summary[name] = summarise(columns, snr, blendedness)
    summary["noise floor"] = summarise(flux_columns(truth["floor"], true_flux, tests.bands), snr, blendedness)
    both = {"gauss_newton, plain", "adam, plain"} <= set(results)
    objective = compare_objectives(results["gauss_newton, plain"], results["adam, plain"]) if both else None
    calibration, quantities = calibrate(deblender, tests, solvers[0], results[solvers[0]], truth)
    blends = uncertainty.realise(deblender, *scenes.sky()) if realisations else []
    return {"bundle": bundle, "n_scene": len(tests), "n_source": len(true_flux), "scenes_sha256": tests.sha256,
            "solvers": costs, "summary": summary, "objective": objective, "calibration": calibration,
            "realisations": blends, "environment": report.environment()}, quantities
