"""Memory on a device for the joint step: derivative images, blocks and matrices of the sources' pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from deblendrt.cuda.layout import Layout
from deblendrt.engine.compute.cuda.layouts import SourcePairs, arrays_of
from deblendrt.engine.compute.cuda.model import DeviceModel, Tables


class JointBuffers:
    """Arrays of the joint step for problems of one padded size.

    Parameters
    ----------
    model : DeviceModel
    every : Layout
    pairs : SourcePairs
        Its arrays are NumPy's; they state the sizes.
    key : tuple
        Identifies the sizes.
    """

    def __init__(self, model: DeviceModel, every: Layout, pairs: SourcePairs, key: Any) -> None:
        self.device, self.key = model.device, key
        n, n_band, n_latent = every.n_source, every.n_band, model.bundle.n_latent
        n_column, n_basis = model.bundle.n_shape + 3, model.bundle.n_basis
        empty = self.device.empty
        f32, f64 = np.float32, np.float64
        self.on_device = pairs.on(lambda a: empty(a.shape, a.dtype))
        self.pairs: SourcePairs | None = None  # loaded
        self.columns, self.through = (empty((n, n_band, n_column, n_basis), f32) for _ in range(2))
        self.rim, self.alone = empty((n, n_band), f64), empty((n, n_latent, n_latent), f64)
        self.rim_profile = empty((0,), f32)
        n_chunk, n_pair, _ = pairs.pair.shape
        self.images = empty((pairs.n_slot, n_band, n_column, ((every.window + 1) // 2) ** 2), f32)
        self.inner = empty((n_pair, n_band, n_column, n_column), f32)
        self.blocks = empty((n_chunk * n_pair, n_latent, n_latent), f64)
        self.matrices = empty(pairs.n_element, f64)
        n_large = n if pairs.n_large else 0
        self.inverse = empty((n_large, n_latent, n_latent), f64)
        self.rest, self.direction, self.image = (empty((n_large, n_latent), f64) for _ in range(3))
        self.solved = empty((n, n_latent), f64)
        for array in (self.columns, self.through, self.solved):
            self.device.clear(array)  # kernels skip the rows of padding, and others may read them
        self._window, self._n_band = every.window, n_band

    def load(self, pairs: SourcePairs, rim: int, tables: Tables) -> None:
        """Upload the pairs of a problem, and the profile for mean weights in the rims of windows."""
        if self.pairs is not None:
            return
        self.pairs = pairs
        for name, array in arrays_of(pairs).items():
            self.device.upload(array, getattr(self.on_device, name))
        if len(self.rim_profile) != len(tables.phi):
            profile = np.ones((self._window, self._window), np.float32)
            profile[rim : self._window - rim, rim : self._window - rim] = 0
            profile = np.broadcast_to(profile.ravel() / profile.sum(), (len(tables.phi), self._n_band, profile.size))
            self.rim_profile = self.device.upload(np.ascontiguousarray(profile, np.float32))
