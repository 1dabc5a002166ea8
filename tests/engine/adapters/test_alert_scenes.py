"""From alerts to result records: sources, pixels and status. The bytes do not depend on the batch."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table

from deblendrt.engine.adapters.alerts.packets import Alert, Schemas, parse_alert
from deblendrt.engine.adapters.alerts.scenes import SCHEMA, AlertDeblender, Cutout, RecordWriter
from deblendrt.engine.adapters.alerts.settings import AlertSettings, read_settings
from deblendrt.engine.adapters.alerts.sky_catalog import SkyCatalog
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.fields import QUANTITIES
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.units import InputWarning
from perf.embedding import alert_samples as samples

pytest.importorskip("fastavro")


@pytest.fixture(scope="module")
def deblender() -> Deblender:
    return Deblender.load()


def settings(**over: Any) -> AlertSettings:
    return read_settings(brokers="b:1", topics=["in"], out_topic="out", dead_letter_topic="dead", **over)


def rubin(number: int, k: int = 0, **fields: Any) -> Alert:
    record, _ = samples.rubin_alert(number, k, **fields)
    return parse_alert(samples.plain(samples.RUBIN, record), Schemas(default=samples.RUBIN))


def ztf(number: int, **fields: Any) -> Alert:
    return parse_alert(samples.container(samples.ZTF, samples.ztf_alert(number, **fields)))


def test_records_hold_the_engines_fluxes_in_any_batch(deblender: Deblender) -> None:
    worker, writer = AlertDeblender(settings(psf="nominal"), {"rubin": deblender}), RecordWriter()
    alerts = [rubin(1, 0), ztf(2), rubin(3, 1), rubin(4, 2, cutoutScience=None)]
    answers = worker.answer(alerts)
    assert [a["alertId"] for a in answers] == [1, 2, 3, 4]
    assert [a["status"] for a in answers] == ["deblended", "refused", "deblended", "no_cutout"]
    assert "no model for ztf" in answers[1]["reason"]
    for k, answer in ((0, answers[0]), (1, answers[2])):
        scene = samples.cases.alert_scene(3, k)
        sources = answer["sources"]
        assert [s["origin"] for s in sources] == ["alert"] + ["history"] * (len(scene.centers) - 1)
        true = [scene.flux[:, 0][np.hypot(*(scene.centers - (s["x"], s["y"])).T).argmin()] for s in sources]
        pulls = [(s["flux"] - f) / np.hypot(s["fluxErr"], s["fluxSysErr"]) for s, f in zip(sources, true, strict=True)]
        assert max(map(abs, pulls)) < 6
        assert np.hypot((sources[0]["ra"] - 30) * np.cos(np.radians(20)), sources[0]["dec"] + 20) * 3600 < 0.15
        assert (answer["width"], answer["height"], answer["band"]) == (41, 41, "i")
        assert answer["model"].startswith("lsst ")
    written = [writer.write(a) for a in answers]
    again = [writer.write(worker.answer([alert])[0]) for alert in alerts[::-1]][::-1]
    assert written == again
    import fastavro

    read = next(iter(fastavro.reader(io.BytesIO(written[0]))))
    assert read["sources"][0]["flux"] == answers[0]["sources"][0]["flux"]
    assert RecordWriter(7).write(answers[0])[:5] == b"\0\0\0\0\7"


def test_neighbours_are_joined_once(deblender: Deblender, tmp_path: Path) -> None:
    scale, cosine = samples.SCALE, np.cos(np.radians(20))
    table = Table({"ra": [30.0, 30 + 6 * scale / cosine, 30.1, 30.0 - 5 * scale / cosine], "id": [11, 12, 13, 14],
                   "dec": [-20.0 + scale, -20.0, -20.0, -20.0], "kind": ["star", "auto", "star", "galaxy"]})
    table.write(tmp_path / "known.ecsv")
    catalog = SkyCatalog.read(tmp_path / "known.ecsv")
    alert = dataclasses.replace(rubin(1), origins=("object", "history", "history"), positions=np.array(
        [[30.0, -20.0], [30 + 6.5 * scale / cosine, -20.0], [30.0, -20 + 8 * scale]]))

    def sources(**over: Any) -> list[tuple[str, str | None, str]]:
        found = AlertDeblender(settings(**over), {"rubin": deblender}, catalog).prepare(alert)
        assert isinstance(found, Cutout)
        assert found.centers.shape == (len(found.origins), 2)
        return list(zip(found.origins, found.ids, found.kinds, strict=True))

    assert sources() == [("alert", "11", "star"), ("catalogue", "14", "galaxy"), ("catalogue", "12", "auto"),
                         ("history", None, "galaxy")]
    assert sources(history=False, max_sources=2) == [("alert", "11", "star"), ("catalogue", "14", "galaxy")]
    for text, message in (("a,b\n1,2\n", "columns"), ("ra,dec,kind\n1,2,quasar\n", "quasar"), ("", "columns")):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            SkyCatalog.read(tmp_path / "bad.csv")


def test_catalogue_lookup_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(1)
    ra, dec = np.r_[rng.uniform(0, 0.01, 200), rng.uniform(359.99, 360, 200)], np.sort(rng.uniform(60, 60.01, 400))
    catalog = SkyCatalog(ra, dec)
    rows = catalog.near(0.0, 60.005, 0.002)
    east = ((ra + 180) % 360 - 180) * np.cos(np.radians(60.005))
    assert set(rows.tolist()) == set(np.flatnonzero(np.hypot(east, dec - 60.005) <= 0.002).tolist())
    assert len(rows) > 3
    assert np.all(np.diff(np.hypot(east, dec - 60.005)[rows]) >= 0)


@pytest.mark.parametrize(("fields", "status", "reason"), [
    ({"cutoutScience": b"nonsense"}, "bad_cutout", "header"), ({"cutoutScience": b""}, "no_cutout", "science"),
    ({"cutoutScience": samples.ztf_stamp(np.zeros((30, 30)))}, "refused", "unit"),
    ({"cutoutScience": samples.rubin_stamp(np.zeros((30, 30)), np.ones((31, 30)))}, "bad_cutout", "shape"),
])  # fmt: skip
def test_status_and_reason(deblender: Deblender, fields: Any, status: str, reason: str) -> None:
    record = AlertDeblender(settings(), {"rubin": deblender}).answer([rubin(1, **fields)])[0]
    assert (record["status"], record["sources"]) == (status, [])
    assert reason in record["reason"]
    assert len(RecordWriter().write(record)) > 100


def test_pixels_and_bands_that_the_model_has_not(deblender: Deblender) -> None:
    worker = AlertDeblender(settings(), {"rubin": deblender, "ztf": deblender})
    band = dataclasses.replace(rubin(1), band="w")
    for alert, reason in ((band, "band w"), (ztf(2), "pixel_scale")):
        record = worker.answer([alert])[0]
        assert record["status"] == "refused"
        assert reason in record["reason"]


def test_ztf_is_deblended_where_the_scale_is_said_to_fit(deblender: Deblender) -> None:
    worker = AlertDeblender(settings(pixel_scales={"ztf": 0.2}), {"ztf": deblender})
    alert = ztf(2)
    with pytest.warns(InputWarning, match="psf: none was given"):
        record = worker.answer([alert])[0]
    assert record["status"] == "deblended"
    [source] = record["sources"]  # without a WCS only the alert's own position is known
    assert (round(source["x"]), round(source["y"])) == (31, 31)
    assert np.isnan(source["ra"])
    assert source["flags"] & Flag.VARIANCE_ESTIMATED
    assert any("background 20" in note for note in record["notes"])
    counts = 3000 * 2 * np.pi * 1.9**2
    assert source["flux"] == pytest.approx(counts * 10 ** (-0.4 * (26.2 - 31.4)), rel=0.2)
    unscaled = dataclasses.replace(alert, zero_point=None)
    assert "zero point" in worker.answer([unscaled])[0]["reason"]


def test_one_refused_cutout_spoils_no_other(deblender: Deblender, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = AlertDeblender(settings(psf="nominal"), {"rubin": deblender})
    real = deblender.deblend_batch

    def refuse(cutouts: Any, centers: Any, **options: Any) -> Any:
        if any(image.shape == (1, 30, 30) for image in cutouts):
            raise ValueError("no")
        return real(cutouts, centers, **options)

    monkeypatch.setattr(deblender, "deblend_batch", refuse)
    bad = rubin(2, cutoutScience=samples.rubin_stamp(np.ones((30, 30)), np.ones((30, 30))))
    records = worker.answer([rubin(1), bad])
    assert [r["status"] for r in records] == ["deblended", "failed"]
    assert records[1]["reason"] == "ValueError: no"
    assert worker.n_engine_error == 2


def test_the_schema_has_the_quantities_of_the_table() -> None:
    """Names and types of a source in the schema are those that `engine.result.fields` gives to alert records."""
    (sources,) = (field for field in json.loads(SCHEMA.read_text())["fields"] if field["name"] == "sources")
    written = {field["name"]: field["type"] for field in sources["type"]["items"]["fields"]}
    kinds = {"f": "double", "i": "long", "b": "boolean"}
    listed = {name: kinds[q.dtype.kind] for q in QUANTITIES.values() for name in q.alert}
    own = {"origin": "string", "catalogId": ["null", "string"], "ra": "double", "dec": "double"}
    assert written == listed | own
