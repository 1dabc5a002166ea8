"""Tests of the reported errors: pulls and coverage on the test scenes, covariances against noise realisations.

Pulls. (measured - true) / reported error of every quantity with an error, for sources above an SNR of 10. They are
summarised for all sources and for trusted sources; then by SNR, by blendedness, and for
the groups of sources that do worst.

Noise realisations. A few blends of two or three galaxies are simulated without noise and deblended under many
realisations of the noise, each with its own error of the given centres. The sample covariance of the fluxes is compared
with the mean reported covariance. Where the prior decides rather than the data, a maximum a posteriori solution
scatters less than its posterior is wide, and has a bias that is the same in every realisation. Scatter and squared bias
add up to the posterior covariance only over the population. So the RMS error about the truth is given beside the
scatter.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.scene.flags import Flag, trusted
from deblendrt.training.simulation import blend_scenes, population, survey
from perf import metrics, report

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MIN_SNR = 10.0
MIN_GROUP = 15  # sources; the fraction beyond 3 of a smaller group says nothing
N_WORST = 10
GROUP_EDGES: dict[str, tuple[float, ...]] = {
    "SNR": report.SNR_EDGES,
    "blendedness": report.BLENDEDNESS_EDGES,
    "true half-light radius [arcsec]": (0.0, 0.2, 0.4, 0.7, 1.0, 1.5, np.inf),
    "true bulge fraction": (0.0, 0.05, 0.2, 0.5, 0.9, 1.01),
    "nearest neighbour [arcsec]": (0.0, 0.8, 1.2, 1.8, 3.0, np.inf),
    "largest half-light radius of its scene [arcsec]": (0.0, 0.4, 0.7, 1.0, 1.5, np.inf),
}


@dataclasses.dataclass(frozen=True)
class Pulls:
    """Pulls of one quantity.

    Attributes
    ----------
    labels : tuple of str (n_label,)
        Bands, or axes.
    pull : float64 (n_source, n_label)
        NaN for sources that are left out.
    """

    labels: tuple[str, ...]
    pull: FloatArray


def pulls(labels: tuple[str, ...], measured: FloatArray, error: FloatArray, true: FloatArray,
          snr: FloatArray) -> Pulls:
    """Pulls of the sources above `MIN_SNR`.

    Parameters
    ----------
    labels : tuple of str (n_label,)
    measured, error, true : float64 (n_source, n_label)
    snr : float64 (n_source, n_label) or (n_source, 1)
    """
    return Pulls(labels, np.where(snr > MIN_SNR, (measured - true) / error, np.nan))


def summaries(quantities: Mapping[str, tuple[Pulls, BoolArray]]) -> dict[str, dict[str, dict[str, Any]]]:
    """`metrics.pull_summary` by quantity, label and "all" or "trusted" sources.

    Parameters
    ----------
    quantities : mapping of str to (Pulls, bool (n_source,))
        The pulls, and which sources are trusted.
    """
    return {name: {label: {"all": metrics.pull_summary(column), "trusted": metrics.pull_summary(column[good])}
                   for label, column in zip(found.labels, found.pull.T, strict=True)}
            for name, (found, good) in quantities.items()}


def in_bins(pull: FloatArray, good: BoolArray, by: FloatArray, edges: tuple[float, ...]) -> list[dict[str, Any]]:
    """Summaries of a column of pulls in bins, low <= by < high, for all and for trusted sources."""
    rows = []
    for low, high in itertools.pairwise(edges):
        inside = (by >= low) & (by < high)
        rows.append({"low": low, "high": high, "all": metrics.pull_summary(pull[inside]),
                     "trusted": metrics.pull_summary(pull[inside & good])})
    return rows


def by_flag(pull: FloatArray, flags: NDArray[np.int64]) -> dict[str, dict[str, Any]]:
    """Summaries of the sources with each flag that occurs, and of trusted sources."""
    rows = {}
    for flag in Flag:
        having = (flags & int(flag)) != 0
        if np.isfinite(pull[having]).any():
            rows[str(flag.name)] = metrics.pull_summary(pull[having])
    return {**rows, "trusted": metrics.pull_summary(pull[trusted(flags)])}


def worst_groups(pull: FloatArray, properties: Mapping[str, FloatArray]) -> list[dict[str, Any]]:
    """The groups of sources whose pulls lie beyond 3 most often.

    Parameters
    ----------
    pull : float64 (n_source,)
        NaN for a source that is left out.
    properties : mapping of str to float64 (n_source,)
        The keys are those of `GROUP_EDGES`. A group is a bin of a property, or of SNR and blendedness at once, and has
        at least `MIN_GROUP` sources.

    Returns
    -------
    list of dict
        `N_WORST` summaries, the worst first, with ``group`` and ``share``, its part of all pulls beyond 3.
    """
    used = np.isfinite(pull)
    bins: dict[str, list[tuple[str, BoolArray]]] = {}
    for name, values in properties.items():
        bins[name] = [(f"{name} {report.interval(low, high)}", used & (values >= low) & (values < high))
                      for low, high in itertools.pairwise(GROUP_EDGES[name])]
    groups = [group for found in bins.values() for group in found]
    groups += [(f"{a}, {b}", x & y) for (a, x), (b, y) in itertools.product(bins.get("SNR", []),
                                                                           bins.get("blendedness", []))]
    beyond = used & (np.abs(pull) > 3)
    rows = [{"group": name, "share": float(beyond[inside].sum() / max(1, beyond.sum())),
             **metrics.pull_summary(pull[inside])} for name, inside in groups
            if inside.sum() >= MIN_GROUP and (beyond & inside).any()]
    return sorted(rows, key=lambda row: -row["beyond_3"])[:N_WORST]


# --- noise realisations -----------------------------------------------------------------------------------------------

SHAPE = (91, 91)  # pixel
N_REALISATION = 150
SEED = 810_450_238
CENTER_SIGMA = 0.2  # pixel, per axis: error of the given centres, and width of the deblender's prior
# name, i magnitudes, and centres relative to the middle of the image [pixel]
BLENDS: tuple[tuple[str, tuple[float, ...], tuple[tuple[float, float], ...]], ...] = (
    ("pair, 3 pixel", (22.3, 22.9), ((-1.4, 0.3), (1.6, 0.3))),
    ("pair, 5 pixel", (22.3, 22.9), ((-2.4, 0.3), (2.6, 0.3))),
    ("pair, 8 pixel", (22.3, 22.9), ((-3.9, 0.3), (4.1, 0.3))),
    ("pair, 12 pixel", (22.3, 22.9), ((-5.9, 0.3), (6.1, 0.3))),
    ("bright and faint, 5 pixel", (21.0, 23.5), ((-2.1, 1.6), (1.9, -1.4))),
    ("three, 6 pixel", (22.3, 22.9, 23.4), ((-3.0, -1.7), (3.0, -1.7), (0.0, 3.5))),
)
TYPICAL_RADIUS = (0.3, 0.6)  # arcsec, half-light, of the disk
TYPICAL_BULGE = (0.05, 0.3)


def typical(galaxies: population.Galaxies, magnitude: float) -> int:
    """Row of the ordinary disk galaxy that is nearest to an i magnitude."""
    radius, bulge = galaxies.disk_half_light_radius, galaxies.bulge_fraction
    ordinary = ((radius > TYPICAL_RADIUS[0]) & (radius < TYPICAL_RADIUS[1]) & (bulge > TYPICAL_BULGE[0])
                & (bulge < TYPICAL_BULGE[1]))
    return int(np.argmin(np.where(ordinary, np.abs(galaxies.magnitude - magnitude), np.inf)))


def realise(deblender: Any, galaxies: population.Galaxies, psf: survey.Psf, depth: survey.Depth,
            n_realisation: int = N_REALISATION) -> list[dict[str, Any]]:
    """Deblend every blend of `BLENDS` under many realisations of its noise.

    Parameters
    ----------
    deblender : Deblender
    galaxies : Galaxies
        Galaxies of the blends are taken from this pool.
    psf : Psf
    depth : Depth
    n_realisation : int

    Returns
    -------
    list of dict
        `compare_covariance` of each blend, with ``name``, ``separation`` (n_pair,) [pixel] and ``trusted``,
        a fraction.
    """
    rows = []
    for b, (name, magnitudes, places) in enumerate(BLENDS):
        rng = np.random.default_rng([SEED, b])
        middle = (np.array(SHAPE[::-1]) - 1) / 2
        scene = blend_scenes.simulate_scene(galaxies, [typical(galaxies, m) for m in magnitudes], middle + places, psf,
                                        depth, SHAPE, rng, noise=False)
        sigma = np.sqrt(scene.variance)
        images = [scene.image + sigma * rng.standard_normal(sigma.shape, dtype=np.float32)
                  for _ in range(n_realisation)]
        centers = [scene.centers + CENTER_SIGMA * rng.standard_normal(scene.centers.shape) for _ in images]
        result = deblender.deblend_batch(images, centers, variance=[scene.variance] * n_realisation, psf=psf.image,
                                         bands=depth.bands, center_sigma=CENTER_SIGMA)
        m = len(magnitudes)
        flux = result.flux.reshape(n_realisation, m, -1)
        reported = np.mean([result.flux_covariance(range(k * m, (k + 1) * m)) for k in range(n_realisation)], axis=0)
        separation = [float(np.hypot(*(scene.centers[i] - scene.centers[j]))) for i, j in pairs(m)]
        rows.append({"name": name, "n_realisation": n_realisation, "separation": separation,
                     "trusted": float(result.trusted.mean()),
                     **compare_covariance(flux, reported, scene.flux, depth.bands)})
    return rows


def pairs(n: int) -> list[tuple[int, int]]:
    """The pairs of n sources."""
    return list(itertools.combinations(range(n), 2))


def compare_covariance(flux: FloatArray, reported: FloatArray, true: FloatArray,
                       bands: tuple[str, ...]) -> dict[str, Any]:
    """Compare the scatter of fluxes over realisations with the reported covariance.

    Parameters
    ----------
    flux : float64 (n_realisation, m, n_band) [nJy]
    reported : float64 (m, n_band, m, n_band) [nJy^2]
        Mean over the realisations.
    true : float64 (m, n_band) [nJy]
    bands : tuple of str

    Returns
    -------
    dict
        For r and i, lists over the sources: ``error_over_scatter``, ``rms_over_error`` (RMS error about the truth),
        ``bias_over_error``; and lists over the pairs: ``correlation`` and ``sample_correlation`` of the two fluxes.
        ``own`` has the two correlations between r and i of each source.
    """
    n, m, n_band = flux.shape
    sample = np.cov(flux.reshape(n, -1), rowvar=False).reshape(m, n_band, m, n_band)
    error = np.sqrt(np.einsum("abab->ab", reported))
    rms = np.sqrt(((flux - true) ** 2).mean(0))
    found: dict[str, Any] = {}
    for band in report.FLUX_BANDS:
        b = bands.index(band)
        found[band] = {
            "error_over_scatter": (error[:, b] / np.sqrt(sample[range(m), b, range(m), b])).tolist(),
            "rms_over_error": (rms[:, b] / error[:, b]).tolist(),
            "bias_over_error": ((flux.mean(0) - true)[:, b] / error[:, b]).tolist(),
            "correlation": [_correlation(reported, i, b, j, b) for i, j in pairs(m)],
            "sample_correlation": [_correlation(sample, i, b, j, b) for i, j in pairs(m)]}
    a, b = (bands.index(band) for band in report.FLUX_BANDS)
    found["own"] = {"correlation": [_correlation(reported, i, a, i, b) for i in range(m)],
                    "sample_correlation": [_correlation(sample, i, a, i, b) for i in range(m)]}
    return found


def _correlation(covariance: FloatArray, i: int, a: int, j: int, b: int) -> float:
    return float(covariance[i, a, j, b] / np.sqrt(covariance[i, a, i, a] * covariance[j, b, j, b]))
