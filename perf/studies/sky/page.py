"""The page of the study of real blends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from perf.report import machine, markdown_table, number, percent, width

HEAD = """# Real blends

`{command}` made this page from {n_blend} blends of HSC-COSMOS with {n_peak} peaks, at most 14 each.

*Hidden*: chi2 per pixel that no deblender was given, where the data exceed 5 and 20 sigma; 1 is perfect. Median of the
blends, and all pixels pooled in brackets.

*Injected*: HST galaxies of known flux, S/N 20 to 300, 3 to 9 pixels from a listed source;
median errors in i. Pulls are 1.4826 times the median of |F - F true| / error, 1 is perfect. Choices are made on the
tuning part. The injected galaxies are the same 16 in both parts, so the test part is independent in its blends only.

*Ms a source*: processor time of the runs with hidden pixels, over their listed sources; the same for all deblenders.
*Untrusted*: not `result.trusted`.
"""
LEFT = """## Where it fails

Orange: listed peaks. Green: the largest excess. Grey outlines: pixels that were hidden.

![The ten blends of the largest excess](sky.png)
"""


def _pair(found: Mapping[str, Any], level: int) -> str:
    return f"{width(found[f'median_{level}'])} ({width(found[f'pooled_{level}'])})"


Columns = dict[str, Callable[[Mapping[str, Any]], str]]
PIXELS: Columns = {
    "hidden 4x4 > 5": lambda f: _pair(f["hidden_4"], 5), "> 20": lambda f: _pair(f["hidden_4"], 20),
    "2x2 > 5": lambda f: _pair(f["hidden_2"], 5), "2x2 > 20": lambda f: _pair(f["hidden_2"], 20),
    "error i": lambda f: percent(f["injected"]["error"]),
    "S/N <= 60": lambda f: percent(f["injected"]["error_faint"]),
    "above": lambda f: percent(f["injected"]["error_bright"]), "bias": lambda f: percent(f["injected"]["bias"]),
    "g - i [mag]": lambda f: number(f["injected"]["color_error"]), "ms a source": lambda f: number(f["ms_per_source"]),
}
ERRORS: Columns = {
    "pulls": lambda f: width(f["injected"]["width"]), "beyond 3": lambda f: percent(f["injected"]["beyond_3"]),
    "with flux_sys_err": lambda f: width(f["injected"]["width_total"]),
    "its beyond 3": lambda f: percent(f["injected"]["beyond_3_total"]),
    "color": lambda f: width(f["injected"]["color_width"]),
    "position": lambda f: width(f["injected"]["position_width"]),
    "untrusted": lambda f: percent(f["injected"]["untrusted"]),
    "of these right": lambda f: percent(f["injected"]["untrusted_right"]),
    "trusted, beyond 3": lambda f: percent(f["injected"]["missed"]),
    "POOR_FIT of all": lambda f: percent(f["flags"]["poor_fit"]),
    "NOT_CONVERGED": lambda f: percent(f["flags"]["not_converged"]),
    "either": lambda f: percent(f["flags"]["either"]),
}


def _table(rows: Mapping[str, Mapping[str, Any]], part: str, columns: Columns) -> str:
    return markdown_table(["", *columns], [[name, *(cell(found[part]) for cell in columns.values())]
                                           for name, found in rows.items() if part in found])


def markdown(figures: Mapping[str, Any]) -> str:
    """The page of the study's figures."""
    rows = figures["rows"]
    first = next(iter(rows.values()))
    lines = [HEAD.format(command=figures["command"], n_blend=first["all"]["n_blend"], n_peak=figures["n_peak"])]
    for part in ("all", "tuning", "test"):
        if part in first:
            n_blend, n_injected = first[part]["n_blend"], first[part]["injected"]["n"]
            lines += [f"## {part.capitalize()}: {n_blend} blends, {n_injected} injected\n",
                      _table(rows, part, PIXELS) + "\n"]
            ours = {name: found for name, found in rows.items() if part in found and "flags" in found[part]}
            lines += [_table(ours, part, ERRORS) + "\n"]
    lines += ["Options: " + "; ".join(f"{name}: `{given}`" for name, given in figures["options"].items()) + ".\n"]
    lines += [f"Not run: {name}, {why}.\n" for name, why in figures["missing"].items()]
    if figures["worst"]:
        lines += [LEFT, markdown_table(["blend", "peaks", "chi2 > 5 sigma", "what the model lacks"],
                                       [[str(w["number"]), str(w["n_peak"]), width(w["chi2"]), w["sentence"]]
                                        for w in figures["worst"]]) + "\n"]
    return "\n".join([*lines, f"{machine(figures['environment'])}, GalSim {figures['galsim']}.\n"])
