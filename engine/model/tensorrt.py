"""Runs a bundle's graphs with TensorRT, or with TensorRT for RTX. Plans are built once on a machine and kept.

A plan belongs to one bundle, TensorRT version, GPU architecture, number of rows and precision; the name of its file is
the hash of these. The number of rows is fixed. TensorRT's choice of kernels, and with it a source's bits, therefore
cannot depend on the number of sources. Plans are code for one kind of GPU and are never shipped. The cache folder is
trusted: anyone who can write to it can run code.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deblendrt.cuda.driver.device import Device, DeviceArray, DeviceError
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.device_networks import DeviceRuntime
from deblendrt.engine.model.manifest import GRAPHS

# Package -> command that installs it. TensorRT's own wheels are stubs that fetch the libraries from NVIDIA's index.
TENSORRT_INSTALL = {"tensorrt": "pip install tensorrt-cu13", "tensorrt_rtx": "pip install tensorrt-rtx"}
PRECISIONS = ("fp32", "tf32")
TENSORRT_ROWS = 1024  # sources at a time
# TensorRT for RTX has no kernels for data-centre GPUs.
RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (12, 0), (12, 1))


class TensorRTError(DeviceError):
    """TensorRT cannot parse or build a graph, or load or run a plan."""


def why_unavailable(package: str) -> str | None:
    """Return the reason why a package of TensorRT cannot be used here; None if it can."""
    if package not in TENSORRT_INSTALL:
        return f"no package of TensorRT: {package!r}, choose from {sorted(TENSORRT_INSTALL)}"
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            return f"{package} is not installed: {TENSORRT_INSTALL[package]}"
        return f"{package} is installed but does not load ({error}): {TENSORRT_INSTALL[package]}"
    except (ImportError, OSError, RuntimeError) as error:  # a wheel without its libraries
        return f"{package} is installed but does not load ({error}): {TENSORRT_INSTALL[package]}"
    return None


def find_package(package: str = "auto", capability: tuple[int, int] | None = None) -> str:
    """Return the package of TensorRT to use.

    Parameters
    ----------
    package : {"auto", "tensorrt", "tensorrt_rtx"}
        "auto" is the first package that is installed and supports the GPU.
    capability : tuple of int, optional
        Compute capability of the GPU.

    Returns
    -------
    str

    Raises
    ------
    DeviceError
        There is no such package; the message says what to install.
    """
    reasons = []
    for name in TENSORRT_INSTALL if package == "auto" else (package,):
        reason = why_unavailable(name)
        if reason is None and name == "tensorrt_rtx" and capability is not None and capability not in RTX_CAPABILITIES:
            reason = (f"tensorrt_rtx does not run on GPUs of compute capability {capability[0]}.{capability[1]}; "
                      f"tensorrt does: {TENSORRT_INSTALL['tensorrt']}")
        if reason is None:
            return name
        reasons.append(reason)
    raise DeviceError("TensorRT cannot be used: " + "; ".join(reasons))


def build_plan(content: bytes, package: str, n_row: tuple[int, int, int], precision: str = "fp32") -> bytes:
    """Parse a graph and build its plan.

    Parameters
    ----------
    content : bytes
        An ONNX model. The number of sources is the first axis of its inputs and their only dynamic axis.
    package : {"tensorrt", "tensorrt_rtx"}
        An installed package. TensorRT for RTX builds without a GPU.
    n_row : tuple of int
        Fewest, usual and most sources.
    precision : {"fp32", "tf32"}
        Precision of products. tf32 keeps three digits: the outputs then differ from the bundle's stored outputs.

    Returns
    -------
    bytes

    Raises
    ------
    TensorRTError
        TensorRT refuses the graph; the message has the parser's or the builder's errors.
    """
    trt = importlib.import_module(package)
    logger, messages = _logger(trt)
    messages.clear()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(content):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise TensorRTError("TensorRT does not parse the graph: " + "; ".join(errors or messages))
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        value = network.get_input(i)
        profile.set_shape(value.name, *((n, *tuple(value.shape)[1:]) for n in n_row))
    settings = builder.create_builder_config()
    settings.add_optimization_profile(profile)
    if precision == "fp32":
        settings.clear_flag(trt.BuilderFlag.TF32)  # TF32 is on by default
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise TensorRTError("TensorRT does not build the graph: " + "; ".join(messages))
    return bytes(plan)


def plan_path(bundle: Bundle, name: str, package: str, capability: tuple[int, int], n_row: int,
              precision: str) -> Path:
    """Return the path of a plan: a file per bundle, graph, TensorRT version, GPU architecture, shape and precision."""
    from deblendrt.cuda.driver.kernel_compiler import cache_folder

    version = str(importlib.import_module(package).__version__)
    key = {"bundle": bundle.sha256, "graph": bundle.files[f"{name}.onnx"], "package": package, "version": version,
           "capability": list(capability), "rows": n_row, "precision": precision}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder("plans") / f"{bundle.name}-{name}-{digest}.plan"


def cached_plan(bundle: Bundle, name: str, package: str, capability: tuple[int, int], n_row: int,
                precision: str) -> bytes:
    """Return a graph's plan, from the cache or built now.

    Raises
    ------
    DeviceError
        The plan cannot be built, or the cache is not writable.
    """
    from deblendrt.cuda.driver.kernel_compiler import store

    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {PRECISIONS}, got {precision!r}")
    path = plan_path(bundle, name, package, capability, n_row, precision)
    if path.is_file():
        return path.read_bytes()
    content = build_plan(bundle.read(f"{name}.onnx"), package, (n_row, n_row, n_row), precision)
    store(path, content)
    return content


def build_all(bundle: Bundle, *, package: str = "auto", capability: tuple[int, int], n_row: int = TENSORRT_ROWS,
              precision: str = "fp32") -> Iterator[str]:
    """Build the plans that are not in the cache yet, for ``deblendrt build``.

    Yields
    ------
    str
        A line for each graph.
    """
    package = find_package(package, capability)
    for name in GRAPHS:
        path = plan_path(bundle, name, package, capability, n_row, precision)
        state = "kept" if path.exists() else "built"
        content = cached_plan(bundle, name, package, capability, n_row, precision)
        yield f"{name:<16} {state:<6} {len(content) / 1e6:6.1f} MB  {path}"


class TensorRTGraph:
    """A plan on a device; see `device_networks.DeviceGraph`.

    Parameters
    ----------
    device : CudaDevice
    content : bytes
        The plan.
    package : str
    n_row : int
    """

    def __init__(self, device: Device, content: bytes, package: str, n_row: int) -> None:
        trt = importlib.import_module(package)
        self.device = device
        logger, messages = _logger(trt)
        # Kept, because the engine and its context must not outlive the runtime.
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        self._context = self._engine and self._engine.create_execution_context()
        if self._context is None:
            raise TensorRTError("TensorRT does not load a plan (a file of the cache may be damaged: delete the folder "
                                "'plans' of the cache): " + "; ".join(messages))
        self._messages = messages
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.outputs: dict[str, tuple[int, ...]] = {}
        for i in range(self._engine.num_io_tensors):
            key = self._engine.get_tensor_name(i)
            shape = (n_row, *tuple(self._engine.get_tensor_shape(key))[1:])
            if self._engine.get_tensor_mode(key) == trt.TensorIOMode.INPUT:
                self.inputs[key] = shape
                self._context.set_input_shape(key, shape)
            else:
                self.outputs[key] = shape

    def enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        """Queue the graph's work. It cannot be part of a recording."""
        self.device.empty(1, np.uint8)  # raises within a recording, where TensorRT would run at once
        for key, array in (*inputs.items(), *outputs.items()):
            self._context.set_tensor_address(key, array.pointer)
        if not self._context.execute_async_v3(self.device.stream):  # type: ignore[attr-defined]
            raise TensorRTError("TensorRT does not run a plan: " + "; ".join(self._messages))


class TensorRTRuntime(DeviceRuntime):
    """The runtime on TensorRT. Not recordable.

    Parameters
    ----------
    bundle : Bundle
    device : CudaDevice
    package : {"auto", "tensorrt", "tensorrt_rtx"}
    n_row : int
        Sources at a time; fewer are padded.
    precision : {"fp32", "tf32"}

    Raises
    ------
    DeviceError
        TensorRT is missing or does not support this GPU; the message says what to do.
    """

    def __init__(self, bundle: Bundle, device: Device, *, package: str = "auto", n_row: int = TENSORRT_ROWS,
                 precision: str = "fp32") -> None:
        super().__init__(bundle, device)
        capability = getattr(device, "capability", None)
        if capability is None:
            raise DeviceError(f"TensorRT needs an NVIDIA GPU, and {device.name!r} is none")
        if getattr(device, "ordinal", 0) != 0:
            raise DeviceError("TensorRT runs on the first GPU that a process sees: choose another with "
                              "CUDA_VISIBLE_DEVICES")
        self.capability, self.n_row, self.precision = capability, n_row, precision
        self.package = find_package(package, capability)

    def tile(self, n_source: int) -> int:
        """See `DeviceRuntime`."""
        return self.n_row

    def make_graph(self, name: str, n_row: int) -> TensorRTGraph:
        """See `DeviceRuntime`."""
        content = cached_plan(self.bundle, name, self.package, self.capability, n_row, self.precision)
        return TensorRTGraph(self.device, content, self.package, n_row)


_loggers: dict[str, tuple[Any, list[str]]] = {}
_lock = threading.Lock()


def _logger(trt: Any) -> tuple[Any, list[str]]:
    """Return a logger that keeps errors. There is one per process, because TensorRT uses only its first logger."""
    with _lock:
        if trt.__name__ not in _loggers:
            messages: list[str] = []

            class Logger(trt.ILogger):
                def __init__(self) -> None:
                    trt.ILogger.__init__(self)

                def log(self, severity: Any, message: str) -> None:
                    if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                        messages[:] = [*messages[-8:], message]

            _loggers[trt.__name__] = Logger(), messages
        return _loggers[trt.__name__]
