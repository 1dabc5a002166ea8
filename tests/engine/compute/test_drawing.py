"""render and project against their definition, their adjoint identity, and the bits of a row."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import ADJOINT, FLOAT32, relative_error
from toy_model import gaussian_psf

from deblendrt.engine.compute import canvases, drawing
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.compute.folding import fold

N_BAND, N_BASIS, STAMP, WINDOW, BINNING = 3, 21, 15, 17, 3
SHAPES = [(40, 44), (31, 25)]  # two canvases


@pytest.fixture(scope="module")
def folded() -> FoldedBasis:
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((N_BASIS, STAMP, STAMP))
    return fold(basis, np.array([gaussian_psf(f, 13) for f in (3.0, 3.5, 4.5)]), window=WINDOW, binning=BINNING)


def stamp(coefficients: np.ndarray, folded: FoldedBasis, extended: bool) -> tuple[np.ndarray, int]:
    """Draw a stamp by the definition, in float64; also the pixels by which it exceeds the window on every side."""
    c = coefficients.astype(np.float64)
    inner = np.einsum("bk,bkp->bp", c, folded.phi.astype(np.float64)).reshape(N_BAND, WINDOW, WINDOW)
    if not extended:
        return inner, 0
    side = folded.full_window // BINNING
    cells = np.einsum("bk,bkp->bp", c, folded.outer.astype(np.float64)).reshape(N_BAND, side, side)
    centers = BINNING * np.arange(side) + BINNING // 2
    linear = np.array([np.interp(np.arange(folded.full_window), centers, row) for row in np.eye(side)]).T
    whole = linear @ cells @ linear.T
    margin = folded.margin
    whole[:, margin : margin + WINDOW, margin : margin + WINDOW] = inner
    return whole, margin


def padded(image: np.ndarray, folded: FoldedBasis) -> np.ndarray:
    return np.pad(image, ((0, 0), *[(folded.margin, folded.margin)] * 2)).astype(np.float64)


def every_third(n: int) -> np.ndarray:
    return np.arange(n) % 3 == 1


def draw(n: int, folded: FoldedBasis, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients, corners inside the canvases, and canvases; the first four sources are in a canvas' corners."""
    rng = np.random.default_rng(seed)
    scene = np.sort(rng.integers(0, 2, n))
    last = np.array([[x - folded.window, y - folded.window] for y, x in SHAPES])
    corner = (rng.random((n, 2)) * (last[scene] + 1)).astype(np.int64)
    if n >= 4:
        scene[:4] = 0
        corner[:4] = last[0] * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    return rng.standard_normal((n, N_BAND, N_BASIS)).astype(np.float32), corner, scene


def images(seed: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((N_BAND, *shape)).astype(np.float32) for shape in SHAPES]


@pytest.mark.parametrize("n", [0, 1, 2, 5, drawing.TILE, drawing.TILE + 1, 2 * drawing.TILE + 3])
def test_render_is_its_definition(folded: FoldedBasis, n: int) -> None:
    coefficients, corner, scene = draw(n, folded)
    start = images()
    canvas = [image.copy() for image in start]
    drawing.render(coefficients, folded, corner, every_third(n), canvas, scene)
    expected = [padded(image, folded) for image in start]
    for c, (x, y), s, extended in zip(coefficients, corner + folded.margin, scene, every_third(n), strict=True):
        image, beyond = stamp(c, folded, extended)
        size = folded.window + 2 * beyond
        expected[s][:, y - beyond : y - beyond + size, x - beyond : x - beyond + size] += image
    inside = slice(folded.margin, -folded.margin)
    for a, e in zip(canvas, expected, strict=True):
        assert a.dtype == np.float32
        assert relative_error(a, e[:, inside, inside]) < FLOAT32


@pytest.mark.parametrize("n", [0, 1, 2, 5, drawing.TILE, drawing.TILE + 1, 2 * drawing.TILE + 3])
def test_project_is_its_definition(folded: FoldedBasis, n: int) -> None:
    _, corner, scene = draw(n, folded)
    image = images()
    result = drawing.project(image, folded, corner, every_third(n), scene)
    assert (result.shape, result.dtype) == ((n, N_BAND, N_BASIS), np.float32)
    unit = [stamp(np.tile(row, (N_BAND, 1)), folded, True)[0] for row in np.eye(N_BASIS)]
    for row, (x, y), s, extended in zip(result, corner + folded.margin, scene, every_third(n), strict=True):
        beyond = folded.margin if extended else 0
        size = folded.window + 2 * beyond
        cut = padded(image[s], folded)[:, y - beyond : y - beyond + size, x - beyond : x - beyond + size]
        inside = slice(folded.margin - beyond, folded.margin - beyond + size)
        expected = np.array([(cut * image[:, inside, inside]).sum((1, 2)) for image in unit]).T
        assert relative_error(row, expected) < FLOAT32


def test_the_full_gram_is_that_of_the_stamps(folded: FoldedBasis) -> None:
    """The tolerance is the error of interpolation: the basis here is white noise, galaxies' outskirts are smooth."""
    assert folded.full_gram.shape == folded.gram.shape
    assert (np.trace(folded.full_gram, axis1=1, axis2=2) > np.trace(folded.gram, axis1=1, axis2=2)).all()
    assert np.linalg.eigvalsh(folded.full_gram - folded.gram).min() > -1e-6 * np.abs(folded.gram).max()


def test_placed_images_overlap_where_they_should() -> None:
    a = canvases.place(np.arange(20.0).reshape(1, 4, 5), -2, 1, (1, 30, 30))
    assert (a.y, a.x, a.image.shape) == (slice(1, 5), slice(0, 3), (1, 4, 3))
    np.testing.assert_array_equal(a.image[0, 0], [2, 3, 4])
    b = canvases.place(np.ones((1, 2, 2)), 2, 4, (1, 30, 30))
    both = a.common(b)
    assert both is not None
    np.testing.assert_array_equal(both[0], [[[19.0]]])
    np.testing.assert_array_equal(both[1], [[[1.0]]])
    assert a.common(canvases.place(np.ones((1, 2, 2)), 3, 4, (1, 30, 30))) is None
    assert canvases.place(np.ones((1, 2, 2)), 40, 4, (1, 30, 30)).image.size == 0


@pytest.mark.parametrize("n", [1, 7, 2 * drawing.TILE + 3])
def test_render_and_project_are_adjoint(folded: FoldedBasis, n: int) -> None:
    coefficients, corner, scene = draw(n, folded)
    image = images()
    canvas = [np.zeros_like(v) for v in image]
    drawing.render(coefficients, folded, corner, every_third(n), canvas, scene)
    projected = drawing.project(image, folded, corner, every_third(n), scene)
    left = sum(float((m.astype(np.float64) * v).sum()) for m, v in zip(canvas, image, strict=True))
    right = float((coefficients.astype(np.float64) * projected).sum())
    size = np.sqrt(sum(float((m**2).sum()) for m in canvas) * sum(float((v**2).sum()) for v in image))
    assert abs(left - right) < ADJOINT * size
    # windows shifted by one pixel are not adjoint: the test can fail
    moved = drawing.project(image, folded, np.maximum(corner - 1, 0), every_third(n), scene)
    assert abs(left - float((coefficients.astype(np.float64) * moved).sum())) > ADJOINT * size


def test_a_row_has_its_own_bits(folded: FoldedBasis) -> None:
    n = 2 * drawing.TILE + 5
    coefficients, corner, scene = draw(n, folded)
    image = images()
    extended = every_third(n)
    together = drawing.project(image, folded, corner, extended, scene)
    stamps = np.concatenate([drawing.stamps(coefficients[rows], folded) for rows, _ in drawing.tiles(n)])
    order = np.random.default_rng(3).permutation(n)
    np.testing.assert_array_equal(drawing.project(image, folded, corner[order], extended[order], scene[order]),
                                  together[order])
    for count in (1, 2, 3, 7, 8, 9, 31, 32, 33, 40):
        rows = order[:count]
        some = drawing.project(image, folded, corner[rows], extended[rows], scene[rows])
        np.testing.assert_array_equal(some, together[rows])
        tile = rows[: drawing.TILE]
        np.testing.assert_array_equal(drawing.stamps(coefficients[tile], folded), stamps[tile])


def test_the_padding_of_a_tile_is_not_seen(folded: FoldedBasis) -> None:
    assert [(rows.start, rows.stop, padded) for rows, padded in drawing.tiles(2 * drawing.TILE + 3)] == [
        (0, drawing.TILE, drawing.TILE),
        (drawing.TILE, 2 * drawing.TILE, drawing.TILE),
        (2 * drawing.TILE, 2 * drawing.TILE + 3, drawing.ROUND),
    ]
    assert list(drawing.tiles(0)) == []
    coefficients, _, _ = draw(3, folded)
    coefficients[1] = np.nan  # NaN stays in its own stamp
    stamps = drawing.stamps(coefficients, folded)
    assert np.isnan(stamps[1]).all()
    assert np.isfinite(stamps[[0, 2]]).all()


def test_strided_arguments_serve(folded: FoldedBasis) -> None:
    coefficients, corner, scene = draw(9, folded)
    image = images()
    wide = [np.repeat(v, 2, axis=2)[:, :, ::2] for v in image]
    np.testing.assert_array_equal(drawing.project(wide, folded, corner, every_third(9), scene),
                                  drawing.project(image, folded, corner, every_third(9), scene))
    np.testing.assert_array_equal(
        drawing.stamps(np.asfortranarray(coefficients), folded), drawing.stamps(coefficients, folded)
    )
