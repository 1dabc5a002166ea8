"""Rubin's exposures and catalogues as scenes, and results in Rubin's terms, without Rubin's software.

    from deblendrt.engine.adapters import rubin
    scene = rubin.read_exposures(mexposure, catalog)     # afw MultibandExposure, or {"g": exposure, ...}, and a list
    result = scene.deblend(deblender, kind="auto")
    table = scene.table(result)                          # Rubin's columns and ids, parent coordinates
    images = scene.model_images(result)                  # band -> image of the same kind as the exposure's
    heavy = scene.heavy_footprint(result, 0)             # spans and pixel values, as in an afw HeavyFootprint

`rubin_objects` lists the attributes that the objects must have. Data that cannot be used are left out, reported in
`RubinScene.lost` and visible in the sources' flags. They are bands without an exposure or a PSF, and pixels where one
band has a PSF and another band has no PSF (`deblendrt.engine.adapters.rubin.exposure_psf`). A source never loses its
row.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.adapters.rubin import exposure_psf, rubin_objects
from deblendrt.engine.adapters.rubin.rubin_objects import Sources
from deblendrt.engine.compute import canvases
from deblendrt.engine.files.fits import BAD_PLANES
from deblendrt.engine.measure.light_shares import footprint
from deblendrt.engine.scene.psf.field import CELL, CellPsf
from deblendrt.engine.units import to_magnitude

if TYPE_CHECKING:
    from astropy.table import Table

    from deblendrt.engine.deblender import Deblender
    from deblendrt.engine.result.result import DeblendResult


@dataclass(frozen=True)
class BandImage:
    """An image and its position in the parent image.

    Attributes
    ----------
    array : float32 (n_y, n_x) [unit of the exposure's image]
    x0, y0 : int [pixel]
        Position of the first pixel in the parent image.
    """

    array: NDArray[np.float32]
    x0: int
    y0: int

    @property
    def bbox(self) -> tuple[int, int, int, int]:
        """minX, minY, maxX, maxY; the maxima are inclusive, as in `lsst.geom.Box2I`."""
        return self.x0, self.y0, self.x0 + self.array.shape[1] - 1, self.y0 + self.array.shape[0] - 1


@dataclass(frozen=True)
class HeavyFootprint:
    """The pixels of a source and the source's light in them.

    Attributes
    ----------
    spans : int64 (n_span, 3) [pixel]
        y, first x, last x (inclusive) in the parent image, in afw's order: by y, then x.
    values : dict of str to float32 (n_pixel,) [unit of the exposure's image]
        Pixel values by band, in the order of the spans.
    peak : tuple of int [pixel]
        (x, y).
    """

    spans: NDArray[np.int64]
    values: dict[str, NDArray[np.float32]]
    peak: tuple[int, int]


@dataclass(frozen=True, eq=False)
class RubinScene:
    """Exposures of one piece of sky, and the sources in it.

    Attributes
    ----------
    bands : tuple of str
        The bands that can be used.
    image, variance : number (n_band, n_y, n_x)
        Pixels of the exposures, unchanged.
    mask : bool (n_band, n_y, n_x)
        True means bad.
    factor : float64 (n_band,) [nJy]
        Flux of one image unit.
    psf : CellPsf or None
        The PSFs; None if no pixel is usable.
    x0, y0 : int [pixel]
        Position of the first pixel in the parent image.
    sources : Sources
    exposures : dict of str to exposure
    lost : list of str
        The data that could not be used, with the reasons.
    """

    bands: tuple[str, ...]
    image: NDArray[Any]
    variance: NDArray[Any]
    mask: NDArray[np.bool_]
    factor: NDArray[np.float64]
    psf: CellPsf | None
    x0: int
    y0: int
    sources: Sources
    exposures: dict[str, Any]
    lost: list[str]

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `Deblender.deblend_batch`."""
        return {"cutouts": self.image, "centers": self.sources.center - (self.x0, self.y0), "variance": self.variance,
                "mask": self.mask, "bands": self.bands, "psf": self.psf, "kind": self.sources.kind,
                "zero_point": to_magnitude(self.factor)}

    def deblend(self, deblender: Deblender, **options: Any) -> DeblendResult:
        """Deblend the scene. `options` of `Deblender.deblend_batch` override the catalogue."""
        return deblender.deblend_batch(**{**self.arguments(), **options})

    def ids(self, result: DeblendResult) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ids of the sources and of their parents, int64 (n_source,).

        Sources that the engine found have the ids -1, -2, ... and the parent 0.
        """
        n_found = result.n_source - len(self.sources.source_id)
        return (np.concatenate([self.sources.source_id, -1 - np.arange(n_found)]),
                np.concatenate([self.sources.parent_id, np.zeros(n_found, np.int64)]))

    def table(self, result: DeblendResult) -> Table:
        """Return the catalogue with Rubin's column names, the list's ids and positions in the parent image."""
        table = result.to_table("rubin")
        source_id, parent_id = self.ids(result)
        table["id"][:], table["deblend_peakId"][:] = source_id, source_id
        table["parent"][:] = parent_id
        table["parent"].description = "of the list; 0: none, or found by the engine"
        known = np.isfinite(result.center).all(1)
        for axis, first in (("x", self.x0), ("y", self.y0)):
            table[axis] += first
            table[f"deblend_peak_center_{axis}"][known] += first
            table[axis].description = f"{axis} of the fit in the parent image; integer = pixel centre"
        return table

    def model_images(self, result: DeblendResult) -> dict[str, Any]:
        """Return the model of the whole scene by band, as images of the exposures' class and unit."""
        model = result.model(0)
        return {band: _like(self.exposures[band].image, model[result.bands.index(band)] / self.factor[b])
                for b, band in enumerate(self.bands)}

    def source_images(self, result: DeblendResult, i_source: int, redistributed: bool = False) -> dict[str, BandImage]:
        """Return a source's model by band, or its share of the observed light."""
        stamp, (x, y) = result.redistributed(i_source) if redistributed else result.stamps(i_source)
        return {band: BandImage((stamp[result.bands.index(band)] / self.factor[b]).astype(np.float32),
                                x + self.x0, y + self.y0) for b, band in enumerate(self.bands)}

    def heavy_footprint(self, result: DeblendResult, i_source: int, redistributed: bool = True) -> HeavyFootprint:
        """Return a source's significant pixels on the image and its light in them.

        Parameters
        ----------
        result : DeblendResult
        i_source : int
        redistributed : bool
            True gives the observed light, shared in proportion to the models, as in Rubin's pipelines. False gives the
            model.

        Returns
        -------
        HeavyFootprint
            A source that was not fitted has no spans.
        """
        row = range(result.n_source)[i_source]
        stamp, (x, y) = result.stamps(row)
        light = result.redistributed(row)[0] if redistributed else stamp
        scene = result.scenes[0]
        placed = canvases.place(stamp, x, y, scene.images.shape)
        inside = np.zeros(placed.image.shape[1:], bool)
        if result.fitted[row] and inside.size:
            inside = footprint(placed.image, scene.images.cut(placed.y, placed.x).inverse_variance)
        values = canvases.place(light, x, y, scene.images.shape).image if inside.any() else np.zeros_like(placed.image)
        at = result.position[row] if result.fitted[row] else np.nan_to_num(result.center[row])
        return HeavyFootprint(
            _spans(inside, placed.x.start + self.x0, placed.y.start + self.y0),
            {band: (values[result.bands.index(band)][inside] / self.factor[b]).astype(np.float32)
             for b, band in enumerate(self.bands)},
            (int(np.rint(at[0])) + self.x0, int(np.rint(at[1])) + self.y0))


def read_exposures(exposures: Any, catalog: Any, *, bands: Sequence[str] | None = None,
                   zero_point: float | Mapping[str, float] | None = None, bad_planes: Sequence[str] = BAD_PLANES,
                   by: str = "auto", cell: float = CELL) -> RubinScene:
    """Read exposures and a catalogue of Rubin's software.

    Parameters
    ----------
    exposures : `MultibandExposure`, mapping of band to exposure, or sequence of exposures
        Exposures with the same bounding box. None stands for a missing band.
    catalog : afw `SourceCatalog`, Table or float (n, 2)
        Positions in the parent image, see `deblendrt.engine.adapters.rubin.rubin_objects.read_sources`.
    bands : sequence of str, optional
        The bands to use; default: all.
    zero_point : float or mapping of band to float, optional [AB mag]
        Magnitude of one image unit. By default it follows from the unit or the calibration of the images.
    bad_planes : sequence of str
        Mask planes whose pixels are bad.
    by : {"auto", "peaks", "records"}
        Sources of an afw catalogue, see `read_sources`.
    cell : float [pixel]
        Side of the cells in which the PSF is constant; a cell-based coadd has its own cells.

    Returns
    -------
    RubinScene

    Raises
    ------
    ValueError
        An exposure or the catalogue lacks an attribute, which the message names; or the bounding boxes differ.
    """
    given = rubin_objects.singles(exposures)
    names = list(given) if bands is None else list(bands)
    lost = [f"{band}: no exposure" for band in names if given.get(band) is None]
    used = {band: given[band] for band in names if given.get(band) is not None}
    if not used:
        raise ValueError(f"exposures: expected at least one exposure, got none in {', '.join(names) or 'no band'}")
    images: list[NDArray[Any]] = []
    variances, masks, factors = [], [], []
    first = next(iter(used))
    x0, y0 = rubin_objects.corner(used[first], first)
    for band, exposure in used.items():
        image = rubin_objects.pixels(exposure.image, f"{band}.image")
        variance = rubin_objects.pixels(exposure.variance, f"{band}.variance")
        place = rubin_objects.corner(exposure, band)
        if place != (x0, y0) or image.shape != variance.shape or (images and image.shape != images[0].shape):
            expected = images[0].shape if images else image.shape
            raise ValueError(f"{band}: expected the box of {first}, {expected} pixels from {(x0, y0)}, got "
                             f"{image.shape} from {place}, variance {variance.shape}")
        bad = rubin_objects.bad_pixels(exposure.mask, bad_planes)
        images.append(image)
        variances.append(variance)
        masks.append(np.zeros(image.shape, bool) if bad is None else bad)
        factors.append(rubin_objects.njy_per_unit(exposure, band, zero_point))
    mask = np.stack(masks)
    sources = rubin_objects.read_sources(catalog, used[first], by)
    psf = exposure_psf.sample_psf(used, sources.center, (x0, y0), mask, cell, lost)
    return RubinScene(tuple(used), np.stack(images), np.stack(variances), mask, np.array(factors), psf, x0, y0, sources,
                      used, lost)


def _spans(inside: NDArray[np.bool_], x0: int, y0: int) -> NDArray[np.int64]:
    """Return the runs of True pixels, int64 (n_span, 3): y, first x, last x."""
    step = np.diff(inside.astype(np.int8), axis=1, prepend=0, append=0)
    y, start = np.nonzero(step == 1)
    stop = np.nonzero(step == -1)[1] - 1
    return np.column_stack([y + y0, start + x0, stop + x0]).astype(np.int64)


def _like(image: Any, array: NDArray[Any]) -> Any:
    """Return an image of the same class and position with other pixel values."""
    if hasattr(image, "clone"):
        twin = image.clone()
    else:
        twin = image.copy() if hasattr(image, "copy") else copy.deepcopy(image)
    twin.array[...] = array
    return twin
