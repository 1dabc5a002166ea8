"""A coadd patch as one scene: 4000 x 4000 pixels in six bands, ten thousand galaxies, a PSF that varies over it.

    python -m perf.studies.patch [--side 4000] [--threads 2]

Galaxies of the test scenes' population lie at random positions. Each is drawn with the PSF of its own position, on a
grid of 80 pixels, and the deblender gets the PSF as a function. Galaxies are drawn for a quarter of the patch and
repeated in the other quarters with different noise, because drawing ten thousand takes longer than deblending them. The
PSF repeats with them. The page reports time, memory, accuracy and errors, and compares sources near the edges of parts
with other sources.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine import Deblender, DeblendResult
from deblendrt.engine.scene import patches
from deblendrt.training import config
from deblendrt.training.simulation import blend_scenes, population, survey
from perf import study
from perf.report import environment, machine, markdown_table
from perf.scenes import RECIPE

SEED = 20_261_123
REPEAT = 2  # repetitions along each axis
NODE = 80  # pixel: grid of the galaxies' PSFs
STAMP = 151  # pixel: of the drawn galaxies; larger galaxies lose light far below the noise
EDGE = 32.0  # pixel: half a window; sources nearer to an edge have neighbours in another part


def psf_over(depth: survey.Depth, side: int) -> Callable[[float, float], survey.Psf]:
    """A PSF whose width changes by 12% and whose ellipticity turns over `side` pixels, then repeats."""
    def psf(x: float, y: float) -> survey.Psf:
        u, v = x % side / side - 0.5, y % side / side - 0.5
        scale = 1 + 0.08 * u + 0.05 * np.sin(3 * v)
        return survey.psf_from_fwhm(scale * depth.psf_fwhm, depth.pixel_scale, ellipticity=(0.03 * u, 0.03 * v))
    return psf


def make_patch(side: int, density: float, n_process: int) -> tuple[
        NDArray[np.float32], NDArray[np.float32], NDArray[np.float64], NDArray[np.float64],
        Callable[[float, float], survey.Psf]]:
    """Image, variance, centres, true fluxes and the PSF of a patch; `density` per square arcminute."""
    rng = np.random.default_rng(SEED)
    side //= REPEAT
    spec = config.Survey(**RECIPE["survey"])
    depth = survey.depth(spec)
    n = int(density * (side * spec.pixel_scale / 60) ** 2)
    galaxies = population.draw(config.Population(**RECIPE["population"]), spec, n, rng)
    centers = rng.uniform(-0.5, side - 0.5, (n, 2))
    half = STAMP // 2
    mean = np.zeros((len(spec.bands), side, side), np.float32)
    node = (np.maximum(centers, 0) // NODE).astype(int)
    _, number = np.unique(node, axis=0, return_inverse=True)
    members = [np.flatnonzero(number == k) for k in range(number.max() + 1)]
    tasks = [(galaxies[rows], centers[rows], node[rows[0]], depth, side) for rows in members]
    with multiprocessing.get_context("spawn").Pool(n_process) as pool:
        for rows, stamps in zip(members, pool.imap(_draw, tasks), strict=True):
            for (x, y), stamp in zip(np.rint(centers[rows]).astype(int), stamps, strict=True):
                row, column = (np.arange(a - half, a + half + 1) % side for a in (y, x))  # the quarters join
                mean[:, row[:, None], column] += stamp
    mean = np.tile(np.maximum(mean, 0), (1, REPEAT, REPEAT))
    shifts = side * np.array([(x, y) for y in range(REPEAT) for x in range(REPEAT)])
    centers = np.concatenate([centers + shift for shift in shifts])
    flux = np.tile(galaxies.flux, (len(shifts), 1))
    image, variance = np.empty_like(mean), np.empty_like(mean)
    for b, (counts, sigma) in enumerate(zip(depth.counts_per_njy, depth.sky_sigma, strict=True)):
        image[b] = rng.poisson(mean[b] * counts) / counts + sigma * rng.standard_normal(mean[b].shape)
        variance[b] = sigma**2 + mean[b] / counts
    inside = (centers < REPEAT * side - 0.5).all(1)
    return image, variance, centers[inside], flux[inside], psf_over(depth, side)


def _draw(task: tuple[population.Galaxies, NDArray[np.float64], NDArray[np.int64], survey.Depth, int],
          ) -> NDArray[np.float32]:
    """Draw the stamps of the galaxies of a node."""
    galaxies, centers, node, depth, side = task
    psf = psf_over(depth, side)(*((node + 0.5) * NODE).tolist())
    return np.array([blend_scenes.draw_source(galaxies, i, center - np.rint(center) + STAMP // 2, psf, (STAMP, STAMP),
                                          depth.pixel_scale) for i, center in enumerate(centers)])


def near_edge(result: DeblendResult) -> NDArray[np.bool_]:
    """Mask of the sources within `EDGE` of the edge between two parts."""
    scene = result.scenes[0]
    near = np.zeros(result.n_source, bool)
    for part in patches.cut_into_parts(scene):
        y, x = part.area
        inside = part.scene.centers[part.own]
        distance = np.full(len(inside), np.inf)
        for axis, span in ((0, x), (1, y)):
            for at, outer in ((span.start, 0), (span.stop, part.scene.shape[1 - axis])):
                if at != outer:
                    distance = np.minimum(distance, np.abs(inside[:, axis] - at))
        near[part.rows[part.own]] = distance < EDGE
    return near


def measures(result: DeblendResult, flux: NDArray[np.float64], chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Summary of flux errors and pulls in i of some sources."""
    b = result.bands.index("i")
    good = chosen & (flux[:, b] > 10 * result.flux_err[:, b])
    trusted = good & result.trusted
    pull = (result.flux[:, b] - flux[:, b]) / result.flux_err[:, b]
    return {"n": int(good.sum()), "error": float(np.median(np.abs(result.flux[good, b] / flux[good, b] - 1))),
            "width": float(1.4826 * np.median(np.abs(pull[good]))), "beyond": float((np.abs(pull[good]) > 3).mean()),
            "trusted": float(trusted.sum() / good.sum()), "trusted_std": float(pull[trusted].std())}


def main() -> None:
    """Make the patch, deblend it, write the page."""
    parser = study.parser("perf.studies.patch", __doc__)
    parser.add_argument("--side", type=int, default=4000, help="pixel")
    parser.add_argument("--density", type=float, default=57.0, help="galaxies per square arcminute")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-limit", type=float, default=None, help="bytes")
    arguments = parser.parse_args()
    image, variance, centers, flux, psf = make_patch(arguments.side, arguments.density, arguments.threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    deblender = Deblender.load(arguments.bundle)
    start = time.perf_counter()
    result = deblender.deblend_batch(image, centers, variance=variance, psf=lambda x, y: psf(x, y).image,
                                     n_threads=arguments.threads, memory_limit=arguments.memory_limit)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    edge = near_edge(result)
    rows = {"all": np.ones(result.n_source, bool), f"within {EDGE:.0f} pixels of the edge of a part": edge,
            "elsewhere": ~edge}
    record = {"side": arguments.side, "density": arguments.density, "n_source": result.n_source,
              "n_part": len(patches.cut_into_parts(result.scenes[0])), "n_psf": len(result.folded),
              "n_threads": arguments.threads, "seconds": seconds, "memory_limit": arguments.memory_limit,
              "bytes_image_and_variance": int(image.nbytes + variance.nbytes), "bytes_before": before,
              "bytes_peak": peak, "fitted": int(result.fitted.sum()),
              "reduced_chi2": float(result.scene_chi2[0] / result.scene_n_pixel[0]),
              "measures": {name: measures(result, flux, chosen) for name, chosen in rows.items()},
              "environment": environment()}
    lines = [[name, str(m["n"]), f"{100 * m['error']:.2f}%", f"{m['width']:.2f}", f"{100 * m['beyond']:.1f}%",
              f"{100 * m['trusted']:.0f}%", f"{m['trusted_std']:.2f}"] for name, m in record["measures"].items()]
    header = ["sources, S/N in i above 10", "n", "flux error", "pull width", "beyond 3", "trusted",
              "pull std of those"]
    gib = 2.0**30
    text = f"""# A patch as one scene

{arguments.side} x {arguments.side} pixels, 6 bands, {result.n_source} galaxies ({arguments.density:g} per square
arcminute, i < 25.3), the PSF a function of position. Made by `python -m perf.studies.patch --side {arguments.side}
--density {arguments.density:g} --threads {arguments.threads}`.

{record['fitted']} of {result.n_source} sources fitted, in {record['n_part']} parts with {record['n_psf']} PSFs:
{seconds:.0f} s with {arguments.threads} threads, {1e3 * seconds / result.n_source:.0f} ms per source. Peak memory of
the process {peak / gib:.1f} GiB, of which {before / gib:.1f} were taken before the deblender was loaded (the
simulation, and the images of {record['bytes_image_and_variance'] / gib:.1f}); reduced chi2 of the whole image
{record['reduced_chi2']:.3f}.

{markdown_table(header, lines)}

{machine(record["environment"])}.
"""
    study.store(arguments.out, "patch", record, text)


if __name__ == "__main__":
    main()
