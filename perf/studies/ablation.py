"""The parts of the flux error: a table in which every row changes one thing.

    python -m perf.studies.ablation

The table leads from the noise floor, where all true profiles are known, to the engine's answer. It shows how much the
basis, the decoder, the prior, the start, the centres and the descent each add, and which error the reported posterior
expects. Scenes are those of `perf.scenes`, metrics those of `perf.metrics`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine import deblender as engine_deblender
from deblendrt.engine.compute import decoding, drawing
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.model.networks import Runtime
from deblendrt.engine.solve import constants, curvature, descent, objective, start, unlisted
from perf import metrics, report, scenes, study
from perf.studies.accuracy import measures
from perf.studies.accuracy.measures import SHAPE_BAND
from perf.studies.accuracy.uncertainty import MIN_SNR

FloatArray = NDArray[np.float64]

N_SCENE = 80  # of 200 scenes: they take 12 minutes of one core
TRIED = report.RESULTS / "ablation_tried.md"  # written by hand
PULL_BAND = measures.REFERENCE_BAND
# For the decoder's best fit galaxies get this SNR, or at most ten times their own, so that the prior hardly counts.
# Descents at a far higher SNR do not converge.
FITTED_SNR, FITTED_GAIN = 300.0, 10.0
KNOWN_CENTER = 0.02  # pixel
COLUMNS = {
    "flux_error_r": "flux error r", "flux_error_i": "flux error i", "snr_10_20": "r, SNR 10-20",
    "blended": "r, blendedness > 0.3", "color_error": "abs d(g-r) [mag]", "cosine": "cosine r",
    "bias": "bias r, SNR > 20", "pull_std": "pull std i", "beyond_3": "beyond 3", "expected": "expected flux error r",
    "ms_per_source": "ms per source",
}


@dataclasses.dataclass(frozen=True)
class Fluxes:
    """Fluxes behind a row of the table; one entry for each source.

    Attributes
    ----------
    flux, error : float64 (n_source, n_band) [nJy]
    cosine : float64 (n_source,)
    seconds : float
        NaN if no engine ran.
    """

    flux: FloatArray
    error: FloatArray
    cosine: FloatArray
    seconds: float = float("nan")


class NormalPrior:
    """A runtime whose prior is N(0, 1) in every shape latent, instead of the flow.

    Parameters
    ----------
    runtime : Runtime
    n_shape : int
    """

    def __init__(self, runtime: Runtime, n_shape: int) -> None:
        self._runtime, self._n_shape = runtime, n_shape

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def log_prior(self, latent: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `Runtime.log_prior`."""
        gradient = np.zeros(latent.shape, np.float32)
        gradient[:, -self._n_shape :] = -latent[:, -self._n_shape :]
        return -0.5 * (gradient**2).sum(1), gradient


def known_profiles(tests: scenes.SceneSet, profiles: Callable[[int, Any], NDArray[np.floating]]) -> Fluxes:
    """Joint linear fluxes with given profiles.

    Parameters
    ----------
    tests : SceneSet
    profiles : callable
        Scene number and scene to images of unit total flux, float (n_source, n_band, n_y, n_x).
    """
    fluxes, errors, cosines = [], [], []
    r = tests.bands.index(SHAPE_BAND)
    for k, scene in enumerate(tests):
        images = profiles(k, scene)
        one = np.ones(len(images))
        solved = [metrics.noise_floor(y, v, images[:, b], one)
                  for b, (y, v) in enumerate(zip(scene.image, scene.variance, strict=True))]
        fluxes.append(np.stack([flux for flux, _ in solved], 1))
        errors.append(np.stack([error for _, error in solved], 1))
        cosines.append(metrics.cosine(images[:, r], scene.truth[:, r]))
    return Fluxes(np.concatenate(fluxes), np.concatenate(errors), np.concatenate(cosines))


def drawn(folded: FoldedBasis, unit: NDArray[np.float32], centers: FloatArray,
          shape: tuple[int, int]) -> NDArray[np.float32]:
    """Images of coefficients, with outskirts, float32 (n_source, n_band, n_y, n_x)."""
    reach = folded.half + folded.margin
    corners = np.rint(centers).astype(int) - reach
    return np.stack([metrics.place(stamp, (x, y), shape) for stamp, (x, y) in
                     zip(drawing.extended_stamps(unit, folded), corners.tolist(), strict=True)])


def projected(deblender: Deblender, folded: FoldedBasis, scene: Any) -> NDArray[np.float32]:
    """True profiles, projected on the basis: least squares over the core of the stamp, unit total flux."""
    sums = deblender.bundle.full_basis.sum((1, 2), dtype=np.float64)
    unit = np.empty((len(scene.truth), folded.n_band, folded.n_basis))
    for i, (truth, center) in enumerate(zip(scene.truth, scene.centers, strict=True)):
        stamp = metrics.stamp(truth, center, folded.window).reshape(folded.n_band, -1, 1).astype(np.float64)
        products = folded.phi.astype(np.float64) @ stamp
        unit[i] = np.linalg.solve(folded.gram.astype(np.float64), products)[:, :, 0]
        unit[i] /= (unit[i] @ sums)[:, None]
    return drawn(folded, unit.astype(np.float32), scene.centers, scene.truth.shape[2:])


def fit_alone(deblender: Deblender, tests: scenes.SceneSet, snr: FloatArray) -> Any:
    """Fit every galaxy alone and without noise: the decoder's best fits, and latents of the truth."""
    images, centers, variance = [], [], []
    gain = np.clip(FITTED_SNR / snr[:, tests.bands.index(SHAPE_BAND)], 1.0, FITTED_GAIN)
    for scene in tests:
        for truth, center in zip(scene.truth, scene.centers, strict=True):
            variance.append(scene.variance / gain[len(images)] ** 2)
            images.append(truth)
            centers.append(center[None])
    return deblender.deblend_batch(images, centers, variance=variance, psf=tests.psf, bands=tests.bands,
                                   center_sigma=KNOWN_CENTER, robust=False)


def deblended(deblender: Deblender, tests: scenes.SceneSet, **options: Any) -> Fluxes:
    """Fluxes of the engine with some options."""
    given = tests.given()
    begin = time.process_time()
    result = deblender.deblend_batch(**given, **options)
    seconds = time.process_time() - begin
    cosines = []
    r, first = tests.bands.index(SHAPE_BAND), 0
    for scene in tests:
        for i, truth in enumerate(scene.truth[:, r], first):
            stamp, corner = result.stamps(i)
            cosines.append(float(metrics.cosine(metrics.place(stamp[r], corner, truth.shape), truth)))
        first += len(scene.truth)
    return Fluxes(result.flux, result.flux_err, np.array(cosines), seconds)


@contextlib.contextmanager
def start_at(latents: FloatArray) -> Iterator[None]:
    """Start the descents at given latents, without tempering. Problems must come once, in the order of the sources."""
    done = 0

    def given(problem: Problem, _: str) -> tuple[Problem, FloatArray, FloatArray]:
        nonlocal done
        problem, latent, floor = start.start_latents(problem, "linear")
        n_band = problem.n_band
        here = latents[done : done + len(latent)]
        done += len(latent)
        latent[:, :n_band] = np.maximum(here[:, :n_band], floor)
        latent[:, n_band + 2 :] = here[:, n_band + 2 :]
        coefficients = decoding.decode(problem, latent)
        problem = dataclasses.replace(problem, extent=start.extents(problem, coefficients))
        return start.find_blends(problem, start.light_radius(problem, coefficients)), latent, floor

    with mock.patch.object(engine_deblender, "start_latents", given), \
            mock.patch.object(objective, "temper", return_value=0.0), \
            mock.patch.object(unlisted, "peaks", return_value=[]):
        yield
    if done != len(latents):
        raise RuntimeError(f"{done} of {len(latents)} sources were fitted")


@contextlib.contextmanager
def without_outskirts() -> Iterator[None]:
    """Draw every source in its core stamp."""
    def none(problem: Problem, coefficients: FloatArray) -> NDArray[np.int8]:
        return np.minimum(curvature.extents(problem, coefficients), 0)

    with mock.patch.object(start, "extents", none), mock.patch.object(descent, "extents", none):
        yield


def expected_median(sigma: FloatArray) -> float:
    """Median of |error| if each error is Gaussian with its own standard deviation.

    It is the x at which erf(x / sigma sqrt 2) is 1/2 on average. If sigmas spread it is below 0.67 times their median.

    Parameters
    ----------
    sigma : float64 (n,)
        Positive.
    """
    low, high = 0.0, 10 * float(np.max(sigma))
    for _ in range(50):
        middle = 0.5 * (low + high)
        inside = np.mean([math.erf(x) for x in middle / (np.sqrt(2) * sigma)])
        low, high = (middle, high) if inside < 0.5 else (low, middle)
    return 0.5 * (low + high)


def row(found: Fluxes, true: FloatArray, snr: FloatArray, blended: FloatArray,
        bands: tuple[str, ...]) -> dict[str, float]:
    """Figures of a row of the table, with the keys of `COLUMNS`."""
    r, i = bands.index(SHAPE_BAND), bands.index(PULL_BAND)
    error = np.abs(found.flux / true - 1)
    pulls = metrics.pull_summary(((found.flux - true) / found.error)[snr[:, i] > MIN_SNR, i])
    return {
        "flux_error_r": report.median(error[:, r]), "flux_error_i": report.median(error[:, i]),
        "snr_10_20": report.median(error[(snr[:, r] >= 10) & (snr[:, r] < 20), r]),
        "blended": report.median(error[blended > 0.3, r]),
        "color_error": report.median(metrics.color_error(found.flux, true, bands.index("g"), r)),
        "cosine": report.median(found.cosine), "bias": report.median((found.flux / true - 1)[snr[:, r] > 20, r]),
        "pull_std": pulls["standard_deviation"], "beyond_3": pulls["beyond_3"],
        "expected": expected_median((found.error / true)[:, r]),
        "ms_per_source": 1e3 * found.seconds / len(true)}


def measure(bundle: str, tests: scenes.SceneSet) -> dict[str, Any]:
    """Measure every row of the table."""
    deblender = Deblender.load(bundle)
    folded = deblender.fold(np.asarray(tests.psf, np.float64))
    known, true = measures.truth_columns(tests), tests.joined("flux")
    snr, blended = known["snr"], known["blendedness"][:, tests.bands.index(SHAPE_BAND)]
    first = np.concatenate([[0], np.cumsum([len(flux) for flux in tests.every("flux")])])
    alone = fit_alone(deblender, tests, snr)
    unit = (alone.coefficients / alone.map_flux[:, :, None]).astype(np.float32)
    truth = alone.latent.astype(np.float64)
    truth[:, : len(tests.bands)] = np.log(true)
    bundle_normal = dataclasses.replace(deblender.bundle, prior_curvature=np.eye(deblender.bundle.n_shape))
    normal = Deblender(bundle_normal, NormalPrior(deblender.runtime, deblender.bundle.n_shape))
    run = functools.partial(deblended, deblender, tests)
    rows: dict[str, Callable[[], Fluxes]] = {
        "true profiles (noise floor)": lambda: known_profiles(
            tests, lambda _, scene: scene.truth / scene.flux[:, :, None, None]),
        "true profiles, on the basis": lambda: known_profiles(
            tests, lambda _, scene: projected(deblender, folded, scene)),
        "profiles of the decoder's best fit": lambda: known_profiles(
            tests, lambda k, scene: drawn(folded, unit[first[k] : first[k + 1]], scene.centers, scene.truth.shape[2:])),
        "started at the truth": lambda: run(),
        "default": lambda: run(),
        "one encoding": lambda: run(),
        "no further iterations for moving blends": lambda: run(),
        "neither": lambda: run(),
        "no search for unlisted sources": lambda: run(),
        "linear start": lambda: run(start="linear"),
        "N(0, 1) prior instead of the flow": lambda: deblended(normal, tests),
        "centres known to 0.03 pixel": lambda: run(center_sigma=0.03),
        "centres known to 0.4 pixel": lambda: run(center_sigma=0.4),
        "plain chi2": lambda: run(robust=False),
        "without outskirts": lambda: run(),
        "5 iterations": lambda: run(n_iteration=5),
        "10 iterations": lambda: run(n_iteration=10),
        "30 iterations": lambda: run(n_iteration=30),
    }
    one = mock.patch.object(constants, "ENCODINGS", 1)
    no_further = mock.patch.object(constants, "FURTHER_ROUNDS", ())
    changed: dict[str, tuple[contextlib.AbstractContextManager[Any], ...]] = {
        "started at the truth": (start_at(truth),), "one encoding": (one,),
        "no further iterations for moving blends": (no_further,), "neither": (one, no_further),
        "no search for unlisted sources": (mock.patch.object(unlisted, "peaks", return_value=[]),),
        "without outskirts": (without_outskirts(),)}
    table = {}
    for name, make in rows.items():
        with contextlib.ExitStack() as stack:
            for change in changed.get(name, ()):
                stack.enter_context(change)
            table[name] = row(make(), true, snr, blended, tests.bands)
        print(f"{name}: {table[name]['flux_error_r']:.4f}", file=sys.stderr)
    return {"bundle": bundle, "n_scene": len(tests), "n_source": len(true), "scenes_sha256": tests.sha256,
            "rows": table, "environment": report.environment()}


def markdown(figures: dict[str, Any]) -> str:
    """The page, in markdown."""
    def cell(name: str, value: float) -> str:
        if name == "bias":
            return "–" if np.isnan(value) else f"{100 * value:+.2f}%"
        if name == "beyond_3":
            return report.percent(value)
        return report.width(value) if name in ("pull_std", "ms_per_source") else report.number(value)

    rows = figures["rows"]
    table = report.markdown_table(["", *COLUMNS.values()], [[name, *(cell(c, values[c]) for c in COLUMNS)]
                                                            for name, values in rows.items()])
    default = rows["default"]
    parts = [
        f"# Where the flux error of {figures['bundle']} comes from",
        f"{figures['n_scene']} scenes, {figures['n_source']} galaxies, scenes sha256 `{figures['scenes_sha256']}`. "
        f"Made by `{figures['command']}`. Every row changes one thing of the default. The first three rows solve for "
        "fluxes only, with given profiles. Errors are medians; pulls are of all sources above "
        f"SNR {MIN_SNR:g}, trusted or not. *Expected* is the median error if reported errors are right and Gaussian; "
        "times are the processor's.", table,
        f"The posterior expects a flux error of {report.number(default['expected'])} in r and the engine's is "
        f"{report.number(default['flux_error_r'])}; the floor's are "
        f"{report.number(rows['true profiles (noise floor)']['expected'])} and "
        f"{report.number(rows['true profiles (noise floor)']['flux_error_r'])}."]
    if TRIED.exists():
        parts.append(TRIED.read_text().strip())
    return "\n\n".join([*parts, f"{report.machine(figures['environment'])}; {figures['seconds']:.0f} s."]) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the study."""
    parser = study.parser("perf.studies.ablation", __doc__, n_scene=N_SCENE)
    args = parser.parse_args(argv)
    begin = time.perf_counter()
    figures = measure(args.bundle, scenes.load_scenes(args.cache, args.n_scene))
    figures |= {"command": study.command(parser, args), "seconds": time.perf_counter() - begin}
    study.store(args.out, "ablation", figures, markdown(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
