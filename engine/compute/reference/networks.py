r"""The specification, in NumPy, of the networks' kernels.

Each function has the name and arguments of its launcher, less the device; arrays are NumPy's, outputs are written in
place. Rows of padding mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from deblendrt.cuda.network.plan import ARENA, CONSTANTS, INPUTS, OUTPUTS, Plan
from deblendrt.cuda.network.program import Program
from deblendrt.cuda.network.steps import ELEMENTWISE, Convolution, Matmul, Reduce
from deblendrt.cuda.network.views import View

Array = NDArray[Any]
_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min")


def network_map(program: Program, views: list[Array]) -> None:
    """Run a program on whole arrays; its stores write to `views`."""
    register: dict[int, Any] = {}
    for function, to, a, b in program.instructions:
        if function == "Load":
            register[to] = views[int(a)].copy()
        elif function == "Constant":
            register[to] = np.float64(a)
        elif function == "Store":
            views[to][...] = register[int(a)]
        else:
            arguments = (register[int(a)], register[b])
            register[to] = ELEMENTWISE[function](*arguments[: 2 if function in _BINARY else 1])


def network_matmul(a: Array, w: Array, bias: Array | None, out: Array) -> None:
    """out[b, m, n] = sum_k a[b, m, k] w[b, k, n] + bias[n]."""
    out[...] = a @ w + (0 if bias is None else bias)


def network_sum(x: Array, out: Array) -> None:
    """out[i, 0, j] = sum_k x[i, k, j]."""
    out[...] = x.sum(1, keepdims=True)


def network_softmax(x: Array, out: Array) -> None:
    """out[i, k, j] = exp(x[i, k, j]) / sum_k' exp(x[i, k', j])."""
    weight = np.exp(x - x.max(1, keepdims=True))
    out[...] = weight / weight.sum(1, keepdims=True)


def network_convolution(x: Array, kernel: Array, bias: Array | None, *, size: tuple[int, int], stride: tuple[int, int],
                        pad: tuple[int, int], out: Array) -> None:
    """out[n, o, y, x] = sum_{i, u, v} x[n, i, y s - p + u, x s - p + v] kernel[i u v, o] + bias[o], x zero outside."""
    n_source, n_in, height, width = x.shape
    n_out, out_height, out_width = out.shape[1:]
    room = [max((n_step - 1) * s + k, p + n) for n_step, s, k, p, n in
            zip((out_height, out_width), stride, size, pad, (height, width), strict=True)]
    padded = np.zeros((n_source, n_in, *room), x.dtype)
    padded[:, :, pad[0] : pad[0] + height, pad[1] : pad[1] + width] = x
    taps = kernel.reshape(n_in, *size, n_out)
    out[...] = 0 if bias is None else bias[:, None, None]
    for u in range(size[0]):
        for v in range(size[1]):
            shifted = padded[:, :, u :: stride[0], v :: stride[1]][:, :, :out_height, :out_width]
            out += np.einsum("niyx,io->noyx", shifted, taps[:, u, v])


def run(plan: Plan, inputs: Mapping[str, Array], dtype: Any = np.float64) -> dict[str, Array]:
    """Run a plan.

    Parameters
    ----------
    plan : Plan
    inputs : mapping of str to float
        Shapes as in `plan.inputs`.
    dtype : dtype
        Type of all numbers on the way.

    Returns
    -------
    dict of str to array
        Shapes as in `plan.outputs`.
    """
    flat = {ARENA: np.full(plan.arena_size, np.nan, dtype), CONSTANTS: plan.constants.astype(dtype)}
    flat |= {INPUTS + i: np.array(inputs[name], dtype).ravel() for i, name in enumerate(plan.inputs)}
    outputs = {name: np.full(shape, np.nan, dtype) for name, shape in plan.outputs.items()}
    flat |= {OUTPUTS + i: output.reshape(-1) for i, output in enumerate(outputs.values())}

    def at(view: View) -> Array:
        space, start = plan.places[view.buffer]
        whole = flat[space][start + view.offset :]
        strides = [s * whole.itemsize for s in view.strides]
        if not view.table:
            return as_strided(whole, view.shape, strides)
        axis, entries = view.table
        parts = [as_strided(whole[max(entry, 0) :], (*view.shape[:axis], 1, *view.shape[axis + 1 :]), strides)
                 * dtype(entry >= 0) for entry in entries]
        return np.concatenate(parts, axis)

    for step in plan.steps:
        if isinstance(step, Program):
            network_map(step, [at(view) for view in step.views])
        elif isinstance(step, Matmul):
            network_matmul(at(step.a), at(step.w), at(step.bias) if step.bias else None, at(step.out))
        elif isinstance(step, Reduce):
            (network_sum if step.function == "sum" else network_softmax)(at(step.x), at(step.out))
        elif isinstance(step, Convolution):
            network_convolution(at(step.x), at(step.kernel), at(step.bias) if step.bias else None, size=step.size,
                                stride=step.stride, pad=step.pad, out=at(step.out))
    return outputs
