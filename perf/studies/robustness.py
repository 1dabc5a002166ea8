"""Changes of fluxes by incomplete lists, missing bands, masks, edges, a wrong sky and crowding.

    python -m perf.studies.robustness

The scenes are the first scenes of `perf.scenes`, and fields, pairs and large galaxies drawn here. A fit is compared
with the fit of the same scene undisturbed, as |difference| in units of the disturbed fit's error. The study writes
``perf/results/robustness.md`` and takes five minutes on one core.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.units import to_flux
from deblendrt.training.simulation import blend_scenes
from perf import scenes, study

SEED = 41
FAR = 3.0  # arcsec
STAR = (18.0, 3.5)  # i magnitude, arcsec from a galaxy
PIXEL_SCALE = 0.2
REFERENCE = 3  # i
DENSITIES = (50, 100, 150)  # arcmin^-2
SIDE, STAMP = 300, 101  # pixel, of a field and of a galaxy drawn into it
SKIES = (0.0, -0.3, -0.1, 0.1, 0.3)  # sigma per pixel
FAINT = 24.0  # i magnitude
SMALL_MARGIN = 15  # pixel: cut off on all sides for small cutouts
N_ALONE = 24


class Disturbances:
    """Scenes, their undisturbed fit, and the tables of the page."""

    def __init__(self, bundle: str, cache: Path | None, n_scene: int) -> None:
        self.tests = scenes.load_scenes(cache)
        self.deblender = Deblender.load(bundle)
        self.image, self.variance, self.centers, self.flux = (
            [self.tests.field(name, k) for k in range(n_scene)] for name in ("image", "variance", "centers", "flux"))
        self.full = self.fit(self.image, self.centers, self.variance)
        self.clean = self.full.trusted
        self.lines: list[str] = []

    def fit(self, image: Any, centers: Any, variance: Any, **arguments: Any) -> DeblendResult:
        """Deblend with the test scenes' PSF."""
        arguments.setdefault("psf", self.tests.psf)
        return self.deblender.deblend_batch(image, centers, variance=variance, **arguments)

    def title(self, text: str, header: str) -> None:
        """Begin a table."""
        columns = header.split("|")
        self.lines += ["", f"## {text}", "", "| " + " | ".join(c.strip() for c in columns) + " |",
                       "|" + "---|" * len(columns)]

    def row(self, *cells: Any) -> None:
        """Add a row to the table, and print it."""
        self.lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
        print(self.lines[-1], flush=True)

    def compare(self, name: str, result: DeblendResult, rows: NDArray[np.bool_], mine: NDArray[np.bool_] | None = None,
                band: int = REFERENCE) -> None:
        """Add a row: sources `rows` of the undisturbed fit, which are sources `mine` (default: same) of `result`."""
        mine = rows if mine is None else mine
        change = np.abs(result.flux[mine] - self.full.flux[rows])[:, band] / result.flux_err[mine, band]
        trusted = result.trusted[mine]
        good = change[trusted]
        converged = (result.flags[mine] & int(Flag.NOT_CONVERGED)) == 0
        self.row(name, len(change), float(np.median(change)), _share(change < 1), _share(change > 3), _share(~trusted),
                 _share(good < 1), _share(good > 3), _share(~converged))


HEADER = ("case | sources | median change / error | below 1 | above 3 | untrusted | trusted: below 1 | above 3 | "
          "not converged")


def _share(condition: NDArray[np.bool_]) -> str:
    return f"{100 * condition.mean():.1f}%" if len(condition) else "–"


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each position to the nearest of other positions, float64 (len(a),) [arcsec]."""
    return np.hypot(*(a[:, None] - b).transpose(2, 0, 1)).min(1) * PIXEL_SCALE


def incomplete_lists(cases: Disturbances) -> None:
    """Delete a quarter of the sources from the lists; add an unlisted bright star."""
    rng = np.random.default_rng([SEED, 1])
    keep = []
    for c in cases.centers:
        keep.append(np.ones(len(c), bool))
        keep[-1][rng.choice(len(c), max(1, round(len(c) / 4)), replace=False)] = False
    listed = [c[k] for c, k in zip(cases.centers, keep, strict=True)]
    kept = np.concatenate(keep)
    away = np.concatenate([distance(c[k], c[~k]) for c, k in zip(cases.centers, keep, strict=True)])
    cases.title("Incomplete lists", HEADER)
    result = cases.fit(cases.image, listed, cases.variance)
    complete = cases.fit(cases.image, listed, cases.variance, find_missed=True)
    original = (complete.flags & int(Flag.FOUND)) == 0
    for name, near in (("farther than 3 arcsec from deleted ones", False), ("nearer", True)):
        here = ((away <= FAR) == near) & cases.clean[kept]
        rows = np.zeros(len(kept), bool)
        rows[np.flatnonzero(kept)[here]] = True
        cases.compare(name, result, rows, here)
        there = np.zeros(complete.n_source, bool)
        there[np.flatnonzero(original)[here]] = True
        cases.compare(f"{name}, find_missed", complete, rows, there)
    image, variance, star_away = [], [], []
    depth = scenes.sky()[2]
    light = to_flux(STAR[0]) * np.exp(np.asarray(cases.deblender.bundle.mean_color) / 2)
    for y, v, c in zip(cases.image, cases.variance, cases.centers, strict=True):
        angle = rng.uniform(0, 2 * np.pi)
        x_star, y_star = np.clip(np.rint(c[0] + STAR[1] / PIXEL_SCALE * np.array([np.cos(angle), np.sin(angle)])),
                                 5, np.array(y.shape[:0:-1]) - 6).astype(int)
        half = cases.tests.psf.shape[1] // 2
        padded = np.zeros((len(y), y.shape[1] + 2 * half, y.shape[2] + 2 * half))
        padded[:, y_star : y_star + 2 * half + 1, x_star : x_star + 2 * half + 1] = (
            light[:, None, None] * cases.tests.psf)
        star = np.maximum(padded[:, half:-half, half:-half], 0)
        counts = depth.counts_per_njy[:, None, None]
        image.append((y + rng.poisson(star * counts) / counts).astype(np.float32))
        variance.append((v + star / counts).astype(np.float32))
        star_away.append(distance(c, np.array([[x_star, y_star]], float)))
    away = np.concatenate(star_away)
    result = cases.fit(image, cases.centers, variance)
    for name, here in (("star of i = 18 farther than 3 arcsec", away > FAR), ("nearer", away <= FAR)):
        cases.compare(name, result, here & cases.clean)
    truth = np.concatenate(cases.flux)
    found_by = {name: [0, 0] for name in ("S/N below 20", "20 to 50", "above 50")}
    for k, (c, m) in enumerate(zip(cases.centers, keep, strict=True)):
        rows = complete.sources(k)
        position = complete.position[rows][(complete.flags[rows] & int(Flag.FOUND)) > 0]
        first = int(cases.full.source_start[k])
        for j in np.flatnonzero(~m):
            snr = truth[first + j, REFERENCE] / cases.full.flux_err[first + j, REFERENCE]
            counter = found_by[list(found_by)[int(np.digitize(snr, [20, 50]))]]
            counter[0] += bool(len(position) and distance(c[j : j + 1], position)[0] < 3 * PIXEL_SCALE)
            counter[1] += 1
    cases.lines += ["", "Deleted sources that find_missed finds within 3 pixels: "
                    + ", ".join(f"{name}: {a} of {b}" for name, (a, b) in found_by.items()) + "."]


def missing_bands(cases: Disturbances) -> None:
    """Drop each band, and all bands but one."""
    cases.title("Missing bands (changes in r, in i where r is dropped; in the only band)", HEADER)
    names = "".join(cases.tests.bands)
    for drop in names:
        used = [b for b, name in enumerate(names) if name != drop]
        result = cases.fit([y[used] for y in cases.image], cases.centers, [v[used] for v in cases.variance],
                           psf=cases.tests.psf[used], bands=names.replace(drop, ""))
        if np.isfinite(result.flux[:, names.index(drop)]).any():
            raise AssertionError(f"{drop}: expected NaN fluxes")
        cases.compare(f"without {drop}", result, cases.clean, band=names.index("i" if drop == "r" else "r"))
    for only in "gri":
        used = [names.index(only)]
        result = cases.fit([y[used] for y in cases.image], cases.centers, [v[used] for v in cases.variance],
                           psf=cases.tests.psf[used], bands=only)
        cases.compare(f"{only} alone", result, cases.clean, band=used[0])


def masks_and_edges(cases: Disturbances) -> None:
    """Mask pixels, columns, cores and halves around the brightest galaxy of each scene; cut images beside it."""
    rng = np.random.default_rng([SEED, 2])
    brightest = [int(np.argmax(f[:, REFERENCE])) for f in cases.flux]
    target = np.zeros(cases.full.n_source, bool)
    target[cases.full.source_start[:-1] + brightest] = True

    def masked(name: str, mask: Any, rows: NDArray[np.bool_]) -> None:
        drawn = []
        for y, c, k in zip(cases.image, cases.centers, brightest, strict=True):
            row, column = np.indices(y.shape[1:])
            drawn.append(np.broadcast_to(mask(row - c[k, 1], column - c[k, 0], y.shape), y.shape))
        cases.compare(name, cases.fit(cases.image, cases.centers, cases.variance, mask=drawn), rows & cases.clean)

    cases.title("Masks and edges (of the brightest galaxy of each scene, but for the first row)", HEADER)
    masked("10% of all pixels", lambda y, x, shape: rng.random(shape) < 0.1, np.ones_like(target))
    masked("column", lambda y, x, shape: np.abs(x) <= 0.5, target)
    masked("core of 3 pixels", lambda y, x, shape: x**2 + y**2 <= 9, target)
    masked("half", lambda y, x, shape: (x < 0) & (x > -25), target)
    for left in (10, 5, 0):
        corner = [np.array([round(c[k, 0]) - left, 0]) for c, k in zip(cases.centers, brightest, strict=True)]
        result = cases.fit([y[:, :, o[0] :] for y, o in zip(cases.image, corner, strict=True)],
                           [c - o for c, o in zip(cases.centers, corner, strict=True)],
                           [v[:, :, o[0] :] for v, o in zip(cases.variance, corner, strict=True)])
        cases.compare(f"{left} pixels from the edge", result, target & cases.clean)


def wrong_sky(cases: Disturbances) -> None:
    """Add a sky to all bands, of whole scenes and of small cutouts; compare with the truth, without and with a fit."""
    cases.title("A sky that is left in the image (all sources, against the truth, in i)",
                "case | sources | median flux error | median pull | SKY_OFFSET | of those with a pull above 2 | "
                "sky fitted: median flux error | median pull | width of pulls")
    truth = np.concatenate(cases.flux)
    sigma = cases.tests.sky_sigma[:, None, None]
    bright = truth[:, REFERENCE] > to_flux(FAINT)
    for margin, size in ((0, "whole scene"), (SMALL_MARGIN, "small cutout")):
        for sky in SKIES:
            cut = slice(margin, -margin or None)
            given = ([(y + sky * sigma).astype(np.float32)[:, cut, cut] for y in cases.image],
                     [c - margin for c in cases.centers], [v[:, cut, cut] for v in cases.variance])
            result, fitted = cases.fit(*given), cases.fit(*given, sky="fit")
            error = (result.flux / truth - 1)[:, REFERENCE]
            pull = ((result.flux - truth) / result.flux_err)[:, REFERENCE]
            flagged = (result.flags & int(Flag.SKY_OFFSET)) > 0
            for name, here in ((f"i < {FAINT:g}", bright), ("fainter", ~bright)):
                cases.row(f"{size}, {sky:+g} sigma, {name}", int(here.sum()), float(np.median(error[here])),
                          float(np.median(pull[here])), _share(flagged[here]),
                          _share(flagged[here & (np.abs(pull) > 2)]),
                          *_errors(fitted, truth, here))
    cases.title(f"Galaxies of i = {FAINT:g}, alone under a sky, in i",
                "sky [sigma] | galaxies | median flux error | median pull | width of pulls | SKY_OFFSET | "
                "sky fitted: median flux error | median pull | width of pulls | error of the sky [sigma]")
    pool, psf, depth = scenes.sky()
    rng = np.random.default_rng([SEED, 6])
    order = np.argsort(np.abs(pool.magnitude - FAINT))[:N_ALONE]
    made = [blend_scenes.simulate_scene(pool, [int(i)], rng.uniform(49.5, 50.5, (1, 2)), psf, depth, (101, 101), rng)
            for i in order]
    truth, every = np.concatenate([s.flux for s in made]), np.ones(N_ALONE, bool)
    for sky in SKIES:
        given = ([(s.image + sky * sigma).astype(np.float32) for s in made], [s.centers for s in made],
                 [s.variance for s in made])
        result, fitted = cases.fit(*given), cases.fit(*given, sky="fit")
        cases.row(f"{sky:+g}", N_ALONE, *_errors(result, truth, every),
                  _share((result.flags & int(Flag.SKY_OFFSET)) > 0), *_errors(fitted, truth, every),
                  float(np.std(fitted.sky / cases.tests.sky_sigma - sky)))


def _errors(result: DeblendResult, truth: NDArray[np.float64], here: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Median flux error, median pull and width of the pulls in i."""
    difference = (result.flux - truth)[here, REFERENCE]
    pull = difference / result.flux_err[here, REFERENCE]
    return (float(np.median(difference / truth[here, REFERENCE])), float(np.median(pull)),
            float(1.4826 * np.median(np.abs(pull - np.median(pull)))))


def field(density: int, seed: int) -> tuple[Any, ...]:
    """Draw a field of galaxies at least two pixels apart: image, variance, centres, fluxes."""
    pool, psf, depth = scenes.sky()
    rng = np.random.default_rng([SEED, 3, density, seed])
    n = round(density * (SIDE * PIXEL_SCALE / 60) ** 2)
    positions: list[NDArray[np.float64]] = []
    while len(positions) < n:
        new = rng.uniform(0, SIDE - 1, 2)
        if all(np.hypot(*(new - old)) >= 2 for old in positions):
            positions.append(new)
    centers, rows, half = np.array(positions), rng.choice(len(pool), n, replace=False), STAMP // 2
    padded = np.zeros((len(depth.bands), SIDE + 2 * half, SIDE + 2 * half))
    for i, center in zip(rows, centers, strict=True):
        x, y = np.rint(center).astype(int)
        padded[:, y : y + STAMP, x : x + STAMP] += blend_scenes.draw_source(
            pool, int(i), center - [x - half, y - half], psf, (STAMP, STAMP), depth.pixel_scale)
    mean = np.maximum(padded[:, half:-half, half:-half], 0)
    return *scenes.expose(mean, depth, rng), centers, pool.flux[rows]


def crowding(cases: Disturbances) -> None:
    """Deblend fields of several densities, and pairs two pixels apart of several flux ratios."""
    cases.title("Crowding: fields of one arcmin^2, pairs with centres two pixels apart (against the truth, in i)",
                "case | sources | largest blend | ms per source | median flux error | pull: width | above 3 | "
                "untrusted | trusted: width | standard deviation | above 3 | not converged")

    def report(name: str, result: DeblendResult, flux: NDArray[np.float64], seconds: float) -> None:
        pull = ((result.flux - flux) / result.flux_err)[:, REFERENCE]
        good = pull[result.trusted]
        cases.row(name, len(flux), int(np.bincount(result.blend).max()), float(1e3 * seconds / len(flux)),
                  float(np.median(np.abs(result.flux / flux - 1)[:, REFERENCE])),
                  float(1.4826 * np.median(np.abs(pull))), _share(np.abs(pull) > 3), _share(~result.trusted),
                  float(1.4826 * np.median(np.abs(good))) if len(good) else np.nan,
                  float(good.std()) if len(good) else np.nan, _share(np.abs(good) > 3),
                  _share((result.flags & int(Flag.NOT_CONVERGED)) > 0))

    for density in DENSITIES:
        image, variance, centers, flux = field(density, 0)
        start = time.process_time()
        result = cases.fit(image, centers, variance)
        report(f"{density} per arcmin^2", result, flux, time.process_time() - start)
    pool, psf, depth = scenes.sky()
    rng = np.random.default_rng([SEED, 4])
    order = np.argsort(pool.magnitude)
    for ratio in (1.0, 0.3, 0.1):
        made = []
        for magnitude in np.repeat([20.5, 21.5, 22.5], 6):
            wanted = [magnitude, magnitude - 2.5 * np.log10(ratio)]
            rows = [order[np.searchsorted(pool.magnitude[order], m) + rng.integers(20)] for m in wanted]
            angle = rng.uniform(0, 2 * np.pi)
            apart = np.array([np.cos(angle), np.sin(angle)])
            made.append(blend_scenes.simulate_scene(pool, rows, 50 + rng.uniform(-0.5, 0.5, 2) + [apart, -apart], psf,
                                                depth, (101, 101), rng))
        start = time.process_time()
        result = cases.fit([s.image for s in made], [s.centers for s in made], [s.variance for s in made])
        report(f"pairs 1 : {ratio:g}", result, np.concatenate([s.flux for s in made]), time.process_time() - start)


def large_galaxies(cases: Disturbances) -> None:
    """Deblend bright, large galaxies alone; report the model at the edge of its stamp and the residual."""
    cases.title("Large and bright galaxies, alone",
                "half-light radius [arcsec] | i | S/N | steepest step at the stamp's edge [sigma per pixel, i] | "
                "largest residual [sigma] | reduced chi2 | flux error in i | flags")
    pool, psf, depth = scenes.sky()
    rng = np.random.default_rng([SEED, 5])
    radius = pool.half_light_radius
    for low, high in ((1.5, 2.5), (2.5, 3.5), (3.5, 5.1)):
        rows = np.flatnonzero((radius > low) & (radius < high) & (pool.magnitude < 21))
        for i in rng.choice(rows, 3, replace=False).tolist():
            scene = blend_scenes.simulate_scene(pool, [i], [[110.3, 109.8]], psf, depth, (221, 221), rng)
            result = cases.fit(scene.image, scene.centers, scene.variance)
            cases.row(float(radius[i]), float(pool.magnitude[i]),
                      float(result.flux[0, REFERENCE] / result.flux_err[0, REFERENCE]),
                      float(edge_step(result) / depth.sky_sigma[REFERENCE]),
                      float(np.abs(result.residual(0) / np.sqrt(scene.variance)).max()),
                      float(result.reduced_chi2[0]),
                      float(result.flux[0, REFERENCE] / scene.flux[0, REFERENCE] - 1),
                      " ".join(str(f.name) for f in Flag if result.flags[0] & int(f)))


def edge_step(result: DeblendResult) -> float:
    """Largest change of the first source's model between neighbouring pixels in the outer tenth of its stamp [nJy]."""
    stamp = result.stamps(0)[0][REFERENCE]
    band = len(stamp) // 10
    steps = np.zeros_like(stamp)
    steps[:, 1:] = np.abs(np.diff(stamp, axis=1))
    steps[1:] = np.maximum(steps[1:], np.abs(np.diff(stamp, axis=0)))
    steps[band:-band, band:-band] = 0
    return float(steps.max())


def main() -> None:
    """Measure everything, write the page."""
    arguments = study.parser("perf.studies.robustness", __doc__, n_scene=24).parse_args()
    cases = Disturbances(arguments.bundle, arguments.cache, arguments.n_scene)
    for section in (incomplete_lists, missing_bands, masks_and_edges, wrong_sky, crowding, large_galaxies):
        start = time.process_time()
        section(cases)
        print(f"{section.__name__}: {time.process_time() - start:.0f} s", flush=True)
    text = [
        f"# Robustness of {arguments.bundle}", "",
        f"{arguments.n_scene} scenes of `perf.scenes`, {cases.full.n_source} galaxies, {int(cases.clean.sum())} "
        "trusted in the undisturbed fit; only these count. A change is that of the flux in i, unless said otherwise, "
        "against the undisturbed fit, in units of the disturbed fit's error. "
        f"Made by `python -m perf.studies.robustness --n-scene {arguments.n_scene}`.", *cases.lines, ""]
    (arguments.out / "robustness.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
