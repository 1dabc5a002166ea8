"""Alerts that wait for the engine, and how they become micro-batches."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time

from deblendrt.engine.adapters.alerts.kafka_offsets import Partition
from deblendrt.engine.adapters.alerts.packets import Alert


@dataclasses.dataclass(frozen=True)
class WaitingAlert:
    """An alert, and the message that it came in.

    Attributes
    ----------
    alert : Alert
    partition : Partition
    offset : int
    n_byte : int
    arrival : float [s]
        On the monotonic clock.
    sent : float [s]
        The message's timestamp, Unix time; 0 if it has none.
    """

    alert: Alert
    partition: Partition
    offset: int
    n_byte: int
    arrival: float
    sent: float


class AlertQueue:
    """A bounded wait: between the thread that reads and the one that deblends.

    Parameters
    ----------
    max_batch : int
    max_wait : float [s]
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
        """The next batch: when it is full or its first alert has waited long enough; empty once closed and drained."""
        with self._changed:
            while not self._closed and len(self._waiting) < self.max_batch:
                left = self._waiting[0].arrival + self.max_wait - time.monotonic() if self._waiting else None
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            batch = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
            self._n_byte -= sum(waiting.n_byte for waiting in batch)
            return batch

    def drop(self, partitions: list[Partition]) -> None:
        """Forget what waits of these partitions."""
        with self._changed:
            self._waiting = collections.deque(w for w in self._waiting if w.partition not in partitions)
            self._n_byte = sum(waiting.n_byte for waiting in self._waiting)

    def close(self) -> None:
        """No more will come: what waits is handed out without further delay."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def size(self) -> tuple[int, int]:
        """Alerts that wait, and the bytes of their messages."""
        with self._changed:
            return len(self._waiting), self._n_byte
