"""What is solved, and where a solver is: scenes flattened for the objective."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.folded_bases import AnyBasis
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.networks import FactoredJacobian, Runtime
from deblendrt.engine.scene.blends import Partition

if TYPE_CHECKING:
    from deblendrt.engine.compute.cuda.streams import SharedDevice
    from deblendrt.engine.compute.cuda.work import DeviceWork

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
Canvases = list[FloatArray]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Scenes, flattened for the solver. Only sources that can be fitted are here.

    Attributes
    ----------
    runtime : Runtime
    bundle : Bundle
    folded : FoldedBasis or MixedBasis
    data, weight : list of float32 (n_band, n_y, n_x) [nJy], [nJy^-2]
        Per scene, padded by the window's half on every side with zero weight, so that every window lies inside.
    partition : list of Partition
        Per scene.
    scene : int64 (n_source,)
        Scene of each source, ascending.
    blend : int64 (n_source,)
        Blend of each source, numbered over all scenes.
    n_blend : int
    corner : int64 (n_source, 2) [pixel]
        First pixel of each window on its canvas.
    offset0 : float64 (n_source, 2) [pixel]
        The caller's centre relative to the anchor pixel.
    center_sigma : float [pixel]
        Standard deviation of the prior on the offset.
    measured : bool (n_source, n_band)
        Whether the source has any weight in the band.
    robust : bool
    star : bool (n_source,)
        Point sources, the rest are galaxies.
    extent : int8 (n_source,)
        How far each source is drawn, see `ops`.
    smallest : int8 (n_source,)
        Its least value: the smallest window, but not where a band has weight outside of it alone.
    profile : list of float32 (n_band, window, window)
        Square of the mean galaxy's image, of sum one per band: what mean weights are weighted by. One for each group of
        `folded`.
    own : bool (n_source,)
        Sources that a scene's objective counts; all but where a scene is a part of a larger one.
    area : list of tuple of slice
        (y, x), per scene: pixels of the canvas that a scene's objective and chi2 count.
    background : list of float32 (n_band, n_y, n_x) [nJy], optional
        Model of sources that are not in the problem.
    device : SharedDevice or DeviceWork, optional
        What computes instead of NumPy.
    bands : int64 (n_used,), optional
        Of the model's bands, those that images, weights, profiles and `folded` hold; see `where_measured`. Default:
        all. Latents and coefficients have all bands always.
    """

    runtime: Runtime
    bundle: Bundle
    folded: AnyBasis
    data: Canvases
    weight: Canvases
    partition: list[Partition]
    scene: NDArray[np.int64]
    blend: NDArray[np.int64]
    n_blend: int
    corner: NDArray[np.int64]
    offset0: DoubleArray
    center_sigma: float
    measured: NDArray[np.bool_]
    robust: bool
    star: NDArray[np.bool_]
    extent: NDArray[np.int8]
    smallest: NDArray[np.int8]
    profile: list[FloatArray]
    own: NDArray[np.bool_]
    area: list[tuple[slice, slice]]
    background: Canvases | None = None
    device: SharedDevice | DeviceWork | None = None
    bands: NDArray[np.int64] | None = None

    @property
    def n_band(self) -> int:
        """Number of the model's bands."""
        return self.measured.shape[1]

    def used(self, by_band: NDArray[Any]) -> NDArray[Any]:
        """Of an array (n_source, n_band, ...), the bands that the images have."""
        return by_band if self.bands is None else by_band[:, self.bands]

    def spread(self, by_used: NDArray[Any]) -> NDArray[Any]:
        """An array (n_source, n_used, ...) in all bands, zero in those that the images lack."""
        if self.bands is None:
            return by_used
        result = np.zeros((len(by_used), self.n_band, *by_used.shape[2:]), by_used.dtype)
        result[:, self.bands] = by_used
        return result

    @property
    def extended(self) -> NDArray[np.bool_]:
        """Sources drawn with their outskirts."""
        return self.extent > 0


@dataclasses.dataclass
class State:
    """A point Z and what the objective needs to know of it.

    Attributes
    ----------
    latent : float64 (n_source, n_latent)
    jacobian : FactoredJacobian
    coefficients : float32 (n_source, n_band, n_basis) [nJy]
    model : list of float32 (n_band, n_y, n_x) [nJy]
    log_prior : float64 (n_source,)
        Flow, offset and missing-band terms.
    prior_gradient : float64 (n_source, n_latent)
        Of `log_prior`.
    """

    latent: DoubleArray
    jacobian: FactoredJacobian
    coefficients: FloatArray
    model: Canvases
    log_prior: DoubleArray
    prior_gradient: DoubleArray


def where_measured(problem: Problem) -> Problem:
    """The problem without the bands that no source has weight in: nothing there moves a solution.

    A problem on a device, or of no source, stays as it is.

    Returns
    -------
    Problem
    """
    bands = np.flatnonzero(problem.measured.any(0))
    if problem.device is not None or problem.bands is not None or len(bands) in (0, problem.n_band):
        return problem
    if problem.background is not None:
        raise ValueError("where_measured: expected a problem without a background")
    return dataclasses.replace(
        problem, folded=problem.folded.in_bands(bands), bands=bands, data=[image[bands] for image in problem.data],
        weight=[image[bands] for image in problem.weight], profile=[image[bands] for image in problem.profile])
