"""Parity: errors of exported graphs against their torch modules.

The reference is torch in float64, with the float32 weights. Two errors are measured:

- "float32": the error of the bundle's graphs in ONNX Runtime. They round to float32, which
  makes errors of 1e-7 to 1e-5.
- "float64": the error of the same graphs before they become float32, in ONNX's reference evaluator, since ONNX Runtime
  has no float64 convolution. If the algebra of the graphs is right, the error is 1e-15. The float32 error alone
  cannot show a mistake of 1e-6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from deblendrt.engine.model.manifest import GRAPHS
from deblendrt.engine.model.verification import output_error
from deblendrt.engine.units import AB_ZERO_POINT
from deblendrt.export.networks.graphs import functions, model_sizes

if TYPE_CHECKING:
    from deblendrt.training.checkpoint import TrainedModel

Arrays = dict[str, NDArray[Any]]

# Largest relative errors (see `output_error`) that an export may have. float64: a hundred roundings of 2e-16, amplified
# by the cancellations of a shift by half a pixel. float32: the same in units of 6e-8, with sums over up to 700 terms.
PARITY_LIMIT = {"float32": 2e-5, "float64": 1e-12}


def example_inputs(model: TrainedModel, n_source: int, seed: int) -> dict[str, Arrays]:
    """Return plausible inputs of every graph.

    Latents have the population's magnitudes and colours, offsets within half a pixel, and shapes of unit scatter around
    the prior's mean. The last source's shape lies on the bound. Cutouts have a peak and noise of sigma one.

    Parameters
    ----------
    model : TrainedModel
    n_source : int
    seed : int

    Returns
    -------
    dict of str to dict of str to float32 arrays
        By graph and input.
    """
    rng = np.random.default_rng(seed)
    sizes, population = model_sizes(model), model.config.population
    n_band, n_shape = sizes["B"], sizes["S"]
    magnitude = rng.uniform(population.magnitude_min, population.magnitude_max, (n_source, 1))
    log_flux = 0.4 * np.log(10.0) * (AB_ZERO_POINT - magnitude) + model.mean_color
    log_flux = log_flux + model.color_sigma * rng.standard_normal((n_source, n_band))
    shape = model.start_shape + rng.standard_normal((n_source, n_shape))
    shape[-1] *= model.decoder.shape_radius / np.linalg.norm(shape[-1])
    latent = np.concatenate([log_flux, rng.uniform(-0.5, 0.5, (n_source, 2)), shape], 1).astype(np.float32)
    size = sizes["H"]
    y, x = np.mgrid[:size, :size] - size // 2
    cutouts = (rng.uniform(1, 100, (n_source, n_band, 1, 1)) * np.exp(-(x**2 + y**2) / 18.0)
               + rng.standard_normal((n_source, n_band, size, size)))
    summary = np.concatenate([rng.uniform(2.5, 5.5, (n_source, n_band)), rng.uniform(0, 3, (n_source, n_band))], 1)
    d_coefficients = rng.standard_normal((n_source, n_band, sizes["K"])).astype(np.float32)
    inputs: dict[str, Arrays] = {name: {"latent": latent} for name in GRAPHS if name != "encode"}
    inputs["decode_pullback"] = {"latent": latent, "d_coefficients": d_coefficients}
    inputs["encode"] = {"cutouts": cutouts.astype(np.float32), "offsets": latent[:, n_band : n_band + 2],
                        "psf_summary": summary.astype(np.float32)}
    return inputs


def reference_outputs(model: TrainedModel, inputs: dict[str, Arrays]) -> dict[str, Arrays]:
    """Outputs of the torch modules in float64, by graph and output."""
    outputs = {}
    for name, function in functions(model).items():
        values = function(*(torch.from_numpy(value).double() for value in inputs[name].values()))
        values = values if isinstance(values, tuple) else (values,)
        outputs[name] = {key: value.detach().numpy() for key, value in zip(GRAPHS[name].outputs, values, strict=True)}
    return outputs


def graph_outputs(proto: onnx.ModelProto, inputs: Arrays) -> Arrays:
    """Outputs of a graph: from ONNX Runtime if it is float32, from ONNX's reference evaluator if float64."""
    keys = [value.name for value in proto.graph.output]
    if proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE:
        wide = {key: value.astype(np.float64) for key, value in inputs.items()}
        return dict(zip(keys, ReferenceEvaluator(proto).run(keys, wide), strict=True))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(keys, session.run(keys, inputs), strict=True))


def graph_error(proto: onnx.ModelProto, inputs: Arrays, expected: Arrays) -> float:
    """Largest relative error, `output_error`, over a graph's outputs."""
    actual = graph_outputs(proto, inputs)
    return max(output_error(actual[key], expected[key]) for key in expected)


def check_parity(graphs: dict[str, onnx.ModelProto], wide: dict[str, onnx.ModelProto], inputs: dict[str, Arrays],
                 expected: dict[str, Arrays]) -> dict[str, dict[str, float]]:
    """Errors of every graph, checked.

    Parameters
    ----------
    graphs, wide : dict of str to onnx.ModelProto
        In float32 and float64.
    inputs, expected : dict of str to dict of str to array
        From `example_inputs` and `reference_outputs`.

    Returns
    -------
    dict of str to dict
        The errors "float32" and "float64" of each graph, as the manifest stores them.

    Raises
    ------
    ValueError
        An error is above `PARITY_LIMIT`.
    """
    parity = {name: {"float32": graph_error(graphs[name], inputs[name], expected[name]),
                     "float64": graph_error(wide[name], inputs[name], expected[name])} for name in graphs}
    for name, errors in parity.items():
        for precision, error in errors.items():
            if not error <= PARITY_LIMIT[precision]:
                raise ValueError(f"{name}: {precision} parity with torch is {error:.1e}, above "
                                 f"{PARITY_LIMIT[precision]:.0e}")
    return parity
