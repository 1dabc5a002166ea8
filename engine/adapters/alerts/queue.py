"""Alerts that wait for the engine, and how they become micro-batches."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time

from deblendrt.engine.adapters.alerts.offsets import Partition
from deblendrt.engine.adapters.alerts.packets import Alert


@dataclasses.dataclass(frozen=True)
class Job:
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


class Queue:
    """A bounded wait: between the thread that reads and the one that deblends.

    Parameters
    ----------
    max_batch : int
    max_wait : float [s]
    """

    def __init__(self, max_batch: int, max_wait: float) -> None:
        self.max_batch, self.max_wait = max_batch, max_wait
        self._jobs: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._n_byte = 0

    def put(self, job: Job) -> None:
        """Add an alert."""
        with self._changed:
            self._jobs.append(job)
            self._n_byte += job.n_byte
            self._changed.notify()

    def take(self) -> list[Job]:
        """The next batch: when it is full or its first alert has waited long enough; empty once closed and drained."""
        with self._changed:
            while not self._closed and len(self._jobs) < self.max_batch:
                left = self._jobs[0].arrival + self.max_wait - time.monotonic() if self._jobs else None
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            batch = [self._jobs.popleft() for _ in range(min(self.max_batch, len(self._jobs)))]
            self._n_byte -= sum(job.n_byte for job in batch)
            return batch

    def drop(self, partitions: list[Partition]) -> None:
        """Forget what waits of these partitions."""
        with self._changed:
            self._jobs = collections.deque(job for job in self._jobs if job.partition not in partitions)
            self._n_byte = sum(job.n_byte for job in self._jobs)

    def close(self) -> None:
        """No more will come: what waits is handed out without further delay."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def size(self) -> tuple[int, int]:
        """Alerts that wait, and the bytes of their messages."""
        with self._changed:
            return len(self._jobs), self._n_byte
