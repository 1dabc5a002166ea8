"""Scenes: the caller's images and sources, checked and brought to one form.

A scene is an image in every band of the model, its inverse variance and the centres of its sources. Images may have
any shape, type and unit, and any subset of the bands. This module returns float32 images in nJy, in the model's band
order, with weight zero in all pixels without data. Problems of the data become flags of the sources that they affect.
Mistakes of the caller raise ValueError.

A value may be given once for all scenes (bands, zero point, PSF, per-band variance) or once per scene, nested like
the cutouts. Arguments are never modified.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deblendrt.engine.scene.arguments import (
    GivenPixels,
    check_pixel_scale,
    chosen_bands,
    notify_order,
    per_scene,
    read_kind,
    read_pixels,
    split_cutouts,
)
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.scene.images import GivenImages, Images, checked_band, with_variance
from deblendrt.engine.scene.objects.attached import attached
from deblendrt.engine.scene.objects.bands import in_order
from deblendrt.engine.scene.objects.positions import read_positions
from deblendrt.engine.scene.objects.world import check_same_grid, pixel_scales, read_wcs
from deblendrt.engine.scene.psf.argument import NOMINAL, GivenPsfs
from deblendrt.engine.scene.psf.field import PsfField
from deblendrt.engine.scene.windows import Windows, anchor_pixels, too_close
from deblendrt.engine.scene.zero_regions import zero_regions
from deblendrt.engine.units import notify


@dataclass(frozen=True, eq=False)
class Scene:
    """One image and the sources in it, in the model's bands.

    Attributes
    ----------
    images : ReadyImages or GivenImages
        The pixels. `GivenImages` refers to the caller's arrays: a later change of these arrays changes `image` and
        `inverse_variance`, and with them the residual of a result.
    centers : float64 (n_source, 2) [pixel]
        (x, y) as given; an integer is the centre of a pixel.
    flags : int64 (n_source,)
        Bits of `Flag` that the input sets.
    psf : float64 (n_band, q, q), PsfField, or None
        Effective PSF images of sum one; None stands for the model's nominal PSFs. A band without data has the mean of
        the other bands' PSFs.
    star : bool (n_source,)
        Whether a source is a point source; other sources are galaxies.
    auto : bool (n_source,)
        Whether the engine decides if the source is a star.
    band_present : bool (n_band,)
        Whether a pixel of the scene has weight in the band.
    n_pixel : int
        Number of pixels with weight, summed over the bands. A part of a scene has the number of the whole scene.
    name : str
    """

    images: Images
    centers: NDArray[np.float64]
    flags: NDArray[np.int64]
    psf: NDArray[np.float64] | PsfField | None
    star: NDArray[np.bool_]
    auto: NDArray[np.bool_]
    band_present: NDArray[np.bool_]
    n_pixel: int
    name: str = ""

    @property
    def image(self) -> NDArray[np.float32]:
        """Image, float32 (n_band, n_y, n_x) [nJy], zero where `inverse_variance` is zero. Made at every access."""
        return self.images.image

    @property
    def inverse_variance(self) -> NDArray[np.float32]:
        """Inverse variance, float32 (n_band, n_y, n_x) [nJy^-2], zero in masked and bad pixels and in missing bands.

        Made at every access.
        """
        return self.images.inverse_variance

    def window(self, x: int, y: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return image and inverse variance of a window, float32 (n_band, size, size) each, zero off the image.

        Parameters
        ----------
        x, y : int [pixel]
            First pixel of the window; it may lie off the image.
        size : int [pixel]
        """
        (y0, y1), (x0, x1) = ((min(max(low, 0), n), min(max(low + size, 0), n))
                              for low, n in zip((y, x), self.shape, strict=True))
        cut = np.zeros((2, len(self.band_present), size, size), np.float32)
        image, weight = self.images.cut(slice(y0, y1), slice(x0, x1)).arrays()
        inside = (slice(None), slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
        cut[0][inside], cut[1][inside] = image, weight
        return cut[0], cut[1]

    @property
    def n_source(self) -> int:
        """Number of sources."""
        return len(self.centers)

    @property
    def shape(self) -> tuple[int, int]:
        """Image size (n_y, n_x) [pixel]."""
        _, n_y, n_x = self.images.shape
        return n_y, n_x

    @property
    def anchors(self) -> NDArray[np.int64]:
        """Anchor pixels, int64 (n_source, 2), (x, y): the pixels in which the centres lie."""
        return anchor_pixels(self.centers, self.shape)


def make_scenes(cutouts: Any, centers: Any, *, bundle_bands: Sequence[str], bundle_pixel_scale: float,
                window_half: int, bands: str | Sequence[str] | None = None, variance: Any = None, mask: Any = None,
                psf: Any = NOMINAL, background: Any = None, zero_point: ArrayLike | None = None,
                pixel_scale: Any = None, kind: Any = None, wcs: Any = None,
                bundle_sky_sigma: ArrayLike | None = None,
                bundle_psf_fwhm: Sequence[float] | None = None, zeros: str = "missing") -> list[Scene]:
    """Check a batch of scenes and bring it to the model's bands and units.

    Parameters
    ----------
    cutouts : number (n_band, n_y, n_x), (n_scene, n_band, n_y, n_x), or a sequence of images
        One scene, or several scenes of any sizes. With a single band, (n_y, n_x) stands for (1, n_y, n_x). The unit is
        nJy, unless the images are astropy Quantities or `zero_point` is given. NaN and infinite pixels are dropped.
        An image may be an object of astropy, NumPy, pandas or xarray, as the page of inputs lists them.
    centers : float (n_source, 2) [pixel], or a sequence of such arrays, nested like `cutouts`
        (x, y), 0-based; an integer is the centre of a pixel. Or tables or SkyCoords, see `read_positions`.
    bundle_bands : sequence of str
        The model's bands.
    bundle_pixel_scale : float [arcsec]
    window_half : int [pixel]
        Half-width of a source's window around its anchor pixel, in which flags look for bad pixels.
    bands : str or sequence of str, optional
        Names of the cutouts' bands in their order, "gri" or ["g", "r", "i"]; default: the model's bands.
    variance : float, optional
        Total variance, in the squared unit of the image: a number, an array (n_band,), or an array like a cutout. All
        scenes may share a number or an array (n_band,). A pixel of infinite variance is masked. Default: the variance
        of the sky, estimated from pixel differences.
    mask : bool (n_y, n_x) or (n_band, n_y, n_x), per scene, optional
        True means bad.
    psf : optional
        Effective PSFs (the pixel included), for all scenes or for each scene. For each band an image (q, q), a FWHM in
        arcsec, a model of Piff, photutils, astropy or GalSim, or the path of a FITS or PSFEx file: as an array
        (n_band, q, q), a sequence or a dict by band; or one of these for all bands. A PSF that varies over the image
        may also be a `CellPsf`, or a callable (x, y) -> images, which is sampled in cells of some 200 pixels. "nominal"
        means the model's nominal PSFs; with None they are used too, with a warning and a flag. Even-sized images, and
        images off centre, are moved to the centroid of the PSF, with a warning.
    background : float, optional
        Background to subtract, in the unit of the image: a number, an array (n_band,), or an array like a cutout.
    zero_point : float or (n_band,), optional [AB magnitude of one image unit]
        Zero point of an image in counts.
    pixel_scale : float or Quantity, optional [arcsec]
        Pixel scale of the cutouts, which must be the model's.
    kind : str, or sequence of str (n_source,), or a sequence of these, optional
        "galaxy", "star" or "auto", for all sources or for each source, nested like `centers`; default: the column kind
        of a table of centres, or else "galaxy".
    wcs : WCS, or a list with a WCS for each scene, optional
        WCS of the images, for positions on the sky. Its pixel scale must be the model's.
    bundle_sky_sigma : float (len(bundle_bands),), optional [nJy]
        Noise of a pixel at nominal depth, for images that are too small or too smooth to estimate the noise.
    bundle_psf_fwhm : sequence of float, optional [arcsec]
        Widths of the model's nominal PSFs, for a notice.
    zeros : {"missing", "data"}
        Whether regions of exact zeros in noisy images are without data, see
        `deblendrt.engine.scene.zero_regions`.

    Returns
    -------
    list of Scene

    Raises
    ------
    ValueError
        An argument is wrong. The message names the argument, the expectation and the value.
    """
    names = chosen_bands(cutouts, bands, bundle_bands)
    check_pixel_scale(pixel_scale, bundle_pixel_scale)
    images, nested = split_cutouts(cutouts, names)
    notify_order(cutouts, names, {"variance": variance, "mask": mask, "psf": psf, "background": background,
                                  "zero_point": zero_point})
    n = len(images)
    center_list = per_scene(centers, "centers", n, nested)
    wcs_list = per_scene(wcs, "wcs", n, nested) if isinstance(wcs, list | tuple) else [wcs] * n
    shared = partial(per_scene, n_scene=n, nested=nested, n_band=len(names))
    numbers = partial(shared, shared_ranks=(0, 1), band_ranks=(1,))
    variance_list, background_list = numbers(variance, "variance"), numbers(background, "background")
    zero_point_list = numbers(zero_point, "zero_point")
    mask_list = shared(mask, "mask", band_ranks=(3,) if len(names) > 1 else ())
    kind_list = [kind] * n if kind is None or isinstance(kind, str) else per_scene(kind, "kind", n, nested)
    target = np.array([list(bundle_bands).index(name) for name in names])
    sky = np.full(len(bundle_bands), np.nan) if bundle_sky_sigma is None else np.asarray(bundle_sky_sigma, np.float64)
    psfs = GivenPsfs(psf, names, target, n, nested, bundle_pixel_scale)
    if zeros not in ("missing", "data"):
        raise ValueError(f"zeros: expected 'missing' or 'data', got {zeros!r}")
    scenes, n_zero = [], 0
    for i in range(n):
        where = f"[{i}]" if nested else ""
        image = in_order(images[i], names, "cutouts" + where)
        own = attached(image, "cutouts" + where)
        pixels = read_pixels(image, variance_list[i], mask_list[i], background_list[i], zero_point_list[i], names,
                             where, own.variance)
        shape = (pixels.image.shape[1], pixels.image.shape[2])
        given_wcs = read_wcs(wcs_list[i], shape, "wcs" + where) + read_wcs(own.wcs, shape, f"cutouts{where}.wcs")
        check_same_grid(given_wcs, shape, "cutouts" + where)
        for scale in (scale for each in given_wcs for scale in pixel_scales(each)):
            check_pixel_scale(scale, bundle_pixel_scale, "wcs" + where)
        given, kinds = read_positions(center_list[i], "centers" + where, given_wcs[0] if given_wcs else None, shape)
        windows = Windows(given, shape, window_half)
        checked, flags, n_weighted, some_zero = _check_pixels(pixels, target, sky, windows, zeros)
        n_zero += some_zero
        flags[too_close(np.where(windows.on_image[:, None], given, np.nan))] |= Flag.TOO_CLOSE
        present = n_weighted > 0
        own_psf = psfs.of_scene(i, own.psf, present, (checked.shape[1], checked.shape[2]), len(given), where)
        flags |= own_psf.flags(given)
        flags[~windows.on_image] = Flag.OFF_IMAGE
        flags[~np.isfinite(given).all(1)] = Flag.CENTER_NOT_FINITE
        star, auto = read_kind(kinds if kind_list[i] is None else kind_list[i], "kind" + where, len(given))
        scenes.append(Scene(checked, given, flags, own_psf.images, star, auto, present, int(n_weighted.sum()), str(i)))
    if n_zero:
        many = f" of {n_zero} of {n} scenes" if n > 1 else ""
        notify(f"cutouts: regions of exact zeros{many} are taken as no data, and sources beside them have the flag "
               'ZERO_PIXELS; with zeros="data" they count as data')
    psfs.notify(dict(zip(bundle_bands, bundle_psf_fwhm or (), strict=False)))
    return scenes


def with_sources(scene: Scene, centers: NDArray[np.float64], window_half: int) -> Scene:
    """Return the scene with further sources of unknown kind at the end of its list, flagged as found.

    Parameters
    ----------
    scene : Scene
    centers : float64 (n, 2) [pixel]
        Centres of the further sources, on the image.
    window_half : int [pixel]

    Returns
    -------
    Scene
        The same object if there are no further sources.
    """
    if not len(centers):
        return scene
    weighted = (weight > 0 for _, weight in scene.images.by_band())
    flags = _window_flags(weighted, Windows(centers, scene.shape, window_half)) | int(Flag.FOUND)
    return dataclasses.replace(scene, centers=np.concatenate([scene.centers, centers]),
                               flags=np.concatenate([scene.flags, flags]),
                               star=np.concatenate([scene.star, np.zeros(len(centers), bool)]),
                               auto=np.concatenate([scene.auto, np.ones(len(centers), bool)]))


def with_stars(scene: Scene, star: NDArray[np.bool_]) -> Scene:
    """Return the scene with `star`, bool (n_source,), as its point sources; the same object if nothing changes."""
    return scene if (star == scene.star).all() else dataclasses.replace(scene, star=star)


def _check_pixels(pixels: GivenPixels, target: NDArray[np.int64], sky: NDArray[np.float64],
                  windows: Windows, zeros: str) -> tuple[GivenImages, NDArray[np.int64], NDArray[np.int64], bool]:
    """Return the images, the flags that follow from their pixels, the number of pixels with weight of each band, and
    whether zeros were taken as no data."""
    estimated = pixels.variance is None
    zero = zero_regions(pixels, sky[target]) if zeros == "missing" else None
    if zero is not None:
        pixels = dataclasses.replace(pixels, masks=[*pixels.masks, zero])
    pixels = with_variance(pixels, sky[target])
    not_finite, bad_variance = np.zeros(pixels.image.shape[1:], bool), np.zeros(pixels.image.shape[1:], bool)
    weighted: list[NDArray[np.bool_] | None] = [None] * len(sky)
    for b, t in enumerate(target):
        band = checked_band(pixels, b)
        not_finite |= band.not_finite
        bad_variance |= band.bad_variance
        weighted[t] = band.inverse_variance > 0
    flags = _window_flags(weighted, windows)
    flags[windows.counts(not_finite) > 0] |= Flag.NON_FINITE
    flags[windows.counts(bad_variance) > 0] |= Flag.BAD_VARIANCE
    flags |= Flag.VARIANCE_ESTIMATED if estimated else 0
    if zero is not None:
        flags[windows.counts(np.any(zero, axis=0)) > 0] |= Flag.ZERO_PIXELS
    number = np.array([0 if w is None else np.count_nonzero(w) for w in weighted])
    clean = bool((number[target] == not_finite.size).all())
    return GivenImages(pixels, target, len(sky), clean), flags, number, zero is not None


def _window_flags(weighted: Iterable[NDArray[np.bool_] | None], windows: Windows) -> NDArray[np.int64]:
    """Return the flags that follow from the pixels with weight of each band; None stands for a band without weight."""
    flags, n = np.zeros(len(windows.anchor), np.int64), len(windows.anchor)
    some_missing, none_present, masked = np.zeros(n, bool), np.ones(n, bool), np.ones(n, bool)
    x, y = windows.anchor.T
    for band in weighted:
        seen = np.zeros(n, bool) if band is None else windows.counts(band) > 0
        some_missing |= ~seen
        none_present &= ~seen
        if band is not None and band.size:
            masked &= ~band[y, x]
    flags[some_missing] |= Flag.BAND_MISSING
    flags[none_present] |= Flag.NO_DATA
    flags[windows.cut] |= Flag.EDGE
    flags[masked] |= Flag.MASKED_CENTER
    return flags
