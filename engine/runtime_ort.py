"""Runs a bundle's graphs with ONNX Runtime on the CPU."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from deblendrt.engine.bundle import Bundle
from deblendrt.engine.manifest import GRAPHS, BundleError
from deblendrt.engine.runtime import TILE, Float32Array, GraphRuntime, checked_inputs, empty_outputs


class OrtRuntime(GraphRuntime):
    """The `Runtime` of the CPU. Safe to share between threads.

    A session is made on first use of its graph, single-threaded inside (callers parallelise over blends), and always
    sees `TILE` rows.

    Parameters
    ----------
    bundle : Bundle

    Raises
    ------
    BundleError
        The bundle asks for a newer ONNX Runtime.
    """

    def __init__(self, bundle: Bundle) -> None:
        if _version(onnxruntime.__version__) < _version(bundle.minimum_onnxruntime):
            raise BundleError(f"bundle {bundle.path} needs onnxruntime >= {bundle.minimum_onnxruntime}, this is "
                              f"{onnxruntime.__version__}: pip install --upgrade onnxruntime")
        self.bundle = bundle
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[OrtRuntime], tuple[Bundle]]:
        return OrtRuntime, (self.bundle,)  # sessions and locks do not pickle; a spawned worker makes its own

    def run(self, name: str, *inputs: NDArray[Any]) -> list[Float32Array]:
        """See `GraphRuntime`; tile by tile."""
        graph, n_source = GRAPHS[name], len(inputs[0])
        feeds = checked_inputs(name, self.bundle.sizes, inputs)
        outputs = empty_outputs(name, self.bundle.sizes, n_source)
        session = self._session(name)
        for start in range(0, n_source, TILE):
            stop = min(start + TILE, n_source)
            tile = {key: _padded(value[start:stop]) for key, value in feeds.items()}
            for output, result in zip(outputs, session.run(list(graph.outputs), tile), strict=True):
                output[start:stop] = result[: stop - start]
        return outputs

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        with self._lock:
            if name not in self._sessions:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = options.inter_op_num_threads = 1
                options.log_severity_level = 3  # warnings are about the graph's constants, of no use to a caller
                # The memory arena stays on: without it the Jacobian's megabyte temporaries are returned to the system
                # and faulted in again at every call (5% of its time). Fixed tiles bound it to a few MB a session.
                content = self.bundle.read(f"{name}.onnx")
                try:
                    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
                except Exception as error:  # its exceptions have no base class of their own
                    raise BundleError(f"bundle {self.bundle.path}: {name}.onnx does not load: {error}") from error
                self._sessions[name] = session
            return self._sessions[name]


def _padded(rows: Float32Array) -> Float32Array:
    if len(rows) == TILE:
        return rows
    padded = np.zeros((TILE, *rows.shape[1:]), np.float32)  # zeros are a valid latent: nothing raises or overflows
    padded[: len(rows)] = rows
    return padded


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])
