"""Check of a FITS file's structure, before astropy allocates memory for it.

astropy trusts headers. It allocates the memory of a compressed image before it looks for the data, unpacks gzip without
a limit, accepts any number of axes, and some of its decoders trust the compressed data. Here every extension must lie
completely in its file, tables must be as wide as their columns, and pointers must stay in their heap. Compressed data
may unpack to `UNPACKED_RATIO` times the size of the file or to `UNPACKED_FLOOR`, whichever is more. Keywords of
structure must occur once and be written as in the standard: readers could disagree about other forms.

The check also refuses random groups, extensions of unusual kinds, PLIO and HCOMPRESS (unless the caller trusts the
file), and files that are compressed as a whole by another method than gzip.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

FITS_BLOCK, FITS_CARD = 2880, 80
MAX_AXES, MAX_COLUMNS, MAX_UNITS, MAX_HEADER_BLOCKS = 8, 999, 100_000, 2000
UNPACKED_FLOOR, UNPACKED_RATIO = 128 * 2**20, 100  # bytes, and a ratio; survey images unpack to 3-30 times their size
MAX_PADDING = 10 * FITS_BLOCK  # zeros or blanks after the last extension; tapes were padded to 10 blocks
BYTES = {8: 1, 16: 2, 32: 4, 64: 8, -32: 4, -64: 8}
COMPRESSIONS = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "NOCOMPRESS")
TRUSTING = ("PLIO_1", "HCOMPRESS_1")  # decoders that write where the compressed data say
_WIDTH = {"L": 1, "B": 1, "I": 2, "J": 4, "K": 8, "A": 1, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16}
_STRUCTURE = re.compile(r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|GROUPS|TFIELDS|TFORM\d+|TBCOL\d+|THEAP|ZIMAGE|"
                        r"ZBITPIX|ZNAXIS\d*|ZTILE\d+|ZCMPTYPE|ZNAME\d+|ZVAL\d+")
_VALUE = re.compile(r"= +(?:'(?P<text>[^']*)'|(?P<number>[-+]?\d{1,18})|(?P<truth>[TF])|(?P<real>[-+.\dEeDd]+))"
                    r" *(?:/.*)?")
_FORM = re.compile(r"(\d{0,9})([LXBIJKAEDCMPQ])(.*)")
_ASCII_FORM = re.compile(r"[AIFED](\d{1,5})(?:\.\d{1,3})?")

Header = dict[str, Any]


@contextlib.contextmanager
def open_fits(path: str | Path, n_unit: int | None = None, *, memmap: bool | None = None,
              any_compression: bool = False) -> Iterator[fits.HDUList]:
    """Check the structure of a FITS file, plain or gzipped, and open it.

    Parameters
    ----------
    path : str or Path
    n_unit : int, optional
        Number of units to check, for a caller that reads only the first units.
    memmap : bool, optional
        Option of `astropy.io.fits.open`.
    any_compression : bool
        Also read images compressed by PLIO and HCOMPRESS. Their decoders trust the compressed data: for files from
        sources that you trust.

    Raises
    ------
    OSError
        The file is no FITS file, is damaged or exceeds a limit. Unusual exceptions of astropy inside the ``with``
        statement become OSError too.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        packed = os.fstat(file.fileno()).st_size
        limit = max(UNPACKED_FLOOR, UNPACKED_RATIO * packed)
        gzipped = file.read(2) == b"\x1f\x8b"
        if gzipped:
            file = stack.enter_context(unzipped(path, limit))
        check_structure(file, str(path), limit, n_unit, any_compression=any_compression)
        file.seek(0)
        try:
            yield stack.enter_context(fits.open(file if gzipped else path, memmap=memmap))
        except (ValueError, OSError, MemoryError):
            raise
        except Exception as error:  # astropy raises many classes for damaged files
            raise OSError(f"{path}: not readable as FITS ({type(error).__name__}: {str(error)[:200]})") from error


def unzipped(path: Path, limit: int) -> IO[bytes]:
    """Unpack a gzipped file into a file without a name."""
    with tempfile.TemporaryFile() as target, gzip.open(path) as source:
        try:
            while piece := source.read(2**20):
                if target.tell() + len(piece) > limit:
                    raise OSError(f"{path}: not readable as FITS (unpacks to more than {limit} bytes: if it is what it "
                                  "should be, unpack it first)")
                target.write(piece)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(f"{path}: not readable as FITS ({error})") from error
        target.flush()
        return os.fdopen(os.dup(target.fileno()), "rb")  # astropy needs a file that is open for reading only


def check_structure(file: IO[bytes], where: str, limit: int, n_unit: int | None = None, *,
                    any_compression: bool = False) -> None:
    """Check the units of a FITS file, one after the other.

    Parameters
    ----------
    file : binary file
    where : str
        Begins every error message.
    limit : int
        Bytes that all compressed images together may unpack to.
    n_unit : int, optional
        Largest number of units to check.
    any_compression : bool
        Accept PLIO and HCOMPRESS.

    Raises
    ------
    OSError
        The structure is damaged or exceeds a limit.
    """
    size = file.seek(0, os.SEEK_END)
    at = number = unpacked = 0
    try:
        while at < size and number != n_unit:
            if number and _ends(file, at, size):
                break
            header, start = _header(file, at, first=number == 0)
            n_byte = _data_size(header)
            if n_byte > size - start:
                raise _Fault(f"truncated: {n_byte} bytes of data announced, {size - start} left")
            if header.get("XTENSION") == "BINTABLE":
                columns = _columns(header)
                _check_pointers(file, start, header, columns)
                if header.get("ZIMAGE") is True:
                    unpacked += _check_image(file, start, header, columns, limit - unpacked, any_compression)
            elif header.get("XTENSION") == "TABLE":
                _check_text_table(header)
            number += 1
            at = start + -(-n_byte // FITS_BLOCK) * FITS_BLOCK
            if number > MAX_UNITS:
                raise _Fault(f"more than {MAX_UNITS} extensions")
        if number == 0:
            raise _Fault("empty")
    except _Fault as fault:
        raise OSError(f"{where}: not readable as FITS (unit {number}: {fault})") from None


class _Fault(Exception):
    """An error in the structure of a unit."""


def _ends(file: IO[bytes], at: int, size: int) -> bool:
    """Return whether only padding follows. Other bytes must be an extension, because astropy would try to read them."""
    if size - at > MAX_PADDING:
        return False
    file.seek(at)
    return not file.read(size - at).strip(b"\x00 ")


def _header(file: IO[bytes], at: int, *, first: bool) -> tuple[Header, int]:
    """Return the keywords of structure, and the position of the data."""
    header: Header = {}
    file.seek(at)
    for block in range(MAX_HEADER_BLOCKS):
        text = file.read(FITS_BLOCK).decode("latin-1")
        if len(text) < FITS_BLOCK:
            break
        if block == 0 and not text.startswith("SIMPLE  =" if first else "XTENSION="):
            raise _Fault("it does not begin as one")
        for place in range(0, FITS_BLOCK, FITS_CARD):
            card = text[place : place + FITS_CARD]
            if card[:3] == "END" and not re.match(r"[A-Z0-9_-]", card[3]):
                if card[3:].strip(" "):
                    raise _Fault("the END of the header is not alone")
                return header, at + (block + 1) * FITS_BLOCK
            _keep(header, card)
    raise _Fault("a header without END")


def _keep(header: Header, card: str) -> None:
    """Add a card of structure to the header. Refuse a card that only some readers take for a card of structure."""
    key = card[:8].rstrip(" ")
    if not _STRUCTURE.fullmatch(key):
        loose = card.partition("=")[0].strip().upper().removeprefix("HIERARCH").strip()
        if _STRUCTURE.fullmatch(loose) or _STRUCTURE.fullmatch(key.strip().upper()):
            raise _Fault(f"keyword {card[:30].strip()!r} is not written as it should be")
        return
    value = _VALUE.fullmatch(card[8:].rstrip(" "))
    if value is None or key in header:
        raise _Fault(f"{key} is given twice" if key in header else f"card {card.strip()!r}")
    if value["text"] is not None:
        header[key] = value["text"].rstrip(" ")
    elif value["number"] is not None:
        header[key] = int(value["number"])
    else:
        header[key] = value["truth"] == "T" if value["truth"] else value["real"]


def _integer(header: Header, key: str, low: int, high: int, default: int | None = None) -> int:
    value = header.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise _Fault(f"{key}: expected an integer from {low} to {high}, got {value!r}")
    return value


def _data_size(header: Header) -> int:
    """Return the number of bytes of a unit's data."""
    kind = header.get("XTENSION", "IMAGE")
    if kind not in ("IMAGE", "BINTABLE", "TABLE") or ("XTENSION" not in header and header.get("SIMPLE") is not True):
        raise _Fault(f"an extension of kind {kind!r}, or not SIMPLE")
    if header.get("BITPIX") not in BYTES or type(header["BITPIX"]) is not int:
        raise _Fault(f"BITPIX {header.get('BITPIX')!r}")
    n_axis = _integer(header, "NAXIS", 0, MAX_AXES)
    shape = [_integer(header, f"NAXIS{i}", 0, 2**40) for i in range(1, n_axis + 1)]
    extra = sum(re.fullmatch(r"NAXIS\d+", key) is not None for key in header) - n_axis
    parameters, groups = _integer(header, "PCOUNT", 0, 2**40, 0), _integer(header, "GCOUNT", 1, 1, 1)
    for key in ("GROUPS", "ZIMAGE"):  # astropy takes every number except 0 for true
        if type(header.get(key, False)) is not bool:
            raise _Fault(f"{key}: expected T or F, got {header[key]!r}")
    if header.get("GROUPS") is True or extra:
        raise _Fault("random groups, or more axes than NAXIS")
    if kind == "IMAGE":
        return BYTES[header["BITPIX"]] * groups * (parameters + math.prod(shape)) if shape else 0
    if n_axis != 2 or header["BITPIX"] != 8:
        raise _Fault("a table that is not of two axes of bytes")
    return math.prod(shape) + parameters


def _columns(header: Header) -> list[tuple[int, str, str]]:
    """Return the columns of variable-length arrays of a binary table: place in a row, letter P or Q, type of the array.

    The place is -1 for a column of width 0.
    """
    columns, at = [], 0
    for k in range(1, _integer(header, "TFIELDS", 0, MAX_COLUMNS) + 1):
        form = _FORM.fullmatch(str(header.get(f"TFORM{k}", "")))
        if form is None:
            raise _Fault(f"TFORM{k}: {header.get(f'TFORM{k}')!r}")
        count, letter = int(form[1] or 1), form[2]
        if letter in "PQ":
            if count > 1 or form[3][:1] not in set("LXBIJKAEDCM"):
                raise _Fault(f"TFORM{k}: {header[f'TFORM{k}']!r}")
            columns.append((at if count else -1, letter, form[3][0]))
        at += -(-count // 8) if letter == "X" else count * _WIDTH[letter]
    if at != header["NAXIS1"]:
        raise _Fault(f"columns of {at} bytes in rows of {header['NAXIS1']}")
    return columns


def _descriptors(file: IO[bytes], start: int, header: Header, place: int, letter: str) -> NDArray[np.int64]:
    """Return the lengths of a column's arrays and their places in the heap, int64 (n_row, 2)."""
    n_row, width = header["NAXIS2"], header["NAXIS1"]
    size = _WIDTH[letter]
    file.seek(start)
    rows = np.frombuffer(file.read(n_row * width), np.uint8).reshape(n_row, width)
    return rows[:, place : place + size].copy().view(">i4" if letter == "P" else ">i8").astype(np.int64)


def _heap(header: Header) -> tuple[int, int]:
    """Return the position of the heap, counted from the start of the table, and its length."""
    rows = header["NAXIS1"] * header["NAXIS2"]
    end = rows + header.get("PCOUNT", 0)
    begin = _integer(header, "THEAP", rows, end, rows)
    return begin, end - begin


def _check_pointers(file: IO[bytes], start: int, header: Header, columns: list[tuple[int, str, str]]) -> None:
    """Check that arrays of variable length lie in the heap and together are no longer than the heap."""
    size, total = _heap(header)[1], 0
    for place, letter, kind in columns:
        if place < 0 or header["NAXIS2"] == 0:
            continue
        count, offset = _descriptors(file, start, header, place, letter).T
        if (count < 0).any() or (count > 2**40).any() or (offset < 0).any() or (offset > 2**40).any():
            raise _Fault("an array of variable length that lies outside of its heap")
        n_byte = -(-count // 8) if kind == "X" else count * _WIDTH[kind]
        if (offset[n_byte > 0] + n_byte[n_byte > 0] > size).any():
            raise _Fault("an array of variable length that lies outside of its heap")
        total += int(n_byte.sum())
        if total > size:
            raise _Fault("arrays of variable length that share their data")


def _check_image(file: IO[bytes], start: int, header: Header, columns: list[tuple[int, str, str]], limit: int,
                 any_compression: bool) -> int:
    """Check a compressed image, and return the bytes that it unpacks to."""
    known = (*COMPRESSIONS, *TRUSTING) if any_compression else COMPRESSIONS
    if (kind := header.get("ZCMPTYPE")) not in known:
        hint = "; for a file that you trust say any_compression (--any-compression)" if kind in TRUSTING else ""
        raise _Fault(f"compression {kind!r}, expected one of {', '.join(known)}; funpack unpacks others{hint}")
    if header.get("ZBITPIX") not in BYTES or type(header["ZBITPIX"]) is not int:
        raise _Fault(f"ZBITPIX {header.get('ZBITPIX')!r}")
    axes = range(1, _integer(header, "ZNAXIS", 1, MAX_AXES) + 1)
    shape = [_integer(header, f"ZNAXIS{i}", 1, 2**40) for i in axes]
    tile = [_integer(header, f"ZTILE{i}", 1, shape[i - 1], shape[0] if i == 1 else 1) for i in axes]
    for key in header:
        if (found := re.fullmatch(r"Z(?:NAXIS|TILE)(\d+)", key)) and int(found[1]) not in axes:
            raise _Fault(f"{key} beside ZNAXIS {len(shape)}")
    n_tile = math.prod(-(-n // m) for n, m in zip(shape, tile, strict=True))
    n_byte, tile_byte = (BYTES[header["ZBITPIX"]] * math.prod(lengths) for lengths in (shape, tile))
    if n_tile != header["NAXIS2"]:
        raise _Fault(f"{header['NAXIS2']} rows for {n_tile} tiles")
    if n_byte > limit:
        raise _Fault(f"an image that unpacks to {n_byte} bytes, {limit} at most: if it is what it should be, unpack it "
                     "first")
    for key in (key for key in header if key.startswith("ZNAME")):
        name, value = str(header[key]), f"ZVAL{key[5:]}"
        if name == "BLOCKSIZE":
            _integer(header, value, 1, 2**16)
        elif name == "BYTEPIX" and header.get(value) not in (1, 2, 4, 8):
            raise _Fault(f"BYTEPIX {header.get(value)!r}")
    _check_tiles(file, start, header, columns, 8 * math.prod(tile) + 64, tile_byte)
    return n_byte


def _check_tiles(file: IO[bytes], start: int, header: Header, columns: list[tuple[int, str, str]], most: int,
                 tile_byte: int) -> None:
    """Check that a gzipped tile unpacks to no more than the tile's size; astropy would unpack it without a limit."""
    begin = start + _heap(header)[0]
    for place, letter, _ in columns:
        for count, offset in _descriptors(file, start, header, place, letter) if place >= 0 else ():
            file.seek(begin + int(offset))
            data = file.read(int(count))
            if data[:2] != b"\x1f\x8b":
                continue
            stream = zlib.decompressobj(31)
            try:
                unpacked = stream.decompress(data, most + 1)
            except zlib.error as error:
                raise _Fault(f"a damaged tile: {error}") from None
            if len(unpacked) > most or stream.unused_data:
                raise _Fault(f"a tile of {tile_byte} bytes that unpacks to more")


def _check_text_table(header: Header) -> None:
    """Check that the columns of a text table lie in its rows."""
    for k in range(1, _integer(header, "TFIELDS", 0, MAX_COLUMNS) + 1):
        form = _ASCII_FORM.fullmatch(str(header.get(f"TFORM{k}", "")))
        if form is None:
            raise _Fault(f"TFORM{k}: {header.get(f'TFORM{k}')!r}")
        if _integer(header, f"TBCOL{k}", 1, 2**31) - 1 + int(form[1]) > header["NAXIS1"]:
            raise _Fault(f"column {k} ends behind its rows")
