"""Checks of a caller's arguments: nesting, band names, units and shapes.

Every function returns arrays of a known form or raises a ValueError that names the argument, the expectation and the
value. Pixels are not converted here: `scene` converts a large image band by band.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.scene.objects.arrays import (
    Numbers,
    came,
    is_a,
    is_sequence,
    mask_array,
    number,
    rank,
    read_numbers,
    refuse_uncertainty,
)
from deblendrt.engine.scene.objects.attached import read_variance
from deblendrt.engine.scene.objects.bands import in_order, labels, split_scenes, stated_bands
from deblendrt.engine.scene.objects.flux_units import image_factor, like_image_factor
from deblendrt.engine.units import notify

SOURCE_KINDS = ("galaxy", "star", "auto")
PIXEL_SCALE_TOLERANCE = 0.02  # relative: an error of 2% in size is far below the scatter of galaxy sizes


@dataclass(frozen=True, eq=False)
class GivenPixels:
    """The arrays of a scene, in the caller's bands and units.

    Attributes
    ----------
    image : number (n_band, n_y, n_x)
    factor : float64 (n_band,) [nJy]
        Flux of one image unit.
    masks : list of bool (1 or n_band, n_y, n_x)
        A pixel is bad if it is True in any mask.
    variance : number (n_band, n_y, n_x) or (n_band, 1, 1), or None
    variance_factor : float64 (n_band,) [nJy^2]
    background : number (n_band, n_y, n_x) or (n_band, 1, 1), or None
    background_factor : float64 (n_band,) [nJy]
    """

    image: NDArray[Any]
    factor: NDArray[np.float64]
    masks: list[NDArray[np.bool_]]
    variance: NDArray[Any] | None
    variance_factor: NDArray[np.float64]
    background: NDArray[Any] | None
    background_factor: NDArray[np.float64]


def band_names(bands: str | Sequence[str] | None, bundle_bands: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the caller's bands, in the caller's order.

    Parameters
    ----------
    bands : str or sequence of str, or None
        "gri", "g,r,i", "r", ["g", "r"]; None stands for all bands of the model.
    bundle_bands : sequence of str
        The model's bands.

    Returns
    -------
    tuple of str
    """
    known = tuple(bundle_bands)
    if bands is None:
        return known
    if not isinstance(bands, str):
        try:
            if isinstance(bands, Set | Mapping):
                raise TypeError("no order")
            names = tuple(bands)
        except TypeError as error:
            raise ValueError(f"bands: expected distinct names among {', '.join(known)}, got {bands!r}") from error
    elif bands in known:
        names = (bands,)
    else:
        words = bands.replace(",", " ").split()
        names = tuple(words if len(words) > 1 else bands)
    if not names or any(not isinstance(name, str) or name not in known for name in names) or (
            len(set(names)) != len(names)):
        raise ValueError(f"bands: expected distinct names among {', '.join(known)}, got {bands!r}")
    return names


def chosen_bands(cutouts: Any, bands: str | Sequence[str] | None, bundle_bands: Sequence[str]) -> tuple[str, ...]:
    """Return the caller's bands: the argument, or else the bands that the cutouts state, or else the model's.

    Cutouts that state their bands are read by name, in this order.
    """
    stated = stated_bands(cutouts) if bands is None else None
    if stated is None:
        return band_names(bands, bundle_bands)
    if unknown := [band for band in stated if band not in tuple(bundle_bands)]:
        raise ValueError(f"cutouts: expected bands among {', '.join(bundle_bands)}, got {', '.join(unknown[:8])}; "
                         "choose with bands=")
    return stated


def notify_order(cutouts: Any, names: Sequence[str], others: Mapping[str, Any]) -> None:
    """Notify the caller of arguments without names of bands, if the cutouts state their bands in another order."""
    stated = stated_bands(cutouts)
    if stated is None or tuple(band for band in stated if band in names) == tuple(names):
        return
    nameless = [name for name, value in others.items() if rank(value) and labels(value, name) is None
                and (rank(value) != 2 or name not in ("mask", "psf"))
                and not (is_sequence(value) and all(labels(entry, name) is not None for entry in value))]
    if nameless:
        notify(f"cutouts: the bands are read by name, {', '.join(names)}; {', '.join(nameless)} without names must "
               "have this order")


def check_pixel_scale(pixel_scale: Any, bundle_pixel_scale: float, name: str = "pixel_scale") -> None:
    """Raise ValueError if the pixel scale is not the model's.

    Parameters
    ----------
    pixel_scale : float or Quantity, or None [arcsec]
    bundle_pixel_scale : float [arcsec]
    name : str
        Name of the argument, for messages.
    """
    if pixel_scale is None:
        return
    try:
        scale = number(pixel_scale, ("arcsec", "arcsec / pix"))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: expected arcsec per pixel, got {pixel_scale!r}") from error
    if not abs(scale / bundle_pixel_scale - 1) <= PIXEL_SCALE_TOLERANCE * (1 + 1e-9):
        raise ValueError(f"{name}: expected the model's {bundle_pixel_scale} arcsec within "
                         f"{PIXEL_SCALE_TOLERANCE:.0%}, got {scale:.6g}: resample the image or use another model")


def split_cutouts(cutouts: Any, names: Sequence[str]) -> tuple[list[Any], bool]:
    """Split a batch of cutouts into images.

    Parameters
    ----------
    cutouts : see `deblendrt.engine.scene.scene.make_scenes`
    names : sequence of str
        The caller's bands.

    Returns
    -------
    images : list
        An image (n_band, n_y, n_x) per scene, or (n_y, n_x) if there is one band.
    nested : bool
        Whether the argument is a sequence of scenes. The other arguments are then nested likewise.
    """
    cutouts = split_scenes(cutouts, "cutouts")
    depth = rank(cutouts)
    if isinstance(cutouts, Mapping) and depth != 3:
        raise ValueError("cutouts: expected a dict of bands, an image (n_y, n_x) each, or a list of such dicts, got "
                         f"{came(cutouts)} with entries of {depth - 1} dimensions")
    if depth == 4 and not is_sequence(cutouts) and not hasattr(cutouts, "__getitem__"):
        raise ValueError(f"cutouts: expected a list of scenes, got {type(cutouts).__name__} of 4 dimensions")
    if depth == 4 or (is_sequence(cutouts) and (len(cutouts) == 0 or (depth == 3 and len(names) == 1))):
        return list(cutouts), True
    if depth in (2, 3):
        return [cutouts], False
    raise ValueError("cutouts: expected an image (n_band, n_y, n_x), a stack (n_scene, n_band, n_y, n_x) or a sequence "
                     f"of images, got {came(cutouts)}")


def per_scene(value: Any, name: str, n_scene: int, nested: bool, shared_ranks: tuple[int, ...] = (),
              n_band: int = 0, band_ranks: tuple[int, ...] = ()) -> list[Any]:
    """Return the value of an argument for each scene. It is nested like the cutouts or shared by all scenes.

    Parameters
    ----------
    value : Any
    name : str
    n_scene : int
    nested : bool
    shared_ranks : tuple of int
        Numbers of dimensions of a value that all scenes share.
    n_band : int
        Number of the caller's bands.
    band_ranks : tuple of int
        Numbers of dimensions of a value whose entries may belong to the bands.

    Returns
    -------
    list
        A value for each scene, `n_scene` in all.

    Raises
    ------
    ValueError
        There is not one entry for each scene, or the entries may belong to the scenes or to the bands.
    """
    if value is None or not nested:
        return [value] * n_scene
    if isinstance(value, list | tuple) and len(value) == n_scene and any(entry is None for entry in value):
        return list(value)  # None stands for a scene without the value
    value = split_scenes(value, name)
    depth, named = rank(value), labels(value, name) is not None
    if depth in band_ranks and not named and len(value) == n_scene > 1:
        if n_scene == n_band and depth in shared_ranks and isinstance(value, np.ndarray) and value.dtype != object:
            if not _all_alike(value):  # arrays (n_band,) and (n_band, q, q) are the usual forms that all scenes share
                notify(f"{name}: the array {value.shape} is taken for the {n_band} bands, the same in all {n_scene} "
                       "scenes; for the scenes give a list of dicts {band: entry}")
        elif n_scene == n_band and not _all_alike(value):
            raise ValueError(
                f"{name}: expected entries that belong either to the {n_band} bands or to the {n_scene} scenes, got "
                f"{n_scene} entries that may mean both; for the bands give a dict {{band: entry}}, for the scenes a "
                f"list of {n_scene} such dicts, or of entries with an axis of {n_band} bands")
        if n_scene != n_band:
            return list(value)
    if depth in shared_ranks and not (depth == 1 and not named and len(value) == n_scene == 0):
        return [value] * n_scene
    try:
        table = isinstance(value, Mapping) or is_a(value, "pandas", "DataFrame")
        entries = list(value) if depth and not table else []
    except TypeError:
        entries = []
    if depth == 0 or len(entries) != n_scene:
        raise ValueError(f"{name}: expected one entry for each of the {n_scene} scenes, got {came(value)}")
    return entries


def _all_alike(entries: Any) -> bool:
    """Return whether all entries of a sequence are equal, so that their order has no meaning."""
    try:
        first, *others = entries
        return all(np.shape(entry) == np.shape(first) and bool(np.all(entry == first)) for entry in others)
    except (TypeError, ValueError):
        return False


def read_pixels(image: Any, variance: Any, mask: Any, background: Any, zero_point: Any, names: Sequence[str],
                where: str = "", own_variance: Numbers | None = None) -> GivenPixels:
    """Check the shapes of a scene's arrays and resolve their units.

    Parameters
    ----------
    image, variance, mask, background, zero_point : see `deblendrt.engine.scene.scene.make_scenes`
    names : sequence of str
        The caller's bands.
    where : str
        Index of the scene for error messages, such as "[3]".
    own_variance : Numbers, optional
        Variance that the image object itself carries.

    Returns
    -------
    GivenPixels
    """
    n_band, listed = len(names), ", ".join(names)
    given = read_numbers(image, "cutouts" + where)
    values, masked = given.values, given.masked
    if values.ndim == 2 and n_band == 1:
        values, masked = values[None], None if masked is None else masked[None]
    if values.ndim != 3 or values.shape[0] != n_band:
        raise ValueError(f"cutouts{where}: expected shape ({n_band}, n_y, n_x) for the bands {listed}, got "
                         f"{given.values.shape}; name the image's bands with bands=")
    magnitude = _read_zero_point(zero_point, names)
    factor = image_factor(given, magnitude, names, "cutouts" + where)
    masks = [] if masked is None else [masked]
    if mask is not None:
        masks.append(_mask(in_order(mask, names, "mask" + where), values.shape, "mask" + where))
    spread = own_variance
    if variance is not None:
        if own_variance is not None:
            raise ValueError(f"variance{where}: expected None, since cutouts{where} has an uncertainty; got "
                             f"{came(variance)}")
        spread = read_variance(in_order(variance, names, "variance" + where), "variance" + where)
    level = None
    if background is not None:
        refuse_uncertainty(background, "background" + where)
        level = read_numbers(in_order(background, names, "background" + where), "background" + where)
    arrays: list[NDArray[Any] | None] = []
    factors = []
    for part, name, power in ((spread, "variance", 2), (level, "background", 1)):
        if part is None:
            arrays.append(None)
            factors.append(factor**power)
            continue
        array, hidden = _like_image(part, values.shape, name + where)
        arrays.append(array)
        factors.append(like_image_factor(part, power, name + where, given, factor, zero_point is not None))
        if hidden is not None:
            masks.append(hidden)
    return GivenPixels(values, factor, masks, arrays[0], factors[0], arrays[1], factors[1])


def _read_zero_point(zero_point: Any, names: Sequence[str]) -> NDArray[np.float64] | None:
    """Return a zero point, a number or a number for each band [AB mag]."""
    if zero_point is None:
        return None
    expected = f"zero_point: expected a finite number or one for each of {', '.join(names)}"
    try:
        given = read_numbers(in_order(zero_point, names, "zero_point"), "zero_point")
    except ValueError as error:
        raise ValueError(f"{expected}, got {came(zero_point)} ({error})") from error
    for unit in given.units:
        if str(unit) not in ("mag", "mag(AB)"):
            raise ValueError(f"{expected} in AB magnitudes, got the unit {unit}")
    if given.values.shape not in ((), (len(names),)) or not np.isfinite(given.values).all() or (
            given.masked is not None):
        raise ValueError(f"{expected}, got {came(zero_point)}")
    return given.values.astype(np.float64)


def _like_image(given: Numbers, shape: tuple[int, ...], name: str) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return the values (n_band, ...) of an argument and their mask.

    The argument is a number, a number per band, or an array like the image.
    """
    values, masked = given.values, given.masked
    if values.ndim == 2 and shape[0] == 1:
        values, masked = values[None], None if masked is None else masked[None]
    if values.shape in ((), shape[:1]):
        values = np.broadcast_to(values, shape[0])[:, None, None]
        masked = None if masked is None else np.broadcast_to(np.broadcast_to(masked, shape[0])[:, None, None], shape)
    elif values.shape != shape:
        raise ValueError(f"{name}: expected a number, shape ({shape[0]},) or the image's {shape}, got {values.shape}")
    return values, masked


def _mask(mask: Any, shape: tuple[int, ...], name: str) -> NDArray[np.bool_]:
    """Return a mask as bool (1 or n_band, n_y, n_x)."""
    parts = [mask_array(part, f"{name}[{i}]") for i, part in enumerate(mask)] if is_sequence(mask) else None
    if parts is not None and len({part.shape for part in parts}) > 1:
        raise ValueError(f"{name}: expected an array of one shape, got shapes {[part.shape for part in parts]}")
    array = mask_array(mask, name) if parts is None else np.array(parts)
    if array.shape not in (shape, shape[1:]):
        raise ValueError(f"{name}: expected shape {shape[1:]} or {shape}, got {array.shape}")
    return array if array.ndim == 3 else array[None]


def read_kind(kind: Any, name: str, n_source: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which sources of a scene are stars, and for which sources the engine chooses the kind.

    Parameters
    ----------
    kind : str, sequence of str (n_source,), or None
        "galaxy", "star" or "auto"; None stands for "galaxy".
    name : str
        Name of the argument, for messages.
    n_source : int

    Returns
    -------
    star, auto : bool (n_source,)
    """
    single = kind is None or isinstance(kind, str)
    try:
        words = ["galaxy" if kind is None else kind] * max(n_source, 1) if single else [str(word) for word in kind]
    except TypeError:  # not iterable
        words = [""]
    if any(word not in SOURCE_KINDS for word in words) or (not single and len(words) != n_source):
        raise ValueError(f"{name}: expected 'galaxy', 'star' or 'auto', or one of them for each of {n_source} "
                         f"sources, got {kind!r}")
    star, auto = (np.array([word == which for word in words[:n_source]], bool) for which in ("star", "auto"))
    return star, auto
