"""The result of a deblending: one row per source in the caller's order, and the images behind it.

Model images are drawn from the coefficients when they are asked for. The stamps of ten thousand sources would fill
gigabytes, and most callers do not need them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.measure.light_shares import redistributed_image
from deblendrt.engine.result.fields import QUANTITIES
from deblendrt.engine.result.fitted_scenes import FittedScenes, checked_index
from deblendrt.engine.result.rows import Rows

if TYPE_CHECKING:
    from astropy.table import Table

    from deblendrt.engine.result.result_file import LoadedModel


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DeblendResult(FittedScenes):
    """The sources of all scenes, concatenated in the caller's order.

    A source that was not fitted (`flags & NOT_FITTED`) has NaN in every float and an empty model. Arrays are
    read-only. The scenes refer to the caller's images, which are not copied. A later change of these images changes
    `residual` and `redistributed`.

    Attributes
    ----------
    flux, flux_err, ... : array
        The quantities of `deblendrt.engine.result.fields`.
    bands : tuple of str
        The model's bands, the order of every band axis.
    source_start : int64 (n_scene + 1,)
        The rows of scene k are source_start[k] to source_start[k + 1], the end excluded.
    blend_flux_cov : list of float32 (n_member, n_band, n_member, n_band) [nJy^2]
        Covariance of all fluxes of each blend, members in the order of their rows.
    scenes : list of Scene
    folded : FoldedBases
        The basis folded with each distinct PSF.
    model_name, model_version, model_sha256 : str
        Name, version and hash of the model bundle.
    solver : str
    n_iteration : int
    aperture_diameter : float [arcsec]
    has_images : bool
        False if the scenes' images were not stored with the result: `image` and `inverse_variance` are then zero.
    """

    def __post_init__(self) -> None:
        for array in [getattr(self, name) for name in (*QUANTITIES, "source_start")] + self.blend_flux_cov:
            array.flags.writeable = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # a pickle does not keep arrays read-only
        self.__post_init__()

    @classmethod
    def of_rows(cls, rows: Rows) -> DeblendResult:
        """Return the result that has the values of complete rows.

        Parameters
        ----------
        rows : Rows
            Rows that nothing will be written to any more.

        Returns
        -------
        DeblendResult
        """
        blend, covariances = rows.numbered_blends()
        values = {field.name: getattr(rows, field.name) for field in dataclasses.fields(FittedScenes)}
        return cls(**values | {"blend": blend, "blend_flux_cov": covariances})

    def __repr__(self) -> str:
        fitted = int(self.fitted.sum())
        return (f"DeblendResult({self.n_source} sources, {fitted} fitted, in {self.n_scene} scenes, "
                f"bands {', '.join(self.bands)})")

    def redistributed(self, i_source: int) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the share of one source in the observed light, in proportion to the models.

        See `deblendrt.engine.measure.light_shares`.

        The redistributed images of all sources sum to the data where the sources have significant light.
        Elsewhere, and in masked pixels, they are equal to the models.

        Parameters
        ----------
        i_source : int
            Row of the source; a negative number counts from the end.

        Returns
        -------
        image : float32 (n_band, window, window) [nJy]
        corner : tuple of int [pixel]
            Position of the image, as in `stamps`.

        Raises
        ------
        ValueError
            The result was read from a file without images.
        """
        self.need_images("redistributed")
        return redistributed_image(self, checked_index("i_source", i_source, self.n_source))

    def color(self, blue: str, red: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return colours, blue - red, from the fluxes and their covariance.

        Parameters
        ----------
        blue, red : str
            Names of the bands.

        Returns
        -------
        color : float64 (n_source,) [mag]
            -2.5 log10(flux in blue / flux in red); NaN where one of the two fluxes is not positive.
        error : float64 (n_source,) [mag]
            Standard deviation of the colour, to first order in the errors of the fluxes.
        """
        for name, band in (("blue", blue), ("red", red)):
            if band not in self.bands:
                raise ValueError(f"{name}: expected one of the bands {', '.join(self.bands)}, got {band!r}")
        i, j = self.bands.index(blue), self.bands.index(red)
        positive = (self.flux[:, i] > 0) & (self.flux[:, j] > 0)
        f, g = (np.where(positive, self.flux[:, b], np.nan) for b in (i, j))
        variance = (self.flux_cov[:, i, i] / f**2 + self.flux_cov[:, j, j] / g**2
                    - 2 * self.flux_cov[:, i, j] / (f * g))
        return -2.5 * np.log10(f / g), 2.5 / np.log(10) * np.sqrt(np.maximum(variance, 0))

    def flux_covariance(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the covariance of the fluxes of any sources.

        Parameters
        ----------
        rows : sequence of int (m,)
            Rows of the sources; a negative number counts from the end.

        Returns
        -------
        float64 (m, n_band, m, n_band) [nJy^2]
            Zero between sources of different blends; NaN for a source that was not fitted.
        """
        index = np.array([checked_index("rows", int(i), self.n_source) for i in rows], np.int64)
        m, n_band = len(index), len(self.bands)
        covariance = np.zeros((m, m, n_band, n_band))
        for k in np.unique(self.blend[index]).tolist():
            here = np.flatnonzero(self.blend[index] == k)
            if k < 0:
                covariance[here] = covariance[:, here] = np.nan
                continue
            member = np.searchsorted(np.flatnonzero(self.blend == k), index[here])
            blend = self.blend_flux_cov[k].transpose(0, 2, 1, 3)
            covariance[np.ix_(here, here)] = blend[np.ix_(member, member)]
        same = index[:, None] == index
        covariance[same] = self.flux_cov[index[np.nonzero(same)[0]]]  # `flux_cov` has double precision
        return np.ascontiguousarray(covariance.transpose(0, 2, 1, 3))

    def to_table(self, style: str = "deblendrt") -> Table:
        """Return the catalogue of all sources.

        Parameters
        ----------
        style : {"deblendrt", "rubin"}
            Names of the columns: this package's names or Rubin's names.

        Returns
        -------
        astropy.table.Table
            One row per source in the caller's order, with units and descriptions. All columns are scalar, so that
            `to_pandas` works. `deblendrt.engine.result.fields` lists the columns of the style "deblendrt": id, scene,
            ..., then band after band flux_<band>, flux_err_<band>, ..., then ixx, ..., flags.

        Raises
        ------
        ValueError
            The style is unknown.

        Notes
        -----
        The style "rubin" has the columns of the child records of lsst.meas.extensions.scarlet, with bands as prefixes:
        id, parent (the blend), x, y, deblend_nChild, ..., <band>_deblend_flux, <band>_deblend_blendedness, .... A
        blend has no record of its own. Its number counts from 0, whereas Rubin's parent 0 means no parent. Some
        columns of Rubin are left out, because here their names would have other meanings: deblend_scarletFlux
        (`map_flux` is the nearest quantity), deblend_peak_instFlux, deblend_dataCoverage, deblend_nComponents,
        deblend_runtime, and the columns of the conditions on which Rubin skips a blend.
        """
        from deblendrt.engine.result.tables import catalog_table, rubin_table  # astropy takes half a second to load

        makers = {"deblendrt": catalog_table, "rubin": rubin_table}
        if style not in makers:
            raise ValueError(f"style: expected one of {sorted(makers)}, got {style!r}")
        return makers[style](self)

    def write(self, path: str | Path, *, images: bool = False, overwrite: bool = False) -> None:
        """Write the result to one file, which appears whole or not at all.

        Parameters
        ----------
        path : str or Path
            The suffix sets the format. A ".fits" file, or a compressed ".fits.gz" file, holds the whole result, which
            `read` loads again; `deblendrt.engine.result.result_file` describes its layout. A ".parquet" file holds the
            scalar columns of the catalogue (needs pyarrow).
        images : bool
            Add the scenes' images and inverse variances, so that `residual` works on a result that was read. Also add
            MODEL_<k> and RESIDUAL_<k>, float32 (n_band, n_y, n_x) [nJy], for every scene k. They are rendered one at a
            time, so that memory stays bounded.
        overwrite : bool
            Replace an existing file.

        Raises
        ------
        FileExistsError
            The file exists and `overwrite` is False.
        ImportError
            A Parquet file was asked for, and pyarrow is not installed.
        ValueError
            The suffix is unknown; or images were asked for, in a Parquet file or for a result without images.
        """
        from deblendrt.engine.result.result_file import write_result

        write_result(path, self, images=images, overwrite=overwrite)

    @staticmethod
    def read(path: str | Path, *, blend: int | None = None, scene: int | None = None,
             model: str | Path | LoadedModel | None = None) -> DeblendResult:
        """Read a FITS file that `write` made, or a part of it.

        Parameters
        ----------
        path : str or Path
        blend : int, optional
            Read this blend alone: its number in the file's column blend; a negative number counts from the end. The
            method `model` then draws the blend alone, and `residual` gives the image without the blend.
        scene : int, optional
            Read this scene alone; a negative number counts from the end.
        model : str, Path or Deblender, optional
            Bundle that the result was made with, by name or folder. Default: the shipped bundle of the stored name. A
            loaded Deblender keeps folded bases, which saves 0.2 s per PSF when many parts are read.

        Returns
        -------
        DeblendResult
            Equal to the written result to the bit. In a part, `scene_index` and `blend` count from 0 again, and
            `source_id` has the row numbers of the whole result. Stored images are not read but mapped from the file,
            big-endian.

        Raises
        ------
        ValueError
            The file is no result or has a newer layout; or the result was made with another bundle.
        IndexError
            The file has no blend or scene of this number.

        Notes
        -----
        Only the requested part is read. A ".gz" file is always decompressed whole, into memory.
        """
        from deblendrt.engine.result.result_file import read_result

        return DeblendResult(**read_result(path, blend=blend, scene=scene, model=model))

    @staticmethod
    def read_catalog(path: str | Path) -> Table:
        """Read the catalogue of a FITS file that `write` made.

        Parameters
        ----------
        path : str or Path

        Returns
        -------
        astropy.table.Table
            The columns of `to_table`, and the columns latent and flux_cov.
        """
        from deblendrt.engine.result.result_file import read_catalog

        return read_catalog(path)
