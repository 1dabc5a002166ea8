"""The basis: orthonormal, without a preferred direction, and with generators that shift stamps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("galsim")
pytest.importorskip("tqdm")

from toy_model import STAMP, gauss_hermite

from deblendrt.engine.model import outskirts
from deblendrt.training import basis, config

N_BASIS = 24
SIZE, CORE = 27, 15  # pixel


@pytest.fixture(scope="module")
def settings() -> config.Config:
    smoke = config.load("smoke.toml")
    spec = dataclasses.replace(smoke.basis, stamp_size=SIZE, core_size=CORE, n_basis=N_BASIS, n_galaxy=150)
    return dataclasses.replace(smoke, basis=spec)


@pytest.fixture(scope="module")
def built(settings: config.Config) -> basis.Basis:
    return basis.build_basis(settings, np.random.default_rng(0))


@pytest.fixture(scope="module")
def cells(settings: config.Config) -> basis.Cells:
    return basis.cut(settings.basis)


def test_orthonormal(built: basis.Basis) -> None:
    assert built.phi.shape == (N_BASIS, SIZE, SIZE)
    assert built.phi.dtype == built.shift.dtype == np.float32
    flat = built.phi.reshape(N_BASIS, -1).astype(np.float64)
    np.testing.assert_allclose(flat @ flat.T, np.eye(N_BASIS), atol=1e-6)
    assert (built.phi.sum((1, 2)) >= -1e-5).all()


def test_cells(cells: basis.Cells) -> None:
    margin = (SIZE - CORE) // 2
    inside = np.zeros((SIZE, SIZE), bool)
    inside[margin:-margin, margin:-margin] = True
    assert len(cells.area) == CORE**2 + (SIZE**2 - CORE**2) // 9
    assert (cells.area[cells.label[inside]] == 1).all()
    assert (cells.area[cells.label[~inside]] == 9).all()
    outer = cells.label[:3, :3]
    assert (outer == outer[0, 0]).all()
    assert (cells.label == outer[0, 0]).sum() == 9


def test_reduce_and_expand(cells: basis.Cells) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    smooth = np.exp(-(x**2 + y**2) / (2 * 8.0**2))
    images = np.stack([smooth, rng.standard_normal((SIZE, SIZE)), np.full((SIZE, SIZE), 2.0)])
    reduced = cells.reduce(images)
    assert reduced.dtype == np.float32
    np.testing.assert_allclose((reduced[::2] ** 2).sum(1), (images[::2] ** 2).sum((1, 2)), rtol=0.01)
    back = cells.expand(reduced)
    np.testing.assert_allclose(back[2], 2, rtol=1e-6)
    assert np.abs(back[0] - smooth)[1:-1, 1:-1].max() < 0.03  # it is constant beyond the outermost centres
    margin = (SIZE - CORE) // 2
    inside = slice(margin, SIZE - margin)
    np.testing.assert_allclose(back[:, inside, inside], images[:, inside, inside], rtol=1e-6)
    assert np.abs(back[1] - images[1]).max() > 0.5  # cells lose details finer than a cell


def test_outskirts_hold_the_basis(built: basis.Basis) -> None:
    """The core and cells of the bundle make the basis again, to rounding."""
    again = outskirts.expand(*outskirts.split(built.phi, CORE, 3), 3)
    assert np.abs(again - built.phi).max() < 1e-6 * np.abs(built.phi).max()
    assert np.abs(outskirts.split(built.phi, CORE, 3)[1]).max() > 0.01 * np.abs(built.phi).max()


def test_explained_light_grows_to_nearly_all(built: basis.Basis) -> None:
    assert (np.diff(built.explained) >= 0).all()
    assert 0.999 < built.explained[-1] <= 1 + 1e-12


def test_covariance_has_the_symmetry_of_the_square(cells: basis.Cells) -> None:
    rng = np.random.default_rng(0)
    covariance = basis.symmetrised_covariance(rng.standard_normal((5, len(cells.area))), cells.label)
    image = rng.standard_normal((SIZE, SIZE))

    def norm(x: np.ndarray) -> float:
        reduced = cells.reduce(x[None])[0]
        return float(reduced @ covariance @ reduced)

    for turn in range(4):
        for mirror in (1, -1):
            assert norm(np.rot90(image, turn)[:, ::mirror]) == pytest.approx(norm(image), rel=1e-6)


def test_covariance_is_the_sum_over_turned_images(cells: basis.Cells) -> None:
    images = np.random.default_rng(1).standard_normal((3, SIZE, SIZE))
    expected = 0.0
    for turn in range(4):
        for mirror in (1, -1):
            turned = cells.reduce(np.rot90(images, turn, (1, 2))[:, :, ::mirror]).astype(np.float64)
            expected = expected + turned.T @ turned
    actual = basis.symmetrised_covariance(cells.reduce(images), cells.label)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_closed_under_the_symmetries(built: basis.Basis) -> None:
    """Turned functions lie in the span of the basis, except for the last function, whose pair may be missing."""
    flat = built.phi.reshape(N_BASIS, -1).astype(np.float64)
    for turn in range(4):
        for mirror in (1, -1):
            turned = np.rot90(built.phi, turn, (1, 2))[:, :, ::mirror].reshape(N_BASIS, -1)
            inside = ((turned @ flat.T) ** 2).sum(1)
            assert (inside[: N_BASIS - 1] > 1 - 1e-5).sum() >= N_BASIS - 2


def test_generators_of_known_functions() -> None:
    """Generators against the ladder operators of Gauss-Hermite functions."""
    phi, expected = gauss_hermite()
    np.testing.assert_allclose(basis.shift_generators(phi), expected, atol=2e-4)
    # without light at the edge, a shift keeps the norm, so the generators are antisymmetric
    np.testing.assert_allclose(expected, -expected.transpose(0, 2, 1), atol=1e-12)


@pytest.mark.parametrize("offset", [(0.4, 0.0), (0.0, -0.4), (0.3, 0.35)])
def test_generators_move_a_gaussian(offset: tuple[float, float]) -> None:
    encoder_blends = pytest.importorskip("deblendrt.training.networks.encoder_blends")
    phi, _ = gauss_hermite()
    shift = basis.shift_generators(phi).astype(np.float32)
    y, x = np.mgrid[:STAMP, :STAMP] - STAMP // 2

    def gaussian(dx: float, dy: float) -> np.ndarray:
        return np.exp(-((x - dx) ** 2 + (y - dy) ** 2) / (2 * 1.8**2))

    centred = np.tensordot(phi, gaussian(0, 0), 2)[None].astype(np.float32)
    moved = encoder_blends.shift_coefficients(centred, shift, np.array([offset], np.float32))[0]
    image = np.tensordot(moved, phi, 1)
    error = np.linalg.norm(image - gaussian(*offset)) / np.linalg.norm(image)
    assert error < 2e-4  # the light in functions above order four
    wrong = np.linalg.norm(image - gaussian(-offset[0], -offset[1])) / np.linalg.norm(image)
    assert wrong > 0.1
