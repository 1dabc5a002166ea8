"""Injected galaxies: HST galaxies of known flux, drawn into real blends beside their sources.

A galaxy of the HST COSMOS images (F814W) is turned, mirrored and scaled, gets colours of its own, is drawn with the
blend's PSFs, and added to the image 3 to 9 pixels from a listed source. Its S/N, all bands together and alone, is 20 to
300. It gets no photon noise of its own: the sky dominates. Its listed position is off by 0.15 pixel per axis. The true
flux is that of the drawn profile, also where it lies outside the footprint (2% of it in the median, 17% at most). HST's
own PSF (0.1 arcsec) stays in it. The galaxies of even index serve for learning, so those of odd index are injected, in
tuning and test blends alike.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import galsim
import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import trusted
from deblendrt.training.detail.galaxies import read_galaxies
from perf import metrics
from perf.report import median
from perf.studies.sky import blends
from perf.studies.sky.blends import BANDS, Blend

HSC_SCALE = 0.168  # arcsec
LEAST_SNR = 20.0  # of an HST image
SNR = (20.0, 300.0)
FAINT = 60.0  # S/N up to which an injected galaxy counts as faint
DISTANCE = (3.0, 9.0)  # pixel from a listed source
SIZES = (0.8, 1.8)  # factors of the size on the sky
CORE = 20.0  # HST pixel: the centroid is of the light within this of the brightest pixel
CORE_SMOOTHING = 3.0  # HST pixel: sigma of the Gaussian before that
CENTER_ERROR = 0.15  # pixel, of the listed position, per axis
MARGIN = 3  # pixel around the centre that must have data
DRAWS = 2  # galaxies per blend, each in an image of its own
TRIES = 300
SEED = 810_450_302


@dataclass(frozen=True)
class Injected:
    """A blend with one more galaxy, which is the last of its sources.

    Attributes
    ----------
    blend : Blend
        The real one.
    image : float64 (n_band, n_y, n_x) [nJy]
    centers : float64 (n_source, 2) [pixel]
        As listed.
    flux : float64 (n_band,) [nJy]
        True flux of the galaxy.
    snr : float
    position : float64 (2,) [pixel]
        True position of the galaxy's centroid.
    """

    blend: Blend
    image: NDArray[np.float64]
    centers: NDArray[np.float64]
    flux: NDArray[np.float64]
    snr: float
    position: NDArray[np.float64]


def centroid(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Position of a galaxy's core, from the middle of its stamp (x, y) [pixel of the stamp]."""
    smooth = blends.smoothed(image, CORE_SMOOTHING)
    peak_y, peak_x = np.unravel_index(smooth.argmax(), smooth.shape)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    light = np.where(np.hypot(x - peak_x, y - peak_y) < CORE, np.maximum(smooth, 0), 0)
    return np.array([(light * axis).sum() / light.sum() - (n - 1) / 2
                     for axis, n in ((x, image.shape[1]), (y, image.shape[0]))])


@functools.lru_cache(maxsize=2)
def galaxies(path: Path) -> tuple[galsim.GSObject, ...]:
    """Profiles of unit flux of the HST galaxies of odd index with enough S/N, centred on their cores.

    The border's median is subtracted, and the outer tenth of the stamp is tapered to 0.
    """
    found = []
    for galaxy in read_galaxies(path)[1::2]:
        image, scale = galaxy.image, galaxy.pixel_scale
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        sky = np.median(border)
        noise = 1.4826 * np.median(abs(border - sky))
        y, x = (2 * (np.arange(n) + 0.5) / n - 1 for n in image.shape)
        inside = np.clip((1 - np.hypot(x, y[:, None])) / 0.1, 0, 1)
        image = (image - sky) * np.sin(0.5 * np.pi * inside) ** 2
        if image.sum() > LEAST_SNR * noise * np.sqrt((inside > 0).sum()):
            profile = galsim.InterpolatedImage(galsim.Image(image, scale=scale), flux=1.0)
            found.append(profile.shift(*(-scale * centroid(image))))
    if not found:
        raise ValueError(f"path: expected HST galaxies with S/N above {LEAST_SNR:g}, found none in {path}")
    return tuple(found)


def colours(rng: np.random.Generator) -> NDArray[np.float64]:
    """Fluxes in grizy, relative to i: colours from a star-forming to an old galaxy, with scatter."""
    g_r = rng.uniform(0.1, 1.3)
    r_i, i_z, z_y = np.array([0.45, 0.25, 0.15]) * g_r + 0.06 * rng.standard_normal(3)
    return 10 ** (-0.4 * np.array([g_r + r_i, r_i, 0.0, -i_z, -i_z - z_y]))


def _place(blend: Blend, rng: np.random.Generator) -> NDArray[np.float64] | None:
    """A position inside the footprint, near a source and on none; None if there is no such place."""
    data = (blend.weight > 0).all(0)
    for _ in range(TRIES):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(*DISTANCE)
        position = blend.peaks[rng.integers(len(blend.peaks))] + distance * np.array([np.cos(angle), np.sin(angle)])
        x, y = (int(v) for v in np.rint(position))
        around = data[max(y - MARGIN, 0) : y + MARGIN + 1, max(x - MARGIN, 0) : x + MARGIN + 1]
        if (np.hypot(*(blend.peaks - position).T).min() >= DISTANCE[0] and around.shape == (2 * MARGIN + 1,) * 2
                and around.all()):
            return position
    return None


def inject(blend: Blend, hst: Path, draw: int = 0) -> Injected | None:
    """Add a galaxy to a blend; always the same for a blend and a draw. None if the blend has no place for it."""
    rng = np.random.default_rng([SEED, blend.number, draw])
    position = _place(blend, rng)
    if position is None:
        return None
    pool = galaxies(hst)
    profile = pool[rng.integers(len(pool))].dilate(np.exp(rng.uniform(*np.log(SIZES))))
    profile = profile.transform(1, 0, 0, rng.choice([-1.0, 1.0])).rotate(rng.uniform(0, 360) * galsim.degrees)
    n_y, n_x = blend.image.shape[1:]
    middle = np.array([(n_x - 1) / 2, (n_y - 1) / 2])
    drawn = np.stack([
        galsim.Convolve(profile, galsim.InterpolatedImage(galsim.Image(psf, scale=HSC_SCALE), flux=1.0)).drawImage(
            nx=n_x, ny=n_y, scale=HSC_SCALE, offset=tuple(position - middle), method="no_pixel", dtype=float).array
        for psf in blend.psf])
    flux = colours(rng)
    drawn *= flux[:, None, None]
    snr = float(np.exp(rng.uniform(*np.log(SNR))))
    factor = snr / np.sqrt((blend.weight * drawn**2).sum())
    listed = position + CENTER_ERROR * rng.standard_normal(2)
    return Injected(blend, blend.image + factor * drawn, np.vstack([blend.peaks, listed]), factor * flux, snr, position)


def inject_all(all_blends: Sequence[Blend], hst: Path, draws: int = DRAWS) -> list[Injected]:
    """Galaxies in all blends that have a place for them."""
    made = [inject(blend, hst, draw) for draw in range(draws) for blend in all_blends]
    return [one for one in made if one is not None]


def flux_score(scenes: Sequence[Injected], flux: NDArray[np.float64]) -> dict[str, Any]:
    """Errors of fluxes and colours, for every deblender.

    Parameters
    ----------
    scenes : sequence of Injected
    flux : float64 (n_scene, n_band) [nJy]
        Fluxes of the injected galaxies; NaN where a deblender failed.

    Returns
    -------
    dict
        ``error``, ``error_faint``, ``error_bright`` and ``bias`` of the flux in i (medians), ``color_error`` of g - i
        [mag], ``n`` and ``n_failed``; ``errors`` has F / F_true - 1 in i of every galaxy.
    """
    true, snr, i = np.array([s.flux for s in scenes]), np.array([s.snr for s in scenes]), BANDS.index("i")
    relative = flux[:, i] / true[:, i] - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        color = -2.5 * np.log10(np.maximum(flux[:, 0] / flux[:, i], 1e-9) / (true[:, 0] / true[:, i]))

    return {"error": median(abs(relative)), "error_faint": median(abs(relative[snr <= FAINT])),
            "error_bright": median(abs(relative[snr > FAINT])), "bias": median(relative),
            "color_error": median(abs(color)), "n": len(true), "n_failed": int((~np.isfinite(relative)).sum()),
            "errors": relative.tolist()}


def injected_rows(scenes: Sequence[Injected], result: DeblendResult) -> dict[str, NDArray[Any]]:
    """Columns of the engine's rows of the injected galaxies, by name; `color` is g - i [mag]."""
    rows = [result.sources(k).start + len(s.centers) - 1 for k, s in enumerate(scenes)]
    color, color_err = result.color("g", "i")
    names = ("flux", "flux_err", "flux_sys_err", "flags", "position", "position_err")
    return {**{name: getattr(result, name)[rows] for name in names}, "color": color[rows], "color_err": color_err[rows]}


def error_score(scenes: Sequence[Injected], found: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Errors and flags of the engine against the truth.

    Parameters
    ----------
    scenes : sequence of Injected
    found : mapping
        `injected_rows`.

    Returns
    -------
    dict
        For the injected galaxies in i: ``width`` of the pulls and share ``beyond_3`` sigma with `flux_err`;
        ``width_total`` and ``beyond_3_total`` with `flux_sys_err` in quadrature. ``untrusted``: share of the
        sources that are not trusted; ``untrusted_right``: share of these within 3 sigma; ``missed``: share of the
        others beyond 3 sigma, both with the total error. ``color_width`` of g - i and ``position_width``: widths of
        pulls.
    """
    true, i = np.array([s.flux for s in scenes]), BANDS.index("i")
    miss, error = (found["flux"] - true)[:, i], found["flux_err"][:, i]
    pull, total = miss / error, miss / np.hypot(error, found["flux_sys_err"][:, i])
    color_pull = (found["color"] + 2.5 * np.log10(true[:, 0] / true[:, i])) / found["color_err"]
    place_pull = (found["position"] - [s.position for s in scenes]) / found["position_err"]
    good, wrong = trusted(found["flags"]), ~(abs(total) <= 3)

    def share(values: NDArray[np.bool_]) -> float:
        return float(values.mean()) if len(values) else float("nan")

    pulls = {"width": pull, "width_total": total, "color_width": color_pull, "position_width": place_pull}
    return {name: metrics.pull_summary(values)["width"] for name, values in pulls.items()} | {
        "beyond_3": share(~(abs(pull) <= 3)), "beyond_3_total": share(wrong), "untrusted": share(~good),
        "untrusted_right": share(~wrong[~good]), "missed": share(wrong[good])}


def measure(deblender: Deblender, scenes: Sequence[Injected],
            options: Mapping[str, Any]) -> tuple[dict[str, Any], DeblendResult]:
    """Deblend blends with injected galaxies. Returns the figures of both scores and the time, and the result."""
    result, seconds = blends.deblend(deblender, [s.image for s in scenes], [s.blend.weight for s in scenes],
                                     [s.centers for s in scenes], scenes[0].blend.psf, options)
    found = injected_rows(scenes, result)
    return {**flux_score(scenes, found["flux"]), **error_score(scenes, found), "ms_per_source": 1e3 * seconds}, result
