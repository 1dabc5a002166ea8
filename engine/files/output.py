"""Files that appear whole or not at all: they are written beside their place, then renamed."""

from __future__ import annotations

import contextlib
import glob
import gzip
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from deblendrt.engine.files.fits_check import FITS_BLOCK

STALE = 3600.0  # s: unfinished files of killed processes, not of living ones


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
