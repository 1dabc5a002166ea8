"""Star or galaxy: how well kind "auto" separates them.

In simulated LSST 10-year scenes half of the sources are stars (the PSF, with colours along the main sequence) and half
are galaxies of the test population. Both are uniform in magnitude, alone and in blends of two to six. They are
deblended with the true PSF and with PSFs that are 1% and 3% too wide. All sources have kind "auto", and the class prior
is the simulated fraction of stars.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.units import AB_ZERO_POINT, to_magnitude
from deblendrt.training import config
from deblendrt.training.simulation import blend_scenes, population, survey
from perf import study
from perf.report import environment, markdown_table, number, percent
from perf.scenes import RECIPE, expose

SEED = 470_112_906
MAGNITUDES = (18.0, 25.0)
STAR_FRACTION = 0.5
WIDTHS = (1.0, 1.01, 1.03)  # of the given PSF over the true PSF
ALONE, BLEND = 65, 101  # pixel, sides of the scenes
# u-g, g-r, r-i, i-z, z-y of main-sequence stars of types F, G, K, M0 and M4, rounded
LOCUS = np.array([[0.95, 0.25, 0.08, 0.01, 0.0], [1.4, 0.46, 0.16, 0.06, 0.03], [2.0, 0.85, 0.33, 0.17, 0.08],
                  [2.6, 1.35, 0.66, 0.37, 0.18], [2.7, 1.5, 1.4, 0.75, 0.35]])
BINS = ((18.0, 20.0), (20.0, 22.0), (22.0, 23.0), (23.0, 24.0), (24.0, 25.0))
RADII = ((0.0, 0.15), (0.15, 0.3), (0.3, 0.5), (0.5, 9.0))  # arcsec


@dataclasses.dataclass(frozen=True)
class StarScene:
    """A scene and its truth.

    Attributes
    ----------
    scene : SimulatedScene
    star : bool (n_source,)
    radius : float64 (n_source,) [arcsec]
        Half-light radius; 0 for stars.
    """

    scene: blend_scenes.SimulatedScene
    star: NDArray[np.bool_]
    radius: NDArray[np.float64]


def star_flux(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the fluxes of a star, float64 (6,) [nJy], uniform in i magnitude and along the locus."""
    place = rng.uniform(0, len(LOCUS) - 1)
    low = int(place)
    color = LOCUS[low] + (place - low) * (LOCUS[low + 1] - LOCUS[low])
    magnitude = np.concatenate([[0.0], -np.cumsum(color)]) + 0.02 * rng.standard_normal(6)
    return 10 ** (0.4 * (AB_ZERO_POINT - rng.uniform(*MAGNITUDES) - magnitude + magnitude[3]))


def make_case(galaxies: population.Galaxies, psf: survey.Psf, depth: survey.Depth, n: int, size: int,
              rng: np.random.Generator) -> StarScene:
    """Draw a scene of `n` sources."""
    spread = 0.3 if n == 1 else blend_scenes.BLEND_SPREAD / 0.2
    positions = blend_scenes.blend_positions(n, (size, size), rng, spread=spread,
                                         min_separation=blend_scenes.BLEND_SEPARATION / 0.2, margin=13.0)
    star = rng.random(n) < STAR_FRACTION
    index = rng.choice(len(galaxies), n, replace=False)
    scene = blend_scenes.simulate_scene(galaxies, index[~star], positions[~star], psf, depth, (size, size), rng)
    truth = np.zeros((n, *scene.image.shape), np.float32)
    flux = np.zeros((n, len(depth.bands)))
    truth[~star], flux[~star] = scene.truth, scene.flux
    for i in np.flatnonzero(star):
        flux[i] = star_flux(rng)
        offset = positions[i] - (size - 1) / 2
        truth[i] = [(profile * f).drawImage(nx=size, ny=size, scale=depth.pixel_scale, offset=tuple(offset),
                                            dtype=np.float64).array
                    for profile, f in zip(psf.profiles, flux[i], strict=True)]
    mean = np.maximum(truth.sum(0, dtype=np.float64), 0.0)
    image, variance = expose(mean, depth, rng)
    scene = dataclasses.replace(scene, image=image, variance=variance, centers=positions, truth=truth, flux=flux)
    return StarScene(scene, star, np.where(star, 0.0, galaxies.half_light_radius[index]))


def make_cases(n_alone: int, n_blend: int) -> tuple[list[StarScene], survey.Depth]:
    """Draw all scenes, first the scenes of single sources; also return the depth."""
    spec = config.Survey(**RECIPE["survey"])
    wanted = {"magnitude_min": MAGNITUDES[0], "magnitude_max": MAGNITUDES[1], "uniform_fraction": 1.0}
    galaxies = population.draw(config.Population(**{**RECIPE["population"], **wanted}), spec, 2000,
                               np.random.default_rng([SEED, 0]))
    depth = survey.depth(spec)
    psf = survey.nominal_psf(depth)
    cases = []
    for k in range(n_alone + n_blend):
        rng = np.random.default_rng([SEED, 1, k])
        n, size = (1, ALONE) if k < n_alone else (int(rng.integers(2, 7)), BLEND)
        cases.append(make_case(galaxies, psf, depth, n, size, rng))
    return cases, depth


def measure(deblender: Deblender, cases: list[StarScene], psf: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """Deblend; columns with an entry for each source."""
    scenes = [case.scene for case in cases]
    result = deblender.deblend_batch([s.image for s in scenes], [s.centers for s in scenes],
                                     variance=[s.variance for s in scenes], psf=psf, kind="auto",
                                     star_fraction=STAR_FRACTION)
    flux = np.concatenate([s.flux for s in scenes])
    return {"star": np.concatenate([c.star for c in cases]), "radius": np.concatenate([c.radius for c in cases]),
            "magnitude": to_magnitude(flux[:, 3]), "probability": result.star_probability,
            "alone": np.array([len(scenes[k].centers) == 1 for k in result.scene_index]),
            "error": result.flux[:, 3] / flux[:, 3] - 1,
            "pull": (result.flux[:, 3] - flux[:, 3]) / result.flux_err[:, 3]}


def share(chosen: NDArray[np.bool_], among: NDArray[np.bool_]) -> str:
    """A share and the number that it refers to."""
    return f"{percent(chosen[among].mean())} of {among.sum()}" if among.any() else "-"


def markdown(columns: dict[float, dict[str, NDArray[Any]]]) -> str:
    """The tables of the page."""
    words = {width: "right" if width == 1 else f"{100 * (width - 1):.0f}% too wide" for width in columns}
    text = ["# Star or galaxy", __doc__.split("\n\n", 1)[1].strip() if __doc__ else ""]
    for alone, where in ((True, "Alone"), (False, "In blends")):
        rows = []
        for low, high in BINS:
            for width, c in columns.items():
                here = (c["magnitude"] >= low) & (c["magnitude"] < high) & (c["alone"] == alone)
                called, star = c["probability"] > 0.5, c["star"]
                good = here & star & called
                rows.append([f"{low:g}-{high:g}", words[width], share(called, here & star), share(star, here & called),
                             share(called, here & ~star),
                             number(float(np.median(np.abs(c["error"][good])))) if good.any() else "-",
                             number(float(np.median(c["error"][good]))) if good.any() else "-",
                             number(float(1.4826 * np.median(np.abs(c["pull"][good])))) if good.any() else "-"])
        text += [f"## {where}", markdown_table(
            ["i", "PSF", "stars called stars (completeness)", "of those called stars, stars (purity)",
             "galaxies called stars", "stars: median abs flux error", "median flux error", "scatter of pulls"], rows)]
    rows = [[f"{low:g}-{high:g}" if high < 9 else f"above {low:g}", *(
        share(c["probability"] > 0.5, ~c["star"] & (c["radius"] >= low) & (c["radius"] < high)
              & (c["magnitude"] >= a) & (c["magnitude"] < b))
        for a, b in ((18, 23), (23, 25)) for c in columns.values())] for low, high in RADII]
    text += ["## Galaxies called stars, by half-light radius [arcsec]", markdown_table(
        ["radius", *(f"i {a}-{b}, PSF {words[w]}" for a, b in ((18, 23), (23, 25)) for w in columns)], rows)]
    rows = []
    for low, high in ((0, 0.02), (0.02, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 0.9), (0.9, 0.98), (0.98, 1)):
        row = [f"{low:g}-{high:g}"]
        for c in columns.values():
            here = (c["probability"] >= low) & (c["probability"] <= high if high == 1 else c["probability"] < high)
            row += [number(float(c["probability"][here].mean())) if here.any() else "-", share(c["star"], here)]
        rows.append(row)
    text += ["## Reliability of the probability", markdown_table(
        ["P(star)", *(f"{head}, PSF {words[w]}" for w in columns for head in ("mean P", "stars"))], rows)]
    for width, c in columns.items():
        p = np.where(c["star"], c["probability"], 1 - c["probability"])
        text.append(f"PSF {words[width]}: {percent(float((p > 0.5).mean()))} of {len(p)} sources are classified "
                    f"correctly; Brier score {np.mean((1 - p) ** 2):.4f}, mean -ln P(truth) "
                    f"{-np.log(np.maximum(p, 1e-12)).mean():.3f}.")
    return "\n\n".join(text)


def main(argv: list[str] | None = None) -> int:
    """Run the study."""
    parser = study.parser("perf.studies.stars", __doc__)
    parser.add_argument("--alone", type=int, default=70, help="scenes of one source")
    parser.add_argument("--blends", type=int, default=14, help="scenes of two to six")
    args = parser.parse_args(argv)
    deblender = Deblender.load(args.bundle)
    start = time.process_time()
    cases, depth = make_cases(args.alone, args.blends)
    columns = {}
    for width in WIDTHS:
        psf = survey.psf_from_fwhm(depth.psf_fwhm * width, depth.pixel_scale).image
        columns[width] = measure(deblender, cases, psf)
        print(f"PSF width {width}: {time.process_time() - start:.0f} s of processor time", file=sys.stderr, flush=True)
    env = environment()
    seconds = time.process_time() - start
    text = markdown(columns) + (f"\n\nMade by `{study.command(parser, args)}` in {seconds:.0f} s of processor time; "
                                f"commit {env['commit']}.\n")
    rounded = {str(w): {k: np.round(v.astype(float), 4).tolist() for k, v in c.items()} for w, c in columns.items()}
    study.store(args.out, "stars", {"environment": env, "columns": rounded}, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
