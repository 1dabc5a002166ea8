"""Small ONNX graphs, and graphs run on the host through the shim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shim import ShimDevice

from deblendrt.cuda.network.network import Network

Array = np.ndarray[Any, Any]
Make = Callable[..., str]


def graph(build: Callable[[Make], None], inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]
          ) -> bytes:
    """An ONNX graph; `build` calls make(operator, *inputs, to=..., **attributes), arrays become constants."""
    onnx = pytest.importorskip("onnx")
    nodes: list[Any] = []
    constants: list[Any] = []

    def make(op: str, *operands: Any, to: str = "", **attributes: Any) -> str:
        names = []
        for operand in operands:
            if not isinstance(operand, str):
                constants.append(onnx.numpy_helper.from_array(np.asarray(operand), f"c{len(constants)}"))
            names.append(operand if isinstance(operand, str) else constants[-1].name)
        nodes.append(onnx.helper.make_node(op, names, [to or f"t{len(nodes)}"], **attributes))
        return to or f"t{len(nodes) - 1}"

    build(make)
    infos = [[onnx.helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, ["N", *shape])
              for key, shape in shapes.items()] for shapes in (inputs, outputs)]
    main = onnx.helper.make_graph(nodes, "main", *infos, constants)
    content: bytes = onnx.helper.make_model(
        main, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    return content


def numbers(*values: int) -> Array:
    return np.array(values, np.int64)


def run(content: bytes, inputs: dict[str, Array], *, reverse: bool = False) -> dict[str, Array]:
    """Outputs of a graph for as many rows as the inputs have."""
    device = ShimDevice(reverse=reverse)
    network = Network(device, content, len(next(iter(inputs.values()))))
    outputs = {key: device.empty(shape, np.float32) for key, shape in network.outputs.items()}
    network.enqueue({key: device.upload(value) for key, value in inputs.items()}, outputs)
    return {key: device.download(value) for key, value in outputs.items()}
