"""Readers of an image's header: flux scale, bands, pixel scale and sky coordinates. A missing value is None.

The functions take several headers: the image's header is first, and the file's primary header is last. The first header
that has the value is used.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from deblendrt.engine.units import to_magnitude

ZERO_POINT_KEYS = ("ZEROPNT", "MAGZERO", "MAGZPT", "MAGZP", "PHOTZP", "ZEROPOINT")
PIXEL_SCALE_KEYS = ("PIXSCALE", "PIXELSCL", "PIXSCAL1")
BAND_KEYS = ("BANDS", "BAND", "FILTER")
MAX_UNIT, MAX_WCS_AXES, MAX_ORDER = 68, 9, 9
_SKY = re.compile(r"WCSAXES|WCSNAME|LONPOLE|LATPOLE|RADEC?SYS|EQUINOX|EPOCH|"
                  r"(?:CTYPE|CRPIX|CRVAL|CDELT|CUNIT|CROTA)(\d+)|"
                  r"(?:PC|CD)(\d+)_(\d+)|PC(\d{3})(\d{3})|PV(\d+)_\d{1,2}|(?:A|B|AP|BP)_(?:ORDER|DMAX|\d_\d)")
_TABULATED = re.compile(r"(?:CPDIS|CQDIS|D2IMDIS|D2IMARR|DP|DQ)\d*")


def parse_bands(text: str) -> tuple[str, ...]:
    """Return band names from ``"gri"``, ``"g,r,i"`` or ``"g r i"``. Without separators, each letter is a name."""
    words = [word for word in re.split(r"[\s,;]+", text.strip()) if word]
    names = tuple(words[0]) if len(words) == 1 and not re.search(r"[,;\-_.\d]", text) else tuple(words)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"bands: expected distinct names such as 'gri' or 'g,r,i', got {text!r}")
    return names


def zero_point(path: Path, *headers: fits.Header) -> float | None:
    """Return the AB magnitude of one image unit, from ``BUNIT`` if it is a flux density, or from a zero-point key."""
    unit = next((header["BUNIT"] for header in headers if header.get("BUNIT")), None)
    if isinstance(unit, str):
        parsed = _unit(path, unit)
        if parsed.is_equivalent(u.nJy):
            return float(to_magnitude(parsed.to(u.nJy)))
        if parsed.is_equivalent(u.mgy):
            return -2.5 * float(np.log10(parsed.to(u.mgy)))
        if parsed.is_equivalent(u.nJy / u.sr):
            raise ValueError(f"{path}: BUNIT {unit!r} is a surface brightness; multiply by the pixel's area first")
    for header in headers:
        for key in ZERO_POINT_KEYS:
            if key in header:
                return _number(path, header, key)
        if "FLUXMAG0" in header:
            counts = _number(path, header, "FLUXMAG0")
            if not counts > 0:
                raise ValueError(f"{path}: FLUXMAG0 is {counts}, expected the counts of magnitude 0")
            return 2.5 * math.log10(counts)
    return None


def _number(path: Path, header: fits.Header, key: str) -> float:
    value = header[key]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{path}: {key} is {str(value)[:80]!r}, expected a number")
    return number


def _unit(path: Path, text: str) -> u.UnitBase:
    """Return a unit from a header. Huge powers are refused: Python would compute them for hours."""
    powers = re.findall(r"\d+", text)
    try:
        if len(text) > MAX_UNIT or any(len(power) > 3 for power in powers):
            raise ValueError("too long")
        return u.Unit(text, parse_strict="silent")
    except Exception as error:  # astropy's parsers also raise errors of arithmetic, such as OverflowError
        raise ValueError(f"{path}: BUNIT {text[:MAX_UNIT]!r} is no unit ({error})") from error


def bands(*headers: fits.Header) -> tuple[str, ...] | None:
    """Return the names of the image's bands, in the image's order."""
    for header in headers:
        for key in BAND_KEYS:
            if str(header.get(key, "")).strip():
                value = str(header[key])
                return parse_bands(value) if key == "BANDS" else (value.strip(),)
    return None


def celestial_wcs(path: Path, header: fits.Header) -> WCS | None:
    """Return the celestial part of the WCS.

    wcslib and astropy allocate memory for any number of axes and orders that a header names, and wcslib does not check
    that it got the memory. They therefore get a header with only the primary WCS, each keyword once, and at most
    `MAX_WCS_AXES` axes.

    Raises
    ------
    ValueError
        The WCS is invalid or given twice, or has too many axes, a distortion of an order above `MAX_ORDER`, or a
        distortion in tables.
    """
    if "CTYPE1" not in header:
        return None
    sky = fits.Header()
    for card in header.cards:
        key, value = card.keyword, card.value
        if _TABULATED.fullmatch(key):
            raise ValueError(f"{path}: WCS: a distortion in tables ({key}) is not read")
        found = _SKY.fullmatch(key)
        if found is None:
            continue
        if any(int(axis) > MAX_WCS_AXES for axis in found.groups() if axis) or key in sky:
            raise ValueError(f"{path}: WCS: {key} is given twice, or names an axis above {MAX_WCS_AXES}")
        if key == "WCSAXES" or key.endswith("_ORDER"):
            fine = type(value) is int and 0 <= value <= (MAX_WCS_AXES if key == "WCSAXES" else MAX_ORDER)
        else:
            fine = isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value))
        if not fine:
            raise ValueError(f"{path}: WCS: {key} is {str(value)[:80]!r}")
        sky[key] = value
    try:
        wcs = WCS(sky)
        return wcs.celestial if wcs.has_celestial else None
    except Exception as error:  # wcslib's errors, and any error of astropy for an unusual header
        raise ValueError(f"{path}: WCS: {str(error).strip()[:200]}") from error


def pixel_scale(path: Path, wcs: WCS | None, *headers: fits.Header) -> float | None:
    """Return the side of a pixel in arcsec, from the WCS or else from a header key."""
    if wcs is not None:
        return float(np.sqrt(np.prod(proj_plane_pixel_scales(wcs)))) * 3600
    found = (_number(path, header, key) for header in headers for key in PIXEL_SCALE_KEYS if key in header)
    return next(found, None)
