"""The image of a scene from one or several files, in one unit and on one pixel grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from deblendrt.engine.units import AB_ZERO_POINT, to_flux

MAX_PSF = 1023  # pixel
EXTREME_UNIT = 1e13  # nJy: the variance of images in such units may be below the numbers of float32
GRID_SHIFT = 0.05  # pixel: less is noise of the astrometry
ZeroPoint = float | Sequence[float] | Mapping[str, float]


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


def joined(files: Sequence[ImageFile], bands: tuple[str, ...]) -> ImageFile:
    """Return the images of several files, one band each, as the image of one file in the unit of the first."""
    first, names = files[0], [str(file.path) for file in files]
    shapes = [file.image.shape[1:] for file in files]
    if len(set(shapes)) > 1:
        raise ValueError(f"{', '.join(names)}: bands of different shape {shapes}; resample them to one pixel grid "
                         "first")
    check_grids(", ".join(names), [file.wcs for file in files], bands, shapes[0])
    points = [file.zero_point for file in files]
    for name, values in (("a zero point or BUNIT", points), ("a variance", [file.variance for file in files]),
                         ("a PSF", [file.psf for file in files])):
        if any(value is None for value in values) and any(value is not None for value in values):
            lacking = [band for band, value in zip(bands, values, strict=True) if value is None]
            raise ValueError(f"{', '.join(names)}: {name} for some bands only: {', '.join(lacking)} have none")
    factor, zero = common_unit(points)
    image = single(np.concatenate([file.image for file in files]), factor, "IMAGE", first.path)
    variances = [np.broadcast_to(v.reshape(1, *(v.shape[1:] or (1, 1))), (1, *shapes[0]))
                 for v in (file.variance for file in files) if v is not None]
    psfs = [file.psf for file in files if file.psf is not None]
    masks = [np.zeros(shapes[0], bool) if file.mask is None else file.mask.reshape(shapes[0]) for file in files]
    listed = next((file for file in files if file.centers is not None), first)
    notes = [f"{file.path.name}: {note}" for file in files for note in file.notes]
    return dataclasses.replace(
        listed, path=first.path, image=image, bands=bands, zero_point=zero,
        variance=single(np.concatenate(variances), factor**2, "VARIANCE", first.path) if variances else None,
        mask=np.stack(masks) if any(file.mask is not None for file in files) else None,
        psf=stack_psfs(first.path, [psf[0] for psf in psfs]) if psfs else None,
        unit=first.unit, pixel_scale=first.pixel_scale, wcs=first.wcs, notes=tuple(dict.fromkeys(notes)))


def check_grids(where: str, wcs: Sequence[WCS | None], names: Sequence[str], shape: tuple[int, ...]) -> None:
    """Raise ValueError if bands lie on different pixel grids; a band without a WCS passes.

    Parameters
    ----------
    where : str
        Begins the message.
    wcs : sequence of WCS or None
    names : sequence of str
        Names of the bands.
    shape : tuple of int
        n_y, n_x of the images.
    """
    known = [(one, name) for one, name in zip(wcs, names, strict=False) if one is not None]
    corners = np.array([[0, 0], [shape[1] - 1, 0], [0, shape[0] - 1], [shape[1] - 1, shape[0] - 1]], np.float64)
    for one, name in known[1:]:
        there = known[0][0].all_world2pix(one.all_pix2world(corners, 0), 0, quiet=True)
        shift = np.nanmax(np.hypot(*(there - corners).T)) if np.isfinite(there).any() else np.inf
        if shift > GRID_SHIFT:
            raise ValueError(f"{where}: the grid of band {name} is off that of {known[0][1]} by {shift:.2f} pixel; "
                             "resample the bands to one pixel grid first")


def common_unit(points: Sequence[float | None]) -> tuple[NDArray[np.float64], float | None]:
    """Return factors to one unit, float64 (n_band,), and its zero point: the first band's, or nJy for extreme units."""
    if not points or points[0] is None:
        return np.ones(len(points)), None
    zero = points[0]
    if not 1 / EXTREME_UNIT < to_flux(zero) < EXTREME_UNIT:
        zero = AB_ZERO_POINT
    return np.array([10 ** (0.4 * (zero - point)) for point in points if point is not None]), zero


def single(values: NDArray[Any], factor: NDArray[np.float64], name: str, path: Path) -> NDArray[np.float32]:
    """Return values times a factor per band in float32."""
    if values.dtype != np.float32 or (factor != 1).any():
        values = values * factor.reshape(-1, *[1] * (values.ndim - 1))
    with np.errstate(over="ignore", under="ignore"):
        single = values.astype(np.float32)
    if values.dtype == np.float64 and ((single == 0) & (values != 0)).any() and not (single != 0).any():
        raise ValueError(f"{path}[{name}]: values of {np.nanmax(np.abs(values)):.2g} are below the range of float32; "
                         "say zero_point (--zero-point), which brings them to nJy")
    return single


def per_band(told: ZeroPoint, bands: Sequence[str] | None, n: int) -> list[float]:
    """Return told zero points for each of the bands."""
    if isinstance(told, Mapping):
        if set(told) != set(bands or ()):
            raise ValueError(f"zero_point: expected numbers for the bands {', '.join(bands or ())}, got "
                             f"{', '.join(told)}")
        values = [told[band] for band in bands or ()]
    else:
        values = list(told) if isinstance(told, Sequence | np.ndarray) else [told] * n
    numbers = np.asarray(values, np.float64)
    if len(values) != n or not np.isfinite(numbers).all():
        raise ValueError(f"zero_point: expected a number, or one for each of {n} bands, got {told!r}")
    return [float(value) for value in numbers]


def stack_psfs(path: Path, psfs: list[NDArray]) -> NDArray[np.float32]:
    """Return PSF images as an array (n_band, q, q). Zeros pad smaller images; the engine recentres each PSF."""
    size = max(max(psf.shape) for psf in psfs)
    if size > MAX_PSF:
        raise ValueError(f"{path}: PSF images of shapes {[psf.shape for psf in psfs]}, expected {MAX_PSF} pixels at "
                         "most")
    padded = [np.pad(psf, [((size - n) // 2, size - n - (size - n) // 2) for n in psf.shape]) for psf in psfs]
    return np.stack(padded).astype(np.float32)
