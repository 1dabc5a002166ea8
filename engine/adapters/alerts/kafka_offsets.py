"""Which offsets of a Kafka partition may be committed: those before the first message that is not answered yet.

Answers come out of order; a commit says that everything before it is done. So a message that was read and not answered
when the worker dies is read again by the next.
"""

from __future__ import annotations

import collections
import threading

Partition = tuple[str, int]  # topic, number


class KafkaOffsets:
    """Messages under way, by partition. Thread-safe."""

    def __init__(self) -> None:
        self._pending: dict[Partition, collections.OrderedDict[int, bool]] = {}
        self._next: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}
        self._lock = threading.Lock()

    def begin(self, partition: Partition, offset: int) -> None:
        """A message was read."""
        with self._lock:
            self._pending.setdefault(partition, collections.OrderedDict())[offset] = False

    def done(self, partition: Partition, offset: int) -> None:
        """The answer to a message was acknowledged; of a partition that was given up, nothing happens."""
        with self._lock:
            pending = self._pending.get(partition)
            if pending is None or offset not in pending:
                return
            pending[offset] = True
            while pending and pending[first := next(iter(pending))]:
                del pending[first]
                self._next[partition] = first + 1

    def to_commit(self) -> dict[Partition, int]:
        """Next offsets to read, of the partitions where they have moved since the last `committed`."""
        with self._lock:
            return {p: n for p, n in self._next.items() if self._committed.get(p) != n}

    def committed(self, offsets: dict[Partition, int]) -> None:
        """The broker has these."""
        with self._lock:
            self._committed.update(offsets)

    def give_up(self, partitions: list[Partition]) -> None:
        """Forget partitions that belong to another worker now."""
        with self._lock:
            for partition in partitions:
                for table in (self._pending, self._next, self._committed):
                    table.pop(partition, None)

    def n_pending(self, partitions: list[Partition] | None = None) -> int:
        """Messages read and not answered, of some partitions or of all."""
        with self._lock:
            chosen = self._pending if partitions is None else partitions
            return sum(sum(not done for done in self._pending.get(p, {}).values()) for p in chosen)
