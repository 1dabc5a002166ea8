"""Stand-ins for Rubin's compiled classes, written for these tests: no code of Rubin's, only the names that it exposes.

The afw family follows lsst/afw python/lsst/afw/multiband.py, image/_exposure/_multiband.py, image/_photoCalib.cc and
table/_source.cc; it can not be installed from PyPI. lsst.images can, for Python 3.12 and newer: `test_rubin_images.py`
has the real one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLANES = {"BAD": 0, "SAT": 1, "INTRP": 2, "EDGE": 4, "DETECTED": 5, "NO_DATA": 8}


class InvalidParameterError(Exception):
    """lsst.pex.exceptions.InvalidParameterError: a PSF has no input image at a position."""


@dataclasses.dataclass
class Box:
    """lsst.geom.Box2I."""

    x0: int
    y0: int
    width: int
    height: int

    def getMinX(self) -> int:
        return self.x0

    def getMinY(self) -> int:
        return self.y0


class Image:
    """lsst.afw.image.Image and Mask."""

    def __init__(self, array: NDArray[Any], xy0: tuple[int, int] = (0, 0)) -> None:
        self.array, self._xy0 = array, xy0

    def getBBox(self) -> Box:
        return Box(*self._xy0, self.array.shape[1], self.array.shape[0])

    def clone(self) -> Image:
        return type(self)(self.array.copy(), self._xy0)


class Mask(Image):
    """lsst.afw.image.Mask."""

    def getMaskPlaneDict(self) -> dict[str, int]:
        return dict(PLANES)


class Psf:
    """lsst.afw.detection.Psf: an image around (0, 0), which may raise where no input image is."""

    def __init__(self, image: NDArray[Any], valid: Callable[[float, float], bool] = lambda x, y: True) -> None:
        self.image, self.valid, self.asked = image, valid, 0

    def computeKernelImage(self, point: Any) -> Image:
        self.asked += 1
        if not self.valid(point.getX(), point.getY()):
            raise InvalidParameterError(f"no input at ({point.getX()}, {point.getY()})")
        return Image(self.image, (-(self.image.shape[1] // 2), -(self.image.shape[0] // 2)))


@dataclasses.dataclass
class PhotoCalib:
    """lsst.afw.image.PhotoCalib."""

    mean: float
    _isConstant: bool = True

    def getCalibrationMean(self) -> float:
        return self.mean


class Wcs:
    """lsst.afw.geom.SkyWcs of a flat sky, with pixels of a microradian."""

    def skyToPixelArray(self, ra: NDArray[Any], dec: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        return ra * 1e6, dec * 1e6


class Exposure:
    """lsst.afw.image.Exposure."""

    def __init__(self, band: str, image: NDArray[Any], variance: NDArray[Any], mask: NDArray[np.int32], psf: Psf | None,
                 xy0: tuple[int, int] = (0, 0), calib: PhotoCalib | None = None) -> None:
        self.image, self.variance, self.mask = Image(image, xy0), Image(variance, xy0), Mask(mask, xy0)
        self._band, self._psf, self._calib = band, psf, calib

    def getFilter(self) -> Any:
        return SimpleNamespace(bandLabel=self._band, physicalLabel=f"{self._band}_57")

    def getBBox(self) -> Box:
        return self.image.getBBox()

    def getPsf(self) -> Psf | None:
        return self._psf

    def getPhotoCalib(self) -> PhotoCalib | None:
        return self._calib

    def getWcs(self) -> Wcs:
        return Wcs()


class MultibandExposure:
    """lsst.afw.image.MultibandExposure, which keeps the PSFs of its exposures but no calibration."""

    def __init__(self, filters: Sequence[str], singles: Sequence[Exposure]) -> None:
        self.filters, self.singles = tuple(filters), tuple(singles)

    def __getitem__(self, band: str) -> Exposure:
        return self.singles[self.filters.index(band)]


@dataclasses.dataclass
class Peak:
    """lsst.afw.detection.PeakRecord."""

    id: int
    x: float
    y: float

    def getId(self) -> int:
        return self.id

    def getFx(self) -> float:
        return self.x

    def getFy(self) -> float:
        return self.y


@dataclasses.dataclass
class Record:
    """lsst.afw.table.SourceRecord with a footprint of `peaks`, or None."""

    id: int
    x: float = np.nan
    y: float = np.nan
    peaks: list[Peak] | None = None
    parent: int = 0

    def getId(self) -> int:
        return self.id

    def getParent(self) -> int:
        return self.parent

    def getX(self) -> float:
        return self.x

    def getY(self) -> float:
        return self.y

    def getFootprint(self) -> Any:
        return None if self.peaks is None else SimpleNamespace(getPeaks=lambda: self.peaks)
