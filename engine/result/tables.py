"""The catalogue of a result as a table with this package's or Rubin's column names, and as a Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Column, Table
from numpy.typing import ArrayLike

from deblendrt.engine.files.atomic_write import in_place_of
from deblendrt.engine.files.installation import package_version
from deblendrt.engine.result.fields import QUANTITIES, Entry, entries
from deblendrt.engine.result.fitted_scenes import FittedScenes
from deblendrt.engine.scene.flags import NOT_FITTED, Flag


def catalog_table(result: FittedScenes) -> Table:
    """Return the catalogue with this package's column names; see `deblendrt.engine.DeblendResult.to_table`."""
    return Table([as_column(entry, result) for entry in entries(result.bands)], meta=metadata(result))


def as_column(entry: Entry, result: FittedScenes) -> Column:
    """Return a column of a table, with unit and description."""
    values = entry.values(result)
    values = values.astype(np.int16) if values.dtype == np.int8 else values  # FITS has no signed bytes
    return Column(values, name=entry.column, unit=entry.unit, description=entry.description)


def metadata(result: FittedScenes) -> dict[str, Any]:
    """Return the facts of a whole catalogue. Keys have at most eight letters, as FITS requires."""
    meta = {
        "software": f"deblendrt {package_version('deblendrt') or '(not installed)'}",
        "bundle": result.model_name,
        "modelver": result.model_version,
        "modelsha": result.model_sha256,
        "bands": ",".join(result.bands),
        "solver": result.solver,
        "niter": result.n_iteration,
        "fluxunit": "nJy",
        "pixels": "0-based, integer = pixel centre",
    }
    if np.isfinite(result.aperture_diameter):  # a FITS header cannot hold NaN
        meta["aperture"] = result.aperture_diameter  # diameter in arcsec
    return meta


def rubin_table(result: FittedScenes) -> Table:
    """Return the catalogue with Rubin's column names; see `deblendrt.engine.DeblendResult.to_table`.

    Names and meanings follow the child records of lsst.meas.extensions.scarlet. Its catalogues by band are joined, with
    the band as prefix. The description of a column states any difference in meaning.
    """
    blend, flags, fitted = result.blend, result.flags, result.fitted
    in_blend = np.asarray(blend >= 0)
    n_member = np.bincount(blend[in_blend])
    moving = np.asarray((flags & Flag.NOT_CONVERGED) != 0)
    n_moving = np.bincount(blend[in_blend & moving], minlength=len(n_member))
    n_child = np.zeros(result.n_source, np.int32)
    n_child[in_blend] = n_member[blend[in_blend]]
    unconverged = np.zeros(result.n_source, bool)
    unconverged[in_blend] = n_moving[blend[in_blend]] > 0
    limit = np.iinfo(np.int32)
    given = np.where(np.isfinite(result.center).all(1, keepdims=True), result.center, 0)
    peak = np.clip(np.rint(given), limit.min, limit.max).astype(np.int32)
    causes = [flag for flag in Flag if flag & NOT_FITTED]
    error = [", ".join(str(flag.name) for flag in causes if value & flag) for value in flags.tolist()]

    derived: list[tuple[str, ArrayLike, str | None, str]] = [
        ("deblend_nChild", np.zeros(result.n_source, np.int32), None, "0: a source has no children"),
        ("deblend_nPeaks", np.ones(result.n_source, np.int32), None, "1: a source is one peak"),
        ("deblend_blendId", blend, None, "as parent"),
        ("deblend_blendNChild", n_child, None, "sources in the blend; 0: not fitted"),
        ("deblend_parentNPeaks", n_child, None, "as deblend_blendNChild"),
        ("deblend_parentNChild", n_child, None, "as deblend_blendNChild"),
        ("deblend_peakId", result.source_id, None, "as id"),
        ("deblend_peak_center_x", peak[:, 0], "pixel", "x as given, rounded; 0 if not finite"),
        ("deblend_peak_center_y", peak[:, 1], "pixel", "y as given, rounded; 0 if not finite"),
        ("deblend_failed", ~fitted, None, "not fitted; deblend_error says why"),
        ("deblend_skipped", np.zeros(result.n_source, bool), None, "never: no blend is skipped"),
        ("deblend_error", np.array(error, dtype=str), None, "names of the flags that kept it from being fitted"),
        ("deblend_iterations", np.where(fitted, result.n_iteration, 0).astype(np.int32), None, "the same for all"),
        ("deblend_incompleteData", (flags & Flag.BAND_MISSING) != 0, None, "a band has no usable pixel in the window"),
        ("deblend_blendConvergenceFailedFlag", unconverged, None, "a member of the blend was still moving"),
        ("deblend_edgePixels", (flags & Flag.EDGE) != 0, None, "the source's window sticks out of the image"),
    ]
    for b, band in enumerate(result.bands):
        model = result.map_flux[:, b]
        fraction = np.divide(result.flux_overlap[:, b], model, out=np.where(fitted, 0.0, np.nan), where=model > 0)
        derived += [
            (f"{band}_deblend_fluxOverlapFraction", fraction, None, "fluxOverlap / the model's total flux"),
            (f"{band}_deblend_zeroFlux", ~(model > 0), None, "the model has no flux: not fitted"),
        ]
    columns = [as_column(entry._replace(column=name), result)
               for entry in entries(result.bands) if (name := _rubin_name(entry, result.bands))]
    return Table([*columns, *(Column(values, name=name, unit=unit, description=description)
                              for name, values, unit, description in derived)], meta=metadata(result))


def _rubin_name(entry: Entry, bands: tuple[str, ...]) -> str:
    """Return Rubin's name of a column; empty if Rubin has no such column."""
    q = QUANTITIES.get(entry.field)
    if q is None or not q.rubin:
        return ""
    return f"{bands[entry.component or 0]}_{q.rubin[0]}" if q.by_band else q.rubin[entry.component or 0]


def write_parquet(path: str | Path, table: Table, *, overwrite: bool = False) -> None:
    """Write a table of scalar columns to a Parquet file, which appears whole or not at all.

    Parameters
    ----------
    path : str or Path
    table : astropy.table.Table
        Units and descriptions become metadata of the fields ("unit", "description"). `meta` becomes metadata of the
        schema.
    overwrite : bool

    Raises
    ------
    ImportError
        pyarrow is not installed.
    FileExistsError
        The file exists and `overwrite` is False.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError('a Parquet file needs pyarrow: pip install "deblendrt[parquet]"') from error
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"path: {path} exists; overwrite=True replaces it")
    arrays, fields = [], []
    for column in table.itercols():
        about = {"description": column.description} if column.description else {}
        about |= {"unit": str(column.unit)} if column.unit else {}
        arrays.append(pyarrow.array(np.asarray(column)))
        fields.append(pyarrow.field(column.name, arrays[-1].type, metadata=about))
    schema = pyarrow.schema(fields, metadata={key: str(value) for key, value in table.meta.items()})
    with in_place_of(path) as partial:
        pyarrow.parquet.write_table(pyarrow.table(arrays, schema=schema), partial)
