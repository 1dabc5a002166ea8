"""What a deblending returns: one row per source in the caller's order, and the images behind it.

Model images are rendered when asked for, from the coefficients: a batch of ten thousand stamps would fill gigabytes
that most callers never look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import drawing
from deblendrt.engine.compute.folded_bases import FoldedBases
from deblendrt.engine.scene.flags import NOT_FITTED
from deblendrt.engine.scene.psf import psf_fwhm
from deblendrt.engine.scene.psf_field import PsfField
from deblendrt.engine.scene.scene import Scene

if TYPE_CHECKING:
    from astropy.table import Table

    from deblendrt.engine.deblender import Deblender



@dataclass(frozen=True, eq=False)
class DeblendResult:
    """Sources of all scenes, concatenated in the caller's order.

    A source that was not fitted (`flags & NOT_FITTED`) has NaN in every float and an empty model.

    Attributes
    ----------
    bands : tuple of str
        The model's bands, the order of every band axis.
    source_start : int64 (n_scene + 1,)
        Rows of scene k: source_start[k] to source_start[k + 1].
    scene_index : int64 (n_source,)
    center : float64 (n_source, 2) [pixel]
        (x, y) as given.
    position : float64 (n_source, 2) [pixel]
        (x, y) of the fit.
    latent : float32 (n_source, n_latent)
        [log_flux per band (ln nJy), offset_x, offset_y (pixel from the anchor), shape] of the MAP solution.
    flux : float64 (n_source, n_band) [nJy]
        Total flux: joint linear solve for all sources of a scene with the MAP shapes; signed.
    flux_err : float64 (n_source, n_band) [nJy]
        Standard deviation: noise, neighbours, and the uncertainty of all positions and shapes (Laplace approximation,
        `deblendrt.engine.measure.uncertainty`).
    flux_sys_err : float64 (n_source, n_band) [nJy]
        What the model cannot draw: the misfit seen in the source's own residual, a tenth of its unseen light, and the
        model's floor (`deblendrt.engine.measure.systematic_error`). To be added to `flux_err` in quadrature. Nearly
        common to a source's bands, so colours do without.
    flux_cov : float64 (n_source, n_band, n_band) [nJy^2]
        Covariance between a source's bands; `flux_err` is the root of its diagonal.
    blend : int64 (n_source,)
        Number of the blend, counted over all scenes; -1 for a source that was not fitted.
    blend_flux_cov : list of float32 (n_member, n_band, n_member, n_band) [nJy^2]
        Covariance of all fluxes of each blend, members in the order of their rows.
    position_err : float64 (n_source, 2) [pixel]
        Standard deviation of `position`; the prior around the given centre is included.
    redistributed_flux, redistributed_flux_err : float64 (n_source, n_band) [nJy]
        The image's own light, shared among the sources in proportion to their models
        (`deblendrt.engine.measure.light_shares`). The error is the pixels' noise and the part of `flux_err` that the
        shapes are to blame for.
    aperture_flux, aperture_flux_err : float64 (n_source, n_band) [nJy]
        Of the model under the reference PSF, which all bands share, inside a circle of `aperture_diameter`.
    moments : float64 (n_source, 3) [pixel^2]
        xx, yy, xy: adaptive Gaussian-weighted second moments of the model under the reference PSF, reference band.
    ellipticity, ellipticity_err : float64 (n_source, 2)
        (xx - yy) / (xx + yy) and 2 xy / (xx + yy) of the moments.
    blendedness, flux_overlap, max_overlap : float64 (n_source, n_band)
        As Rubin's pipelines define them, `deblendrt.engine.measure.light_shares`; `flux_overlap` in nJy.
    map_flux : float64 (n_source, n_band) [nJy]
        Total flux of the MAP solution, positive.
    chi2 : float64 (n_source,)
        Over the source's own core pixels, all bands.
    n_pixel : int64 (n_source,)
        Number of those.
    log_prior : float64 (n_source,)
        Log density of the shape under the prior; NaN for a star.
    flags : int64 (n_source,)
        Bits of `deblendrt.engine.scene.flags.Flag`.
    enclosed : float64 (n_source, n_band)
        Fraction of the total flux that lands in the image window.
    scenes : list of Scene
    scene_chi2 : float64 (n_scene,)
    scene_n_pixel : int64 (n_scene,)
        Pixels with weight, all bands.
    objective : float64 (n_scene,)
        The objective's value at the solution.
    coefficients : float32 (n_source, n_band, n_basis) [nJy]
        Of the basis, with the fluxes of the model images.
    star : bool (n_source,)
        Fitted as a point source.
    star_probability : float64 (n_source,)
        That it is one: 1 or 0 where the caller said so, the posterior where the kind was "auto"
        (`deblendrt.engine.measure.star_or_galaxy`).
    extent : int8 (n_source,)
        How far each source is drawn: 0 its window, 1 with outskirts in a larger one, -k the k-th smaller window.
    anchor : int64 (n_source, 2) [pixel]
        (x, y) of the pixel that a source's window is centred on.
    folded : FoldedBases
        One per distinct PSF.
    folded_index : int64 (n_source,)
        Which of them a source has.
    model_name, model_version, model_sha256 : str
        Of the bundle.
    solver : str
    n_iteration : int
    aperture_diameter : float [arcsec]
    row : int64 (n_source,), optional
        Rows in the whole result, of a part that `read` loaded; None: all rows, from 0.
    has_images : bool
        False if the scenes' images were not stored with the result: `image` and `inverse_variance` are then zero.
    """

    bands: tuple[str, ...]
    source_start: NDArray[np.int64]
    scene_index: NDArray[np.int64]
    center: NDArray[np.float64]
    position: NDArray[np.float64]
    latent: NDArray[np.float32]
    flux: NDArray[np.float64]
    flux_err: NDArray[np.float64]
    flux_sys_err: NDArray[np.float64]
    flux_cov: NDArray[np.float64]
    blend: NDArray[np.int64]
    blend_flux_cov: list[NDArray[np.float32]]
    position_err: NDArray[np.float64]
    redistributed_flux: NDArray[np.float64]
    redistributed_flux_err: NDArray[np.float64]
    aperture_flux: NDArray[np.float64]
    aperture_flux_err: NDArray[np.float64]
    moments: NDArray[np.float64]
    ellipticity: NDArray[np.float64]
    ellipticity_err: NDArray[np.float64]
    blendedness: NDArray[np.float64]
    flux_overlap: NDArray[np.float64]
    max_overlap: NDArray[np.float64]
    map_flux: NDArray[np.float64]
    chi2: NDArray[np.float64]
    n_pixel: NDArray[np.int64]
    log_prior: NDArray[np.float64]
    flags: NDArray[np.int64]
    enclosed: NDArray[np.float64]
    scenes: list[Scene]
    scene_chi2: NDArray[np.float64]
    scene_n_pixel: NDArray[np.int64]
    objective: NDArray[np.float64]
    coefficients: NDArray[np.float32]
    star: NDArray[np.bool_]
    star_probability: NDArray[np.float64]
    extent: NDArray[np.int8]
    anchor: NDArray[np.int64]
    folded: FoldedBases
    folded_index: NDArray[np.int64]
    model_name: str = ""
    model_version: str = ""
    model_sha256: str = ""
    solver: str = ""
    n_iteration: int = 0
    aperture_diameter: float = np.nan
    row: NDArray[np.int64] | None = None
    has_images: bool = True

    def __repr__(self) -> str:
        fitted = int(self.fitted.sum())
        return (f"DeblendResult({self.n_source} sources, {fitted} fitted, in {self.n_scene} scenes, "
                f"bands {', '.join(self.bands)})")

    @property
    def n_source(self) -> int:
        """Number of sources of all scenes."""
        return len(self.flags)

    @property
    def n_scene(self) -> int:
        """Number of scenes."""
        return len(self.scenes)

    @property
    def source_id(self) -> NDArray[np.int64]:
        """Rows in the whole result, int64 (n_source,): the catalogue's id, also of a part that `read` loaded."""
        return np.arange(self.n_source) if self.row is None else self.row

    @property
    def fitted(self) -> NDArray[np.bool_]:
        """Which sources have a fit, bool (n_source,)."""
        return (self.flags & NOT_FITTED) == 0

    @property
    def reduced_chi2(self) -> NDArray[np.float64]:
        """chi2 / n_pixel, float64 (n_source,); NaN where there is no pixel."""
        count = np.where(self.n_pixel > 0, self.n_pixel, np.nan)
        return self.chi2 / count

    def sources(self, i_scene: int) -> slice:
        """Rows of a scene.

        Parameters
        ----------
        i_scene : int
            Negative counts from the end.

        Returns
        -------
        slice
        """
        k = checked_index("i_scene", i_scene, self.n_scene)
        return slice(int(self.source_start[k]), int(self.source_start[k + 1]))

    @property
    def extended(self) -> NDArray[np.bool_]:
        """Sources drawn with outskirts."""
        return self.extent > 0

    def stamps(self, i_source: int) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """One source's own model image.

        Parameters
        ----------
        i_source : int
            Row; negative counts from the end.

        Returns
        -------
        stamp : float32 (n_band, window, window) [nJy]
            Under the observed PSF; zero for a source that was not fitted.
        corner : tuple of int [pixel]
            (x, y) on the scene's image of the stamp's first pixel; may lie off the image.
        """
        i = checked_index("i_source", i_source, self.n_source)
        folded, extent = self.folded[self.folded_index[i]], self.extent[[i]]
        x, y = drawing.corners(folded, self.anchor[[i]] - folded.half, extent)[0].tolist()
        coefficients = self.coefficients[[i]] if self.fitted[i] else np.zeros_like(self.coefficients[[i]])
        return next(drawing.each_stamp(coefficients, folded, extent)), (x, y)

    def _need_images(self, name: str) -> None:
        if not self.has_images:
            raise ValueError(f"{name}: the result was read from a file without images; write it with images=True")

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
        from deblendrt.engine.measure.light_shares import redistributed_image  # it imports this module

        self._need_images("redistributed")
        return redistributed_image(self, checked_index("i_source", i_source, self.n_source))

    def model(self, i_scene: int) -> NDArray[np.float32]:
        """Model image of a scene: the sum of its sources.

        Parameters
        ----------
        i_scene : int

        Returns
        -------
        float32 (n_band, n_y, n_x) [nJy]
        """
        rows = self.sources(i_scene)
        scene = self.scenes[i_scene]
        image = np.zeros(scene.image.shape, np.float32)
        fitted = np.arange(rows.start, rows.stop)[self.fitted[rows]]
        for k in np.unique(self.folded_index[fitted]).tolist():
            folded, index = self.folded[k], fitted[self.folded_index[fitted] == k]
            corner = self.anchor[index] - folded.half
            shape: list[tuple[int, ...]] = [image.shape] * len(index)
            for stamp in drawing.placed(self.coefficients[index], folded, corner, self.extent[index], shape):
                image[:, stamp.y, stamp.x] += stamp.image
        return image

    def residual(self, i_scene: int, model: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Residual of a scene, data - model.

        Parameters
        ----------
        i_scene : int
        model : float32 (n_band, n_y, n_x) [nJy], optional
            What `model` gave for the scene, which is then not rendered again.

        Returns
        -------
        float32 (n_band, n_y, n_x) [nJy]
            Zero where the scene has no data (weight zero).

        Raises
        ------
        ValueError
            The result was read from a file without images.
        """
        self._need_images("residual")
        scene = self.scenes[i_scene]
        model = self.model(i_scene) if model is None else model
        return np.where(scene.inverse_variance > 0, scene.image - model, np.float32(0))

    def residual_peaks(self, i_scene: int, threshold: float | None = None) -> NDArray[np.float64]:
        """What the list of sources lacks: peaks of the residual, see `deblendrt.engine.solve.residual_peaks`.

        Parameters
        ----------
        i_scene : int
        threshold : float, optional
            Least significance; default 7.

        Returns
        -------
        float64 (n_peak, 3)
            x, y [pixel], significance in sigma of all bands together, the most significant first.
        """
        from deblendrt.engine.solve import (
            residual_peaks,  # it imports scenes, which callers of a stored result do not need
        )

        self._need_images("residual_peaks")
        rows, scene = self.sources(i_scene), self.scenes[i_scene]
        used = np.unique(self.folded_index[rows]).tolist()
        fwhm = np.mean([[psf_fwhm(band) for band in self.folded.images[k]] for k in used], 0) if used else (
            self.folded.fold(None if isinstance(scene.psf, PsfField) else scene.psf).fwhm)
        return residual_peaks.residual_peaks(scene, self.model(i_scene), fwhm, self.position[rows],
                                     residual_peaks.PEAK_THRESHOLD if threshold is None else threshold)

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
            Whose words the columns are named in.

        Returns
        -------
        astropy.table.Table
            One row per source in the caller's order, with units and descriptions; scalar columns only, so that
            `to_pandas` works. In this package's words: id, scene, star, star_probability, blend, x, y, x_err, y_err,
            x_input, y_input, then per band flux_<band>, flux_err_, map_flux_, redistributed_flux_,
            redistributed_flux_err_, aperture_flux_, aperture_flux_err_, blendedness_, flux_overlap_, max_overlap_,
            enclosed_, then ixx, iyy, ixy, e1, e2, e1_err, e2_err, chi2, n_pixel, reduced_chi2, log_prior, flags.

        Raises
        ------
        ValueError
            Unknown style.

        Notes
        -----
        Rubin's words are those of the child records of lsst.meas.extensions.scarlet, bands as prefixes: id, parent
        (the blend), x, y, deblend_nChild, ..., <band>_deblend_flux, <band>_deblend_blendedness, .... A blend has no
        record of its own: its number counts from 0, where Rubin's parent 0 means none. Left out, because a column of
        that name would mean something else: deblend_scarletFlux (`map_flux` is next to it), deblend_peak_instFlux,
        deblend_dataCoverage, deblend_nComponents, deblend_runtime, and what can make Rubin skip a blend.
        """
        from deblendrt.engine.result.tables import catalog_table, rubin_table

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
             model: str | Path | Deblender | None = None) -> DeblendResult:
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
            Equal to the written one to the bit; of a part, `scene_index` and `blend` count from 0 again and
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

        return read_result(path, blend=blend, scene=scene, model=model)

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


def checked_index(name: str, value: int, n: int) -> int:
    """An index from 0, of one that may count from the end.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    value : int
    n : int
        Length.

    Returns
    -------
    int

    Raises
    ------
    IndexError
        Not below `n`.
    """
    if not -n <= value < n:
        raise IndexError(f"{name}: expected an index below {n}, got {value}")
    return value % n
