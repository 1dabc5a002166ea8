"""A result as one FITS file, which can be read whole, or a scene or a blend of it alone.

    CATALOG            table, one row per source: `to_table`, and the vectors latent and flux_cov
    FIT                table, one row per source: further quantities that the model images need
    SCENES             table, one row per scene
    BLENDS             table, one row per blend
    BLEND_ROW          rows of the members of all blends, blend after blend
    BLEND_FLUX_COV     flux covariances (n_member, n_band, n_member, n_band), blend after blend [nJy^2]
    PSF, PSF_SIZE      the distinct PSF images of the sources, padded to the largest size; their sizes without padding
    FLAGS              table: the meanings of the bits of `flags`
    IMAGE, INVERSE_VARIANCE            if asked for: arrays of all scenes, scene after scene [nJy, nJy^-2]
    MODEL_<k>, RESIDUAL_<k>            if asked for: model and residual of scene k [nJy]

The folded basis, 25 MB per PSF, is not stored but made again from the model bundle. Arrays of unequal sizes are
concatenated in one extension, because astropy takes 0.4 ms to pass an extension: with an extension for each of ten
thousand scenes, the last scene would be reached after seconds.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from astropy.io import fits
from astropy.table import Column, Table
from numpy.typing import NDArray

from deblendrt.engine.compute.folded_bases import FoldedBases
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.compute.folding import fold_bundle
from deblendrt.engine.files.atomic_write import append_image, in_place_of
from deblendrt.engine.files.fits import MAX_PSF
from deblendrt.engine.files.fits_check import open_fits
from deblendrt.engine.model.bundle import SHIPPED, Bundle, BundleError, load_bundle
from deblendrt.engine.result.fields import QUANTITIES, Entry, entries, file_columns
from deblendrt.engine.result.fitted_scenes import FittedScenes, checked_index
from deblendrt.engine.result.tables import as_column, catalog_table, write_parquet
from deblendrt.engine.scene.flags import DESCRIPTIONS
from deblendrt.engine.scene.images import Images, ReadyImages
from deblendrt.engine.scene.scene import Scene

REVISION = 4  # revision of the layout above; the reader refuses other revisions
Units = dict[str, Any]
N_UNIT = 12  # number of extensions that are read: all but MODEL_<k> and RESIDUAL_<k>
MAX_SIDE = 2**16  # pixel


class LoadedModel(Protocol):
    """A loaded bundle and its folded bases, such as a Deblender."""

    bundle: Bundle

    def fold(self, images: NDArray[np.float64] | None) -> FoldedBasis:
        """Return the basis folded with PSF images (n_band, q, q); None stands for the nominal PSFs."""


def write_result(path: str | Path, result: FittedScenes, *, images: bool = False, overwrite: bool = False) -> None:
    """Write a result; see `deblendrt.engine.DeblendResult.write`."""
    path = Path(path)
    if path.suffix == ".parquet":
        if images:
            raise ValueError("images: a Parquet file holds the catalogue only; expected False, or a name in .fits")
        write_parquet(path, catalog_table(result), overwrite=overwrite)
        return
    if not path.name.endswith((".fits", ".fits.gz")):
        raise ValueError(f"path: expected a name that ends in .fits, .fits.gz or .parquet, got {path.name!r}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"path: {path} exists; overwrite=True replaces it")
    with in_place_of(path) as partial, (gzip.open if path.suffix == ".gz" else open)(partial, "wb") as file:
        tables(result).writeto(file)
        if not images:
            return
        bands = {"BANDS": (",".join(result.bands), "names along the third axis")}
        shapes = {scene.images.shape for scene in result.scenes}
        n_pixel = sum(int(np.prod(scene.images.shape)) for scene in result.scenes)
        # Scenes of equal size are stored as a cube, which viewers can show. The bytes are the same.
        shape = (result.n_scene, *shapes.pop()) if len(shapes) == 1 else (n_pixel,)
        for name, unit in (("image", "nJy"), ("inverse_variance", "nJy-2")):
            pieces = (getattr(scene, name) for scene in result.scenes)
            append_image(file, name.upper(), shape, pieces, bands | {"BUNIT": unit})
        for k, scene in enumerate(result.scenes):
            cards = bands | {"BUNIT": "nJy", "SCENE": scene.name}
            model = result.model(k)
            for name, image in (("MODEL", model), ("RESIDUAL", result.residual(k, model))):
                append_image(file, f"{name}_{k}", image.shape, [image], cards)


def tables(result: FittedScenes, catalog: Table | None = None) -> fits.HDUList:
    """Return all extensions except the images.

    Parameters
    ----------
    result : DeblendResult
    catalog : astropy.table.Table, optional
        Catalogue to store: `result.to_table()` with further columns of the caller. Default: `result.to_table()`.

    Returns
    -------
    astropy.io.fits.HDUList
    """
    catalog = catalog_table(result) if catalog is None else catalog.copy()
    for entry in file_columns("CATALOG"):
        catalog[entry.column] = as_column(entry, result)
    fit = Table([as_column(entry, result) for entry in file_columns("FIT")], meta={"revision": REVISION})
    fit.add_column(Column(np.concatenate([np.zeros(0, np.int64), *[scene.flags for scene in result.scenes]]),
                          name="input_flags", description="flags that the input alone set"), index=2)
    fit.add_column(Column(np.concatenate([np.zeros(0, bool), *[scene.auto for scene in result.scenes]]), name="auto",
                          description="the caller left it open whether it is a star"), index=4)
    scenes = _scene_table(result)
    psf, psf_size = _psf_images(result)
    member = np.argsort(result.blend, kind="stable")[np.count_nonzero(result.blend < 0) :]
    first = np.searchsorted(result.blend[member], np.arange(len(result.blend_flux_cov)))
    blends = Table({
        "scene": Column(result.scene_index[member[first]], description="scene that the blend is in"),
        "n_member": Column(np.array([len(c) for c in result.blend_flux_cov], np.int64), description="sources in it"),
    })
    covariance = np.concatenate([np.zeros(0, np.float32), *[c.ravel() for c in result.blend_flux_cov]])
    flags = Table({
        "bit": [flag.bit_length() - 1 for flag in DESCRIPTIONS],
        "name": [str(flag.name) for flag in DESCRIPTIONS],
        "description": list(DESCRIPTIONS.values()),
    })
    return fits.HDUList([
        fits.PrimaryHDU(),
        _table_hdu(catalog, "CATALOG"),
        _table_hdu(fit, "FIT"),
        _table_hdu(scenes, "SCENES"),
        _table_hdu(blends, "BLENDS"),
        fits.ImageHDU(member, name="BLEND_ROW"),
        fits.ImageHDU(covariance, name="BLEND_FLUX_COV"),
        fits.ImageHDU(psf, name="PSF"),
        fits.ImageHDU(psf_size, name="PSF_SIZE"),
        _table_hdu(flags, "FLAGS"),
    ])


def _psf_images(result: FittedScenes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the PSF images (n_psf, n_band, q, q), and the size of each without padding."""
    images = result.folded.images
    sizes = np.array([image.shape[-1] for image in images], np.int64)
    size = int(sizes.max(initial=1))
    psf = np.zeros((len(images), len(result.bands), size, size))
    for k, image in enumerate(images):
        low = (size - image.shape[-1]) // 2
        psf[k, :, low : size - low, low : size - low] = image
    return psf, sizes


def _scene_table(result: FittedScenes) -> Table:
    """Return the table SCENES."""
    scenes, n_band = result.scenes, len(result.bands)
    by_array: dict[int, int] = {}  # an array that scenes share is hashed once
    for scene in scenes:
        if isinstance(scene.psf, np.ndarray) and id(scene.psf) not in by_array:
            by_array[id(scene.psf)] = result.folded.add(scene.psf)
    return Table([
        Column(np.array([s.name for s in scenes], dtype=str), name="name",
               description="as the caller's input was named"),
        Column(np.diff(result.source_start), name="n_source", description="rows of the catalogue, scene after scene"),
        Column(np.array([s.shape[0] for s in scenes], np.int64), name="n_y", unit="pixel", description="image size"),
        Column(np.array([s.shape[1] for s in scenes], np.int64), name="n_x", unit="pixel", description="image size"),
        *[as_column(entry, result) for entry in file_columns("SCENES")],
        Column(np.array([s.band_present for s in scenes], bool).reshape(-1, n_band), name="band_present",
               description="the band has weight somewhere"),
        Column(np.array([by_array.get(id(s.psf), -1) for s in scenes], np.int64), name="psf",
               description="which image of PSF, if one was given for the scene; else -1"),
    ])


def _table_hdu(table: Table, name: str) -> fits.BinTableHDU:
    """Return a table extension with the columns' descriptions as TCOMM keys, which viewers show."""
    hdu = fits.BinTableHDU(table, name=name)
    for i, column in enumerate(table.itercols(), 1):
        if column.description:
            hdu.header.set(f"TCOMM{i}", column.description, after=f"TFORM{i}")
    return hdu


def read_catalog(path: str | Path) -> Table:
    """Read the catalogue of a file that `write_result` made.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    astropy.table.Table
        The columns of `DeblendResult.to_table`, and the columns latent and flux_cov.
    """
    with open_fits(path, N_UNIT) as file:  # Table.read(path) would pass all extensions, images too
        hdus = _units(file)
        _check_columns(path, hdus["CATALOG"])
        table = Table.read(hdus["CATALOG"], mask_invalid=False)  # NaN stays NaN
    for i, column in enumerate(table.itercols(), 1):
        column.description = table.meta.pop(f"TCOMM{i}", None)
    return table


def read_result(path: str | Path, *, blend: int | None = None, scene: int | None = None,
                model: str | Path | LoadedModel | None = None) -> dict[str, Any]:
    """Read the fields of a result; see `deblendrt.engine.DeblendResult.read`."""
    if blend is not None and scene is not None:
        raise ValueError(f"blend, scene: expected one of them at most, got {blend} and {scene}")
    if Path(path).suffix == ".parquet":
        raise ValueError(f"path: {path}: a Parquet file holds the catalogue only; a result is read from FITS")
    with open_fits(path, N_UNIT, memmap=True) as file:
        hdus = _units(file)
        if "FIT" not in hdus:
            raise ValueError(f"path: {path} holds no result: it has no extension FIT")
        if (revision := hdus["FIT"].header["REVISION"]) != REVISION:
            raise ValueError(f"path: {path} has layout {str(revision)[:20]}, this version reads {REVISION}")
        _check_counts(path, hdus)
        try:
            if blend is not None:
                checked_index("blend", blend, len(hdus["BLENDS"].data))
            if scene is not None:
                checked_index("scene", scene, len(hdus["SCENES"].data))
        except (IndexError, TypeError) as error:
            mistake = error  # raised below: in this block it would be reported as a fault of the file
        else:
            return _read(path, hdus, blend, scene, model)
    raise mistake


def _units(file: fits.HDUList) -> Units:
    """Return the checked units by name. A look-up by name in the file would make astropy read the file to its end."""
    units: Units = {}
    for k in range(N_UNIT):
        try:
            hdu = file[k]
        except IndexError:
            break
        units.setdefault(hdu.name, hdu)
    return units


def _check_counts(path: str | Path, hdus: Units) -> None:
    """Refuse a file whose tables contradict each other, before memory is allocated for its contents."""
    def check(fine: Any, what: str) -> None:
        if not np.all(fine):
            raise ValueError(f"path: {path} is damaged: {what}")

    for name in ("CATALOG", "FIT", "SCENES", "BLENDS"):
        _check_columns(path, hdus[name])
    n_source = len(hdus["CATALOG"].data)
    scenes, blends, index = hdus["SCENES"].data, hdus["BLENDS"].data, hdus["FIT"].data["psf"]
    n_band = len(hdus["CATALOG"].header["BANDS"].split(","))
    count, n_y, n_x, of_psf = (np.asarray(scenes[name]) for name in ("n_source", "n_y", "n_x", "psf"))
    n_member, of_scene = np.asarray(blends["n_member"]), np.asarray(blends["scene"])
    integers = (count, n_y, n_x, of_psf, n_member, of_scene, index)
    check([column.dtype.kind in "iu" and column.ndim == 1 for column in integers], "counts are not integers")
    check(len(hdus["FIT"].data) == n_source, "CATALOG and FIT have different numbers of rows")
    check((count >= 0) & (count <= n_source), "SCENES has more sources than CATALOG")
    check(count.sum() == n_source, "SCENES has not as many sources as CATALOG")
    check((n_y >= 0) & (n_y <= MAX_SIDE) & (n_x >= 0) & (n_x <= MAX_SIDE), f"a scene is above {MAX_SIDE} pixels wide")
    check((n_member > 0) & (n_member <= n_source), "BLENDS has more members than sources")
    check((of_scene >= 0) & (of_scene < len(scenes)), "BLENDS names a scene that there is not")
    rows, covariance = hdus["BLEND_ROW"].data, hdus["BLEND_FLUX_COV"].data
    rows, covariance = (np.zeros(0, np.int64) if data is None else data for data in (rows, covariance))
    check(rows.ndim == covariance.ndim == 1 and len(rows) == n_member.sum(), "BLEND_ROW does not fit BLENDS")
    check((rows >= 0) & (rows < n_source), "BLEND_ROW names a row that there is not")
    check(len(covariance) == ((n_member * n_band) ** 2).sum(), "BLEND_FLUX_COV does not fit BLENDS")
    number = np.asarray(hdus["CATALOG"].data["blend"])
    check(number.dtype.kind in "iu" and ((number >= -1) & (number < len(blends))).all(), "CATALOG names a blend that "
          "there is not")
    psf, size = hdus["PSF"].data, hdus["PSF_SIZE"].data
    n_psf = 0 if size is None else len(size)
    if n_psf:
        check(psf is not None and psf.ndim == 4 and psf.shape[:2] == (n_psf, n_band) and psf.shape[2] == psf.shape[3]
              and psf.shape[3] <= MAX_PSF, "PSF has not the shape that PSF_SIZE and the bands give")
        check((size > 0) & (size % 2 == 1) & (size <= psf.shape[3]) & (psf.shape[3] % 2 == 1), "PSF_SIZE: expected odd "
              "sizes up to that of PSF")
    check((of_psf >= -1) & (of_psf < n_psf), "SCENES names a PSF that there is not")
    check((index >= 0) & (index < n_psf), "FIT names a PSF that there is not")
    if "IMAGE" in hdus:
        n_pixel = n_band * int((n_y * n_x).sum())
        check([hdus[name].data is not None and hdus[name].data.size == n_pixel for name in ("IMAGE",
              "INVERSE_VARIANCE")] if n_pixel else True, "IMAGE and INVERSE_VARIANCE do not fit SCENES")


def _check_columns(path: str | Path, hdu: Any) -> None:
    """Refuse a table with columns of variable length, which astropy turns into objects. Results have no such column."""
    if hdu.is_image or any(column.format.lstrip("01")[:1] in ("P", "Q") for column in hdu.columns):
        raise ValueError(f"path: {path} is damaged: {hdu.name[:20]} is no table, or has columns of variable length")


def _read(path: str | Path, hdus: Units, blend: int | None, scene: int | None,
          model: str | Path | LoadedModel | None) -> dict[str, Any]:
    header, fit = hdus["CATALOG"].header, hdus["FIT"].data
    bands = tuple(header["BANDS"].split(","))
    chosen, blends, rows = _select(hdus, blend, scene)
    columns: dict[str, list[Entry]] = {}
    for entry in (*entries(bands), *(entry for table in ("CATALOG", "FIT", "SCENES") for entry in file_columns(table))):
        columns.setdefault(entry.field, []).append(entry)
    fields: dict[str, Any] = {}
    for q in QUANTITIES.values():
        data, part = hdus[q.file].data, chosen if q.axes[0] == "n_scene" else rows
        values = [_values(data[entry.column], part) for entry in columns[q.name]]
        single = len(values) == 1 and not q.by_band
        fields[q.name] = (values[0] if single else np.stack(values, axis=1)).astype(q.dtype, copy=False)

    count = np.array([len(fields["blend"])]) if blend is not None else _values(hdus["SCENES"].data["n_source"], chosen)
    start = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    scenes = _scenes(hdus, chosen, start, fields["center"], _values(fit["input_flags"], rows), fields["star"],
                     _values(fit["auto"], rows), len(bands))
    # In a part of a result, scenes, blends and PSFs are numbered from 0 again.
    n_psf = sum(hdus["PSF_SIZE"].shape)  # PSF_SIZE has no axis if there is no PSF
    used = np.arange(n_psf) if blend is scene is None else np.unique(fields["folded_index"])
    fields["folded_index"] = np.searchsorted(used, fields["folded_index"])
    fields["scene_index"] = np.repeat(np.arange(len(chosen)), count)
    fields["blend"] = np.where(fields["blend"] < 0, -1, np.searchsorted(blends, fields["blend"]))
    folded = FoldedBases(_folding(path, header, model))
    for k in used.tolist():
        folded.add(_psf_image(hdus, k))
    return fields | {
        "bands": bands, "source_start": start, "blend_flux_cov": _covariances(hdus, blends, len(bands)),
        "scenes": scenes, "folded": folded, "model_name": header["BUNDLE"], "model_version": header["MODELVER"],
        "model_sha256": header["MODELSHA"], "solver": header["SOLVER"], "n_iteration": header["NITER"],
        "aperture_diameter": header.get("APERTURE", np.nan), "has_images": "IMAGE" in hdus}


Rows = NDArray[np.int64] | slice


def _values(column: NDArray[Any], rows: Rows | tuple[slice, ...]) -> NDArray[Any]:
    """Return part of an array, copied out of the file in the machine's byte order."""
    values = column[rows]
    return np.array(values, dtype=values.dtype.newbyteorder("="), order="C")


def _select(hdus: Units, blend: int | None, scene: int | None,
            ) -> tuple[NDArray[np.int64], NDArray[np.int64], Rows]:
    """Return the numbers of the requested scenes and blends, and the requested rows."""
    count = _values(hdus["SCENES"].data["n_source"], slice(None))
    of_blend = _values(hdus["BLENDS"].data["scene"], slice(None))
    if blend is not None:
        k = checked_index("blend", blend, len(of_blend))
        n_member = hdus["BLENDS"].data["n_member"]
        low = int(n_member[:k].sum())
        rows = _values(hdus["BLEND_ROW"].data, slice(low, low + int(n_member[k])))
        return of_blend[k : k + 1], np.array([k]), rows
    if scene is not None:
        k = checked_index("scene", scene, len(count))
        low = int(count[:k].sum())
        return np.array([k]), np.flatnonzero(of_blend == k), slice(low, low + int(count[k]))
    return np.arange(len(count)), np.arange(len(of_blend)), slice(None)


def _scenes(hdus: Units, chosen: NDArray[np.int64], start: NDArray[np.int64], center: NDArray[np.float64],
            flags: NDArray[np.int64], star: NDArray[np.bool_], auto: NDArray[np.bool_], n_band: int) -> list[Scene]:
    """Return scenes with the sources that were read. The images of the scenes stay in the file."""
    about = hdus["SCENES"].data
    size = n_band * _values(about["n_y"], slice(None)) * _values(about["n_x"], slice(None))
    low = np.cumsum(size) - size
    stored = [hdus[name].data.reshape(-1) for name in ("IMAGE", "INVERSE_VARIANCE")] if "IMAGE" in hdus else []
    psfs: dict[int, NDArray[np.float64] | None] = {-1: None}  # -1: the nominal PSFs, or a PSF that varies
    scenes = []
    for i, k in enumerate(chosen.tolist()):
        record = about[k]
        shape = (n_band, int(record["n_y"]), int(record["n_x"]))
        images: Images = ReadyImages(*([flat[low[k] : low[k] + size[k]].reshape(shape) for flat in stored]
                                       or [np.broadcast_to(np.float32(0), shape)] * 2))
        here, j = slice(start[i], start[i + 1]), int(record["psf"])
        if j not in psfs:
            psfs[j] = _psf_image(hdus, j)
        scenes.append(Scene(images, center[here], flags[here], psfs[j], star[here], auto[here],
                            np.array(record["band_present"]), int(record["n_pixel"]), str(record["name"])))
    return scenes


def _psf_image(hdus: Units, k: int) -> NDArray[np.float64]:
    """Return one of the PSF images without its padding."""
    images = hdus["PSF"].data[k]
    cut = (images.shape[-1] - int(hdus["PSF_SIZE"].data[k])) // 2
    inside = slice(cut, images.shape[-1] - cut)
    return _values(images, (slice(None), inside, inside))


def _covariances(hdus: Units, blends: NDArray[np.int64], n_band: int) -> list[NDArray[np.float32]]:
    """Return the flux covariances of some blends."""
    n_member = _values(hdus["BLENDS"].data["n_member"], slice(None))
    size = (n_member * n_band) ** 2
    low = np.cumsum(size) - size
    flat = hdus["BLEND_FLUX_COV"].data
    return [_values(flat, slice(low[k], low[k] + size[k])).reshape(n_member[k], n_band, n_member[k], n_band)
            for k in blends.tolist()]


def _folding(path: str | Path, header: fits.Header, model: str | Path | LoadedModel | None,
             ) -> Callable[[NDArray[np.float64] | None], FoldedBasis]:
    """Return a function that folds the basis of the bundle that the result was made with."""
    wanted = f"{header['BUNDLE']} {header['MODELVER']} (SHA-256 {header['MODELSHA'][:12]})"
    if model is None or isinstance(model, str | Path):
        try:
            # A file may name only bundles of this package. A path would let the author of the file choose any folder.
            bundle = load_bundle(SHIPPED / re.sub(r"[^A-Za-z0-9_-]", "", header["BUNDLE"]) if model is None else model)
        except BundleError as error:
            if model is not None:
                raise
            raise ValueError(f"model: {path} was made with {wanted}; give that bundle's folder: {error}") from error
    else:
        bundle = model.bundle
    if bundle.sha256 != header["MODELSHA"]:
        raise ValueError(f"model: {path} was made with {wanted}, expected that bundle, got {bundle.name} "
                         f"{bundle.model_version} (SHA-256 {bundle.sha256[:12]}) in {bundle.path}")
    if model is not None and not isinstance(model, str | Path):
        return model.fold
    return partial(fold_bundle, bundle)
