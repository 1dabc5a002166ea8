"""The planes of a FITS file: which extension is an image, its noise, its mask or its PSF, and of which band.

    image      IMAGE, SCI, ...; the primary image; or an extension named by a band
    variance   VARIANCE, VAR              sigma  ERR, RMS, UNCERT, ...     weight  INVVAR, IVAR, WEIGHT, WGT
    mask       MASK, DQ, MSK, MASKBITS, FLAGS, BPM
    psf        PSF

Planes of a band are named by the band (``g_VARIANCE``, ``INVVAR_G``), or share EXTVER or FILTER with the band's image.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from deblendrt.engine.files import fits_header

IMAGE_NAMES = ("IMAGE", "SCI", "SCIENCE", "IMG", "DATA", "COADD", "FLUX")
ROLES = {
    "variance": ("VARIANCE", "VAR"),
    "sigma": ("ERR", "ERROR", "SIGMA", "STD", "STDDEV", "RMS", "UNCERT", "UNCERTAINTY"),
    "weight": ("INVVAR", "IVAR", "WEIGHT", "WGT", "WT"),
    "mask": ("MASK", "DQ", "MSK", "MASKBITS", "FLAGS", "FLAG", "BPM"),
    "psf": ("PSF", "PSFIMAGE"), "image": IMAGE_NAMES}
_ROLE = {name: role for role, names in ROLES.items() for name in names}
RELATIVE_WEIGHTS = ("WHT",)  # drizzled images: an exposure time, or relative; only its zeros say something
NOISE_ROLES = ("variance", "sigma", "weight")
UNIT_POWERS = {"variance": 2, "sigma": 1, "weight": -2}  # of the image's unit
MEANINGS = {"variance": "variance", "sigma": "standard deviation", "weight": "inverse variance", "mask": "mask",
            "psf": "PSF"}
UNCERTAINTIES = {"StdDevUncertainty": "sigma", "VarianceUncertainty": "variance", "InverseVariance": "weight"}
BAD_PLANES = ("BAD", "NO_DATA", "SAT", "SUSPECT", "EDGE")
# Bits of BAD_PLANES in LSST and HSC files without the MP_ keys. afw has never changed them.
STANDARD_BITS = {"BAD": 0, "SAT": 1, "EDGE": 4, "SUSPECT": 7, "NO_DATA": 8}
JWST_BITS = 1 | 2  # DO_NOT_USE, SATURATED; other bits, such as JUMP_DET, are history
MASKBITS_BITS = 0x4FC  # SATUR and ALLMASK of each band, BAILOUT; the others tell of bright stars and galaxies nearby
WEIGHT_NOISE = (0.2, 2.5)  # noise of neighbouring pixels in units of a weight map's; coadds have correlated noise


@dataclasses.dataclass(frozen=True)
class FitsPlane:
    """An image extension.

    Attributes
    ----------
    hdu : astropy HDU
    name : str
        EXTNAME, with the case of the file.
    role : str
        A role of `ROLES`, "relative weight", or "" if the name is not known.
    version : int or None
        EXTVER.
    band : str
        Band named in EXTNAME or in a header key; "" if there is none.
    split : bool
        Whether EXTNAME was split into role and band. The second part may be no band, as in VAR_POISSON.
    """

    hdu: Any
    name: str
    role: str
    version: int | None
    band: str = ""
    split: bool = False


def name_of(hdu: Any) -> str:
    """Return EXTNAME; astropy's `hdu.name` would be in capitals, but case matters in names of bands."""
    name = str(hdu.header.get("EXTNAME", "")).strip()
    return "" if name.upper() == "COMPRESSED_IMAGE" else name  # fpack names an extension without a name


def has_data(hdu: Any) -> bool:
    """Return whether a unit has data."""
    return bool(hdu.header.get("NAXIS", 0) > 0)


def planes_of(hdus: fits.HDUList) -> list[FitsPlane]:
    """Return the image extensions with data, in the file's order."""
    found = []
    for hdu in hdus:
        if not (hdu.is_image and has_data(hdu)):
            continue
        name, version = name_of(hdu), hdu.header.get("EXTVER")
        word = name.upper() or str(hdu.header.get("IMTYPE", "")).strip().upper()  # Legacy Surveys
        role = "relative weight" if word in RELATIVE_WEIGHTS else _ROLE.get(word, "")
        if role and word == "UNCERT":  # astropy.nddata
            role = UNCERTAINTIES.get(str(hdu.header.get("UTYPE", "StdDevUncertainty")), "")
        band, pair = "", None if role else _split(name)
        if pair:
            role, band = pair
        bands = fits_header.bands(hdu.header)
        if not band and bands and len(bands) == 1:
            band = bands[0]
        found.append(FitsPlane(hdu, name, role, version if type(version) is int else None, band,
                               pair is not None))
    return found


def _split(name: str) -> tuple[str, str] | None:
    """Return role and band of a name such as ``g_VARIANCE`` or ``INVVAR_G``."""
    first, sign, last = name.rpartition("_")
    if sign and first and last.upper() in _ROLE:
        return _ROLE[last.upper()], band_of_name(first)
    first, sign, last = name.partition("_")
    if sign and last and first.upper() in _ROLE:
        return _ROLE[first.upper()], band_of_name(last)
    return None


def band_of_name(name: str) -> str:
    """Return the band that an extension's name means: astropy writes capitals, so one letter is a lower-case band."""
    return name.lower() if len(name) == 1 else name


def same_band(told: str, found: str) -> bool:
    """Return whether a file's name of a band means the told band: ``g`` is ``G``, ``HSC-G`` or ``g DECam SDSS``."""
    return told == found or told.lower() in re.split(r"[^a-z0-9']+", found.lower())


def pixels(path: Path, hdu: Any) -> NDArray[Any]:
    """Return the data of an image extension, native float32 or float64, with three axes."""
    if not hdu.is_image or len(hdu.shape) not in (2, 3):
        found = f"shape {hdu.shape}" if hdu.is_image else "a table"
        name = name_of(hdu) or "PRIMARY"
        raise ValueError(f"{path}[{name}]: expected an image (band, y, x) or (y, x), found {found}")
    kind = hdu.data.dtype
    single = kind.itemsize < 4 or (kind.kind == "f" and kind.itemsize == 4)
    data = np.array(hdu.data, dtype=np.float32 if single else np.float64)
    return data[None] if data.ndim == 2 else data


def variance_of(path: Path, plane: FitsPlane, image_header: fits.Header, notes: list[str]) -> NDArray[Any]:
    """Return a plane of noise as a variance in the squared unit of the image; infinite where a weight is 0.

    Parameters
    ----------
    path : Path
    plane : FitsPlane
        Its role is in `NOISE_ROLES`.
    image_header : astropy.io.fits.Header
        Header of the image, whose BUNIT the plane's BUNIT must fit.
    notes : list of str
        Assumptions are appended.
    """
    values = pixels(path, plane.hdu)
    ratio = _unit_ratio(path, plane, image_header, notes)
    if ratio != 1.0 or plane.role == "sigma":
        values = values.astype(np.float64) * ratio
    if plane.role == "variance":
        return values
    if plane.role == "sigma":
        return np.square(values)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(values > 0, 1 / values.astype(np.float64), np.where(values == 0, np.inf, np.nan))


def _unit_ratio(path: Path, plane: FitsPlane, image_header: fits.Header, notes: list[str]) -> float:
    """Return the factor from the unit of a plane of noise to the power of the image's unit that its role means."""
    text, own = (str(header.get("BUNIT") or "").strip() for header in (plane.hdu.header, image_header))
    power, where = UNIT_POWERS[plane.role], f"{path}[{plane.name}]"
    if not text or (text == own and power == 1):
        return 1.0
    unit, image_unit = fits_header.unit(path, text), fits_header.unit(path, own) if own else None
    if text == own:
        if fits_header.flux_density(unit) is not None:
            notes.append(f"{plane.name}: BUNIT {text} is the image's: taken as its power {power}")
        return 1.0
    scale = None
    try:
        scale = fits_header.flux_density(unit ** (1 / power))
    except (TypeError, ValueError):  # a unit that astropy does not know has no powers
        notes.append(f"{plane.name}: BUNIT {text!r} is not known: taken as the power {power} of the image's unit")
        return 1.0
    image_scale = None if image_unit is None else fits_header.flux_density(image_unit)
    if scale is not None and image_scale is not None:
        return float((scale / image_scale) ** power)
    if scale is None and image_scale is None and (image_unit is None or unit == image_unit**power):
        return 1.0
    raise ValueError(f"{where}: expected a BUNIT that is the power {power} of the image's {own or '(none)'}, got "
                     f"{text}")


def is_inverse_variance(image: NDArray[Any], variance: NDArray[Any]) -> bool:
    """Return whether the noise of neighbouring pixels is roughly that of a variance; a relative weight fails."""
    step = max(1, image.shape[0] // 1000)
    values, spread = image[::step].astype(np.float64), variance[::step].astype(np.float64)
    good = np.isfinite(values) & np.isfinite(spread) & (spread > 0)
    three = good[:, 2:] & good[:, 1:-1] & good[:, :-2]
    if three.sum() < 100:
        return True
    values, spread = np.where(good, values, 0), np.where(good, spread, 1)
    second = values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]  # free of the slopes of galaxies
    sigma = np.sqrt(spread[:, 2:] + 4 * spread[:, 1:-1] + spread[:, :-2])
    # Galaxies may fill more than half of a cutout: the quietest fifth of the pixels counts. 0.2533: of a Gaussian.
    noise = float(np.quantile(np.abs(second / sigma)[three], 0.2)) / 0.2533
    return noise == 0 or WEIGHT_NOISE[0] < noise < WEIGHT_NOISE[1]


def bad_pixels(path: Path, plane: FitsPlane, bad_bits: int | None, primary: fits.Header,
               notes: list[str]) -> NDArray[np.bool_]:
    """Return the bad pixels of a mask, bool (n_band, n_y, n_x) or (n_y, n_x).

    Parameters
    ----------
    path : Path
    plane : FitsPlane
    bad_bits : int or None
        Bits that make a pixel bad; see `deblendrt.engine.files.fits.read_image`.
    primary : astropy.io.fits.Header
        The file's primary header, which names the telescope.
    notes : list of str
        Assumptions are appended.
    """
    hdu, word = plane.hdu, plane.name.upper()
    if len(hdu.shape) not in (2, 3) or 0 in hdu.shape:
        raise ValueError(f"{path}[{plane.name}]: expected a mask image (band, y, x) or (y, x)")
    data = np.asarray(hdu.data)
    if not np.issubdtype(data.dtype, np.integer):
        return data != 0
    named = {key[3:]: value for key, value in hdu.header.items() if key.startswith("MP_")}
    if odd := [f"MP_{name} = {plane!r}" for name, plane in named.items() if plane not in range(63)]:
        raise ValueError(f"{path}[{plane.name}]: expected numbers of bits from 0 to 62, got {odd[0][:80]}")
    if bad_bits is None:
        if not named and data.min() >= 0 and data.max() <= 1 and word != "MASKBITS":
            return data != 0
        if not named and "MASKBITS" in word:
            bad_bits = MASKBITS_BITS
            notes.append(f"{plane.name}: saturated and masked pixels are bad (Legacy Surveys' bits {bad_bits:#x})")
        elif not named and "JWST" in (hdu.header.get("TELESCOP"), primary.get("TELESCOP")):
            bad_bits = JWST_BITS
        elif not named and "MASK" not in word:
            notes.append(f"{plane.name or 'mask'}: every pixel that is not 0 is bad; bad_bits (--bad-bits) chooses")
            return data != 0
        else:
            if not named:
                named = STANDARD_BITS
                note = f"{plane.name} holds bit planes without MP_ keys: read with LSST's standard bits"
                notes.extend([] if note in notes else [note])
            bad_bits = sum(1 << int(named[name]) for name in BAD_PLANES if name in named)
    return (data.astype(np.int64) & bad_bits) != 0


def by_band(path: Path, role: str, planes: Sequence[FitsPlane], images: Sequence[FitsPlane],
            bands: Sequence[str]) -> list[FitsPlane] | None:
    """Return the planes of a role in the order of the bands; None if a single plane holds all bands.

    Parameters
    ----------
    path : Path
    role : str
        Begins error messages.
    planes : sequence of FitsPlane
        The planes of the role; at least one.
    images : sequence of FitsPlane
        Images of the bands, one each; or a single image of all bands.
    bands : sequence of str
        Names of the bands; empty if they are not known.
    """
    n_band = len(images) if len(images) > 1 else len(bands)
    first = planes[0]
    alone = n_band <= 1 or (not first.band and (first.version is None or len(images) == 1))
    if len(planes) == 1 and (alone or len(first.hdu.shape) == 3):
        return None
    where = f"{path}: {first.name or role}"
    named = [plane for plane in planes if plane.band]
    if named and len(named) == len(planes) and bands:
        keys = [next((band for band in bands if same_band(band, plane.band) or same_band(plane.band, band)), None)
                for plane in planes]
    elif len(images) > 1 and len({image.version for image in images}) == len(images):
        numbers = {image.version: band for image, band in zip(images, bands or map(str, range(n_band)), strict=True)}
        keys = [numbers.get(plane.version) for plane in planes]
        bands = list(numbers.values())
    elif len(planes) == n_band:
        return list(planes)
    else:
        raise ValueError(f"{where}: {len(planes)} planes for {n_band} bands, and no EXTVER or FILTER that tells whose")
    found = {key: plane for key, plane in zip(keys, planes, strict=True) if key is not None}
    if len(found) < sum(key is not None for key in keys):
        raise ValueError(f"{where}: two planes of one band")
    if missing := [band for band in bands if band not in found]:
        raise ValueError(f"{where}: {role.upper()} only for band {', '.join(map(str, found))} of "
                         f"{', '.join(map(str, bands))}" if found else f"{where}: no plane for band {missing[0]}")
    return [found[band] for band in bands]
