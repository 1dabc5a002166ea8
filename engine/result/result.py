"""The result of a deblending: one row per source in the caller's order, and the images behind it.

Model images are drawn when asked for, from the coefficients: a batch of ten thousand stamps would fill gigabytes that
most callers never look at.
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
    """Sources of all scenes, concatenated in the caller's order.

    A source that was not fitted (`flags & NOT_FITTED`) has NaN in every float and an empty model. Arrays are
    read-only. The scenes refer to the caller's images, which are not copied: a change of these arrays afterwards
    changes `residual` and `redistributed`.

    Attributes
    ----------
    flux, flux_err, ... : array
        The quantities of `deblendrt.engine.result.fields`.
    bands : tuple of str
        The model's bands, the order of every band axis.
    source_start : int64 (n_scene + 1,)
        Rows of scene k: source_start[k] to source_start[k + 1].
    blend_flux_cov : list of float32 (n_member, n_band, n_member, n_band) [nJy^2]
        Covariance of all fluxes of each blend, members in the order of their rows.
    scenes : list of Scene
    folded : FoldedBases
        One per distinct PSF.
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
        self.__dict__.update(state)  # pickling loses which arrays are read-only
        self.__post_init__()

    @classmethod
    def of_rows(cls, rows: Rows) -> DeblendResult:
        """The result that open rows become when everything is written.

        Parameters
        ----------
        rows : Rows
            Not to be written to any more.

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
        """One source's share of the observed light, in proportion to the models:
        `deblendrt.engine.measure.light_shares`.

        The redistributed images of all sources sum to the data where the sources have significant light; elsewhere,
        and where a pixel is masked, the model stands.

        Parameters
        ----------
        i_source : int
            Row; negative counts from the end.

        Returns
        -------
        image : float32 (n_band, window, window) [nJy]
        corner : tuple of int [pixel]
            As from `stamps`.

        Raises
        ------
        ValueError
            The result was read from a file without images.
        """
        self.need_images("redistributed")
        return redistributed_image(self, checked_index("i_source", i_source, self.n_source))

    def color(self, blue: str, red: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Colours, blue - red, from the fluxes and their covariance.

        Parameters
        ----------
        blue, red : str
            Bands.

        Returns
        -------
        color : float64 (n_source,) [mag]
            -2.5 log10(flux in blue / flux in red); NaN where one of the two is not positive.
        error : float64 (n_source,) [mag]
            Standard deviation, to first order in the fluxes' errors.
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
        """Covariance of the fluxes of any sources.

        Parameters
        ----------
        rows : sequence of int (m,)
            Negative counts from the end.

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
        covariance[same] = self.flux_cov[index[np.nonzero(same)[0]]]  # which is kept in double precision
        return np.ascontiguousarray(covariance.transpose(0, 2, 1, 3))

    def to_table(self, style: str = "deblendrt") -> Table:
        """Catalogue of all sources.

        Parameters
        ----------
        style : {"deblendrt", "rubin"}
            The words that name the columns.

        Returns
        -------
        astropy.table.Table
            One row per source in the caller's order, with units and descriptions; scalar columns only, so that
            `to_pandas` works. In this package's words the columns are those of `deblendrt.engine.result.fields`: id,
            scene, ..., then band after band flux_<band>, flux_err_<band>, ..., then ixx, ..., flags.

        Raises
        ------
        ValueError
            Unknown style.

        Notes
        -----
        Rubin's words name the child records of lsst.meas.extensions.scarlet, with bands as prefixes: id, parent
        (the blend), x, y, deblend_nChild, ..., <band>_deblend_flux, <band>_deblend_blendedness, .... A blend has no
        record of its own: its number counts from 0, where Rubin's parent 0 means none. Left out, because a column of
        that name would mean something else: deblend_scarletFlux (`map_flux` is next to it), deblend_peak_instFlux,
        deblend_dataCoverage, deblend_nComponents, deblend_runtime, and what can make Rubin skip a blend.
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
            In ".fits", or ".fits.gz" to compress: all of the result, which `read` loads again;
            `deblendrt.engine.result.result_file` says how it is laid out. In ".parquet": the catalogue, scalar columns
            only (needs pyarrow).
        images : bool
            Add the scenes' images and inverse variances, so that `residual` works on what `read` loads, and MODEL_<k>
            and RESIDUAL_<k>, float32 (n_band, n_y, n_x) [nJy], for every scene k; rendered one at a time, so that
            memory stays bounded.
        overwrite : bool
            Replace an existing file.

        Raises
        ------
        FileExistsError
            The file exists and `overwrite` is False.
        ImportError
            Parquet without pyarrow.
        ValueError
            Another suffix, or images in a Parquet file, or of a result that was read without them.
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
            Read this blend alone (its number in the file's column blend; negative counts from the end). `model` then
            shows the blend alone, and `residual` the image without it.
        scene : int, optional
            Read this scene alone; negative counts from the end.
        model : str, Path or Deblender, optional
            Bundle that the result was made with: a name or a folder; default: the bundled one of the stored name. A
            loaded Deblender keeps folded bases, which spares 0.2 s per PSF when many parts are read.

        Returns
        -------
        DeblendResult
            Equal to the written result to the bit. In a part, `scene_index` and `blend` count from 0 again and
            `source_id` has the rows of the whole. The scenes' images, if stored, are not read but mapped from the
            file, big-endian.

        Raises
        ------
        ValueError
            Not a result, or a newer layout; another bundle than the one that the result was made with.
        IndexError
            No such blend or scene.

        Notes
        -----
        Only what is asked for is read. A file in ".gz" has to be decompressed whole, into memory, for any part of it.
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
            As from `to_table`, and the columns latent and flux_cov.
        """
        from deblendrt.engine.result.result_file import read_catalog

        return read_catalog(path)
