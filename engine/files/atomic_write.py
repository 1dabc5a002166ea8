"""Writers of files that appear whole or not at all, and checks that files can be written, before the work is done.

A file is written under a temporary name and then renamed.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from deblendrt.engine.files.fits_check import FITS_BLOCK

STALE_SECONDS = 3600.0  # an older unfinished file was left by a killed process


def append_image(file: BinaryIO | gzip.GzipFile, name: str, shape: tuple[int, ...],
                 pieces: Iterable[NDArray[np.float32]], cards: Mapping[str, Any]) -> None:
    """Append an image extension to an open FITS file piece by piece. An HDU of astropy would hold all data in memory.

    Parameters
    ----------
    file : binary file
    name : str
    shape : tuple of int
    pieces : iterable of float32
        The pixels of the image, in order.
    cards : mapping
        Values of the header, or pairs (value, comment), by key.
    """
    header = fits.ImageHDU(np.broadcast_to(np.float32(0), shape), name=name).header
    header.update(cards)
    file.write(header.tostring().encode("ascii"))
    n_byte = sum(file.write(piece.astype(">f4").tobytes()) for piece in pieces)
    file.write(bytes(-n_byte % FITS_BLOCK))


def check_target(path: str | Path) -> None:
    """Raise OSError, with a sentence, if a file cannot be written at a path."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: no permission to write in {path.parent}")


def claim_folder(folder: Path, names: Iterable[str] = (), n_byte: int = 0) -> None:
    """Make a folder for results, and check that the files can be written.

    Parameters
    ----------
    folder : Path
    names : iterable of str
        Names of the files.
    n_byte : int
        Space that the files need at least.

    Raises
    ------
    OSError
        The folder cannot be made or written to, a name is a folder's, or the space is too small. The message is a
        sentence.
    """
    there = next(part for part in (folder, *folder.parents, Path("/")) if part.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file, expected a folder for the results in {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise type(error)(f"{folder}: no file can be written in it ({reason})") from error
    for name in names:
        check_target(folder / name)
    free = shutil.disk_usage(folder).free
    if free < n_byte:
        raise OSError(f"{folder}: {free / 1e6:.0f} MB are free, and the results need {n_byte / 1e6:.0f} MB")


@contextlib.contextmanager
def in_place_of(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which is renamed to `path` if the ``with`` statement raises nothing.

    The temporary name holds 64 random bits, because process numbers are not unique on a file system that machines or
    containers share. A killed process leaves the temporary file behind; see `remove_stale`.
    """
    path = Path(path)
    check_target(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files that killed processes left in a folder: files not written for `STALE_SECONDS`.

    Parameters
    ----------
    folder : Path
    name : str, optional
        Name of the final file; default: any name.
    """
    for partial in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.partial"):
        with contextlib.suppress(FileNotFoundError):  # it was renamed, or another process removed it
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()
