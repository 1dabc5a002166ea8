"""Structure beyond bulge and disk: unit flux, places, fractions, and nothing changed where an ingredient is off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

galsim = pytest.importorskip("galsim")
pytest.importorskip("galcheat")

from tolerances import SAMPLE_SIGMA  # noqa: E402

from deblendrt.training import basis, config  # noqa: E402
from deblendrt.training.networks.training_set import project_galaxies  # noqa: E402
from deblendrt.training.simulation import blend_scenes, components, population, structure, survey  # noqa: E402

SMOKE = config.load("smoke.toml")
REFERENCE = SMOKE.survey.reference_index
ALL = config.StructureSettings(
    continuous_index=1.0, single_sersic=0.2, misaligned=0.4, arms=0.35, bars=0.3, rings=0.1, lopsided=0.4, knots=0.45,
    companions=0.1, bulge_offset=0.04, size_scatter=0.25, color_scatter=0.07)
SIZE, SCALE, SIGMA = 101, 0.2, 1.0
FRACTIONS = ("arms", "bars", "rings", "lopsided", "knots", "companions", "single_sersic")


def draw(spec: config.StructureSettings | None, n: int = 4000, seed: int = 0, **limits: float) -> population.Galaxies:
    settings = dataclasses.replace(SMOKE.population, structure=spec, **limits)
    return population.draw(settings, SMOKE.survey, n, np.random.default_rng(seed))


def bright(spec: config.StructureSettings, n: int = 60) -> population.Galaxies:
    """Bright galaxies, some 1 arcsec large."""
    return draw(spec, n, magnitude_min=19.5, magnitude_max=20.0)


@pytest.fixture(scope="module")
def plain() -> population.Galaxies:
    return draw(None)


@pytest.fixture(scope="module")
def wide() -> population.Galaxies:
    return draw(ALL)


def shares(galaxies: population.Galaxies) -> dict[str, float]:
    """The fraction of the galaxies that have each ingredient."""
    own = galaxies.structure
    assert own is not None
    disk = galaxies.disk_flux[:, 0] > 0
    return {"arms": (own.arm_amplitude > 0).mean(), "rings": (own.ring_amplitude > 0).mean(),
            "lopsided": (own.lopsided_amplitude > 0).mean(), "bars": (own.bar_flux[disk] > 0).all(1).mean(),
            "knots": (own.knots_flux[disk] > 0).all(1).mean(), "companions": (own.companion_flux > 0).all(1).mean(),
            "single_sersic": 1 - ((galaxies.disk_flux > 0).all(1) | (galaxies.bulge_fraction == 1)).mean()}


def test_structure_keeps_the_plain_numbers(plain: population.Galaxies, wide: population.Galaxies) -> None:
    """Magnitudes, redshifts, angles and the reference band's fluxes are those of the plain population."""
    for name in ("magnitude", "redshift", "position_angle", "disk_ellipticity"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(wide, name))
    np.testing.assert_allclose(wide.flux[:, REFERENCE], plain.flux[:, REFERENCE], rtol=1e-12)
    assert (wide.component_flux >= 0).all()
    assert (wide.flux > 0).all()


def test_all_ingredients_off_is_the_plain_population(plain: population.Galaxies) -> None:
    off = draw(config.StructureSettings())
    for field in dataclasses.fields(plain):
        if field.name != "structure":
            np.testing.assert_allclose(getattr(off, field.name), getattr(plain, field.name), rtol=1e-13)
    assert off.structure is not None
    np.testing.assert_array_equal(off.structure.bulge_angle, plain.position_angle)
    assert not off.structure.bulge_offset.any()
    assert not off.component_flux[:, 2:].any()
    assert not any(off.structure.modulated(i) for i in range(len(off)))
    for i in range(3):
        np.testing.assert_array_equal(components.component_maps(off, i, 31, SCALE, SIGMA)[:2],
                                      components.component_maps(plain, i, 31, SCALE, SIGMA))


@pytest.mark.parametrize("name", FRACTIONS)
def test_an_ingredient_has_its_fraction(name: str, wide: population.Galaxies) -> None:
    """Alone it changes no other ingredient; all fractions hold in the full population."""
    alone = shares(draw(dataclasses.replace(config.StructureSettings(), **{name: 0.5})))
    for other, share in alone.items():
        expected = 0.5 * 0.93 if other == name == "single_sersic" else 0.5 if other == name else 0.0
        if other != "single_sersic":
            assert abs(share - expected) < SAMPLE_SIGMA * np.sqrt(0.25 / 4000), other
    if name != "single_sersic":
        expected = getattr(ALL, name)
        assert abs(shares(wide)[name] - expected) < SAMPLE_SIGMA * np.sqrt(0.25 / 3000)


def test_single_profiles(plain: population.Galaxies) -> None:
    one = draw(config.StructureSettings(single_sersic=1.0))
    assert not one.disk_flux.any()
    assert (one.bulge_fraction == 1).all()
    np.testing.assert_allclose(one.flux, plain.flux, rtol=1e-12)
    np.testing.assert_array_equal(one.bulge_half_light_radius, plain.disk_half_light_radius)
    assert 1.3 < np.median(one.bulge_sersic) < 1.7


def test_indices_are_continuous(wide: population.Galaxies) -> None:
    two = wide.disk_flux[:, REFERENCE] > 0
    assert len(np.unique(wide.bulge_sersic[two])) > 40
    assert len(np.unique(wide.disk_sersic)) > 25
    for values, low, high in ((wide.bulge_sersic[two], 1, 6), (wide.disk_sersic, 0.5, 2)):
        assert values.min() >= low - 1e-9
        assert values.max() <= high + 1e-9


def test_sizes_stay_within_the_selection() -> None:
    large = draw(dataclasses.replace(config.StructureSettings(), size_scatter=1.0), magnitude_min=17.0,
                 magnitude_max=18.0)
    assert 5.0 < large.half_light_radius.max() <= structure.MAX_STRUCTURE_RADIUS
    for sample in (large, draw(dataclasses.replace(config.StructureSettings(), size_scatter=1.0))):
        brightness = sample.magnitude + 2.5 * np.log10(2 * np.pi * sample.half_light_radius**2)
        assert brightness.max() < SMOKE.population.surface_brightness_limit + 1e-9


def test_maps_have_unit_flux_and_agree_with_galsim() -> None:
    """The maps that are drawn on the pixel grid are GalSim's profiles under the reference PSF."""
    galaxies = bright(dataclasses.replace(ALL, arms=0, rings=0, lopsided=0, bars=1, knots=1, companions=1))
    offset = (0.3, -0.2)
    for i in range(6):
        maps = components.component_maps(galaxies, i, SIZE, SCALE, SIGMA, offset)
        for name, image in zip(galaxies.components, maps, strict=True):
            if not image.any():
                continue
            profile = galsim.Convolve(components.galsim_component(galaxies, i, name), galsim.Gaussian(sigma=SCALE))
            drawn = profile.drawImage(nx=SIZE, ny=SIZE, scale=SCALE, offset=offset, method="no_pixel").array
            assert np.abs(image - drawn).max() < 2e-3 * drawn.max(), name
            assert 0.9 < image.sum() < 1.01, name


def test_modulated_disks() -> None:
    """Arms, rings and lopsidedness keep the flux, change the disk, and scenes draw them as the training set does."""
    kinds = {"arms": 0.05, "rings": 0.05, "lopsided": 0.02}
    for kind, change in kinds.items():
        galaxies = bright(dataclasses.replace(config.StructureSettings(), **{kind: 1.0}))
        smooth = bright(config.StructureSettings())
        large = np.argsort(-galaxies.disk_half_light_radius * (1 - galaxies.disk_ellipticity))[:4]
        changes, disagreements = [], []
        for i in large:
            image = components.component_map(galaxies, i, "disk", SIZE, SCALE, SIGMA)
            before = components.component_map(smooth, i, "disk", SIZE, SCALE, SIGMA)
            assert image.sum() == pytest.approx(before.sum(), rel=1e-5)
            assert image.min() > -1e-5 * image.max()
            profile = galsim.Convolve(components.galsim_component(galaxies, i, "disk"), galsim.Gaussian(sigma=SCALE))
            drawn = profile.drawImage(nx=SIZE, ny=SIZE, scale=SCALE, method="no_pixel").array
            changes.append(np.linalg.norm(image - before) / np.linalg.norm(before))
            disagreements.append(np.linalg.norm(image - drawn) / np.linalg.norm(image - before))
        assert np.median(changes) > change, kind
        # the modulation of a map follows the PSF, the modulation of a scene precedes it
        assert np.median(disagreements) < 0.6, kind


def test_lopsided_light_is_on_one_side() -> None:
    galaxies = bright(dataclasses.replace(config.StructureSettings(), lopsided=1.0))
    own = galaxies.structure
    assert own is not None
    i = int(np.argmax(own.lopsided_amplitude * galaxies.disk_half_light_radius))
    image = components.component_map(galaxies, i, "disk", SIZE, SCALE, SIGMA)
    axis = (np.arange(SIZE, dtype=np.float32) - SIZE // 2) * np.float32(SCALE)
    along, across = structure.disk_plane(galaxies, i, axis[None, :], axis[:, None])
    phase = own.lopsided_phase[i]
    side = np.cos(phase) * along + np.sin(phase) * across
    assert image[side > 0].sum() > 1.1 * image[side < 0].sum()


def test_small_disks_have_no_modulation() -> None:
    galaxies = dataclasses.replace(bright(dataclasses.replace(config.StructureSettings(), arms=1.0), 5),
                                   disk_half_light_radius=np.full(5, 0.05))
    axis = np.linspace(-0.3, 0.3, 7, dtype=np.float32)
    factor = structure.modulation(galaxies, 0, axis[None, :], axis[:, None], SCALE)
    assert np.abs(factor - 1).max() < 0.02


def test_knots_follow_from_the_seed() -> None:
    galaxies = bright(dataclasses.replace(config.StructureSettings(), knots=1.0))
    first, again = structure.knots(galaxies, 3), structure.knots(galaxies[np.array([3])], 0)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first[1].sum() == pytest.approx(1.0)
    assert len(first[1]) == galaxies.structure.knot_number[3]


def test_colors_of_components_differ() -> None:
    galaxies = draw(ALL)
    own = galaxies.structure
    both = (own.knots_flux[:, 0] > 0) & (galaxies.disk_flux[:, 0] > 0)
    u_i = [2.5 * np.log10(flux[both, REFERENCE] / flux[both, 0]) for flux in (own.knots_flux, galaxies.disk_flux)]
    assert np.median(u_i[0]) < np.median(u_i[1]) - 0.1  # knots are younger


def test_the_training_set_does_not_depend_on_processes() -> None:
    galaxies = draw(ALL, 6)
    phi = basis.orthonormal(np.random.default_rng(1).standard_normal((4, 31, 31))).astype(np.float32)
    one = components.component_coefficients(galaxies, phi, SCALE, SIGMA, chunk=3)
    two = components.component_coefficients(galaxies, phi, SCALE, SIGMA, n_process=2, chunk=3)
    np.testing.assert_array_equal(one, two)
    assert one.shape == (6, 5, 4)
    data = project_galaxies(galaxies, phi, SMOKE)
    unit, log_flux = data.total(np.arange(6))
    np.testing.assert_allclose(log_flux.exp().numpy(), galaxies.flux, rtol=1e-5)
    assert unit.shape == (6, len(SMOKE.survey.bands), 4)


def test_scenes_draw_every_component() -> None:
    galaxies = bright(dataclasses.replace(ALL, knots=1.0, bars=1.0, companions=1.0), 20)
    depth = survey.depth(SMOKE.survey)
    psf = survey.nominal_psf(depth)
    i = int(np.argmin(np.abs(galaxies.half_light_radius - 0.8)))
    image = blend_scenes.draw_source(galaxies, i, (75, 75), psf, (151, 151), SCALE)
    np.testing.assert_allclose(image.sum((1, 2)), galaxies.flux[i], rtol=0.06)


def test_without_structure() -> None:
    settings = dataclasses.replace(SMOKE, population=dataclasses.replace(SMOKE.population, structure=ALL))
    assert blend_scenes.without_structure(settings) == SMOKE


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match=r"arms: expected a value from 0 to 1, got 1\.5"):
        config.StructureSettings(arms=1.5)
    with pytest.raises(ValueError, match="component: expected 'bulge' or 'disk' of galaxies without structure"):
        components.galsim_component(draw(None, 2), 0, "bar")


def test_the_basis_of_structured_galaxies() -> None:
    spec = dataclasses.replace(SMOKE.basis, n_galaxy=60, n_basis=20)
    settings = dataclasses.replace(SMOKE, basis=spec,
                                   population=dataclasses.replace(SMOKE.population, structure=ALL))
    built = basis.build_basis(settings, np.random.default_rng(0))
    flat = built.phi.reshape(20, -1).astype(np.float64)
    np.testing.assert_allclose(flat @ flat.T, np.eye(20), atol=1e-5)
