"""Accuracy and objective against processor time, for several numbers of iterations.

The scenes are the GalSim test scenes of `perf.scenes`, deblended on one thread with the true positions, variance and
PSF. Errors and times are those of the default, robust likelihood. Objectives come from further runs under the plain
likelihood, which is the same function for every run; the robust bound depends on the model. The gap of a scene is its
objective minus that of a long run of Gauss-Newton, over its number of sources. Descents can end in different minima.
Negative gaps are therefore counted, and enter medians as zero.

`saturation` has the rule for the count at which accuracy stops improving. It uses means of clipped errors, because the
median of some tens of sources jumps from one source to the next. It allows for the scatter of the difference source by
source, because some blends end in other minima that are no worse on the whole.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.solve import constants
from perf import report, scenes
from perf.studies.accuracy import measures

FloatArray = NDArray[np.float64]
ITERATION_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30)
ADAM = (25, 50, 100, 200)
LONG_RUN = 60
N_SCENE = 40
BLENDED = 0.3  # blendedness in r
WITHIN, GAP = 0.02, 0.1  # limits of the rule: fraction of the long run's error, objective per source
ERROR_CLIP = 0.5  # larger errors enter means as this value
NEGATIVE = 1e-3  # gaps below minus this count as negative: rounding in float32 reaches 1e-4
PARTS = ("all", "blended")
AT_ONCE = 10  # scenes
SolverCount = tuple[str, int]  # solver, iterations


def errors(flux: FloatArray, truth: FloatArray, bands: Sequence[str], blended: NDArray[np.bool_]) -> dict[str, Any]:
    """Medians, clipped means and 90th percentiles of |flux / truth - 1| of the sources with a flux.

    Parameters
    ----------
    flux, truth : float64 (n_source, n_band) [nJy]
    bands : sequence of str
    blended : bool (n_source,)

    Returns
    -------
    dict
        For ``all`` and ``blended`` sources: their number ``n``, and by band ``<band>`` the median, ``<band>_mean`` the
        mean of errors clipped at `ERROR_CLIP`, ``<band>_p90`` the percentile.
    """
    found: dict[str, Any] = {}
    for part, chosen in zip(PARTS, (np.ones(len(flux), bool), blended), strict=True):
        found[part] = {"n": int(chosen.sum())}
        for band in report.FLUX_BANDS:
            b = list(bands).index(band)
            error = np.abs(flux[chosen, b] / truth[chosen, b] - 1)
            error = error[np.isfinite(error)]
            found[part][band] = float(np.median(error)) if len(error) else float("nan")
            found[part][f"{band}_mean"] = float(np.minimum(error, ERROR_CLIP).mean()) if len(error) else float("nan")
            found[part][f"{band}_p90"] = float(np.quantile(error, 0.9)) if len(error) else float("nan")
    return found


def excess(flux: FloatArray, long: FloatArray, truth: FloatArray, bands: Sequence[str],
           blended: NDArray[np.bool_]) -> dict[str, Any]:
    """Mean excess of the errors over those of the long run, source by source.

    Parameters
    ----------
    flux, long, truth : float64 (n_source, n_band) [nJy]
    bands : sequence of str
    blended : bool (n_source,)

    Returns
    -------
    dict
        For ``all`` and ``blended`` sources and each band: the mean difference of the errors, clipped at `ERROR_CLIP`,
        and the standard error of that mean; zeros if there is no source.
    """
    found: dict[str, Any] = {}
    for part, chosen in zip(PARTS, (np.ones(len(flux), bool), blended), strict=True):
        found[part] = {}
        for band in report.FLUX_BANDS:
            b = list(bands).index(band)
            new, old = (np.minimum(np.abs(f[chosen, b] / truth[chosen, b] - 1), ERROR_CLIP) for f in (flux, long))
            difference = (new - old)[np.isfinite(new - old)]
            n = len(difference)
            found[part][band] = [float(difference.mean()), float(difference.std() / np.sqrt(n))] if n else [0.0, 0.0]
    return found


def gap(objective: FloatArray, reference: FloatArray, n_source: NDArray[np.int64]) -> dict[str, float]:
    """Gap between the objectives of scenes and those of the long run, per source.

    Parameters
    ----------
    objective, reference : float64 (n_scene,)
    n_source : int64 (n_scene,)

    Returns
    -------
    dict
        ``median`` and ``p90`` over scenes, with negative gaps as zero; ``negative``, the fraction of negative gaps;
        ``least``, the lowest gap.
    """
    each = (objective - reference) / np.maximum(n_source, 1)
    above = np.maximum(each, 0.0)
    return {"median": float(np.median(above)), "p90": float(np.quantile(above, 0.9)),
            "negative": float((each < -NEGATIVE).mean()), "least": float(each.min())}


def saturation(rows: Sequence[Mapping[str, Any]], reference: int, parts: Sequence[str] = PARTS,
               within: float = WITHIN, largest_gap: float = GAP) -> int | None:
    """The first count from which on nothing is left to gain: it and all larger ones are as good as the long run.

    Early counts may be nearer to the truth by chance, in a band or for some sources, and leave it again; the lowest
    error of all counts would be such a chance.

    Parameters
    ----------
    rows : sequence of mapping
        Of one solver, as `measure` makes them; the long run among them.
    reference : int
        Iterations of the long run.
    parts : sequence of str
        Sources whose errors must have arrived.
    within : float
        Fraction by which mean errors, clipped, in r and i may exceed those of the long run, beside one standard error
        of the difference.
    largest_gap : float
        Of the median gap of the objective, per source.

    Returns
    -------
    int or None
        None if no row but the long run's own is that good.
    """
    (long,) = (row for row in rows if row["n_iteration"] == reference)
    first = None
    for row in sorted(rows, key=lambda row: -row["n_iteration"]):
        if row is long:
            continue
        arrived = all(row["excess"][part][band][0] <= within * long["errors"][part][f"{band}_mean"]
                      + row["excess"][part][band][1] for part in parts for band in report.FLUX_BANDS)
        if not arrived or row["gap"]["median"] > largest_gap:
            break
        first = int(row["n_iteration"])
    return first


def measure(tests: scenes.SceneSet, counts: Sequence[int] = ITERATION_COUNTS, adam: Sequence[int] = ADAM,
            reference: int = LONG_RUN, bundle: str = "lsst") -> dict[str, Any]:
    """Run every count, and collect errors, gaps and times.

    Parameters
    ----------
    tests : SceneSet
    counts, adam : sequence of int
        Iterations of Gauss-Newton and of Adam.
    reference : int
        Iterations of the long run, which is a row of the table, too.
    bundle : str

    Returns
    -------
    dict
        Plain values: ``rows``, each with ``descent``, ``n_iteration``, ``ms_per_source`` (processor time of one
        thread), ``errors`` and ``gap``; ``saturation`` by sources; and what the figures belong to.
    """
    truth = tests.joined("flux")
    known = measures.truth_columns(tests)
    blended = known["blendedness"][:, tests.bands.index("r")] > BLENDED
    n_source = np.array([len(centers) for centers in tests.every("centers")])
    deblender = Deblender.load(bundle)
    long = ("gauss_newton", reference)
    entries = [*(("gauss_newton", n) for n in sorted({*counts, reference})), *(("adam", n) for n in sorted(adam))]
    flux: dict[SolverCount, list[FloatArray]] = {entry: [] for entry in entries}
    objective: dict[SolverCount, list[FloatArray]] = {entry: [] for entry in entries}
    seconds = dict.fromkeys(entries, 0.0)
    deblend(deblender, tests.given(range(1)), ("gauss_newton", 1))  # makes sessions and folds the PSF
    for first in range(0, len(tests), AT_ONCE):  # a disturbance of the machine then meets all entries
        numbers = range(first, min(first + AT_ONCE, len(tests)))
        chunk = tests.given(numbers)
        for entry in entries:
            start = time.process_time()
            flux[entry].append(deblend(deblender, chunk, entry).flux)
            seconds[entry] += time.process_time() - start
            objective[entry].append(deblend(deblender, chunk, entry, robust=False).objective)
        print(f"{numbers.stop} scenes", file=sys.stderr, flush=True)
    lowest = np.concatenate(objective[long])
    rows = [{"solver": name, "n_iteration": n_iteration,
             "ms_per_source": 1e3 * seconds[name, n_iteration] / len(truth),
             "errors": errors(np.concatenate(flux[name, n_iteration]), truth, tests.bands, blended),
             "excess": excess(np.concatenate(flux[name, n_iteration]), np.concatenate(flux[long]), truth, tests.bands,
                              blended),
             "gap": gap(np.concatenate(objective[name, n_iteration]), lowest, n_source)}
            for name, n_iteration in entries]
    own = [row for row in rows if row["solver"] == "gauss_newton"]
    return {"n_scene": len(tests), "n_source": len(truth), "scenes_sha256": tests.sha256, "reference": reference,
            "default": constants.ITERATIONS["gauss_newton"], "rows": rows,
            "noise_floor": errors(known["floor"], truth, tests.bands, blended),
            "saturation": {"all": saturation(own, reference, ("all",)),
                           "all and blended": saturation(own, reference)}}


def deblend(deblender: Deblender, scenes_given: Mapping[str, Any], entry: SolverCount, *, robust: bool = True) -> Any:
    """The result of some scenes, in one call on one thread."""
    return deblender.deblend_batch(**scenes_given, solver=entry[0], n_iteration=entry[1], robust=robust)


def table(figures: Mapping[str, Any]) -> str:
    """The rows as a markdown table."""
    columns = (("all", ""), ("blended", ""), ("all", "_mean"), ("blended", "_mean"), ("all", "_p90"))
    header = ["solver", "iterations", "ms per source", "median error r, i", "at blendedness > 0.3",
              f"mean, clipped at {100 * ERROR_CLIP:g}%", "at blendedness > 0.3", "90th percentile", "gap, median",
              "gap, 90th percentile", "negative gaps"]

    def shown(found: Mapping[str, Any]) -> list[str]:
        return [", ".join(percents(found[part][band + end]) for band in report.FLUX_BANDS) for part, end in columns]

    lines = []
    for row in figures["rows"]:
        found = row["gap"]
        negative = f"{report.percent(found['negative'])}, least {found['least']:.2g}" if found["negative"] else "none"
        lines.append([row["solver"], str(row["n_iteration"]), f"{row['ms_per_source']:.1f}", *shown(row["errors"]),
                      report.number(found["median"]), report.number(found["p90"]), negative])
    lines.append(["noise floor", "–", "–", *shown(figures["noise_floor"]), *["–"] * 3])
    return report.markdown_table(header, lines)


def percents(fraction: float) -> str:
    """A fraction in per cent with two decimals; differences between neighbouring counts are small."""
    return f"{100 * fraction:.2f}%"


def verdict(figures: Mapping[str, Any]) -> str:
    """The count at which accuracy stops improving, as a sentence."""
    def count(n: int | None) -> str:
        return "none of the counts" if n is None else f"{n} iterations"

    found, n_blended = figures["saturation"], figures["rows"][0]["errors"]["blended"]["n"]
    return (f"The smallest count from which on all counts are as good as {figures['reference']} iterations: mean flux "
            f"errors in r and i, clipped at {100 * ERROR_CLIP:g}%, are larger by at most {100 * WITHIN:g}% and one "
            "standard error of the difference source by source; the median gap of the objective is at most "
            f"{GAP:g} per source. "
            f"It is {count(found['all'])} over all sources, and {count(found['all and blended'])} if the {n_blended} "
            f"sources at blendedness above {BLENDED:g} must be as good, too. The default is {figures['default']}. At "
            f"any count, blends that still move get up to {sum(constants.FURTHER_ROUNDS):g} times as many iterations "
            "again; the times include them.")
