"""The scenes of a result: the arrays of their sources, and images drawn from these arrays.

Open rows (`deblendrt.engine.result.rows.Rows`) and a finished result
(`deblendrt.engine.result.result.DeblendResult`) are both `FittedScenes`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import drawing
from deblendrt.engine.compute.folded_bases import FoldedBases
from deblendrt.engine.result.fields import Quantities
from deblendrt.engine.scene.flags import NOT_FITTED, trusted
from deblendrt.engine.scene.psf.field import PsfField
from deblendrt.engine.scene.psf.images import psf_fwhm
from deblendrt.engine.scene.scene import Scene
from deblendrt.engine.solve import constants, unlisted


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FittedScenes(Quantities):
    """The sources of all scenes, concatenated in the caller's order; `Quantities` has the arrays.

    Attributes
    ----------
    bands : tuple of str
        The model's bands, the order of every band axis.
    source_start : int64 (n_scene + 1,)
        The rows of scene k are source_start[k] to source_start[k + 1], the end excluded.
    blend_flux_cov : list of float32 (n_member, n_band, n_member, n_band) [nJy^2]
        Covariance of all fluxes of each blend, members in the order of their rows; empty in `Rows`.
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

    bands: tuple[str, ...]
    source_start: NDArray[np.int64]
    blend_flux_cov: list[NDArray[np.float32]] = dataclasses.field(default_factory=list)
    scenes: list[Scene]
    folded: FoldedBases
    model_name: str = ""
    model_version: str = ""
    model_sha256: str = ""
    solver: str = ""
    n_iteration: int = 0
    aperture_diameter: float = np.nan
    has_images: bool = True

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
        """Sources that have a fit, bool (n_source,)."""
        return (self.flags & NOT_FITTED) == 0

    @property
    def trusted(self) -> NDArray[np.bool_]:
        """Sources that have none of the flags `deblendrt.engine.scene.flags.UNTRUSTED`, bool (n_source,)."""
        return trusted(self.flags)

    @property
    def extended(self) -> NDArray[np.bool_]:
        """Sources drawn with outskirts, bool (n_source,)."""
        return self.extent > 0

    def sources(self, i_scene: int) -> slice:
        """Return the rows of a scene.

        Parameters
        ----------
        i_scene : int
            Number of the scene; a negative number counts from the end.

        Returns
        -------
        slice
        """
        k = checked_index("i_scene", i_scene, self.n_scene)
        return slice(int(self.source_start[k]), int(self.source_start[k + 1]))

    def stamps(self, i_source: int) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the model image of one source alone.

        Parameters
        ----------
        i_source : int
            Row of the source; a negative number counts from the end.

        Returns
        -------
        stamp : float32 (n_band, window, window) [nJy]
            The model under the observed PSF; zero for a source that was not fitted.
        corner : tuple of int [pixel]
            Pixel (x, y) of the scene's image at the stamp's first pixel; it may lie off the image.
        """
        i = checked_index("i_source", i_source, self.n_source)
        folded, extent = self.folded[self.folded_index[i]], self.extent[[i]]
        x, y = drawing.corners(folded, self.anchor[[i]] - folded.half, extent)[0].tolist()
        coefficients = self.coefficients[[i]] if self.fitted[i] else np.zeros_like(self.coefficients[[i]])
        return next(drawing.each_stamp(coefficients, folded, extent)), (x, y)

    def model(self, i_scene: int) -> NDArray[np.float32]:
        """Return the model image of a scene, the sum of its sources.

        Parameters
        ----------
        i_scene : int

        Returns
        -------
        float32 (n_band, n_y, n_x) [nJy]
        """
        rows = self.sources(i_scene)
        image = np.zeros(self.scenes[i_scene].images.shape, np.float32)
        fitted = np.arange(rows.start, rows.stop)[self.fitted[rows]]
        for k in np.unique(self.folded_index[fitted]).tolist():
            folded, index = self.folded[k], fitted[self.folded_index[fitted] == k]
            corner = self.anchor[index] - folded.half
            shape: list[tuple[int, ...]] = [image.shape] * len(index)
            for stamp in drawing.placed(self.coefficients[index], folded, corner, self.extent[index], shape):
                image[:, stamp.y, stamp.x] += stamp.image
        return image

    def need_images(self, name: str) -> None:
        """Raise ValueError, in the name of a method, if the scenes' images were not stored."""
        if not self.has_images:
            raise ValueError(f"{name}: the result was read from a file without images; write it with images=True")

    def without_sky(self, i_scene: int, image: NDArray[np.float32],
                    inverse_variance: NDArray[np.float32]) -> NDArray[np.float32]:
        """Subtract the fitted sky of a scene from its image, or from a cutout of its image, where there is weight.

        Parameters
        ----------
        i_scene : int
        image, inverse_variance : float32 (n_band, n_y, n_x) [nJy], [nJy^-2]

        Returns
        -------
        float32 (n_band, n_y, n_x) [nJy]
            The image itself if no sky was fitted.
        """
        sky = self.sky[i_scene]
        if not sky.any():
            return image
        return np.where(inverse_variance > 0, image - sky[:, None, None].astype(np.float32), image)

    def residual(self, i_scene: int, model: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return the residual of a scene, data - model, without the fitted sky.

        Parameters
        ----------
        i_scene : int
        model : float32 (n_band, n_y, n_x) [nJy], optional
            Model image of the scene, from the method `model`; the image is then not drawn again.

        Returns
        -------
        float32 (n_band, n_y, n_x) [nJy]
            The residual is zero where the scene has no data (weight zero).

        Raises
        ------
        ValueError
            The result was read from a file without images.

        Notes
        -----
        The scenes refer to the caller's image arrays. A change of these arrays changes the residual.
        """
        self.need_images("residual")
        model = self.model(i_scene) if model is None else model
        image, inverse_variance = self.scenes[i_scene].images.arrays()
        return np.where(inverse_variance > 0, self.without_sky(i_scene, image, inverse_variance) - model, np.float32(0))

    def residual_peaks(self, i_scene: int, threshold: float | None = None) -> NDArray[np.float64]:
        """Return the peaks of the residual, at which a source may be missing from the list.

        See `deblendrt.engine.solve.unlisted`.

        Parameters
        ----------
        i_scene : int
        threshold : float, optional
            Least significance of a peak; default: 7.

        Returns
        -------
        float64 (n_peak, 3)
            x, y [pixel], and significance in sigma of all bands together; the most significant peak is first.
        """
        self.need_images("residual_peaks")
        rows, scene = self.sources(i_scene), self.scenes[i_scene]
        used = np.unique(self.folded_index[rows]).tolist()
        fwhm = np.mean([[psf_fwhm(band) for band in self.folded.images[k]] for k in used], 0) if used else (
            self.folded.fold(None if isinstance(scene.psf, PsfField) else scene.psf).fwhm)
        image, inverse_variance = scene.images.arrays()
        return unlisted.residual_peaks(
            self.without_sky(i_scene, image, inverse_variance), inverse_variance, self.model(i_scene), fwhm,
            self.position[rows], constants.PEAK_THRESHOLD if threshold is None else threshold)


def checked_index(name: str, value: int, n: int) -> int:
    """Return the index that counts from 0, for an index that may count from the end.

    Parameters
    ----------
    name : str
        Name of the argument, for the message.
    value : int
    n : int
        Length of the indexed sequence.

    Returns
    -------
    int

    Raises
    ------
    IndexError
        The index is outside of the sequence.
    """
    if not -n <= value < n:
        raise IndexError(f"{name}: expected an index below {n}, got {value}")
    return value % n
