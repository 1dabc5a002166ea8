"""Positions on the sky: the columns of catalogues that hold them, and their conversion to pixels by a WCS.

Sky positions are right ascension and declination in ICRS everywhere in the program. A WCS in another frame (galactic,
FK4, FK5 of another equinox) is converted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy import units as u
from astropy.coordinates import Angle, BaseCoordinateFrame, SkyCoord
from astropy.wcs import WCS
from astropy.wcs.utils import wcs_to_celestial_frame
from numpy.typing import NDArray

# Names of a catalogue's columns, in small letters, and the frame that the names mean. Names with J2000 are taken as
# ICRS, as surveys do; FK5 at J2000 differs by at most 0.03 arcsec.
SKY_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("ra", "dec", "icrs"), ("coord_ra", "coord_dec", "icrs"), ("alpha_j2000", "delta_j2000", "icrs"),
    ("alphawin_j2000", "deltawin_j2000", "icrs"), ("alphapeak_j2000", "deltapeak_j2000", "icrs"),
    ("ra_icrs", "de_icrs", "icrs"), ("ra_icrs", "dec_icrs", "icrs"), ("raj2000", "dej2000", "icrs"),
    ("raj2000", "decj2000", "icrs"), ("_raj2000", "_dej2000", "icrs"), ("ra_j2000", "dec_j2000", "icrs"),
    ("ra_deg", "dec_deg", "icrs"), ("radeg", "dedeg", "icrs"), ("radeg", "decdeg", "icrs"),
    ("ra_rad", "dec_rad", "icrs"), ("_ra", "_de", "icrs"), ("_ra.icrs", "_de.icrs", "icrs"),
    ("alpha_sky", "delta_sky", "icrs"), ("x_world", "y_world", "icrs"),
    ("ramean", "decmean", "icrs"),
    ("right_ascension", "declination", "icrs"),
    ("rab1950", "deb1950", "fk4"), ("glon", "glat", "galactic"), ("l", "b", "galactic"))
# Butler's tables hold these columns in radians with a unit, or in degrees without; afw wrote radians without.
UNSURE = ("coord_ra", "coord_dec")
_SEXAGESIMAL = re.compile(r"[^\d]*\d+(?:[:hd\s]|°)\s*\d")


def frame_of(where: str, wcs: WCS) -> BaseCoordinateFrame:
    """Return the frame of a WCS's sky coordinates.

    Raises
    ------
    ValueError
        The frame is not known, such as that of coordinates on the Sun.
    """
    try:
        return wcs_to_celestial_frame(wcs)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: WCS: expected equatorial or galactic coordinates, got the axes "
                         f"{', '.join(wcs.wcs.ctype)} and RADESYS {wcs.wcs.radesys!r}") from error


def to_icrs(wcs: WCS, pixel: NDArray[np.float64], where: str = "wcs") -> NDArray[np.float64]:
    """Return right ascension and declination (ICRS), float64 (n, 2) [deg], of pixel positions (x, y), 0-based."""
    if not len(pixel):
        return np.zeros((0, 2))
    sky = SkyCoord(*_longitude_first(wcs, *wcs.all_pix2world(*pixel.T, 0)), unit=u.deg, frame=frame_of(where, wcs)).icrs
    return np.column_stack([sky.ra.deg, sky.dec.deg])


def to_pixels(wcs: WCS, sky: NDArray[np.float64], where: str = "wcs") -> NDArray[np.float64]:
    """Return pixel positions (x, y), float64 (n, 2), 0-based, of right ascension and declination (ICRS) [deg].

    A position on the far side of the sky, and a position that is not finite, becomes NaN.
    """
    pixel = np.full(sky.shape, np.nan)
    finite = np.isfinite(sky).all(axis=1) & (np.abs(sky[:, 1]) <= 90)
    if finite.any():
        own = SkyCoord(*sky[finite].T, unit=u.deg).transform_to(frame_of(where, wcs)).spherical
        world = _longitude_first(wcs, own.lon.deg, own.lat.deg)
        pixel[finite] = np.column_stack(wcs.all_world2pix(*world, 0, quiet=True))
    return pixel


def _longitude_first(wcs: WCS, first: Any, second: Any) -> tuple[Any, Any]:
    """Return two values swapped if the WCS has the latitude as its first axis."""
    return (second, first) if wcs.wcs.lng > wcs.wcs.lat else (first, second)


def converted(sky: NDArray[np.float64], frame: str) -> NDArray[np.float64]:
    """Return positions [deg] of a frame of `SKY_COLUMNS` as right ascension and declination in ICRS [deg]."""
    usable = np.isfinite(sky).all(axis=1) & (np.abs(sky[:, 1]) <= 90)
    if frame == "icrs" or not usable.any():
        return sky
    found = SkyCoord(*sky[usable].T, unit=u.deg, frame=frame).icrs
    out = np.full(sky.shape, np.nan)
    out[usable] = np.column_stack([found.ra.deg, found.dec.deg])
    return out


def angles(where: str, name: str, column: Any, hours: bool) -> NDArray[np.float64]:
    """Return the angles of a column in degrees, float64 (n,); NaN where the column has no value.

    Parameters
    ----------
    where, name : str
        Begin of error messages, and name of the column.
    column : astropy.table.Column
        Numbers, in degrees unless the column has a unit, or texts. Sexagesimal texts without letters are hours if
        `hours` is True, else degrees.
    hours : bool
    """
    values = np.ma.asarray(column)
    missing = np.ma.getmaskarray(values)
    if values.dtype.kind in "SUO":
        texts = [str(v.decode() if isinstance(v, bytes) else v).strip() for v in np.ma.getdata(values)]
        found = np.array([np.nan if gone or _no_number(text) else _angle(where, name, text, hours)
                          for text, gone in zip(texts, missing.tolist(), strict=True)])
        sexagesimal = any(_SEXAGESIMAL.match(text) for text in texts)
    else:
        found, sexagesimal = np.ma.filled(values.astype(np.float64), np.nan), False
    unit = getattr(column, "unit", None)
    if str(unit).strip().lower() in ("degree", "degrees"):
        unit = u.deg
    if unit is None and name.lower() in ("ra_rad", "dec_rad"):
        unit = u.rad
    if unit is None or sexagesimal:
        return np.asarray(found)
    try:
        return np.asarray((found * unit).to_value(u.deg))
    except (ValueError, TypeError, AttributeError) as error:  # of units that are no angle, or that astropy cannot read
        raise ValueError(f"{where}: column {name!r}: expected a unit of angle, got {unit}") from error


def is_sexagesimal(column: Any) -> bool:
    """Return whether a column has texts such as 10:00:24."""
    return column.dtype.kind in "SUO" and any(
        _SEXAGESIMAL.match(value.decode() if isinstance(value, bytes) else str(value)) for value in column)


def _no_number(text: str) -> bool:
    return text.lower() in ("", "nan", "none", "null", "--")


def _angle(where: str, name: str, text: str, hours: bool) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        if not _SEXAGESIMAL.match(text):
            raise ValueError("no number")
        angle = Angle(text, unit=u.hourangle if hours else u.deg)
        if angle.unit == u.hourangle and not 0 <= angle.hour < 24:
            raise ValueError("hours beyond 24")
        return float(angle.deg)
    except Exception as error:  # astropy's parsers raise several classes
        wanted = "hours, such as 10:00:24.3" if hours else "degrees, such as +02:12:07.1"
        raise ValueError(f"{where}: column {name!r} is not numeric: expected degrees, or {wanted}, got "
                         f"{text[:40]!r} ({str(error)[:80]})") from None


def find(columns: Sequence[str]) -> tuple[str, str, str] | None:
    """Return the first entry of `SKY_COLUMNS` whose columns are there; `columns` are names in small letters."""
    return next((entry for entry in SKY_COLUMNS if entry[0] in columns and entry[1] in columns), None)
