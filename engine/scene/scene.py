"""Scenes: what the caller gives, checked and brought to one form.

A scene is an image in every band of the model, its inverse variance and the centres of its sources. Images come in
any shape, type, unit and band subset; what leaves this module is float32 nJy in the model's band order with weight
zero wherever there is nothing to fit. Problems of the data become flags of the sources they touch. Mistakes of the
caller raise ValueError.

A value may be given once for all scenes (bands, zero point, PSF, per-band variance) or once per scene, nested like
the cutouts. Arguments are never modified.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deblendrt.engine.scene.arguments import (
    GivenPixels,
    band_names,
    check_pixel_scale,
    per_scene,
    read_centers,
    read_kind,
    read_pixels,
    split_cutouts,
)
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.scene.psf import NORM_TOLERANCE, normalize_psf
from deblendrt.engine.scene.psf_field import CellPsf, PsfField, psf_field
from deblendrt.engine.scene.windows import Windows, anchor_pixels, too_close

FILL_SIGMA = 1e8  # a fill value, not light: stars saturate below 1e6, and squares in float32 overflow at 1e19
ESTIMATE_PIXELS = 1_000_000  # a variance needs no more: its own error is then 0.2%


@dataclass(frozen=True, eq=False)
class Scene:
    """One image and the sources in it, in the model's bands.

    Attributes
    ----------
    image : float32 (n_band, n_y, n_x) [nJy]
        Zero where `inverse_variance` is.
    inverse_variance : float32 (n_band, n_y, n_x) [nJy^-2]
        Zero where the pixel is masked, bad or the band missing.
    centers : float64 (n_source, 2) [pixel]
        (x, y) as given; an integer is the centre of a pixel.
    flags : int64 (n_source,)
        Bits of `Flag` that the input sets.
    psf : float64 (n_band, q, q), PsfField, or None
        Effective PSF images of sum one; None stands for the model's nominal ones. A band without data has the mean of
        the others.
    star : bool (n_source,)
        Point sources, the rest are galaxies.
    auto : bool (n_source,)
        Whether `star` is for the engine to find out.
    band_present : bool (n_band,)
        The band has weight somewhere in the scene.
    name : str
    """

    image: NDArray[np.float32]
    inverse_variance: NDArray[np.float32]
    centers: NDArray[np.float64]
    flags: NDArray[np.int64]
    psf: NDArray[np.float64] | PsfField | None
    star: NDArray[np.bool_]
    auto: NDArray[np.bool_]
    band_present: NDArray[np.bool_]
    name: str = ""

    @property
    def n_source(self) -> int:
        """Number of sources."""
        return len(self.centers)

    @property
    def shape(self) -> tuple[int, int]:
        """Image size (n_y, n_x) [pixel]."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def anchors(self) -> NDArray[np.int64]:
        """Anchor pixels, int64 (n_source, 2), (x, y): the pixel a centre lies in."""
        return anchor_pixels(self.centers, self.shape)


def make_scenes(cutouts: Any, centers: Any, *, bundle_bands: Sequence[str], bundle_pixel_scale: float,
                window_half: int, bands: str | Sequence[str] | None = None, variance: Any = None, mask: Any = None,
                psf: Any = None, background: Any = None, zero_point: ArrayLike | None = None, pixel_scale: Any = None,
                kind: Any = None, bundle_sky_sigma: ArrayLike | None = None) -> list[Scene]:
    """Check a batch of scenes and bring it to the model's bands and units.

    Parameters
    ----------
    cutouts : number (n_band, n_y, n_x), (n_scene, n_band, n_y, n_x), or a sequence of the former
        One scene, or several of any sizes. With a single band, (n_y, n_x) stands for (1, n_y, n_x). nJy unless an
        astropy Quantity or with `zero_point`. NaN and infinite pixels are dropped.
    centers : float (n_source, 2) [pixel], or a sequence of such, nested like `cutouts`
        (x, y), 0-based, integer = pixel centre.
    bundle_bands : sequence of str
        The model's bands.
    bundle_pixel_scale : float [arcsec]
    window_half : int [pixel]
        Half-width of a source's window around its anchor pixel, in which flags look for bad pixels.
    bands : str or sequence of str, optional
        Names of the cutouts' bands in their order, "gri" or ["g", "r", "i"]; default: the model's.
    variance : float, optional
        Total variance, in the squared unit of the image: a number, (n_band,), or like a cutout; the first two may
        serve all scenes. Infinite means masked. Default: the sky's, estimated from pixel differences.
    mask : bool (n_y, n_x) or (n_band, n_y, n_x), per scene, optional
        True means bad.
    psf : float (n_band, q, q), optional
        Effective PSFs of the cutouts' bands, for all scenes or one per scene; default: the model's nominal ones. A
        list of 2-D images of different odd sizes serves as well. Where the PSF varies over the image: a `CellPsf`, or a
        callable (x, y) -> images, which is sampled in cells of some 200 pixels.
    background : float, optional
        Subtracted: a number, (n_band,), or like a cutout; in the unit of the image.
    zero_point : float or (n_band,), optional [AB magnitude of one image unit]
        The image is in counts.
    pixel_scale : float or Quantity, optional [arcsec]
        Checked against the model's.
    kind : str, or sequence of str (n_source,), or a sequence of these, optional
        "galaxy", "star" or "auto", for all sources or for each, nested like `centers`; default: galaxies.
    bundle_sky_sigma : float (len(bundle_bands),), optional [nJy]
        Noise of a pixel at nominal depth, for images too small or too smooth to estimate it from.

    Returns
    -------
    list of Scene

    Raises
    ------
    ValueError
        A mistake in the arguments: the message names the argument, what was expected and what came.
    """
    names = band_names(bands, bundle_bands)
    check_pixel_scale(pixel_scale, bundle_pixel_scale)
    images, nested = split_cutouts(cutouts, names)
    n = len(images)
    center_list = per_scene(centers, "centers", n, nested)
    variance_list = per_scene(variance, "variance", n, nested, shared_ranks=(0, 1))
    mask_list = per_scene(mask, "mask", n, nested)
    # With one band, several 2-D images are the scenes' PSFs, a single one serves all.
    single = isinstance(psf, Sized) and getattr(psf, "shape", None) != () and len(psf) == 1
    psf_ranks = (3,) if len(names) > 1 else (2, 3) if single else (2,)
    varies = callable(psf) or isinstance(psf, CellPsf)
    psf_list = [psf] * n if varies else per_scene(psf, "psf", n, nested, shared_ranks=psf_ranks)
    kind_list = [kind] * n if kind is None or isinstance(kind, str) else per_scene(kind, "kind", n, nested)
    background_list = per_scene(background, "background", n, nested, shared_ranks=(0, 1))
    target = np.array([list(bundle_bands).index(name) for name in names])
    sky = np.full(len(bundle_bands), np.nan) if bundle_sky_sigma is None else np.asarray(bundle_sky_sigma, np.float64)
    folded: dict[tuple[int, bytes], tuple[NDArray[np.float64] | None, bool]] = {}
    fields: dict[tuple[int, bytes, tuple[int, ...]], PsfField] = {}
    scenes = []
    for i in range(n):
        where = f"[{i}]" if nested else ""
        pixels = read_pixels(images[i], variance_list[i], mask_list[i], background_list[i], zero_point, names, where)
        given = read_centers(center_list[i], "centers" + where)
        image, weight, not_finite, bad_variance = _convert(pixels, target, sky)
        windows = Windows(given, (image.shape[1], image.shape[2]), window_half)
        flags = _window_flags(weight, windows)
        flags[windows.counts(not_finite) > 0] |= Flag.NON_FINITE
        flags[windows.counts(bad_variance) > 0] |= Flag.BAD_VARIANCE
        flags[too_close(np.where(windows.on_image[:, None], given, np.nan))] |= Flag.TOO_CLOSE
        flags |= Flag.VARIANCE_ESTIMATED if pixels.variance is None else 0
        present = np.asarray((weight > 0).any(axis=(1, 2)))
        images_psf: NDArray[np.float64] | PsfField | None = None
        if callable(psf_list[i]) or isinstance(psf_list[i], CellPsf):
            place = (id(psf_list[i]), present.tobytes(), image.shape)
            if place not in fields and present.any():
                fields[place] = _psf_field(psf_list[i], image.shape[1:], target, present, names, "psf" + where)
            if place in fields:
                images_psf = fields[place]
                flags[images_psf.renormalized[images_psf.at(given)]] |= Flag.PSF_NOT_NORMALIZED
                flags[~images_psf.given[images_psf.cells(given)]] |= Flag.PSF_MISSING
        elif psf_list[i] is not None:
            key = (id(psf_list[i]), present.tobytes())  # scenes that share a PSF share one array
            if key not in folded:
                folded[key] = _psf_images(psf_list[i], target, present, names, "psf" + where)
            images_psf, odd_sum = folded[key]
            flags |= Flag.PSF_NOT_NORMALIZED if odd_sum else 0
        flags[~windows.on_image] = Flag.OFF_IMAGE
        flags[~np.isfinite(given).all(1)] = Flag.CENTER_NOT_FINITE
        star, auto = read_kind(kind_list[i], "kind" + where, len(given))
        scenes.append(Scene(image, weight, given, flags, images_psf, star, auto, present, str(i)))
    return scenes


def with_sources(scene: Scene, centers: NDArray[np.float64], window_half: int) -> Scene:
    """The scene with further sources of unknown kind at the end of its list, flagged as found.

    Parameters
    ----------
    scene : Scene
    centers : float64 (n, 2) [pixel]
        On the image.
    window_half : int [pixel]

    Returns
    -------
    Scene
        The same one if there are none.
    """
    if not len(centers):
        return scene
    flags = _window_flags(scene.inverse_variance, Windows(centers, scene.shape, window_half)) | int(Flag.FOUND)
    return dataclasses.replace(scene, centers=np.concatenate([scene.centers, centers]),
                               flags=np.concatenate([scene.flags, flags]),
                               star=np.concatenate([scene.star, np.zeros(len(centers), bool)]),
                               auto=np.concatenate([scene.auto, np.ones(len(centers), bool)]))


def with_stars(scene: Scene, star: NDArray[np.bool_]) -> Scene:
    """The scene with these point sources, bool (n_source,); the same one if they are those that it has."""
    return scene if (star == scene.star).all() else dataclasses.replace(scene, star=star)


def estimate_variance(image: NDArray[np.float64], usable: NDArray[np.bool_]) -> float:
    """Variance of the sky in one band, from the differences of neighbouring pixels.

    sigma = 1.4826 MAD(y[p] - y[p']) / sqrt(2): sources change the median of the absolute differences little. Noise
    that is correlated between pixels, as in a resampled coadd, comes out too small, and photon noise of the sources
    is not included.

    Parameters
    ----------
    image : float64 (n_y, n_x)
    usable : bool (n_y, n_x)

    Returns
    -------
    float
        NaN if there are fewer than 16 differences, or more than half of them are equal.
    """
    step = max(1, image.size // ESTIMATE_PIXELS)
    first, right = (slice(None, None, step), slice(None, -1)), (slice(None, None, step), slice(1, None))
    upper, lower = slice(None, -1, step), slice(1, None, step)
    difference = np.concatenate([
        (image[right] - image[first])[usable[right] & usable[first]],
        (image[lower] - image[upper])[usable[lower] & usable[upper]],
    ])
    if difference.size < 16:
        return np.nan
    deviation = 1.4826 * float(np.median(np.abs(difference - np.median(difference))))
    return 0.5 * deviation**2 if deviation > 0 else np.nan


def _convert(pixels: GivenPixels, target: NDArray[np.int64], sky: NDArray[np.float64],
             ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Image and inverse variance in the model's bands; where a band was dropped as not finite, or for its variance."""
    shape = (len(sky), *pixels.image.shape[1:])
    image, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    not_finite, bad_variance = np.zeros(shape[1:], bool), np.zeros(shape[1:], bool)
    # One band at a time bounds the float64 temporaries of a coadd patch.
    for b, t in enumerate(target):
        values = pixels.image[b].astype(np.float64) * pixels.factor[b]
        if pixels.background is not None:
            values -= pixels.background[b].astype(np.float64) * pixels.background_factor[b]
        unmasked = np.ones(shape[1:], bool)
        for mask in pixels.masks:
            unmasked &= ~mask[b % len(mask)]
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            single = values.astype(np.float32)
            finite = np.isfinite(single)
            if pixels.variance is None:
                estimate = estimate_variance(values, unmasked & finite)
                estimate = sky[t] ** 2 if np.isnan(estimate) else estimate
                variance = np.asarray(np.inf if np.isnan(estimate) else estimate)
            else:
                variance = pixels.variance[b].astype(np.float64) * pixels.variance_factor[b]
            inverse = (1 / variance).astype(np.float32)
        known = (variance > 0) & np.isfinite(inverse)
        significance = np.abs(np.where(finite, values, 0.0)) * np.sqrt(np.where(known, inverse, np.float32(0)))
        finite &= significance < FILL_SIGMA
        not_finite |= unmasked & ~finite
        bad_variance |= unmasked & ~known
        weight[t] = np.where(unmasked & finite & known, inverse, 0)
        image[t] = np.where(weight[t] > 0, single, 0)
    return image, weight, not_finite, bad_variance


def _window_flags(weight: NDArray[np.float32], windows: Windows) -> NDArray[np.int64]:
    """Flags that follow from where there is weight."""
    flags = np.zeros(len(windows.anchor), np.int64)
    counts = np.array([windows.counts(band > 0) for band in weight])
    flags[(counts == 0).any(0)] |= Flag.BAND_MISSING
    flags[(counts == 0).all(0)] |= Flag.NO_DATA
    flags[windows.cut] |= Flag.EDGE
    if weight.size:
        x, y = windows.anchor.T
        flags[(weight[:, y, x] == 0).all(0)] |= Flag.MASKED_CENTER
    return flags


def _psf_field(psf: Any, shape: tuple[int, ...], target: NDArray[np.int64], present: NDArray[np.bool_],
               names: Sequence[str], name: str) -> PsfField:
    """PSFs of the cells of an image with data."""
    cells = psf if isinstance(psf, CellPsf) else CellPsf.sample(psf, (shape[0], shape[1]))

    def convert(images: Any, name: str) -> tuple[NDArray[np.float64], bool]:
        converted, odd = _psf_images(images, target, present, names, name)
        assert converted is not None  # some band has data
        return converted, odd

    return psf_field(cells, convert, name)


def _psf_images(psf: Any, target: NDArray[np.int64], present: NDArray[np.bool_], names: Sequence[str], name: str,
                ) -> tuple[NDArray[np.float64] | None, bool]:
    """PSF images in the model's bands, and whether one did not sum to one.

    A band without data needs no valid PSF, since pipelines have none to give; without any band there is nothing to
    convolve for.
    """
    try:
        planes = [np.asarray(plane, np.float64) for plane in psf]
        if len(names) == 1 and planes and planes[0].ndim == 1:
            planes = [np.asarray(psf, np.float64)]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: expected images ({len(names)}, q, q), got {type(psf).__name__}: {error}") from error
    shapes = [plane.shape for plane in planes]
    if len(planes) != len(names) or any(len(s) != 2 or s[0] != s[1] or s[0] % 2 == 0 for s in shapes):
        raise ValueError(f"{name}: expected odd-sized square images ({len(names)}, q, q) for the bands "
                         f"{', '.join(names)}, got shapes {shapes}")
    used = [b for b, t in enumerate(target) if present[t]]
    if not used:
        return None, False
    size = max(s[0] for s in shapes)
    stack = np.stack([np.pad(planes[b], (size - len(planes[b])) // 2) for b in used])
    normal, norm = normalize_psf(stack, f"{name} of the bands {', '.join(names[b] for b in used)}")
    images = np.broadcast_to(normal.mean(0), (len(present), size, size)).copy()
    images[target[used]] = normal
    images.flags.writeable = False
    return images, bool((np.abs(norm - 1) > NORM_TOLERANCE).any())
