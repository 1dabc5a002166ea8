"""Readers of tables in FITS, VOTable, Parquet, ECSV, CSV, columns that blanks separate, and text without names.

In text, entries stay text, so that an identifier such as 007 keeps its zeros. A column becomes integers if every entry
is written as Python writes the integer. Entries without a character are missing.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from deblendrt.engine.files.fits_check import UNPACKED_FLOOR, open_fits, unzipped

MAX_LINE, MAX_HEADER = 2**17, 2**18  # bytes of a line, and of the comments at the top (the header of ECSV)
DELIMITERS = (",", "\t", ";", "|")  # else blanks
_INTEGER = re.compile(r"-?[1-9]\d{0,17}|0")
_SEXTRACTOR = re.compile(r"#\s+(\d+)\s+([A-Z]\w+)\b")  # "#   2 X_IMAGE    Object position along x    [pixel]"


def read_first_table(path: str | Path, wanted: Callable[[list[str]], bool], any_compression: bool = False) -> Table:
    """Read a table from FITS, VOTable, Parquet (needs the extra ``parquet``), ECSV, CSV or other text.

    Parameters
    ----------
    path : str or Path
    wanted : callable
        Whether a table with these names of columns, in small letters, is wanted. Of several tables in a file the first
        wanted table is read, else the first.
    any_compression : bool
        See `fits_check.open_fits`.

    Raises
    ------
    ValueError
        The file is no table; the message says what the file holds.
    FileNotFoundError
        There is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    suffixes = {suffix.lower() for suffix in path.suffixes}
    with path.open("rb") as file:
        begin = file.read(64)
    try:
        if suffixes & {".fits", ".fit", ".fz", ".ldac"} or begin.startswith(b"SIMPLE  ="):
            with open_fits(path, any_compression=any_compression) as hdus:
                tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
                if not tables:
                    raise ValueError("no table in it")
                names = [[str(name).lower() for name in hdu.columns.names] for hdu in tables]
                return Table.read(tables[next((k for k, found in enumerate(names) if wanted(found)), 0)])
        if suffixes & {".parquet", ".parq", ".pq"} or begin.startswith(b"PAR1"):
            return _read_parquet(path)
        if suffixes & {".vot", ".votable", ".xml"} or begin.lstrip().startswith((b"<?xml", b"<VOTABLE")):
            return _read_votable(path, wanted)
        if ".reg" in suffixes or begin.startswith(b"# Region file"):
            raise ValueError("regions of ds9; expected a table")
        content = _content(path)
        if ".ecsv" in suffixes or content.startswith(b"# %ECSV"):
            first_lines(content)
            return Table.read(content.decode().splitlines(), format="ascii.ecsv")
        return read_text(content)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # the readers of each format raise different classes
        raise ValueError(f"{path}: not readable as a table ({(str(error).splitlines() or [''])[0][:200]})") from error


def _content(path: Path) -> bytes:
    """Return the bytes of a file, plain or gzipped."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path.read_bytes()
    with unzipped(path, UNPACKED_FLOOR) as file:
        return file.read()


def _read_parquet(path: Path) -> Table:
    """Return the columns of numbers and texts. Null entries are masked."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError('catalogues in Parquet need pyarrow: pip install "deblendrt[parquet]"') from error
    table, found = pyarrow.parquet.read_table(path), Table()
    for name, values in zip(table.column_names, table.columns, strict=True):
        kind = values.type
        if pyarrow.types.is_dictionary(kind):
            values = values.cast(kind.value_type)
            kind = values.type
        missing = np.asarray(values.is_null().to_numpy(zero_copy_only=False) if hasattr(values, "is_null") else [])
        about = table.schema.field(name).metadata or {}
        if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind):
            data = values.fill_null(0).to_numpy()
        elif pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
            data = np.array([text or "" for text in values.to_pylist()], str)
        else:
            continue
        found[name] = MaskedColumn(data, mask=missing, unit=about.get(b"unit", b"").decode() or None)
    return found


def _read_votable(path: Path, wanted: Callable[[list[str]], bool]) -> Table:
    from astropy.io import votable

    tables = list(votable.parse(path, verify="ignore").iter_tables())
    if not tables:
        raise ValueError("no table in it")
    named = [table.to_table(use_names_over_ids=True) for table in tables]
    return next((table for table in named if wanted([name.lower() for name in table.colnames])), named[0])


def first_lines(content: bytes) -> list[str]:
    """Return the comments at the top of a text, and the first line after them.

    Raises
    ------
    ValueError
        A line or the comments are longer than the limits, or the text is not in UTF-8.
    """
    lines: list[str] = []
    for line in io.BytesIO(content):
        if len(line) > MAX_LINE:
            raise ValueError(f"a first line of more than {MAX_LINE} bytes")
        text = line.decode("utf-8" if lines else "utf-8-sig").strip()  # Excel begins a file with a byte-order mark
        lines.append(text)
        if text and not text.startswith("#"):
            break
        if sum(map(len, lines)) > MAX_HEADER:
            raise ValueError(f"a header of more than {MAX_HEADER} bytes")
    return lines


def read_text(content: bytes) -> Table:
    """Read a table from text. Columns of a file without names are called col1, col2, ...

    Names are in the first line, in the last comment before it (``# x y``), or in comments of SourceExtractor.

    Raises
    ------
    ValueError
        A line has more or fewer entries than the first.
    """
    top = first_lines(content)
    if not top or not top[-1] or top[-1].startswith("#"):
        names = _split(top[-1].lstrip("# "), None) if top and top[-1] else []
        return Table({name: np.zeros(0) for name in names})
    delimiter = next((mark for mark in DELIMITERS if mark in top[-1]), None)
    first, comments = _split(top[-1], delimiter), [line for line in top[:-1] if line]
    sextractor = [found for line in comments if (found := _SEXTRACTOR.match(line))]
    rows = _rows(content.decode("utf-8-sig"), delimiter)
    if sextractor:
        names = [f"col{k + 1}" for k in range(len(first))]
        for found in sextractor:  # a vector has one line and several columns
            if not 1 <= int(found[1]) <= len(first):
                raise ValueError(f"column {found[1]} of {len(first)}")
            names[int(found[1]) - 1] = found[2]
    elif any(_is_number(word) for word in first):
        above = _split(comments[-1].lstrip("# "), delimiter) if comments else []
        if len(above) != len(first):  # np.savetxt joins names by another mark than the numbers
            above = re.split(r"[\s,;|]+", comments[-1].lstrip("# ").strip()) if comments else []
        usable = len(above) == len(first) and not any(_is_number(word) for word in above)
        names = above if usable else [f"col{k + 1}" for k in range(len(first))]
    else:
        names = next(rows)[1]
    names = [name.strip() or f"col{k + 1}" for k, name in enumerate(names)]
    if len(set(names)) < len(names):
        raise ValueError(f"a column named twice: {', '.join(names)[:200]}")
    columns: list[list[str]] = [[] for _ in names]
    for number, row in rows:
        if len(row) != len(names):
            raise ValueError(f"line {number}: {len(row)} entries, expected {len(names)}")
        for column, entry in zip(columns, row, strict=True):
            column.append(entry)
    return Table({name: _column(column) for name, column in zip(names, columns, strict=True)})


def _split(line: str, delimiter: str | None) -> list[str]:
    words = line.split() if delimiter is None else next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    return [word.strip() for word in words]


def _rows(text: str, delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the entries of each line that is neither empty nor a comment."""
    if delimiter is None:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield number, next(csv.reader([" ".join(line.split())], delimiter=" "))
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    for row in reader:
        if any(row) and not row[0].startswith("#"):
            yield reader.line_num, [entry.strip() for entry in row]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _column(entries: list[str]) -> MaskedColumn:
    missing = [not entry for entry in entries]
    values = [entry for entry in entries if entry]
    if values and all(_INTEGER.fullmatch(entry) for entry in values):
        return MaskedColumn([int(entry or 0) for entry in entries], mask=missing, dtype=np.int64)
    return MaskedColumn(np.array(entries, str) if entries else np.zeros(0), mask=missing)
