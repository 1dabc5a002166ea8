"""Readers of alert messages: Avro records of Rubin and ZTF in three framings, from untrusted bytes.

Rubin sends Confluent's wire format (a zero byte, the schema's number in four bytes, the record) with numbered schemas.
ZTF sends an object container with the schema in every message. A record without framing is read under a schema that the
caller names. A message that is no alert with a number and a position raises ValueError. An alert with a missing or
broken cutout is accepted and gets a result record.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import math
import threading
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.adapters.alerts.avro_reader import compile_record, read_bytes, read_long
from deblendrt.engine.adapters.alerts.cutout_images import CutoutImage, TangentPlane, read_cutout

__all__ = ["Alert", "CutoutImage", "Schemas", "TangentPlane", "load_schema", "parse_alert", "read_cutout"]

MAX_MESSAGE_BYTES = 4 << 20  # Rubin's alerts have 0.1 MB; 1 MB with a long history
MAX_SCHEMA_BYTES = 1 << 20
MAX_POSITIONS = 64  # largest number of positions from an alert's history
CONTAINER = b"Obj\x01"
FRAMINGS = ("auto", "confluent", "container", "plain")
ZTF_BANDS = {1: "g", 2: "r", 3: "i"}
CUTOUTS = {"cutoutScience": "science", "cutoutTemplate": "template", "cutoutDifference": "difference"}

_PLACE = {"ra": True, "dec": True}
_STAMP = {"fileName": True, "stampData": True}
WANTED: Mapping[str, Any] = {
    "alertId": True, "diaSourceId": True, "objectId": True, "candid": True,
    "diaSource": {**_PLACE, "diaSourceId": True, "diaObjectId": True, "ssObjectId": True, "band": True,
                  "filterName": True},
    "prvDiaSources": _PLACE, "diaObject": {**_PLACE, "diaObjectId": True},
    "candidate": {**_PLACE, "fid": True, "magzpsci": True, "ranr": True, "decnr": True},
    "prv_candidates": _PLACE,
    **{name: _STAMP for name in CUTOUTS},
}

Reader = Callable[[bytes, int], tuple[dict[str, Any], int]]


@dataclasses.dataclass(frozen=True)
class Alert:
    """The fields of an alert that the worker uses.

    Attributes
    ----------
    survey : {"rubin", "ztf"}
    alert_id : int
        ``alertId``, otherwise ``diaSourceId`` or ``candid``. It is unique in its survey.
    object_id : str or None
        Identifier of the object that the alert belongs to.
    ra, dec : float [deg]
    band : str or None
    zero_point : float or None [AB magnitude of one unit of the science cutout]
        None if the cutout's ``BUNIT`` gives the scale.
    positions : float64 (n, 2) [deg]
        RA and Dec of the object, of earlier detections and of the nearest reference source.
    origins : tuple of str (n,)
        Origin of each position: "object", "history" or "reference".
    cutouts : dict of str to bytes
        FITS bytes by the names "science", "template" and "difference"; a null cutout is absent.
    """

    survey: str
    alert_id: int
    object_id: str | None
    ra: float
    dec: float
    band: str | None
    zero_point: float | None
    positions: NDArray[np.float64]
    origins: tuple[str, ...]
    cutouts: dict[str, bytes]

    @property
    def key(self) -> str:
        """Key of the result record, which is the same for every copy of the alert."""
        return f"{self.survey}:{self.alert_id}"


class Schemas:
    """The compiled schemas of alerts. Thread-safe.

    Schemas are numbered, come in containers, or belong to records without framing.

    Parameters
    ----------
    by_id : mapping of int to schema, optional
        Schemas by number, from `load_schema`.
    default : schema, optional
        Schema of records without framing.
    fetch : callable, optional
        Function from an int to a schema or None, called once for each unknown number. `parse_alert` passes its
        exceptions on. A ValueError means a fault of the message. If the registry is down, the function must raise
        another error.
    """

    def __init__(self, by_id: Mapping[int, Any] | None = None, default: Any = None,
                 fetch: Callable[[int], Any] | None = None) -> None:
        self._readers = {number: compile_record(schema, WANTED) for number, schema in (by_id or {}).items()}
        self.default = None if default is None else compile_record(default, WANTED)
        self._fetch = fetch
        self._embedded: collections.OrderedDict[bytes, Reader] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, number: int) -> bool:
        return number in self._readers or self._fetch is not None

    def numbered(self, number: int) -> Reader:
        """Return the reader of a numbered schema."""
        with self._lock:
            if number not in self._readers and self._fetch is not None and len(self._readers) < 10_000:
                schema = self._fetch(number)
                if schema is not None:
                    self._readers[number] = compile_record(schema, WANTED)
            if number not in self._readers:
                raise ValueError(f"schema {number} is not known")
            return self._readers[number]

    def embedded(self, text: bytes) -> Reader:
        """Return the reader of a schema that came in a message. The last 32 readers are kept."""
        if len(text) > MAX_SCHEMA_BYTES:
            raise ValueError(f"schema of {len(text)} bytes, at most {MAX_SCHEMA_BYTES}")
        key = hashlib.sha256(text).digest()
        with self._lock:
            if key in self._embedded:
                self._embedded.move_to_end(key)
                return self._embedded[key]
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"schema: not JSON ({error})") from error
        reader = compile_record(schema, WANTED)
        with self._lock:
            self._embedded[key] = reader
            while len(self._embedded) > 32:
                self._embedded.popitem(last=False)
        return reader


def load_schema(path: str | Path) -> Any:
    """Read an ``.avsc`` file. Types that it names and does not define are read from ``<name>.avsc`` in its folder.

    Raises
    ------
    ValueError
        The file is no schema.
    OSError
        The file cannot be read.
    ImportError
        fastavro is not installed.
    """
    try:
        import fastavro.schema
    except ImportError as error:
        raise ImportError('alert streams need fastavro: pip install "deblendrt[alerts]"') from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return fastavro.schema.load_schema(str(path), _write_hint=False)
    except Exception as error:  # fastavro has a dozen exceptions without a common base class
        raise ValueError(f"{path}: not an Avro schema: {error}") from error


def parse_alert(payload: bytes, schemas: Schemas | None = None, *, framing: str = "auto",
                max_bytes: int = MAX_MESSAGE_BYTES) -> Alert:
    """Read an alert.

    Parameters
    ----------
    payload : bytes
        A message's value.
    schemas : Schemas, optional
        Default: no schema is known, so only containers can be read.
    framing : {"auto", "confluent", "container", "plain"}
        "auto" tells the framing from the first bytes. A container has a magic number. Confluent's format begins with a
        zero byte and a known schema number; the number may be unknown if `schemas` has no default. Otherwise the
        message is a record without framing.
    max_bytes : int [byte]
        Largest message, and largest decompressed block of a container.

    Returns
    -------
    Alert

    Raises
    ------
    ValueError
        The message is too long, not Avro, of an unknown schema, or no alert. Bytes of any content raise no other error,
        except the errors of `fetch` in `Schemas`.
    """
    schemas = Schemas() if schemas is None else schemas
    if len(payload) > max_bytes:
        raise ValueError(f"message of {len(payload)} bytes, at most {max_bytes}")
    if framing not in FRAMINGS:
        raise ValueError(f"framing: expected one of {', '.join(FRAMINGS)}, got {framing!r}")
    if framing == "auto":
        number = int.from_bytes(payload[1:5], "big")
        numbered = len(payload) >= 5 and payload[0] == 0 and (schemas.default is None or number in schemas)
        framing = "container" if payload[:4] == CONTAINER else "confluent" if numbered else "plain"
    if framing == "container":
        reader, body = _container(payload, schemas, max_bytes)
        at = 0
    elif framing == "confluent":
        if len(payload) < 5 or payload[0] != 0:
            raise ValueError("not Confluent's wire format")
        reader, body, at = schemas.numbered(int.from_bytes(payload[1:5], "big")), payload, 5
    else:
        if schemas.default is None:
            raise ValueError("neither a container nor Confluent's wire format, and no schema for a record alone")
        reader, body, at = schemas.default, payload, 0
    record, end = reader(body, at)
    if end != len(body):
        raise ValueError(f"{len(body) - end} bytes after the record")
    return _alert(record)


def _container(payload: bytes, schemas: Schemas, max_bytes: int) -> tuple[Reader, bytes]:
    """Return the reader and the bytes of the single record in an object container."""
    if payload[:4] != CONTAINER:
        raise ValueError("not an Avro container")
    at = 4
    meta: dict[bytes, bytes] = {}
    while True:
        count, at = read_long(payload, at)
        if count == 0:
            break
        if count < 0:
            _, at = read_long(payload, at)
        if abs(count) + len(meta) > 100:
            raise ValueError("container: more than 100 entries before the data")
        for _ in range(abs(count)):
            key, at = read_bytes(payload, at)
            meta[key], at = read_bytes(payload, at)
    sync = payload[at : at + 16]
    at += 16
    count, at = read_long(payload, at)
    if count != 1:
        raise ValueError(f"container: {count} records in the first block, expected 1")
    block, at = read_bytes(payload, at)
    if len(sync) < 16 or payload[at:] != sync:
        raise ValueError("container: more than one block, or a damaged one")
    codec = meta.get(b"avro.codec", b"null")
    if codec == b"deflate":
        block = _inflate(block, max_bytes)
    elif codec != b"null":
        raise ValueError(f"container: codec {codec[:20]!r}, expected null or deflate")
    return schemas.embedded(meta.get(b"avro.schema", b"")), block


def _inflate(block: bytes, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(-15)
    try:
        found = stream.decompress(block, max_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"container: {error}") from error
    if len(found) > max_bytes or not stream.eof:
        raise ValueError(f"container: a block that ends early, or of more than {max_bytes} bytes")
    return found


def _alert(record: dict[str, Any]) -> Alert:
    """Return the alert that a record of either survey holds."""
    source, candidate = record.get("diaSource"), record.get("candidate")
    if isinstance(source, dict):
        survey, main = "rubin", source
        number = next((n for n in (record.get("alertId"), record.get("diaSourceId"), source.get("diaSourceId"))
                       if n is not None), None)
        owner = next((f"{name}:{source[key]}" for name, key in (("dia", "diaObjectId"), ("ss", "ssObjectId"))
                      if source.get(key)), None)
        band = source.get("band") or source.get("filterName")
        zero_point = None
        places = [("object", record.get("diaObject")), *(("history", p) for p in _rows(record.get("prvDiaSources")))]
    elif isinstance(candidate, dict):
        survey, main = "ztf", candidate
        number, owner = record.get("candid"), record.get("objectId")
        fid = candidate.get("fid")
        band = ZTF_BANDS.get(fid) if isinstance(fid, int) else None
        zero_point = candidate.get("magzpsci")
        reference = {"ra": candidate.get("ranr"), "dec": candidate.get("decnr")}
        places = [("reference", reference), *(("history", p) for p in _rows(record.get("prv_candidates")))]
    else:
        raise ValueError("neither a Rubin alert (diaSource) nor one of ZTF (candidate)")
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError("an alert without a number (alertId, diaSourceId or candid)")
    place = _place(main)
    if place is None:
        raise ValueError(f"alert {number}: no position")
    found = [(origin, p) for origin, p in ((o, _place(row)) for o, row in places) if p is not None][:MAX_POSITIONS]
    usable = isinstance(zero_point, float) and 0 < zero_point < 60
    return Alert(survey, number, owner if isinstance(owner, str) else None, *place,
                 band if isinstance(band, str) else None, zero_point if usable else None,
                 np.array([p for _, p in found], np.float64).reshape(-1, 2), tuple(o for o, _ in found),
                 dict(_cutouts(record)))


def _rows(value: Any) -> list[Any]:
    """Return the rows of a history, latest first."""
    return value[::-1] if isinstance(value, list) else []


def _place(row: Any) -> tuple[float, float] | None:
    if not isinstance(row, dict):
        return None
    ra, dec = row.get("ra"), row.get("dec")
    if not (isinstance(ra, float) and isinstance(dec, float) and math.isfinite(ra) and abs(dec) <= 90):
        return None
    return ra % 360.0, dec


def _cutouts(record: dict[str, Any]) -> Any:
    for field, name in CUTOUTS.items():
        value = record.get(field)
        data = value.get("stampData") if isinstance(value, dict) else value
        if isinstance(data, bytes) and data:
            yield name, data
