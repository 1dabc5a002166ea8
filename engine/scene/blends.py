"""The blends of a scene: groups of sources that are solved together, and the pixels that belong to each group.

The radius of a source is the radius of the area where its light is significant. Two sources are linked if their circles
touch, and connected components are blends. A component above a size cap is cut by shrinking its circles, so that a
crowded field does not become one blend. The solver has one damping and one accept-or-reject decision per blend, from
the pixels that the blend owns. A pixel belongs to the source that is nearest in units of the source's radius, so that a
bright galaxy owns its outskirts. The light in a pixel is always shared by all sources of the scene, in any blend.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

# pixel: beyond twice this distance, the cross terms of two galaxies of median size are below 2% of their own terms.
MIN_BLEND_RADIUS = 6.0
MAX_BLEND = 64  # sources; the time of the joint flux solve is cubic in this number


@dataclasses.dataclass(frozen=True)
class Partition:
    """The blends and pixel owners of a scene.

    Attributes
    ----------
    blend : int64 (n_source,)
        Blend of each source, numbered from 0 in the order of first members.
    n_blend : int
    owner : int32 (n_y, n_x)
        Source that owns each pixel; -1 outside of all windows.
    """

    blend: NDArray[np.int64]
    n_blend: int
    owner: NDArray[np.int32]

    @functools.cached_property
    def label(self) -> NDArray[np.int64]:
        """Blend that owns each pixel, numbered from 1; 0 outside of all windows."""
        return np.append(self.blend + 1, 0)[self.owner]  # owner -1 takes the last entry


def link(centers: NDArray[np.float64], radius: NDArray[np.float64], cap: int = MAX_BLEND) -> NDArray[np.int64]:
    """Return the connected components of sources whose circles touch, cut to at most `cap` sources.

    Parameters
    ----------
    centers : float64 (n_source, 2) [pixel]
    radius : float64 (n_source,) [pixel]
    cap : int

    Returns
    -------
    int64 (n_source,)
        Labels from 0, in the order of first members.
    """
    if cap < 1:
        raise ValueError(f"cap: expected at least 1, got {cap}")
    labels = _components(centers, radius)
    sizes = np.bincount(labels, minlength=1)
    following = len(sizes)
    for large in np.flatnonzero(sizes > cap):
        members = np.flatnonzero(labels == large)
        coincident = radius[members].max() < 1e-3  # equal positions are cut by their order
        pieces = (np.arange(len(members)) // cap if coincident
                  else link(centers[members], 0.7 * radius[members], cap))
        labels[members] = following + pieces
        following += pieces.max() + 1
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse]


def _components(centers: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.int64]:
    n = len(centers)
    parent = np.arange(n)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    order = np.argsort(centers[:, 0], kind="stable")
    x = centers[order, 0]
    last = np.searchsorted(x, x + radius[order] + radius.max(initial=0.0), side="right")
    for a in range(n):
        i = order[a]
        near = order[a + 1 : last[a]]
        close = near[((centers[near] - centers[i]) ** 2).sum(1) < (radius[near] + radius[i]) ** 2]
        for j in close:
            ri, rj = root(i), root(j)
            parent[max(ri, rj)] = min(ri, rj)
    roots = np.array([root(i) for i in range(n)], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def partition(centers: NDArray[np.float64], radius: NDArray[np.float64], corner: NDArray[np.int64],
              window: NDArray[np.int64], shape: tuple[int, int]) -> Partition:
    """Link the sources of a scene into blends, and find the owner of every pixel.

    Parameters
    ----------
    centers : float64 (n_source, 2) [pixel]
        Positions on the canvas.
    radius : float64 (n_source,) [pixel]
    corner : int64 (n_source, 2) [pixel]
        First pixel of each window on the canvas, or off it.
    window : int64 (n_source,) [pixel]
    shape : (int, int)
        (n_y, n_x) of the canvas.

    Returns
    -------
    Partition
    """
    blend = link(centers, radius)
    owner = np.full(shape, -1, np.int32)
    nearest = np.full(shape, np.inf, np.float32)
    for i, ((cx, cy), (x, y), r) in enumerate(zip(centers, corner, radius, strict=True)):
        area = (slice(max(y, 0), min(y + window[i], shape[0])), slice(max(x, 0), min(x + window[i], shape[1])))
        row, column = np.arange(area[0].start, area[0].stop), np.arange(area[1].start, area[1].stop)
        distance = (((row - cy) / r) ** 2)[:, None] + (((column - cx) / r) ** 2)[None, :]
        closer = distance < nearest[area]
        nearest[area] = np.where(closer, distance, nearest[area])
        owner[area] = np.where(closer, i, owner[area])
    return Partition(blend, int(blend.max()) + 1 if len(blend) else 0, owner)
