"""The images of a result as FITS files: a scene's model and residual, and the model of every source alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from deblendrt.engine.files.atomic_write import append_image, in_place_of
from deblendrt.engine.result.result import DeblendResult


def write_images(path: str | Path, result: DeblendResult, i_scene: int = 0, wcs: WCS | None = None) -> None:
    """Write the model and the residual of a scene, (band, y, x) in nJy, and the names of their bands."""
    header = fits.Header() if wcs is None else wcs.to_header(relax=True)  # with the distortion (SIP)
    header["BUNIT"] = "nJy"
    header["BANDS"] = (",".join(result.bands), "names along the third axis")
    residual = fits.ImageHDU(result.residual(i_scene), header, name="RESIDUAL")
    residual.header["COMMENT"] = "image - model; 0 where the image has no weight"
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(result.model(i_scene), header, name="MODEL"),
        residual,
        fits.BinTableHDU(Table({"band": list(result.bands)}), name="BANDS"),
    ]
    with in_place_of(path) as partial:
        fits.HDUList(hdus).writeto(partial, overwrite=True)


def write_stamps(path: str | Path, result: DeblendResult) -> None:
    """Write every source's own model as an extension ``SOURCE_<row>``, (band, y, x) in nJy.

    ``X0, Y0`` is the scene's pixel (0-based) at the stamp's first pixel; it may lie off the image. A source that was
    not fitted has no extension.
    """
    with in_place_of(path) as partial, open(partial, "wb") as file:
        fits.PrimaryHDU().writeto(file)
        # Stamps are drawn one at a time, because all stamps of a coadd patch would fill gigabytes.
        for i in np.flatnonzero(result.fitted):
            stamp, (x, y) = result.stamps(int(i))
            append_image(file, f"SOURCE_{i}", stamp.shape, [stamp], {
                "BUNIT": "nJy",
                "BANDS": (",".join(result.bands), "names along the third axis"),
                "SCENE": int(result.scene_index[i]),
                "X0": x,
                "Y0": y,
            })
