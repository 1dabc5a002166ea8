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

PIECES = (8, 16, NETWORK_TILE)  # rows: sizes of which the last piece of a tile may be a multiple


class OrtRuntime(GraphRuntime):
    """The `Runtime` of the CPU. Safe to share between threads.

    A session is made on first use of its graph, single-threaded inside (callers parallelise over blends), and always
    sees `NETWORK_TILE` rows, or for the last few as few as have the same bits (see `least_rows`).

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
        self._sessions: dict[str, tuple[onnxruntime.InferenceSession, int]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[OrtRuntime], tuple[Bundle]]:
        return OrtRuntime, (self.bundle,)  # sessions and locks do not pickle; a spawned worker makes its own

    def run(self, name: str, *inputs: NDArray[Any]) -> list[Float32Array]:
        """See `GraphRuntime`; tile by tile."""
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
        """A graph's session, and of how many rows a tile's last piece is a multiple."""
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
                self._sessions[name] = session, least_rows(name, session, self.bundle.sizes)
            return self._sessions[name]


def least_rows(name: str, session: onnxruntime.InferenceSession, sizes: Mapping[str, int]) -> int:
    """How few rows of a graph have, to the last bit, what they have in a whole tile: tried on this machine.

    A vector kernel's arithmetic may differ in the remainder of its lanes. With 16 rows there is none on any processor
    known; 8 do as well wherever they were tried, and a scene's few sources take a quarter of a tile's time.

    Parameters
    ----------
    name : str
        Of the graph.
    session : onnxruntime.InferenceSession
    sizes : mapping of str to int
        `Bundle.sizes`.

    Returns
    -------
    int
        One of `PIECES`.
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
    padded = np.zeros((n, *rows.shape[1:]), np.float32)  # zeros are a valid latent: nothing raises or overflows
    padded[: len(rows)] = rows
    return padded


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])
