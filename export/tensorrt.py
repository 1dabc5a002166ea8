"""Do the exported graphs parse and build under TensorRT? Runs without a GPU.

The `tensorrt-rtx` wheel has the parser and the builder of TensorRT and both work on a machine with only a CPU, so every
export can be checked where it is made. Plans are never shipped: they are built on the user's machine.
"""

from __future__ import annotations

from deblendrt.engine.model import tensorrt
from deblendrt.engine.model.tensorrt import TensorRTError

__all__ = ["TensorRTError", "TensorRTUnavailable", "check_graph", "unavailable"]

PACKAGE = "tensorrt_rtx"


class TensorRTUnavailable(RuntimeError):
    """The check cannot run here; the message says why and what to install."""


def unavailable() -> str | None:
    """Why the check cannot run here, or None if it can."""
    return tensorrt.why_unavailable(PACKAGE)


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
    return len(tensorrt.build_plan(content, PACKAGE, (1, max_sources // 4, max_sources)))
