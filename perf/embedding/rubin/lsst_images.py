"""Images of the real lsst.images, into and out of `deblendrt.engine.adapters.rubin`.

`perf.embedding.rubin` runs it with ``REQUEST.json ANSWER.json`` in an environment of its own, because lsst.images needs
Python 3.12.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Table
from astropy.wcs import WCS
from lsst.images import YX, Box, Image, MaskPlane, MaskSchema, SkyProjection, TractFrame
from lsst.images.cells import CellCoadd, CellGrid, CellGridBounds, CellIJ, CellPointSpreadFunction

from deblendrt.engine.adapters import rubin
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.files.fits import read_image
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.units import to_flux

XY0 = (9000, 12030)  # inside a tract; the second is no multiple of a cell
CELL = 50
BANDS = ("g", "r", "i")


def coadds(scene: Any, missing: dict[str, list[tuple[int, int]]]) -> dict[str, CellCoadd]:
    """The example image as a `CellCoadd` for each band. The `missing` cells (row, column) have no PSF."""
    n_y, n_x = np.shape(scene.image)[1:]
    box = Box.from_shape((n_y, n_x), start=(XY0[1], XY0[0]))
    low = [(start // CELL) * CELL for start in (XY0[1], XY0[0])]
    high = [-(-(start + n) // CELL) * CELL for start, n in ((XY0[1], n_y), (XY0[0], n_x))]
    whole = Box.from_shape((high[0] - low[0], high[1] - low[1]), start=low)
    grid = CellGrid(bbox=whole, cell_shape=YX(y=CELL, x=CELL))
    header = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 1.0, "CRPIX2": 1.0, "CRVAL1": 53.0,
              "CRVAL2": -28.0, "CDELT1": -0.2 / 3600, "CDELT2": 0.2 / 3600}
    frame = TractFrame(skymap="test", tract=1, bbox=whole)
    projection = SkyProjection.from_fits_wcs(WCS(header), frame, x0=XY0[0], y0=XY0[1])
    schema = MaskSchema([MaskPlane("NO_DATA", "none"), MaskPlane("SAT", "saturated"), MaskPlane("DETECTED", "light")])
    made = {}
    scale = 1.0 if scene.zero_point is None else to_flux(np.broadcast_to(scene.zero_point, 6)[0])
    for band in BANDS:
        b = list(scene.bands).index(band)
        n_cell = whole.shape[0] // CELL, whole.shape[1] // CELL
        psf = np.broadcast_to(scene.psf[b], (*n_cell, *scene.psf[b].shape)).copy()
        holes = frozenset(CellIJ(i=i, j=j) for i, j in missing.get(band, ()))
        made[band] = CellCoadd(
            Image(np.asarray(scene.image[b] * scale, np.float32), bbox=box, unit=u.nJy),
            variance=Image(np.asarray(scene.variance[b] * scale**2, np.float32), bbox=box, unit=u.nJy**2),
            mask_schema=schema, sky_projection=projection, band=band,
            psf=CellPointSpreadFunction(psf, CellGridBounds(grid=grid, bbox=whole, missing=holes)))
    return made


def main(asked: str, answered: str) -> None:
    """Answer a request."""
    request = json.loads(Path(asked).read_text())
    scene = read_image(request["example"])
    centers = np.asarray(scene.centers)
    deblender = Deblender.load("lsst")
    made = coadds(scene, {})
    mask = np.zeros((3, *np.shape(scene.image)[1:]), bool)
    mask[1, :3, :3] = True
    made["r"].mask.set("SAT", mask[1])
    sky = made["r"].sky_projection.pixel_to_sky(x=centers[:, 0] + XY0[0], y=centers[:, 1] + XY0[1])
    table = Table({"id": 1000 + np.arange(len(centers)), "coord_ra": sky.ra.to(u.rad), "coord_dec": sky.dec.to(u.rad)})
    taken = rubin.read_exposures(list(made.values()), table)
    result = taken.deblend(deblender)
    own = [list(scene.bands).index(band) for band in BANDS]
    plain = deblender.deblend_batch(np.asarray(scene.image)[own], centers, variance=np.asarray(scene.variance)[own],
                                    psf=np.asarray(scene.psf)[own], bands=BANDS, zero_point=scene.zero_point, mask=mask)
    models = taken.model_images(result)
    path = Path(answered).with_suffix(".fits")
    models["i"].write(str(path))
    back = Image.read(str(path))
    faults = []
    broken = rubin.read_exposures(coadds(scene, {"r": [(1, 1), (0, 0)], "g": [(0, 0)], "i": [(0, 0)]}), table)
    found = broken.deblend(deblender, n_iteration=4)
    flagged = int(((found.flags & Flag.PSF_MISSING) != 0).sum())
    note = (f"{flagged} flagged PSF_MISSING, {int(found.fitted.sum())} fitted,"
            f" {len(broken.lost)} failures said")
    faults.append({"fault": "cells without a PSF: one in r, one in all bands", "how": "CellCoadd raises BoundsError",
                   "inputs": len(centers), "lost": len(centers) - len(broken.table(found)), "repeated": 0,
                   "note": note})
    Path(answered).write_text(json.dumps({
        "version": version("lsst-images"), "python": sys.version.split()[0], "n_source": len(centers),
        "ids": taken.table(result)["id"].tolist(), "lost": taken.lost,
        "position_error": float(np.nanmax(np.abs(taken.sources.center - XY0 - centers))),
        "flux_difference": float(np.nanmax(np.abs(result.flux / plain.flux - 1))),
        "kind": type(models["i"]).__module__.partition("._")[0] + "." + type(models["i"]).__name__,
        "unit": str(models["i"].unit), "box": str(models["i"].bbox),
        "written_and_read": bool(np.array_equal(back.array, models["i"].array) and back.bbox == made["i"].bbox),
        "psf_cells": [] if taken.psf is None else list(taken.psf.known.shape), "faults": faults}))


if __name__ == "__main__":
    main(*sys.argv[1:])
