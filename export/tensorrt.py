"""Do the exported graphs parse and build under TensorRT? Runs without a GPU.

The `tensorrt-rtx` wheel has the parser and the builder of TensorRT and both work on a machine with only a CPU, so every
export can be checked where it is made. Plans are never shipped: they are built on the user's machine.
"""

from __future__ import annotations

import importlib.util
from typing import Any

INSTALL = "pip install tensorrt-rtx"


class TensorRTUnavailable(RuntimeError):
    """The check cannot run here; the message says why and what to install."""


class TensorRTError(RuntimeError):
    """A graph does not parse or build."""


def unavailable() -> str | None:
    """Why the check cannot run here, or None if it can."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return f"tensorrt_rtx is not installed ({INSTALL})"
    try:
        import tensorrt_rtx  # noqa: F401
    except (ImportError, OSError) as error:  # a wheel without its libraries
        return f"tensorrt_rtx is installed but does not load: {error}"
    return None


def check_graph(content: bytes, *, max_sources: int = 4096) -> int:
    """Parse and build one graph.

    Parameters
    ----------
    content : bytes
        An ONNX model whose inputs have the number of sources as their only dynamic axis, the first.
    max_sources : int
        Largest number of sources of the optimisation profile.

    Returns
    -------
    int
        Size of the built engine in bytes.

    Raises
    ------
    TensorRTUnavailable
    TensorRTError
        With the parser's or the builder's messages.
    """
    if reason := unavailable():
        raise TensorRTUnavailable(reason)
    import tensorrt_rtx as trt

    messages: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                messages.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(content):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise TensorRTError("TensorRT does not parse the graph: " + "; ".join(errors or messages))
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        value = network.get_input(i)
        fixed = tuple(value.shape)[1:]
        profile.set_shape(value.name, (1, *fixed), (max_sources // 4, *fixed), (max_sources, *fixed))
    settings = builder.create_builder_config()
    settings.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise TensorRTError("TensorRT does not build the graph: " + "; ".join(messages))
    return int(plan.nbytes)
