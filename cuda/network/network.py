"""Runs a bundle's ONNX graphs on a `Device`, in float32 and without a library. Rows are independent of each other.

The module `lowered_graph` reads a graph, and `plan` determines the launches and the places of the numbers. The kernels
are ``network_*.cu``. `deblendrt.engine.compute.reference.networks` runs the same plan with NumPy.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from deblendrt.cuda.driver.device import Device, DeviceArray, DeviceError
from deblendrt.cuda.kernels.networks.launch import (
    network_convolution,
    network_map,
    network_matmul,
    network_softmax,
    network_sum,
)
from deblendrt.cuda.network.plan import ARENA, CONSTANTS, INPUTS, N_INPUT, N_OUTPUT, OUTPUTS, make_plan
from deblendrt.cuda.network.program import Program
from deblendrt.cuda.network.steps import Matmul, Reduce
from deblendrt.cuda.network.views import View


class Network:
    """An ONNX graph on a device, for a fixed number of sources.

    Parameters
    ----------
    device : Device
    content : bytes
        An ONNX file, which the package `onnx` reads.
    n_source : int
        Rows of every input and output.
    arena : float32, optional
        The arena of another network, which is used if it is large enough. The networks must run one after another.

    Attributes
    ----------
    plan : Plan
    inputs, outputs : dict of str to tuple of int
        Shapes, float32.
    arena : float32
        Memory of intermediate results. Its content does not matter between runs.

    Raises
    ------
    DeviceError
        The content is no graph, an operator is not implemented, or `onnx` is missing.
    OutOfDeviceMemory
    """

    def __init__(self, device: Device, content: bytes, n_source: int, *, arena: DeviceArray | None = None) -> None:
        self.device = device
        self.plan = make_plan(content, n_source)
        self.inputs, self.outputs = self.plan.inputs, self.plan.outputs
        programs = [step.encoded(self.plan.places.__getitem__) for step in self.plan.steps if isinstance(step, Program)]
        starts = np.cumsum([0, *(len(program) for program in programs)])
        words = device.upload(np.concatenate([*programs, np.zeros(1, np.int32)]))
        self._programs = [words.rows(int(a), int(b)) for a, b in itertools.pairwise(starts)]
        self._constants = device.upload(np.concatenate([self.plan.constants, np.zeros(1, np.float32)]))
        size = max(self.plan.arena_size, 1)
        self.arena = arena if arena is not None and arena.size >= size else device.empty(size, np.float32)

    def enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        """Queue the graph's work. It allocates nothing, so it can be recorded.

        All calls use the same arena, so the work of a second call must follow that of the first.

        Parameters
        ----------
        inputs, outputs : mapping of str to float32
            Arrays of the shapes in `self.inputs` and `self.outputs`.

        Raises
        ------
        DeviceError
            A name, shape or dtype differs from the graph's.
        """
        spaces: list[DeviceArray | None] = [None] * (2 + N_INPUT + N_OUTPUT)
        spaces[ARENA], spaces[CONSTANTS] = self.arena, self._constants
        for first, what, arrays, shapes in ((INPUTS, "inputs", inputs, self.inputs),
                                            (OUTPUTS, "outputs", outputs, self.outputs)):
            if set(arrays) != set(shapes):
                raise DeviceError(f"the graph's {what} are {sorted(shapes)}, got {sorted(arrays)}")
            for i, (name, shape) in enumerate(shapes.items()):
                array = arrays[name]
                if array.shape != shape or array.dtype != np.float32:
                    raise DeviceError(f"{name}: expected float32 {shape}, got {array.dtype} {array.shape}")
                spaces[first + i] = array
        programs = iter(self._programs)

        def at(view: View) -> DeviceArray:
            space, start = self.plan.places[view.buffer]
            whole = spaces[space]
            assert whole is not None  # a plan refers to the graph's own inputs and outputs
            return DeviceArray(whole.pointer + 4 * (start + view.offset), view.shape, np.float32, whole.owner)

        for step in self.plan.steps:
            if isinstance(step, Program):
                network_map(self.device, next(programs), step.size, step.n_register, spaces)
            elif isinstance(step, Matmul):
                network_matmul(self.device, step.sizes, at(step.a), step.a.strides, at(step.w), step.w.strides,
                               at(step.bias) if step.bias else None, at(step.out), step.out.strides)
            elif isinstance(step, Reduce):
                (network_sum if step.function == "sum" else network_softmax)(self.device, at(step.x), at(step.out))
            else:
                network_convolution(self.device, at(step.x), at(step.kernel), at(step.bias) if step.bias else None,
                                    size=step.size, stride=step.stride, pad=step.pad, out=at(step.out))

    def cost(self) -> tuple[float, float]:
        """Bytes moved and floating point operations of one run."""
        return self.plan.cost()
