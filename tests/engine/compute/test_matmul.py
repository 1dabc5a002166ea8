"""Matrix products: against float64, the bits of a row, and the graphs against the onnx package."""

from __future__ import annotations

import concurrent.futures
import gc
import hashlib
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
from tolerances import FLOAT32, relative_error

from deblendrt.engine.compute import matmul as products
from deblendrt.engine.compute.matmul import PackedMatrices

SHAPES = [(1, 3, 5), (3, 128, 961), (6, 529, 32), (2, 1, 200), (2, 200, 1)]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("m", [0, 1, 2, 7, 33])
@pytest.mark.parametrize("transposed", [False, True])
def test_is_the_product(shape: tuple[int, int, int], m: int, transposed: bool) -> None:
    matrix, rows = random(*shape), random(shape[0], m, shape[1], seed=1)
    packed = PackedMatrices(matrix.transpose(0, 2, 1).copy() if transposed else matrix, transposed=transposed)
    result = packed(rows)
    assert (result.shape, result.dtype) == ((shape[0], m, shape[2]), np.float32)
    expected = rows.astype(np.float64) @ matrix.astype(np.float64)
    assert m == 0 or relative_error(result, expected) < FLOAT32


@pytest.mark.parametrize("m", [0, 1, 9])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_part_is_what_the_whole_says(m: int, transposed: bool) -> None:
    packed = PackedMatrices(random(6, 40, 32), transposed=transposed)
    rows = random(6, m, packed.shape[1], seed=1)
    whole = packed(rows)
    for chosen in ([3], [0, 5], [1, 2, 4], range(6)):
        np.testing.assert_array_equal(packed.part(chosen)(rows[list(chosen)]), whole[list(chosen)])
    np.testing.assert_array_equal(packed.part([1, 2, 4]).part([2])(rows[4:5]), whole[4:5])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_has_the_same_bits_beside_any_others(shape: tuple[int, int, int], transposed: bool) -> None:
    packed = PackedMatrices(random(*shape), transposed=transposed)
    rows = random(shape[0], 40, packed.shape[1], seed=1)
    together = packed(rows)
    for m in (1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 31):
        np.testing.assert_array_equal(packed(rows[:, 6 : 6 + m]), together[:, 6 : 6 + m])


def test_nothing_to_multiply_with() -> None:
    assert PackedMatrices(random(2, 3, 0))(random(2, 4, 3)).shape == (2, 4, 0)
    assert not PackedMatrices(random(2, 0, 3))(random(2, 4, 0)).any()


def test_rows_in_any_order_of_memory() -> None:
    packed, rows = PackedMatrices(random(2, 7, 5)), random(4, 2, 7)
    np.testing.assert_array_equal(packed(rows.transpose(1, 0, 2)), packed(rows.transpose(1, 0, 2).copy()))


def test_threads_share_matrices() -> None:
    packed, rows = PackedMatrices(random(3, 64, 100)), random(3, 9, 64)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: packed(rows).tobytes(), range(40)))
    assert len(set(results)) == 1


def test_a_matrix_that_comes_several_times() -> None:
    packed, rows = PackedMatrices(random(3, 20, 30)), random(5, 4, 20, seed=1)
    chosen = [0, 2, 0, 0, 2]
    part = packed.part(chosen)
    assert part is packed.part(tuple(chosen))
    for k, one in enumerate(chosen):
        np.testing.assert_array_equal(part(rows)[k], packed.part([one])(rows[k : k + 1])[0])
    assert len(part.packed()[1]) == 2  # products


@pytest.mark.parametrize("transposed", [False, True])
def test_the_model_is_onnx(transposed: bool) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(products._packed_model(2, (300, 5), transposed))
    assert [node.op_type for node in model.graph.node] == ["Gemm" if transposed else "MatMul"] * 2
    assert [tuple(c.dims) for c in model.graph.initializer] == [(300, 5)] * 2
    i, j = (5, 300) if transposed else (300, 5)
    for values, size in ((model.graph.input, i), (model.graph.output, j)):
        assert [v.type.tensor_type.shape.dim[1].dim_value for v in values] == [size] * 2
    for constant in model.graph.initializer:  # the checker wants to see the file
        constant.ClearField("external_data")
        constant.data_location, constant.raw_data = onnx.TensorProto.DEFAULT, bytes(4 * 300 * 5)
    onnx.checker.check_model(model, full_check=True)


PRODUCT = """
import hashlib, numpy as np
from deblendrt.engine.compute.matmul import matmul
rng = np.random.default_rng(0)
a, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, 40, 700), (2, 700, 300)))
print(hashlib.sha256(matmul(a, b).tobytes()).hexdigest())
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_bits_do_not_depend_on_the_threads_of_blas(threads: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, 40, 700), (2, 700, 300)))
    product = products.matmul(a, b)
    assert relative_error(product, a.astype(np.float64) @ b.astype(np.float64)) < FLOAT32
    environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    other = subprocess.run([sys.executable, "-c", PRODUCT], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(product.tobytes()).hexdigest()


def test_the_general_model_is_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(products._general_model())
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    onnx.checker.check_model(model, full_check=True)


def test_a_stack_that_nobody_holds_is_gone() -> None:
    """Without a run of the garbage collector: a stack that held itself would keep 100 MB for each new PSF."""
    gc.disable()
    try:
        stack = PackedMatrices(np.ones((3, 4, 5), np.float32))
        left = [weakref.ref(part) for part in (stack, stack.part((0, 1)), stack.part((0, 1)).part((1, 0, 1)))]
        assert stack.part((0, 1, 2)) is stack
        del stack
        assert [each() for each in left] == [None] * 3
    finally:
        gc.enable()
