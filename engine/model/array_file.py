"""Reader of NumPy's files of float32 arrays, which checks them before it allocates memory.

`numpy.load` allocates the memory that a file's header asks for before it looks for the data. Here the header must be
the line that `numpy.save` writes for a float32 array, and its shape must match the size of the file.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.model.manifest import BundleError

_HEADER = re.compile(rb"\{'descr': '([^']{1,8})', 'fortran_order': (True|False), "
                     rb"'shape': \((\d{0,9}(?:, ?\d{1,9}){0,7}),?\), ?\} *\n")
_MAGIC = b"\x93NUMPY"
_ARCHIVE_ENTRY = b"PK\x01\x02"


def read_array(content: bytes, where: str) -> NDArray[np.float32]:
    """Return the array in the bytes of an .npy file.

    Parameters
    ----------
    content : bytes
    where : str
        Begins every error message.

    Returns
    -------
    float32
        A copy, in C order.

    Raises
    ------
    BundleError
        The format or the type is wrong, the size does not match the shape, or a value is not finite.
    """
    refusal = f"{where} is not a NumPy array of finite float32"
    if content[:6] != _MAGIC or content[6:8] != b"\x01\x00":
        raise BundleError(f"{refusal}: it does not begin as one of format 1.0")
    start = 10 + int.from_bytes(content[8:10], "little")
    header = _HEADER.fullmatch(content[10:start])
    if header is None or header[1] != b"<f4":
        raise BundleError(f"{refusal}: its header is {content[10 : min(start, 110)]!r}")
    shape = tuple(int(n) for n in header[3].replace(b" ", b"").split(b",") if n)
    if 4 * math.prod(shape) != len(content) - start:
        raise BundleError(f"{refusal}: shape {shape} needs {4 * math.prod(shape)} bytes, the file has "
                          f"{len(content) - start}")
    values = np.frombuffer(content, "<f4", offset=start)
    by_column = header[2] == b"True"
    array = np.array(values.reshape(shape[::-1]).T if by_column else values.reshape(shape), np.float32, order="C")
    if not np.isfinite(array).all():
        raise BundleError(f"{refusal}: not all values are finite")
    return array


def read_archive(content: bytes, names: Collection[str], limit: int, where: str) -> dict[str, NDArray[np.float32]]:
    """Return the arrays in the bytes of an .npz file.

    Parameters
    ----------
    content : bytes
    names : collection of str
        Names of the arrays. The file must hold these arrays and no others.
    limit : int
        Bytes that the file may unpack to.
    where : str
        Begins every error message.

    Returns
    -------
    dict of str to float32

    Raises
    ------
    BundleError
        The file is no archive of these arrays, or exceeds the limit.
    """
    if content.count(_ARCHIVE_ENTRY) > 2 * len(names) + 100:  # a listed entry takes half a kilobyte of memory
        raise BundleError(f"{where} has more entries than a bundle's")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > limit:
                raise BundleError(f"{where} unpacks to more than {limit} bytes")
            found = [entry.filename.removesuffix(".npy") for entry in entries]
            if len(set(found)) != len(found) or set(found) != set(names):
                raise BundleError(f"{where}: unknown arrays {sorted(set(found) - set(names))}, "
                                  f"missing {sorted(set(names) - set(found))}")
            arrays = {}
            for name, entry in zip(found, entries, strict=True):
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise BundleError(f"{where}: {name}: compressed by another method than deflate")
                with archive.open(entry) as file:
                    arrays[name] = read_array(file.read(entry.file_size), f"{where}: {name}")
    except BundleError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError,
            ValueError) as error:  # zipfile raises these for damaged, encrypted and newer archives
        raise BundleError(f"{where} is not a NumPy archive: {error}") from error
    return arrays
