"""A bundle on a device: folded bases as tables, graphs, and the constants that kernels read."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import DeviceArray
from deblendrt.engine.compute.decoding import star_core
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.model.device_networks import DeviceRuntime

KEPT_TABLES = 8  # sets of folded bases on the device, some 50 MB for each PSF


@dataclasses.dataclass(frozen=True)
class Tables:
    """Folded bases of a problem.

    Attributes
    ----------
    phi, phi_t, outer, outer_t : float32 (n_psf, ...)
        As in `FoldedBasis`; `outer` and `outer_t` are None if the basis has no outskirts.
    halved : float32 (4 n_psf, n_band, n_basis, n_side^2)
        Every second pixel of the window along both axes, from row and column (0, 0), (0, 1), (1, 0), (1, 1) on, with
        zeros beyond the window; n_side = (window + 1) / 2.
    missed : tuple of float32 (n_psf, n_band, n_basis, n_basis)
        `Window.missed` of the basis' own window and of each smaller window.
    insets, used : int32 (n_window,)
        `Window.inset` and `Window.n_used` of these windows.
    profile : float32 (n_psf, n_band, n_pixel)
        `Problem.profile`.
    key : tuple
        Identities of the folded bases.
    """

    phi: DeviceArray
    phi_t: DeviceArray
    outer: DeviceArray | None
    outer_t: DeviceArray | None
    halved: DeviceArray
    missed: tuple[DeviceArray, ...]
    insets: DeviceArray
    used: DeviceArray
    profile: DeviceArray
    key: tuple[Any, ...]


class DeviceModel:
    """A bundle on a device. One thread at a time.

    Parameters
    ----------
    runtime : DeviceRuntime
        Networks of the bundle, on the device.

    Attributes
    ----------
    runtime, bundle, device
    """

    def __init__(self, runtime: DeviceRuntime) -> None:
        self.runtime, self.bundle, self.device = runtime, runtime.bundle, runtime.device
        bundle, device = self.bundle, self.device
        self._tables: collections.OrderedDict[tuple[Any, ...], tuple[Tables, Any]] = collections.OrderedDict()
        self.mean_color = device.upload(np.asarray(bundle.mean_color, np.float64))
        self.color_sigma = device.upload(np.asarray(bundle.color_sigma, np.float64))
        core, sums = star_core(bundle)
        self.star_basis = device.upload(core), device.upload(sums)

    def tables(self, problem: Problem) -> Tables:
        """Return the tables of a problem's folded bases; they are uploaded once."""
        bases = [basis for _, basis in problem.folded.groups(len(problem.scene))]
        key = tuple(id(basis) for basis in bases)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key][0]
        while len(self._tables) >= KEPT_TABLES:
            self._tables.popitem(last=False)

        def stack(arrays: list[NDArray[Any]]) -> Any:
            return self.device.upload(np.stack(arrays).astype(np.float32)) if arrays[0].size else None

        def of(name: str) -> list[NDArray[Any]]:
            return [getattr(basis, name) for basis in bases]

        n_window = 1 + len(problem.folded.insets)
        tables = Tables(
            **{name: stack(of(name)) for name in ("phi", "phi_t", "outer", "outer_t")},
            halved=self.device.upload(np.concatenate([_halved(basis) for basis in bases])),
            missed=tuple(stack([basis.at(-k).missed for basis in bases]) for k in range(n_window)),
            insets=self.device.upload(np.array([0, *problem.folded.insets], np.int32)),
            used=self.device.upload(np.array([bases[0].at(-k).n_used for k in range(n_window)], np.int32)),
            profile=stack([p.reshape(problem.n_band, -1) for p in problem.profile]), key=key)
        self._tables[key] = tables, bases  # the bases are kept alive, so that their ids stay theirs
        return tables

    def clear(self) -> None:
        """Give back the memory of tables and networks; later calls make them again."""
        self._tables.clear()
        self.runtime.clear()


def _halved(basis: FoldedBasis) -> NDArray[np.float32]:
    """Make a basis' four tables of every second pixel, see `Tables`."""
    n_band, n_basis, _ = basis.phi.shape
    side = (basis.window + 1) // 2
    image = np.zeros((n_band, n_basis, 2 * side, 2 * side), np.float32)
    image[:, :, : basis.window, : basis.window] = basis.phi.reshape(n_band, n_basis, basis.window, basis.window)
    parts = image.reshape(n_band, n_basis, side, 2, side, 2).transpose(3, 5, 0, 1, 2, 4)
    return np.ascontiguousarray(parts).reshape(4, n_band, n_basis, side**2)
