"""The format of a bundle's manifest, for the exporter and the reader.

Unknown and missing keys, values of a wrong type or length, sizes above the limits and file names outside the folder are
errors.
"""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any, NamedTuple

FORMAT_REVISION = 3
MANIFEST = "manifest.json"
ARRAYS = ("basis.npy", "outskirts.npy", "shift.npy", "psf.npy", "detail_shared.npy", "detail_band.npy")
STORED_OUTPUTS = "golden.npz"  # inputs of the graphs, with their outputs in the framework of the training


class GraphSignature(NamedTuple):
    """Inputs and outputs of an ONNX graph: a shape for each name, in the symbols of `Bundle.sizes`."""

    inputs: dict[str, tuple[str, ...]]
    outputs: dict[str, tuple[str, ...]]


_LATENT: dict[str, tuple[str, ...]] = {"latent": ("N", "L")}
GRAPHS = {
    "decode": GraphSignature(_LATENT, {"coefficients": ("N", "B", "K")}),
    "decode_pullback": GraphSignature(_LATENT | {"d_coefficients": ("N", "B", "K")}, {"d_latent": ("N", "L")}),
    "decode_jacobian": GraphSignature(_LATENT, {"maps": ("N", "M", "K"), "d_maps": ("N", "2+S", "M", "K"),
                                                "mix": ("N", "M", "B"), "d_mix": ("N", "S", "M", "B")}),
    "log_prior": GraphSignature(_LATENT, {"log_prob": ("N",), "gradient": ("N", "L")}),
    "encode": GraphSignature({"cutouts": ("N", "B", "H", "H"), "offsets": ("N", "2"), "psf_summary": ("N", "2B")},
                             {"latent": ("N", "L")}),
}
"""The graphs of a bundle, with their inputs and outputs."""


class BundleError(ValueError):
    """The folder is not a bundle, is damaged, or needs a newer engine."""


def graph_sizes(*, n_band: int, n_basis: int, n_component: int, n_shape: int, cutout_size: int) -> dict[str, int]:
    """Return the lengths for the symbols of `GRAPHS`, except the number of sources N."""
    return {"B": n_band, "K": n_basis, "M": n_component, "S": n_shape, "L": n_band + 2 + n_shape, "2+S": 2 + n_shape,
            "2": 2, "2B": 2 * n_band, "H": cutout_size}


REQUIRED_FILES = (*ARRAYS, STORED_OUTPUTS, *(f"{name}.onnx" for name in GRAPHS))
_INTEGERS = ("format_revision", "stamp_size", "outskirts_binning", "n_basis", "n_component", "n_shape",
             "encoder_cutout_size", "opset")
_FLOATS = ("pixel_scale", "shape_radius", "reference_psf_sigma")
_STRINGS = ("name", "model_version", "reference_band", "flux_unit", "minimum_onnxruntime", "licence")
PERCENTILES = ("0.1", "1", "5", "25", "50", "75")
_OBJECTS = ("log_prob_percentiles", "training", "parity", "golden_tolerance", "files")
VECTORS = {"psf_fwhm": "B", "sky_sigma": "B", "start_shape": "S", "mean_color": "B", "color_sigma": "B"}
# The limits are far above the sizes of any bundle, and so low that no array of these sizes fills the memory.
SIZE_LIMITS = {"stamp_size": 1023, "outskirts_binning": 255, "n_basis": 4096, "n_component": 256, "n_shape": 256,
               "encoder_cutout_size": 1023, "opset": 1000}
MAX_BANDS, MAX_JSON_DEPTH, MAX_TEXT, MAX_LISTED = 64, 32, 100, 200
MAX_PER_SOURCE = 2**20  # numbers per source in an input or output of a graph; 3072 at most in the shipped bundles
MANIFEST_KEYS = (*_INTEGERS, *_FLOATS, *_STRINGS, *_OBJECTS, *VECTORS, "bands", "prior_curvature")


def parse_manifest(text: bytes, where: str) -> dict[str, Any]:
    """Parse and check a manifest.

    Parameters
    ----------
    text : bytes
        JSON.
    where : str
        Begins every error message.

    Returns
    -------
    dict
        Exactly the keys `MANIFEST_KEYS`, with values of the right types and lengths.

    Raises
    ------
    BundleError
        The manifest is not valid, or of another revision.
    """
    try:
        decoded = text.decode("utf-8")
        _check_depth(decoded)
        manifest = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_no_constant)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError among them
        raise BundleError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{where} is not a JSON object")
    revision = manifest.get("format_revision")
    if type(revision) is not int or revision < 1:
        raise BundleError(f"{where}: format_revision must be a positive integer, got {_shown(revision)}")
    if revision > FORMAT_REVISION:  # checked first: a newer bundle may have keys that this version does not know
        raise BundleError(f"{where}: format revision {_shown(revision)} is newer than {FORMAT_REVISION}, which is all "
                          "that this deblendrt reads: upgrade deblendrt")
    if revision < FORMAT_REVISION:
        raise BundleError(f"{where}: format revision {revision} is older than {FORMAT_REVISION}, which is all that "
                          "this deblendrt reads: export the model again")
    unknown, missing = sorted(set(manifest) - set(MANIFEST_KEYS)), sorted(set(MANIFEST_KEYS) - set(manifest))
    if unknown or missing:
        raise BundleError(f"{where}: unknown keys {_shown(unknown)}, missing keys {missing}")
    for keys, kind in ((_INTEGERS, int), (_STRINGS, str), (_OBJECTS, dict)):
        for key in keys:
            if type(manifest[key]) is not kind:
                raise BundleError(f"{where}: {key}: expected {kind.__name__}, got {_shown(manifest[key])}")
    for key in _STRINGS:
        _check_text(manifest[key], f"{where}: {key}")
    for key in _FLOATS:
        _check_numbers([manifest[key]], 1, f"{where}: {key}")
    _check_values(manifest, where)
    _check_files(manifest["files"], where)
    return manifest


def _check_depth(text: str) -> None:
    """Refuse deep nesting, because Python's parser recurses. The possessive *+ keeps this linear in any text."""
    depth = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', text, re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"more than {MAX_JSON_DEPTH} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key occurs twice: " + _shown([key for key, _ in pairs]))
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _check_numbers(value: Any, length: int, where: str) -> None:
    # JSON integers may be larger than any float.
    numbers = isinstance(value, list) and all(type(x) in (int, float) and abs(x) <= sys.float_info.max for x in value)
    if not numbers or len(value) != length:
        raise BundleError(f"{where}: expected {length} finite number(s), got {_shown(value)}")


def _shown(value: Any) -> str:
    """Return a value as text for a message, cut to `MAX_LISTED` characters."""
    text = repr(value)
    return text if len(text) <= MAX_LISTED else f"{text[:MAX_LISTED]}..."


def _check_values(manifest: dict[str, Any], where: str) -> None:
    bands, n_shape = manifest["bands"], manifest["n_shape"]
    if not (isinstance(bands, list) and bands and all(type(band) is str for band in bands)
            and len(set(bands)) == len(bands)):
        raise BundleError(f"{where}: bands: expected different strings, got {_shown(bands)}")
    if len(bands) > MAX_BANDS:
        raise BundleError(f"{where}: bands: expected {MAX_BANDS} at most, got {len(bands)}")
    for band in bands:
        _check_text(band, f"{where}: bands")
    for key, largest in SIZE_LIMITS.items():
        if manifest[key] > largest:
            raise BundleError(f"{where}: {key}: expected {largest} at most, got {_shown(manifest[key])}")
    if manifest["reference_band"] not in bands:
        raise BundleError(f"{where}: reference_band {manifest['reference_band']!r} is not one of bands {_shown(bands)}")
    for key, size in VECTORS.items():
        _check_numbers(manifest[key], {"B": len(bands), "S": n_shape}[size], f"{where}: {key}")
    curvature = manifest["prior_curvature"]
    if not isinstance(curvature, list) or len(curvature) != n_shape:
        raise BundleError(f"{where}: prior_curvature: expected {n_shape} rows")
    for row in curvature:
        _check_numbers(row, n_shape, f"{where}: prior_curvature")
    for key in ("stamp_size", "outskirts_binning", "encoder_cutout_size"):
        if manifest[key] < 1 or manifest[key] % 2 == 0:
            raise BundleError(f"{where}: {key}: expected an odd positive integer, got {manifest[key]}")
    for key in ("n_basis", "n_component", "n_shape", *_FLOATS):
        if not manifest[key] > 0:
            raise BundleError(f"{where}: {key}: expected a positive number, got {manifest[key]}")
    if manifest["flux_unit"] != "nJy":
        raise BundleError(f"{where}: flux_unit: expected 'nJy', got {manifest['flux_unit']!r}")
    for key, names in (("parity", {"float32", "float64"}), ("golden_tolerance", {"rtol", "atol"})):
        table = manifest[key]
        if set(table) != set(GRAPHS) or any(not isinstance(row, dict) or set(row) != names for row in table.values()):
            raise BundleError(f"{where}: {key}: expected {sorted(names)} for each of {sorted(GRAPHS)}, got "
                              f"{_shown(table)}")
        for graph, row in table.items():
            _check_numbers(list(row.values()), 2, f"{where}: {key}: {graph}")
    percentiles = manifest["log_prob_percentiles"]
    if set(percentiles) != set(PERCENTILES):
        raise BundleError(f"{where}: log_prob_percentiles: expected {list(PERCENTILES)}, got "
                          f"{_shown(sorted(percentiles))}")
    _check_numbers(list(percentiles.values()), len(percentiles), f"{where}: log_prob_percentiles")
    population = manifest["training"].get("population")
    for key in ("magnitude_min", "magnitude_max"):
        limit = population.get(key) if isinstance(population, dict) else None
        _check_numbers([limit], 1, f"{where}: training: population: {key}")
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", manifest["minimum_onnxruntime"]):
        raise BundleError(f"{where}: minimum_onnxruntime: expected a version, got {manifest['minimum_onnxruntime']!r}")
    sizes = graph_sizes(n_band=len(bands), n_basis=manifest["n_basis"], n_component=manifest["n_component"],
                        n_shape=n_shape, cutout_size=manifest["encoder_cutout_size"])
    for name, graph in GRAPHS.items():
        for key, symbols in (graph.inputs | graph.outputs).items():
            if (number := math.prod(sizes[symbol] for symbol in symbols[1:])) > MAX_PER_SOURCE:
                raise BundleError(f"{where}: {name}: {key} would have {number} numbers a source, more than "
                                  f"{MAX_PER_SOURCE}")


def _check_text(text: str, where: str) -> None:
    """Refuse long or unprintable text: names are shown in terminals, headers of FITS files and messages."""
    if len(text) > MAX_TEXT or not (text.isascii() and text.isprintable()):
        raise BundleError(f"{where}: expected {MAX_TEXT} printable ASCII characters at most, got {_shown(text)}")


def _check_files(files: dict[str, Any], where: str) -> None:
    for name, digest in files.items():
        # A plain name: no path separator of any system, no drive, no "..", no hidden file.
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name == MANIFEST:
            raise BundleError(f"{where}: files: {_shown(name)} is not a plain file name in the bundle")
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise BundleError(f"{where}: files: {_shown(name)}: {_shown(digest)} is not a SHA-256 in hexadecimal")
    if set(files) != set(REQUIRED_FILES):
        raise BundleError(f"{where}: files: unknown {_shown(sorted(set(files) - set(REQUIRED_FILES)))}, "
                          f"missing {sorted(set(REQUIRED_FILES) - set(files))}")
