"""A model repository of NVIDIA's Triton Inference Server: the solver's graph and the bundle's own graphs.

    REPOSITORY/solver/config.pbtxt, 1/model.onnx       one scene per request
    REPOSITORY/decode_jacobian/...                     and other graphs: rows of latents, batched by the server

The solver takes one scene and has no batch axis, so Triton must not batch its requests. Instances of the solver run
side by side. The bundle's graphs compute row by row for any number of rows, so Triton may batch their requests. Tests
check the configurations against Triton's schema. They have not run on a server.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.manifest import GRAPHS

MAX_BATCH = 512  # rows; more rows gain no speed
QUEUE_DELAY = 200  # microseconds that the server may wait for more rows
TRITON_TYPES: dict[int, str] = {TensorProto.FLOAT: "TYPE_FP32", TensorProto.DOUBLE: "TYPE_FP64",
                         TensorProto.INT32: "TYPE_INT32", TensorProto.INT64: "TYPE_INT64",
                         TensorProto.BOOL: "TYPE_BOOL"}


def write_repository(bundle: Bundle, solver: onnx.ModelProto, out: str | Path, *, n_instance: int = 1) -> None:
    """Write a repository. It appears under its name when it is complete.

    Parameters
    ----------
    bundle : Bundle
    solver : onnx.ModelProto
        From `deblendrt.export.solver.solver_graph`.
    out : str or Path
        The repository's folder. A repository there is replaced.
    n_instance : int
        Scenes that are solved at a time, one thread each.

    Raises
    ------
    OSError
    ValueError
        `out` holds something that is no repository.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(not (entry / "config.pbtxt").is_file() for entry in out.iterdir())):
        raise ValueError(f"{out} exists and is no model repository")
    models = {"solver": solver} | {name: onnx.load_from_string(bundle.read(f"{name}.onnx")) for name in GRAPHS}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        for name, model in models.items():
            version = folder / name / "1"
            version.mkdir(parents=True)
            (version / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
            text = config(name, model, batched=name != "solver", n_instance=n_instance)
            (folder / name / "config.pbtxt").write_text(text, encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)


def config(name: str, model: onnx.ModelProto, *, batched: bool, n_instance: int = 1) -> str:
    """A model's configuration, ``config.pbtxt``.

    Parameters
    ----------
    name : str
    model : onnx.ModelProto
    batched : bool
        Whether the first axis of every input and output counts independent rows.
    n_instance : int

    Returns
    -------
    str
        A `ModelConfig` in protocol buffers' text format.
    """
    lines = [f'name: "{name}"', 'platform: "onnxruntime_onnx"', f"max_batch_size: {MAX_BATCH if batched else 0}"]
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        entries = ",\n".join(_tensor(value, batched=batched) for value in values)
        lines.append(f"{kind} [\n{entries}\n]")
    lines.append(f"instance_group [ {{ kind: KIND_CPU count: {n_instance} }} ]")
    if batched:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY} }}")
    # one thread an instance, as in the engine: the result of a request does not depend on other requests
    for key in ("intra_op_thread_count", "inter_op_thread_count"):
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: "1" }} }}')
    return "\n".join(lines) + "\n"


def _tensor(value: onnx.ValueInfoProto, *, batched: bool) -> str:
    tensor = value.type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim][1 if batched else 0 :]
    reshape = "" if dims else " reshape { shape: [] }"  # Triton knows no scalars
    return (f'  {{ name: "{value.name}" data_type: {TRITON_TYPES[tensor.elem_type]} '
            f"dims: {_list(dims or [1])}{reshape} }}")


def _list(numbers: Sequence[int]) -> str:
    return f"[ {', '.join(map(str, numbers))} ]"
