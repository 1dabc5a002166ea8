"""The frozen workloads: named, seeded, hashed scenes on which every version of the engine is timed and judged.

No model under test draws the scenes (see `mixtures`), so versions with different bundles can be compared. Scene k of a
case does not depend on the number of scenes, nor on NumPy's version: `RandomState` has streams that NumPy keeps.
Images, variances and centres are whole multiples of the steps below. The hash therefore covers exactly the numbers that
an engine is given, and rounding removes the last bit of a Fourier transform, which differs between machines. `DIGESTS`
freezes the short sizes.

The noise is that of a ten-year survey: sky and photons, both Gaussian. An alert has the noise of a single visit. The
PSF is known and the centres are true. The studies measure unlisted sources, masks and varying PSFs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from perf.gate import mixtures
from perf.gate.mixtures import FloatArray, Galaxy

BANDS = ("u", "g", "r", "i", "z", "y")
REFERENCE = BANDS.index("i")
PIXEL_SCALE = 0.2  # arcsec
# LSST after ten years: the constants of the bundle "lsst", which has them from galcheat 1.1.3
PSF_FWHM = (0.9, 0.86, 0.81, 0.79, 0.77, 0.76)  # arcsec, here of the effective PSF
SKY_SIGMA = (2.346235, 1.166606, 1.349151, 2.178013, 4.191885, 9.691909)  # nJy per pixel
COUNTS_PER_NJY = (16.8, 133.1102, 264.2038, 196.7610, 119.4652, 55.6213)  # electrons
VISITS = 184  # of 30 s in i, in galcheat's exposure time: an alert is one of them
# ln of the flux over that in i: mean and standard deviation of the bundle's training population
MEAN_COLOR = (-1.6139, -1.0863, -0.4784, 0.0, 0.3331, 0.5717)
COLOR_SIGMA = (0.6631, 0.4914, 0.2552, 0.0, 0.2022, 0.3317)
ZERO_POINT = 31.4  # nJy
PSF_SIZE = 41  # pixel
SEED = 2_026_112_3
IMAGE_STEP, VARIANCE_STEP, CENTER_STEP = 2.0**-7, 2.0**-10, 2.0**-10  # nJy, nJy^2, pixel; 0.7% of the sky noise in g
PSF_STEP = 2.0**-30


@dataclasses.dataclass(frozen=True)
class CaseScene:
    """The arrays that an engine is given, and the truth.

    Attributes
    ----------
    bands : tuple of str
    image, variance : float32 (n_band, n_y, n_x) [nJy], [nJy^2]
    centers : float64 (n_source, 2) [pixel]
    flux : float64 (n_source, n_band) [nJy]
    truth : float32 (n_band, n_y, n_x) [nJy]
        The image without noise.
    """

    bands: tuple[str, ...]
    image: NDArray[np.float32]
    variance: NDArray[np.float32]
    centers: FloatArray
    flux: FloatArray
    truth: NDArray[np.float32]

    @property
    def n_source(self) -> int:
        """Number of sources."""
        return len(self.centers)


@dataclasses.dataclass(frozen=True)
class Case:
    """A workload.

    Attributes
    ----------
    about : str
    kind : {"calls", "schedule", "process", "load"}
        How `perf.gate.runs` runs it.
    unit : str
        A size is a number of these.
    short, full : int
        Sizes.
    scene : callable
        Returns scene k of the case for (k, size).
    per_call : int
        Scenes of one call.
    """

    about: str
    kind: str
    unit: str
    short: int
    full: int
    scene: Callable[[int, int], CaseScene]
    per_call: int = 1

    def n_scene(self, size: int) -> int:
        """Number of scenes of a size."""
        return 1 if self.unit == "pixels" else size

    def scenes(self, size: int) -> Iterator[list[CaseScene]]:
        """The scenes of each call in turn."""
        n = self.n_scene(size)
        for start in range(0, n, self.per_call):
            yield [self.scene(k, size) for k in range(start, min(start + self.per_call, n))]


def _random(*key: int) -> np.random.RandomState:
    return np.random.RandomState(np.random.PCG64(np.random.SeedSequence([SEED, *key])))


def psf(bands: tuple[str, ...] = BANDS) -> FloatArray:
    """Effective PSF images, float64 (n_band, PSF_SIZE, PSF_SIZE)."""
    images = mixtures.psf_images(np.array(_fwhm(bands)), PSF_SIZE)
    return np.rint(images / PSF_STEP) * PSF_STEP


def _fwhm(bands: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(PSF_FWHM[BANDS.index(band)] / PIXEL_SCALE for band in bands)


def galaxy(rng: np.random.RandomState, center: FloatArray, magnitudes: tuple[float, float]) -> Galaxy:
    """Draw a galaxy: number counts 10^(0.31 i), sizes after Miller et al. (2013), as `deblendrt.training` does."""
    low, high = magnitudes
    u = rng.uniform()
    magnitude = high + np.log10(u + (1 - u) * 10 ** (-0.31 * (high - low))) / 0.31
    major = np.exp(-1.145 - 0.269 * (magnitude - 23.0)) / 1.1355 * rng.gamma(1.5) ** 0.75  # scale length, arcsec
    disk_ratio, bulge_ratio = np.clip(1 - 0.35 * np.sqrt(-2 * np.log(rng.uniform(0.03, 1.0, 2))), 0.2, 1.0)
    length = major * np.sqrt(disk_ratio)
    kind, share = rng.uniform(size=2)
    fraction = 1.0 if kind < 0.07 else share if kind < 0.32 else min(0.1 * abs(rng.standard_normal()), 1.0)
    radius = np.clip([length * np.exp(0.4 * rng.standard_normal()), 1.67835 * length], 0.05, 3.0) / PIXEL_SCALE
    red, mean, sigma = rng.standard_normal(), np.array(MEAN_COLOR), np.array(COLOR_SIGMA)
    sign = np.sign(np.arange(len(BANDS)) - REFERENCE)

    def spectrum(reddening: float) -> FloatArray:
        return np.exp(mean + 0.7 * sign * sigma * reddening)

    flux = 10 ** (0.4 * (ZERO_POINT - magnitude)) * np.exp(0.05 * np.abs(sign) * rng.standard_normal(len(BANDS)))
    return Galaxy(float(center[0]), float(center[1]), flux * fraction * spectrum(red + 0.8),
                  flux * (1 - fraction) * spectrum(red - 0.2), float(radius[0]), float(radius[1]),
                  float(bulge_ratio), float(disk_ratio), float(rng.uniform(0, np.pi)))


def expose(rng: np.random.RandomState, galaxies: list[Galaxy], shape: tuple[int, int],
           bands: tuple[str, ...] = BANDS, visits: float = 1.0) -> CaseScene:
    """Draw galaxies and add noise. The full depth has `visits` times the exposure of this scene."""
    index = [BANDS.index(band) for band in bands]
    mean = np.zeros((len(bands), *shape), np.float32)
    for one in galaxies:
        own = dataclasses.replace(one, bulge_flux=one.bulge_flux[index], disk_flux=one.disk_flux[index])
        image, (x, y) = mixtures.draw(own, _fwhm(bands))
        side = image.shape[-1]
        y0, y1 = max(y, 0), min(y + side, shape[0])
        x0, x1 = max(x, 0), min(x + side, shape[1])
        if y0 < y1 and x0 < x1:
            mean[:, y0:y1, x0:x1] += image[:, y0 - y : y1 - y, x0 - x : x1 - x]
    observed, variance = np.empty_like(mean), np.empty_like(mean)
    for b, light, out, out_variance in zip(index, mean, observed, variance, strict=True):
        total = visits * (SKY_SIGMA[b] ** 2 + np.maximum(light, 0) / COUNTS_PER_NJY[b])
        out_variance[...] = np.maximum(np.rint(total / VARIANCE_STEP), 1) * VARIANCE_STEP
        out[...] = np.rint((light + np.sqrt(total) * rng.standard_normal(shape)) / IMAGE_STEP) * IMAGE_STEP
    centers = np.array([(one.x, one.y) for one in galaxies])
    return CaseScene(bands, observed, variance, centers, np.array([one.flux[index] for one in galaxies]), mean)


def positions(rng: np.random.RandomState, n: int, propose: Callable[[], FloatArray], separation: float) -> FloatArray:
    """Draw positions no nearer to each other than `separation` [pixel], on multiples of `CENTER_STEP`."""
    placed: list[FloatArray] = []
    while len(placed) < n:
        center = np.rint(propose() / CENTER_STEP) * CENTER_STEP
        if all(((center - other) ** 2).sum() >= separation**2 for other in placed):
            placed.append(center)
    return np.array(placed)


def blend_scene(number: int, k: int) -> CaseScene:
    """Scene k of 2 to 8 galaxies within some arcsec in 101 x 101 pixels."""
    rng = _random(number, k)
    side, margin, spread = 101, 13.0, 12.0
    n = rng.randint(2, 9)
    middle = rng.uniform(margin + spread, side - 1 - margin - spread, 2)
    centers = positions(rng, n, lambda: np.clip(middle + spread * rng.standard_normal(2), margin, side - 1 - margin),
                        3.0)
    return expose(rng, [galaxy(rng, center, (19.0, 25.3)) for center in centers], (side, side))


def alert_scene(number: int, k: int) -> CaseScene:
    """Scene k of 1 to 3 sources in 41 x 41 pixels of one visit in i."""
    rng = _random(number, k)
    side, spread = 41, 4.0
    n = rng.randint(1, 4)
    centers = positions(rng, n, lambda: np.clip(20 + spread * rng.standard_normal(2), 5, 35), 3.5)
    return expose(rng, [galaxy(rng, center, (17.5, 22.0)) for center in centers], (side, side), ("i",), VISITS)


def crowded_scene(number: int, k: int) -> CaseScene:
    """Scene k of 60 galaxies in 121 x 121 pixels: 370 per square arcminute, six times the sky's to i = 25.3."""
    rng = _random(number, k)
    centers = positions(rng, 60, lambda: rng.uniform(8, 112, 2), 3.0)
    return expose(rng, [galaxy(rng, center, (19.0, 25.3)) for center in centers], (121, 121))


def patch_scene(number: int, side: int) -> CaseScene:
    """A field of the sky to i = 25.3 with 57 galaxies per square arcminute: ten thousand at 4000 x 4000 pixels."""
    rng = _random(number, side)
    centers = rng.uniform(-0.5, side - 0.5, (max(1, round(57 * (side * PIXEL_SCALE / 60) ** 2)), 2))
    centers = np.clip(np.rint(centers / CENTER_STEP) * CENTER_STEP, 0, side - 1)
    return expose(rng, [galaxy(rng, center, (18.0, 25.3)) for center in centers], (side, side))


CASES = {
    "single_stream": Case("one scene at a time: latency", "calls", "scenes", 4, 200, lambda k, size: blend_scene(1, k)),
    "offline": Case("scenes in calls of 64: throughput", "calls", "scenes", 8, 2000,
                    lambda k, size: blend_scene(2, k), 64),
    "burst": Case("alert cutouts that arrive by a fixed schedule, 2000 a second: latency from the arrival", "schedule",
                  "cutouts", 16, 10_000, lambda k, size: alert_scene(3, k), 64),
    "crowded": Case("60 sources in 121 x 121 pixels", "calls", "scenes", 1, 20, lambda k, size: crowded_scene(4, k)),
    "patch": Case("a coadd as one scene, memory bounded", "calls", "pixels", 256, 4000,
                  lambda k, size: patch_scene(5, size)),
    "cold_start": Case("a new process, from its start to its first result", "process", "scenes", 1, 1,
                       lambda k, size: blend_scene(6, k)),
    "memory": Case("peak memory of a new process that solves a patch", "process", "pixels", 256, 2000,
                   lambda k, size: patch_scene(7, size)),
    "model_load": Case("loading the model, and its first call", "load", "scenes", 1, 1,
                       lambda k, size: blend_scene(8, k)),
}


def arrivals(n: int) -> FloatArray:
    """Arrival times of the burst's cutouts [s]: a Poisson process of 2000 a second, 10,000 within 5 s."""
    return np.cumsum(-np.log1p(-_random(30).uniform(size=n))) / 2000.0


def digest(name: str, size: int) -> str:
    """SHA-256 of the arrays that an engine is given and of the true fluxes, in whole steps."""
    found = hashlib.sha256()
    case = CASES[name]
    for scenes in case.scenes(size):
        for scene in scenes:
            found.update("".join(scene.bands).encode())
            for values, step in ((psf(scene.bands), PSF_STEP), (scene.image, IMAGE_STEP),
                                 (scene.variance, VARIANCE_STEP), (scene.centers, CENTER_STEP),
                                 (scene.flux, IMAGE_STEP)):
                whole = np.rint(np.asarray(values, np.float64) / step).astype("<i8")
                found.update(np.array(whole.shape, "<i8").tobytes() + whole.tobytes())
    if case.kind == "schedule":
        found.update(np.rint(arrivals(size) * 1e6).astype("<i8").tobytes())
    return found.hexdigest()


# SHA-256 of the short sizes, as `python -m perf cases` prints them
DIGESTS = {
    "single_stream": "120fc0149065614d759e7ce4f07961c57f6628bd82172fed3169455ca2c3d9e6",
    "offline": "43f70afabd509fd942502a22f4010f8f1f15fa258d4a6303591bcb3f4604c64f",
    "burst": "f38493542f142352a262f80e2debc29618d97b48e1858444e5ab493dce837e76",
    "crowded": "429c31d0ecda3303b4367d1a0c120342e07e17b69660f99865fd0329b4f5d922",
    "patch": "998a5bd03f78b0120ba148dca34e57b996e15620dc98f1da52444ff15b91bec8",
    "cold_start": "d2344262f3ec3e0bdab9c8dd22c049a3054fcca99e6151b7fd2f61621f886d0b",
    "memory": "cc7777737028e68fb94bff7b2417870ad5f38b2730514a181165fd8037d28e48",
    "model_load": "b43e0c3f8cbd6a13a5a31eb1cfef88cdf6b571166c7b9fdcc3c5916ae11894f0",
}
