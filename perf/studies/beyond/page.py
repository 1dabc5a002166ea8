"""The page of `perf.studies.beyond`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perf import report

Row = Mapping[str, Any]
UNFIT = 2.0  # times the control's median flux error: a case above it counts as not fitted
WORSE, WIDE, SILENT = 1.25, 1.3, 0.02  # limits of `verdict`

ACCURACY = ("flux_error", "bias", "color_error")
ERRORS = ("width", "beyond_3", "width_trusted", "beyond_3_trusted", "systematic", "width_total", "beyond_3_total",
          "width_total_trusted")
FLAGS = ("untrusted", "poor", "caught", "caught_wrong", "silent", "false_alarm")
LABELS = {
    "flux_error": "flux error", "bias": "bias", "color_error": "abs d(g-r) [mag]", "width": "width",
    "beyond_3": "beyond 3", "width_trusted": "width, trusted", "beyond_3_trusted": "beyond 3, trusted",
    "systematic": "flux_sys_err", "width_total": "width with flux_sys_err", "beyond_3_total": "beyond 3 with it",
    "width_total_trusted": "width with it, trusted", "untrusted": "untrusted", "poor": "POOR_FIT",
    "caught": "caught", "caught_wrong": "caught, off by > 10%", "silent": "wrong and silent",
    "false_alarm": "false alarms",
}
PERCENT = {"flux_error", "bias", "systematic", "beyond_3", "beyond_3_trusted", "beyond_3_total", *FLAGS}
VERDICTS = {
    "same": "Fitted as well as the control",
    "says so": "Fitted less well, and the errors or the flags say so",
    "silent": "Fitted less well, and trusted more often",
}


def verdict(row: Row, control: Row) -> str:
    """Key of `VERDICTS`.

    A case is fitted as well as the control if the median flux error is at most `WORSE` times the control's, and the
    robust width of the pulls, `flux_sys_err` included, at most `WIDE`. A case is silent if the share of sources that
    are off by more than 10% and 3 sigma and trusted exceeds the control's by more than `SILENT`.
    """
    if row["silent"] > control["silent"] + SILENT:
        return "silent"
    same = row["flux_error"] <= WORSE * control["flux_error"] and row["width_total"] <= WIDE
    return "same" if same else "says so"


def markdown(figures: Mapping[str, Any]) -> str:
    """The page, in markdown."""
    cases: Mapping[str, Mapping[str, Any]] = figures["cases"]
    band = figures["band"]
    snr = [name for name in figures["all_cases"] if name.startswith("S/N")]
    parts = [
        f"# Beyond the training set: {figures['bundle']}",
        f"{len(cases)} cases of the same {figures['n_source']} galaxies, i = 19 to 24.5, half of them alone and half "
        f"in blends of four; LSST 10-year noise and seeing. Made by `{figures['command']}` "
        f"({figures['cpu_seconds'] / 60:.0f} minutes of CPU). Fluxes, pulls and S/N are those in {band}. A pull is "
        "(measured - true) / `flux_err`; widths are 1.4826 times the median absolute pull, 1 where errors are right. "
        "*With flux_sys_err*: the denominator is hypot(`flux_err`, `flux_sys_err`). *Untrusted*: not "
        "`result.trusted`. *Caught*: untrusted, of the sources beyond 3 sigma. *Wrong and silent*: trusted, and off by "
        "more than 10% and 3 sigma, of all. *False alarms*: untrusted, of the sources within 3 sigma.",
        "![Examples: data, model, residual in sigma](beyond.png)",
        "## In plain words",
        *_words(cases),
        f"`flux_sys_err`^2 = ({figures['scale']:g} e F)^2 + ({figures['hidden']:g} h)^2 + ({figures['floor']:g} F)^2 "
        "with F the MAP flux, e the relative misfit in the source's own residual and h the light of its model that "
        "lies below the noise, on masked pixels or off the image. Errors that no residual shows are not in it: "
        "outskirts below the noise that differ from the prior's, a wrong background, an unlisted neighbour that the "
        "source's model has absorbed. The three factors and the flag's threshold were chosen on these cases and "
        "galaxies, so the widths below are no independent test of them.",
        "## The cases",
        report.markdown_table(("case", "description"), [(n, str(c["about"])) for n, c in cases.items()]),
        "## All sources",
        *(
            _section(cases, "all", title, keys)
            for title, keys in (("Fluxes and colours", ACCURACY), ("Errors", ERRORS), ("Flags", FLAGS))
        ),
        "## By S/N",
        *(
            _by_snr(cases, snr, title, key)
            for title, key in (
                ("Median flux error", "flux_error"),
                ("Width of the pulls", "width"),
                ("Width with flux_sys_err", "width_total"),
                ("Untrusted", "untrusted"),
                ("Caught", "caught"),
                ("False alarms", "false_alarm"),
            )
        ),
        "## Alone and in blends",
        *(
            _by_snr(cases, ["alone", "blends"], title, key)
            for title, key in (
                ("Median flux error", "flux_error"),
                ("Width with flux_sys_err", "width_total"),
                ("Untrusted", "untrusted"),
                ("Caught", "caught"),
            )
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _value(row: Row, key: str) -> str:
    value = row[key]
    if key == "bias":
        return f"{100 * value:+.2f}%"
    if key in PERCENT:
        return f"{100 * value:.2f}%" if key in ("flux_error", "systematic") else report.percent(value)
    return report.number(value) if key == "color_error" else report.width(value)


def _section(cases: Mapping[str, Any], group: str, title: str, keys: Sequence[str]) -> str:
    rows = [(name, *(_value(case[group], key) for key in keys)) for name, case in cases.items()]
    return f"### {title}\n\n" + report.markdown_table(("case", *(LABELS[key] for key in keys)), rows)


def _by_snr(cases: Mapping[str, Any], names: Sequence[str], title: str, key: str) -> str:
    rows = [(case, *(_value(found[name], key) for name in names)) for case, found in cases.items()]
    first = next(iter(cases.values()))
    header = ("case", *(f"{name} (n = {first[name]['n']})" for name in names))
    return f"### {title}\n\n" + report.markdown_table(header, rows)


def _words(cases: Mapping[str, Any]) -> list[str]:
    """The cases that cannot be fitted, the rule, and a list of cases for each verdict."""
    control = cases["control"]["all"]
    lines: dict[str, list[str]] = {key: [] for key in VERDICTS}
    for name, case in cases.items():
        row = case["all"]
        text = (f"- **{name}**: median flux error {_value(row, 'flux_error')}, bias {_value(row, 'bias')}, width of "
                f"the pulls {_value(row, 'width')}, with `flux_sys_err` {_value(row, 'width_total')}; "
                f"{_value(row, 'untrusted')} untrusted, {_value(row, 'caught')} of those beyond 3 sigma, "
                f"{_value(row, 'silent')} wrong and silent.")
        if name != "control":
            lines[verdict(row, control)].append(text)
    rule = (f"The control has bulge and disk galaxies far brighter than most of the sky's. Its median flux error is "
            f"{_value(control, 'flux_error')}, its width {_value(control, 'width')} ({_value(control, 'width_total')} "
            f"with `flux_sys_err`), {_value(control, 'untrusted')} untrusted, {_value(control, 'silent')} wrong and "
            f"silent. Fitted as well as the control means a median flux error of at most {WORSE} times the control's "
            f"and a width of at most {WIDE} with `flux_sys_err`. Trusted more often means {report.percent(SILENT)} "
            "more sources wrong and silent than in the control.")
    unfit = sorted((name for name, case in cases.items()
                    if case["all"]["flux_error"] > UNFIT * control["flux_error"]),
                   key=lambda name: -cases[name]["all"]["flux_error"])
    first = (f"Cases that cannot be fitted (median flux error above {UNFIT:g} times the control's): "
             + ", ".join(f"{name} ({_value(cases[name]['all'], 'flux_error')})" for name in unfit) + ".")
    return [first, rule, *(f"**{VERDICTS[key]}**\n\n" + "\n".join(found) for key, found in lines.items() if found)]
