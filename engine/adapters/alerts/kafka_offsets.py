"""The offsets of Kafka partitions that may be committed.

A committed offset means that all messages before it are answered, but answers come out of order. The committed offset
is therefore the offset of the first unanswered message. Messages that were not answered when a worker dies are read
again by the next worker.
"""

from __future__ import annotations

import collections
import threading

PartitionKey = tuple[str, int]  # topic, number


class KafkaOffsets:
    """The messages that were read and not yet answered, by partition. Thread-safe."""

    def __init__(self) -> None:
        self._pending: dict[PartitionKey, collections.OrderedDict[int, bool]] = {}
        self._next: dict[PartitionKey, int] = {}
        self._committed: dict[PartitionKey, int] = {}
        self._lock = threading.Lock()

    def begin(self, partition: PartitionKey, offset: int) -> None:
        """Record that a message was read."""
        with self._lock:
            self._pending.setdefault(partition, collections.OrderedDict())[offset] = False

    def done(self, partition: PartitionKey, offset: int) -> None:
        """Record that the answer to a message was acknowledged. Partitions that were given up are ignored."""
        with self._lock:
            pending = self._pending.get(partition)
            if pending is None or offset not in pending:
                return
            pending[offset] = True
            while pending and pending[first := next(iter(pending))]:
                del pending[first]
                self._next[partition] = first + 1

    def to_commit(self) -> dict[PartitionKey, int]:
        """Return the offset to commit for every partition where it has moved since the last commit."""
        with self._lock:
            return {p: n for p, n in self._next.items() if self._committed.get(p) != n}

    def committed(self, offsets: dict[PartitionKey, int]) -> None:
        """Record the offsets that the broker has accepted."""
        with self._lock:
            self._committed.update(offsets)

    def give_up(self, partitions: list[PartitionKey]) -> None:
        """Forget partitions that now belong to another worker."""
        with self._lock:
            for partition in partitions:
                for table in (self._pending, self._next, self._committed):
                    table.pop(partition, None)

    def n_pending(self, partitions: list[PartitionKey] | None = None) -> int:
        """Return the number of messages that were read and not answered, in some partitions or in all."""
        with self._lock:
            chosen = self._pending if partitions is None else partitions
            return sum(sum(not done for done in self._pending.get(p, {}).values()) for p in chosen)
