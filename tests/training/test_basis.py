"""The basis: orthonormal, without a preferred direction, and shifts that are shifts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("galsim")
pytest.importorskip("tqdm")

from toy_model import STAMP, gauss_hermite

from deblendrt.training import basis, config

N_BASIS = 24


@pytest.fixture(scope="module")
def built() -> basis.Basis:
    settings = config.load("smoke.toml")
    spec = dataclasses.replace(settings.basis, stamp_size=21, n_basis=N_BASIS, n_galaxy=150)
    return basis.build_basis(dataclasses.replace(settings, basis=spec), np.random.default_rng(0))


def test_orthonormal(built: basis.Basis) -> None:
    assert built.phi.shape == (N_BASIS, 21, 21)
    assert built.phi.dtype == built.shift.dtype == np.float32
    flat = built.phi.reshape(N_BASIS, -1).astype(np.float64)
    np.testing.assert_allclose(flat @ flat.T, np.eye(N_BASIS), atol=1e-6)
    assert (built.phi.sum((1, 2)) >= -1e-5).all()


def test_explained_light_grows_to_nearly_all(built: basis.Basis) -> None:
    assert (np.diff(built.explained) >= 0).all()
    assert 0.999 < built.explained[-1] <= 1 + 1e-12


def test_covariance_has_the_symmetry_of_the_square() -> None:
    rng = np.random.default_rng(0)
    size = 7
    covariance = basis.symmetrised_covariance(rng.standard_normal((5, size, size)))
    image = rng.standard_normal((size, size))

    def norm(x: np.ndarray) -> float:
        return float(x.ravel() @ covariance @ x.ravel())

    for turn in range(4):
        for mirror in (1, -1):
            assert norm(np.rot90(image, turn)[:, ::mirror]) == pytest.approx(norm(image), rel=1e-12)


def test_closed_under_the_symmetries(built: basis.Basis) -> None:
    """A turned function lies in the span; a pair that the last function belongs to may be cut in two."""
    flat = built.phi.reshape(N_BASIS, -1).astype(np.float64)
    for turn in range(4):
        for mirror in (1, -1):
            turned = np.rot90(built.phi, turn, (1, 2))[:, :, ::mirror].reshape(N_BASIS, -1)
            inside = ((turned @ flat.T) ** 2).sum(1)
            assert (inside[: N_BASIS - 1] > 1 - 1e-5).sum() >= N_BASIS - 2


def test_generators_of_known_functions() -> None:
    """Against the ladder operators of Gauss-Hermite functions."""
    phi, expected = gauss_hermite()
    np.testing.assert_allclose(basis.shift_generators(phi), expected, atol=2e-4)
    # without light at the edge a shift keeps the norm: the generators are antisymmetric
    np.testing.assert_allclose(expected, -expected.transpose(0, 2, 1), atol=1e-12)


@pytest.mark.parametrize("offset", [(0.4, 0.0), (0.0, -0.4), (0.3, 0.35)])
def test_generators_move_a_gaussian(offset: tuple[float, float]) -> None:
    encoder_data = pytest.importorskip("deblendrt.training.encoder_data")
    phi, _ = gauss_hermite()
    shift = basis.shift_generators(phi).astype(np.float32)
    y, x = np.mgrid[:STAMP, :STAMP] - STAMP // 2

    def gaussian(dx: float, dy: float) -> np.ndarray:
        return np.exp(-((x - dx) ** 2 + (y - dy) ** 2) / (2 * 1.8**2))

    centred = np.tensordot(phi, gaussian(0, 0), 2)[None].astype(np.float32)
    moved = encoder_data.shift_coefficients(centred, shift, np.array([offset], np.float32))[0]
    image = np.tensordot(moved, phi, 1)
    error = np.linalg.norm(image - gaussian(*offset)) / np.linalg.norm(image)
    assert error < 2e-4  # what the functions above order four would hold
    wrong = np.linalg.norm(image - gaussian(-offset[0], -offset[1])) / np.linalg.norm(image)
    assert wrong > 0.1
