"""Reader of scenes from FITS files.

An image file has one of three forms, tried in this order:

1. an image extension ``IMAGE`` (band, y, x) or (y, x). Optional extensions are the arrays ``VARIANCE``, ``MASK`` and
   ``PSF`` and the tables ``BANDS`` (``band`` and, instead of a variance map, ``sky_sigma``) and ``CENTERS``;
2. an image in the primary HDU, with the same optional extensions;
3. a 2-D image extension per band, named by band (``g``, ``r``), with optional ``g_VARIANCE``, ``g_MASK``, ``g_PSF``.
   Case is lost in extension names (astropy writes capitals), so a one-letter name is a lower-case band.

The flux scale is the AB magnitude of one image unit: 31.4 if ``BUNIT`` is nJy, else from a header key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import NDArray

from deblendrt.engine.files import fits_header
from deblendrt.engine.files.catalogues import Catalog, source_list
from deblendrt.engine.files.fits_check import open_fits

BAD_PLANES = ("BAD", "NO_DATA", "SAT", "SUSPECT", "EDGE")
# Bits of BAD_PLANES in LSST and HSC files without the MP_ keys. afw has never changed them.
STANDARD_BITS = {"BAD": 0, "SAT": 1, "EDGE": 4, "SUSPECT": 7, "NO_DATA": 8}
MAX_PSF = 1023  # pixel
COMPANIONS = ("VARIANCE", "MASK", "PSF", "BANDS", "CENTERS")


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """The contents of an image file. An item that the file lacks is None.

    Attributes
    ----------
    path : Path
    image : float32 (n_band, n_y, n_x) [units of `zero_point`]
    bands : tuple of str, or None
    variance : float32 (n_band, n_y, n_x) or (n_band,), or None [units of `zero_point`, squared]
    mask : bool (n_band, n_y, n_x) or (n_y, n_x), or None
        True means bad.
    psf : float32 (n_band, q, q), or None
    centers : float64 (n_source, 2), or None [pixel]
        (x, y), 0-based.
    ids, kinds : see `deblendrt.engine.files.catalogues.Catalog`
        Identifiers and kinds of the sources in ``CENTERS``.
    zero_point : float, or None [AB magnitude of 1 unit]
    unit : str, or None
        Value of ``BUNIT``, unchanged.
    pixel_scale : float, or None [arcsec]
    wcs : astropy.wcs.WCS, or None
        Celestial part of the WCS.
    notes : tuple of str
        Assumptions that the reader made, for the user.
    """

    path: Path
    image: NDArray[np.float32]
    bands: tuple[str, ...] | None = None
    variance: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None
    psf: NDArray[np.float32] | None = None
    centers: NDArray[np.float64] | None = None
    ids: Any = None
    kinds: list[str] | None = None
    zero_point: float | None = None
    unit: str | None = None
    pixel_scale: float | None = None
    wcs: WCS | None = None
    notes: tuple[str, ...] = ()


def read_image(path: str | Path, bands: Sequence[str] | None = None, bad_bits: int | None = None, *,
               one_based: bool = False, columns: Mapping[str, str] | None = None) -> ImageFile:
    """Read a scene from a FITS file.

    Parameters
    ----------
    path : str or Path
    bands : sequence of str, optional
        Names of the image's bands in file order; for a file with an extension per band, the bands to read. They
        override the names in the file.
    bad_bits : int, optional
        A pixel is bad if ``MASK & bad_bits`` is not zero. The default is the bits of the planes `BAD_PLANES`,
        from the ``MP_`` header keys. In a mask of only 0 and 1, pixels of 1 are bad.
    one_based : bool
        The table ``CENTERS`` counts pixels from 1.
    columns : mapping of str to str, optional
        Names of the columns of ``CENTERS``, see `deblendrt.engine.files.catalogues.read_source_list`.

    Raises
    ------
    ValueError
        The file has none of the three forms; the message names the file and its contents.
    OSError
        The file cannot be read.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        return _read(path, hdus, tuple(bands) if bands else None, bad_bits, one_based, columns)


def read_psf(path: str | Path, n_band: int) -> NDArray[np.float32]:
    """Read PSF images (n_band, q, q), in the order of the image's bands, from the ``PSF`` extension or the first image.

    A single PSF image is used for all bands.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        images = [hdu for hdu in hdus if hdu.is_image and _has_data(hdu)]
        if not images:
            raise ValueError(f"{path}: no image extension")
        psf = _array(path, next((hdu for hdu in images if _name(hdu).upper() == "PSF"), images[0]))
    if psf.shape[0] not in (1, n_band):
        raise ValueError(f"{path}: PSF images of shape {psf.shape}, expected ({n_band}, q, q) or (q, q)")
    return np.broadcast_to(psf, (n_band, *psf.shape[1:])).copy()


def _read(path: Path, hdus: fits.HDUList, bands: tuple[str, ...] | None, bad_bits: int | None, one_based: bool,
          columns: Mapping[str, str] | None) -> ImageFile:
    named = {_name(hdu).upper(): hdu for hdu in hdus if _name(hdu) and _has_data(hdu)}
    notes: list[str] = []
    if "IMAGE" in named or _has_data(hdus[0]):
        main = named.get("IMAGE", hdus[0])
        pieces = {name: named[name] for name in COMPANIONS if name in named}
        image = _array(path, main)
        header = main.header
        variance = _array(path, pieces["VARIANCE"]) if "VARIANCE" in pieces else None
        mask = _mask(path, pieces["MASK"], bad_bits, notes) if "MASK" in pieces else None
        psf = _array(path, pieces["PSF"]) if "PSF" in pieces else None
        zero_point = fits_header.zero_point(path, header, hdus[0].header)
    else:
        main, bands, image, variance, mask, psf, zero_point = _read_per_band(path, hdus, named, bands, bad_bits, notes)
        header = main.header

    table = _table(path, named["BANDS"]) if "BANDS" in named else None
    if bands is None:
        bands = fits_header.bands(header, hdus[0].header) if table is None else _band_column(path, table)
    if bands is not None and len(bands) != image.shape[0]:
        raise ValueError(f"{path}: {len(bands)} band names ({', '.join(bands)}) for an image of shape {image.shape}")
    if variance is None and table is not None and "sky_sigma" in table.colnames:
        variance = np.asarray(table["sky_sigma"], dtype=np.float32) ** 2
        notes.append("no VARIANCE: taken as sky_sigma^2 of the BANDS table")
        if variance.shape != image.shape[:1]:
            raise ValueError(f"{path}[BANDS]: {variance.size} rows for an image of shape {image.shape}")
    for name, array in (("VARIANCE", variance), ("MASK", mask)):
        if array is not None and array.ndim > 1 and array.shape != image.shape[3 - array.ndim :]:
            raise ValueError(f"{path}[{name}]: shape {array.shape} does not match the image's {image.shape}")
    if psf is not None and psf.shape[0] != image.shape[0]:
        raise ValueError(f"{path}[PSF]: shape {psf.shape}, expected ({image.shape[0]}, q, q)")

    wcs = fits_header.celestial_wcs(path, header)
    sources: Catalog | None = None
    if "CENTERS" in named:
        sources = source_list(f"{path}[CENTERS]", _table(path, named["CENTERS"]), wcs, one_based, columns,
                              (image.shape[1], image.shape[2]))
        notes += sources.notes
    return ImageFile(
        path=path,
        image=image,
        bands=bands,
        variance=variance,
        mask=mask,
        psf=psf,
        centers=None if sources is None else sources.centers,
        ids=None if sources is None else sources.ids,
        kinds=None if sources is None else sources.kinds,
        zero_point=zero_point,
        unit=unit if isinstance(unit := header.get("BUNIT"), str) else None,
        pixel_scale=fits_header.pixel_scale(path, wcs, header, hdus[0].header),
        wcs=wcs,
        notes=tuple(notes),
    )


def _read_per_band(
    path: Path,
    hdus: fits.HDUList,
    named: dict[str, Any],
    bands: tuple[str, ...] | None,
    bad_bits: int | None,
    notes: list[str],
) -> tuple[Any, tuple[str, ...], NDArray, NDArray | None, NDArray | None, NDArray | None, float | None]:
    suffixes = tuple(f"_{name}" for name in COMPANIONS)
    found = [
        _name(hdu)
        for hdu in named.values()
        if hdu.is_image and len(hdu.shape) == 2 and not _name(hdu).upper().endswith((*suffixes, *COMPANIONS))
    ]
    if bands is None:
        bands = tuple(name.lower() if len(name) == 1 else name for name in found)
    missing = [band for band in bands if band.upper() not in named]
    if not bands or missing:
        what = f"no extension for band {missing[0]!r}" if missing else "no IMAGE, no primary image, no image per band"
        raise ValueError(f"{path}: {what}; extensions found: {', '.join(_name(hdu) or 'unnamed' for hdu in hdus)}")
    # Bands that were calibrated separately have different zero points. They are scaled to the first.
    points = [fits_header.zero_point(path, named[band.upper()].header, hdus[0].header) for band in bands]
    known = [point for point in points if point is not None]
    if known and len(known) != len(bands):
        raise ValueError(f"{path}: a zero point or BUNIT for some bands only ({dict(zip(bands, points, strict=True))})")
    scales = [10 ** (0.4 * (known[0] - point)) for point in known] or [1.0] * len(bands)

    def gather(suffix: str) -> list[NDArray] | None:
        present = [band for band in bands if (band + suffix).upper() in named]
        if present and len(present) != len(bands):
            raise ValueError(f"{path}: {suffix[1:]} only for band {', '.join(present)} of {', '.join(bands)}")
        found = [named[(band + suffix).upper()] for band in present]
        if suffix == "_MASK":
            return [_mask(path, hdu, bad_bits, notes) for hdu in found] or None
        return [_array(path, hdu)[0] for hdu in found] or None

    images, variances, masks, psfs = gather(""), gather("_VARIANCE"), gather("_MASK"), gather("_PSF")
    assert images is not None
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise ValueError(f"{path}: bands of different shape {shapes}; resample them to one pixel grid first")
    return (
        named[bands[0].upper()],
        bands,
        np.stack([image * np.float32(scale) for image, scale in zip(images, scales, strict=True)]),
        None if variances is None else np.stack([v * np.float32(s**2) for v, s in zip(variances, scales, strict=True)]),
        None if masks is None else np.stack(masks),
        None if psfs is None else _stack_centered(path, psfs),
        known[0] if known else None,
    )


def _stack_centered(path: Path, psfs: list[NDArray]) -> NDArray[np.float32]:
    size = max(max(psf.shape) for psf in psfs)
    if size > MAX_PSF:
        raise ValueError(f"{path}: PSF images of shapes {[psf.shape for psf in psfs]}, expected {MAX_PSF} pixels at "
                         "most")
    padded = [np.pad(psf, [((size - n) // 2, size - n - (size - n) // 2) for n in psf.shape]) for psf in psfs]
    return np.stack(padded).astype(np.float32)


def _name(hdu: Any) -> str:
    return str(hdu.header.get("EXTNAME", "")).strip()  # hdu.name would be in capitals, but case matters in band names


def _has_data(hdu: Any) -> bool:
    return bool(hdu.header.get("NAXIS", 0) > 0)


def _array(path: Path, hdu: Any) -> NDArray[np.float32]:
    """Return the HDU's data as native float32 with three axes."""
    if not hdu.is_image or len(hdu.shape) not in (2, 3):
        found = f"shape {hdu.shape}" if hdu.is_image else "a table"
        raise ValueError(f"{path}[{_name(hdu) or 'PRIMARY'}]: expected an image (band, y, x) or (y, x), found {found}")
    data = np.array(hdu.data, dtype=np.float32)
    return data[None] if data.ndim == 2 else data


def _table(path: Path, hdu: Any) -> Table:
    if hdu.is_image:
        raise ValueError(f"{path}[{_name(hdu)}]: expected a table, found an image of shape {hdu.shape}")
    return Table.read(hdu)


def _band_column(path: Path, table: Table) -> tuple[str, ...]:
    if "band" not in table.colnames:
        raise ValueError(f"{path}[BANDS]: no column 'band'; columns: {', '.join(table.colnames)}")
    return tuple(str(name).strip() for name in table["band"])


def _mask(path: Path, hdu: Any, bad_bits: int | None, notes: list[str]) -> NDArray[np.bool_]:
    if not hdu.is_image or len(hdu.shape) not in (2, 3) or 0 in hdu.shape:
        raise ValueError(f"{path}[{_name(hdu)}]: expected a mask image (band, y, x) or (y, x)")
    data = np.asarray(hdu.data)
    if not np.issubdtype(data.dtype, np.integer):
        return data != 0
    planes = {key[3:]: value for key, value in hdu.header.items() if key.startswith("MP_")}
    if odd := [f"MP_{name} = {plane!r}" for name, plane in planes.items() if plane not in range(63)]:
        raise ValueError(f"{path}[{_name(hdu)}]: expected numbers of bits from 0 to 62, got {odd[0][:80]}")
    if bad_bits is None:
        if not planes and data.min() >= 0 and data.max() <= 1:
            return data != 0
        if not planes:
            planes = STANDARD_BITS
            note = "MASK holds bit planes without MP_ keys: read with LSST's standard bits"
            notes.extend([] if note in notes else [note])
        bad_bits = sum(1 << int(planes[name]) for name in BAD_PLANES if name in planes)
    return (data.astype(np.int64) & bad_bits) != 0
