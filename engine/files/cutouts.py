"""Catalogues of cutouts in Parquet or FITS, with a cutout per row, read a few rows at a time.

    image         the pixels; a flat array holds band after band, row after row
    shape         n_band, n_y, n_x; needed if `image` is flat
    centers       x0, y0, x1, y1, ... [pixel], or (n_source, 2)
    variance      like `image`, or a number per band
    mask          like `image`, or for one band; a value other than 0 means bad
    psf           n_band images of q x q pixels, band after band
    bands         "gri" or "g,r,i"
    kind          "galaxy", "star" or "auto" for all sources
    zero_point, pixel_scale, background, id

All columns except `image` and `centers` may be missing, or null in some rows. Other columns are not read. In FITS,
images of one size have a shape of their own (TDIM), and images of several sizes are variable-length arrays with
`shape`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

COLUMNS = ("image", "shape", "centers", "variance", "mask", "psf", "bands", "kind", "zero_point", "pixel_scale",
           "background", "id")
NUMBERS = ("zero_point", "pixel_scale", "background")
TEXTS = ("bands", "kind", "id")


class CutoutCatalog:
    """A catalogue of cutouts.

    Parameters
    ----------
    path : str or Path
        A ``.parquet`` file (needs the extra ``parquet``), otherwise a FITS file. The first table with the columns is
        read.

    Raises
    ------
    ValueError
        The file is not readable, or a column is missing.
    ImportError
        pyarrow is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        self._parquet = self.path.suffix == ".parquet"
        try:
            names, self.n_row = self._open_parquet() if self._parquet else self._open_fits()
        except (ImportError, OSError):
            raise
        except Exception as error:  # each library has its own exceptions for damaged files
            raise ValueError(f"{path}: not readable as a catalogue ({str(error).splitlines()[0]})") from error
        self.columns = tuple(name for name in COLUMNS if name in names)
        if missing := [name for name in ("image", "centers") if name not in names]:
            raise ValueError(f"{path}: no column {' and no column '.join(missing)}; found {', '.join(names)}")

    def _open_parquet(self) -> tuple[list[str], int]:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError('catalogues in Parquet need pyarrow: pip install "deblendrt[parquet]"') from error
        file = pyarrow.parquet.ParquetFile(self.path)
        counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        self._start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return list(file.schema_arrow.names), int(self._start[-1])

    def _open_fits(self) -> tuple[list[str], int]:
        with fits.open(self.path) as hdus:
            tables = [k for k, hdu in enumerate(hdus) if isinstance(hdu, fits.BinTableHDU | fits.CompImageHDU)
                      and hasattr(hdu, "columns")]
            if not tables:
                raise ValueError("no table")
            chosen = [k for k in tables if {"image", "centers"} <= {name.lower() for name in hdus[k].columns.names}]
            self._hdu = (chosen or tables)[0]
            return [name.lower() for name in hdus[self._hdu].columns.names], int(hdus[self._hdu].header["NAXIS2"])

    def rows(self, start: int, stop: int) -> Iterator[dict[str, Any] | ValueError]:
        """Yield rows as scenes.

        Parameters
        ----------
        start, stop : int

        Yields
        ------
        dict or ValueError
            A scene with the keys that `input_rows.deblend_inputs` takes. For an invalid row, the error is yielded.
        """
        read = self._read_parquet if self._parquet else self._read_fits
        for row in read(start, min(stop, self.n_row)):
            try:
                yield row_to_scene(row)
            except (ValueError, TypeError) as error:
                yield ValueError(str(error))

    def _read_parquet(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(self.path)
        first = int(np.searchsorted(self._start, start, side="right")) - 1
        for group in range(first, file.num_row_groups):
            low = int(self._start[group])
            if low >= stop:
                return
            table = file.read_row_group(group, columns=list(self.columns))
            part = table.slice(max(start - low, 0), min(stop, int(self._start[group + 1])) - max(start, low))
            for batch in part.to_batches(max_chunksize=16):  # Python objects take ten times the memory
                yield from batch.to_pylist()

    def _read_fits(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        with fits.open(self.path, memmap=True) as hdus:
            data = hdus[self._hdu].data[start:stop]
            for row in data:
                yield {name: row[name] for name in self.columns}


def row_to_scene(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as a scene.

    Parameters
    ----------
    row : mapping
        Values of the columns in this module's docstring.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        The sizes do not fit together, or the image is missing.
    """
    # FITS has no null. An empty array stands for null.
    given = {name: value for name, value in row.items()
             if value is not None and not (name in ("shape", "variance", "mask", "psf") and np.size(value) == 0)}
    if "image" not in given:
        raise ValueError("image: null")
    image = _array(given, "image")
    if image.ndim == 1:
        if "shape" not in given:
            raise ValueError(f"image: {image.size} numbers in a row need a shape (n_band, n_y, n_x)")
        shape = tuple(int(size) for size in np.ravel(given["shape"]))
        if len(shape) != 3 or min(shape) < 0 or int(np.prod(shape, dtype=object)) != image.size:
            raise ValueError(f"image: expected {shape} numbers as its shape says, got {image.size}")
        image = image.reshape(shape)
    if image.ndim == 2:
        image = image[None]
    found: dict[str, Any] = {"image": image, "centers": _pairs(_array(given, "centers")) if "centers" in given
                             else np.zeros((0, 2))}
    n_band, n_pixel = image.shape[0], image.shape[1] * image.shape[2]
    for name, kind in (("variance", np.float32), ("mask", np.bool_)):
        if name in given:
            value = _array(given, name)
            if value.size == image.size:
                value = value.reshape(image.shape)
            elif value.size == n_pixel and name == "mask":
                value = value.reshape(image.shape[1:])
            elif value.size != n_band or name == "mask":
                raise ValueError(f"{name}: expected {image.size} numbers like image, got {value.size}")
            found[name] = value.astype(kind)
    if "psf" in given:
        psf = _array(given, "psf")
        side = round((psf.size / max(n_band, 1)) ** 0.5)
        if n_band * side * side != psf.size:
            raise ValueError(f"psf: expected {n_band} square images, got {psf.size} numbers")
        found["psf"] = psf.reshape(n_band, side, side)
    for name in NUMBERS:
        if name in given and np.isfinite(float(given[name])):
            found[name] = float(given[name])
    for name in TEXTS:
        if name in given and (text := str(given[name]).strip()):
            found[name] = tuple(text.split(",")) if name == "bands" and "," in text else text
    return found


def _array(row: Mapping[str, Any], name: str) -> NDArray[Any]:
    try:
        return np.asarray(row[name], np.float64 if name == "centers" else np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: not an array of numbers ({error})") from None


def _pairs(values: NDArray[Any]) -> NDArray[np.float64]:
    if values.size % 2 or (values.ndim == 2 and values.shape[1] != 2):
        raise ValueError(f"centers: expected x, y of each source, got an array of shape {values.shape}")
    return values.reshape(-1, 2)
