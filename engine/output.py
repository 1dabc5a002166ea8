"""Write the images of a result to FITS files.

Each file appears whole or not at all: it is written beside its place, then renamed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

if TYPE_CHECKING:
    from deblendrt.engine.result import DeblendResult

FITS_BLOCK = 2880  # bytes: data of a FITS file are padded to multiples of it


def write_images(path: str | Path, result: DeblendResult, i_scene: int = 0, wcs: WCS | None = None) -> None:
    """Write a scene's model and residual, (band, y, x) in nJy, and the names of their bands."""
    header = fits.Header() if wcs is None else wcs.to_header()
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

    ``X0, Y0`` is the pixel (0-based) of the scene that the stamp's first pixel lies on; it may be off the image. A
    source that was not fitted has no extension.
    """
    with in_place_of(path) as partial, open(partial, "wb") as file:
        fits.PrimaryHDU().writeto(file)
        # One at a time: the stamps of a coadd patch would fill gigabytes.
        for i in np.flatnonzero(result.fitted):
            stamp, (x, y) = result.stamps(int(i))
            hdu = fits.ImageHDU(stamp, name=f"SOURCE_{i}")
            hdu.header["BUNIT"] = "nJy"
            hdu.header["BANDS"] = (",".join(result.bands), "names along the third axis")
            hdu.header["SCENE"] = int(result.scene_index[i])
            hdu.header["X0"], hdu.header["Y0"] = x, y
            data = stamp.astype(">f4").tobytes()
            file.write(hdu.header.tostring().encode("ascii") + data + bytes(-len(data) % FITS_BLOCK))


@contextlib.contextmanager
def in_place_of(path: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` if the block ends well."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
