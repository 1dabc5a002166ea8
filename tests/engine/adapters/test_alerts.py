"""The alert worker on librdkafka's mock cluster: a record per alert, dead letters, metrics, and a clean end."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from alert_worker import Instant, running, send, until, ztf

from deblendrt.engine.adapters.alerts.packets import parse_alert
from deblendrt.engine.adapters.alerts.queue import AlertQueue, WaitingAlert
from deblendrt.engine.adapters.alerts.settings import read_settings
from deblendrt.engine.adapters.alerts.worker import Worker
from perf.embedding import kafka_broker

for name in ("confluent_kafka", "fastavro", "prometheus_client"):
    pytest.importorskip(name)


def test_one_record_an_alert_and_dead_letters(broker: Any, setting: Any) -> None:
    settings = setting(max_message_bytes=5000)
    good = [ztf(n, cutoutScience=None) for n in range(20)]
    poison = [b"", b"nonsense", good[3][:-4], b"\0\0\0\0\7abc", ztf(99)]
    send(broker, settings.topics[0], good[:10] + poison + good[10:], headers=[("trace", b"t1")], key=b"k")
    with running(Worker(settings, Instant(settings))) as worker:
        until(lambda: worker.offsets.n_pending() == 0 and worker.metrics.consumed._value.get() == 25)
    out, dead = broker.read_all(settings.out_topic), broker.read_all(settings.dead_letter_topic)
    assert sorted(m.key() for m in out) == sorted(f"ztf:{n}".encode() for n in range(20))
    assert sorted(m.value() or b"" for m in dead) == sorted(poison)
    dead.sort(key=lambda m: int(dict(m.headers())["offset"]))
    headers = dict(dead[1].headers())
    assert b"neither a container" in headers["reason"]
    assert headers["topic"] == settings.topics[0].encode()
    assert (headers["offset"], headers["whole"], headers["trace"]) == (b"11", b"true", b"t1")
    assert b"at most 5000" in dict(dead[4].headers())["reason"]
    assert dead[1].key() == b"k"
    assert broker.committed(settings.group, settings.topics[0]) == 25


def test_stop_finishes_what_was_read(broker: Any, setting: Any) -> None:
    settings = setting(max_wait=60.0, max_batch=100)
    send(broker, settings.topics[0], [ztf(n, cutoutScience=None) for n in range(5)])
    with running(Worker(settings, Instant(settings))) as worker:
        until(lambda: worker.queue.size()[0] == 5)
    assert len(broker.read_all(settings.out_topic)) == 5
    assert broker.committed(settings.group, settings.topics[0]) == 5


def test_metrics_and_health(broker: Any, setting: Any) -> None:
    settings = setting(http=f"127.0.0.1:{kafka_broker.free_port()}", stall_seconds=0.5)
    deblender = Instant(settings)

    def get(path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://{settings.http}{path}", timeout=5) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except urllib.error.URLError:  # not listening yet
            return 0, b""

    with running(Worker(settings, deblender)):
        until(lambda: get("/readyz")[0] == 200)
        send(broker, settings.topics[0], [ztf(1, cutoutScience=None), b"poison"])
        until(lambda: b'results_total{status="no_cutout"} 1.0' in get("/metrics")[1])
        until(lambda: b"dead_letters_total 1.0" in get("/metrics")[1])
        assert get("/healthz")[0] == 200
        assert get("/else")[0] == 404
        deblender.gate.clear()  # the engine hangs
        send(broker, settings.topics[0], [ztf(2, cutoutScience=None)])
        until(lambda: get("/healthz")[0] == 503)
        assert json.loads(get("/healthz")[1])["pending"] == 1
        deblender.gate.set()
        until(lambda: get("/healthz")[0] == 200)


def test_queue_waits_for_a_full_batch_or_for_the_oldest() -> None:
    alert = parse_alert(ztf(1, cutoutScience=None))
    queue = AlertQueue(3, 0.2)
    for k in range(4):
        queue.put(WaitingAlert(alert, ("t", 0), k, 10, time.monotonic(), 0.0))
    began = time.monotonic()
    assert [waiting.offset for waiting in queue.take()] == [0, 1, 2]
    assert time.monotonic() - began < 0.1
    assert queue.size() == (1, 10)
    assert [waiting.offset for waiting in queue.take()] == [3]
    assert 0.1 < time.monotonic() - began < 1.0
    queue.close()
    assert queue.take() == []


def test_settings(tmp_path: Any) -> None:
    path = tmp_path / "a.toml"
    path.write_text('brokers="a:1"\ntopic="in"\nout_topic="out"\ndead_letter_topic="dead"\nmax_wait=1\n'
                    '[models]\nrubin="lsst"\n[kafka]\n"sasl.password"="env:SECRET"\n')
    settings = read_settings(path, max_batch=3, group=None)
    assert (settings.topics, settings.max_batch, settings.max_wait, settings.group) == (["in"], 3, 1, "deblendrt")
    for text, message in (("nonsense=1", "unknown key 'nonsense'"), ("max_batch='a'", "max_batch: expected"),
                          ("max_batch=0", "max_batch: expected a positive"), ("framing='x'", "framing"), ("=", "TOML"),
                          ("out_topic='in'", "different topics"), ("find_missed=1", "find_missed")):
        bad = tmp_path / "b.toml"
        known = "" if "out_topic" in text else "out_topic='out'\n"
        bad.write_text(f"brokers='a:1'\ntopic='in'\ndead_letter_topic='dead'\n{known}{text}\n")
        with pytest.raises(ValueError, match=message):
            read_settings(bad)
    with pytest.raises(ValueError, match="brokers"):
        read_settings(None)
