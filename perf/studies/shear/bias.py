r"""Multiplicative and additive shear bias from paired ellipticities, with jackknife errors.

With e(+), e(-) the first components measured under g1 = +g and -g, the response of a galaxy is
R = (e(+) - e(-)) / (2 g), averaged over its position angles. With R' the response of the noiseless, isolated galaxy to
the same measurement,

    m = sum R / sum R' - 1

over galaxies. Its error is the jackknife's over galaxies. A galaxy that fails in any of its images is left out of both
sums, so failures do not select by shear.

The change from the round to the elliptical PSF, over R', is an additive bias c in units of shear. So is the mean over
+g and -g under the round PSF.

Shrinkage. A maximum a posteriori ellipticity is a weighted mean of the data's and the prior's values. With a Gaussian
prior of variance s^2 and a posterior variance v, a change of the data by 1 changes it by 1 - v / s^2. The variance of
the measured e1 plus the mean v gives s^2 without any truth; it is taken in `N_SIZE` bins of the measured size. Two
corrections of the response in the denominator use this factor:

- corrected: R' times the factor. R' is known from the truth, as from a simulation of galaxies without noise.
- self-calibrated: the response of the fitted model's own image (`shapes.model_response`) times the factor. It needs no
  simulation.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Columns = dict[str, FloatArray]

PLUS, MINUS, ELLIPTICAL = range(3)  # last index of a column
MIN_RESOLUTION = 1 / 3  # of the noiseless galaxy; lensing catalogues leave out galaxies below it
MAGNITUDE_EDGES = (20.0, 22.0, 23.0, 24.0, 24.5, 26.5)
SEPARATION_EDGES = (1.0, 1.5, 2.0, 3.0)  # arcsec
N_SIZE = 4
TRUE = {"isolated, no noise": "true brighter", "isolated": "true brighter", "brighter": "true brighter",
        "fainter": "true fainter"}
MODEL = "model"
# the simpler image of the same galaxy, with the same noise if it has any
SIMPLER = {"brighter": "isolated", "isolated": "isolated, no noise"}


class Figure(NamedTuple):
    """A figure with its error and its number of galaxies."""

    value: float
    error: float
    n: int


def response(plus: FloatArray, minus: FloatArray, shear: float) -> FloatArray:
    """Response of every galaxy.

    Parameters
    ----------
    plus, minus : float64 (n, n_angle)
        First component of the ellipticity under g1 = shear and g1 = -shear; NaN if the measurement failed.
    shear : float

    Returns
    -------
    float64 (n,)
        NaN if any measurement failed.
    """
    return (plus - minus).mean(1) / (2 * shear)


def ratio(numerator: FloatArray, denominator: FloatArray) -> Figure:
    """Ratio of two sums over galaxies, with its jackknife error.

    Parameters
    ----------
    numerator, denominator : float64 (n,)
        NaN in either leaves the galaxy out.
    """
    keep = np.isfinite(numerator) & np.isfinite(denominator)
    a, b = numerator[keep], denominator[keep]
    n = len(a)
    if n < 2:
        return Figure(float("nan"), float("nan"), n)
    without = (a.sum() - a) / (b.sum() - b)
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    return Figure(float(a.sum() / b.sum()), float(error), n)


def multiplicative(measured: FloatArray, true: FloatArray) -> Figure:
    """m, from the responses of galaxies, float64 (n,) each."""
    found = ratio(measured, true)
    return found._replace(value=found.value - 1)


def shrinkage(e1: FloatArray, variance: FloatArray, size: FloatArray) -> FloatArray:
    """Factor by which the prior shrinks a change of each galaxy's ellipticity.

    Parameters
    ----------
    e1 : float64 (n, n_image)
    variance : float64 (n,)
        Variance of the posterior.
    size : float64 (n,)

    Returns
    -------
    float64 (n,)
        NaN if an argument is NaN.
    """
    known = np.isfinite(e1).all(1) & np.isfinite(variance + size)
    factor = np.full(len(e1), np.nan)
    for rows in np.array_split(np.flatnonzero(known)[np.argsort(size[known])], N_SIZE):
        if len(rows):
            factor[rows] = 1 - variance[rows] / (e1[rows].var() + variance[rows].mean())
    return factor


def summarise(columns: Columns, magnitude: FloatArray, separation: FloatArray, shear: float) -> dict[str, Any]:
    """Biases of all measurements.

    Parameters
    ----------
    columns : dict of str to float64 (n, n_angle, 3)
        Columns of the study's `measure`.
    magnitude : float64 (n, 2)
        Magnitudes of target and neighbour in i.
    separation : float64 (n,) [arcsec]
    shear : float

    Returns
    -------
    dict
        For each "<source>: <measurement>": ``m`` by group of galaxies, ``c_psf``, ``c_round``, ``mean_response`` (of
        the truth), ``fraction_failed``; ``m_change`` from the same galaxy in the simpler image of `SIMPLER`, if there
        is one; for the model also ``m_corrected``, ``m_self_calibrated`` and the mean ``shrinkage``.
    """
    found: dict[str, Any] = {}
    for name, values in columns.items():
        who, _, what = name.partition(": ")
        if who not in TRUE or not what.startswith((MODEL, "regauss")) or what.endswith("resolution"):
            continue
        true_name = TRUE[who] + ": " + (what if what.startswith(MODEL) else "regauss")
        true = response(columns[true_name][..., PLUS], columns[true_name][..., MINUS], shear)
        measured = response(values[..., PLUS], values[..., MINUS], shear)
        groups = _groups(columns, who, magnitude, separation)
        keep = groups["resolved"]
        here = {"m": {group: multiplicative(measured[keep], true[keep]) for group, keep in groups.items()},
                "c_psf": ratio((values[..., ELLIPTICAL] - values[..., PLUS]).mean(1)[keep], true[keep]),
                "c_round": ratio(values[..., : MINUS + 1].mean((1, 2))[keep], true[keep]),
                "mean_response": ratio(true[keep], np.ones(keep.sum())),
                "fraction_failed": float((~np.isfinite(measured[keep])).sum() / max(keep.sum(), 1))}
        simpler = columns.get(f"{SIMPLER.get(who)}: {'regauss' if what.endswith('subtracted') else what}")
        if simpler is not None:
            change = measured - response(simpler[..., PLUS], simpler[..., MINUS], shear)
            here["m_change"] = {group: ratio(change[keep], true[keep]) for group, keep in groups.items()}
        if what == MODEL:
            here.update(_corrected(columns, who, measured, true, groups))
        found[name] = here
    return found


def _corrected(columns: Columns, who: str, measured: FloatArray, true: FloatArray,
               groups: dict[str, BoolArray]) -> dict[str, dict[str, Figure]]:
    """Bias of the model after the corrections, and the shrinkage that they use."""
    e1, error, size, own = (columns[f"{who}: {what}"][..., : MINUS + 1]
                            for what in (MODEL, "error", "size", "response"))
    factor = shrinkage(e1.reshape(len(e1), -1), (error**2).mean((1, 2)), size.mean((1, 2)))
    self_calibrated = own.mean((1, 2)) * factor
    return {
        "m_corrected": {g: multiplicative(measured[keep], (true * factor)[keep]) for g, keep in groups.items()},
        "m_self_calibrated": {g: multiplicative(measured[keep], self_calibrated[keep]) for g, keep in groups.items()},
        "shrinkage": {g: multiplicative((true * factor)[keep], true[keep]) for g, keep in groups.items()}}


def noiseless_leakage(columns: Columns, shear: float) -> Figure:
    """c of regauss itself, without noise and neighbours: change from the round to the elliptical PSF."""
    name = "true brighter: regauss"
    values = columns[name]
    keep = resolved(columns, "true brighter")
    true = response(values[..., PLUS], values[..., MINUS], shear)
    return ratio((values[..., ELLIPTICAL] - values[..., PLUS]).mean(1)[keep], true[keep])


def resolved(columns: Columns, true: str) -> BoolArray:
    """Mask of the galaxies that are resolved without noise, bool (n,)."""
    return columns[f"{true}: regauss, resolution"][..., : MINUS + 1].mean((1, 2)) > MIN_RESOLUTION


def _groups(columns: Columns, who: str, magnitude: FloatArray, separation: FloatArray) -> dict[str, BoolArray]:
    """Masks of groups of galaxies. Apart from "all sizes" they hold only resolved galaxies."""
    keep = resolved(columns, TRUE[who])
    own = magnitude[:, int(who == "fainter")]
    trusted = (columns[f"{who}: trusted"][..., : MINUS + 1] == 1).all((1, 2))
    groups = {"resolved": keep, "resolved, trusted": keep & trusted, "all sizes": np.ones_like(keep),
              "all sizes, trusted": trusted}
    for low, high in itertools.pairwise(MAGNITUDE_EDGES):
        groups[f"i {low:g} to {high:g}"] = keep & (own >= low) & (own < high)
    if who in ("brighter", "fainter"):
        for low, high in itertools.pairwise(SEPARATION_EDGES):
            groups[f"{low:g} to {high:g} arcsec"] = keep & (separation >= low) & (separation < high)
    return groups
