"""Readers of an image's header: flux scale, bands, pixel scale and sky coordinates. A missing value is None.

The functions take several headers: the image's header is first, and the file's primary header is last. The first header
that has the value is used.
"""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from deblendrt.engine.units import to_flux, to_magnitude

ZERO_POINT_KEYS = ("ZEROPNT", "MAGZERO", "MAGZPT", "MAGZP", "PHOTZP", "ZEROPOINT")
PIXEL_SCALE_KEYS = ("PIXSCALE", "PIXELSCL", "PIXSCAL1")
MAX_DISAGREEMENT = 1e-3  # mag: between zero points in one header
BAND_KEYS = ("BANDS", "BAND", "FILTER", "FILTER1", "FILTER2")
NO_FILTER = re.compile(r"CLEAR\w*|N/A|NONE|OPEN|", re.IGNORECASE)  # ACS has two wheels, and one is clear
ALIASES = {"nanomaggies": "nmgy", "nanomaggy": "nmgy", "maggies": "mgy", "counts": "ct", "electrons": "electron"}
SQUARE_TOLERANCE = 0.02  # relative: sides of a pixel that differ by less than this count as equal
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
    """Return the AB magnitude of one image unit.

    It follows from ``BUNIT`` if it is a flux density, else from a zero-point key, else from ``PHOTFLAM`` and
    ``PHOTPLAM`` of HST. A surface brightness needs the pixel's area in ``PIXAR_SR``, as in JWST's files.
    """
    text = next((header["BUNIT"] for header in headers if header.get("BUNIT")), None)
    if isinstance(text, str):
        parsed = unit(path, text)
        if (scale := flux_density(parsed)) is not None:
            return float(to_magnitude(scale))
        if parsed.is_equivalent(u.nJy / u.sr):
            area = next((_number(path, header, "PIXAR_SR") for header in headers if "PIXAR_SR" in header), 0.0)
            if not area > 0:
                raise ValueError(f"{path}: BUNIT {text!r} is a surface brightness, and the header has no PIXAR_SR; "
                                 "multiply by the pixel's area first")
            return float(to_magnitude((parsed * u.sr).to(u.nJy) * area))
    for header in headers:
        found = {key: _number(path, header, key) for key in ZERO_POINT_KEYS if key in header}
        if found:
            if max(found.values()) - min(found.values()) > MAX_DISAGREEMENT:
                raise ValueError(f"{path}: zero points that disagree, {found}: say zero_point (--zero-point)")
            return next(iter(found.values()))
        if "FLUXMAG0" in header:
            counts = _number(path, header, "FLUXMAG0")
            if not counts > 0:
                raise ValueError(f"{path}: FLUXMAG0 is {counts}, expected the counts of magnitude 0")
            return 2.5 * math.log10(counts)
    for header in headers:
        if "PHOTFLAM" in header and "PHOTPLAM" in header and re.search(r"/ ?s(ec)?$", str(text).lower()):
            flux, pivot = _number(path, header, "PHOTFLAM"), _number(path, header, "PHOTPLAM")
            if flux > 0 and pivot > 0:  # erg/s/cm2/Angstrom for one count a second, and Angstrom
                return -2.5 * math.log10(flux) - 5 * math.log10(pivot) - 2.408
    return None


def flux_density(unit: u.UnitBase) -> float | None:
    """Return the flux density of a unit in nJy; None if the unit is no flux density. "Per pixel" is left out."""
    for own in (unit, unit * u.pix) if not isinstance(unit, u.UnrecognizedUnit) else ():
        if own.is_equivalent(u.nJy):
            return float(own.to(u.nJy))
        if own.is_equivalent(u.mgy):
            return float(own.to(u.mgy)) * float(to_flux(0.0))
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


def unit(path: Path, text: str) -> u.UnitBase:
    """Return a unit from a header. Huge powers are refused: Python would compute them for hours."""
    powers = re.findall(r"\d+", text)
    try:
        if len(text) > MAX_UNIT or any(len(power) > 3 for power in powers):
            raise ValueError("too long")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", u.UnitsWarning)  # several slashes are discouraged, but clear
            return u.Unit(ALIASES.get(text.strip().lower(), text), parse_strict="silent")
    except Exception as error:  # astropy's parsers also raise errors of arithmetic, such as OverflowError
        raise ValueError(f"{path}: BUNIT {text[:MAX_UNIT]!r} is no unit ({error})") from error


def bands(*headers: fits.Header) -> tuple[str, ...] | None:
    """Return the names of the image's bands, in the image's order."""
    for header in headers:
        for key in BAND_KEYS:
            value = str(header.get(key, "")).strip()
            if not (NO_FILTER.fullmatch(value) and key != "BANDS") and value:
                return parse_bands(value) if key == "BANDS" else (value,)
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
        wcs = WCS(sky, naxis=2 if "A_ORDER" in sky else None)  # astropy has SIP in images of two axes only
        return wcs.celestial if wcs.has_celestial else None
    except Exception as error:  # wcslib's errors, and any error of astropy for an unusual header
        raise ValueError(f"{path}: WCS: {str(error).strip()[:200]}") from error


def pixel_scale(path: Path, wcs: WCS | None, *headers: fits.Header) -> float | None:
    """Return the side of a pixel in arcsec, from the WCS or else from a header key.

    Raises
    ------
    ValueError
        The pixels of the WCS are not square.
    """
    if wcs is not None:
        singular = np.linalg.svd(wcs.pixel_scale_matrix, compute_uv=False)
        if not singular.max() <= (1 + SQUARE_TOLERANCE) * singular.min():
            raise ValueError(f"{path}: WCS: expected square pixels, got {singular.max() * 3600:.4g} x "
                             f"{singular.min() * 3600:.4g} arcsec: resample the image")
        return float(np.sqrt(np.prod(proj_plane_pixel_scales(wcs)))) * 3600
    found = (_number(path, header, key) for header in headers for key in PIXEL_SCALE_KEYS if key in header)
    return next(found, None)
