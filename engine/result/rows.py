"""Rows of a result: the arrays that measuring fills, and the scenes and bases that the model images need.

`Rows` is open: the deblender and the measures write into its arrays. `FittedScenes` is what open rows and a finished
`deblendrt.engine.result.result.DeblendResult` share: the arrays, and images drawn from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import drawing
from deblendrt.engine.compute.folded_bases import FoldedBases
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.result.fields import QUANTITIES, Quantities
from deblendrt.engine.scene.flags import NOT_FITTED, Flag
from deblendrt.engine.scene.patches import Area, Part
from deblendrt.engine.scene.psf import psf_fwhm
from deblendrt.engine.scene.psf_field import PsfField
from deblendrt.engine.scene.scene import Scene
from deblendrt.engine.scene.settings import Settings
from deblendrt.engine.solve import constants, unlisted

EVERYWHERE: Area = (slice(None), slice(None))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FittedScenes(Quantities):
    """Sources of all scenes, concatenated in the caller's order; `Quantities` has the arrays.

    Attributes
    ----------
    bands : tuple of str
        The model's bands, the order of every band axis.
    source_start : int64 (n_scene + 1,)
        Rows of scene k: source_start[k] to source_start[k + 1].
    blend_flux_cov : list of float32 (n_member, n_band, n_member, n_band) [nJy^2]
        Covariance of all fluxes of each blend, members in the order of their rows; of `Rows` empty.
    scenes : list of Scene
    folded : FoldedBases
        One per distinct PSF.
    model_name, model_version, model_sha256 : str
        Of the bundle.
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
        """Which sources have a fit, bool (n_source,)."""
        return (self.flags & NOT_FITTED) == 0

    @property
    def extended(self) -> NDArray[np.bool_]:
        """Sources drawn with outskirts, bool (n_source,)."""
        return self.extent > 0

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

    def residual(self, i_scene: int, model: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Residual of a scene, data - model.

        Parameters
        ----------
        i_scene : int
        model : float32 (n_band, n_y, n_x) [nJy], optional
            Of the scene, from `model`; it is then not drawn again.

        Returns
        -------
        float32 (n_band, n_y, n_x) [nJy]
            Zero where the scene has no data (weight zero).

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
        return np.where(inverse_variance > 0, image - model, np.float32(0))

    def residual_peaks(self, i_scene: int, threshold: float | None = None) -> NDArray[np.float64]:
        """Peaks of the residual, where the list may lack a source; see `deblendrt.engine.solve.unlisted`.

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
        self.need_images("residual_peaks")
        rows, scene = self.sources(i_scene), self.scenes[i_scene]
        used = np.unique(self.folded_index[rows]).tolist()
        fwhm = np.mean([[psf_fwhm(band) for band in self.folded.images[k]] for k in used], 0) if used else (
            self.folded.fold(None if isinstance(scene.psf, PsfField) else scene.psf).fwhm)
        return unlisted.residual_peaks(
            *scene.images.arrays(), self.model(i_scene), fwhm, self.position[rows],
            constants.PEAK_THRESHOLD if threshold is None else threshold)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Rows(FittedScenes):
    """Rows that are filled in: scenes are solved in any order, and each writes its own.

    While rows are open, the number of a blend is the row of its first member: it depends on no other scene.

    Attributes
    ----------
    covariances : dict of int to float32 (n_member, n_band, n_member, n_band) [nJy^2]
        Covariance of the fluxes of each blend, by its number; members in the order of their rows.
    """

    covariances: dict[int, NDArray[np.float32]] = dataclasses.field(default_factory=dict)

    @classmethod
    def empty(cls, scenes: list[Scene], bundle: Bundle, fold: Callable[[NDArray[np.float64] | None], FoldedBasis],
              settings: Settings) -> Rows:
        """Rows of scenes that are not fitted.

        Parameters
        ----------
        scenes : list of Scene
        bundle : Bundle
        fold : callable
            PSF images (n_band, q, q), None for the model's nominal PSFs, to FoldedBasis.
        settings : Settings

        Returns
        -------
        Rows
        """
        count = np.array([scene.n_source for scene in scenes], np.int64)
        start = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        folded = FoldedBases(fold)
        nominal = np.asarray(bundle.psf, np.float64)
        number: dict[int, int] = {}
        index = np.zeros(int(start[-1]), np.int64)
        for i, scene in enumerate(scenes):
            images: Sequence[NDArray[np.float64] | None] = [scene.psf] if not isinstance(scene.psf, PsfField) else [
                scene.psf.images[k] for k in scene.psf.at(scene.anchors.astype(np.float64))]
            for image in images:
                if id(image) not in number:  # one hash for an array that many scenes share
                    number[id(image)] = folded.add(nominal if image is None else image)
            index[start[i] : start[i + 1]] = [number[id(image)] for image in images]
        lengths = {"n_source": int(start[-1]), "n_scene": len(scenes), "n_band": len(bundle.bands),
                   "n_basis": bundle.n_basis, "n_latent": bundle.n_latent}
        flags = _joined([scene.flags for scene in scenes], np.zeros(0, np.int64))
        star = _joined([scene.star for scene in scenes], np.zeros(0, bool))
        nothing_fitted = [not np.any((scene.flags & NOT_FITTED) == 0) for scene in scenes]
        # A scene that is fitted gets chi2 and objective from its solution.
        chi2 = np.array([empty_chi2(scene) if nothing else np.nan
                         for scene, nothing in zip(scenes, nothing_fitted, strict=True)])
        given: dict[str, Any] = {
            "source_id": np.arange(len(flags)), "scene_index": np.repeat(np.arange(len(scenes)), count),
            "center": _joined([scene.centers for scene in scenes], np.zeros((0, 2))),
            "anchor": _joined([scene.anchors for scene in scenes], np.zeros((0, 2), np.int64)), "flags": flags,
            "star": star, "star_probability": np.where(flags & NOT_FITTED, np.nan, star), "folded_index": index,
            "scene_n_pixel": np.array([scene.n_pixel for scene in scenes], np.int64), "scene_chi2": chi2,
            "objective": 0.5 * chi2}
        arrays: dict[str, Any] = {q.name: q.empty(**lengths) for q in QUANTITIES.values() if q.name not in given}
        return cls(**arrays, **given, bands=tuple(bundle.bands), source_start=start, scenes=scenes, folded=folded,
                   model_name=bundle.name, model_version=bundle.model_version, model_sha256=bundle.sha256,
                   solver=settings.solver, n_iteration=settings.n_iteration,
                   aperture_diameter=settings.aperture_diameter)

    def write(self, row: NDArray[np.int64], **values: NDArray[Any]) -> None:
        """Write quantities of some rows.

        Parameters
        ----------
        row : int64 (n,)
        **values : array (n, ...)
            By name of the quantity.
        """
        for name, value in values.items():
            getattr(self, name)[row] = value

    def flag(self, row: NDArray[np.int64], flag: Flag, condition: NDArray[np.bool_]) -> None:
        """Set a flag of the rows with a condition, bool (n,)."""
        self.flags[row] |= np.where(condition, int(flag), 0)

    def flag_near(self, i_scene: int, places: NDArray[np.float64], distance: float, pixel_scale: float,
                  flag: Flag) -> None:
        """Set a flag of the sources whose given centres have a place within a distance.

        Parameters
        ----------
        i_scene : int
        places : float64 (n, 2) [pixel]
        distance : float [arcsec]
        pixel_scale : float [arcsec]
        flag : Flag
        """
        rows = np.arange(self.n_source)[self.sources(i_scene)]
        if len(places):
            nearest = np.hypot(*(self.center[rows, None] - places).transpose(2, 0, 1)).min(1)
            self.flag(rows, flag, nearest * pixel_scale < distance)

    def of_scenes(self, scenes: Sequence[int]) -> NDArray[np.int64]:
        """Rows of several scenes, one scene after the other."""
        return np.concatenate([np.zeros(0, np.int64), *[
            np.arange(self.source_start[k], self.source_start[k + 1]) for k in scenes]])

    def adopt(self, rows: NDArray[np.int64], solved: Rows, own: NDArray[np.int64]) -> None:
        """Take over the rows `own` of other rows, and their blends without the members that are not taken over.

        Parameters
        ----------
        rows : int64 (n,)
            Rows that are written.
        solved : Rows
            Its coordinates may have another origin.
        own : int64 (n,)
        """
        for q in QUANTITIES.values():
            if q.solved and q.axes[0] == "n_source":
                getattr(self, q.name)[rows] = getattr(solved, q.name)[own]
        self.position[rows] += self.anchor[rows] - solved.anchor[own]
        target = np.full(solved.n_source, -1)
        target[own] = rows
        order = np.argsort(solved.blend, kind="stable")
        of_blend = solved.blend[order]
        for number, covariance in solved.covariances.items():
            low, high = np.searchsorted(of_blend, [number, number + 1])
            there = target[order[low:high]]
            kept = np.flatnonzero(there >= 0)
            if len(kept):
                kept = kept[np.argsort(there[kept])]
                first = int(there[kept[0]])
                self.blend[there[kept]] = first
                self.covariances[first] = np.ascontiguousarray(covariance[kept][:, :, kept])

    def adopt_scenes(self, scenes: Sequence[int], solved: Rows, of_solved: Sequence[int]) -> None:
        """Take over scenes of other rows, with chi2 and objective; further sources of the other rows are left out."""
        for k, i in zip(scenes, of_solved, strict=True):
            self.scene_chi2[k], self.objective[k] = solved.scene_chi2[i], solved.objective[i]
        rows = self.of_scenes(scenes)
        first = np.repeat([solved.source_start[i] - self.source_start[k]
                           for k, i in zip(scenes, of_solved, strict=True)], np.diff(self.source_start)[list(scenes)])
        self.adopt(rows, solved, rows + first.astype(np.int64))

    def adopt_part(self, i_scene: int, part: Part, solved: Rows) -> None:
        """Take over a part's own sources from the rows of the part alone."""
        rows = int(self.source_start[i_scene]) + part.rows
        self.adopt(rows[part.own], solved, np.flatnonzero(part.own))

    def forget_blends(self, i_scene: int) -> None:
        """Drop the covariances of the blends of a scene."""
        rows = self.sources(i_scene)
        for number in np.unique(self.blend[rows]).tolist():
            self.covariances.pop(number, None)

    def numbered_blends(self) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
        """Numbers of the sources' blends in the order of their first members, and the covariances by these numbers."""
        first, number = np.unique(self.blend[self.blend >= 0], return_inverse=True)
        blend = self.blend.copy()
        blend[blend >= 0] = number
        return blend, [self.covariances[int(k)] for k in first]


def empty_chi2(scene: Scene, area: Area = EVERYWHERE) -> float:
    """chi2 of a model without light, over an area of the image."""
    return sum(float((w[area] * y[area].astype(np.float64) ** 2).sum()) for y, w in scene.images.by_band())


def checked_index(name: str, value: int, n: int) -> int:
    """Return an index from 0 for an index that may count from the end.

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


def _joined(parts: list[NDArray[Any]], nothing: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([nothing, *parts])
