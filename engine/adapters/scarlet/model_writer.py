"""Results as scarlet_lite's persisted models, written without scarlet_lite.

scarlet_lite (Moolekamp et al., Rubin's deblender) persists a blend as the components of its sources in a PSF-free
frame. A component is a spectrum times a morphology under a narrow circular *model PSF*. The reader convolves the
component with the difference kernel to the observed PSF. This engine has the same frame: a source is a few component
maps with a flux per band under a Gaussian *reference PSF*. A result is therefore written exactly, apart from the finite
windows of the sources. The model PSF is the reference PSF. The coefficients of a source (n_band, n_basis) have the rank
of the model's number of maps and are decomposed as

    coefficients[b] = sum_m spectrum[m, b] map[m]

with the maps of the bands that differ most. The morphologies are then images of the source in a band, and the spectra
of positive fluxes are positive, because the other bands lie between the chosen ones.

Two containers hold the same blends: ``ScarletModelData`` of scarlet_lite (one JSON text), and ``LsstScarletModelData``
of Rubin's meas_extensions_scarlet (a zip file ``.scarlet`` with a JSON text per parent), from which Rubin's pipelines
make heavy footprints. The schemas "1.0.0" are written; later readers migrate them. The facts are from lsst/scarlet_lite
(w.2025.43) python/lsst/scarlet/lite/io/*.py and lsst/meas_extensions_scarlet
python/lsst/meas/extensions/scarlet/io/*.py.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.adapters.scarlet.model_reader import ScarletModel, read_model
from deblendrt.engine.compute import canvases, drawing
from deblendrt.engine.compute.folding import fold_bundle
from deblendrt.engine.files.atomic_write import in_place_of
from deblendrt.engine.measure.light_shares import footprint
from deblendrt.engine.scene.flags import NOT_FITTED, Flag
from deblendrt.engine.units import AB_ZERO_POINT

if TYPE_CHECKING:
    from deblendrt.engine.model.bundle import Bundle
    from deblendrt.engine.result.result import DeblendResult

__all__ = ["ScarletModel", "components", "model_data", "read_model", "write_model"]

# The oldest schema that can hold the models, because a reader refuses schemas newer than its own.
SCARLET_VERSION = "1.0.0"
RANK_TOLERANCE = 3e-6  # relative to a source's brightest band: float32 coefficients have the model's rank to 1e-6
FAINTEST_BAND = 1e-8  # relative to a source's brightest band: fainter bands have no map of their own
BLEND_BORDER = 8  # pixels around the significant light of a blend
DECIMALS = 9  # decimals of morphologies of unit sum: exact to a ten-millionth of the peak, in half the file size


def components(coefficients: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Decompose the coefficients of a source into spectra and maps.

    Bands are picked one after the other. The next band is the band whose map is farthest from the span of the picked
    maps. A decoder's galaxy has few maps. With detail a galaxy may have a map for each band, and no spectrum is
    negative: if a sum of the picked maps would need it, all bands are picked.

    Parameters
    ----------
    coefficients : float32 (n_band, n_basis) [nJy]

    Returns
    -------
    spectra : float64 (n_component, n_band)
        Flux of each band in units of the map's norm.
    maps : float64 (n_component, n_basis)
        Coefficients of the picked bands, normalized.
    """
    rows = coefficients.astype(np.float64)
    norm = np.linalg.norm(rows, axis=1)
    usable = norm > FAINTEST_BAND * norm.max(initial=0.0)
    unit = np.divide(rows, norm[:, None], out=np.zeros_like(rows), where=usable[:, None])
    rest = unit.copy()
    picked: list[int] = []
    for _ in range(len(rows)):
        length = np.linalg.norm(rest, axis=1)
        best = int(np.argmax(length))
        if length[best] <= RANK_TOLERANCE:
            break
        # At first all distances are equal. The band that differs most from the mean is at an end of the range.
        if not picked:
            best = int(np.argmax(np.where(usable, np.linalg.norm(unit - unit[usable].mean(0), axis=1), -1)))
        picked.append(best)
        direction = rest[best] / np.linalg.norm(rest[best])
        rest -= np.outer(rest @ direction, direction)
    maps = unit[picked]
    spectra = np.linalg.lstsq(maps.T, rows.T, rcond=None)[0] if picked else np.zeros((0, len(rows)))
    if (spectra < -RANK_TOLERANCE * spectra.max(initial=0.0)).any():
        return np.diag(norm)[usable], unit[usable]
    return spectra, maps


@dataclass(frozen=True)
class _Drawn:
    """A source as scarlet_lite's JSON, with boxes in pixels of the parent image, and its row in the result."""

    entry: dict[str, Any]
    row: int


def model_data(result: DeblendResult, bundle: Bundle, *, source_ids: Sequence[int] | None = None,
               parent_ids: Sequence[int] | None = None, xy0: tuple[int, int] = (0, 0), i_scene: int = 0,
               bands: Sequence[str] | None = None, zero_point: float = AB_ZERO_POINT,
               container: str = "scarlet_lite") -> dict[str, Any]:
    """Return a scene of a result as scarlet_lite's model data, ready for JSON.

    Parameters
    ----------
    result : DeblendResult
    bundle : Bundle
        The model of the result: ``deblender.bundle``.
    source_ids, parent_ids : sequence of int (n_source,), optional
        Ids of the scene's sources and of the blends to write them in; default: the rows and the blends of the result.
        A source that was not fitted is then a blend of its own.
    xy0 : tuple of int [pixel]
        (x, y) of the image's first pixel in the parent image.
    i_scene : int
    bands : sequence of str, optional
        Bands to write. Default: the bands in which the scene has data.
    zero_point : float [AB mag]
        Zero point of the spectra; default: nJy.
    container : {"scarlet_lite", "lsst"}
        "scarlet_lite" is `ScarletModelData`, whose blends have their own PSFs. "lsst" is `LsstScarletModelData`, which
        has a single PSF: the most frequent PSF of the sources.

    Returns
    -------
    dict
        Data for `write_model` or ``ScarletModelData.parse_obj``. It holds every source. A source that was not fitted is
        a pixel of zero flux with ``deblend_failed`` and ``deblend_error`` in its metadata, which Rubin's catalogues
        flag as ``deblend_zeroFlux``.

    Raises
    ------
    ValueError
        An argument is wrong.
    """
    if container not in ("scarlet_lite", "lsst"):
        raise ValueError(f'container: expected "scarlet_lite" or "lsst", got {container!r}')
    rows, scene = result.sources(i_scene), result.scenes[i_scene]
    n = rows.stop - rows.start
    names = tuple(bands) if bands is not None else tuple(
        band for band, present in zip(result.bands, scene.band_present, strict=True) if present)
    if any(name not in result.bands for name in names):
        raise ValueError(f"bands: expected some of {', '.join(result.bands)}, got {bands!r}")
    own = [result.bands.index(name) for name in names]
    ids = _numbers(source_ids, np.arange(rows.start, rows.stop), n, "source_ids")
    if len(np.unique(ids)) != n:
        raise ValueError("source_ids: expected distinct numbers")
    blend = result.blend[rows]
    alone = int(blend.max(initial=-1)) + 1 + np.arange(n)
    parents = _numbers(parent_ids, np.where(blend < 0, alone, blend), n, "parent_ids")
    drawn = _draw(result, bundle, rows, own, ids, xy0, 10 ** ((zero_point - AB_ZERO_POINT) / 2.5))
    reference = _reference_image(bundle)
    blends: dict[str, Any] = {}
    for parent in dict.fromkeys(parents.tolist()):
        members = [drawn[k] for k in np.flatnonzero(parents == parent)]
        origin, spans = _spans(result, bundle, [member.row for member in members], i_scene, own, xy0)
        entry: dict[str, Any] = {
            "blend_type": "blend", "origin": list(origin), "shape": list(spans.shape), "version": SCARLET_VERSION,
            "sources": {str(ids[member.row - rows.start]): member.entry for member in members}}
        if container == "lsst":
            blends[str(parent)] = {"blend_type": "hierarchical", "version": SCARLET_VERSION,
                                   "children": {str(parent): entry},
                                   "metadata": _encode({"spans": spans, "origin": list(origin)})}
        else:
            psf = result.folded.images[result.folded_index[members[0].row]][own] if len(result.folded) else None
            blends[str(parent)] = entry | {"metadata": _encode(
                {"bands": list(names), "model_psf": reference[None]} | ({} if psf is None else {"psf": psf}))}
    model: dict[str, Any] = {"bands": list(names), "model_psf": reference if container == "lsst" else reference[None]}
    if len(result.folded) and n:
        commonest = int(np.bincount(result.folded_index[rows]).argmax())
        model["psf"] = result.folded.images[commonest][own]
    if container == "lsst":
        return {"model_type": "lsst", "version": SCARLET_VERSION, "blends": blends, "isolated": {},
                "metadata": _encode(model)}
    return {"model_type": "scarlet_model", "version": SCARLET_VERSION, "blends": blends, "metadata": _encode(model)}


def _numbers(given: Sequence[int] | None, default: NDArray[np.int64], n: int, name: str) -> NDArray[np.int64]:
    values = default if given is None else np.asarray(given)
    if values.shape != (n,) or values.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected {n} whole numbers, got {values.shape} of {values.dtype}")
    return values.astype(np.int64)


def _reference_image(bundle: Bundle) -> NDArray[np.float64]:
    """Return the reference PSF, a Gaussian of sum one, float64 (q, q). Off the image it is below 1e-8 of the peak."""
    half = int(np.ceil(6.1 * bundle.reference_psf_sigma))
    profile = np.exp(-0.5 * (np.arange(-half, half + 1) / bundle.reference_psf_sigma) ** 2)
    image = np.outer(profile, profile)
    return np.asarray(image / image.sum())


def _draw(result: DeblendResult, bundle: Bundle, rows: slice, own: list[int], ids: NDArray[np.int64],
          xy0: tuple[int, int], scale: float) -> list[_Drawn]:
    """Return the sources of a scene, with their components drawn under the reference PSF."""
    basis = fold_bundle(bundle, _reference_image(bundle)[None])
    height, width = result.scenes[int(result.scene_index[rows.start])].shape if rows.start < rows.stop else (1, 1)
    drawn = []
    for k, row in enumerate(range(rows.start, rows.stop)):
        extent = result.extent[[row]]
        parts, peak = [], result.position[row]
        if result.fitted[row]:
            x, y = drawing.corners(basis, result.anchor[[row]] - basis.half, extent)[0].tolist()
            spectra, maps = components(result.coefficients[row][own])
            maps32 = maps[:, None].astype(np.float32)
            stamps = drawing.each_stamp(maps32, basis, np.repeat(extent, len(maps)))
            for spectrum, stamp in zip(spectra * scale, stamps, strict=True):
                total = float(stamp.sum(dtype=np.float64)) or 1.0
                parts.append((spectrum * total, stamp[0].astype(np.float64) / total, (y + xy0[1], x + xy0[0])))
        if not parts:
            given = np.where(np.isfinite(result.center[row]), result.center[row], 0.0)
            peak = np.clip(given, 0, (width - 1, height - 1))
            corner = (int(np.rint(peak[1])) + xy0[1], int(np.rint(peak[0])) + xy0[0])
            parts.append((np.zeros(len(own)), np.zeros((1, 1)), corner))
        pixel = [int(np.rint(peak[1])) + xy0[1], int(np.rint(peak[0])) + xy0[0]]
        about: dict[str, Any] = {"id": int(ids[k]), "flags": int(result.flags[row])}
        if result.fitted[row]:
            about |= {"x": float(peak[0]) + xy0[0], "y": float(peak[1]) + xy0[1]}
        else:
            causes = [str(flag.name) for flag in Flag if flag & NOT_FITTED and int(result.flags[row]) & flag]
            about |= {"deblend_failed": True, "deblend_error": ", ".join(causes)}
        drawn.append(_Drawn({
            "source_type": "source", "version": SCARLET_VERSION, "metadata": about,
            "components": [{
                "component_type": "factorized", "version": SCARLET_VERSION, "origin": list(origin), "peak": pixel,
                "shape": list(morph.shape), "spectrum": spectrum.tolist(),
                "morph": np.round(morph, DECIMALS).ravel().tolist()} for spectrum, morph, origin in parts]}, row))
    return drawn


def _spans(result: DeblendResult, bundle: Bundle, members: list[int], i_scene: int, own: list[int],
           xy0: tuple[int, int]) -> tuple[tuple[int, int], NDArray[np.bool_]]:
    """Return the corner (y, x) of a blend's box in the parent image, and the pixels of significant light in the box."""
    scene, covered = result.scenes[i_scene], []
    for row in members:
        stamp, (x, y) = result.stamps(row)
        placed = canvases.place(stamp[own], x, y, (len(own), *scene.shape))
        weight = scene.images.cut(placed.y, placed.x).inverse_variance[own]
        if not result.has_images:  # a result from a file without images: the survey's depth replaces its weights
            weight = np.broadcast_to((bundle.sky_sigma[own] ** -2.0)[:, None, None].astype(np.float32), weight.shape)
        inside = footprint(placed.image, weight) if result.fitted[row] and placed.image.size else np.zeros(0, bool)
        if inside.any():
            ys, xs = np.nonzero(inside)
            covered.append(np.column_stack([ys + placed.y.start, xs + placed.x.start]))
        # The pixel of the centre is always included, because a blend without light needs a box too.
        place = np.where(np.isfinite(result.center[row]), result.center[row], 0.0)
        covered.append(np.clip(np.rint(place[::-1]), 0, np.array(scene.shape) - 1).astype(np.int64)[None])
    pixels = np.concatenate(covered)
    # The reader convolves inside the box. The border keeps the light that the PSF brings in from outside.
    low = np.maximum(pixels.min(0) - BLEND_BORDER, 0)
    high = np.minimum(pixels.max(0) + BLEND_BORDER, np.array(scene.shape) - 1)
    box = np.zeros(tuple(high - low + 1), bool)
    box[tuple((pixels - low).T)] = True
    return (int(low[0]) + xy0[1], int(low[1]) + xy0[0]), box


def _encode(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata in scarlet_lite's encoding: arrays as lists, with their shapes and types as further keys."""
    encoded: dict[str, Any] = {}
    keys = []
    for key, value in metadata.items():
        if isinstance(value, np.ndarray):
            array = value.astype(np.float32) if value.dtype.kind == "f" else value
            encoded |= {key: array.ravel().tolist(), f"{key}_shape": list(array.shape),
                        f"{key}_dtype": str(array.dtype)}
            keys.append(key)
        else:
            encoded[key] = value
    return encoded | ({"array_keys": keys} if keys else {})


def write_model(path: str | Path, data: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write model data. The file appears whole or not at all.

    Parameters
    ----------
    path : str or Path
        A name that ends in ``.scarlet`` gives the zip file of Rubin's butler and needs the container "lsst". Other
        names give one JSON text.
    data : mapping
        Model data from `model_data`.
    overwrite : bool

    Raises
    ------
    FileExistsError
        The file exists and `overwrite` is False.
    ValueError
        The file is a ``.scarlet`` file and the data are not in the container "lsst".
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"path: {path} exists; overwrite=True replaces it")
    if path.suffix != ".scarlet":
        with in_place_of(path) as partial:
            partial.write_text(json.dumps(data, allow_nan=False))
        return
    if data.get("model_type") != "lsst":
        raise ValueError('data: expected container="lsst" for a .scarlet file')
    with in_place_of(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in ("blends", "isolated"):
            for name, entry in data[key].items():
                archive.writestr(name, json.dumps(entry, allow_nan=False))
        for name in ("metadata", "version"):
            archive.writestr(name, json.dumps(data[name], allow_nan=False))
