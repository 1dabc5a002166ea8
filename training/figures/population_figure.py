r"""The population beside published counts, sizes and redshifts, and its colours and shapes.

The published curves are written here again, from the papers and not from `population`, so that a mistake there shows:

- :math:`N(<i) = 46 \times 10^{0.31 (i - 25)}` per arcmin\ :sup:`2` and
  :math:`p(z) \propto z^2 \exp(-z/z_0),\; z_0 = 0.0417\,i_{lim} - 0.744` of all galaxies to a limit
  (LSST Science Book, arXiv:0912.0201, section 3.7);
- median disk scale length :math:`\ln r_d = -1.145 - 0.269 (i_{814} - 23)` (Miller et al. 2013, MNRAS 429, 2858).

Colours and ellipticities have no published curve. Below them are bright galaxies under the reference PSF, where arms,
bars, knots and companions are seen.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deblendrt.training.config import Config
from deblendrt.training.simulation import blend_scenes, components, population
from deblendrt.training.simulation.population import GOLD_LIMIT, Galaxies

POPULATION_SEED = 99_017
N_POPULATION = 40000
GALLERY_ROWS, GALLERY_COLUMNS = 3, 10
GALLERY_STAMP = 63  # pixel
GALLERY_LIMIT = 19.5  # i magnitude


def ks_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Largest distance between two samples' cumulative distributions (Kolmogorov-Smirnov)."""
    grid = np.sort(np.concatenate([a, b]))
    return float(np.abs(np.searchsorted(np.sort(a), grid, "right") / len(a)
                        - np.searchsorted(np.sort(b), grid, "right") / len(b)).max())


def draw_figure(settings: Config, path: Path) -> dict[str, Any]:
    """Draw the figure, of galaxies with the counts of the sky. Returns its numbers beside the published numbers."""
    rng = np.random.default_rng([settings.seed, POPULATION_SEED])
    galaxies = blend_scenes.natural_population(settings, N_POPULATION, rng)
    figure = Figure(figsize=(13, 12), layout="constrained")
    grid = figure.add_gridspec(3, 3)
    axes = [figure.add_subplot(grid[k // 3, k % 3]) for k in range(6)]
    numbers = {"counts": _counts(galaxies, axes[0]), "sizes": _sizes(galaxies, axes[1]),
               "redshifts": _redshifts(galaxies, axes[2]),
               "colors": _colors(galaxies, settings.survey.bands, axes[3], axes[4]),
               "shapes": _shapes(galaxies, axes[5]),
               "light": _light(galaxies, settings.survey.reference_index)}
    _gallery(settings, rng, figure.add_subplot(grid[2, :]))
    figure.savefig(path, dpi=130)
    return numbers


def _counts(galaxies: Galaxies, axis: Any) -> dict[str, float]:
    edges = np.arange(17.0, GOLD_LIMIT + 0.01, 0.5)
    n, _ = np.histogram(galaxies.magnitude, edges)
    middle = (edges[1:] + edges[:-1]) / 2
    published = np.diff(10 ** (0.31 * (edges - 25)))
    expected = published * n[middle < 24].sum() / published[middle < 24].sum()
    axis.semilogy(middle, np.maximum(n, 0.5), "o", ms=4, label="population")
    axis.semilogy(middle, expected, "k", lw=0.8, label="slope 0.31 (LSST Science Book)")
    axis.set(xlabel="i", ylabel="galaxies per 0.5 mag")
    axis.legend()
    used = (n > 30) & (middle < 24)
    slope = np.polyfit(middle[used], np.log10(n[used]), 1, w=np.sqrt(n[used]))[0]
    # the limit of surface brightness leaves out galaxies of the faintest bin
    return {"slope": float(slope), "published_slope": 0.31, "faintest_bin_over_published": float(n[-1] / expected[-1])}


def _sizes(galaxies: Galaxies, axis: Any) -> dict[str, Any]:
    disk = galaxies.bulge_fraction < 0.5
    e = galaxies.disk_ellipticity
    length = galaxies.disk_half_light_radius / population.EXPONENTIAL_HALF_LIGHT * np.sqrt((1 + e) / (1 - e))
    axis.plot(galaxies.magnitude[disk][:6000], length[disk][:6000], ",", alpha=0.5)
    found, published, middles = [], [], np.arange(19.5, 25.3, 1.0)
    for m in middles:
        inside = disk & (np.abs(galaxies.magnitude - m) < 0.5)
        found.append(float(np.median(length[inside])))
        published.append(float(np.exp(-1.145 - 0.269 * (m - 23))))
    axis.semilogy(middles, found, "o-", label="median of the population")
    axis.semilogy(middles, published, "k", lw=0.8, label="Miller et al. 2013")
    axis.set(xlabel="i", ylabel="disk scale length, major axis [arcsec]", ylim=(0.02, 4))
    axis.legend()
    return {"magnitude": middles.tolist(), "median_scale_length": found, "published": published}


def _redshifts(galaxies: Galaxies, axis: Any) -> dict[str, float]:
    edges = np.linspace(0, 3, 61)
    z_0 = 0.0417 * GOLD_LIMIT - 0.744
    z = (edges[1:] + edges[:-1]) / 2
    published = z**2 * np.exp(-z / z_0)
    axis.hist(galaxies.redshift, edges, density=True, histtype="step", label="population")
    axis.plot(z, published / (published.sum() * (z[1] - z[0])), "k", lw=0.8, label=f"Science Book, i < {GOLD_LIMIT}")
    axis.set(xlabel="redshift")
    axis.legend()
    return {"median": float(np.median(galaxies.redshift)), "published_median": 2.674 * z_0}


def _colors(galaxies: Galaxies, bands: list[str], histogram: Any, plane: Any) -> dict[str, Any]:
    magnitude = -2.5 * np.log10(galaxies.flux)
    color = magnitude[:, :-1] - magnitude[:, 1:]
    inside = (galaxies.magnitude > 23) & (galaxies.magnitude < 24.5)
    numbers = {}
    for k in range(len(bands) - 1):
        name = f"{bands[k]}-{bands[k + 1]}"
        histogram.hist(color[inside, k], np.linspace(-0.6, 2.6, 65), histtype="step", color=f"C{k}", label=name)
        low, middle, high = np.percentile(color[inside, k], [16, 50, 84])
        numbers[name] = {"p16": float(low), "median": float(middle), "p84": float(high)}
    histogram.set(xlabel="colour at 23 < i < 24.5 [mag]")
    histogram.legend()
    if {"g", "r", "i"} <= set(bands):
        g, r = bands.index("g"), bands.index("r")
        points = plane.scatter(color[inside, r][:5000], color[inside, g][:5000], s=1,
                               c=galaxies.redshift[inside][:5000], cmap="viridis", vmax=2)
        plane.figure.colorbar(points, ax=plane, label="redshift")
        plane.set(xlabel="r-i", ylabel="g-r", xlim=(-0.5, 2), ylim=(-0.6, 2.4))
    return numbers


def _shapes(galaxies: Galaxies, axis: Any) -> dict[str, float]:
    edges = np.linspace(0, 1, 41)
    axis.hist(galaxies.disk_ellipticity, edges, density=True, histtype="step", label="disk |g|")
    axis.hist(galaxies.bulge_ellipticity, edges, density=True, histtype="step", label="bulge |g|")
    axis.hist(galaxies.bulge_fraction, edges, density=True, histtype="step", label="bulge fraction")
    axis.set_ylim(0, 5)
    axis.legend()
    return {"rms_disk_ellipticity_per_component": float(np.sqrt((galaxies.disk_ellipticity**2).mean() / 2))}


def _light(galaxies: Galaxies, band: int) -> dict[str, dict[str, float]]:
    """Share of the galaxies that have each component, and its median share of their light where it is."""
    flux = galaxies.component_flux[:, :, band]
    share = flux / flux.sum(1, keepdims=True)
    return {name: {"galaxies": float((share[:, k] > 0).mean()),
                   "median_share": float(np.median(share[share[:, k] > 0, k])) if share[:, k].any() else 0.0}
            for k, name in enumerate(galaxies.components)}


def _gallery(settings: Config, rng: np.random.Generator, axis: Any) -> None:
    bright = dataclasses.replace(settings.population, magnitude_max=GALLERY_LIMIT, uniform_fraction=1.0)
    n, scale, sigma = GALLERY_ROWS * GALLERY_COLUMNS, settings.survey.pixel_scale, settings.basis.reference_psf_sigma
    galaxies = population.draw(bright, settings.survey, n, rng)
    weight = galaxies.component_flux[:, :, settings.survey.reference_index]
    images = []
    for i in range(n):
        maps = components.component_maps(galaxies, i, GALLERY_STAMP, scale, sigma)
        image = np.tensordot(weight[i], maps, 1)
        images.append(np.arcsinh(50 * image / image.max()))
    tiles = np.array(images).reshape(GALLERY_ROWS, GALLERY_COLUMNS, GALLERY_STAMP, GALLERY_STAMP)
    axis.imshow(tiles.transpose(0, 2, 1, 3).reshape(GALLERY_ROWS * GALLERY_STAMP, -1), origin="lower", cmap="gray_r")
    axis.set(xticks=[], yticks=[], title=f"galaxies brighter than {settings.survey.reference_band} = {GALLERY_LIMIT}, "
             f"asinh stretch, {GALLERY_STAMP * scale:.0f} arcsec each")
