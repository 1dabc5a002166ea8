"""The WCS of an image: positions on the sky in pixels, the pixel scale, and whether bands share a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.scene.objects.arrays import is_a
from deblendrt.engine.units import notify

GRID_TOLERANCE = 0.1  # pixel: half the scatter of a catalogue's centres; a PSF that is off by it moves fluxes by 0.5%


def is_fits_wcs(wcs: Any) -> bool:
    """Return whether an object is an astropy.wcs.WCS."""
    return is_a(wcs, "astropy.wcs", "WCS")


def celestial(wcs: Any, name: str) -> Any:
    """Return the two celestial axes of an astropy WCS.

    Raises
    ------
    ValueError
        The WCS has no celestial axes.
    """
    if not wcs.has_celestial:
        raise ValueError(f"{name}: expected a WCS with celestial axes for positions on the sky, got the axes "
                         f"{', '.join(axis or 'linear' for axis in wcs.wcs.ctype)}")
    return wcs if wcs.naxis == 2 else wcs.celestial


def sky_pixels(coordinates: Any, wcs: Any, name: str) -> NDArray[np.float64]:
    """Return pixel positions of a SkyCoord.

    Parameters
    ----------
    coordinates : SkyCoord or coordinate frame
        In any frame that astropy converts to the WCS's frame.
    wcs : astropy.wcs.WCS, or another object with `world_to_pixel`
    name : str
        Name of the argument, for messages.

    Returns
    -------
    float64 (n_source, 2) [pixel]
        (x, y), 0-based. A position that the WCS does not reach is NaN.
    """
    from astropy.coordinates import SkyCoord

    from deblendrt.engine.files import sky_positions

    if wcs is None:
        raise ValueError(f"{name}: expected wcs= with positions on the sky, got none")
    try:
        sky = SkyCoord(coordinates).icrs.reshape(-1)
    except Exception as error:  # astropy raises several classes for frames without a place or a time
        raise ValueError(f"{name}: expected coordinates that convert to ICRS, got {type(coordinates).__name__} "
                         f"({str(error)[:200]})") from error
    if is_fits_wcs(wcs):
        degrees = [np.ma.filled(np.ma.asarray(getattr(axis, "unmasked", axis).deg, np.float64), np.nan)
                   for axis in (sky.ra, sky.dec)]
        pixel = sky_positions.to_pixels(celestial(wcs, name), np.column_stack(degrees), name)
    else:
        try:
            pixel = np.column_stack([np.asarray(axis, np.float64) for axis in wcs.world_to_pixel(sky)])
        except Exception as error:  # a WCS of any package
            raise ValueError(f"wcs: expected an astropy.wcs.WCS or an object with world_to_pixel, got "
                             f"{type(wcs).__name__} ({str(error)[:200]})") from error
    hidden = getattr(sky, "mask", None)
    if hidden is not None:
        pixel[np.broadcast_to(hidden, len(pixel))] = np.nan
    return np.asarray(pixel)


def pixel_scales(wcs: Any) -> list[float]:
    """Return the pixel scales of both axes [arcsec]; no entry if the WCS states none."""
    if not is_fits_wcs(wcs) or not wcs.has_celestial:
        return []
    return [float(scale.to_value("arcsec")) for scale in wcs.celestial.proj_plane_pixel_scales()]


def read_wcs(wcs: Any, shape: tuple[int, int], name: str) -> list[Any]:
    """Return the WCS objects of a scene.

    Parameters
    ----------
    wcs : WCS, or a sequence or dict of these for the bands, or None
    shape : (int, int)
        n_y, n_x of the image.
    name : str
        Name of the argument, for messages.

    Returns
    -------
    list

    Raises
    ------
    ValueError
        An object is no WCS.
    """
    each = list(wcs.values()) if isinstance(wcs, Mapping) else list(wcs) if isinstance(wcs, list | tuple) else [wcs]
    found = [entry for entry in each if entry is not None]
    for entry in found:
        if not hasattr(entry, "world_to_pixel"):
            raise ValueError(f"{name}: expected an astropy.wcs.WCS or an object with world_to_pixel, got "
                             f"{type(wcs if isinstance(wcs, Mapping) else entry).__name__}")
        own = getattr(entry, "pixel_shape", None)
        if is_fits_wcs(entry) and own is not None and tuple(own[:2]) != shape[::-1]:
            notify(f"{name}: states an image of {own[0]} x {own[1]} pixels, the image has {shape[1]} x {shape[0]}; for "
                   "a part of an image cut the WCS too, wcs[y0:y1, x0:x1]")
    return found


def check_same_grid(wcs: list[Any], shape: tuple[int, int], name: str) -> None:
    """Raise ValueError if bands are on different pixel grids.

    Parameters
    ----------
    wcs : list of WCS
        WCS objects that belong to one image.
    shape : (int, int)
        n_y, n_x of the image.
    name : str
        Name of the argument, for messages.
    """
    own = [each.celestial for each in wcs if is_fits_wcs(each) and each.has_celestial]
    corners = np.array([[0, 0], [shape[1] - 1, 0], [0, shape[0] - 1]], np.float64)
    for other in own[1:]:
        if other is own[0] or (other.wcs.compare(own[0].wcs) and other.sip is own[0].sip):
            continue
        there = np.column_stack(other.world_to_pixel(own[0].pixel_to_world(*corners.T)))
        offset = float(np.abs(there - corners).max())
        if not offset <= GRID_TOLERANCE:
            raise ValueError(f"{name}: expected bands on one pixel grid, got WCS that differ by {offset:.2f} pixel: "
                             "resample the images to one grid")
