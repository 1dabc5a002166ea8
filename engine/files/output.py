"""Write the images of a result to FITS files.

Each file appears whole or not at all: it is written beside its place, then renamed.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import NDArray

if TYPE_CHECKING:
    from deblendrt.engine.result.result import DeblendResult

STALE = 3600.0  # s: unfinished files of killed processes, not of living ones
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
            append_image(file, f"SOURCE_{i}", stamp.shape, [stamp], {
                "BUNIT": "nJy",
                "BANDS": (",".join(result.bands), "names along the third axis"),
                "SCENE": int(result.scene_index[i]),
                "X0": x,
                "Y0": y,
            })


def append_image(file: BinaryIO | gzip.GzipFile, name: str, shape: tuple[int, ...],
                 pieces: Iterable[NDArray[np.float32]], cards: Mapping[str, Any]) -> None:
    """Append an image extension to an open FITS file, piece by piece: an HDU would hold all of its data.

    Parameters
    ----------
    file : binary file
    name : str
    shape : tuple of int
    pieces : iterable of float32
        Together the image, in its order.
    cards : mapping
        Keys of the header; values, or (value, comment).
    """
    header = fits.ImageHDU(np.broadcast_to(np.float32(0), shape), name=name).header
    header.update(cards)
    file.write(header.tostring().encode("ascii"))
    n_byte = sum(file.write(piece.astype(">f4").tobytes()) for piece in pieces)
    file.write(bytes(-n_byte % FITS_BLOCK))


@contextlib.contextmanager
def in_place_of(path: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` if the block ends well.

    Its name holds 64 random bits: on a file system that machines or containers share, numbers of processes are not one
    process's own. A process that is killed leaves the file behind; see `remove_stale`.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left half-written in a folder: nobody has written to it for an hour.

    Parameters
    ----------
    folder : Path
    name : str, optional
        Of the file that was to be; default: of any.
    """
    for partial in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.partial"):
        with contextlib.suppress(FileNotFoundError):  # it has its name now, or another process was first
            if time.time() - partial.stat().st_mtime > STALE:
                partial.unlink()
