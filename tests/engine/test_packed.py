"""Products with packed tables: against float64, the bits of a row, and the protocol buffer against the onnx package."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest
from tolerances import FLOAT32, relative_error

from deblendrt.engine import packed
from deblendrt.engine.packed import Table

SHAPES = [(1, 3, 5), (3, 128, 961), (6, 529, 32), (2, 1, 200), (2, 200, 1)]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("m", [0, 1, 2, 7, 33])
def test_is_the_product(shape: tuple[int, int, int], m: int) -> None:
    matrix, rows = random(*shape), random(shape[0], m, shape[1], seed=1)
    result = Table(matrix)(rows)
    assert (result.shape, result.dtype) == ((shape[0], m, shape[2]), np.float32)
    expected = rows.astype(np.float64) @ matrix.astype(np.float64)
    assert m == 0 or relative_error(result, expected) < FLOAT32


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_beside_any_others(shape: tuple[int, int, int]) -> None:
    table, rows = Table(random(*shape)), random(shape[0], 40, shape[1], seed=1)
    together = table(rows)
    for m in (1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 31):
        np.testing.assert_array_equal(table(rows[:, 6 : 6 + m]), together[:, 6 : 6 + m])


def test_nothing_to_multiply_with() -> None:
    assert Table(random(2, 3, 0))(random(2, 4, 3)).shape == (2, 4, 0)
    assert not Table(random(2, 0, 3))(random(2, 4, 0)).any()


def test_a_transposed_matrix_and_rows() -> None:
    matrix, rows = random(2, 7, 5), random(4, 2, 5)
    np.testing.assert_array_equal(Table(matrix.transpose(0, 2, 1))(rows.transpose(1, 0, 2)),
                                  Table(matrix.transpose(0, 2, 1).copy())(rows.transpose(1, 0, 2).copy()))


def test_threads_share_a_table() -> None:
    table, rows = Table(random(3, 64, 100)), random(3, 9, 64)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: table(rows).tobytes(), range(40)))
    assert len(set(results)) == 1


def test_the_model_is_valid_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    matrix = random(2, 300, 5)
    model = onnx.load_from_string(packed._model(matrix))
    onnx.checker.check_model(model, full_check=True)
    for constant, expected in zip(model.graph.initializer, matrix, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(constant), expected)
