"""Linear algebra of symmetric matrices that ONNX lacks: inverses, solutions, and the positive part."""

from __future__ import annotations

import numpy as np

from deblendrt.export.solver.graph_builder import Builder, Value


def eye(b: Builder, n: int) -> Value:
    """Identity matrix, float64 (n, n)."""
    return b.constant(np.eye(n))


def diagonal(b: Builder, matrix: Value, n: int) -> Value:
    """Diagonals, float64 (..., n) of (..., n, n) with two or three axes."""
    return (matrix * eye(b, n)).sum(-1)


def symmetric_inverse(b: Builder, matrix: Value, n: int) -> Value:
    """Inverses of symmetric positive definite matrices, by sweeping the rows one after the other.

    With u the k-th column, d = u_k and v = u - e_k, a sweep is A <- A - v v' / d - 2 e_k e_k'. After all sweeps A is
    minus its inverse. Pivots are not needed: every d of a positive definite matrix is positive.

    Parameters
    ----------
    b : Builder
    matrix : Value
        float64 (m, n, n).
    n : int

    Returns
    -------
    Value
        float64 (m, n, n).
    """
    units = eye(b, n)

    def sweep(k: Value, a: Value) -> list[Value]:
        unit = units.take(k)
        u = a.take(k, 2)
        d = u.take(k, 1)[:, None, None]
        v = u - unit
        return [a - v[:, :, None] * v[:, None] / d - unit[:, None] * unit[None] * 2.0]

    return -b.loop(n, [matrix], sweep)[0]


def inverse_by_blocks(b: Builder, matrix: Value, n: int, size: int) -> Value:
    """Inverse of one symmetric positive definite matrix, swept by blocks.

    Parameters
    ----------
    b : Builder
    matrix : Value
        float64 (n * size, n * size).
    n, size : int
        Number of blocks and their side.

    Returns
    -------
    Value
        float64 (n * size, n * size).
    """
    units = b.constant(np.eye(n * size).reshape(n, size, n * size))

    def sweep(k: Value, a: Value) -> list[Value]:
        unit = units.take(k)  # (size, n * size)
        column = unit @ a
        d = column @ unit.transpose(1, 0)
        v = column - unit
        inverted = symmetric_inverse(b, d[None], size)[0]
        return [a - v.transpose(1, 0) @ (inverted @ v) - unit.transpose(1, 0) @ unit * 2.0]

    return -b.loop(n, [matrix], sweep)[0]


def solve_blocks(b: Builder, matrix: Value, target: Value, rows: Value, n: int, size: int) -> Value:
    """Solution of a symmetric positive definite system of blocks: Gauss-Jordan elimination, block after block.

    Parameters
    ----------
    b : Builder
    matrix : Value
        float64 (n, size, n, size).
    target : Value
        float64 (n, size).
    rows : Value
        int64 (m,), the blocks to eliminate. The other blocks are unit matrices without couplings.
    n, size : int
        Number of blocks and their side.

    Returns
    -------
    Value
        float64 (n, size).
    """
    numbers = b.constant(np.arange(n))

    def eliminate(i: Value, a: Value, rest: Value) -> list[Value]:
        k = rows.take(i)
        column = a.take(k, 2)  # (n, size, size)
        inverted = symmetric_inverse(b, column.take(k)[None], size)[0]
        row = inverted @ a.take(k).reshape(size, -1)
        unit = numbers.equal(k).cast(np.float64)[:, None, None] * eye(b, size)
        column = column - unit
        change = (column.reshape(-1, size) @ row).reshape(-1, size, n, size)
        return [a - change, rest - column @ (inverted @ rest.take(k))]

    return b.loop(b.node("Size", rows), [matrix, target[:, :, None]], eliminate)[1][:, :, 0]


def positive_part(b: Builder, matrix: Value, n: int, n_iteration: int = 40) -> Value:
    """Symmetric matrices with their negative eigenvalues set to zero: (A + |A|) / 2, |A| = A sign(A).

    The sign comes from the Newton-Schulz iteration. An eigenvalue of 1e-6 of the norm takes some 35 iterations. The
    error of a smaller eigenvalue is at most the eigenvalue.

    Parameters
    ----------
    b : Builder
    matrix : Value
        float64 (m, n, n).
    n, n_iteration : int

    Returns
    -------
    Value
        float64 (m, n, n).
    """
    norm = b.maximum(b.sqrt((matrix * matrix).sum(1, 2, keep=True)), 1e-30)
    sign, = b.loop(n_iteration, [matrix / norm], lambda i, x: [x @ (eye(b, n) * 1.5 - (x @ x) * 0.5)])
    whole = (matrix + matrix @ sign) * 0.5
    return (whole + whole.transpose(0, 2, 1)) * 0.5
