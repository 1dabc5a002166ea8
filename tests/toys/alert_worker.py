"""Shared parts of the alert worker's tests: an engine that answers at once, topics, and a running worker."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from deblendrt.engine.adapters.alerts.scenes import AlertDeblender, blank
from deblendrt.engine.adapters.alerts.settings import read_settings
from deblendrt.engine.adapters.alerts.worker import Worker
from perf.embedding import alert_samples


class Instant(AlertDeblender):
    """A stand-in for the engine that answers at once, and waits while `gate` is closed."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings, {})
        self.gate = threading.Event()
        self.gate.set()
        self.sizes: list[int] = []

    def answer(self, alerts: Any) -> list[dict[str, Any]]:
        self.gate.wait(20)
        self.sizes.append(len(alerts))
        return [blank(alert, "science", "no_cutout", None) for alert in alerts]


def settings_on(broker: Any, name: str) -> Any:
    """Return a function that makes settings with topics of the test's own."""
    name = name.replace("[", "-").replace("]", "")
    topics = {"topics": [f"{name}-in"], "out_topic": f"{name}-out", "dead_letter_topic": f"{name}-dead"}
    broker.create(*topics["topics"], topics["out_topic"], topics["dead_letter_topic"])
    return lambda **over: read_settings(brokers=broker.address, group=name, **topics | {
        "commit_interval": 0.1, "max_wait": 0.05, "http": "127.0.0.1:0", "consumer": broker.consumer} | over)


@contextlib.contextmanager
def running(worker: Worker) -> Iterator[Worker]:
    """Run a worker on a thread, stop it at the end, and raise its exception."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            worker.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(40)
        assert not thread.is_alive()
    if raised:
        raise raised[0]


def send(broker: Any, topic: str, payloads: list[bytes], **options: Any) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker.address, "message.max.bytes": 20_000_000})
    for payload in payloads:
        producer.produce(topic, payload, **options)
    assert producer.flush(20) == 0


def until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


def ztf(number: int, **fields: Any) -> bytes:
    payload: bytes = alert_samples.container(alert_samples.ZTF, alert_samples.ztf_alert(number, **fields))
    return payload
