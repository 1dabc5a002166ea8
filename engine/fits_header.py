"""What the header of an image says: flux scale, bands, pixel scale, sky coordinates. Each None where it does not.

Functions take several headers, the image's first and the file's primary one last; the first that knows wins.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

NJY_ZERO_POINT = 31.4
ZERO_POINT_KEYS = ("ZEROPNT", "MAGZERO", "MAGZPT", "MAGZP", "PHOTZP", "ZEROPOINT")
PIXEL_SCALE_KEYS = ("PIXSCALE", "PIXELSCL", "PIXSCAL1")
BAND_KEYS = ("BANDS", "BAND", "FILTER")


def parse_bands(text: str) -> tuple[str, ...]:
    """Band names from ``"gri"``, ``"g,r,i"`` or ``"g r i"``: separators, if any, win over letters."""
    words = [word for word in re.split(r"[\s,;]+", text.strip()) if word]
    names = tuple(words[0]) if len(words) == 1 and not re.search(r"[,;\-_.\d]", text) else tuple(words)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"bands: expected distinct names such as 'gri' or 'g,r,i', got {text!r}")
    return names


def zero_point(path: Path, *headers: fits.Header) -> float | None:
    """AB magnitude of one image unit: from ``BUNIT`` if that is a flux density, else from a zero-point key."""
    unit = next((header["BUNIT"] for header in headers if header.get("BUNIT")), None)
    if unit is not None:
        parsed = u.Unit(unit, parse_strict="silent")
        if parsed.is_equivalent(u.nJy):
            return NJY_ZERO_POINT - 2.5 * float(np.log10(parsed.to(u.nJy)))
        if parsed.is_equivalent(u.mgy):
            return -2.5 * float(np.log10(parsed.to(u.mgy)))
        if parsed.is_equivalent(u.nJy / u.sr):
            raise ValueError(f"{path}: BUNIT {unit!r} is a surface brightness; multiply by the pixel's area first")
    for header in headers:
        for key in ZERO_POINT_KEYS:
            if key in header:
                return float(header[key])
        if "FLUXMAG0" in header:
            return 2.5 * float(np.log10(header["FLUXMAG0"]))
    return None


def bands(*headers: fits.Header) -> tuple[str, ...] | None:
    """Names of the image's bands in its order."""
    for header in headers:
        for key in BAND_KEYS:
            if str(header.get(key, "")).strip():
                value = str(header[key])
                return parse_bands(value) if key == "BANDS" else (value.strip(),)
    return None


def celestial_wcs(header: fits.Header) -> WCS | None:
    """The sky coordinates of the last two axes."""
    if "CTYPE1" not in header:
        return None
    wcs = WCS(header)
    return wcs.celestial if wcs.has_celestial else None


def pixel_scale(wcs: WCS | None, *headers: fits.Header) -> float | None:
    """Side of a pixel in arcsec: from the WCS, else from a key."""
    if wcs is not None:
        return float(np.sqrt(np.prod(proj_plane_pixel_scales(wcs)))) * 3600
    found = (float(header[key]) for header in headers for key in PIXEL_SCALE_KEYS if key in header)
    return next(found, None)
