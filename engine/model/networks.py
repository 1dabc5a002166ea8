"""The interface of the runtimes that run a bundle's graphs.

Every graph maps independent sources, one a row. A runtime works through them in tiles of `NETWORK_TILE` rows and pads
the last tile, so that the bits of a source's row depend neither on the number of sources nor on its place among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.model.manifest import GRAPHS

NETWORK_TILE = 32  # sources; a multiple of 16, so that no vector kernel has a remainder whose arithmetic differs

Float32Array = NDArray[np.float32]


class FactoredJacobian(NamedTuple):
    """Factored derivative of the coefficients c[b] = exp(log_flux[b]) sum_m mix[m, b] maps[m].

    Attributes
    ----------
    maps : float32 (n_source, n_component, n_basis)
        Unit-flux component maps at the source's offset.
    d_maps : float32 (n_source, 2 + n_shape, n_component, n_basis)
        Derivatives of `maps` by offset_x, offset_y [1 / pixel] and the shape latents.
    mix : float32 (n_source, n_component, n_band)
        Weights of the components in each band; their sum over components is one.
    d_mix : float32 (n_source, n_shape, n_component, n_band)
        Derivatives of `mix` by the shape latents; the mix does not depend on the offset.
    """

    maps: Float32Array
    d_maps: Float32Array
    mix: Float32Array
    d_mix: Float32Array


class Runtime(Protocol):
    """Runs the graphs of a bundle. Inputs have any float type and memory order; outputs are new float32 arrays."""

    def decode(self, latent: NDArray[Any]) -> Float32Array:
        """Return coefficients, float32 (n_source, n_band, n_basis) [nJy], of latents (n_source, n_latent)."""
        ...

    def decode_pullback(self, latent: NDArray[Any], d_coefficients: NDArray[Any]) -> Float32Array:
        """Return J^T d_coefficients, float32 (n_source, n_latent), with J the Jacobian of the coefficients.

        `d_coefficients` is float (n_source, n_band, n_basis).
        """
        ...

    def decode_jacobian(self, latent: NDArray[Any]) -> FactoredJacobian:
        """Return the derivatives of the coefficients in factored form."""
        ...

    def log_prior(self, latent: NDArray[Any]) -> tuple[Float32Array, Float32Array]:
        """Return the log prior density (n_source,) and its gradient by the latent (n_source, n_latent)."""
        ...

    def encode(self, cutouts: NDArray[Any], offsets: NDArray[Any], psf_summary: NDArray[Any]) -> Float32Array:
        """Return the start of the latents, float32 (n_source, n_latent).

        Parameters
        ----------
        cutouts : float (n_source, n_band, size, size)
            image * sqrt(inverse_variance), with the anchor pixel in the middle; `size` is `encoder_cutout_size`.
        offsets : float (n_source, 2) [pixel]
        psf_summary : float (n_source, 2 n_band)
            PSF FWHM [pixel] per band, then ln(noise sigma [nJy]) per band. Both are 0 for a band without weight.
        """
        ...


def checked_inputs(name: str, sizes: Mapping[str, int], values: Sequence[NDArray[Any]]) -> dict[str, Float32Array]:
    """Return the inputs of a graph by name, as contiguous float32.

    Parameters
    ----------
    name : str
        Name of the graph, a key of `GRAPHS`.
    sizes : mapping of str to int
        `Bundle.sizes`.
    values : sequence of float (n_source, ...)
        In the graph's order.

    Raises
    ------
    ValueError
        A shape is not the graph's.
    """
    feeds = {}
    for (key, symbols), value in zip(GRAPHS[name].inputs.items(), values, strict=True):
        expected = (len(values[0]), *(sizes[symbol] for symbol in symbols[1:]))
        if np.shape(value) != expected:
            raise ValueError(f"{name}: {key}: expected shape {expected}, got {np.shape(value)}")
        feeds[key] = np.ascontiguousarray(value, np.float32)
    return feeds


def empty_outputs(name: str, sizes: Mapping[str, int], n_source: int) -> list[Float32Array]:
    """Return arrays for the outputs of a graph."""
    return [np.empty((n_source, *(sizes[symbol] for symbol in symbols[1:])), np.float32)
            for symbols in GRAPHS[name].outputs.values()]


class GraphRuntime:
    """Base class of the runtimes: implements `Runtime` by `run`, which runs a graph by name."""

    def run(self, name: str, *inputs: NDArray[Any]) -> list[Float32Array]:
        """Run a graph.

        Parameters
        ----------
        name : str
            Name of the graph, a key of `manifest.GRAPHS`.
        *inputs : float (n_source, ...)
            In the graph's order.

        Returns
        -------
        list of float32 (n_source, ...)

        Raises
        ------
        ValueError
            An input's shape is not the graph's.
        """
        raise NotImplementedError

    def decode(self, latent: NDArray[Any]) -> Float32Array:
        """See `Runtime`."""
        return self.run("decode", latent)[0]

    def decode_pullback(self, latent: NDArray[Any], d_coefficients: NDArray[Any]) -> Float32Array:
        """See `Runtime`."""
        return self.run("decode_pullback", latent, d_coefficients)[0]

    def decode_jacobian(self, latent: NDArray[Any]) -> FactoredJacobian:
        """See `Runtime`."""
        return FactoredJacobian(*self.run("decode_jacobian", latent))

    def log_prior(self, latent: NDArray[Any]) -> tuple[Float32Array, Float32Array]:
        """See `Runtime`."""
        log_prob, gradient = self.run("log_prior", latent)
        return log_prob, gradient

    def encode(self, cutouts: NDArray[Any], offsets: NDArray[Any], psf_summary: NDArray[Any]) -> Float32Array:
        """See `Runtime`."""
        return self.run("encode", cutouts, offsets, psf_summary)[0]
