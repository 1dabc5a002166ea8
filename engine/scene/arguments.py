"""Checks of a caller's arguments: nesting, band names, units and shapes.

Every function returns arrays of a known form or raises a ValueError that names the argument, the expectation and the
value. Pixels are not converted here: `scene` converts a large image band by band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.units import to_flux

SOURCE_KINDS = ("galaxy", "star", "auto")
PIXEL_SCALE_TOLERANCE = 0.02  # relative: an error of 2% in size is far below the scatter of galaxy sizes


class Numbers(NamedTuple):
    """A numeric argument.

    Attributes
    ----------
    values : number array
        The values, not converted; if possible they share the caller's memory.
    scale : float64 () or (n,), or None
        Factor from the values to nJy (nJy^2 for a variance), for each leading element; None without a flux unit.
    counts : str
        The name of a unit that is no flux density, for messages; otherwise "".
    masked : bool array, or None
        Mask of a NumPy masked array.
    """

    values: NDArray[Any]
    scale: NDArray[np.float64] | None
    counts: str
    masked: NDArray[np.bool_] | None


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


def check_pixel_scale(pixel_scale: Any, bundle_pixel_scale: float) -> None:
    """Raise ValueError if the pixel scale is not the model's.

    Parameters
    ----------
    pixel_scale : float or Quantity, or None [arcsec]
    bundle_pixel_scale : float [arcsec]
    """
    if pixel_scale is None:
        return
    try:
        scale = float(pixel_scale.to_value("arcsec") if hasattr(pixel_scale, "to_value") else pixel_scale)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"pixel_scale: expected arcsec per pixel, got {pixel_scale!r}") from error
    if not abs(scale / bundle_pixel_scale - 1) <= PIXEL_SCALE_TOLERANCE * (1 + 1e-9):
        raise ValueError(f"pixel_scale: expected the model's {bundle_pixel_scale} arcsec within "
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
    depth = _rank(cutouts)
    if depth == 4 or (_is_sequence(cutouts) and (len(cutouts) == 0 or (depth == 3 and len(names) == 1))):
        return list(cutouts), True
    if depth in (2, 3):
        return [cutouts], False
    raise ValueError("cutouts: expected an image (n_band, n_y, n_x), a stack (n_scene, n_band, n_y, n_x) or a sequence "
                     f"of images, got {_came(cutouts)}")


def per_scene(value: Any, name: str, n_scene: int, nested: bool, shared_ranks: tuple[int, ...] = ()) -> list[Any]:
    """Return the value of an argument for each scene. It is nested like the cutouts or shared by all scenes.

    Parameters
    ----------
    value : Any
    name : str
    n_scene : int
    nested : bool
    shared_ranks : tuple of int
        Numbers of dimensions of a value that all scenes share.

    Returns
    -------
    list
        A value for each scene, `n_scene` in all.
    """
    if value is None or not nested:
        return [value] * n_scene
    if isinstance(value, list | tuple) and len(value) == n_scene and any(entry is None for entry in value):
        return list(value)  # None stands for a scene without the value
    depth = _rank(value)
    if depth in shared_ranks and not (depth == 1 and len(value) == n_scene == 0):
        return [value] * n_scene
    try:
        entries = list(value) if depth else []
    except TypeError:
        entries = []
    if depth == 0 or len(entries) != n_scene:
        raise ValueError(f"{name}: expected one entry for each of the {n_scene} scenes, got {_came(value)}")
    return entries


def read_centers(centers: Any, name: str) -> NDArray[np.float64]:
    """Return the positions of a scene's sources.

    Parameters
    ----------
    centers : float (n_source, 2) [pixel]
        (x, y); an empty sequence stands for no source.
    name : str
        Name of the argument, for messages.

    Returns
    -------
    float64 (n_source, 2)
        A copy.
    """
    if centers is None:
        raise ValueError(f"{name}: expected positions (n_source, 2), got None")
    try:
        array = np.array(np.ma.filled(np.ma.asarray(centers, dtype=np.float64), np.nan))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: expected numbers of shape (n_source, 2), got {_came(centers)}") from error
    if array.shape == (0,):
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{name}: expected shape (n_source, 2), (x, y) of each source, got {array.shape}")
    return array


def read_pixels(image: Any, variance: Any, mask: Any, background: Any, zero_point: Any, names: Sequence[str],
                where: str = "") -> GivenPixels:
    """Check the shapes of a scene's arrays and resolve their units.

    Parameters
    ----------
    image, variance, mask, background, zero_point : see `deblendrt.engine.scene.scene.make_scenes`
    names : sequence of str
        The caller's bands.
    where : str
        Index of the scene for error messages, such as "[3]".

    Returns
    -------
    GivenPixels
    """
    n_band, listed = len(names), ", ".join(names)
    given = _numbers(image, "cutouts" + where, 1)
    values, masked = given.values, given.masked
    if values.ndim == 2 and n_band == 1:
        values, masked = values[None], None if masked is None else masked[None]
    if values.ndim != 3 or values.shape[0] != n_band:
        raise ValueError(f"cutouts{where}: expected shape ({n_band}, n_y, n_x) for the bands {listed}, got "
                         f"{given.values.shape}; name the image's bands with bands=")
    if given.scale is not None and zero_point is not None:
        raise ValueError("zero_point: expected None for images with a unit of flux density, got a number")
    if given.counts and zero_point is None:
        raise ValueError(f"cutouts{where}: expected a unit of flux density, or zero_point= with counts, "
                         f"got the unit {given.counts}")
    if zero_point is not None:
        magnitude = np.asarray(zero_point)
        if magnitude.shape not in ((), (n_band,)) or magnitude.dtype.kind not in "fiu" or not np.isfinite(
                magnitude).all():
            raise ValueError(f"zero_point: expected a finite number or one for each of {listed}, got {zero_point!r}")
        factor = to_flux(magnitude.astype(np.float64))
    else:
        factor = np.ones(()) if given.scale is None else given.scale
    factor = np.broadcast_to(factor, n_band)
    masks = [] if masked is None else [masked]
    if mask is not None:
        masks.append(_mask(mask, values.shape, "mask" + where))
    spread, spread_factor, hidden = _like_image(variance, values.shape, factor**2, "variance" + where, 2)
    if hidden is not None:
        masks.append(hidden)
    level, level_factor, _ = _like_image(background, values.shape, factor, "background" + where, 1)
    return GivenPixels(values, factor, masks, spread, spread_factor, level, level_factor)


def _like_image(value: Any, shape: tuple[int, ...], factor: NDArray[np.float64], name: str, power: int,
                ) -> tuple[NDArray[Any] | None, NDArray[np.float64], NDArray[np.bool_] | None]:
    """Return the values (n_band, ...) of an argument, their factor and their mask.

    The argument is a number, a number per band, or an array like the image.
    """
    if value is None:
        return None, factor, None
    given = _numbers(value, name, power)
    values, masked = given.values, given.masked
    if values.ndim == 2 and shape[0] == 1:
        values, masked = values[None], None if masked is None else masked[None]
    if values.shape in ((), shape[:1]):
        values = np.broadcast_to(values, shape[0])[:, None, None]
        masked = None if masked is None else np.broadcast_to(np.broadcast_to(masked, shape[0])[:, None, None], shape)
    elif values.shape != shape:
        raise ValueError(f"{name}: expected a number, shape ({shape[0]},) or the image's {shape}, got {values.shape}")
    return values, factor if given.scale is None else np.broadcast_to(given.scale, shape[0]), masked


def _mask(mask: Any, shape: tuple[int, ...], name: str) -> NDArray[np.bool_]:
    """Return a mask as bool (1 or n_band, n_y, n_x)."""
    try:
        array = np.asarray(mask)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array of one shape, got {_came(mask)}") from error
    if array.shape not in (shape, shape[1:]):
        raise ValueError(f"{name}: expected shape {shape[1:]} or {shape}, got {array.shape}")
    if array.dtype.kind in "iu" and ((array == 0) | (array == 1)).all():
        array = array.astype(bool)
    if array.dtype != bool:
        raise ValueError(f"{name}: expected bool, True meaning bad, got {array.dtype}; select bit planes first, "
                         "(mask & bits) != 0")
    return array if array.ndim == 3 else array[None]


def _numbers(value: Any, name: str, power: int) -> Numbers:
    """Return the values and the unit of a numeric argument; `power` is 1 for fluxes and 2 for variances."""
    if _is_sequence(value) and any(hasattr(item, "unit") or np.ma.isMA(item) for item in value):
        parts = [_numbers(item, f"{name}[{i}]", power) for i, item in enumerate(value)]
        if len({(part.values.shape, part.scale is None) for part in parts}) > 1:
            raise ValueError(f"{name}: expected arrays of one shape, all with a unit of flux density or all without, "
                             f"got shapes {[part.values.shape for part in parts]}")
        masks = [np.zeros(part.values.shape, bool) if part.masked is None else part.masked for part in parts]
        scales = [part.scale for part in parts if part.scale is not None]
        return Numbers(np.stack([part.values for part in parts]), np.array(scales) if scales else None,
                       parts[0].counts, np.stack(masks))
    scale, counts = None, ""
    if hasattr(value, "unit") and hasattr(value, "to_value"):
        from astropy import units

        try:
            scale = np.asarray(value.unit.to(units.nJy**power), np.float64)
        except units.UnitConversionError:
            counts = str(value.unit)
        value = value.value
    masked = np.ma.getmaskarray(value) if np.ma.isMA(value) else None
    try:
        values = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array of one shape, got {_came(value)}") from error
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected real numbers, got {_came(value)} of {values.dtype}")
    return Numbers(values, scale, counts, masked)


def _is_sequence(value: Any) -> bool:
    """Return whether a value is a sequence of arrays. An array of objects counts as a sequence."""
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.dtype == object)


def _rank(value: Any) -> int:
    """Return the number of dimensions of an array, or of nested sequences down to their deepest element."""
    if _is_sequence(value):
        return 1 + max((_rank(item) for item in value if item is not None), default=0)
    return int(getattr(value, "ndim", 0))


def _came(value: Any) -> str:
    """Describe a value for an error message."""
    if _is_sequence(value):
        return f"a sequence of {len(value)}"
    return f"shape {value.shape}" if hasattr(value, "shape") and value.shape else repr(value)


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
