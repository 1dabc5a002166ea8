"""Preconditioned conjugate gradients with scalars of their own for each group of rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.problem import DoubleArray


def conjugate_gradient(matrix: Callable[[DoubleArray], DoubleArray], precondition: Callable[[DoubleArray], DoubleArray],
                       target: DoubleArray, group: NDArray[np.int64], n_iteration: int) -> DoubleArray:
    """Preconditioned conjugate gradient from zero, with scalars of their own for each group of rows.

    Parameters
    ----------
    matrix, precondition : callable
        float64 (n, m) to float64 (n, m), symmetric and positive definite.
    target : float64 (n, m)
    group : int64 (n,)
    n_iteration : int
        Always all of them; a group that has converged stops moving.

    Returns
    -------
    float64 (n, m)
    """
    def dot(a: DoubleArray, b: DoubleArray) -> DoubleArray:
        return np.bincount(group, weights=(a * b).sum(1)).astype(float)

    def ratio(a: DoubleArray, b: DoubleArray) -> DoubleArray:
        safe = b > 0
        return np.where(safe, a / np.where(safe, b, 1.0), 0.0)[group][:, None]

    solution = np.zeros_like(target)
    rest = target.copy()
    z = precondition(rest)
    direction = z
    rz = dot(rest, z)
    for _ in range(n_iteration):
        image = matrix(direction)
        alpha = ratio(rz, dot(direction, image))
        solution += alpha * direction
        rest -= alpha * image
        z = precondition(rest)
        following = dot(rest, z)
        direction = z + ratio(following, rz) * direction
        rz = following
    return solution
