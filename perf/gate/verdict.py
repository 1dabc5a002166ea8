"""The verdict on a candidate: it fails if it is slower beyond doubt, or less accurate than rounding explains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from perf.gate.measure import CLOCKS, CONFIDENCE
from perf.gate.truth import FLUX_BANDS


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """The allowed increase of a figure.

    Attributes
    ----------
    relative, absolute : float
        The limit is base * (1 + relative) + absolute.
    reason : str
    """

    relative: float
    absolute: float
    reason: str

    def limit(self, base: float) -> float:
        """The highest figure that passes."""
        return base + self.relative * abs(base) + self.absolute


# Smaller is better for all of these. Both versions see the same scenes with the same noise, so a version that only
# rounds differently hardly changes the figures. Measured on the short cases of `quick`, by changing the pixels by a
# millionth, twice: medians of flux errors change by up to 0.006 per cent and 0.0007 sigma, of colours by 1e-5 mag,
# model errors by 4e-5, no flag, the objective by 0.0007 a source (0.08 in the patch, where one bright galaxy does not
# converge). Another path to the same objective (8 conjugate-gradient iterations a step instead of 4) changed the median
# of 18 sources by 18% and their mean by 3.5%. So the means decide.
_MEDIAN = Tolerance(0.30, 0, "the median of some tens of sources jumps between them; their mean is the finer test")
_MEAN = Tolerance(0.05, 0.01, "per cent or sigma; another, equally good descent moves it by 3.5%")
ACCURACY = {
    "failed": Tolerance(0, 0, "every source of these scenes can be fitted"),
    "suspect": Tolerance(0, 6.0, "per cent of the sources: one of the 18 of single_stream may lie at a threshold"),
    "model_error": Tolerance(0.02, 0.001, "of the noise; a mean over pixels that rounding can not move"),
    **{f"flux_error{unit}_{band}": _MEDIAN for unit in ("", "_sigma") for band in FLUX_BANDS},
    **{f"mean_flux_error{unit}_{band}": _MEAN for unit in ("", "_sigma") for band in FLUX_BANDS},
    **{f"beyond_3_sigma_{band}": Tolerance(0, 6.0, "per cent of the sources: one of the 18 of single_stream")
       for band in FLUX_BANDS},
    "color_error": _MEDIAN,
    "mean_color_error": Tolerance(0.05, 0.0005, "mag, as the fluxes"),
    "objective": Tolerance(0, 0.3, "L per source; the patch's bright galaxy moves it by 0.08"),
}
# Judged only without times: more work may be faster, and then the time decides
COUNTS = {
    "multiply_adds": Tolerance(0.10, 0, "one blend more or less that goes on iterating, as may happen by rounding"),
    "source_iterations": Tolerance(0.10, 0, "as multiply_adds"),
    "rows_decode_jacobian": Tolerance(0.10, 0, "as multiply_adds"),
    "rows_decode": Tolerance(0.10, 0, "as multiply_adds"),
    "rows_decode_pullback": Tolerance(0.10, 0, "as multiply_adds"),
    "rows_encode": Tolerance(0.10, 0, "as multiply_adds"),
    "rows_log_prior": Tolerance(0.10, 0, "as multiply_adds"),
}
EXTRA = {"peak_bytes": Tolerance(0.10, 2e7, "what an allocator keeps differs by some per cent from run to run")}


def speed(ratio: Mapping[str, Any], slower: float) -> str:
    """Judge the band of a time ratio.

    Parameters
    ----------
    ratio : mapping
        A `Band` as a dict.
    slower : float
        Allowed slowdown, a fraction.

    Returns
    -------
    {"slower", "undecided", "pass"}
        "slower" only if the whole band lies above 1 + `slower` and its confidence is at least `CONFIDENCE`.
    """
    if ratio["high"] <= 1 + slower:
        return "pass"
    return "slower" if ratio["low"] > 1 + slower and ratio["confidence"] >= CONFIDENCE else "undecided"


def worse(base: Mapping[str, Any], candidate: Mapping[str, Any], *, counts: bool) -> Iterator[str]:
    """Yield a line for each figure of a case that is worse than its tolerance.

    Parameters
    ----------
    base, candidate : mapping
        Sides of a case, see `perf/gate/schema.json`.
    counts : bool
        Judge counts, too.
    """
    figures = [({**side["accuracy"], **({} if side["objective"] is None else {"objective": side["objective"]})})
               for side in (base, candidate)]
    tables: list[tuple[Mapping[str, Tolerance], Mapping[str, Any], Mapping[str, Any]]] = [
        (ACCURACY, *figures), (EXTRA, base["extra"], candidate["extra"])]
    if counts:
        tables.append((COUNTS, base["counts"], candidate["counts"]))
    for table, old, new in tables:
        for name, tolerance in table.items():
            if name not in old:
                continue
            if name not in new:
                if table is ACCURACY:
                    yield f"{name}: {old[name]:.6g}, now missing"
            elif not new[name] <= tolerance.limit(old[name]):  # a NaN is worse
                yield (f"{name}: {old[name]:.6g}, now {new[name]:.6g}, allowed {tolerance.limit(old[name]):.6g} "
                       f"({tolerance.reason})")


def judge(record: Mapping[str, Any], slower: float) -> tuple[list[str], list[str]]:
    """Failures of a record, and the times that remain undecided."""
    failed, undecided = [], []
    for name, case in record["cases"].items():
        base, candidate, ratio = case["base"], case["candidate"], case["ratio"]
        if base is None:
            continue
        for clock in CLOCKS if ratio else ():
            found = speed(ratio[clock], slower)
            words = (f"{name}: {clock} {ratio[clock]['median']:.3f} [{ratio[clock]['low']:.3f}, "
                     f"{ratio[clock]['high']:.3f}] of the base's")
            if found == "slower":
                failed.append(f"{words}, allowed {1 + slower:.3g}")
            elif found == "undecided":
                undecided.append(words)
        failed += [f"{name}: {text}" for text in worse(base, candidate, counts=ratio is None)]
    return failed, undecided
