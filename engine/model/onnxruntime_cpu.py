"""Runs a bundle's graphs with ONNX Runtime on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.manifest import GRAPHS, BundleError
from deblendrt.engine.model.networks import NETWORK_TILE, Float32Array, GraphRuntime, checked_inputs, empty_outputs

PIECES = (8, 16, NETWORK_TILE)  # rows: the last piece of a tile is a multiple of one of these sizes


class OrtRuntime(GraphRuntime):
    """The runtime of the CPU. Threads may share it.

    A session is made at the first use of its graph. It is single-threaded, because callers parallelise over blends. It
    always runs `NETWORK_TILE` rows; the last rows may be fewer if they get the same bits (see `least_rows`).

    Parameters
    ----------
    bundle : Bundle

    Raises
    ------
    BundleError
        The bundle needs a newer ONNX Runtime.
    """

    def __init__(self, bundle: Bundle) -> None:
        if _version(onnxruntime.__version__) < _version(bundle.minimum_onnxruntime):
            raise BundleError(f"bundle {bundle.path} needs onnxruntime >= {bundle.minimum_onnxruntime}, this is "
                              f"{onnxruntime.__version__}: pip install --upgrade onnxruntime")
        self.bundle = bundle
        self._sessions: dict[str, tuple[onnxruntime.InferenceSession, int]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[OrtRuntime], tuple[Bundle]]:
        return OrtRuntime, (self.bundle,)  # sessions and locks do not pickle; a spawned process makes its own

    def run(self, name: str, *inputs: NDArray[Any]) -> list[Float32Array]:
        """See `GraphRuntime`. The graph runs tile by tile."""
        graph, n_source = GRAPHS[name], len(inputs[0])
        feeds = checked_inputs(name, self.bundle.sizes, inputs)
        outputs = empty_outputs(name, self.bundle.sizes, n_source)
        session, least = self._session(name)
        for start in range(0, n_source, NETWORK_TILE):
            stop = min(start + NETWORK_TILE, n_source)
            n = -(-(stop - start) // least) * least
            tile = {key: _padded(value[start:stop], n) for key, value in feeds.items()}
            for output, result in zip(outputs, session.run(list(graph.outputs), tile), strict=True):
                output[start:stop] = result[: stop - start]
        return outputs

    def _session(self, name: str) -> tuple[onnxruntime.InferenceSession, int]:
        """Return a graph's session and the number of rows that divides a tile's last piece."""
        with self._lock:
            if name not in self._sessions:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = options.inter_op_num_threads = 1
                options.log_severity_level = 3  # warnings are about the graph's constants
                # The memory arena stays on. Without it, each call returns the Jacobian's temporaries (some MB) to the
                # system and faults them in again, 5% of its time. Fixed tiles bound the arena to a few MB a session.
                content = self.bundle.read(f"{name}.onnx")
                try:
                    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
                except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
                    raise BundleError(f"bundle {self.bundle.path}: {name}.onnx does not load: {error}") from error
                self._sessions[name] = session, least_rows(name, session, self.bundle.sizes)
            return self._sessions[name]


def least_rows(name: str, session: onnxruntime.InferenceSession, sizes: Mapping[str, int]) -> int:
    """Return the smallest number of rows with which a graph gives the same bits as in a whole tile, on this machine.

    The arithmetic of a vector kernel may differ in the remainder of its lanes. With 16 rows there is no remainder on
    any known processor. 8 rows gave the same bits on all processors that were tried; a scene of a few sources then
    takes a quarter of a tile's time.

    Parameters
    ----------
    name : str
        Name of the graph.
    session : onnxruntime.InferenceSession
    sizes : mapping of str to int
        `Bundle.sizes`.

    Returns
    -------
    int
        A number of `PIECES`.
    """
    graph, rng = GRAPHS[name], np.random.default_rng(0)
    tile = {key: rng.standard_normal((NETWORK_TILE, *(sizes[symbol] for symbol in symbols[1:]))).astype(np.float32)
            for key, symbols in graph.inputs.items()}
    whole = session.run(list(graph.outputs), tile)
    for n in PIECES[:-1]:
        pieces = [session.run(list(graph.outputs), {key: rows[i : i + n] for key, rows in tile.items()})
                  for i in range(0, NETWORK_TILE, n)]
        if all(np.array_equal(np.concatenate(parts), rows) for parts, rows in zip(zip(*pieces, strict=True), whole,
                                                                                  strict=True)):
            return n
    return PIECES[-1]


def _padded(rows: Float32Array, n: int) -> Float32Array:
    if len(rows) == n:
        return rows
    padded = np.zeros((n, *rows.shape[1:]), np.float32)  # zeros are a valid latent
    padded[: len(rows)] = rows
    return padded


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])
