"""A result as one FITS file: catalogue, scenes, the meaning of the flags and, if asked for, the images."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy.io import fits
from astropy.table import Table

from deblendrt.engine.flags import DESCRIPTIONS
from deblendrt.engine.output import in_place_of

if TYPE_CHECKING:
    from deblendrt.engine.result import DeblendResult

FITS_BLOCK = 2880  # bytes: data of a FITS file are padded to multiples of it


def write_result(path: str | Path, result: DeblendResult, *, images: bool = False, overwrite: bool = False) -> None:
    """Write a result, see `deblendrt.engine.result.DeblendResult.write`."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"path: {path} exists; overwrite=True replaces it")
    with in_place_of(path) as partial, (gzip.open if path.suffix == ".gz" else open)(partial, "wb") as file:
        tables(result).writeto(file)
        # Images go to disk one by one: a list of HDUs would hold them all.
        for k in range(result.n_scene) if images else ():
            for name, image in (("MODEL", result.model(k)), ("RESIDUAL", result.residual(k))):
                header = fits.ImageHDU(image, name=f"{name}_{k}").header
                header["BUNIT"] = "nJy"
                header["BANDS"] = (",".join(result.bands), "names along the third axis")
                header["SCENE"] = result.scenes[k].name
                data = image.astype(">f4").tobytes()
                file.write(header.tostring().encode("ascii"))
                file.write(data + bytes(-len(data) % FITS_BLOCK))


def tables(result: DeblendResult) -> fits.HDUList:
    """Everything but the images: CATALOG, SCENES, FLAGS.

    Parameters
    ----------
    result : DeblendResult

    Returns
    -------
    astropy.io.fits.HDUList
    """
    catalog = result.to_table()
    catalog["latent"] = result.latent
    scenes = Table({
        "name": np.array([scene.name for scene in result.scenes], dtype=str),
        "n_source": np.diff(result.source_start),
        "n_y": np.array([scene.shape[0] for scene in result.scenes], dtype=np.int64),
        "n_x": np.array([scene.shape[1] for scene in result.scenes], dtype=np.int64),
        "chi2": result.scene_chi2,
        "n_pixel": result.scene_n_pixel,
        "objective": result.objective,
    })
    flags = Table({
        "bit": [flag.bit_length() - 1 for flag in DESCRIPTIONS],
        "name": [str(flag.name) for flag in DESCRIPTIONS],
        "description": list(DESCRIPTIONS.values()),
    })
    named = {"CATALOG": catalog, "SCENES": scenes, "FLAGS": flags}
    return fits.HDUList([fits.PrimaryHDU(), *(fits.BinTableHDU(table, name=name) for name, table in named.items())])


def read_catalog(path: str | Path) -> Table:
    """Read the catalogue of a file that `write_result` made.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    astropy.table.Table
        As from `DeblendResult.to_table`, and the column latent.
    """
    return Table.read(path, format="fits", hdu="CATALOG", mask_invalid=False)  # NaN stays NaN
