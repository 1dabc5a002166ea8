"""Open rows of a result: the deblender and the measures write into their arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.folded_bases import FoldedBases
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.result.fields import QUANTITIES
from deblendrt.engine.result.fitted_scenes import FittedScenes
from deblendrt.engine.scene.flags import NOT_FITTED, Flag
from deblendrt.engine.scene.patches import Area, Part
from deblendrt.engine.scene.psf.field import PsfField
from deblendrt.engine.scene.scene import Scene
from deblendrt.engine.scene.settings import Settings

EVERYWHERE: Area = (slice(None), slice(None))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Rows(FittedScenes):
    """Rows that are being filled in. Scenes are solved in any order, and each scene writes its own rows.

    While rows are open, the number of a blend is the row of its first member, so that it depends on no other scene.

    Attributes
    ----------
    covariances : dict of int to float32 (n_member, n_band, n_member, n_band) [nJy^2]
        Covariance of the fluxes of each blend, by the number of the blend; members are in the order of their rows.
    """

    covariances: dict[int, NDArray[np.float32]] = dataclasses.field(default_factory=dict)

    @classmethod
    def empty(cls, scenes: list[Scene], bundle: Bundle, fold: Callable[[NDArray[np.float64] | None], FoldedBasis],
              settings: Settings) -> Rows:
        """Return the rows of scenes that are not fitted yet.

        Parameters
        ----------
        scenes : list of Scene
        bundle : Bundle
        fold : callable
            Function from PSF images (n_band, q, q) to a FoldedBasis; None stands for the model's nominal PSFs.
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
                if id(image) not in number:  # an array that many scenes share is hashed once
                    number[id(image)] = folded.add(nominal if image is None else image)
            index[start[i] : start[i + 1]] = [number[id(image)] for image in images]
        lengths = {"n_source": int(start[-1]), "n_scene": len(scenes), "n_band": len(bundle.bands),
                   "n_basis": bundle.n_basis, "n_latent": bundle.n_latent}
        flags = _joined([scene.flags for scene in scenes], np.zeros(0, np.int64))
        star = _joined([scene.star for scene in scenes], np.zeros(0, bool))
        nothing_fitted = [not np.any((scene.flags & NOT_FITTED) == 0) for scene in scenes]
        # A fitted scene gets its chi2 and objective from its solution.
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
            Values by the name of the quantity.
        """
        for name, value in values.items():
            getattr(self, name)[row] = value

    def flag(self, row: NDArray[np.int64], flag: Flag, condition: NDArray[np.bool_]) -> None:
        """Set a flag of the rows for which a condition, bool (n,), is True."""
        self.flags[row] |= np.where(condition, int(flag), 0)

    def flag_near(self, i_scene: int, places: NDArray[np.float64], distance: float, pixel_scale: float,
                  flag: Flag) -> None:
        """Set a flag of the sources whose given centre is within a distance of a place.

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
        """Return the rows of several scenes, scene after scene."""
        return np.concatenate([np.zeros(0, np.int64), *[
            np.arange(self.source_start[k], self.source_start[k + 1]) for k in scenes]])

    def adopt(self, rows: NDArray[np.int64], solved: Rows, own: NDArray[np.int64]) -> None:
        """Copy the rows `own` of `solved`, and the covariances of their blends without members that are not copied.

        Parameters
        ----------
        rows : int64 (n,)
            Rows that the copies replace.
        solved : Rows
            Rows to copy from; their coordinates may have another origin.
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
        """Copy scenes of `solved`, with their own quantities. Sources beyond the end of a scene's list are left out."""
        for k, i in zip(scenes, of_solved, strict=True):
            for q in QUANTITIES.values():
                if q.solved and q.axes[0] == "n_scene":
                    getattr(self, q.name)[k] = getattr(solved, q.name)[i]
        rows = self.of_scenes(scenes)
        first = np.repeat([solved.source_start[i] - self.source_start[k]
                           for k, i in zip(scenes, of_solved, strict=True)], np.diff(self.source_start)[list(scenes)])
        self.adopt(rows, solved, rows + first.astype(np.int64))

    def adopt_part(self, i_scene: int, part: Part, solved: Rows) -> None:
        """Copy a part's own sources from `solved`, which has the rows of this part alone."""
        rows = int(self.source_start[i_scene]) + part.rows
        self.adopt(rows[part.own], solved, np.flatnonzero(part.own))
        self.sky[i_scene], self.sky_err[i_scene] = solved.sky[0], solved.sky_err[0]  # a sky needs a single part

    def forget_blends(self, i_scene: int) -> None:
        """Drop the covariances of the blends of a scene."""
        rows = self.sources(i_scene)
        for number in np.unique(self.blend[rows]).tolist():
            self.covariances.pop(number, None)

    def numbered_blends(self) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
        """Return the sources' blend numbers, in the order of first members, and the covariances by these numbers."""
        first, number = np.unique(self.blend[self.blend >= 0], return_inverse=True)
        blend = self.blend.copy()
        blend[blend >= 0] = number
        return blend, [self.covariances[int(k)] for k in first]


def empty_chi2(scene: Scene, area: Area = EVERYWHERE) -> float:
    """Return chi2 of a model without light, over an area of the image."""
    return sum(float((w[area] * y[area].astype(np.float64) ** 2).sum()) for y, w in scene.images.by_band())


def _joined(parts: list[NDArray[Any]], nothing: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([nothing, *parts])
