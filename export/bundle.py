"""Writes a model bundle: graphs, arrays, stored outputs, and the manifest with their hashes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.model import outskirts
from deblendrt.engine.model.bundle import load_bundle
from deblendrt.engine.model.manifest import FORMAT_REVISION, GRAPHS, MANIFEST, STORED_OUTPUTS
from deblendrt.engine.model.verification import verify_bundle
from deblendrt.export.networks.graphs import GRAPH_OPSET, MINIMUM_ONNXRUNTIME, export_graphs, to_float32
from deblendrt.export.networks.parity import check_parity, example_inputs, reference_outputs

if TYPE_CHECKING:
    from deblendrt.training.checkpoint import TrainedModel

PARITY_SOURCES, PARITY_SEED = 64, 1
STORED_SOURCES, STORED_SEED = 5, 2  # fewer than a tile, so that `deblendrt verify` runs the networks' padding too

# Tolerance of stored outputs on a user's machine, relative to a source's largest element. On the exporting machine,
# outputs are within 1e-6 of torch in float64 (the manifest's "parity"). Another processor, BLAS kernel or ONNX Runtime
# sums in another order, which moves float32 sums of some hundred terms by as much again. Twenty times the parity leaves
# room for both, and for weights of worse condition. It is a hundredth of the model's error. atol is for rows that are
# nearly zero, in the output's units.
STORED_TOLERANCE = {name: {"rtol": 2e-5, "atol": 1e-6} for name in GRAPHS}

# Largest deviation of the basis from its core and cells, relative to its maximum: a few roundings of float32
BASIS_LIMIT = 1e-6


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array in NumPy's format, float32 in C order."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array, np.float32), allow_pickle=False)
    return file.getvalue()


def npz_bytes(arrays: dict[str, NDArray[Any]]) -> bytes:
    """A NumPy archive whose bytes depend only on the arrays; `numpy.savez` stores the time too."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, npy_bytes(array))
    return file.getvalue()


def stored_outputs(model: TrainedModel) -> dict[str, NDArray[np.float32]]:
    """Inputs "graph.in.name" and outputs "graph.out.name" of the graphs, computed by torch in float64."""
    inputs = example_inputs(model, STORED_SOURCES, STORED_SEED)
    outputs = reference_outputs(model, inputs)
    return {f"{name}.{kind}.{key}": value.astype(np.float32) for name in GRAPHS
            for kind, values in (("in", inputs[name]), ("out", outputs[name])) for key, value in values.items()}


def split_basis(model: TrainedModel) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Core and outskirts of the basis, as the bundle stores them.

    Returns
    -------
    core : float32 (n_basis, core_size, core_size)
    cells : float32 (n_basis, q, q)

    Raises
    ------
    ValueError
        The basis is not bilinear outside its core: the bundle's basis would not be the decoder's.
    """
    spec = model.config.basis
    core, cells = outskirts.split(model.basis, spec.core_size, spec.binning)
    error = np.abs(outskirts.expand(core, cells, spec.binning) - model.basis).max() / np.abs(model.basis).max()
    if not error <= BASIS_LIMIT:
        raise ValueError(f"the basis is not bilinear between cells of {spec.binning} pixels outside its core of "
                         f"{spec.core_size}: off by {error:.1e} of its maximum, above {BASIS_LIMIT:.0e}")
    return core, cells


def bundle_files(model: TrainedModel) -> tuple[dict[str, bytes], dict[str, dict[str, float]]]:
    """Contents of every file except the manifest, and the graphs' parity.

    Raises
    ------
    ExportError, ValueError
        A graph does not export, or is too far from torch; the basis does not fit its cells.
    """
    basis, cells = split_basis(model)
    wide = export_graphs(model)
    graphs = {name: to_float32(proto) for name, proto in wide.items()}
    inputs = example_inputs(model, PARITY_SOURCES, PARITY_SEED)
    parity = check_parity(graphs, wide, inputs, reference_outputs(model, inputs))
    files = {f"{name}.onnx": proto.SerializeToString(deterministic=True) for name, proto in graphs.items()}
    no_modes = npy_bytes(np.zeros((0, model.decoder.n_basis)))  # `write_detail` adds them: learning needs a bundle
    files |= {"basis.npy": npy_bytes(basis), "outskirts.npy": npy_bytes(cells), "shift.npy": npy_bytes(model.shift),
              "psf.npy": npy_bytes(model.nominal_psf), "detail_shared.npy": no_modes,
              "detail_band.npy": no_modes, STORED_OUTPUTS: npz_bytes(stored_outputs(model))}
    return files, parity


def manifest_of(model: TrainedModel, files: dict[str, bytes], parity: dict[str, dict[str, float]], *,
                model_version: str, licence: str) -> dict[str, Any]:
    """The manifest, as `deblendrt.engine.model.manifest` reads it."""
    config, decoder = model.config, model.decoder
    return {
        "format_revision": FORMAT_REVISION,
        "name": config.name,
        "model_version": model_version,
        "licence": licence,
        "bands": list(config.survey.bands),
        "reference_band": config.survey.reference_band,
        "pixel_scale": config.survey.pixel_scale,
        "stamp_size": config.basis.core_size,
        "outskirts_binning": config.basis.binning,
        "n_basis": decoder.n_basis,
        "n_component": decoder.n_component,
        "n_shape": decoder.n_shape,
        "shape_radius": decoder.shape_radius,
        "reference_psf_sigma": config.basis.reference_psf_sigma,
        "flux_unit": "nJy",
        "psf_fwhm": np.asarray(model.psf_fwhm, np.float64).tolist(),
        "sky_sigma": np.asarray(model.sky_sigma, np.float64).tolist(),
        "encoder_cutout_size": config.encoder.cutout_size,
        "start_shape": np.asarray(model.start_shape, np.float64).tolist(),
        "prior_curvature": np.asarray(model.prior_curvature, np.float64).tolist(),
        "mean_color": np.asarray(model.mean_color, np.float64).tolist(),
        "color_sigma": np.asarray(model.color_sigma, np.float64).tolist(),
        "log_prob_percentiles": {key: float(value) for key, value in model.log_prob_percentiles.items()},
        "training": config.to_dict() | {"population": config.to_dict()["population"] | model.population},
        "parity": parity,
        "opset": GRAPH_OPSET,
        "minimum_onnxruntime": MINIMUM_ONNXRUNTIME,
        "golden_tolerance": STORED_TOLERANCE,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    }


def write_bundle(model: TrainedModel, out: str | Path, *, model_version: str = "1", licence: str = "BSD-3-Clause",
                 overwrite: bool = False) -> list[str]:
    """Export a model into a bundle. The bundle is verified before it appears under its name.

    Parameters
    ----------
    model : TrainedModel
        From `deblendrt.training.checkpoint.load_model`.
    out : str or Path
        The bundle's folder. It must be absent, empty or, with `overwrite`, a bundle.
    model_version, licence : str
    overwrite : bool

    Returns
    -------
    list of str
        The lines of `verify_bundle`.

    Raises
    ------
    FileExistsError
        `out` holds something.
    ExportError, ValueError, BundleError
        A graph does not export, is too far from torch, or fails the verification.
    """
    out = Path(out)
    check_target(out, overwrite=overwrite)
    files, parity = bundle_files(model)
    manifest = manifest_of(model, files, parity, model_version=model_version, licence=licence)
    return _write(out, files, manifest)


def _write(out: Path, files: dict[str, bytes], manifest: dict[str, Any]) -> list[str]:
    """Write the files of a bundle, verify it, and move it to its place."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        lines = verify_bundle(folder)
        if out.exists():
            shutil.rmtree(out)
        os.replace(folder, out)
    return lines


def write_detail(bundle: str | Path, out: str | Path, shared: NDArray[np.floating], per_band: NDArray[np.floating], *,
                 model_version: str, shared_light_error: float | None = None,
                 overwrite: bool = False) -> list[str]:
    """Copy a bundle with other modes of detail. The copy is verified before it appears under its name.

    Parameters
    ----------
    bundle : str or Path
        Shipped name or folder of a bundle.
    out : str or Path
        The new bundle's folder; see `write_bundle`.
    shared : float (n_shared, n_basis)
    per_band : float (n_band_mode, n_basis)
    model_version : str
    shared_light_error : float, optional
        See `deblendrt.engine.measure.systematic_error.from_sharing`, from 0 to 1. Default: that of the old bundle.
    overwrite : bool

    Returns
    -------
    list of str
        The lines of `verify_bundle`.
    """
    if shared_light_error is not None and not 0 <= shared_light_error <= 1:
        raise ValueError(f"shared_light_error: expected a value from 0 to 1, got {shared_light_error}")
    old = load_bundle(bundle)
    files = {name: old.read(name) for name in old.files}
    files |= {"detail_shared.npy": npy_bytes(shared), "detail_band.npy": npy_bytes(per_band)}
    manifest = json.loads((old.path / MANIFEST).read_text())
    manifest |= {"model_version": model_version,
                 "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}}
    if shared_light_error is not None:
        manifest["training"] |= {"shared_light_error": shared_light_error}
    check_target(Path(out), overwrite=overwrite)
    return _write(Path(out), files, manifest)


def check_target(out: Path, *, overwrite: bool) -> None:
    """Raise `FileExistsError` unless the target is absent, empty or, to overwrite, a bundle."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / MANIFEST).is_file():
        raise FileExistsError(f"{out} exists and is not a bundle")
    if not overwrite:
        raise FileExistsError(f"{out} is a bundle already; --overwrite replaces it")
