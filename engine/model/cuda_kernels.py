"""Runs a bundle's graphs with the engine's own CUDA kernels, `deblendrt.cuda.network.network`."""

from __future__ import annotations

from deblendrt.cuda.driver.device import Device, DeviceArray
from deblendrt.cuda.network.network import Network
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.device_networks import DeviceRuntime

FEWEST_ROWS, MOST_ROWS = 32, 4096


class CudaRuntime(DeviceRuntime):
    """The engine's own runtime on a device. It can be recorded. A source's bits depend neither on other sources nor on
    the tile.

    Parameters
    ----------
    bundle : Bundle
    device : Device
    """

    recordable = True

    def __init__(self, bundle: Bundle, device: Device) -> None:
        super().__init__(bundle, device)
        self._arena: DeviceArray | None = None

    def tile(self, n_source: int) -> int:
        """See `DeviceRuntime`. Tiles are powers of two."""
        return min(max(FEWEST_ROWS, 1 << (n_source - 1).bit_length()), MOST_ROWS)

    def clear(self) -> None:
        """See `DeviceRuntime`."""
        super().clear()
        self._arena = None

    def make_graph(self, name: str, n_row: int) -> Network:
        """See `DeviceRuntime`. The graphs share an arena of memory, because all work is queued in one order."""
        network = Network(self.device, self.bundle.read(f"{name}.onnx"), n_row, arena=self._arena)
        self._arena = network.arena
        return network
