"""The queue of alerts that wait for the engine, which takes them in batches."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time

from deblendrt.engine.adapters.alerts.kafka_offsets import PartitionKey
from deblendrt.engine.adapters.alerts.packets import Alert


@dataclasses.dataclass(frozen=True)
class WaitingAlert:
    """An alert, and the Kafka message that brought it.

    Attributes
    ----------
    alert : Alert
    partition : PartitionKey
    offset : int
    n_byte : int
        Length of the message.
    arrival : float [s]
        Time of reading on the monotonic clock.
    sent : float [s]
        The message's timestamp, Unix time; 0 if it has none.
    """

    alert: Alert
    partition: PartitionKey
    offset: int
    n_byte: int
    arrival: float
    sent: float


class AlertQueue:
    """The queue between the thread that reads and the thread that deblends.

    Parameters
    ----------
    max_batch : int
        Largest number of alerts in a batch.
    max_wait : float [s]
        Longest time that an alert waits for others to join its batch.
    """

    def __init__(self, max_batch: int, max_wait: float) -> None:
        self.max_batch, self.max_wait = max_batch, max_wait
        self._waiting: collections.deque[WaitingAlert] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._n_byte = 0

    def put(self, waiting: WaitingAlert) -> None:
        """Add an alert."""
        with self._changed:
            self._waiting.append(waiting)
            self._n_byte += waiting.n_byte
            self._changed.notify()

    def take(self) -> list[WaitingAlert]:
        """Wait for the next batch and return it. If the queue is closed and empty, return an empty list.

        A batch is taken when it is full or its first alert has waited for `max_wait`.
        """
        with self._changed:
            while not self._closed and len(self._waiting) < self.max_batch:
                left = self._waiting[0].arrival + self.max_wait - time.monotonic() if self._waiting else None
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            batch = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
            self._n_byte -= sum(waiting.n_byte for waiting in batch)
            return batch

    def drop(self, partitions: list[PartitionKey]) -> None:
        """Remove the alerts of these partitions."""
        with self._changed:
            self._waiting = collections.deque(w for w in self._waiting if w.partition not in partitions)
            self._n_byte = sum(waiting.n_byte for waiting in self._waiting)

    def close(self) -> None:
        """Close the queue: no alerts follow, and the waiting alerts are handed out without delay."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def size(self) -> tuple[int, int]:
        """Return the number of waiting alerts and the bytes of their messages."""
        with self._changed:
            return len(self._waiting), self._n_byte
