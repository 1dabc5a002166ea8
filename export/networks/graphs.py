"""Torch modules to ONNX graphs, gradients included: inference needs neither autograd nor torch.

A graph begins as a function of torch tensors, which may contain vector-Jacobian products. `make_fx` records it as plain
ATen operations with a symbolic number of sources, and the recording is exported. (`torch.export` alone fails on
`torch.func.vjp` inside a module's forward.) The pullback computes the forward pass again: this costs 0.03 ms a source,
and saves a second pair of graphs that would have to agree. The Jacobian's forward mode does not trace with a symbolic
number of sources, and is written out in `deblendrt.export.networks.decoder_jacobian`.

Metadata are then removed from every graph (the exporter stores stack traces with the paths of source files). The graph
gets the shapes of `deblendrt.engine.model.manifest.GRAPHS`, and is checked.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.numpy_helper
import torch
import zuko
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from deblendrt.engine.model.manifest import GRAPHS, GraphSignature, graph_sizes
from deblendrt.export.networks.decoder_jacobian import DecoderJacobian

if TYPE_CHECKING:
    from deblendrt.training.checkpoint import TrainedModel
    from deblendrt.training.networks.decoder import Decoder

GRAPH_OPSET = 18
MINIMUM_ONNXRUNTIME = "1.23"


class ExportError(RuntimeError):
    """An exported graph breaks a rule of the bundle's format."""


def _silu_backward(d_out: Tensor, x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return d_out * (gate * (1.0 + x * (1.0 - gate)))


def _slice_backward(d_out: Tensor, sizes: list[int], dim: int, start: int, end: int, step: int) -> Tensor:
    if step != 1:
        raise ExportError("the backward of a slice with a step is not implemented")
    size = d_out.shape[dim]  # `end` may be the largest integer
    return _placed(d_out, dim % len(sizes), start, sizes[dim] - start - size)


def _select_backward(d_out: Tensor, sizes: list[int], dim: int, index: int) -> Tensor:
    dim = dim % len(sizes)
    index = index % sizes[dim]
    return _placed(d_out.unsqueeze(dim), dim, index, sizes[dim] - index - 1)


def _placed(block: Tensor, dim: int, before: int, after: int) -> Tensor:
    pad = [0, 0] * (block.ndim - dim - 1) + [before, after]
    return nn.functional.pad(block, pad) if before != 0 or after != 0 else block


def _sum(x: Tensor, dims: list[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """A sum over trailing axes, as a product with ones.

    ONNX Runtime's ReduceSum first adds single elements up to a 16-byte boundary. So the order of a row's sum, and its
    last bits, depend on the row's place in memory, and on its place in the batch. MatMul sums all rows in one order.
    """
    axes = sorted(dim % x.ndim for dim in dims or range(x.ndim))
    if axes != list(range(axes[0], x.ndim)) or axes[0] == 0 or dtype is not None:
        return NotImplemented  # stays a ReduceSum, whose order is fixed over inner axes
    length = math.prod(x.shape[axes[0] :])
    total = x.reshape(*x.shape[: axes[0]], length) @ torch.ones((length, 1), dtype=x.dtype)
    return total.reshape(*x.shape[: axes[0]], *([1] * len(axes))) if keepdim else total.squeeze(-1)


# Sums, see `_sum`; and backward operations that ONNX lacks (SiLU), or that the exporter would turn into scatters, which
# are slow under TensorRT (slices).
_DECOMPOSITIONS: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.sum.dim_IntList: _sum,
    torch.ops.aten.silu_backward.default: _silu_backward,
    torch.ops.aten.slice_backward.default: _slice_backward,
    torch.ops.aten.select_backward.default: _select_backward,
}


def _widen_scalars(module: torch.fx.GraphModule) -> None:
    """Make float64 tensors of scalar operands, which the exporter rounds to float32 even in a float64 graph."""
    targets = [getattr(torch.ops.aten, name).Tensor for name in ("add", "sub", "mul", "div")]
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in targets and isinstance(node.args[1], float):
            name = f"scalar_of_{node.name}"
            module.register_buffer(name, torch.tensor(node.args[1], dtype=torch.float64))
            with module.graph.inserting_before(node):
                node.update_arg(1, module.graph.get_attr(name))
    module.recompile()


def unmask(module: nn.Module) -> nn.Module:
    """Replace zuko's masked linear layers, in place, by plain layers whose weights contain the mask."""
    for name, child in module.named_children():
        if isinstance(child, zuko.nn.MaskedLinear):
            plain = nn.Linear(child.in_features, child.out_features, dtype=child.weight.dtype)
            plain.weight.data = (child.mask * child.weight).detach()
            plain.bias.data = child.bias.detach()
            setattr(module, name, plain.requires_grad_(False))
        else:
            unmask(child)
    return module


def pullback(decoder: Decoder, latent: Tensor, d_coefficients: Tensor) -> Tensor:
    """Return J^T d_coefficients, J the derivative of the decoder's coefficients by the latents.

    Parameters
    ----------
    decoder : Decoder
    latent : Tensor, float (n_source, n_latent)
    d_coefficients : Tensor, float (n_source, n_band, n_basis)

    Returns
    -------
    Tensor, float (n_source, n_latent)
    """
    vjp = torch.func.vjp(decoder.coefficients, latent)[1]
    with torch.no_grad():  # with gradients, the backward of SiLU is recorded in its twice differentiable form
        return vjp(d_coefficients)[0]


def log_prob_and_gradient(prior: nn.Module, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Log prior density, float (n_source,), and its gradient with respect to latents, float (n_source, n_latent)."""
    log_prob, vjp = torch.func.vjp(prior, latent)[:2]
    with torch.no_grad():
        return log_prob, vjp(torch.ones_like(log_prob))[0]


def functions(model: TrainedModel) -> dict[str, Callable[..., Tensor | tuple[Tensor, ...]]]:
    """The graphs as torch functions in float64, which are exported and which parity is measured against.

    Parameters
    ----------
    model : TrainedModel
        It is not changed: the functions hold copies of its modules in float64.

    Returns
    -------
    dict of str to callable
        Names and arguments as in `GRAPHS`.
    """
    decoder, prior, encoder = copy.deepcopy((model.decoder, model.prior, model.encoder))
    for module in (decoder, prior, encoder):
        module.double().eval().requires_grad_(False)
    return {
        "decode": functools.partial(type(decoder).coefficients, decoder),
        "decode_pullback": functools.partial(pullback, decoder),
        "decode_jacobian": DecoderJacobian(decoder),
        "log_prior": functools.partial(log_prob_and_gradient, unmask(prior)),
        "encode": encoder,
    }


def model_sizes(model: TrainedModel) -> dict[str, int]:
    """Lengths of the axes whose symbols are in `GRAPHS`."""
    decoder = model.decoder
    return graph_sizes(n_band=decoder.n_band, n_basis=decoder.n_basis, n_component=decoder.n_component,
                       n_shape=decoder.n_shape, cutout_size=model.config.encoder.cutout_size)


def export_graph(model: TrainedModel, name: str) -> onnx.ModelProto:
    """Export one graph in float64. `to_float32` makes the bundle's float32 graph of it.

    Torch needs seconds for an export, so both precisions come from one. The parity in float64, where rounding cannot
    hide a mistake, is then a property of the graph that ships.

    Parameters
    ----------
    model : TrainedModel
    name : str
        One of `GRAPHS`.

    Returns
    -------
    onnx.ModelProto
        Self-contained and checked. Every export of the same weights gives the same bytes.

    Raises
    ------
    ExportError
    """
    graph, sizes = GRAPHS[name], model_sizes(model)
    generator = torch.Generator().manual_seed(0)
    # torch takes the axis for fixed if another axis has the same length
    n_source = next(n for n in itertools.count(5) if n not in sizes.values())
    example = tuple(0.1 * torch.randn((n_source, *(sizes[symbol] for symbol in symbols[1:])),
                                      generator=generator, dtype=torch.float64) for symbols in graph.inputs.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        module = make_fx(functions(model)[name], decomposition_table=_DECOMPOSITIONS, tracing_mode="symbolic",
                         _allow_non_fake_inputs=True)(*example)
        _widen_scalars(module)
        program = torch.onnx.export(
            module, example, dynamo=True, opset_version=GRAPH_OPSET, verbose=False, external_data=False,
            input_names=list(graph.inputs), output_names=list(graph.outputs),
            dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in example))
    if program is None:
        raise ExportError(f"{name}: torch.onnx.export returned nothing")
    return finish(program.model_proto, graph, sizes)


def export_graphs(model: TrainedModel) -> dict[str, onnx.ModelProto]:
    """Export every graph of a bundle, in float64; see `export_graph`."""
    return {name: export_graph(model, name) for name in GRAPHS}


def to_float32(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 graph of a float64 graph. Weights, which were float32, are exact, other constants are rounded.

    Raises
    ------
    ExportError
        A constant overflows.
    """
    proto = copy.deepcopy(proto)
    double, single = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    attributes = [attribute for node in proto.graph.node for attribute in node.attribute]
    for tensor in (*proto.graph.initializer, *(attribute.t for attribute in attributes if attribute.HasField("t"))):
        if tensor.data_type == double:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            if not np.isfinite(values).all():
                raise ExportError(f"constant {tensor.name!r} is not finite in float32")
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for attribute in attributes:
        if attribute.name in ("to", "dtype") and attribute.i == double:
            attribute.i = single
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = single
    onnx.checker.check_model(proto, full_check=True)
    return proto


def finish(proto: onnx.ModelProto, graph: GraphSignature, sizes: dict[str, int]) -> onnx.ModelProto:
    """An exported graph without metadata, with stated shapes, checked.

    Parameters
    ----------
    proto : onnx.ModelProto
    graph : GraphSignature
        The inputs and outputs that it must have.
    sizes : dict of str to int
        Lengths of its symbols.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ExportError
    """
    proto = copy.deepcopy(proto)
    for owner in (proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input,
                  *proto.graph.output, *proto.functions):
        owner.doc_string = ""
        del owner.metadata_props[:]
    del proto.graph.value_info[:]  # intermediate shapes, in the tracer's symbols; runtimes infer their own
    proto.producer_name, proto.producer_version, proto.graph.name = "deblendrt.export", "", "main"
    if len(proto.functions) or any(node.attribute and any(a.HasField("g") for a in node.attribute)
                                   for node in proto.graph.node):
        raise ExportError("the graph has functions or subgraphs")
    if any(tensor.external_data for tensor in proto.graph.initializer):
        raise ExportError("the graph has external data")
    inputs, outputs = [value.name for value in proto.graph.input], [value.name for value in proto.graph.output]
    if inputs != list(graph.inputs) or outputs != list(graph.outputs):
        raise ExportError(f"expected {list(graph.inputs)} -> {list(graph.outputs)}, got {inputs} -> {outputs}")
    # An input with the name of an initializer passes onnx's checker and computes nonsense.
    if clash := {tensor.name for tensor in proto.graph.initializer} & {*inputs, *outputs}:
        raise ExportError(f"names shared by initializers and inputs or outputs: {sorted(clash)}")
    for value, symbols in zip((*proto.graph.input, *proto.graph.output),
                              (*graph.inputs.values(), *graph.outputs.values()), strict=True):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for symbol in symbols:
            if symbol == "N":
                shape.dim.add().dim_param = "N"
            else:
                shape.dim.add().dim_value = sizes[symbol]
    # The full check infers shapes too: they must agree with the stated shapes.
    onnx.checker.check_model(proto, full_check=True)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if opsets != {"": GRAPH_OPSET}:
        raise ExportError(f"expected the standard operators of opset {GRAPH_OPSET}, got {opsets}")
    return proto
