"""The page and the figure of `perf.studies.shear`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas

from perf.report import machine, markdown_table, percent
from perf.studies.shear.bias import MAGNITUDE_EDGES, MIN_RESOLUTION, SEPARATION_EDGES, Figure

SHEAR_SOURCES = {"isolated": "isolated", "brighter": "blend, the brighter", "fainter": "blend, the fainter"}
WHAT = {"model": "model", "model, PSF removed": "model, PSF removed", "regauss": "regauss, image as it is",
        "regauss, neighbours subtracted": "regauss, neighbours subtracted",
        "regauss, redistributed": "regauss, redistributed image"}
CORRECTED = {"m_corrected": "model, shrinkage corrected", "m_self_calibrated": "model, self-calibrated"}
COLORS = dict(zip(WHAT, ("C0", "C9", "C3", "C2", "C1"), strict=True))
LINEAR = 0.05  # the figure's axis is linear up to this m, and logarithmic beyond
MAGNITUDES = [f"i {low:g} to {high:g}" for low, high in itertools.pairwise(MAGNITUDE_EDGES)]
SEPARATIONS = [f"{low:g} to {high:g} arcsec" for low, high in itertools.pairwise(SEPARATION_EDGES)]


def figure(found: Figure | None, scale: float = 1e3) -> str:
    """Value and error in units of 0.001; a dash if there is none."""
    if found is None or found.n < 2:
        return "–"
    return f"{scale * found.value:+.1f} ± {scale * found.error:.1f}"


def markdown(figures: Mapping[str, Any]) -> str:
    """The markdown page.

    Parameters
    ----------
    figures : mapping
        The contents of ``shear.json``, with `Figure`s.
    """
    biases = figures["biases"]
    isolated = biases["isolated: model"]
    return "\n\n".join([
        "# Response of ellipticities to shear",
        f"{figures['n_galaxy']} bulge and disk galaxies of the training population, i = 20 to 24.5, each at two "
        f"position angles 90 degrees apart under g1 = ±{figures['shear']:g} with the same noise (LSST 10-year depth), "
        "alone and with a neighbour 1 to 3 arcsec away that is 0 to 2 mag fainter. The shear acts on the profiles, not "
        "on positions; both sources of a blend have the same shear; centres are given. m = response / response of the "
        "same measurement on the noiseless isolated galaxy - 1, measured in the i band; errors are the jackknife's "
        f"over galaxies. Made by `{figures['command']}`.",
        "- *Model*: `result.ellipticity`, against the galaxy drawn under the reference PSF (for resolved targets, a "
        f"shear of 0.01 changes that e1 by {isolated['mean_response'].value / 100:.4f}).\n- *Shrinkage corrected*, "
        "*self-calibrated*: see below.\n- *Regauss*: GalSim's HSM on the image, against itself without noise: its own "
        f"method bias is left out.\n- *Resolved*: regauss resolution above {MIN_RESOLUTION:.2f} without noise, "
        f"{figures['n_resolved']} of {figures['n_galaxy']} targets.",
        "![m by magnitude](shear.png)",
        "## Multiplicative bias m [0.001]",
        "Resolved galaxies:", _cases(biases, "resolved"),
        f"Left out because a measurement failed in any of a galaxy's images: {_failed(biases)}.",
        "All sizes (regauss is too noisy on small galaxies to say):",
        _cases(biases, "all sizes", ("model", "model, PSF removed")),
        "Sources that are trusted in every image:",
        _cases(biases, "resolved, trusted"),
        "Change of m by a neighbour, for the same galaxies and noise (the brighter source of the "
        "blend less the isolated galaxy, resolved):",
        _changes(biases),
        "Resolved galaxies by magnitude of the source, and in blends by separation:",
        *(_groups(biases, who, title) for who, title in SHEAR_SOURCES.items()),
        "## Where the model's bias comes from",
        *_explanation(biases),
        "## Additive bias c [0.001, in units of shear]",
        f"*PSF*: change of the mean ellipticity from the round PSF to one of e1 = {figures['psf_ellipticity']:g} (a "
        f"shear of {figures['psf_shear']:.4f}), which was given to the measurement, over the response; the same noise "
        "in both, one galaxy in four. *Leakage*: this change over the PSF's shear. *Round*: mean over both shears "
        "under the round PSF, where noise does not cancel. Resolved galaxies. Regauss by itself, without noise or "
        f"neighbours, has {figure(figures['regauss_leakage'])}.",
        _additive(biases, figures["psf_shear"]),
        "## For whoever measures shear", ADVICE,
        f"{machine(figures['environment'])}; {figures['seconds'] / 60:.1f} minutes of one core."]) + "\n"


ADVICE = """\
- The model's ellipticity is a maximum a posteriori estimate, drawn towards the prior's mean, the more the noisier the
  galaxy. Do not average it as a shear: divide by a response.
- The response can come from simulations of your survey (this page is one, of this depth and this population), or from
  the catalogue itself as above. The latter was tested on this population only, which is the prior's.
- Or use the models to take neighbours away, and measure on the image less the neighbours' models with a method that
  calibrates itself, such as metacalibration. Deblend anew in each of its sheared images: the neighbours' models respond
  to shear too.
- Subtraction leaves the galaxy's own light as observed; redistribution shares it as the models say, so that their
  shrinkage can come with it.
- Not tested: shear that moves positions, neighbours that are not listed, a wrong PSF, galaxies that are not bulge and
  disk, selection by measured quantities, three and more sources."""


def _cases(biases: Mapping[str, Any], group: str, what: Sequence[str] = tuple(WHAT)) -> str:
    """m of a group of galaxies: a row for each measurement, a column for each source."""
    rows = [[WHAT[name], *(figure(biases[f"{who}: {name}"]["m"][group]) if f"{who}: {name}" in biases else "–"
                           for who in SHEAR_SOURCES)] for name in what]
    rows[1:1] = [[label, *(figure(biases[f"{who}: model"][name][group]) for who in SHEAR_SOURCES)]
                 for name, label in CORRECTED.items()]
    return markdown_table(["measurement", *SHEAR_SOURCES.values()], rows)


def _failed(biases: Mapping[str, Any]) -> str:
    """Fractions of failed measurements, as text."""
    found = [(biases[f"{who}: {name}"]["fraction_failed"], f"{label} ({title})") for who, title in SHEAR_SOURCES.items()
             for name, label in WHAT.items() if f"{who}: {name}" in biases]
    return ", ".join(f"{label} {percent(fraction)}" for fraction, label in found if fraction) or "none"


def _groups(biases: Mapping[str, Any], who: str, title: str) -> str:
    """A row for each magnitude and separation, a column for each measurement."""
    what = [name for name in WHAT if f"{who}: {name}" in biases]
    rows = []
    for group in MAGNITUDES + SEPARATIONS:
        model = biases[f"{who}: model"]
        if group not in model["m"] or model["m"][group].n < 2:
            continue
        rows.append([group, str(model["m"][group].n), *(figure(model[name][group]) for name in ("m", *CORRECTED)),
                     *(figure(biases[f"{who}: {name}"]["m"][group]) for name in what[1:])])
    header = [title, "n", "model", *CORRECTED.values(), *(WHAT[name] for name in what[1:])]
    return markdown_table(header, rows)


def _changes(biases: Mapping[str, Any]) -> str:
    found = {label: biases[f"brighter: {what}"] for what, label in WHAT.items() if f"brighter: {what}" in biases}
    return markdown_table(["measurement", "change of m"],
                          [[label, figure(f["m_change"]["resolved"])] for label, f in found.items() if "m_change" in f])


def _explanation(biases: Mapping[str, Any]) -> list[str]:
    titles = {"isolated, no noise": "isolated, image without noise", **SHEAR_SOURCES}
    groups = ("resolved", "all sizes")
    rows = [[title, *(figure(biases[f"{who}: model"][key][group])
                      for key in ("m", "shrinkage", *CORRECTED) for group in groups)]
            for who, title in titles.items()]
    noise = biases["isolated: model"]["m_change"]
    header = [f"{name}, {group}" for name in ("m", "expected", "corrected", "self-calibrated") for group in groups]
    return [
        "The solution is a compromise between the data and what galaxies usually look like, and a shear changes the "
        "data only. For a Gaussian prior of variance s² and a posterior variance v (`ellipticity_err`²) a change of "
        "the true ellipticity by 1 changes the solution by 1 - v / s², so m = -v / s² is *expected*. s² needs no "
        "truth: it is the variance of the measured ellipticities plus the mean v, among galaxies of similar measured "
        "size (quartiles). *Corrected*: the true response times 1 - v / s² in the denominator. *Self-calibrated*: the "
        "response of the fitted model's own image to shear, times 1 - v / s²; it uses nothing that an observer does "
        "not have.",
        markdown_table(["case", *header], rows),
        "The first row has images without noise and the same weights (one galaxy in four): the rest of "
        "the bias comes from the prior and the decoder. Noise changes m, for the same galaxies, by "
        + ", ".join(f"{figure(noise[group])} ({group})" for group in groups) + "."]


def _additive(biases: Mapping[str, Any], psf_shear: float) -> str:
    rows = []
    for who, title in SHEAR_SOURCES.items():
        for what, label in WHAT.items():
            found = biases.get(f"{who}: {what}")
            if found:
                c = found["c_psf"]
                rows.append([title, label, figure(c), figure(c, 100 / psf_shear), figure(found["c_round"])])
    return markdown_table(["case", "measurement", "PSF", "leakage [%]", "round"], rows)


def draw(biases: Mapping[str, Any], path: Path) -> None:
    """Draw m by magnitude, a panel for each source.

    Parameters
    ----------
    biases : mapping
        From `perf.studies.shear.bias.summarise`.
    path : Path
        PNG.
    """
    canvas = Canvas(figsize=(13, 4.6), layout="constrained")
    for axis, (who, title) in zip(canvas.subplots(1, 3, sharey=True), SHEAR_SOURCES.items(), strict=True):
        series = [(what, label, biases[f"{who}: {what}"]["m"]) for what, label in WHAT.items()
                  if f"{who}: {what}" in biases]
        series.insert(1, ("m_self_calibrated", CORRECTED["m_self_calibrated"],
                          biases[f"{who}: model"]["m_self_calibrated"]))
        for k, (what, label, found) in enumerate(series):
            points = [(j + 0.1 * (k - 2), found[group]) for j, group in enumerate(MAGNITUDES) if found[group].n > 1]
            axis.errorbar([x for x, _ in points], [f.value for _, f in points], [f.error for _, f in points],
                          fmt="o", ms=4, lw=1.2, label=label, color=COLORS.get(what, "k"))
        axis.axhline(0, color="k", lw=0.8)
        axis.set_yscale("symlog", linthresh=LINEAR)
        axis.set(title=title, xlabel="i magnitude of the source", ylim=(-1.2, 0.5),
                 yticks=[-1, -0.5, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5])
        axis.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axis.set_xticks(range(len(MAGNITUDES)), [name[2:].replace(" to ", "–") for name in MAGNITUDES], fontsize=8)
        axis.grid(alpha=0.3)
        axis.axhspan(-LINEAR, LINEAR, color="0.95", zorder=0)
    canvas.axes[0].set_ylabel("m, resolved galaxies (linear in the grey band)")
    handles, labels = canvas.axes[1].get_legend_handles_labels()
    canvas.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=len(labels))
    canvas.savefig(path, dpi=100)
