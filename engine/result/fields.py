"""The table of reported quantities: their names, types, shapes, units and meanings, and the files they are written to.

All lists of quantities follow from the class `Quantities`: the empty result and its merges
(`deblendrt.engine.result.rows`), catalogues, result files, Parquet columns, alert records, and the table in the
documentation. A field of the class is one quantity; its annotation is the type of its array.
"""

# ruff: noqa: RUF009 - `quantity` makes dataclass fields

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.scene.flags import Flag

Float64: TypeAlias = NDArray[np.float64]
Float32: TypeAlias = NDArray[np.float32]
Int64: TypeAlias = NDArray[np.int64]
Int8: TypeAlias = NDArray[np.int8]
Bool: TypeAlias = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One reported quantity.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
    axes : tuple of str
        Lengths of the axes: "n_source", "n_scene", "n_band", "n_basis", "n_latent", or digits. The first axis is
        "n_source" or "n_scene": the array has a row for each source or scene.
    unit : str
        Unit in astropy's spelling; "" for a pure number.
    meaning : str
        At most 64 characters, so that it fits on one card of a FITS header.
    note : str
        Further facts for the documentation.
    unfitted : bool, int or float
        Value for a source that was not fitted. If `solved` is false, the value comes from the input instead.
    solved : bool
        Whether the solution of a scene sets the quantity. Other quantities follow from the input, or from the batch.
    file : str
        Table of the result file that has the quantity: "CATALOG", "FIT" or "SCENES". `DeblendResult.to_table` has the
        scalar columns of CATALOG; its array columns (latent, flux_cov) are in the file alone.
    columns : tuple of (str, str)
        Names and meanings of the columns in the table, a pair for each component. A quantity by band has one name, to
        which "_<band>" is added.
    rubin : tuple of str
        Names in Rubin's tables, a name for each component. A quantity by band has one name, with the prefix "<band>_".
    alert : tuple of str
        Names in alert records, a name for each component. A quantity by band has the value of the alert's band.
    """

    name: str
    dtype: np.dtype[Any]
    axes: tuple[str, ...]
    unit: str
    meaning: str
    note: str
    unfitted: float
    solved: bool
    file: str
    columns: tuple[tuple[str, str], ...]
    rubin: tuple[str, ...]
    alert: tuple[str, ...]

    @property
    def by_band(self) -> bool:
        """Whether the quantity has one number for every source and band."""
        return self.axes == ("n_source", "n_band")

    @property
    def in_catalog(self) -> bool:
        """Whether `DeblendResult.to_table` has the quantity, because its columns are scalar."""
        return self.file == "CATALOG" and len(self.axes) <= 2 and self.axes[-1] != "n_latent"

    def empty(self, **lengths: int) -> NDArray[Any]:
        """Return an array for sources or scenes that are not fitted.

        Parameters
        ----------
        **lengths : int
            Length of every axis, by the name of the axis.
        """
        shape = [int(axis) if axis.isdecimal() else lengths[axis] for axis in self.axes]
        return np.full(shape, self.unfitted, self.dtype)


def quantity(meaning: str, shape: str, unit: str = "", *, note: str = "", unfitted: float | None = None,
             solved: bool = True, file: str = "CATALOG", columns: dict[str, str] | str = "", rubin: str = "",
             alert: str = "") -> Any:
    """Return a field of `Quantities`; see `Quantity`. Names of several components are separated by blanks.

    Parameters
    ----------
    columns : dict of str to str, or str
        Names of the components, with their meanings. A string is the name of a single column. Default: the name of the
        quantity.
    """
    return dataclasses.field(metadata={
        "meaning": meaning, "note": note, "axes": tuple(shape.split(", ")), "unit": unit, "unfitted": unfitted,
        "solved": solved, "file": file, "columns": columns, "rubin": tuple(rubin.split()),
        "alert": tuple(alert.split())})


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Quantities:
    """The arrays of reported quantities, in the order of the catalogue's columns."""

    source_id: Int64 = quantity("row of the deblended batch, from 0", "n_source", solved=False, columns="id",
                                rubin="id", note="of a part that `read` loaded: the row in the whole")
    scene_index: Int64 = quantity("scene that the source is in, from 0", "n_source", solved=False, columns="scene")
    star: Bool = quantity("fitted as a point source", "n_source", solved=False, alert="star")
    star_probability: Float64 = quantity(
        "that it is a point source; 0 or 1 where that was given", "n_source", solved=False, alert="starProbability",
        note="the posterior where the kind was \"auto\" (`deblendrt.engine.measure.star_or_galaxy`)")
    blend: Int64 = quantity("number of the blend over all scenes; -1: not fitted", "n_source", unfitted=-1,
                            solved=False, rubin="parent")
    position: Float64 = quantity(
        "x, y of the fit; 0-based, integer = pixel centre", "n_source, 2", "pixel",
        columns={"x": "x of the fit; 0-based, integer = pixel centre",
                 "y": "y of the fit; 0-based, integer = pixel centre"}, rubin="x y", alert="x y")
    position_err: Float64 = quantity(
        "standard deviation of `position`, centre prior included", "n_source, 2", "pixel",
        columns={"x_err": "standard deviation of x, centre prior included",
                 "y_err": "standard deviation of y, centre prior included"}, rubin="xErr yErr", alert="xErr yErr")
    center: Float64 = quantity("x, y as given", "n_source, 2", "pixel", solved=False,
                               columns={"x_input": "x as given", "y_input": "y as given"})
    flux: Float64 = quantity("total flux, joint linear solve with the MAP shapes; signed", "n_source, n_band", "nJy",
                             rubin="deblend_flux", alert="flux", note="all sources of a scene are solved together")
    flux_err: Float64 = quantity(
        "standard deviation of flux: noise, neighbours, shapes", "n_source, n_band", "nJy", rubin="deblend_fluxErr",
        alert="fluxErr", note="the uncertainty of all positions and shapes of the blend is in it (Laplace "
        "approximation, `deblendrt.engine.measure.uncertainty`)")
    flux_sys_err: Float64 = quantity(
        "misfit and unseen light; add to flux_err in quadrature", "n_source, n_band", "nJy", alert="fluxSysErr",
        note="the misfit in the source's own residual, a tenth of its unseen light, the model's floor, and "
        "the hidden misfit of a much brighter neighbour's wings "
        "(`deblendrt.engine.measure.systematic_error`); nearly common to a source's bands, so colours do without")
    map_flux: Float64 = quantity("total flux of the MAP solution; positive", "n_source, n_band", "nJy")
    redistributed_flux: Float64 = quantity(
        "the image's light, shared in proportion to the models", "n_source, n_band", "nJy", alert="redistributedFlux",
        note="`deblendrt.engine.measure.light_shares`")
    redistributed_flux_err: Float64 = quantity(
        "standard deviation of redistributed_flux", "n_source, n_band", "nJy", alert="redistributedFluxErr",
        note="the pixels' noise, and the part of flux_err that comes from the shapes")
    aperture_flux: Float64 = quantity("of the model under the reference PSF, in a circle", "n_source, n_band", "nJy",
                                      note="all bands share the reference PSF; the circle is `aperture_diameter` wide")
    aperture_flux_err: Float64 = quantity("standard deviation of aperture_flux", "n_source, n_band", "nJy")
    blendedness: Float64 = quantity("1 - sum(own^2) / sum(own all), models (Bosch et al. 2018)", "n_source, n_band",
                                    rubin="deblend_blendedness", alert="blendedness")
    flux_overlap: Float64 = quantity("neighbours' light in the source's footprint", "n_source, n_band", "nJy",
                                     rubin="deblend_fluxOverlap")
    max_overlap: Float64 = quantity("neighbours' largest pixel in the source's footprint", "n_source, n_band", "nJy",
                                    rubin="deblend_maxOverlap")
    enclosed: Float64 = quantity("fraction of the total flux that lands in the window", "n_source, n_band")
    moments: Float64 = quantity(
        "adaptive second moments xx, yy, xy under the reference PSF", "n_source, 3", "pixel2",
        columns={"ixx": "adaptive second moment xx under the reference PSF",
                 "iyy": "adaptive second moment yy under the reference PSF",
                 "ixy": "adaptive second moment xy under the reference PSF"},
        note="of the model in the reference band, with a Gaussian weight")
    ellipticity: Float64 = quantity(
        "(ixx - iyy) / (ixx + iyy) and 2 ixy / (ixx + iyy) of the moments", "n_source, 2",
        columns={"e1": "(ixx - iyy) / (ixx + iyy)", "e2": "2 ixy / (ixx + iyy)"}, alert="ellipticity1 ellipticity2")
    ellipticity_err: Float64 = quantity(
        "standard deviation of ellipticity", "n_source, 2",
        columns={"e1_err": "standard deviation of e1", "e2_err": "standard deviation of e2"})
    chi2: Float64 = quantity("over the source's own core pixels, all bands", "n_source")
    n_pixel: Int64 = quantity("number of the pixels of chi2", "n_source")
    reduced_chi2: Float64 = quantity("chi2 / n_pixel", "n_source", rubin="deblend_chi2", alert="reducedChi2",
                                     note="NaN where there is no pixel")
    log_prior: Float64 = quantity("log density of the shape under the prior", "n_source", note="NaN for a star")
    flags: Int64 = quantity("bits: see `deblendrt flags`", "n_source", alert="flags",
                            unfitted=Flag.NO_DATA, note="`deblendrt.engine.scene.flags.Flag`")

    latent: Float32 = quantity("ln flux per band, offset from the anchor, shape", "n_source, n_latent",
                               note="of the MAP solution; fluxes in nJy, offset x, y in pixels")
    flux_cov: Float64 = quantity("covariance of flux, band by band", "n_source, n_band, n_band", "nJy2",
                                 note="flux_err is the root of its diagonal")
    anchor: Int64 = quantity(
        "x, y of the pixel that the window is centred on", "n_source, 2", "pixel", solved=False, file="FIT",
        columns={"anchor_x": "pixel that the window is centred on", "anchor_y": "pixel that the window is centred on"})
    coefficients: Float32 = quantity("of the basis, with the fluxes of the model images", "n_source, n_band, n_basis",
                                     "nJy", unfitted=0, file="FIT")
    extent: Int8 = quantity("how it is drawn: 1 with outskirts, 0 its window, -k the k-th smaller", "n_source",
                            file="FIT")
    folded_index: Int64 = quantity("which of `folded` it has: its PSF", "n_source", solved=False, file="FIT",
                                   columns={"psf": "which image of PSF"})
    scene_chi2: Float64 = quantity("over all pixels with weight, all bands", "n_scene", file="SCENES", columns="chi2")
    scene_n_pixel: Int64 = quantity("number of the pixels of chi2", "n_scene", solved=False, file="SCENES",
                                    columns="n_pixel")
    objective: Float64 = quantity("the objective's value at the solution", "n_scene", file="SCENES")
    sky: Float64 = quantity("fitted sky of the images, per pixel", "n_scene, n_band", "nJy", unfitted=0, file="SCENES",
                            note="0 unless it was fitted (`deblendrt.engine.measure.fitted_sky`); residuals and "
                            "shares of light are those of the image without it")
    sky_err: Float64 = quantity("standard deviation of sky", "n_scene, n_band", "nJy", file="SCENES",
                                note="NaN where no sky was fitted: not asked for, or too few pixels without light")


def _entry(field: dataclasses.Field[Any]) -> Quantity:
    about = dict(field.metadata)
    dtype = np.dtype(str(field.type).lower())
    columns = about["columns"] or field.name
    about["columns"] = tuple((columns if isinstance(columns, dict) else {columns: about["meaning"]}).items())
    if about["unfitted"] is None:
        about["unfitted"] = np.nan if dtype.kind == "f" else 0
    return Quantity(name=field.name, dtype=dtype, **about)


QUANTITIES = {field.name: _entry(field) for field in dataclasses.fields(Quantities)}
"""The entries by name, in their order."""


class Entry(NamedTuple):
    """One column of a table: its name, the place of its values in the result, its unit and its meaning."""

    column: str
    field: str
    component: int | None
    unit: str | None
    description: str

    def values(self, result: Quantities) -> NDArray[Any]:
        """Return the column's values, in the shape (n_source,) or the shape of the field."""
        values: NDArray[Any] = getattr(result, self.field)
        return values if self.component is None else values[:, self.component]

    @property
    def unfitted(self) -> float:
        """The column's value for a source that was not fitted."""
        return QUANTITIES[self.field].unfitted if self.field in QUANTITIES else False


TRUSTED = Entry("trusted", "trusted", None, None, "no flag that says not to trust the source")
"""The column of `DeblendResult.trusted`, which follows from `flags`: a file holds it for its readers alone."""


def entries(bands: tuple[str, ...]) -> list[Entry]:
    """Return the columns of the catalogue: by band in the middle, band after band; `TRUSTED` is last.

    Parameters
    ----------
    bands : tuple of str

    Returns
    -------
    list of Entry
    """
    chosen = [q for q in QUANTITIES.values() if q.in_catalog]
    low = next(i for i, q in enumerate(chosen) if q.by_band)
    by_band = [Entry(f"{q.columns[0][0]}_{band}", q.name, b, q.unit or None, f"{band}: {q.columns[0][1]}")
               for b, band in enumerate(bands) for q in chosen if q.by_band]
    first, last = ([entry for q in part if not q.by_band for entry in component_columns(q)]
                   for part in (chosen[:low], chosen[low:]))
    return [*first, *by_band, *last, TRUSTED]


def component_columns(q: Quantity) -> Iterator[Entry]:
    """Yield the columns of a quantity that has no columns by band."""
    for k, (column, description) in enumerate(q.columns):
        yield Entry(column, q.name, k if len(q.columns) > 1 else None, q.unit or None, description)


def file_columns(table: str) -> list[Entry]:
    """Return the columns that a table of the result file has beside the columns of `DeblendResult.to_table`.

    Parameters
    ----------
    table : {"CATALOG", "FIT", "SCENES"}

    Returns
    -------
    list of Entry
    """
    chosen = [q for q in QUANTITIES.values() if q.file == table and not q.in_catalog]
    return [entry for q in chosen for entry in component_columns(q)]
