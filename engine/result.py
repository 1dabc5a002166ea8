"""What a deblending returns: one row per source in the caller's order, and the images behind it.

Model images are rendered when asked for, from the coefficients: a batch of ten thousand stamps would fill gigabytes
that most callers never look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.flags import NOT_FITTED
from deblendrt.engine.psf import FoldedBasis
from deblendrt.engine.scene import Scene

if TYPE_CHECKING:
    from astropy.table import Table

RENDER_TILE = 32  # stamps of 6 x 63 x 63 on one (shared) core: 0.39 / 0.26 / 0.20 ms each at 16 / 32 / 64; 3 MB


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
        From that solve's covariance: noise and neighbours; the uncertainty of the shapes is not included.
    map_flux : float64 (n_source, n_band) [nJy]
        Total flux of the MAP solution, positive.
    chi2 : float64 (n_source,)
        Over the source's own core pixels, all bands.
    n_pixel : int64 (n_source,)
        Number of those.
    log_prior : float64 (n_source,)
        Log density of the shape under the prior.
    flags : int64 (n_source,)
        Bits of `deblendrt.engine.flags.Flag`.
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
    anchor : int64 (n_source, 2) [pixel]
        (x, y) of the pixel that a source's window is centred on.
    folded : list of FoldedBasis
        One per distinct PSF.
    folded_index : int64 (n_scene,)
        Which of them a scene uses.
    model_name, model_version : str
        Of the bundle.
    """

    bands: tuple[str, ...]
    source_start: NDArray[np.int64]
    scene_index: NDArray[np.int64]
    center: NDArray[np.float64]
    position: NDArray[np.float64]
    latent: NDArray[np.float32]
    flux: NDArray[np.float64]
    flux_err: NDArray[np.float64]
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
    anchor: NDArray[np.int64]
    folded: list[FoldedBasis]
    folded_index: NDArray[np.int64]
    model_name: str = ""
    model_version: str = ""

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
        k = self._checked("i_scene", i_scene, self.n_scene)
        return slice(int(self.source_start[k]), int(self.source_start[k + 1]))

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
        i = self._checked("i_source", i_source, self.n_source)
        folded = self.folded[self.folded_index[self.scene_index[i]]]
        x, y = (self.anchor[i] - folded.half).tolist()
        return self._render(np.array([i]), folded)[0], (x, y)

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
        folded = self.folded[self.folded_index[i_scene]]
        n_y, n_x = scene.shape
        image = np.zeros(scene.image.shape, np.float32)
        index = np.arange(rows.start, rows.stop)[self.fitted[rows]]
        for start in range(0, len(index), RENDER_TILE):
            tile = index[start : start + RENDER_TILE]
            low = self.anchor[tile] - folded.half
            for stamp, (x, y) in zip(self._render(tile, folded), low.tolist(), strict=True):
                x0, x1 = max(x, 0), max(0, min(x + folded.window, n_x))
                y0, y1 = max(y, 0), max(0, min(y + folded.window, n_y))
                image[:, y0:y1, x0:x1] += stamp[:, y0 - y : y1 - y, x0 - x : x1 - x]
        return image

    def residual(self, i_scene: int) -> NDArray[np.float32]:
        """Residual of a scene, data - model.

        Parameters
        ----------
        i_scene : int

        Returns
        -------
        float32 (n_band, n_y, n_x) [nJy]
            Zero where the scene has no data (weight zero).
        """
        scene = self.scenes[i_scene]
        return np.where(scene.inverse_variance > 0, scene.image - self.model(i_scene), np.float32(0))

    def _render(self, index: NDArray[np.int64], folded: FoldedBasis) -> NDArray[np.float32]:
        """Stamps (n, n_band, window, window) of rows that share a folded basis."""
        fitted = self.fitted[index]
        coefficients = np.where(fitted[:, None, None], self.coefficients[index], np.float32(0))
        image = np.matmul(coefficients.transpose(1, 0, 2), folded.phi).transpose(1, 0, 2)
        return np.ascontiguousarray(image).reshape(len(index), folded.n_band, folded.window, folded.window)

    @staticmethod
    def _checked(name: str, value: int, n: int) -> int:
        if not -n <= value < n:
            raise IndexError(f"{name}: expected an index below {n}, got {value}")
        return value % n

    def to_table(self) -> Table:
        """Catalogue of all sources.

        Returns
        -------
        astropy.table.Table
            One row per source in the caller's order: id, scene, x, y, x_input, y_input, then per band flux_<band>,
            flux_err_<band>, map_flux_<band>, enclosed_<band>, then chi2, n_pixel, reduced_chi2, log_prior, flags.
            Scalar columns only, so that `to_pandas` works.
        """
        from astropy import units as u
        from astropy.table import Table

        from deblendrt.engine.doctor import version

        columns: dict[str, Any] = {
            "id": np.arange(self.n_source),
            "scene": self.scene_index,
            "x": self.position[:, 0] * u.pixel,
            "y": self.position[:, 1] * u.pixel,
            "x_input": self.center[:, 0] * u.pixel,
            "y_input": self.center[:, 1] * u.pixel,
        }
        for b, band in enumerate(self.bands):
            columns[f"flux_{band}"] = self.flux[:, b] * u.nJy
            columns[f"flux_err_{band}"] = self.flux_err[:, b] * u.nJy
            columns[f"map_flux_{band}"] = self.map_flux[:, b] * u.nJy
            columns[f"enclosed_{band}"] = self.enclosed[:, b]
        columns |= {
            "chi2": self.chi2,
            "n_pixel": self.n_pixel,
            "reduced_chi2": self.reduced_chi2,
            "log_prior": self.log_prior,
            "flags": self.flags,
        }
        return Table(columns, meta={  # eight letters at most: the length of a FITS key
            "software": f"deblendrt {version('deblendrt') or '(not installed)'}",
            "bundle": self.model_name,
            "modelver": self.model_version,
            "bands": ",".join(self.bands),
            "fluxunit": "nJy",
            "pixels": "0-based, integer = pixel centre",
        })

    def write(self, path: str | Path, *, images: bool = False, overwrite: bool = False) -> None:
        """Write the result to one FITS file, which appears whole or not at all.

        Parameters
        ----------
        path : str or Path
            Compressed if it ends in ".gz".
        images : bool
            Add MODEL_<k> and RESIDUAL_<k>, float32 (n_band, n_y, n_x) [nJy], for every scene k; rendered one at a
            time, so that memory stays bounded.
        overwrite : bool
            Replace an existing file.

        Raises
        ------
        FileExistsError
            The file exists and `overwrite` is False.

        Notes
        -----
        Tables: CATALOG (`to_table` and a vector column, latent), SCENES, and FLAGS, which says what the bits mean.
        """
        from deblendrt.engine.result_file import write_result

        write_result(path, self, images=images, overwrite=overwrite)

    @staticmethod
    def read_catalog(path: str | Path) -> Table:
        """Read the catalogue of a file that `write` made.

        Parameters
        ----------
        path : str or Path

        Returns
        -------
        astropy.table.Table
            As from `to_table`, and the column latent.
        """
        from deblendrt.engine.result_file import read_catalog

        return read_catalog(path)
