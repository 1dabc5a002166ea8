"""Verification of a bundle: its graphs run on stored inputs, and their outputs are compared with stored outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.model.array_file import read_archive
from deblendrt.engine.model.bundle import MAX_FILE_BYTES, Bundle, load_bundle
from deblendrt.engine.model.manifest import GRAPHS, STORED_OUTPUTS, BundleError
from deblendrt.engine.model.onnxruntime_cpu import OrtRuntime


def verify_bundle(name_or_path: str | Path) -> list[str]:
    """Load a bundle, run its graphs on the stored inputs, and compare their outputs with the stored outputs.

    Parameters
    ----------
    name_or_path : str or Path

    Returns
    -------
    list of str
        A line per check, for the user.

    Raises
    ------
    BundleError
        The bundle cannot be loaded (see `load_bundle`), or an output differs from the stored output by more than the
        manifest's tolerance.
    """
    bundle = load_bundle(name_or_path)
    lines = [f"{bundle.name} {bundle.model_version}: {len(bundle.files)} files, hashes match"]
    stored = _stored_outputs(bundle)
    runtime = OrtRuntime(bundle)
    for name, graph in GRAPHS.items():
        outputs = runtime.run(name, *(stored[f"{name}.in.{key}"] for key in graph.inputs))
        tolerance = bundle.golden_tolerance[name]
        worst = 0.0
        for key, output in zip(graph.outputs, outputs, strict=True):
            expected = stored[f"{name}.out.{key}"]
            worst = max(worst, output_error(output, expected))
            if output_error(output, expected, **tolerance) > 1.0:
                raise BundleError(f"bundle {bundle.path}: {name}.onnx: {key} differs from the golden output: relative "
                                  f"error {output_error(output, expected):.2g}, allowed {tolerance}")
        lines.append(f"{name}: {len(outputs[0])} sources, largest relative error {worst:.1e} "
                     f"(allowed {tolerance['rtol']:.0e})")
    return lines


def output_error(actual: NDArray[Any], expected: NDArray[Any], *, rtol: float = 1.0, atol: float = 0.0) -> float:
    """Return the largest |actual - expected| / (atol + rtol scale). A value above 1 is a failure.

    With rtol = 1 and atol = 0 this is the relative error. The scale of a source is the largest |expected| in its row. A
    bright source therefore does not hide an error in a faint source, and elements that nearly cancel need not be more
    precise than the terms of their sum. If a row is a single number, which may cross zero, the scale is the root mean
    square over sources.

    Parameters
    ----------
    actual, expected : float (n_source, ...)
    rtol, atol : float

    Returns
    -------
    float
        Infinite if the shapes differ or a value is not finite.
    """
    if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return float("inf")
    expected = expected.astype(np.float64)
    difference = np.abs(actual.astype(np.float64) - expected).reshape(len(expected), -1)
    if expected.ndim == 1:
        scale = np.full((len(expected), 1), np.sqrt(np.mean(expected**2)))
    else:
        scale = np.abs(expected).reshape(len(expected), -1).max(1, keepdims=True)
    allowed = atol + rtol * scale
    return float(np.max(difference / np.where(allowed > 0, allowed, np.finfo(np.float64).tiny)))


def _stored_outputs(bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    expected = [f"{name}.{kind}.{key}" for name, graph in GRAPHS.items()
                for kind, keys in (("in", graph.inputs), ("out", graph.outputs)) for key in keys]
    where = f"bundle {bundle.path}: {STORED_OUTPUTS}"
    return read_archive(bundle.read(STORED_OUTPUTS), expected, MAX_FILE_BYTES, where)
