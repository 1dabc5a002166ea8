"""The worker that deblends an alert stream, from Kafka topics to a Kafka topic.

A worker has two threads. The first talks to Kafka: it reads and parses messages, sends messages that are no alerts to
the dead-letter topic, puts alerts into a bounded queue and commits offsets. The second takes batches of alerts from the
queue, deblends them and produces one record per alert. An offset is committed after the broker has acknowledged the
answers to all messages before it. A worker that dies therefore loses nothing: its successor answers the uncommitted
messages again, with the same keys and the same bytes. A worker with a full queue pauses its partitions. If the broker
is unreachable, the worker waits.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

from deblendrt.engine.adapters.alerts.kafka_offsets import KafkaOffsets, PartitionKey
from deblendrt.engine.adapters.alerts.metrics import Metrics, serve
from deblendrt.engine.adapters.alerts.packets import parse_alert
from deblendrt.engine.adapters.alerts.queue import AlertQueue, WaitingAlert
from deblendrt.engine.adapters.alerts.scenes import AlertDeblender, RecordWriter
from deblendrt.engine.adapters.alerts.schema_registry import read_schemas
from deblendrt.engine.adapters.alerts.settings import AlertSettings, kafka_properties
from deblendrt.engine.adapters.alerts.sky_catalog import SkyCatalog

MAX_DEAD_LETTER_BYTES = 8 << 20  # only the digest of a longer message is sent; the message stays in its own topic
POLL = 0.05  # s
PAUSE_SECONDS = 2.0  # partitions are paused when the queue has been full for this time
COMMIT_SECONDS = 5.0  # time for the last commit
READ_AT_ONCE = 64  # messages read in one turn

CONSUMER = {"enable.auto.commit": False, "enable.auto.offset.store": False, "auto.offset.reset": "earliest",
            "queued.max.messages.kbytes": 16384}  # librdkafka reads ahead
# An answer waits for the broker without a limit of time. The queue of alerts is bounded instead.
PRODUCER = {"enable.idempotence": True, "message.timeout.ms": 0, "linger.ms": 5,
            "message.max.bytes": MAX_DEAD_LETTER_BYTES + (1 << 20), "compression.type": "lz4"}

log = logging.getLogger("deblendrt.alerts")


class Worker:
    """A worker of the consumer group.

    Parameters
    ----------
    settings : AlertSettings
    deblender : AlertDeblender, optional
        Deblender of the alerts. By default the models that the settings name are loaded.
    """

    def __init__(self, settings: AlertSettings, deblender: AlertDeblender | None = None) -> None:
        try:
            import confluent_kafka
        except ImportError as error:
            raise ImportError('alert streams need confluent-kafka: pip install "deblendrt[alerts]"') from error
        self.settings = settings
        self.metrics = Metrics()
        self.offsets = KafkaOffsets()
        self.queue = AlertQueue(settings.max_batch, settings.max_wait)
        self.writer = RecordWriter(settings.out_schema_id)
        self.schemas = read_schemas(settings)
        self.deblender = load_deblender(settings) if deblender is None else deblender
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        self._kafka = confluent_kafka
        self._consumer: Any = confluent_kafka.Consumer(kafka_properties(settings, {
            **CONSUMER, "group.id": settings.group, "error_cb": self._client_error, "on_commit": self._on_commit,
            **settings.consumer}))
        self._producer: Any = confluent_kafka.Producer(kafka_properties(settings, {
            **PRODUCER, "error_cb": self._client_error, **settings.producer}))
        self._solver = threading.Thread(target=self._solve, name="deblend", daemon=True)
        self._assigned: set[PartitionKey] = set()
        self._full = 0.0  # time on the monotonic clock at which the queue became full; 0: it is not full
        self._paused = False
        self._beat = self._moved = time.monotonic()
        self._last_commit = 0.0
        self._committing: dict[PartitionKey, int] = {}

    def run(self) -> None:
        """Work until `stop` is called, then answer the messages that were read and commit their offsets.

        Raises
        ------
        Exception
            The error that ended the work. Offsets of unanswered messages are not committed.
        """
        settings = self.settings
        server = serve(settings.http, self.metrics, self.health) if settings.http else None
        try:
            self._solver.start()
            self._consumer.subscribe(settings.topics, on_assign=self._on_assign, on_revoke=self._on_revoke,
                                     on_lost=self._on_lost)
            log.info("reading %s from %s", ", ".join(settings.topics), settings.brokers)
            while not self.stopping.is_set():
                self._turn()
            self._finish()
        finally:
            self.queue.close()
            self._consumer.close()
            if server is not None:
                server.shutdown()
                server.server_close()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Ask the worker to finish. Any thread or signal handler may call this."""
        self.stopping.set()

    def health(self) -> tuple[bool, bool, dict[str, Any]]:
        """Return whether the worker makes progress, whether it has partitions, and a report; see `metrics.serve`."""
        now, pending = time.monotonic(), self.offsets.n_pending()
        quiet, beat = now - self._moved, now - self._beat
        healthy = self.error is None and beat < self.settings.stall_seconds and (
            not pending or quiet < self.settings.stall_seconds)
        report = {"healthy": healthy, "partitions": len(self._assigned), "pending": pending,
                  "queue": self.queue.size()[0], "paused": self._full > 0, "stopping": self.stopping.is_set(),
                  "seconds_since_answer": round(quiet, 1), "seconds_since_poll": round(beat, 1)}
        return healthy, bool(self._assigned), report

    def _turn(self) -> None:
        """Do one turn of the thread that talks to Kafka."""
        self._beat = time.monotonic()
        if self.error is not None:
            self.stop()
            return
        self._throttle()
        if not self._full or self._paused:
            first = self._consumer.poll(POLL)
            room = max(0, min(READ_AT_ONCE, self.settings.max_queue - self.offsets.n_pending()) - 1)
            for message in [] if first is None else [first, *(self._consumer.consume(room, 0) if room else ())]:
                self._read(message)
        self._producer.poll(POLL if self._full and not self._paused else 0)
        if time.monotonic() - self._last_commit > self.settings.commit_interval:
            self._commit()

    def _read(self, message: Any) -> None:
        """Put a message into the queue as a waiting alert, or send it to the dead-letter topic."""
        error = message.error()
        if error is not None:
            if error.fatal():
                raise self._kafka.KafkaException(error)
            if error.code() != self._kafka.KafkaError._PARTITION_EOF:
                self.metrics.client_errors.labels(error.name()).inc()
                log.warning("reading: %s", error.str())
            return
        partition, offset, payload = (message.topic(), message.partition()), message.offset(), message.value()
        kind, stamp = message.timestamp()
        sent = stamp / 1000 if kind != self._kafka.TIMESTAMP_NOT_AVAILABLE else 0.0
        arrival = time.monotonic()
        self._moved = arrival if not self.offsets.n_pending() else self._moved
        self.offsets.begin(partition, offset)
        self.metrics.consumed.inc()
        try:
            alert = parse_alert(payload or b"", self.schemas, framing=self.settings.framing,
                                max_bytes=self.settings.max_message_bytes)
        except ValueError as error:
            log.warning("%s/%d offset %d: %s", *partition, offset, error)
            self._bury(message, str(error))
            return
        self.metrics.parse.observe(time.monotonic() - arrival)
        self.queue.put(WaitingAlert(alert, partition, offset, len(payload), arrival, sent))

    def _bury(self, message: Any, reason: str, whole: bool = True) -> None:
        """Send a message unchanged to the dead-letter topic, with the reason in its headers."""
        payload = message.value() or b""
        whole = whole and len(payload) <= MAX_DEAD_LETTER_BYTES
        headers = [("reason", reason[:1000].encode()), ("topic", message.topic().encode()),
                   ("partition", str(message.partition()).encode()), ("offset", str(message.offset()).encode()),
                   ("sha256", hashlib.sha256(payload).hexdigest().encode()), ("whole", b"true" if whole else b"false"),
                   *(message.headers() or [])]
        partition, offset = (message.topic(), message.partition()), message.offset()

        def delivered(error: Any, _: Any) -> None:
            if error is None:
                self._moved = time.monotonic()
                self.metrics.dead_letters.inc()
                self.offsets.done(partition, offset)
            elif whole and error.code() == self._kafka.KafkaError.MSG_SIZE_TOO_LARGE:
                self._bury(message, reason, whole=False)
            else:
                self._fail(self._kafka.KafkaException(error))

        key = message.key() or f"{partition[0]}/{partition[1]}/{offset}".encode()
        self._produce(self.settings.dead_letter_topic, payload if whole else None, key, headers, delivered)

    def _solve(self) -> None:
        """Deblend batches until the queue is closed; this is the second thread."""
        try:
            while batch := self.queue.take():
                began = time.monotonic()
                before = self.deblender.n_engine_error
                records = self.deblender.answer([waiting.alert for waiting in batch])
                self.metrics.solve.observe(time.monotonic() - began)
                self.metrics.batch.observe(len(batch))
                self.metrics.engine_errors.inc(self.deblender.n_engine_error - before)
                for waiting, record in zip(batch, records, strict=True):
                    self._answer(waiting, record)
        except BaseException as error:
            self._fail(error)

    def _answer(self, waiting: WaitingAlert, record: dict[str, Any]) -> None:
        def delivered(error: Any, _: Any) -> None:
            if error is not None:
                self._fail(self._kafka.KafkaException(error))
                return
            self._moved = now = time.monotonic()
            self.metrics.results.labels(record["status"]).inc()
            self.metrics.sources.inc(len(record["sources"]))
            self.metrics.stay.observe(now - waiting.arrival)
            if waiting.sent:
                self.metrics.latency.observe(max(0.0, time.time() - waiting.sent))
            self.offsets.done(waiting.partition, waiting.offset)

        source = f"{waiting.partition[0]}/{waiting.partition[1]}/{waiting.offset}".encode()
        self._produce(self.settings.out_topic, self.writer.write(record), waiting.alert.key.encode(),
                      [("status", record["status"].encode()), ("source", source)], delivered)

    def _produce(self, topic: str, value: bytes | None, key: bytes, headers: list[Any], delivered: Any) -> None:
        while self.error is None:
            try:
                self._producer.produce(topic, value, key, headers=headers, on_delivery=delivered)
                return
            except BufferError:  # the broker is behind: wait for it
                self._producer.poll(POLL)
            except self._kafka.KafkaException as error:
                delivered(error.args[0], None)
                return

    def _throttle(self) -> None:
        """Stop reading when the queue is full, and go on when half of it is answered.

        Kafka's client must still be polled, so the partitions are paused after a while. They are not paused at
        once, because librdkafka then discards the messages that it has read ahead.
        """
        n, n_byte = self.queue.size()
        pending = self.offsets.n_pending()
        fill = max(pending / self.settings.max_queue, n_byte / self.settings.max_queue_bytes)
        if fill >= 1 and not self._full:
            self._full = time.monotonic()
        elif fill <= 0.5:
            self._full = 0.0
        pause = self._full > 0 and time.monotonic() - self._full > PAUSE_SECONDS
        if self._assigned and pause != self._paused:
            partitions = [self._kafka.TopicPartition(*p) for p in self._assigned]
            (self._consumer.pause if pause else self._consumer.resume)(partitions)
            self._paused = pause
        for gauge, value in ((self.metrics.queue, n), (self.metrics.queue_bytes, n_byte),
                             (self.metrics.pending, pending), (self.metrics.paused, self._full > 0),
                             (self.metrics.partitions, len(self._assigned))):
            gauge.set(value)

    def _commit(self) -> None:
        """Ask for a commit if none is under way; librdkafka calls `_on_commit` with the outcome."""
        self._last_commit = time.monotonic()
        if self._committing or not (offsets := self.offsets.to_commit()):
            return
        self._committing = offsets
        try:
            self._consumer.commit(offsets=[self._kafka.TopicPartition(*p, n) for p, n in offsets.items()])
        except self._kafka.KafkaException as error:
            self._on_commit(error.args[0], [])

    def _on_commit(self, error: Any, partitions: list[Any]) -> None:
        offsets, self._committing = self._committing, {}
        good = {(p.topic, p.partition) for p in partitions if error is None and p.error is None}
        if good:
            self.metrics.commits.inc()
        if error is not None or len(good) < len(partitions):
            self.metrics.commit_errors.inc()
            log.warning("commit: %s", error or [p.error for p in partitions])
        self.offsets.committed({p: n for p, n in offsets.items() if p in good})

    def _finish(self) -> None:
        """Answer the messages that were read, as long as there is time, and commit their offsets."""
        if self._assigned:
            self._consumer.pause([self._kafka.TopicPartition(*p) for p in self._assigned])
        self.queue.close()
        log.info("stopping: %d alerts to finish", self.offsets.n_pending())
        deadline = time.monotonic() + self.settings.shutdown_seconds
        while self.offsets.n_pending() and self.error is None and time.monotonic() < deadline:
            self._serve()
        deadline = time.monotonic() + COMMIT_SECONDS
        while (self._committing or self.offsets.to_commit()) and time.monotonic() < deadline:
            self._commit()
            self._serve()
        left = self.offsets.n_pending()
        log.info("stopped; %s", f"{left} messages were not answered and will be read again" if left else "all answered")

    def _serve(self) -> None:
        """Let the clients call their callbacks while the partitions are paused."""
        self._beat = time.monotonic()
        self._producer.poll(POLL)
        self._consumer.poll(0)

    def _on_assign(self, consumer: Any, partitions: list[Any]) -> None:
        if self._paused:  # `_throttle` decides again, for all partitions
            consumer.resume([self._kafka.TopicPartition(*p) for p in self._assigned])
            self._paused = False
        self._assigned |= {(p.topic, p.partition) for p in partitions}
        log.info("assigned: %s", ", ".join(f"{p.topic}/{p.partition}" for p in partitions) or "nothing")

    def _on_revoke(self, consumer: Any, partitions: list[Any]) -> None:
        """Commit the answered messages of partitions that another worker takes over. It reads the other messages."""
        if not self.stopping.is_set():  # otherwise `_finish` has committed, or has waited for the broker in vain
            self._producer.poll(0)
            revoked = {(p.topic, p.partition) for p in partitions}
            offsets = [self._kafka.TopicPartition(*p, n) for p, n in self.offsets.to_commit().items() if p in revoked]
            try:
                if offsets:
                    consumer.commit(offsets=offsets, asynchronous=False)
            except self._kafka.KafkaException as error:
                log.warning("commit: %s", error)
        self._on_lost(consumer, partitions)

    def _on_lost(self, consumer: Any, partitions: list[Any]) -> None:
        """Forget the messages of partitions that belong to another worker, which answers and commits them."""
        lost = [(p.topic, p.partition) for p in partitions]
        self.queue.drop(lost)
        self.offsets.give_up(lost)
        self._assigned -= set(lost)

    def _client_error(self, error: Any) -> None:
        self.metrics.client_errors.labels(error.name()).inc()
        log.warning("kafka: %s", error.str())
        if error.fatal():
            self._fail(self._kafka.KafkaException(error))

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.stop()


def load_deblender(settings: AlertSettings) -> AlertDeblender:
    """Load the models and the catalogue that the settings name, and warm the models up."""
    from deblendrt.engine.deblender import Deblender

    catalog = SkyCatalog.read(settings.catalog) if settings.catalog else None
    deblenders = {survey: Deblender.load(model, device=settings.device) for survey, model in settings.models.items()}
    for deblender in deblenders.values():
        deblender.warmup()
    return AlertDeblender(settings, deblenders, catalog)


def run_worker(settings: AlertSettings) -> None:
    """Run a worker until SIGTERM or SIGINT. A second signal ends it at once, without a commit.

    Raises
    ------
    ValueError, OSError, ImportError
        The settings are wrong, a file or package is missing, or a Kafka error ended the work.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    worker = Worker(settings)

    def stop(number: int, frame: FrameType | None) -> None:
        worker.stop()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        worker.run()
    except worker._kafka.KafkaException as error:
        raise OSError(f"Kafka: {error}") from error
