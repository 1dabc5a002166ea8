"""A sample of galaxies: bulges and disks, and the structure that they may have."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Structure:
    """Structure of a sample of galaxies. Every array has one row per galaxy.

    Attributes
    ----------
    bulge_angle : float64 (n,) [rad]
    bulge_offset : float64 (n, 2) [arcsec]
        (x, y) of the bulge's centre from the disk's.
    arm_amplitude, arm_number, arm_pitch, arm_phase : float64 (n,) [1, 1, rad, rad]
    ring_amplitude, ring_radius, ring_width : float64 (n,) [1, half-light radius, half-light radius]
    lopsided_amplitude, lopsided_phase : float64 (n,) [1, rad]
    bar_radius, bar_ellipticity, bar_angle : float64 (n,) [arcsec, 1, rad]
    knot_number, knot_seed : int64 (n,)
        Positions, fluxes and sizes of a galaxy's knots follow from its seed.
    companion_radius, companion_ellipticity, companion_angle, companion_sersic : float64 (n,) [arcsec, 1, rad, 1]
    companion_offset : float64 (n, 2) [arcsec]
    bar_flux, knots_flux, companion_flux : float64 (n, n_band) [nJy]
    """

    bulge_angle: NDArray[np.float64]
    bulge_offset: NDArray[np.float64]
    arm_amplitude: NDArray[np.float64]
    arm_number: NDArray[np.float64]
    arm_pitch: NDArray[np.float64]
    arm_phase: NDArray[np.float64]
    ring_amplitude: NDArray[np.float64]
    ring_radius: NDArray[np.float64]
    ring_width: NDArray[np.float64]
    lopsided_amplitude: NDArray[np.float64]
    lopsided_phase: NDArray[np.float64]
    bar_radius: NDArray[np.float64]
    bar_ellipticity: NDArray[np.float64]
    bar_angle: NDArray[np.float64]
    knot_number: NDArray[np.int64]
    knot_seed: NDArray[np.int64]
    companion_radius: NDArray[np.float64]
    companion_ellipticity: NDArray[np.float64]
    companion_angle: NDArray[np.float64]
    companion_sersic: NDArray[np.float64]
    companion_offset: NDArray[np.float64]
    bar_flux: NDArray[np.float64]
    knots_flux: NDArray[np.float64]
    companion_flux: NDArray[np.float64]

    def __getitem__(self, index: slice | NDArray[np.generic]) -> Structure:
        return Structure(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})

    def modulated(self, i: int) -> bool:
        """Whether galaxy i has arms, a ring or lopsidedness."""
        return bool(self.arm_amplitude[i] or self.ring_amplitude[i] or self.lopsided_amplitude[i])


@dataclasses.dataclass(frozen=True)
class Galaxies:
    """A sample of galaxies. Every array has one row per galaxy.

    Attributes
    ----------
    magnitude : float64 (n,) [AB mag]
        In the reference band.
    redshift, bulge_fraction : float64 (n,)
        Bulge fraction in the reference band.
    bulge_half_light_radius, disk_half_light_radius : float64 (n,) [arcsec]
    bulge_ellipticity, disk_ellipticity : float64 (n,)
        |g| = (a - b) / (a + b).
    position_angle : float64 (n,) [rad]
        Angle of the disk's major axis, from +x towards +y. The bulge has the same angle in galaxies without structure.
    bulge_flux, disk_flux : float64 (n, n_band) [nJy]
    bulge_sersic, disk_sersic : float64 (n,)
        Sersic indices.
    structure : Structure, optional
        Bars, knots, companions and the shape of disks; None for a bulge and a disk alone.
    """

    magnitude: NDArray[np.float64]
    redshift: NDArray[np.float64]
    bulge_fraction: NDArray[np.float64]
    bulge_half_light_radius: NDArray[np.float64]
    disk_half_light_radius: NDArray[np.float64]
    bulge_ellipticity: NDArray[np.float64]
    disk_ellipticity: NDArray[np.float64]
    position_angle: NDArray[np.float64]
    bulge_flux: NDArray[np.float64]
    disk_flux: NDArray[np.float64]
    bulge_sersic: NDArray[np.float64]
    disk_sersic: NDArray[np.float64]
    structure: Structure | None = None

    def __len__(self) -> int:
        return len(self.magnitude)

    def __getitem__(self, index: slice | NDArray[np.generic]) -> Galaxies:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values |= {name: value[index] for name, value in values.items() if value is not None}
        return Galaxies(**values)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components, in the order of `component_flux`."""
        return ("bulge", "disk") if self.structure is None else ("bulge", "disk", "bar", "knots", "companion")

    @property
    def component_flux(self) -> NDArray[np.float64]:
        """Flux of every component, float64 (n, n_component, n_band) [nJy]."""
        parts = [self.bulge_flux, self.disk_flux]
        if self.structure is not None:
            parts += [self.structure.bar_flux, self.structure.knots_flux, self.structure.companion_flux]
        return np.stack(parts, 1)

    @property
    def flux(self) -> NDArray[np.float64]:
        """Total flux, float64 (n, n_band) [nJy]."""
        flux: NDArray[np.float64] = self.component_flux.sum(1)
        return flux

    @property
    def half_light_radius(self) -> NDArray[np.float64]:
        """Mean of the components' half-light radii, weighted by their fluxes, float64 (n,) [arcsec]."""
        return (self.bulge_fraction * self.bulge_half_light_radius
                + (1 - self.bulge_fraction) * self.disk_half_light_radius)
