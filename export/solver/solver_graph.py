"""The whole solver as one ONNX graph, for languages other than Python.

The graph takes one scene of a fixed size with a fixed number of places for sources. It returns the catalogue and the
model image. It needs ONNX Runtime only: no Python, no bundle and no other file, since the PSF and the folded basis are
in the graph. Iterations, blends, windows and errors are the engine's, and both agree to a small fraction of the errors.
All sources are galaxies, and unlisted sources are not searched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray

from deblendrt.engine.compute import drawing
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.compute.folding import fold_bundle
from deblendrt.engine.files.atomic_write import in_place_of
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.onnxruntime_cpu import OrtRuntime
from deblendrt.engine.scene.blends import MAX_BLEND
from deblendrt.engine.scene.flags import DESCRIPTIONS
from deblendrt.engine.solve import constants
from deblendrt.export.solver.descent import DescentGraph
from deblendrt.export.solver.drawing import DrawingGraph
from deblendrt.export.solver.graph_builder import Builder
from deblendrt.export.solver.measures import measured_outputs
from deblendrt.export.solver.objective import ObjectiveGraph
from deblendrt.export.solver.start import anchors, pixels_of, scene_of, start_latents

# Type and shape of each: B bands, N sources, L latents
SOLVER_INPUTS: Mapping[str, tuple[DTypeLike, tuple[str, ...]]] = {
    "image": (np.float32, ("B", "NY", "NX")), "variance": (np.float32, ("B", "NY", "NX")),
    "centers": (np.float32, ("N", "2")), "valid": (bool, ("N",)),
}
SOLVER_OUTPUTS: Mapping[str, tuple[DTypeLike, tuple[str, ...]]] = {
    "flux": (np.float32, ("N", "B")), "flux_err": (np.float32, ("N", "B")), "map_flux": (np.float32, ("N", "B")),
    "position": (np.float32, ("N", "2")), "position_err": (np.float32, ("N", "2")), "latent": (np.float32, ("N", "L")),
    "chi2": (np.float32, ("N",)), "n_pixel": (np.int32, ("N",)), "log_prior": (np.float32, ("N",)),
    "blend": (np.int32, ("N",)), "flags": (np.int32, ("N",)), "model": (np.float32, ("B", "NY", "NX")),
    "scene_chi2": (np.float64, ("1",)), "objective": (np.float64, ("1",)), "n_iteration": (np.int32, ("1",)),
}


def solver_graph(bundle: Bundle, n_source: int, shape: tuple[int, int], *,
                 n_iteration: int = constants.ITERATIONS["gauss_newton"],
                 psf: NDArray[np.floating] | None = None, start: str = "encoder", rounds: bool = True,
                 center_sigma: float = constants.CENTER_SIGMA) -> onnx.ModelProto:
    """The solver of a bundle as one graph. Its inputs and outputs are `SOLVER_INPUTS` and `SOLVER_OUTPUTS`.

    Parameters
    ----------
    bundle : Bundle
    n_source : int
        Places for sources. A scene may have fewer sources.
    shape : (int, int)
        (n_y, n_x) of the image [pixel].
    n_iteration : int
    psf : float (n_band, q, q), optional
        Default: the bundle's nominal PSFs.
    start : {"encoder", "linear"}
    rounds : bool
        Whether blends that still move get further iterations, at most `FURTHER_ROUNDS` times `n_iteration`.
    center_sigma : float [pixel]

    Returns
    -------
    onnx.ModelProto
        Its metadata hold the bundle's name, version and hash, and the arguments.

    Raises
    ------
    ValueError
        A number is out of range, or the PSF has a wrong shape.
    """
    if not 1 <= n_source <= MAX_BLEND:
        raise ValueError(f"n_source: expected 1 to {MAX_BLEND}, got {n_source}")
    if min(shape) < 1 or n_iteration < 0 or start not in ("encoder", "linear") or not center_sigma > 0:
        raise ValueError(f"expected a shape of at least 1 x 1, n_iteration of at least 0, start 'encoder' or 'linear' "
                         f"and a positive center_sigma, got {shape}, {n_iteration}, {start!r} and {center_sigma}")
    images = np.asarray(bundle.psf if psf is None else psf, np.float64)
    if images.ndim != 3 or len(images) != bundle.n_band:
        raise ValueError(f"psf: expected ({bundle.n_band}, q, q), got {images.shape}")
    folded = fold_bundle(bundle, images)
    graphs = {name: onnx.load_from_string(bundle.read(f"{name}.onnx"))
              for name in ("decode_jacobian", "log_prior", "encode")}
    b = Builder(bundle.opset)
    sizes = {"B": bundle.n_band, "N": n_source, "NY": shape[0], "NX": shape[1], "L": bundle.n_latent, "2": 2, "1": 1}
    image, variance, centers, valid = (b.input(name, dtype, [sizes[s] for s in symbols])
                                       for name, (dtype, symbols) in SOLVER_INPUTS.items())
    pixels = pixels_of(b, image, variance)
    anchor, finite = anchors(b, centers, shape)
    draw = DrawingGraph(b, folded, n_source, shape, anchor)
    scene, flags = scene_of(b, draw, pixels, centers, finite, valid, _profiles(bundle, folded))
    objective = ObjectiveGraph(b, bundle, graphs, draw, scene, center_sigma)
    descent = DescentGraph(objective, n_iteration, rounds=rounds)
    blends, latent, floor, extent = start_latents(objective, descent, start)
    point, extent, _, n_run = descent.run(blends, latent, floor, extent)
    found = measured_outputs(objective, descent, blends, point, extent, flags) | {"n_iteration": n_run.reshape(1)}
    for name, (dtype, symbols) in SOLVER_OUTPUTS.items():
        b.output(name, found[name].cast(dtype), [sizes[s] for s in symbols])
    metadata: dict[str, Any] = {
        "bundle": bundle.name, "model_version": bundle.model_version, "sha256": bundle.sha256,
        "licence": bundle.licence, "bands": list(bundle.bands), "pixel_scale": bundle.pixel_scale,
        "flux_unit": bundle.flux_unit, "n_source": n_source, "shape": list(shape), "n_iteration": n_iteration,
        "start": start, "rounds": rounds, "center_sigma": center_sigma, "psf_fwhm_pixel": folded.fwhm.tolist(),
        "flags": {str(flag.name): {"bit": int(flag), "means": text} for flag, text in DESCRIPTIONS.items()},
    }
    return b.model({key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()})


def _profiles(bundle: Bundle, folded: FoldedBasis) -> list[NDArray[np.float32]]:
    """Weights of mean weights in windows of each size, float32 (n_band, size^2, 1), see `start.build_problem`."""
    mean_galaxy = np.concatenate([np.zeros(folded.n_band + 2), bundle.start_shape])[None]
    square = drawing.stamps(OrtRuntime(bundle).decode(mean_galaxy), folded)[0].astype(np.float64) ** 2
    profile = (square / square.sum((1, 2), keepdims=True)).astype(np.float32)
    result = []
    for inset in (0, *folded.insets):
        inside = slice(inset, folded.window - inset)
        result.append(np.ascontiguousarray(profile[:, inside, inside]).reshape(folded.n_band, -1, 1))
    return result


def write_solver(model: onnx.ModelProto, path: str | Path) -> None:
    """Write a graph to a file. The file appears under its name when it is complete.

    Parameters
    ----------
    model : onnx.ModelProto
        From `solver_graph`.
    path : str or Path

    Raises
    ------
    OSError
    """
    with in_place_of(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
