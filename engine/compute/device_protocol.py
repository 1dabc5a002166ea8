"""The interface of a device that computes, as the solver and the measures use it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from deblendrt.engine.model.networks import Runtime


class ComputeDevice(Protocol):
    """A device, or a stream of it; `compute.cuda.streams` has both."""

    @property
    def runtime(self) -> Runtime:
        """The networks on the device, for arrays on the host."""
        ...

    def loaded(self, problem: Any) -> AbstractContextManager[Any]:
        """Lend buffers (`compute.cuda.buffers.Buffers`) that hold a problem.

        A device waits for a free stream. A stream belongs to its caller already and does not wait.
        """
        ...
