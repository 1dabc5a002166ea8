"""Runs a bundle's graphs with TensorRT, or with TensorRT for RTX: plans are built once on a machine and kept.

A plan is built for one bundle, TensorRT version, GPU architecture, number of rows and precision; its file's name is the
hash of these, so that a changed one is another file. Its number of rows is fixed: tactics, and with them a source's
bits, cannot depend on how many sources there are. Plans are never shipped (they are code for one kind of GPU), and the
cache folder is trusted: whoever can write to it can run code.
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

# Package -> how to get it. TensorRT's own wheels are stubs that fetch the libraries from NVIDIA's index.
TENSORRT_INSTALL = {"tensorrt": "pip install tensorrt-cu13", "tensorrt_rtx": "pip install tensorrt-rtx"}
PRECISIONS = ("fp32", "tf32")
TENSORRT_ROWS = 1024  # sources at a time
# TensorRT for RTX has no kernels for the GPUs of data centres
RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (12, 0), (12, 1))


class TensorRTError(DeviceError):
    """A graph does not parse or build, or a plan does not load or run."""


def why_unavailable(package: str) -> str | None:
    """Why a package of TensorRT cannot be used here, or None if it can."""
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
    """The package of TensorRT to use.

    Parameters
    ----------
    package : {"auto", "tensorrt", "tensorrt_rtx"}
        "auto": the first that is installed and knows the GPU.
    capability : tuple of int, optional
        Of the GPU.

    Returns
    -------
    str

    Raises
    ------
    DeviceError
        There is none; the message says what to install.
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
    """Parse and build one graph.

    Parameters
    ----------
    content : bytes
        An ONNX model whose inputs have the number of sources as their only dynamic axis, the first.
    package : {"tensorrt", "tensorrt_rtx"}
        An available one. TensorRT for RTX builds without a GPU.
    n_row : tuple of int
        Fewest, usual and most sources.
    precision : {"fp32", "tf32"}
        Of products. tf32 keeps three digits of them: no bundle's golden vectors are met.

    Returns
    -------
    bytes

    Raises
    ------
    TensorRTError
        With the parser's or the builder's messages.
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
        settings.clear_flag(trt.BuilderFlag.TF32)  # it is on by default
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise TensorRTError("TensorRT does not build the graph: " + "; ".join(messages))
    return bytes(plan)


def plan_path(bundle: Bundle, name: str, package: str, capability: tuple[int, int], n_row: int,
              precision: str) -> Path:
    """Where a plan is kept: a file for each bundle, graph, TensorRT version, GPU architecture, shape and precision."""
    from deblendrt.cuda.driver.compile import cache_folder

    version = str(importlib.import_module(package).__version__)
    key = {"bundle": bundle.sha256, "graph": bundle.files[f"{name}.onnx"], "package": package, "version": version,
           "capability": list(capability), "rows": n_row, "precision": precision}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder("plans") / f"{bundle.name}-{name}-{digest}.plan"


def plan(bundle: Bundle, name: str, package: str, capability: tuple[int, int], n_row: int, precision: str) -> bytes:
    """A graph's plan, from the cache or built now.

    Raises
    ------
    DeviceError
        It cannot be built, or the cache cannot be written to.
    """
    from deblendrt.cuda.driver.compile import store

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
    """Build what is not in the cache yet: ``deblendrt build``.

    Yields
    ------
    str
        A line for each graph.
    """
    package = find_package(package, capability)
    for name in GRAPHS:
        path = plan_path(bundle, name, package, capability, n_row, precision)
        state = "kept" if path.exists() else "built"
        content = plan(bundle, name, package, capability, n_row, precision)
        yield f"{name:<16} {state:<6} {len(content) / 1e6:6.1f} MB  {path}"


class TensorRTGraph:
    """A plan on a device; see `runtime_device.DeviceGraph`.

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
        # Kept: an engine and its context end with them.
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
        self.device.empty(1, np.uint8)  # refused within a recording, whose work TensorRT would do at once instead
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
        Sources at a time: fewer are padded.
    precision : {"fp32", "tf32"}

    Raises
    ------
    DeviceError
        TensorRT is missing or does not know this GPU; the message says what to do.
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
        content = plan(self.bundle, name, self.package, self.capability, n_row, self.precision)
        return TensorRTGraph(self.device, content, self.package, n_row)


_loggers: dict[str, tuple[Any, list[str]]] = {}
_lock = threading.Lock()


def _logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger that keeps errors. One for a process: TensorRT goes on using the first that it is given."""
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
