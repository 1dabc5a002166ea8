"""Readers of alerts and their cutouts. Hostile bytes raise ValueError within bounded memory and time."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import resource
import time
import zlib
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from deblendrt.engine.adapters.alerts.avro_reader import compile_record
from deblendrt.engine.adapters.alerts.packets import Schemas, load_schema, parse_alert, read_cutout
from perf.embedding import alert_samples as samples

pytest.importorskip("fastavro")


@pytest.fixture(scope="module")
def rubin() -> Any:
    return samples.rubin_alert(77)


def test_the_three_framings_hold_the_same_alert(rubin: Any) -> None:
    record, scene = rubin
    schemas = Schemas({1100: samples.RUBIN}, default=samples.RUBIN)
    payloads = [samples.confluent(1100, samples.RUBIN, record), samples.plain(samples.RUBIN, record),
                samples.container(samples.RUBIN, record), samples.container(samples.RUBIN, record, codec="deflate")]
    for payload in payloads:
        alert = parse_alert(payload, schemas)
        assert alert.key == "rubin:77"
        assert (alert.ra, alert.dec, alert.band, alert.object_id) == (30.0, -20.0, "i", "dia:5")
        assert alert.origins == ("object", *["history"] * len(scene.centers))
        assert alert.cutouts == {"science": record["cutoutScience"]}  # null cutouts are absent
        assert [tuple(p) for p in alert.positions[1:]] == [(p["ra"], p["dec"]) for p in record["prvDiaSources"][::-1]]


def test_rubin_cutout(rubin: Any) -> None:
    record, scene = rubin
    stamp = read_cutout(record["cutoutScience"])
    np.testing.assert_array_equal(stamp.image, scene.image[0])
    np.testing.assert_array_equal(stamp.variance, scene.variance[0])
    assert stamp.psf is not None
    assert stamp.psf.shape[0] % 2
    assert stamp.unit == "nJy"
    assert stamp.mask is None
    assert stamp.plane is not None
    assert stamp.plane.pixel_scale == pytest.approx(0.2, rel=1e-9)
    sky = np.array([(p["ra"], p["dec"]) for p in record["prvDiaSources"]])
    np.testing.assert_allclose(stamp.plane.to_pixel(sky), scene.centers, atol=1e-3)
    np.testing.assert_allclose(stamp.plane.to_sky(stamp.plane.to_pixel(sky)), sky, rtol=0, atol=1e-10)


def test_sky_positions_are_astropys() -> None:
    from astropy.wcs import WCS

    header = fits.Header.fromstring(samples.rubin_stamp(np.zeros((30, 30)), dec=68.0)[:2880].decode())
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    stamp = read_cutout(samples.rubin_stamp(np.zeros((30, 30)), dec=68.0))
    pixels = np.array([[0.0, 0.0], [29.0, 3.0], [14.5, 14.5]])
    assert stamp.plane is not None
    np.testing.assert_allclose(stamp.plane.to_sky(pixels), WCS(header).all_pix2world(pixels, 0), rtol=0, atol=1e-9)


def test_mask_of_planes_of_ones_and_of_bits() -> None:
    image = np.ones((30, 31), np.float32)
    mask = np.zeros(image.shape, bool)
    mask[3, 4] = True
    found = read_cutout(samples.rubin_stamp(image, mask=mask)).mask
    np.testing.assert_array_equal(found, mask)
    bits = np.zeros(image.shape, np.int32)
    bits[0, 0], bits[1, 1], bits[2, 2] = 1 << 5, 1 << 1, 1 << 12  # DETECTED, SAT, unknown
    for header, bad in ((fits.Header(), [(1, 1)]), (fits.Header([("MP_BAD", 12)]), [(2, 2)])):
        buffer = io.BytesIO()
        fits.HDUList([fits.PrimaryHDU(image), fits.ImageHDU(bits, header, name="MASK")]).writeto(buffer)
        stamp = read_cutout(buffer.getvalue())
        assert stamp.mask is not None
        assert [tuple(p) for p in np.argwhere(stamp.mask).tolist()] == bad


def test_ztf_alert() -> None:
    alert = parse_alert(samples.container(samples.ZTF, samples.ztf_alert(9)))
    assert (alert.key, alert.band, alert.object_id) == ("ztf:9", "r", "ZTF17abc")
    assert alert.zero_point == pytest.approx(26.2)
    assert alert.origins == ("reference",)
    stamp = read_cutout(alert.cutouts["science"])
    assert stamp.image.shape == (63, 63)
    assert np.isnan(stamp.image).sum() == 81
    assert (stamp.variance, stamp.psf, stamp.plane, stamp.unit) == (None, None, None, "DN")


def test_schema_in_several_files(tmp_path: Any) -> None:
    separate = json.loads(json.dumps(samples.RUBIN))
    separate["fields"][2]["type"] = "lsst.v11_0.diaSource"
    (tmp_path / "lsst.v11_0.alert.avsc").write_text(json.dumps(separate))
    (tmp_path / "lsst.v11_0.diaSource.avsc").write_text(json.dumps({**samples.SOURCE, "namespace": "lsst.v11_0"}))
    schema = load_schema(tmp_path / "lsst.v11_0.alert.avsc")
    record, _ = samples.rubin_alert(3)
    assert parse_alert(samples.plain(samples.RUBIN, record), Schemas(default=schema)).alert_id == 3
    (tmp_path / "bad.avsc").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.avsc"):
        load_schema(tmp_path / "bad.avsc")


@pytest.mark.parametrize(("payload", "message"), [
    (b"", "neither a container"), (b"\0\0\0\0\1", "schema 1 is not known"), (b"Obj\x01", "ends early"),
    (b"x" * (5 << 20), "at most"), (samples.container(samples.ZTF), "ends early"),
    (samples.container(samples.ZTF, samples.ztf_alert(1), samples.ztf_alert(2)), "2 records"),
    (samples.container(samples.ZTF, samples.ztf_alert(1))[:-1], "container"),
    (samples.container(samples.ZTF, samples.ztf_alert(1), codec="bzip2"), "codec"),
    (samples.container({"type": "record", "name": "x", "fields": [{"name": "a", "type": "long"}]}, {"a": 1}),
     "neither a Rubin"),
    (samples.container(samples.ZTF, samples.ztf_alert(1, candidate={
        "fid": 1, "ra": float("nan"), "dec": 0.0, "ranr": 0.0, "decnr": 0.0, "magzpsci": None})), "no position"),
])  # fmt: skip
def test_what_is_no_alert(payload: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_alert(payload)


def _with_schema(schema: Any, block: bytes) -> bytes:
    """Return a container of one record, with a schema and bytes that no writer made."""
    def long(n: int) -> bytes:
        n, out = (n << 1) ^ (n >> 63), b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])

    text = json.dumps(schema).encode()
    head = b"Obj\x01" + long(1) + long(11) + b"avro.schema" + long(len(text)) + text + b"\0" + b"s" * 16
    return head + long(1) + long(len(block)) + block + b"s" * 16


HUGE = b"\xfe" + b"\xff" * 8 + b"\x01"  # the largest long


@pytest.mark.parametrize(("schema", "block"), [
    # a record that contains itself, nested as deep as the message is long
    ({"type": "record", "name": "r", "fields": [{"name": "next", "type": ["null", "r"]}]}, b"\x02" * 1_000_000),
    ({"type": "record", "name": "r", "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}]}, HUGE),
    ({"type": "record", "name": "r", "fields": [{"name": "a", "type": {"type": "array", "items": "double"}}]}, HUGE),
    ({"type": "record", "name": "r", "fields": [{"name": "a", "type": {"type": "map", "values": "null"}}]}, HUGE),
    ({"type": "record", "name": "r", "fields": [{"name": "cutoutScience", "type": "bytes"}]}, HUGE),
    ({"type": "record", "name": "r", "fields": [{"name": "cutoutScience", "type": {
        "type": "fixed", "name": "f", "size": 1 << 40}}]}, b""),
    ({"type": "record", "name": "r", "fields": [{"name": "prvDiaSources", "type": {"type": "array", "items": {
        "type": "record", "name": "e", "fields": []}}}]}, HUGE),
    # types that double sixteen times
    ({"type": "record", "name": "r", "fields": [{"name": "a", "type": [
        "null", *({"type": "record", "name": f"t{i}", "fields": [
            {"name": n, "type": f"t{i - 1}" if i else "string"} for n in "ab"]} for i in range(16))]}]}, b"\x20" * 999),
    ([{"type": "array", "items": "x"}], b""), ({"type": "record", "name": "r", "fields": 3}, b""), (None, b""),
    ({"type": {"type": {"type": "record"}}}, b""), ({"type": "record", "name": "r", "fields": [{}]}, b""),
])  # fmt: skip
def test_hostile_schemas(schema: Any, block: bytes) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(ValueError, match=r"."):
        parse_alert(_with_schema(schema, block))
    assert time.perf_counter() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_deeply_nested_schema_is_refused() -> None:
    text = b'{"type":' * 100_000
    with pytest.raises(ValueError, match="schema"):
        Schemas().embedded(text)
    nested: Any = "long"
    for i in range(500):
        nested = {"type": "record", "name": f"r{i}", "fields": [{"name": "a", "type": nested}]}
    with pytest.raises(ValueError, match="deep"):
        compile_record(nested, {})


def test_decompression_bombs() -> None:
    began = time.perf_counter()
    with pytest.raises(ValueError, match="gzip of more than"):
        read_cutout(gzip.compress(bytes(1 << 28), 1))
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = bomb.compress(bytes(1 << 26)) + bomb.flush()
    payload = samples.container(samples.ZTF, samples.ztf_alert(1), codec="deflate")
    head = payload[: payload.rindex(payload[-16:], 0, -16) + 16]
    long = b""
    n = len(block) << 1
    while n > 127:
        long, n = long + bytes([n & 127 | 128]), n >> 7
    with pytest.raises(ValueError, match="of more than"):
        parse_alert(head + b"\x02" + long + bytes([n]) + block + payload[-16:])
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(("change", "message"), [
    ({"NAXIS1": "1000000"}, "announced"), ({"NAXIS1": "-3"}, "NAXIS1"), ({"NAXIS1": "3.5"}, "NAXIS1"),
    ({"NAXIS": "3"}, "NAXIS3"), ({"NAXIS": "999"}, "axes"), ({"BITPIX": "13"}, "BITPIX"), ({"NAXIS1": "0"}, "pixels"),
    ({"BSCALE": "1E400"}, "BSCALE"), ({"SIMPLE": "F"}, "not FITS"),
])  # fmt: skip
def test_hostile_headers(change: dict[str, str], message: str) -> None:
    cards = {"SIMPLE": "T", "BITPIX": "-32", "NAXIS": "2", "NAXIS1": "30", "NAXIS2": "30", **change}
    head = "".join(f"{key:<8}= {value:>20}".ljust(80) for key, value in cards.items()) + "END".ljust(80)
    with pytest.raises(ValueError, match=message):
        read_cutout(head.ljust(2880).encode() + bytes(5760))


def test_scaled_integers_and_blanks_are_astropys() -> None:
    buffer = io.BytesIO()
    hdu = fits.PrimaryHDU(np.arange(900, dtype=np.int16).reshape(30, 30))
    hdu.header["BSCALE"], hdu.header["BZERO"], hdu.header["BLANK"] = 0.5, 10.0, 7
    hdu.writeto(buffer)
    with fits.open(io.BytesIO(buffer.getvalue())) as hdus:
        expected = hdus[0].data
    np.testing.assert_array_equal(read_cutout(buffer.getvalue()).image, expected)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_are_value_errors_or_alerts(data: Any) -> None:
    record = samples.ztf_alert(1)
    payload = bytearray(samples.container(samples.ZTF, {**record, "cutoutScience": {
        "fileName": "", "stampData": record["cutoutScience"]["stampData"][:50]}}))
    stamp = bytearray(samples.rubin_stamp(np.ones((4, 4)), np.ones((4, 4)), np.ones((3, 3))))
    for whole, read in ((payload, parse_alert), (stamp, read_cutout)):
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
        for damaged in (bytes(whole), cut):
            with contextlib.suppress(ValueError):
                read(damaged)
