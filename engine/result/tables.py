"""The catalogue of a result as tables: in this package's words, in Rubin's, and as a Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from astropy.table import Column, Table
from numpy.typing import ArrayLike

from deblendrt.engine.files.installation import package_version
from deblendrt.engine.files.output import in_place_of
from deblendrt.engine.scene.flags import NOT_FITTED, Flag

if TYPE_CHECKING:
    from deblendrt.engine.result.result import DeblendResult


class Entry(NamedTuple):
    """One column: its name, where its values are in the result, its unit and its meaning."""

    column: str
    field: str
    component: int | None
    unit: str | None
    description: str


FIRST = (
    Entry("id", "source_id", None, None, "row of the deblended batch, from 0"),
    Entry("scene", "scene_index", None, None, "scene that the source is in, from 0"),
    Entry("star", "star", None, None, "fitted as a point source"),
    Entry("star_probability", "star_probability", None, None, "that it is a point source; 0 or 1 where that was given"),
    Entry("blend", "blend", None, None, "number of the blend over all scenes; -1: not fitted"),
    Entry("x", "position", 0, "pixel", "x of the fit; 0-based, integer = pixel centre"),
    Entry("y", "position", 1, "pixel", "y of the fit; 0-based, integer = pixel centre"),
    Entry("x_err", "position_err", 0, "pixel", "standard deviation of x, centre prior included"),
    Entry("y_err", "position_err", 1, "pixel", "standard deviation of y, centre prior included"),
    Entry("x_input", "center", 0, "pixel", "x as given"),
    Entry("y_input", "center", 1, "pixel", "y as given"),
)

PER_BAND = (  # field, which is also the column's name before "_<band>"
    ("flux", "nJy", "total flux, joint linear solve with the MAP shapes; signed"),
    ("flux_err", "nJy", "standard deviation of flux: noise, neighbours, shapes"),
    ("flux_sys_err", "nJy", "misfit and unseen light; add to flux_err in quadrature"),
    ("map_flux", "nJy", "total flux of the MAP solution; positive"),
    ("redistributed_flux", "nJy", "the image's light, shared in proportion to the models"),
    ("redistributed_flux_err", "nJy", "standard deviation of redistributed_flux"),
    ("aperture_flux", "nJy", "of the model under the reference PSF, in a circle"),
    ("aperture_flux_err", "nJy", "standard deviation of aperture_flux"),
    ("blendedness", None, "1 - sum(own^2) / sum(own all), models (Bosch et al. 2018)"),
    ("flux_overlap", "nJy", "neighbours' light in the source's footprint"),
    ("max_overlap", "nJy", "neighbours' largest pixel in the source's footprint"),
    ("enclosed", None, "fraction of the total flux that lands in the window"),
)

LAST = (
    Entry("ixx", "moments", 0, "pixel2", "adaptive second moment xx under the reference PSF"),
    Entry("iyy", "moments", 1, "pixel2", "adaptive second moment yy under the reference PSF"),
    Entry("ixy", "moments", 2, "pixel2", "adaptive second moment xy under the reference PSF"),
    Entry("e1", "ellipticity", 0, None, "(ixx - iyy) / (ixx + iyy)"),
    Entry("e2", "ellipticity", 1, None, "2 ixy / (ixx + iyy)"),
    Entry("e1_err", "ellipticity_err", 0, None, "standard deviation of e1"),
    Entry("e2_err", "ellipticity_err", 1, None, "standard deviation of e2"),
    Entry("chi2", "chi2", None, None, "over the source's own core pixels, all bands"),
    Entry("n_pixel", "n_pixel", None, None, "number of those pixels"),
    Entry("reduced_chi2", "reduced_chi2", None, None, "chi2 / n_pixel"),
    Entry("log_prior", "log_prior", None, None, "log density of the shape under the prior"),
    Entry("flags", "flags", None, None, "bits: see `deblendrt flags`"),
)


def entries(bands: tuple[str, ...]) -> list[Entry]:
    """Columns of the catalogue.

    Parameters
    ----------
    bands : tuple of str

    Returns
    -------
    list of Entry
    """
    per_band = [Entry(f"{field}_{band}", field, b, unit, f"{band}: {description}")
                for b, band in enumerate(bands) for field, unit, description in PER_BAND]
    return [*FIRST, *per_band, *LAST]


def catalog_table(result: DeblendResult) -> Table:
    """Catalogue in this package's words, see `deblendrt.engine.DeblendResult.to_table`."""
    columns = []
    for entry in entries(result.bands):
        values = getattr(result, entry.field)
        values = values if entry.component is None else values[:, entry.component]
        columns.append(Column(values, name=entry.column, unit=entry.unit, description=entry.description))
    return Table(columns, meta=metadata(result))


def metadata(result: DeblendResult) -> dict[str, Any]:
    """What a catalogue says about itself; keys of eight letters at most, the length of a FITS key."""
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
    if np.isfinite(result.aperture_diameter):  # a FITS key holds no NaN
        meta["aperture"] = result.aperture_diameter  # arcsec, diameter
    return meta


def rubin_table(result: DeblendResult) -> Table:
    """Catalogue in Rubin's words, see `deblendrt.engine.DeblendResult.to_table`.

    Names and meanings are those of the child records of lsst.meas.extensions.scarlet, its per-band catalogues joined
    with the band as prefix. What differs is said in the column's description.
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

    columns: list[tuple[str, ArrayLike, str | None, str]] = [
        ("id", result.source_id, None, "row of the deblended batch, from 0"),
        ("parent", blend, None, "number of the blend, from 0 (a valid one); -1: not fitted"),
        ("x", result.position[:, 0], "pixel", "x of the fit; 0-based, integer = pixel centre"),
        ("y", result.position[:, 1], "pixel", "y of the fit; 0-based, integer = pixel centre"),
        ("xErr", result.position_err[:, 0], "pixel", "standard deviation of x, centre prior included"),
        ("yErr", result.position_err[:, 1], "pixel", "standard deviation of y, centre prior included"),
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
        ("deblend_chi2", result.reduced_chi2, None, "reduced, over the source's own core pixels, all bands"),
        ("deblend_incompleteData", (flags & Flag.BAND_MISSING) != 0, None, "a band has no usable pixel in the window"),
        ("deblend_blendConvergenceFailedFlag", unconverged, None, "a member of the blend was still moving"),
        ("deblend_edgePixels", (flags & Flag.EDGE) != 0, None, "the source's window sticks out of the image"),
    ]
    for b, band in enumerate(result.bands):
        model = result.map_flux[:, b]
        fraction = np.divide(result.flux_overlap[:, b], model, out=np.where(fitted, 0.0, np.nan), where=model > 0)
        columns += [
            (f"{band}_deblend_flux", result.flux[:, b], "nJy", "total flux, joint linear solve; signed"),
            (f"{band}_deblend_fluxErr", result.flux_err[:, b], "nJy", "standard deviation: noise, neighbours, shapes"),
            (f"{band}_deblend_blendedness", result.blendedness[:, b], None, "Bosch et al. 2018, from the models"),
            (f"{band}_deblend_fluxOverlap", result.flux_overlap[:, b], "nJy", "neighbours' light in the footprint"),
            (f"{band}_deblend_fluxOverlapFraction", fraction, None, "fluxOverlap / the model's total flux"),
            (f"{band}_deblend_maxOverlap", result.max_overlap[:, b], "nJy", "neighbours' largest footprint pixel"),
            (f"{band}_deblend_zeroFlux", ~(model > 0), None, "the model has no flux: not fitted"),
        ]
    return Table([Column(values, name=name, unit=unit, description=description)
                  for name, values, unit, description in columns], meta=metadata(result))


def write_parquet(path: str | Path, table: Table, *, overwrite: bool = False) -> None:
    """Write a table of scalar columns to a Parquet file, which appears whole or not at all.

    Parameters
    ----------
    path : str or Path
    table : astropy.table.Table
        Units and descriptions become the fields' metadata ("unit", "description"), `meta` the schema's.
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
