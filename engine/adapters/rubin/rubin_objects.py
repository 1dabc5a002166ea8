"""Readers of Rubin's image and catalogue objects. They use the objects' attributes and import no Rubin software.

Two families of classes are known. Their attributes tell them apart:

- lsst.afw: `Exposure` and `MultibandExposure` (``getBBox``, ``image.array``, ``mask.getMaskPlaneDict``, ``getPsf``,
  ``getPhotoCalib``, ``getWcs``): lsst/afw python/lsst/afw/image/_exposure/_multiband.py, _image/_multiband.py,
  _photoCalib.cc;
- lsst.images: `MaskedImage`, `VisitImage`, `CellCoadd` (``bbox``, ``unit``, ``mask.get``, ``psf.compute_kernel_image``,
  ``sky_projection``): lsst/images python/lsst/images/_masked_image.py, _mask.py, psfs/_base.py, cells/_coadd.py.

Positions are pixel coordinates of the parent image, as in Rubin's software. An image's ``bbox`` gives its place in the
parent image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.files.fits import BAD_PLANES
from deblendrt.engine.units import to_flux

X_COLUMNS = (("x", "y"), ("slot_Centroid_x", "slot_Centroid_y"), ("deblend_peak_center_x", "deblend_peak_center_y"))
RUBIN_SKY_COLUMNS = (("coord_ra", "coord_dec", "rad"), ("ra", "dec", "deg"))  # afw's tables are in radians


class PixelPosition(NamedTuple):
    """A position for PSF models that take an object with getX and getY, if `lsst.geom` is not installed."""

    x: float
    y: float

    def getX(self) -> float:
        """Return x [pixel]."""
        return self.x

    def getY(self) -> float:
        """Return y [pixel]."""
        return self.y


class Sources(NamedTuple):
    """A list of sources.

    Attributes
    ----------
    source_id, parent_id : int64 (n_source,)
    center : float64 (n_source, 2) [pixel]
        (x, y) in the parent image; NaN if unknown.
    kind : list of str, or None
    """

    source_id: NDArray[np.int64]
    parent_id: NDArray[np.int64]
    center: NDArray[np.float64]
    kind: list[str] | None


def singles(exposures: Any) -> dict[str, Any]:
    """Return exposures by band.

    Parameters
    ----------
    exposures : mapping of str to exposure, `MultibandExposure`, exposure, or sequence of exposures
        Exposures. If they are no mapping, every exposure must know its band.

    Returns
    -------
    dict of str to exposure or None
        Exposures by band; None stands for a missing exposure.
    """
    if isinstance(exposures, Mapping):
        return {str(band): exposure for band, exposure in exposures.items()}
    names = getattr(exposures, "filters", None)
    names = getattr(exposures, "bands", None) if names is None else names
    if names is not None and hasattr(exposures, "singles"):  # indexing by a name of several letters fails in afw
        return {str(band): exposure for band, exposure in zip(names, exposures.singles, strict=True)}
    listed = list(exposures) if isinstance(exposures, Sequence) else [exposures]
    found: dict[str, Any] = {}
    for k, exposure in enumerate(listed):
        band = band_of(exposure)
        if band is None:
            raise ValueError(f"exposures[{k}]: expected an exposure that knows its band, or a dict of band to exposure,"
                             f" got {type(exposure).__name__}")
        if band in found:
            raise ValueError(f"exposures[{k}]: expected one exposure a band, got a second one in {band}")
        found[band] = exposure
    return found


def band_of(exposure: Any) -> str | None:
    """Return the band of an exposure; None if the exposure does not tell it."""
    label = exposure.getFilter() if hasattr(exposure, "getFilter") else None
    band = getattr(exposure, "band", None) if label is None else getattr(label, "bandLabel", None)
    return None if band is None else str(band)


def corner(exposure: Any, name: str) -> tuple[int, int]:
    """Return (x, y) of an exposure's first pixel in its parent image."""
    box: Any = exposure.getBBox() if hasattr(exposure, "getBBox") else getattr(exposure, "bbox", None)
    if hasattr(box, "getMinX"):
        return int(box.getMinX()), int(box.getMinY())
    if hasattr(box, "minX"):
        return int(box.minX), int(box.minY)
    if hasattr(box, "x") and hasattr(box.x, "start"):
        return int(box.x.start), int(box.y.start)
    raise ValueError(f"{name}: expected a bounding box with minX and minY, or x.start and y.start, got "
                     f"{type(box).__name__}")


def pixels(plane: Any, name: str) -> NDArray[Any]:
    """Return the array of an image or variance plane, (n_y, n_x)."""
    array = getattr(plane, "array", None)
    if not isinstance(array, np.ndarray) or array.ndim != 2:
        raise ValueError(f"{name}: expected an image with an array (n_y, n_x), got {type(plane).__name__}")
    return array


def bad_pixels(mask: Any, planes: Sequence[str] = BAD_PLANES) -> NDArray[np.bool_] | None:
    """Return the pixels in any of the named planes, bool (n_y, n_x); None without a mask.

    Planes that the mask does not have are ignored.
    """
    if mask is None:
        return None
    if hasattr(mask, "getMaskPlaneDict"):
        known = mask.getMaskPlaneDict()
        bits = sum(1 << int(known[plane]) for plane in planes if plane in known)
        return np.asarray((mask.array & np.array(bits, mask.array.dtype)) != 0)
    known = getattr(getattr(mask, "schema", None), "names", None)
    if known is None or not hasattr(mask, "get"):
        raise ValueError(f"mask: expected getMaskPlaneDict, or schema.names and get, got {type(mask).__name__}")
    bad = np.zeros(mask.array.shape[:2], bool)
    for plane in planes:
        if plane in known:
            bad |= np.asarray(mask.get(plane), bool)
    return bad


def njy_per_unit(exposure: Any, band: str, zero_point: float | Mapping[str, float] | None) -> float:
    """Return the flux of one image unit in nJy, from the zero point, the unit or the photometric calibration."""
    if zero_point is not None:
        value = zero_point[band] if isinstance(zero_point, Mapping) else zero_point
        return float(to_flux(float(value)))
    unit = getattr(exposure, "unit", None)
    if unit is not None:
        from astropy import units

        try:
            return float(units.Unit(unit).to(units.nJy))
        except units.UnitConversionError as error:
            raise ValueError(f"{band}: expected an image in a unit of flux density, or zero_point=, got {unit}: "
                             "lsst.images' convert_unit(nJy) applies its photometric scaling") from error
    calib = exposure.getPhotoCalib() if hasattr(exposure, "getPhotoCalib") else None
    if calib is None:
        raise ValueError(f"{band}: expected a photometric calibration or a unit, got none; pass zero_point=31.4 for an "
                         "image in nJy (MultibandExposure keeps no calibration)")
    if not getattr(calib, "_isConstant", True):
        raise ValueError(f"{band}: expected a constant calibration, got one that varies over the image; apply it first:"
                         " photoCalib.calibrateImage(exposure.maskedImage)")
    scale = float(calib.getCalibrationMean())
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"{band}: expected a positive calibration, got {scale}")
    return scale


def psf_at(exposure: Any, x: float, y: float) -> NDArray[np.float64]:
    """Return the effective PSF image at a position of the parent image: odd, square, centred on the central pixel.

    Exceptions of the PSF model are passed on. afw's models raise `InvalidParameterError` where no input image covers
    the position.
    """
    psf = exposure.getPsf() if hasattr(exposure, "getPsf") else getattr(exposure, "psf", None)
    if psf is None:
        raise ValueError("no PSF")
    if hasattr(psf, "compute_kernel_image"):
        image = psf.compute_kernel_image(x=x, y=y)
    else:
        image = psf.computeKernelImage(_point(x, y))
    array = np.asarray(getattr(image, "array", image), np.float64)
    if array.ndim != 2 or not np.isfinite(array).all() or not array.sum() > 0:
        raise ValueError("a PSF image that is not finite, or without light")
    half = (max(array.shape) - 1) // 2
    middle = -(array.shape[1] // 2), -(array.shape[0] // 2)
    first_x, first_y = corner(image, "psf") if _has_box(image) else middle
    half = max(half, -first_x, -first_y, array.shape[1] - 1 + first_x, array.shape[0] - 1 + first_y)
    square = np.zeros((2 * half + 1, 2 * half + 1))
    square[half + first_y:half + first_y + array.shape[0], half + first_x:half + first_x + array.shape[1]] = array
    return square


def _has_box(image: Any) -> bool:
    return hasattr(image, "getBBox") or hasattr(image, "bbox")


def _point(x: float, y: float) -> Any:
    try:
        from lsst.geom import Point2D  # compiled PSF models accept only this class
    except ImportError:
        return PixelPosition(x, y)
    return Point2D(x, y)


def sky_to_pixel(exposure: Any, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return positions in the parent image, float64 (n, 2), of sky positions in radians."""
    wcs: Any = exposure.getWcs() if hasattr(exposure, "getWcs") else getattr(exposure, "sky_projection", None)
    if hasattr(wcs, "skyToPixelArray"):
        x, y = wcs.skyToPixelArray(ra, dec)
    elif hasattr(wcs, "sky_to_pixel"):
        from astropy.coordinates import SkyCoord

        place = wcs.sky_to_pixel(SkyCoord(ra, dec, unit="rad"))
        x, y = place.x, place.y
    else:
        raise ValueError(f"catalog: expected pixel positions, or an exposure with a WCS, got {type(wcs).__name__}")
    return np.column_stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])


def read_sources(catalog: Any, exposure: Any, by: str = "auto") -> Sources:
    """Return the sources of a catalogue: an afw `SourceCatalog`, an astropy Table, or an array (n, 2).

    Parameters
    ----------
    catalog : afw catalogue, Table, float (n, 2) or None
        Positions are in the parent image. In an afw catalogue, every peak of every footprint is a source; a record
        without peaks is a source at its centroid. A table needs the columns x and y (or other `X_COLUMNS`) or sky
        positions (`RUBIN_SKY_COLUMNS`); its columns id, parent and kind are used if present.
    exposure : Any
        Exposure whose WCS converts sky positions.
    by : {"auto", "peaks", "records"}
        "records" makes every record of an afw catalogue a source at its centroid, whether or not it has peaks.
    """
    if by not in ("auto", "peaks", "records"):
        raise ValueError(f'by: expected "auto", "peaks" or "records", got {by!r}')
    if hasattr(catalog, "colnames"):
        return _table_sources(catalog, exposure)
    if catalog is None or len(catalog) == 0:
        return Sources(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)), None)
    if not hasattr(catalog[0], "getId"):
        center = np.asarray(catalog, np.float64)
        if center.ndim != 2 or center.shape[1] != 2:
            raise ValueError(f"catalog: expected a catalogue or positions (n, 2), got shape {center.shape}")
        return Sources(np.arange(len(center)), np.zeros(len(center), np.int64), center, None)
    ids: list[int] = []
    parents: list[int] = []
    places: list[tuple[float, float]] = []
    for record in catalog:
        footprint = None if by == "records" else record.getFootprint()
        peaks = [] if footprint is None else list(footprint.getPeaks())
        for peak in peaks:
            ids.append(int(peak.getId()))
            parents.append(int(record.getId()))
            places.append((float(peak.getFx()), float(peak.getFy())))
        if not peaks:
            ids.append(int(record.getId()))
            parents.append(int(record.getParent()))
            places.append((float(record.getX()), float(record.getY())))
    source_id = np.array(ids, np.int64)
    if len(np.unique(source_id)) < len(ids):  # ids of unmerged detections start anew in each footprint
        source_id = np.arange(len(ids))
    return Sources(source_id, np.array(parents, np.int64), np.array(places, np.float64), None)


def _table_sources(table: Any, exposure: Any) -> Sources:
    n, names = len(table), table.colnames
    pair = next((pair for pair in X_COLUMNS if pair[0] in names and pair[1] in names), None)
    if pair is not None:
        center = np.column_stack([_floats(table[name]) for name in pair])
    else:
        sky = next((pair for pair in RUBIN_SKY_COLUMNS if pair[0] in names and pair[1] in names), None)
        if sky is None:
            known = " or ".join(", ".join(pair[:2]) for pair in (*X_COLUMNS, *RUBIN_SKY_COLUMNS))
            raise ValueError(f"catalog: expected columns {known}, got {', '.join(names)}")
        from astropy import units

        angle = [_floats(table[name]) * (table[name].unit or units.Unit(sky[2])).to(units.rad) for name in sky[:2]]
        center = sky_to_pixel(exposure, angle[0], angle[1]) if n else np.zeros((0, 2))
    ids = np.asarray(table["id"], np.int64) if "id" in names else np.arange(n)
    parents = np.asarray(table["parent"], np.int64) if "parent" in names else np.zeros(n, np.int64)
    return Sources(ids, parents, center.reshape(n, 2), [str(k) for k in table["kind"]] if "kind" in names else None)


def _floats(column: Any) -> NDArray[np.float64]:
    return np.asarray(np.ma.filled(np.ma.asarray(getattr(column, "value", column), np.float64), np.nan))
