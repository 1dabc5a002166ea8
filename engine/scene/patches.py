"""Parts of large images. A coadd patch is one scene for the caller, and is solved part by part.

An image above `LARGEST` pixels on a side is cut into rectangles of some `SIDE` pixels. A part is a rectangle with a
border of `BORDER` pixels. All sources in the part are solved, so that the rectangle's sources have their neighbours;
only the results of the rectangle's own sources are kept. Parts are independent, so memory is bounded, and results do
not depend on the order of the parts or on the number of parts at a time. Parts and results do not depend on the memory.

The sources in borders are solved twice; they are a quarter of the sources, the ratio of the areas. A blend that is cut
has no covariance across the cut.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.scene.psf.field import PsfField
from deblendrt.engine.scene.scene import Scene

SIDE = 800  # pixel: 300 MB of images at work in six bands
LARGEST = 1200  # pixel: side of images that are solved whole
BORDER = 64  # pixel: two half-windows, which hold the neighbours of the neighbours

Area = tuple[slice, slice]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A part of a scene.

    Attributes
    ----------
    scene : Scene
        The rectangle with its border. Its images are views of the whole scene's images.
    rows : int64 (n_source,)
        Numbers of the part's sources in the whole scene.
    own : bool (n_source,)
        Whether a source is in the rectangle, so that its results are kept.
    area : tuple of slice
        (y, x) of the rectangle in the part's image.
    """

    scene: Scene
    rows: NDArray[np.int64]
    own: NDArray[np.bool_]
    area: Area


def cut_into_parts(scene: Scene) -> list[Part]:
    """Return the parts of a scene; an empty list if it is solved whole. A scene whose PSF varies has at least one part.

    Parameters
    ----------
    scene : Scene

    Returns
    -------
    list of Part
        Every source is the own source of exactly one part.
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
            psf = scene.psf.from_corner(left, top) if isinstance(scene.psf, PsfField) else scene.psf
            part = dataclasses.replace(scene, images=scene.images.cut(slice(top, bottom), slice(left, right)),
                                       centers=scene.centers[rows] - [left, top], flags=scene.flags[rows], psf=psf,
                                       star=scene.star[rows], auto=scene.auto[rows])
            parts.append(Part(part, rows, own, (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))))
    return parts
