"""The positions of the sources in a model that scarlet_lite persisted, read without scarlet_lite.

A persisted model is JSON. All schemas since the first can be read. In all of them a model is a table of blends, a blend
is a table of blends or of sources, and the components of a source have a peak (y, x) in whole pixels of the parent
image. The facts are from lsst/scarlet_lite python/lsst/scarlet/lite/io/*.py and lsst/meas_extensions_scarlet
python/lsst/meas/extensions/scarlet/io/*.py, in the versions of 2025 and 2026.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 2**31  # size of an unpacked model


@dataclass(frozen=True, eq=False)
class ScarletModel:
    """The sources of a persisted model.

    Attributes
    ----------
    source_id : list
        The ``id`` in the metadata of each source, otherwise its key; int if it is a whole number.
    parent_id : list of int
        Number of the blend of each source; an isolated source is its own parent.
    center : float64 (n_source, 2) [pixel]
        (x, y) in the parent image, in whole pixels; NaN for a source without components.
    bands : tuple of str, or None
    psf : float64 (n_band, q, q), or None
        Observed PSF of the whole model.
    model_psf : float64 (q, q), or None
        PSF of the components' frame.
    """

    source_id: list[Any]
    parent_id: list[int]
    center: NDArray[np.float64]
    bands: tuple[str, ...] | None
    psf: NDArray[np.float64] | None
    model_psf: NDArray[np.float64] | None

    def centers(self, xy0: tuple[int, int] = (0, 0)) -> NDArray[np.float64]:
        """Return positions on an image whose first pixel is `xy0` (x, y) of the parent image, float64 (n_source, 2)."""
        return self.center - np.asarray(xy0, np.float64)


def read_model(source: str | Path | bytes | Mapping[str, Any], *, max_bytes: int = MAX_BYTES) -> ScarletModel:
    """Read the sources of a persisted model: `ScarletModelData` JSON, a ``.scarlet`` zip file, or the parsed JSON.

    Only JSON is parsed, and no code is run.

    Parameters
    ----------
    source : str or Path (a file), bytes (its content) or mapping (parsed)
    max_bytes : int
        A model that is larger when unpacked is refused.

    Returns
    -------
    ScarletModel

    Raises
    ------
    ValueError
        The source is no persisted model; the message names the entry at fault.
    """
    data = source if isinstance(source, Mapping) else _parse(source, max_bytes)
    metadata = _arrays(data.get("metadata"))
    if "psfShape" in data:  # the form before schemas existed
        metadata.setdefault("model_psf", _array(data["psf"], data["psfShape"], "psf"))
    ids: list[Any] = []
    parents: list[int] = []
    centers: list[tuple[float, float]] = []
    bands, psf = metadata.get("bands"), metadata.get("psf")
    for key, parent in _mapping(data, "blends").items():
        for blend in _leaves(parent, f"blends[{key}]"):
            own = _arrays(blend.get("metadata"))
            bands = bands if bands is not None else own.get("bands", blend.get("bands"))
            for name, entry in _mapping(blend, "sources").items():
                ids.append(_identity(entry, name))
                parents.append(_whole(key, "blends"))
                centers.append(_peak(entry, f"blends[{key}].sources[{name}]"))
    for key, entry in _mapping(data, "isolated", missing=True).items():
        ids.append(_whole(key, "isolated"))
        parents.append(_whole(key, "isolated"))
        y, x = _pair(entry.get("peak"), f"isolated[{key}].peak")
        centers.append((x, y))
    model_psf = metadata.get("model_psf")
    if model_psf is not None:
        model_psf = np.asarray(model_psf, np.float64).reshape(np.shape(model_psf)[-2:])
    return ScarletModel(ids, parents, np.array(centers, np.float64).reshape(-1, 2),
                        None if bands is None else tuple(str(band) for band in bands),
                        None if psf is None else np.asarray(psf, np.float64), model_psf)


def _parse(source: str | Path | bytes, max_bytes: int) -> dict[str, Any]:
    """Return a model's JSON object. The entries of a zip file are joined as in a single JSON text."""
    stream: Any = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
    size = len(source) if isinstance(source, bytes) else stream.stat().st_size
    if size > max_bytes:
        raise ValueError(f"source: expected at most {max_bytes} bytes, got {size}")
    if not zipfile.is_zipfile(stream):
        text = source if isinstance(source, bytes) else stream.read_bytes()
        return _json(text, "source")
    if isinstance(stream, io.BytesIO):
        stream.seek(0)
    data: dict[str, Any] = {"blends": {}, "isolated": {}}
    with zipfile.ZipFile(stream) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > max_bytes:
            raise ValueError(f"source: expected at most {max_bytes} bytes, got {unpacked} unpacked")
        for entry in archive.infolist():
            with archive.open(entry) as file:
                text = file.read(entry.file_size)
            value = _json(text, entry.filename, any_kind=True)
            if entry.filename in ("metadata", "version"):
                data[entry.filename] = value
            elif entry.filename in ("psf", "psf_shape"):
                data["psf" if entry.filename == "psf" else "psfShape"] = value
            elif not isinstance(value, dict):
                raise ValueError(f"source: expected a blend or an isolated source in {entry.filename!r}, got "
                                 f"{type(value).__name__}")
            else:
                data["isolated" if "source_type" in value else "blends"][entry.filename] = value
    return data


def _json(text: bytes, name: str, any_kind: bool = False) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected JSON: {error}") from error
    if not any_kind and not isinstance(value, dict):
        raise ValueError(f"{name}: expected a JSON object, got {type(value).__name__}")
    return value


def _mapping(data: Mapping[str, Any], key: str, missing: bool = False) -> Mapping[str, Any]:
    value = data.get(key, {} if missing else None)
    if not isinstance(value, Mapping) or any(not isinstance(entry, Mapping) for entry in value.values()):
        raise ValueError(f"source: expected a scarlet_lite model with a table of {key!r}, got {type(value).__name__}")
    return value


def _leaves(blend: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the blends of an entry that hold sources; blends may be nested."""
    todo = [blend]
    while todo:
        entry = todo.pop()
        if "children" in entry:
            todo += list(_mapping(entry, "children").values())[::-1]
        elif "sources" in entry:
            yield entry
        else:
            raise ValueError(f"{name}: expected a blend with sources or children, got the keys {sorted(entry)}")


def _arrays(metadata: Any) -> dict[str, Any]:
    """Return metadata with its arrays restored. Newer schemas hold arrays as objects of their own."""
    found = dict(metadata) if isinstance(metadata, Mapping) else {}
    for key in found.get("array_keys", ()):
        shape = found.get(f"{key}_shape", found.get(f"{key}Shape"))
        found[key] = _array(found.get(key), shape, key)
    for key in ("psf", "model_psf"):
        if isinstance(found.get(key), Mapping):
            found[key] = _array(found[key].get("data"), found[key].get("shape"), key)
    return found


def _array(values: Any, shape: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(values).reshape([int(n) for n in shape])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected as many numbers as its shape {shape} says: {error}") from error


def _identity(entry: Mapping[str, Any], key: str) -> Any:
    value = (entry.get("metadata") or {}).get("id", key)
    return int(value) if isinstance(value, str) and value.lstrip("-").isdecimal() else value


def _whole(key: Any, name: str) -> int:
    try:
        return int(key)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected whole numbers as keys, got {key!r}") from error


def _pair(value: Any, name: str) -> tuple[float, float]:
    try:
        first, second = (float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected (y, x), got {value!r}") from error
    return first, second


def _peak(entry: Mapping[str, Any], name: str) -> tuple[float, float]:
    """Return (x, y) of a source: the peak of its first component, as in scarlet_lite."""
    components = [*entry.get("components", ()), *entry.get("factorized", ())]
    if not components:
        return np.nan, np.nan
    y, x = _pair(components[0].get("peak"), f"{name}.peak")
    return x, y
