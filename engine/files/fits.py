"""Reader of scenes from FITS files.

An image file has one of these forms, tried in this order:

1. an image extension ``IMAGE`` or ``SCI`` (band, y, x) or (y, x); several of them, (y, x), told apart by EXTVER or
   FILTER, are bands;
2. an image in the primary HDU;
3. a 2-D image extension per band, ``IMAGE_g`` or ``g``. Case is lost in extension names (astropy writes capitals), so
   a one-letter name is a lower-case band.

Or each band has a file of its own. `planes` lists the extensions with noise, masks and PSFs that are used. The tables
``BANDS`` (``band`` and, instead of a variance map, ``sky_sigma``; optionally ``zero_point``) and ``CENTERS`` are
optional.

The flux scale is the AB magnitude of one image unit: 31.4 if ``BUNIT`` is nJy, else from a header key.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.files import fits_header
from deblendrt.engine.files.fits_check import open_fits
from deblendrt.engine.files.images import image_file, planes
from deblendrt.engine.files.images.fits_reader import FitsReader
from deblendrt.engine.files.images.image_file import MAX_PSF, ImageFile, ZeroPoint
from deblendrt.engine.files.images.planes import BAD_PLANES, STANDARD_BITS, FitsPlane, has_data, name_of
from deblendrt.engine.units import notify

__all__ = ["BAD_PLANES", "MAX_PSF", "STANDARD_BITS", "ImageFile", "read_image", "read_psf"]

Paths = str | Path | Mapping[str, str | Path]


def read_image(path: Paths, bands: str | Sequence[str] | Mapping[str, str] | None = None,
               bad_bits: int | None = None, *, variance: Paths | None = None, weight: Paths | None = None,
               error: Paths | None = None, mask: Paths | None = None, zero_point: ZeroPoint | None = None,
               one_based: bool = False, columns: Mapping[str, str] | None = None,
               any_compression: bool = False) -> ImageFile:
    """Read a scene from a FITS file, or from a file for each band.

    Parameters
    ----------
    path : str, Path or mapping
        A file; or files by the bands' names, ``{"g": "g.fits", "r": "r.fits"}``, whose images have one pixel grid.
    bands : str, sequence or mapping of str, optional
        Bands to read, in the wanted order. If the file does not name its bands, their names in the file's order. A
        mapping from new names to names in the file renames bands.
    bad_bits : int, optional
        A pixel is bad if ``MASK & bad_bits`` is not zero. The default is the bits of the planes `BAD_PLANES`,
        from the ``MP_`` header keys. In a mask of only 0 and 1, pixels of 1 are bad. In ``DQ`` and ``MSK``, all pixels
        but 0 are bad (JWST: those of the bits DO_NOT_USE and SATURATED).
    variance, weight, error : str, Path or mapping, optional
        A file with the variance, the inverse variance or the standard deviation, in place of the file's own; a mapping
        has a file for each band.
    mask : str, Path or mapping, optional
        A file with the mask, likewise.
    zero_point : float, sequence or mapping of float, optional
        AB magnitude of one unit, for all bands, for each, or by the band's name. It overrides the file's.
    one_based : bool
        The table ``CENTERS`` counts pixels from 1.
    columns : mapping of str to str, optional
        Names of the columns of ``CENTERS``, see `deblendrt.engine.files.catalogues.read_source_list`.
    any_compression : bool
        Also read images compressed by PLIO and HCOMPRESS, for files that you trust.

    Returns
    -------
    ImageFile

    Warns
    -----
    InputWarning
        A plane of the file is ignored, or something was assumed. The texts are also in `ImageFile.notes`.

    Raises
    ------
    ValueError
        The file has none of the three forms; the message names the file and its contents.
    OSError
        The file cannot be read.
    """
    others = {"variance": variance, "weight": weight, "sigma": error, "mask": mask}
    if len([role for role in ("variance", "weight", "sigma") if others[role] is not None]) > 1:
        raise ValueError("expected one of variance, weight and error, got several")
    told = _told_bands(bands)
    if isinstance(path, Mapping):
        if told is not None and tuple(told) != tuple(path):
            raise ValueError(f"bands: expected the bands of the files, {', '.join(path)}, got {', '.join(told)}")
        if not path:
            raise ValueError("path: expected a file for each band, got none")
        file = _band_files(path, others, bad_bits, zero_point, one_based, columns, any_compression)
    else:
        file = _one_file(Path(path), told, others, bad_bits, zero_point, one_based, columns, any_compression)
    for note in file.notes:
        notify(f"{file.path}: {note}")
    return file


def _told_bands(bands: str | Sequence[str] | Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return the file's names of bands by the names that the caller wants."""
    if bands is None or isinstance(bands, Mapping):
        return bands
    names = fits_header.parse_bands(bands) if isinstance(bands, str) else tuple(bands)
    return {name: name for name in names} or None


def _one_file(path: Path, told: Mapping[str, str] | None, others: Mapping[str, Paths | None], bad_bits: int | None,
              zero_point: ZeroPoint | None, one_based: bool, columns: Mapping[str, str] | None,
              any_compression: bool) -> ImageFile:
    with contextlib.ExitStack() as stack:
        hdus = stack.enter_context(open_fits(path, any_compression=any_compression))
        outside = [_outside(stack, role, band, Path(file), any_compression) for role, given in others.items()
                   for band, file in (given if isinstance(given, Mapping) else {"": given}).items() if file is not None]
        return FitsReader(path, hdus, told, bad_bits, outside).read(zero_point, one_based, columns)


def _outside(stack: contextlib.ExitStack, role: str, band: str, path: Path, any_compression: bool) -> FitsPlane:
    """Open another file and return its plane of a role: by its extension's name, else its only image."""
    found = planes.planes_of(stack.enter_context(open_fits(path, any_compression=any_compression)))
    chosen = [plane for plane in found if plane.role == role] or [
        plane for plane in found if plane.role in ("", "image", "relative weight")]
    if len(chosen) != 1:
        named = ", ".join(f"{plane.name or 'unnamed'} ({planes.MEANINGS.get(plane.role, 'image')})" for plane in found)
        raise ValueError(f"{path}: expected one image that is the {planes.MEANINGS[role]}, found {named or 'no image'}")
    return dataclasses.replace(chosen[0], role=role, band=band, version=None, split=False)


def _band_files(paths: Mapping[str, str | Path], others: Mapping[str, Paths | None], bad_bits: int | None,
                zero_point: ZeroPoint | None, one_based: bool, columns: Mapping[str, str] | None,
                any_compression: bool) -> ImageFile:
    """Read a file for each band, and join them in the unit of the first."""
    bands = tuple(paths)
    for role, given in others.items():
        if given is not None and (not isinstance(given, Mapping) or set(given) != set(bands)) and (
                len(bands) > 1 or isinstance(given, Mapping)):
            came = ", ".join(given) if isinstance(given, Mapping) else str(given)
            raise ValueError(f"{'error' if role == 'sigma' else role}: expected a file for each of the bands "
                             f"{', '.join(bands)}, got {came}")
    points = None if zero_point is None else image_file.per_band(zero_point, bands, len(bands))
    files = []
    for k, (band, path) in enumerate(paths.items()):
        with open_fits(path, any_compression=any_compression) as hdus:
            told = FitsReader(Path(path), hdus, None, bad_bits).band_in_file(band)
        own = {role: given[band] if isinstance(given, Mapping) else given for role, given in others.items()}
        files.append(_one_file(Path(path), told, own, bad_bits, None if points is None else points[k],
                               one_based and k == 0, columns if k == 0 else None, any_compression))
    return image_file.joined(files, bands)


def read_psf(path: str | Path, n_band: int) -> NDArray[np.float32]:
    """Read PSF images (n_band, q, q), in the order of the image's bands, from the ``PSF`` extension or the first image.

    A single PSF image is used for all bands.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        images = [hdu for hdu in hdus if hdu.is_image and has_data(hdu)]
        if not images:
            raise ValueError(f"{path}: no image extension")
        psf = planes.pixels(path, next((hdu for hdu in images if name_of(hdu).upper() == "PSF"), images[0]))
    if psf.shape[0] not in (1, n_band):
        raise ValueError(f"{path}: PSF images of shape {psf.shape}, expected ({n_band}, q, q) or (q, q)")
    return np.broadcast_to(psf, (n_band, *psf.shape[1:])).astype(np.float32)
