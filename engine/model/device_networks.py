"""The common part of the runtimes on a device, which take arrays on the device or, for tests, on the host."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import Device, DeviceArray
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.networks import Float32Array, GraphRuntime, checked_inputs, empty_outputs

HOST_ROWS = 256  # sources at a time, for arrays on the host


class DeviceGraph(Protocol):
    """A graph for a fixed number of rows, such as `deblendrt.cuda.network.network.Network`."""

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]

    def enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        """Queue the graph's work."""
        ...


class DeviceRuntime(GraphRuntime):
    """Base class of the runtimes on a device. Threads may share it; they wait for each other.

    Work is cut into tiles of a fixed number of rows. The last of several tiles ends with the last row and overlaps the
    tile before it. A single tile that is not full is padded.

    Parameters
    ----------
    bundle : Bundle
    device : Device

    Attributes
    ----------
    recordable : bool
        Whether a device can record the work of `enqueue`, after `prepare`.
    """

    recordable = False

    def __init__(self, bundle: Bundle, device: Device) -> None:
        self.bundle, self.device = bundle, device
        self._graphs: dict[tuple[str, int], DeviceGraph] = {}
        self._staging: dict[tuple[str, int], tuple[dict[str, DeviceArray], dict[str, DeviceArray]]] = {}
        self._host: dict[str, tuple[dict[str, DeviceArray], dict[str, DeviceArray]]] = {}
        self._lock = threading.RLock()

    def make_graph(self, name: str, n_row: int) -> DeviceGraph:
        """Return the graph for a number of rows."""
        raise NotImplementedError

    def tile(self, n_source: int) -> int:
        """Return the number of rows of a tile for a number of sources."""
        raise NotImplementedError

    def run(self, name: str, *inputs: NDArray[Any]) -> list[Float32Array]:
        """See `GraphRuntime`."""
        feeds = checked_inputs(name, self.bundle.sizes, inputs)
        n_source = len(inputs[0])
        results = empty_outputs(name, self.bundle.sizes, n_source)
        with self._lock:
            if name not in self._host:
                self.prepare(name, HOST_ROWS)
                self._host[name] = self._buffers(name, HOST_ROWS)
            on_device, outputs = self._host[name]
            for start in range(0, n_source, HOST_ROWS):
                stop = min(start + HOST_ROWS, n_source)
                for key, value in feeds.items():
                    rows = np.zeros(on_device[key].shape, np.float32)  # zeros are a valid latent
                    rows[: stop - start] = value[start:stop]
                    self.device.upload(rows, on_device[key])
                self.enqueue(name, HOST_ROWS, on_device, outputs)
                for result, output in zip(results, outputs.values(), strict=True):
                    result[start:stop] = self.device.download(output)[: stop - start]
        return results

    def prepare(self, name: str, n_source: int) -> None:
        """Make everything that `enqueue` needs for a number of sources, so that it can be recorded."""
        with self._lock:
            n_row = self.tile(n_source)
            if (name, n_row) not in self._graphs:
                self._graphs[name, n_row] = self.make_graph(name, n_row)
            if n_source < n_row and (name, n_row) not in self._staging:
                self._staging[name, n_row] = self._buffers(name, n_row)
                for array in self._staging[name, n_row][0].values():
                    self.device.clear(array)

    def clear(self) -> None:
        """Free the device's memory. Graphs and buffers are made anew when they are needed."""
        with self._lock:
            for made in (self._graphs, self._staging, self._host):
                made.clear()

    def enqueue(self, name: str, n_source: int, inputs: Mapping[str, DeviceArray],
                outputs: Mapping[str, DeviceArray]) -> None:
        """Queue a graph's work on the device's arrays.

        Parameters
        ----------
        name : str
        n_source : int
            The first `n_source` rows are computed.
        inputs, outputs : mapping of str to float32 (n_source or more, ...)
            Arrays by the names in `manifest.GRAPHS`.
        """
        if n_source == 0:
            return
        self.prepare(name, n_source)
        n_row = self.tile(n_source)
        graph = self._graphs[name, n_row]
        if n_source < n_row:
            staged_in, staged_out = self._staging[name, n_row]
            for key, array in inputs.items():
                self.device.copy(array.rows(0, n_source), staged_in[key].rows(0, n_source))
            graph.enqueue(staged_in, staged_out)
            for key, array in outputs.items():
                self.device.copy(staged_out[key].rows(0, n_source), array.rows(0, n_source))
            return
        for start in range(0, n_source, n_row):
            first = min(start, n_source - n_row)
            graph.enqueue(*({key: array.rows(first, first + n_row) for key, array in arrays.items()}
                            for arrays in (inputs, outputs)))

    def _buffers(self, name: str, n_row: int) -> tuple[dict[str, DeviceArray], dict[str, DeviceArray]]:
        graph = self._graphs[name, self.tile(n_row)]
        inputs, outputs = ({key: self.device.empty((n_row, *shape[1:]), np.float32) for key, shape in shapes.items()}
                           for shapes in (graph.inputs, graph.outputs))
        return inputs, outputs
