"""The problem of the solver, which has the sources of all scenes in common arrays, and the state of a solver."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.device_protocol import ComputeDevice
from deblendrt.engine.compute.folded_bases import AnyBasis
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.networks import FactoredJacobian, Runtime
from deblendrt.engine.scene.blends import Partition
from deblendrt.engine.units import DoubleArray, FloatArray

Canvases = list[FloatArray]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Scenes with their sources in common arrays, without the sources that cannot be fitted.

    Attributes
    ----------
    runtime : Runtime
    bundle : Bundle
    folded : FoldedBasis or MixedBasis
    data, weight : list of float32 (n_band, n_y, n_x) [nJy], [nJy^-2]
        Canvases: the image of each scene with a border of half a window and zero weight, so that every window lies
        inside.
    partition : list of Partition
        Blends of each scene.
    scene : int64 (n_source,)
        Scene of each source, ascending.
    blend : int64 (n_source,)
        Blend of each source, numbered over all scenes.
    n_blend : int
    corner : int64 (n_source, 2) [pixel]
        First pixel (x, y) of each source's window on its canvas.
    offset0 : float64 (n_source, 2) [pixel]
        The caller's centre relative to the anchor pixel.
    center_sigma : float [pixel]
        Standard deviation of the prior on the offset.
    measured : bool (n_source, n_band)
        Whether the source has any weight in the band.
    robust : bool
        Whether the loss is robust, see `objective`.
    star : bool (n_source,)
        Whether the source is a star; other sources are galaxies.
    extent : int8 (n_source,)
        Window in which each source is drawn, see `drawing`.
    smallest : int8 (n_source,)
        Least extent: the smallest window, unless some band has all its weight outside that window.
    profile : list of float32 (n_band, window, window)
        The square of the mean galaxy's image, of sum one in each band: mean weights are averages with this profile. One
        for each group of `folded`.
    own : bool (n_source,)
        Whether the objective of its scene counts a source: always, unless the scene is a part of a larger image.
    area : list of tuple of slice
        Rows and columns of the canvas that a scene's objective and chi2 count.
    background : list of float32 (n_band, n_y, n_x) [nJy], optional
        Model image of sources that are not in the problem.
    device : ComputeDevice, optional
        Device that computes instead of NumPy.
    bands : int64 (n_used,), optional
        Bands of the model that images, weights, profiles and `folded` hold; see `where_measured`. Default: all bands.
        Latents and coefficients have all bands always.
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
    device: ComputeDevice | None = None
    bands: NDArray[np.int64] | None = None

    @property
    def n_band(self) -> int:
        """Number of the model's bands."""
        return self.measured.shape[1]

    def used(self, by_band: NDArray[Any]) -> NDArray[Any]:
        """Return the bands of an array (n_source, n_band, ...) that the images have."""
        return by_band if self.bands is None else by_band[:, self.bands]

    def spread(self, by_used: NDArray[Any]) -> NDArray[Any]:
        """Return an array (n_source, n_used, ...) in all bands; it is zero in bands that the images lack."""
        if self.bands is None:
            return by_used
        result = np.zeros((len(by_used), self.n_band, *by_used.shape[2:]), by_used.dtype)
        result[:, self.bands] = by_used
        return result

    @property
    def extended(self) -> NDArray[np.bool_]:
        """Whether each source is drawn with its outskirts, bool (n_source,)."""
        return self.extent > 0


@dataclasses.dataclass
class State:
    """A point Z, with the model image, the derivatives and the prior there.

    Attributes
    ----------
    latent : float64 (n_source, n_latent)
    jacobian : FactoredJacobian
    coefficients : float32 (n_source, n_band, n_basis) [nJy]
    model : list of float32 (n_band, n_y, n_x) [nJy]
    log_prior : float64 (n_source,)
        See `solve.prior`.
    prior_gradient : float64 (n_source, n_latent)
        Gradient of `log_prior` by the latents.
    """

    latent: DoubleArray
    jacobian: FactoredJacobian
    coefficients: FloatArray
    model: Canvases
    log_prior: DoubleArray
    prior_gradient: DoubleArray


def where_measured(problem: Problem) -> Problem:
    """Leave out the bands in which no source has weight: they do not move the solution.

    A problem on a device, or without sources, stays as it is.

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
