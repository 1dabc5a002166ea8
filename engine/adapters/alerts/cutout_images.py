"""Reader of the FITS cutouts of alerts, from untrusted bytes.

Rubin's cutouts are written by astropy's CCDData: the image [nJy] with a linear WCS, ``UNCERT`` with the variance,
``PSFIMAGE``, and sometimes ``MASK`` (Rubin's own packager writes none). ZTF's cutouts are gzipped and hold one image
[DN] without WCS. This module parses only these kinds of FITS. Its memory is bounded, it takes a tenth of astropy's
time, and it raises only ValueError.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.files.fits import BAD_PLANES, STANDARD_BITS
from deblendrt.engine.files.fits_check import FITS_BLOCK, FITS_CARD

MAX_CUTOUT_BYTES = 8 << 20  # decompressed; a Rubin cutout of 102 x 102 pixels has 0.1 MB
MAX_CUTOUT_SIDE = 1024  # pixel
MAX_PSF_SIDE = 255  # pixel
MAX_HDUS = 16
MAX_CUTOUT_HEADER_BLOCKS = 64
FITS_DTYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


@dataclasses.dataclass(frozen=True)
class TangentPlane:
    """The WCS of a small cutout: a tangent plane with a linear map to pixels.

    Attributes
    ----------
    ra, dec : float [deg]
        Position of the reference pixel.
    pixel : tuple of float [pixel]
        (x, y) of the reference pixel, 0-based.
    matrix : float64 (2, 2) [deg / pixel]
        Maps offsets in pixels to offsets on the sky, (east, north).
    """

    ra: float
    dec: float
    pixel: tuple[float, float]
    matrix: NDArray[np.float64]

    @property
    def pixel_scale(self) -> float:
        """Square root of a pixel's area [arcsec]."""
        return 3600 * math.sqrt(abs(float(np.linalg.det(self.matrix))))

    def to_pixel(self, sky: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return pixels (x, y), float64 (n, 2), of sky positions (n, 2) [deg]; NaN on the far side of the sky."""
        ra, dec = np.radians(sky.T)
        ra0, dec0 = math.radians(self.ra), math.radians(self.dec)
        cosine = math.sin(dec0) * np.sin(dec) + math.cos(dec0) * np.cos(dec) * np.cos(ra - ra0)
        cosine = np.where(cosine > 0, cosine, np.nan)
        east = np.cos(dec) * np.sin(ra - ra0) / cosine
        north = (math.cos(dec0) * np.sin(dec) - math.sin(dec0) * np.cos(dec) * np.cos(ra - ra0)) / cosine
        return np.degrees(np.stack([east, north], 1)) @ np.linalg.inv(self.matrix).T + self.pixel

    def to_sky(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return sky positions (RA, Dec), float64 (n, 2) [deg], of pixels (x, y), (n, 2)."""
        east, north = np.radians((pixels - self.pixel) @ self.matrix.T).T
        dec0 = math.radians(self.dec)
        below = math.cos(dec0) - north * math.sin(dec0)
        ra = math.radians(self.ra) + np.arctan2(east, below)
        dec = np.arctan2(math.sin(dec0) + north * math.cos(dec0), np.hypot(east, below))
        return np.stack([np.degrees(ra) % 360, np.degrees(dec)], 1)


@dataclasses.dataclass(frozen=True)
class CutoutImage:
    """A cutout of an alert.

    Attributes
    ----------
    image : float32 (n_y, n_x) [`unit`]
        Pixels; a blank pixel is NaN.
    unit : str
        ``BUNIT``; empty if it is missing.
    variance : float32 (n_y, n_x), or None [`unit` squared]
    mask : bool (n_y, n_x), or None
        True means bad.
    psf : float32 (q, q), or None
        PSF, not normalized; q is odd.
    plane : TangentPlane or None
    notes : tuple of str
        The parts of the file that could not be used, with the reasons.
    """

    image: NDArray[np.float32]
    unit: str = ""
    variance: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None
    psf: NDArray[np.float32] | None = None
    plane: TangentPlane | None = None
    notes: tuple[str, ...] = ()


def read_cutout(data: bytes, max_bytes: int = MAX_CUTOUT_BYTES, max_side: int = MAX_CUTOUT_SIDE) -> CutoutImage:
    """Read a cutout from FITS, which may be gzipped.

    Parameters
    ----------
    data : bytes
    max_bytes : int [byte]
        Largest decompressed size. The decompression of a larger file stops there.
    max_side : int [pixel]

    Returns
    -------
    CutoutImage

    Raises
    ------
    ValueError
        The bytes are no FITS cutout, or exceed a limit. Bytes of any content raise no other error.
    """
    if data[:2] == b"\x1f\x8b":
        data = _gunzip(data, max_bytes)
    if len(data) > max_bytes:
        raise ValueError(f"stamp: {len(data)} bytes, at most {max_bytes}")
    hdus = _hdus(data)
    header, body = hdus[0]
    if not body and len(hdus) > 1 and hdus[1][0].get("XTENSION") == "IMAGE":
        header, body = hdus[1]
    image = _pixels(header, body, max_side, "image")
    named = {str(h.get("EXTNAME", "")).upper(): (h, b) for h, b in hdus[1:]}
    notes: list[str] = []
    variance = mask = psf = None
    if "UNCERT" in named or "VARIANCE" in named:
        variance = _variance(*named["UNCERT" if "UNCERT" in named else "VARIANCE"], max_side)
    if "MASK" in named:
        mask = _mask(*named["MASK"], max_side)
    for name, plane in (("variance", variance), ("mask", mask)):
        if plane is not None and plane.shape != image.shape:
            raise ValueError(f"stamp: {name} of shape {plane.shape}, image {image.shape}")
    if "PSFIMAGE" in named or "PSF" in named:
        psf = _psf(*named["PSFIMAGE" if "PSFIMAGE" in named else "PSF"], notes)
    unit = header.get("BUNIT", "")
    unit = unit if isinstance(unit, str) else ""
    return CutoutImage(image, unit, variance, mask, psf, _plane(header, notes), tuple(notes))


def _gunzip(data: bytes, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(31)
    try:
        found = stream.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"stamp: not gzip ({error})") from error
    if len(found) > max_bytes:
        raise ValueError(f"stamp: gzip of more than {max_bytes} bytes")
    if not stream.eof:
        raise ValueError("stamp: the gzip stream ends early")
    return found


def _hdus(data: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """Return the headers and the data of the file's units."""
    hdus: list[tuple[dict[str, Any], bytes]] = []
    at = 0
    while at < len(data) and (data[at : at + 8] == b"XTENSION" if hdus else True):
        if len(hdus) == MAX_HDUS:
            raise ValueError(f"stamp: more than {MAX_HDUS} units")
        header, at = _header(data, at)
        if not hdus and header.get("SIMPLE") is not True:
            raise ValueError("stamp: not FITS")
        size = _n_byte(header)
        if size > len(data) - at:
            raise ValueError(f"stamp: {size} bytes of data announced, {len(data) - at} left")
        hdus.append((header, data[at : at + size]))
        at += -(-size // FITS_BLOCK) * FITS_BLOCK  # the last block's padding may be absent
    if not hdus:
        raise ValueError("stamp: empty")
    return hdus


def _header(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    header: dict[str, Any] = {}
    for block in range(MAX_CUTOUT_HEADER_BLOCKS):
        start = at + block * FITS_BLOCK
        if start + FITS_BLOCK > len(data):
            break
        for card in range(start, start + FITS_BLOCK, FITS_CARD):
            text = data[card : card + FITS_CARD].decode("latin-1")
            key = text[:8].rstrip()
            if key == "END":
                return header, start + FITS_BLOCK
            if text[8:9] == "=" and key not in header:
                header[key] = _value(text[9:].strip())
    raise ValueError("stamp: a header without END")


def _value(text: str) -> Any:
    """Return a card's value as str, bool, int or float; None if it is none of these."""
    if text.startswith("'"):
        end = 1
        while (end := text.find("'", end)) >= 0 and text[end + 1 : end + 2] == "'":
            end += 2
        return text[1 : end if end > 0 else None].replace("''", "'").rstrip()
    text = text.partition("/")[0].strip()
    if text in ("T", "F"):
        return text == "T"
    if not text.isascii() or "_" in text:
        return None
    for kind in (int, float):
        try:
            return kind(text.replace("D", "E").replace("d", "e"))
        except ValueError:
            pass
    return None


def _integer(header: dict[str, Any], key: str, default: int | None = None) -> int:
    value = header.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise ValueError(f"stamp: {key} {value!r}")
    return value


def _number(header: dict[str, Any], key: str, default: float) -> float:
    value = header.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise ValueError(f"stamp: {key} {value!r}")
    return float(value)


def _n_byte(header: dict[str, Any]) -> int:
    if header.get("BITPIX") not in FITS_DTYPES:
        raise ValueError(f"stamp: BITPIX {header.get('BITPIX')!r}")
    n_axis = _integer(header, "NAXIS")
    if n_axis > 4:
        raise ValueError(f"stamp: {n_axis} axes")
    if n_axis == 0:
        return 0
    values = math.prod(_integer(header, f"NAXIS{i + 1}") for i in range(n_axis))
    count = _integer(header, "GCOUNT", 1) * (_integer(header, "PCOUNT", 0) + values)
    return abs(header["BITPIX"]) // 8 * count


def _pixels(header: dict[str, Any], body: bytes, max_side: int, name: str) -> NDArray[np.float32]:
    """Return the scaled pixels of a 2-D image, NaN where blank."""
    if header.get("NAXIS") != 2 or header.get("XTENSION", "IMAGE") != "IMAGE":
        raise ValueError(f"stamp: {name} is no image of two axes")
    n_x, n_y = _integer(header, "NAXIS1"), _integer(header, "NAXIS2")
    if not (1 <= n_x <= max_side and 1 <= n_y <= max_side):
        raise ValueError(f"stamp: {name} of {n_x} x {n_y} pixels, 1 to {max_side} allowed")
    scale, zero = _number(header, "BSCALE", 1.0), _number(header, "BZERO", 0.0)
    raw = np.frombuffer(body, FITS_DTYPES[header["BITPIX"]], n_x * n_y).reshape(n_y, n_x)
    with np.errstate(all="ignore"):
        pixels = raw.astype(np.float32) if (scale, zero) == (1, 0) else (raw * scale + zero).astype(np.float32)
    if header["BITPIX"] > 0 and "BLANK" in header:
        pixels[raw == header["BLANK"]] = np.nan
    return pixels


def _variance(header: dict[str, Any], body: bytes, max_side: int) -> NDArray[np.float32]:
    """Return the variance. CCDData may have stored its square root or its inverse."""
    pixels = _pixels(header, body, max_side, "uncertainty")
    kind = header.get("UTYPE", "VarianceUncertainty" if header.get("EXTNAME") == "VARIANCE" else "StdDevUncertainty")
    with np.errstate(all="ignore"):
        if kind == "VarianceUncertainty":
            return pixels
        if kind == "StdDevUncertainty":
            return pixels**2
        if kind == "InverseVariance":
            return np.where(pixels > 0, 1 / pixels, np.float32(np.inf)).astype(np.float32)
    raise ValueError(f"stamp: uncertainty of type {str(kind)[:40]!r}")


def _mask(header: dict[str, Any], body: bytes, max_side: int) -> NDArray[np.bool_]:
    """Return the bad pixels: pixels in afw's bad planes, found by name or customary bit, else all nonzero pixels."""
    if header.get("BITPIX", 0) < 0:
        raise ValueError("stamp: a mask of floating-point numbers")
    _pixels(header, body, max_side, "mask")
    n_x, n_y = header["NAXIS1"], header["NAXIS2"]
    bits = np.frombuffer(body, FITS_DTYPES[header["BITPIX"]], n_x * n_y).reshape(n_y, n_x).astype(np.int64)
    named = [header.get(f"MP_{plane}") for plane in BAD_PLANES]
    planes = [plane for plane in named if isinstance(plane, int) and 0 <= plane < 63]
    if not planes and not np.isin(bits, (0, 1)).all():
        planes = list(STANDARD_BITS.values())
    return (bits & sum({1 << plane for plane in planes})) != 0 if planes else bits != 0


def _psf(header: dict[str, Any], body: bytes, notes: list[str]) -> NDArray[np.float32] | None:
    """Return the PSF. If it is unusable, return None and add a note: the nominal PSF can then be used."""
    try:
        psf = _pixels(header, body, MAX_PSF_SIDE, "PSF")
    except ValueError as error:
        notes.append(f"PSF: {error}")
        return None
    total = float(psf.sum(dtype=np.float64))
    if psf.shape[0] != psf.shape[1] or psf.shape[0] % 2 == 0 or not np.isfinite(psf).all() or not 1e-6 < total < 1e6:
        notes.append(f"PSF: expected an odd square image of positive sum, got {psf.shape} of sum {total:.3g}")
        return None
    return psf


def _plane(header: dict[str, Any], notes: list[str]) -> TangentPlane | None:
    """Return the linear WCS. Rubin's WCS has no CTYPE; its matrix maps to the tangent plane."""
    if "CRVAL1" not in header or not any(key in header for key in ("CD1_1", "PC1_1", "CDELT1")):
        return None
    try:
        if any(key in header for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2")):
            matrix = np.array([[_number(header, f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)])
        else:
            matrix = np.array([[_number(header, f"CDELT{i}", 1.0) * _number(header, f"PC{i}_{j}", float(i == j))
                                for j in (1, 2)] for i in (1, 2)])
        ra, dec = _number(header, "CRVAL1", 0.0), _number(header, "CRVAL2", 0.0)
        pixel = _number(header, "CRPIX1", 0.0) - 1, _number(header, "CRPIX2", 0.0) - 1
        plane = TangentPlane(ra, dec, pixel, matrix)
        if not (0.001 < plane.pixel_scale < 100 and np.linalg.cond(matrix) < 10 and abs(dec) <= 90 and abs(ra) <= 720):
            raise ValueError(f"pixels of {plane.pixel_scale:.3g} arcsec, CRVAL {ra:.6g}, {dec:.6g}")
    except (ValueError, np.linalg.LinAlgError) as error:
        notes.append(f"WCS: {error}")
        return None
    return plane
