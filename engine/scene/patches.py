"""Large images in parts: a coadd patch is one scene to the caller, and solved a part at a time.

An image above `LARGEST` pixels on a side is cut into rectangles of some `SIDE` pixels. A part is a rectangle with a
border of `BORDER` pixels: it solves all sources that lie in it, so that those of the rectangle have their neighbours,
and answers for the rectangle's own. Parts do not know each other, so that memory is bounded and their order and number
at a time do not matter; they are cut the same way whatever the memory, so results do not depend on it.

What that costs: the sources of borders are solved twice (a quarter of the sources at 100 per arcmin^2 or any other
density, it is the ratio of areas). And what it leaves out: a blend that is cut has no covariance across the cut.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.psf_field import PsfField
from deblendrt.engine.scene.scene import Scene

SIDE = 800  # pixel: 300 MB of images at work in six bands
LARGEST = 1200  # pixel: side of images that are solved whole
BORDER = 64  # pixel: twice the half of a window, the neighbours' neighbours

Area = tuple[slice, slice]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A part of a scene.

    Attributes
    ----------
    scene : Scene
        Of the rectangle and its border; its images are views of the whole scene's.
    rows : int64 (n_source,)
        Its sources among the whole scene's.
    own : bool (n_source,)
        Those it answers for.
    area : tuple of slice
        (y, x) of the rectangle in the part's image.
    """

    scene: Scene
    rows: NDArray[np.int64]
    own: NDArray[np.bool_]
    area: Area


def divide(scene: Scene) -> list[Part]:
    """The parts of a scene; none if it is solved whole. A scene whose PSF varies is one part at least.

    Parameters
    ----------
    scene : Scene

    Returns
    -------
    list of Part
        Every source is one part's own.
    """
    if max(scene.shape) <= LARGEST and not isinstance(scene.psf, PsfField):
        return []
    anchors = scene.anchors
    edges = [np.linspace(0, n, (1 if n <= LARGEST else round(n / SIDE)) + 1).astype(int).tolist() for n in scene.shape]
    parts = []
    for y0, y1 in zip(edges[0][:-1], edges[0][1:], strict=True):
        for x0, x1 in zip(edges[1][:-1], edges[1][1:], strict=True):
            top, left = max(y0 - BORDER, 0), max(x0 - BORDER, 0)
            bottom, right = min(y1 + BORDER, scene.shape[0]), min(x1 + BORDER, scene.shape[1])
            x, y = anchors.T
            rows = np.flatnonzero((x >= left) & (x < right) & (y >= top) & (y < bottom))
            if isinstance(scene.psf, PsfField):  # sources of one PSF are drawn together if they stand together
                rows = rows[np.argsort(scene.psf.at(anchors[rows].astype(np.float64)), kind="stable")]
            own = (x[rows] >= x0) & (x[rows] < x1) & (y[rows] >= y0) & (y[rows] < y1)
            cut = (slice(None), slice(top, bottom), slice(left, right))
            psf = scene.psf.from_corner(left, top) if isinstance(scene.psf, PsfField) else scene.psf
            part = dataclasses.replace(scene, image=scene.image[cut], inverse_variance=scene.inverse_variance[cut],
                                       centers=scene.centers[rows] - [left, top], flags=scene.flags[rows], psf=psf,
                                       star=scene.star[rows], auto=scene.auto[rows])
            parts.append(Part(part, rows, own, (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))))
    return parts


def adopt(result: DeblendResult, i_scene: int, part: Part, solved: DeblendResult,
          blends: dict[int, NDArray[np.float32]]) -> dict[int, NDArray[np.float32]]:
    """Write a part's own rows into the result of the whole.

    Parameters
    ----------
    result : DeblendResult
        Changed in place.
    i_scene : int
    part : Part
    solved : DeblendResult
        Of the part's scene alone.
    blends : dict of int to float32 (n_member, n_band, n_member, n_band)
        As from `deblendrt.engine.measure.catalogue_rows.record`, of the part.

    Returns
    -------
    dict
        The same of its own sources, by rows of the result.
    """
    rows = int(result.source_start[i_scene]) + part.rows
    return adopt_rows(result, rows[part.own], solved, np.flatnonzero(part.own), blends)


def adopt_rows(result: DeblendResult, rows: NDArray[np.int64], solved: DeblendResult, own: NDArray[np.int64],
               blends: dict[int, NDArray[np.float32]]) -> dict[int, NDArray[np.float32]]:
    """Write the rows `own` of a solved result to the `rows` of another; as `adopt`."""
    origin = result.anchor[rows] - solved.anchor[own]
    for name in PER_SOURCE:
        getattr(result, name)[rows] = getattr(solved, name)[own]
    result.position[rows] += origin
    target = np.full(solved.n_source, -1)
    target[own] = rows
    covariances = {}
    for first, covariance in blends.items():
        there = target[np.flatnonzero(solved.blend == first)]
        kept = np.flatnonzero(there >= 0)
        if len(kept):
            kept = kept[np.argsort(there[kept])]
            number = int(there[kept[0]])
            result.blend[there[kept]] = number
            covariances[number] = np.ascontiguousarray(covariance[kept][:, :, kept])
    return covariances


PER_SOURCE = frozenset({
    "position", "latent", "flux", "flux_err", "flux_sys_err", "flux_cov", "position_err", "redistributed_flux",
    "redistributed_flux_err", "aperture_flux", "aperture_flux_err", "moments", "ellipticity", "ellipticity_err",
    "blendedness", "flux_overlap", "max_overlap", "map_flux", "chi2", "n_pixel", "log_prior", "flags", "enclosed",
    "coefficients", "extent",
})
"""Fields of a result that the solution of a scene fills in, row by row."""
