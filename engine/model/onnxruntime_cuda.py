"""Runs a bundle's graphs with ONNX Runtime's CUDA provider, on the device's arrays and stream.

The provider comes with the package onnxruntime-gpu. The CPU's package onnxruntime cannot be installed beside it; with
that package, the provider's library is registered from a folder of its own:

    pip install --no-deps --target FOLDER onnxruntime-gpu==(the version of onnxruntime)
    export DEBLENDRT_ONNXRUNTIME_GPU=FOLDER

A library of another version would crash, so it is refused. No graph ever falls back to the CPU.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from deblendrt.cuda.driver.device import Device, DeviceArray, DeviceError
from deblendrt.cuda.network.lowered_graph import import_onnx
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.device_networks import DeviceRuntime

PROVIDER = "CUDAExecutionProvider"
FOLDER = "DEBLENDRT_ONNXRUNTIME_GPU"  # environment variable
ORT_CUDA_ROWS = 1024  # sources at a time

_lock = threading.Lock()
_registered: set[Path] = set()


def provider_library(folder: str | Path | None = None) -> Path | None:
    """Return the provider's library to register; None if the installed onnxruntime has the provider.

    Parameters
    ----------
    folder : path, optional
        The folder of ``pip install --target``; default: the environment variable DEBLENDRT_ONNXRUNTIME_GPU.

    Returns
    -------
    Path or None

    Raises
    ------
    DeviceError
        The provider is missing or of another version; the message gives the commands that install it.
    """
    version = onnxruntime.__version__
    install = (f"pip install --no-deps --target FOLDER onnxruntime-gpu=={version}, then export {FOLDER}=FOLDER")
    given = folder or os.environ.get(FOLDER)
    if not given:
        if PROVIDER in onnxruntime.get_available_providers():
            return None
        raise DeviceError(f"onnxruntime {version} has no CUDA provider: {install}")
    place = Path(given)
    names = ("libonnxruntime_providers_cuda.so", "onnxruntime_providers_cuda.dll")
    found = [path for name in names if (path := place / "onnxruntime" / "capi" / name).is_file()]
    if not found:
        raise DeviceError(f"no onnxruntime-gpu in {place}: {install}")
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise DeviceError(f"onnxruntime {version} cannot register a provider's library: pip install --upgrade "
                          "onnxruntime")
    beside = sorted(path.name.split("-")[1] for path in place.glob("onnxruntime_gpu-*.dist-info"))
    if beside != [f"{version}.dist"]:
        got = ", ".join(name.removesuffix(".dist") for name in beside) or "an unknown version"
        raise DeviceError(f"onnxruntime-gpu in {place} is {got}, onnxruntime is {version}, and they must be the same: "
                          f"{install}")
    return found[0]


def without_asinh(content: bytes) -> bytes:
    """Return a graph with asinh(x) as sign(x) ln(|x| + sqrt(x^2 + 1)): the provider has no kernel for Asinh."""
    onnx = import_onnx()
    proto = onnx.load_from_string(content)
    nodes = []
    for node in proto.graph.node:
        if node.op_type != "Asinh":
            nodes.append(node)
            continue
        x, out = node.input[0], node.output[0]
        for op, operands, name in (("Mul", [x, x], "square"), ("Add", ["square", "asinh_one"], "more"),
                                   ("Sqrt", ["more"], "root"), ("Abs", [x], "size"), ("Add", ["size", "root"], "sum"),
                                   ("Log", ["sum"], "log"), ("Sign", [x], "sign"), ("Mul", ["sign", "log"], out)):
            inside = [name if name in (x, "asinh_one") else f"{out}_asinh_{name}" for name in operands]
            nodes.append(onnx.helper.make_node(op, inside, [name if name == out else f"{out}_asinh_{name}"]))
    if len(nodes) == len(proto.graph.node):
        return content
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((), np.float32), "asinh_one"))
    rewritten: bytes = proto.SerializeToString()
    return rewritten


class OrtCudaGraph:
    """A session for a fixed number of rows; see `device_networks.DeviceGraph`.

    Parameters
    ----------
    device : CudaDevice
    content : bytes
        An ONNX file whose inputs have a first axis named N.
    n_row : int
    library : Path, optional
        Library to register, from `provider_library`.
    """

    def __init__(self, device: Device, content: bytes, n_row: int, library: Path | None) -> None:
        self.device, self.ordinal = device, int(getattr(device, "ordinal", 0))
        settings = {
            "device_id": str(self.ordinal),
            "user_compute_stream": str(device.stream),  # type: ignore[attr-defined]
            "use_tf32": "0",  # TF32 keeps three digits of a product
            "cudnn_conv_algo_search": "HEURISTIC",  # a search by timing would make results vary
        }
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.use_deterministic_compute = True
        # With a fixed N, all computations of shapes are folded, and no node is left for the CPU.
        options.add_free_dimension_override_by_name("N", n_row)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            if library is None:
                self.session = onnxruntime.InferenceSession(content, options, providers=[(PROVIDER, settings)])
            else:
                _register(library)
                devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER]
                if not devices:
                    raise DeviceError(f"ONNX Runtime's CUDA provider, {library}, finds no GPU: see `deblendrt doctor`")
                options.add_provider_for_devices([devices[self.ordinal]], settings)
                self.session = onnxruntime.InferenceSession(content, options)
        except DeviceError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise DeviceError(f"ONNX Runtime's CUDA provider does not load a graph (it needs the CUDA 13 and cuDNN 9 "
                              f'libraries: pip install "onnxruntime-gpu[cuda,cudnn]=={onnxruntime.__version__}"): '
                              f"{error}") from error
        if PROVIDER not in self.session.get_providers():
            raise DeviceError("ONNX Runtime dropped its CUDA provider: its libraries do not load, see the lines before")
        self.inputs, self.outputs = ({value.name: (n_row, *value.shape[1:]) for value in values}
                                     for values in (self.session.get_inputs(), self.session.get_outputs()))
        self._run = onnxruntime.RunOptions()
        self._run.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        """Queue the graph's work. It cannot be part of a recording."""
        self.device.empty(1, np.uint8)  # raises within a recording, where the graph would run at once
        binding = self.session.io_binding()
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for key, array in arrays.items():
                bind(key, "cuda", self.ordinal, np.float32, list(array.shape), array.pointer)
        self.session.run_with_iobinding(binding, self._run)


class OrtCudaRuntime(DeviceRuntime):
    """The runtime on ONNX Runtime's CUDA provider. Not recordable.

    Parameters
    ----------
    bundle : Bundle
    device : CudaDevice
    folder : path, optional
        See `provider_library`.
    n_row : int
        Sources at a time; fewer are padded.

    Raises
    ------
    DeviceError
        The provider is missing; the message says what to install.
    """

    def __init__(self, bundle: Bundle, device: Device, *, folder: str | Path | None = None,
                 n_row: int = ORT_CUDA_ROWS) -> None:
        super().__init__(bundle, device)
        if not hasattr(device, "stream"):
            raise DeviceError(f"ONNX Runtime's CUDA provider needs an NVIDIA GPU, and {device.name!r} is none")
        self.n_row, self.provider = n_row, provider_library(folder)

    def tile(self, n_source: int) -> int:
        """See `DeviceRuntime`."""
        return self.n_row

    def make_graph(self, name: str, n_row: int) -> OrtCudaGraph:
        """See `DeviceRuntime`."""
        return OrtCudaGraph(self.device, without_asinh(self.bundle.read(f"{name}.onnx")), n_row, self.provider)


def _register(library: Path) -> None:
    with _lock:
        if library not in _registered:
            register: Any = onnxruntime.register_execution_provider_library
            register(PROVIDER, str(library))
            _registered.add(library)
