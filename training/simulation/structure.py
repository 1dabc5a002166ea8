r"""Structure of galaxies beyond a bulge and a disk of one angle and centre: what `Population.structure` adds.

The ingredients and their sources. "Ours" marks choices that are as wide as bright galaxies look, without a catalogue:

- plain galaxies: a share of the galaxies has none of the ingredients below but the scatter of sizes, so that the prior
  prefers a bulge and a disk of one angle where the data do not tell (ours).
- Sersic indices: log-normal around 3 for bulges and around 1 for disks, on grids (GalSim tabulates each index); ours,
  as wide as the bulge+disk fits of Simard et al. 2011 (ApJS 196, 11).
- single-Sersic galaxies: their indices are log-normal around 1.5 from 0.5 to 5 (ours).
- bulge: an angle of its own, and a centre off the disk's by a Gaussian (ours).
- arms: logarithmic spirals, :math:`e^{A w(\rho) \cos m(\theta - \ln\rho / \tan p - \phi)}` with pitch angles p from
  10 to 35 degrees, as Kennicutt (1981, AJ 86, 1847) measured; two arms in 70% of the galaxies.
- lopsidedness: :math:`e^{L \min(\rho, 2) \cos(\theta - \phi)}`; a third of the disks have m = 1 amplitudes above 0.2
  at 2.5 scale lengths (Zaritsky & Rix 1997, ApJ 477, 118).
- rings: :math:`1 + A e^{-(\rho - \rho_0)^2 / 2 w^2}` (ours).
- bars: a Gaussian along an angle of its own; a third of the disks in the optical (Sheth et al. 2008, ApJ 675, 1141).
- knots: round Gaussians that follow the disk's light, or its arms, in the disk's colours or younger ones (ours).
- companions: a second profile beside the galaxy (ours).

rho is the distance from the disk's centre in its plane, in half-light radii; theta the angle there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.training.config import StructureSettings
from deblendrt.training.simulation.galaxies import Galaxies, Structure

BULGE_INDEX_STEP, DISK_INDEX_STEP = 0.1, 0.05
COMPANION_INDICES = 0.5, 1.0, 1.5, 2.5, 4.0
MAX_STRUCTURE_RADIUS = 8.0  # arcsec, half-light
UNRESOLVED = 3.0  # pixel, half-light radius along the minor axis below which arms, rings and lopsidedness fade


def add_structure(galaxies: Galaxies, spec: StructureSettings, surface_brightness_limit: float,
                  colors: list[NDArray[np.float64]], reference: int, rng: np.random.Generator) -> Galaxies:
    """Give galaxies structure; magnitudes, redshifts and ellipticities stay.

    Parameters
    ----------
    galaxies : Galaxies
        Bulge and disk only.
    spec : StructureSettings
    surface_brightness_limit : float [mag / arcsec^2]
        Radii do not grow beyond it.
    colors : list of float64 (n, n_band)
        Fluxes relative to the reference band: of bars, young knots and companions.
    reference : int
        Index of the reference band.
    rng : numpy.random.Generator

    Returns
    -------
    Galaxies
    """
    n, n_band = len(galaxies), galaxies.bulge_flux.shape[1]
    structured = rng.random(n) >= spec.plain

    def chosen(fraction: float) -> NDArray[np.float64]:
        return (structured & (rng.random(n) < fraction)).astype(float)

    def grid(values: NDArray[np.float64], step: float, low: float, high: float) -> NDArray[np.float64]:
        return np.round(np.clip(values, low, high) / step) * step

    # sizes, up to the surface brightness limit
    largest = 10 ** (0.2 * (surface_brightness_limit - galaxies.magnitude)) / np.sqrt(2 * np.pi)
    growth = np.minimum(np.exp(spec.size_scatter * rng.standard_normal(n)),
                        np.maximum(largest / galaxies.half_light_radius, 1.0))
    disk_radius = np.clip(galaxies.disk_half_light_radius * growth, 0.03, MAX_STRUCTURE_RADIUS)
    bulge_radius = np.clip(galaxies.bulge_half_light_radius * growth, 0.03, MAX_STRUCTURE_RADIUS)

    # indices
    continuous = structured & (rng.random(n) < spec.continuous_index)
    bulge_n = np.where(continuous, grid(np.exp(np.log(3) + 0.4 * rng.standard_normal(n)), BULGE_INDEX_STEP, 1, 6),
                       galaxies.bulge_sersic)
    disk_n = np.where(continuous, grid(np.exp(0.25 * rng.standard_normal(n)), DISK_INDEX_STEP, 0.5, 2),
                      galaxies.disk_sersic)

    # colours of each component
    def scatter() -> NDArray[np.float64]:
        values = 10 ** (0.4 * spec.color_scatter * structured[:, None] * rng.standard_normal((n, n_band)))
        values[:, reference] = 1.0
        return values

    bulge_flux, disk_flux = galaxies.bulge_flux * scatter(), galaxies.disk_flux * scatter()
    fraction, bulge_e = galaxies.bulge_fraction, galaxies.bulge_ellipticity
    angle = galaxies.position_angle
    aligned = 0.15 * structured * rng.standard_normal(n)
    bulge_angle = np.where(structured & (rng.random(n) < spec.misaligned), rng.uniform(0, np.pi, n),
                           angle + (aligned if spec.misaligned else 0.0))
    bulge_offset = spec.bulge_offset * (structured * disk_radius)[:, None] * rng.standard_normal((n, 2))

    # one profile for all of a galaxy's light
    single = structured & (rng.random(n) < spec.single_sersic)
    single_n = grid(np.exp(np.log(1.5) + 0.5 * rng.standard_normal(n)), BULGE_INDEX_STEP, 0.5, 5)
    bulge_flux = np.where(single[:, None], bulge_flux + disk_flux, bulge_flux)
    disk_flux = np.where(single[:, None], 0.0, disk_flux)
    fraction = np.where(single, 1.0, fraction)
    bulge_n, bulge_radius = np.where(single, single_n, bulge_n), np.where(single, disk_radius, bulge_radius)
    bulge_e = np.where(single, galaxies.disk_ellipticity, bulge_e)
    bulge_offset = np.where(single[:, None], 0.0, bulge_offset)

    arm_amplitude = chosen(spec.arms) * rng.uniform(0.2, 1.2, n)
    arm_number = rng.choice([1.0, 2.0, 3.0, 4.0], n, p=[0.05, 0.7, 0.15, 0.1])
    arm_pitch = np.deg2rad(rng.uniform(10, 35, n)) * rng.choice([-1, 1], n)
    ring_amplitude = chosen(spec.rings) * rng.uniform(0.5, 3.0, n)
    ring_radius, ring_width = rng.uniform(0.5, 1.8, n), rng.uniform(0.12, 0.4, n)
    lopsided = chosen(spec.lopsided) * np.minimum(np.abs(rng.normal(0, 0.3, n)), 0.8)

    # light of the disk that moves into a bar and into knots
    in_bar = chosen(spec.bars) * rng.uniform(0.05, 0.3, n)
    in_knots = chosen(spec.knots) * np.where(rng.random(n) < 0.2, rng.uniform(0.1, 0.7, n), rng.uniform(0.0, 0.25, n))
    disk_reference = disk_flux[:, reference, None]
    young = chosen(0.6)[:, None]
    disk_color = disk_flux / np.maximum(disk_reference, 1e-30)
    bar_flux = in_bar[:, None] * disk_reference * colors[0] * scatter()
    knots_flux = (1 - in_bar[:, None]) * in_knots[:, None] * disk_reference * (
        young * colors[1] + (1 - young) * disk_color) * scatter()
    disk_flux = disk_flux * ((1 - in_bar) * (1 - in_knots))[:, None]

    # light of the whole galaxy that moves into a companion
    in_companion = chosen(spec.companions) * rng.uniform(0.02, 0.5, n)
    total = (bulge_flux + disk_flux + bar_flux + knots_flux)[:, reference, None]
    companion_flux = in_companion[:, None] * total * colors[2] * scatter()
    rest = (1 - in_companion)[:, None]
    radius = fraction * bulge_radius + (1 - fraction) * disk_radius
    direction, distance = rng.uniform(0, 2 * np.pi, n), radius * rng.uniform(0.3, 1.6, n)
    structure = Structure(
        bulge_angle, bulge_offset, arm_amplitude, arm_number, arm_pitch, rng.uniform(0, 2 * np.pi, n),
        ring_amplitude, ring_radius, ring_width, lopsided, rng.uniform(0, 2 * np.pi, n),
        np.maximum(disk_radius * rng.uniform(0.3, 0.7, n), 0.03), rng.uniform(0.4, 0.7, n), rng.uniform(0, np.pi, n),
        np.round(np.exp(rng.uniform(np.log(2), np.log(25), n))).astype(np.int64), rng.integers(2**62, size=n),
        np.clip(radius * rng.uniform(0.2, 0.8, n), 0.03, MAX_STRUCTURE_RADIUS), rng.uniform(0, 0.5, n),
        rng.uniform(0, np.pi, n), rng.choice(COMPANION_INDICES, n),
        distance[:, None] * np.stack([np.cos(direction), np.sin(direction)], 1),
        bar_flux * rest, knots_flux * rest, companion_flux)
    return dataclasses.replace(
        galaxies, bulge_fraction=fraction, bulge_half_light_radius=bulge_radius, disk_half_light_radius=disk_radius,
        bulge_ellipticity=bulge_e, bulge_flux=bulge_flux * rest, disk_flux=disk_flux * rest, bulge_sersic=bulge_n,
        disk_sersic=disk_n, structure=structure)


def disk_plane(galaxies: Galaxies, i: int, x: Any, y: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates along the major and minor axis of a disk, as if seen face-on [half-light radii]."""
    e, beta = galaxies.disk_ellipticity[i], galaxies.position_angle[i]
    stretch = np.sqrt((1 + e) / (1 - e))
    along = (np.cos(beta) * x + np.sin(beta) * y) / (stretch * galaxies.disk_half_light_radius[i])
    across = (-np.sin(beta) * x + np.cos(beta) * y) * stretch / galaxies.disk_half_light_radius[i]
    return along.astype(np.float32), across.astype(np.float32)


def modulation(galaxies: Galaxies, i: int, x: Any, y: Any, pixel_scale: float) -> NDArray[np.float32]:
    """Return the factor that arms, ring and lopsidedness put on a disk's surface brightness.

    Parameters
    ----------
    galaxies : Galaxies
    i : int
    x, y : float32 (...) [arcsec]
        From the disk's centre.
    pixel_scale : float [arcsec]
        Disks that are no larger than a few pixels have no modulation.
    """
    structure = galaxies.structure
    assert structure is not None
    along, across = disk_plane(galaxies, i, x, y)
    e = galaxies.disk_ellipticity[i]
    minor = galaxies.disk_half_light_radius[i] * np.sqrt((1 - e) / (1 + e)) / pixel_scale
    seen = np.float32(minor**2 / (minor**2 + UNRESOLVED**2))
    rho = np.hypot(along, across)
    exponent = np.zeros_like(rho)
    if structure.arm_amplitude[i]:
        m = np.float32(structure.arm_number[i])
        theta = np.arctan2(across, along)
        wave = np.cos(m * (theta - np.log(rho + np.float32(0.2)) / np.float32(np.tan(structure.arm_pitch[i])))
                      - np.float32(structure.arm_phase[i]))
        exponent += seen * np.float32(structure.arm_amplitude[i]) * wave * rho**2 / (rho**2 + np.float32(0.16))
    if structure.lopsided_amplitude[i]:
        phase = structure.lopsided_phase[i]
        cosine = (np.float32(np.cos(phase)) * along + np.float32(np.sin(phase)) * across) / np.maximum(rho, 1e-6)
        exponent += seen * np.float32(structure.lopsided_amplitude[i]) * np.minimum(rho, 2) * cosine
    factor = np.exp(exponent)
    if structure.ring_amplitude[i]:
        deviation = (rho - np.float32(structure.ring_radius[i])) / np.float32(structure.ring_width[i])
        factor *= 1 + seen * np.float32(structure.ring_amplitude[i]) * np.exp(np.float32(-0.5) * deviation**2)
    return factor


def knots(galaxies: Galaxies, i: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Positions (n_knot, 2) from the disk's centre [arcsec], flux shares (n_knot,) and sigmas (n_knot,) [arcsec]."""
    structure = galaxies.structure
    assert structure is not None
    rng = np.random.default_rng(int(structure.knot_seed[i]))
    n, radius, e = int(structure.knot_number[i]), galaxies.disk_half_light_radius[i], galaxies.disk_ellipticity[i]
    rho = np.clip(rng.gamma(2.0, size=n) * rng.uniform(0.5, 1.5) / 1.678, 0.0, 3.0)
    theta = rng.uniform(0, 2 * np.pi, n)
    if structure.arm_amplitude[i]:
        m = structure.arm_number[i]
        crest = np.log(rho + 0.2) / np.tan(structure.arm_pitch[i]) + structure.arm_phase[i] / m
        theta = crest + 2 * np.pi / m * np.floor(m * rng.random(n)) + 0.35 / m * rng.standard_normal(n)
    stretch, beta = np.sqrt((1 + e) / (1 - e)), galaxies.position_angle[i]
    along, across = radius * stretch * rho * np.cos(theta), radius / stretch * rho * np.sin(theta)
    position = np.stack([np.cos(beta) * along - np.sin(beta) * across, np.sin(beta) * along + np.cos(beta) * across], 1)
    flux = np.exp(rng.standard_normal(n))
    return position, flux / flux.sum(), radius * np.exp(rng.uniform(np.log(0.02), np.log(0.25), n))
