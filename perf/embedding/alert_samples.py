"""Alerts for tests and measurements, in reduced layouts of Rubin and ZTF and in their encodings."""

from __future__ import annotations

import gzip
import io
from typing import Any

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.wcs import WCS

from perf.gate import cases

PLACE = [{"name": "ra", "type": "double"}, {"name": "dec", "type": "double"}]
SOURCE = {"type": "record", "name": "diaSource", "fields": [
    {"name": "diaSourceId", "type": "long"}, {"name": "visit", "type": "long"},
    {"name": "diaObjectId", "type": ["null", "long"], "default": None}, *PLACE,
    *({"name": f"flux{i}", "type": ["null", "float"], "default": None} for i in range(30)),
    {"name": "label", "type": ["null", "string"], "default": None}, {"name": "band", "type": ["null", "string"]},
    {"name": "when", "type": {"type": "long", "logicalType": "timestamp-micros"}}]}
RUBIN = {"type": "record", "name": "alert", "namespace": "lsst.v11_0", "fields": [
    {"name": "diaSourceId", "type": "long"}, {"name": "reason", "type": ["null", "string"], "default": None},
    {"name": "diaSource", "type": SOURCE},
    {"name": "prvDiaSources", "type": ["null", {"type": "array", "items": "lsst.v11_0.diaSource"}], "default": None},
    {"name": "diaObject", "type": ["null", {"type": "record", "name": "diaObject", "fields": [
        {"name": "diaObjectId", "type": "long"}, *PLACE]}], "default": None},
    *({"name": f"cutout{name}", "type": ["null", "bytes"], "default": None}
      for name in ("Difference", "Science", "Template"))]}
CUTOUT = {"type": "record", "name": "cutout", "namespace": "ztf.alert", "fields": [
    {"name": "fileName", "type": "string"}, {"name": "stampData", "type": "bytes"}]}
ZTF = {"type": "record", "name": "alert", "namespace": "ztf", "fields": [
    {"name": "schemavsn", "type": "string"}, {"name": "objectId", "type": "string"},
    {"name": "candid", "type": "long"},
    {"name": "candidate", "type": {"type": "record", "name": "candidate", "namespace": "ztf.alert", "fields": [
        {"name": "fid", "type": "int"}, *PLACE, {"name": "ranr", "type": "double"},
        {"name": "decnr", "type": "double"}, {"name": "magzpsci", "type": ["null", "float"]}]}},
    {"name": "cutoutScience", "type": ["null", CUTOUT], "default": None},
    {"name": "cutoutTemplate", "type": ["null", "ztf.alert.cutout"], "default": None}]}
SCALE = 0.2 / 3600  # deg


def rubin_stamp(image: Any, variance: Any = None, psf: Any = None, mask: Any = None, ra: float = 30.0,
                dec: float = -20.0, center: tuple[float, float] | None = None) -> bytes:
    """A cutout as Rubin's packageAlerts writes it: the alert's position `center` (x, y) at (ra, dec)."""
    n_y, n_x = image.shape
    plane = WCS(naxis=2)
    x, y = center or ((n_x - 1) / 2, (n_y - 1) / 2)
    plane.wcs.crpix, plane.wcs.crval = [x + 1, y + 1], [ra, dec]
    plane.wcs.cd = [[-SCALE, 0.0], [0.0, SCALE]]
    data = CCDData(np.asarray(image, np.float32), wcs=plane, psf=psf, mask=mask, unit=u.nJy,
                   uncertainty=None if variance is None else VarianceUncertainty(np.asarray(variance, np.float32)))
    data.header["ROTPA"] = 12.0
    buffer = io.BytesIO()
    data.write(buffer, format="fits")
    return buffer.getvalue()


def round_psf(sigma: float, side: int = 25) -> Any:
    """A Gaussian PSF of sum one [pixel]."""
    y, x = np.mgrid[:side, :side] - side // 2
    psf = np.exp(-0.5 * (x**2 + y**2) / sigma**2)
    return (psf / psf.sum()).astype(np.float32)


def rubin_alert(number: int, k: int = 0, psf: Any = None,
                **fields: Any) -> tuple[dict[str, Any], cases.CaseScene]:
    """An alert with the k-th alert scene of `perf.gate.cases` as its science cutout.

    Galaxies beyond the first are in the alert's history. The PSF is that of the scene unless another is given.
    """
    scene = cases.alert_scene(3, k)
    x, y = scene.centers[0]
    offset = (scene.centers - scene.centers[0]) * [-SCALE / np.cos(np.radians(-20.0)), SCALE]
    places = [{"ra": 30.0 + float(a), "dec": -20.0 + float(b)} for a, b in offset]
    source = {"diaSourceId": number, "visit": 7, "diaObjectId": 5, "band": "i", "when": 0, "label": "x" * 40}
    alert = {"diaSourceId": number, "diaSource": {**source, **places[0]},
             "prvDiaSources": [{**source, **place, "flux3": 1.5} for place in places],
             "diaObject": {"diaObjectId": 5, **places[0]},
             "cutoutScience": rubin_stamp(scene.image[0], scene.variance[0],
                                          cases.psf(("i",))[0] if psf is None else psf, center=(x, y))}
    return {**alert, **fields}, scene


def ztf_stamp(image: Any) -> bytes:
    """A gzipped cutout as ZTF writes it."""
    buffer = io.BytesIO()
    fits.PrimaryHDU(np.asarray(image, np.float32), fits.Header([("BUNIT", "DN")])).writeto(buffer)
    return gzip.compress(buffer.getvalue())


def ztf_alert(number: int, **fields: Any) -> dict[str, Any]:
    """An alert with 63 x 63 pixels around a round source on a sky of 200 DN; a corner of the pixels is NaN."""
    y, x = np.mgrid[:63, :63] - 31.0
    image = 200 + 3000 * np.exp(-0.5 * (x**2 + y**2) / 1.9**2) + np.random.default_rng(number).normal(0, 8, (63, 63))
    image[:9, :9] = np.nan
    candidate = {"fid": 2, "ra": 75.2, "dec": 35.36, "ranr": 75.2001, "decnr": 35.3601, "magzpsci": 26.2}
    cutout = {"fileName": "x.fits.gz", "stampData": ztf_stamp(image)}
    return {"schemavsn": "4.02", "objectId": "ZTF17abc", "candid": number, "candidate": candidate,
            "cutoutScience": cutout, **fields}


def container(schema: Any, *records: Any, codec: str = "null") -> bytes:
    """An Avro object container."""
    import fastavro

    buffer = io.BytesIO()
    fastavro.writer(buffer, fastavro.parse_schema(schema), records, codec)
    return buffer.getvalue()


def plain(schema: Any, record: Any) -> bytes:
    """An Avro record without framing."""
    import fastavro

    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(schema), record)
    return buffer.getvalue()


def confluent(number: int, schema: Any, record: Any) -> bytes:
    """A record in Confluent's wire format."""
    return b"\0" + number.to_bytes(4, "big") + plain(schema, record)
