"""Beyond the training set: galaxies and data on which the model was not trained. Needs ``deblendrt[train]``.

    python -m perf.studies.beyond

Every case of `departures` has the same 72 galaxies. The study deblends them and compares fluxes and colours with the
truth. It tests whether the errors cover the differences, with and without `flux_sys_err`, and whether the flags mark
them. It writes ``beyond.json``, ``beyond.md`` and ``beyond.png`` into ``perf/results`` and takes four minutes of one
core.
"""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.measure import fit_quality, systematic_error
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import Flag
from perf import metrics, report, study
from perf.studies.beyond import departures, page, plots
from perf.studies.beyond.departures import DEPARTURES, Departure, Field

FloatArray = NDArray[np.float64]
BAND = "r"  # of fluxes, pulls and S/N; every case has this band
BEYOND_SNR_EDGES = (10.0, 50.0, 300.0, np.inf)
WRONG = 0.1  # a larger relative flux error counts as wrong


def deblend(deblender: Deblender, case: Departure, fields: list[Field]) -> DeblendResult:
    """Deblend all scenes of a case in one call."""
    bands = deblender.bundle.bands
    given = [bands.index(b) for b in case.bands or bands]
    return deblender.deblend_batch(
        [f.image[given] for f in fields], [f.centers for f in fields], variance=[f.variance[given] for f in fields],
        mask=[f.mask for f in fields], psf=fields[0].psf[given], bands=[bands[b] for b in given], **case.options)


def columns(result: DeblendResult, fields: list[Field]) -> dict[str, NDArray[Any]]:
    """Errors, pulls and flags of every listed source."""
    listed = (result.flags & int(Flag.FOUND)) == 0
    b, g = result.bands.index(BAND), result.bands.index("g")
    true = np.concatenate([f.flux for f in fields])
    flux, error, systematic = (a[listed, b] for a in (result.flux, result.flux_err, result.flux_sys_err))
    return {
        "relative": flux / true[:, b] - 1,
        "color": metrics.color_error(result.flux[listed], true, g, b),
        "pull": (flux - true[:, b]) / error,
        "pull_total": (flux - true[:, b]) / np.hypot(error, systematic),
        "systematic": systematic / flux,
        "untrusted": ~result.trusted[listed],
        "poor": (result.flags[listed] & int(Flag.POOR_FIT)) != 0,
        "snr": np.concatenate([f.snr for f in fields])[:, b],
        "alone": np.repeat([len(f.flux) == 1 for f in fields], [len(f.flux) for f in fields]),
    }


def summarise(found: dict[str, NDArray[Any]], keep: NDArray[np.bool_]) -> dict[str, Any]:
    """Metrics of a group of sources.

    Returns
    -------
    dict
        ``n``; medians ``flux_error``, ``bias``, ``color_error``, ``systematic``; robust widths ``width``,
        ``width_trusted``, ``width_total``, ``width_total_trusted``; fractions ``beyond_3``, ``beyond_3_trusted``,
        ``beyond_3_total``, ``untrusted``; ``caught`` and ``caught_wrong``, the untrusted fractions of the sources
        beyond 3 and of the sources that are also off by more than `WRONG`; ``silent``, the fraction of sources that are
        wrong and trusted; ``false_alarm``, the untrusted fraction of the sources within 3.
    """
    own = {name: values[keep] for name, values in found.items()}
    good, beyond = ~own["untrusted"], np.abs(own["pull"]) > 3
    wrong = beyond & (np.abs(own["relative"]) > WRONG)

    def share(part: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
        return float(part[of].mean()) if of.any() else float("nan")

    every = np.ones_like(good)
    pulls = {f"width{name}{suffix}": metrics.pull_summary(own[f"pull{name}"][rows])["width"]
             for name in ("", "_total") for suffix, rows in (("", every), ("_trusted", good))}
    return {"n": int(keep.sum()), "flux_error": report.median(np.abs(own["relative"])),
            "bias": report.median(own["relative"]), "color_error": report.median(own["color"]),
            "systematic": report.median(own["systematic"]), **pulls, "beyond_3": share(beyond, every),
            "beyond_3_trusted": share(beyond, good), "beyond_3_total": share(np.abs(own["pull_total"]) > 3, every),
            "untrusted": share(own["untrusted"], every), "poor": share(own["poor"], every),
            "caught": share(own["untrusted"], beyond), "caught_wrong": share(own["untrusted"], wrong),
            "silent": share(wrong & good, every), "false_alarm": share(own["untrusted"], ~beyond)}


def groups(found: dict[str, NDArray[Any]]) -> dict[str, dict[str, Any]]:
    """Summaries of all sources, of isolated sources, of sources in blends, and in bins of S/N."""
    snr, alone = found["snr"], found["alone"]
    chosen = {"all": np.ones_like(alone), "alone": alone, "blends": ~alone}
    chosen |= {f"S/N {report.interval(low, high)}": (snr >= low) & (snr < high)
               for low, high in itertools.pairwise(BEYOND_SNR_EDGES)}
    return {name: summarise(found, keep) for name, keep in chosen.items()}


def measure(bundle: str, scale: float) -> tuple[dict[str, Any], list[plots.Example]]:
    """Run all cases; also return the examples of the figure."""
    deblender = Deblender.load(bundle)
    deblender.warmup(64)
    layouts = departures.layouts(scale)
    shown = plots.scene_of(layouts)
    summary, examples, pooled, seconds = {}, [], [], 0.0
    for case in DEPARTURES:
        fields = [departures.make_field(case, layout) for layout in layouts]
        start = time.process_time()
        result = deblend(deblender, case, fields)
        seconds += time.process_time() - start
        found = columns(result, fields)
        summary[case.name] = {"about": case.about, **groups(found)}
        pooled.append(found)
        if case.name in plots.SHOWN:
            examples.append(plots.example(case.name, result, fields[shown], shown))
        row = summary[case.name]["all"]
        print(f"{case.name}: width {row['width']:.2f}, total {row['width_total']:.2f}, "
              f"untrusted {row['untrusted']:.2f}, caught {row['caught']:.2f}, "
              f"false alarms {row['false_alarm']:.2f}", file=sys.stderr)
    every = {name: np.concatenate([found[name] for found in pooled]) for name in pooled[0]}
    return {
        "bundle": bundle,
        "n_source": len(pooled[0]["snr"]),
        "band": BAND,
        "wrong": WRONG,
        "cases": summary,
        "all_cases": groups(every),
        "scale": systematic_error.SCALE,
        "hidden": systematic_error.HIDDEN,
        "floor": systematic_error.FLOOR,
        "misfit_sigma": fit_quality.MISFIT_SIGMA,
        "deblending_cpu_seconds": seconds,
        "environment": report.environment(),
    }, examples


def main(argv: list[str] | None = None) -> int:
    """Run the study."""
    parser = study.parser("perf.studies.beyond", __doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the scenes, for a quick look")
    args = parser.parse_args(argv)
    figures, examples = measure(args.bundle, args.scale)
    figures |= {"command": study.command(parser, args), "cpu_seconds": time.process_time()}
    study.store(args.out, "beyond", figures, page.markdown(figures))
    plots.draw(examples, args.out / "beyond.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
