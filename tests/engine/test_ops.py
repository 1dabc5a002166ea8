"""render and project against their definition, their adjoint identity, and the bits of a row."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tolerances import ADJOINT, FLOAT32, relative_error
from toy_model import gaussian_psf

from deblendrt.engine import matmul as matmul_module
from deblendrt.engine import ops
from deblendrt.engine.psf import FoldedBasis, fold

N_BAND, N_BASIS, STAMP = 3, 21, 11
SHAPES = [(40, 44), (31, 25)]  # of two canvases


@pytest.fixture(scope="module")
def folded() -> FoldedBasis:
    rng = np.random.default_rng(0)
    return fold(rng.standard_normal((N_BASIS, STAMP, STAMP)), np.array([gaussian_psf(f, 13) for f in (3.0, 3.5, 4.5)]))


def draw(n: int, folded: FoldedBasis, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients, corners inside the canvases, and canvases; the first four sources sit in the corners of one."""
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


@pytest.mark.parametrize("n", [0, 1, 2, 5, ops.TILE, ops.TILE + 1, 2 * ops.TILE + 3])
def test_render_is_its_definition(folded: FoldedBasis, n: int) -> None:
    coefficients, corner, scene = draw(n, folded)
    start = images()
    canvas = [image.copy() for image in start]
    ops.render(coefficients, folded, corner, canvas, scene)
    expected = [image.astype(np.float64) for image in start]
    for c, (x, y), s in zip(coefficients.astype(np.float64), corner, scene, strict=True):
        stamp = np.einsum("bk,bkp->bp", c, folded.phi.astype(np.float64)).reshape(N_BAND, folded.window, -1)
        expected[s][:, y : y + folded.window, x : x + folded.window] += stamp
    for a, e in zip(canvas, expected, strict=True):
        assert a.dtype == np.float32
        assert relative_error(a, e) < FLOAT32


@pytest.mark.parametrize("n", [0, 1, 2, 5, ops.TILE, ops.TILE + 1, 2 * ops.TILE + 3])
def test_project_is_its_definition(folded: FoldedBasis, n: int) -> None:
    _, corner, scene = draw(n, folded)
    image = images()
    result = ops.project(image, folded, corner, scene)
    assert (result.shape, result.dtype) == ((n, N_BAND, N_BASIS), np.float32)
    for row, (x, y), s in zip(result, corner, scene, strict=True):
        cut = image[s][:, y : y + folded.window, x : x + folded.window].reshape(N_BAND, -1).astype(np.float64)
        assert relative_error(row, np.einsum("bkp,bp->bk", folded.phi.astype(np.float64), cut)) < FLOAT32


@pytest.mark.parametrize("n", [1, 7, 2 * ops.TILE + 3])
def test_render_and_project_are_adjoint(folded: FoldedBasis, n: int) -> None:
    coefficients, corner, scene = draw(n, folded)
    image = images()
    canvas = [np.zeros_like(v) for v in image]
    ops.render(coefficients, folded, corner, canvas, scene)
    projected = ops.project(image, folded, corner, scene)
    left = sum(float((m.astype(np.float64) * v).sum()) for m, v in zip(canvas, image, strict=True))
    right = float((coefficients.astype(np.float64) * projected).sum())
    size = np.sqrt(sum(float((m**2).sum()) for m in canvas) * sum(float((v**2).sum()) for v in image))
    assert abs(left - right) < ADJOINT * size
    # and the test can fail: windows shifted by one pixel are not adjoint
    moved = ops.project(image, folded, np.maximum(corner - 1, 0), scene)
    assert abs(left - float((coefficients.astype(np.float64) * moved).sum())) > ADJOINT * size


def test_a_row_has_its_own_bits(folded: FoldedBasis) -> None:
    n = 2 * ops.TILE + 5
    coefficients, corner, scene = draw(n, folded)
    image = images()
    together = ops.project(image, folded, corner, scene)
    stamps = np.concatenate([ops.stamps(coefficients[rows], folded) for rows, _ in ops.tiles(n)])
    order = np.random.default_rng(3).permutation(n)
    np.testing.assert_array_equal(ops.project(image, folded, corner[order], scene[order]), together[order])
    for count in (1, 2, 3, 7, 8, 9, 31, 32, 33, 40):
        rows = order[:count]
        np.testing.assert_array_equal(ops.project(image, folded, corner[rows], scene[rows]), together[rows])
        tile = rows[: ops.TILE]
        np.testing.assert_array_equal(ops.stamps(coefficients[tile], folded), stamps[tile])


def test_the_padding_of_a_tile_is_not_seen(folded: FoldedBasis) -> None:
    assert [(rows.start, rows.stop, padded) for rows, padded in ops.tiles(2 * ops.TILE + 3)] == [
        (0, ops.TILE, ops.TILE), (ops.TILE, 2 * ops.TILE, ops.TILE), (2 * ops.TILE, 2 * ops.TILE + 3, ops.ROUND)]
    assert list(ops.tiles(0)) == []
    coefficients, _, _ = draw(3, folded)
    coefficients[1] = np.nan  # stays in its own stamp
    stamps = ops.stamps(coefficients, folded)
    assert np.isnan(stamps[1]).all()
    assert np.isfinite(stamps[[0, 2]]).all()


def test_strided_arguments_serve(folded: FoldedBasis) -> None:
    coefficients, corner, scene = draw(9, folded)
    image = images()
    wide = [np.repeat(v, 2, axis=2)[:, :, ::2] for v in image]
    np.testing.assert_array_equal(ops.project(wide, folded, corner, scene), ops.project(image, folded, corner, scene))
    np.testing.assert_array_equal(ops.stamps(np.asfortranarray(coefficients), folded), ops.stamps(coefficients, folded))


PRODUCT = """
import hashlib, numpy as np
from deblendrt.engine.matmul import matmul
rng = np.random.default_rng(0)
a, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, 40, 700), (2, 700, 300)))
print(hashlib.sha256(matmul(a, b).tobytes()).hexdigest())
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_bits_do_not_depend_on_the_threads_of_blas(threads: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, 40, 700), (2, 700, 300)))
    product = matmul_module.matmul(a, b)
    assert relative_error(product, a.astype(np.float64) @ b.astype(np.float64)) < FLOAT32
    environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    other = subprocess.run([sys.executable, "-c", PRODUCT], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(product.tobytes()).hexdigest()


def test_the_graph_of_the_product_is_what_it_says() -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    a, b, c = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None, None]) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "matmul", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = Path(matmul_module.__file__).with_name("matmul.onnx")
    assert path.read_bytes() == model.SerializeToString()
