"""Products of matrices, by strides; bytes and flops in network_matmul.cu."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray

ENOUGH_BLOCKS = 264  # two for each multiprocessor of an H100: fewer large tiles would leave it idle


def network_matmul(device: Device, shape: tuple[int, int, int, int], a: DeviceArray, a_strides: Sequence[int],
                   w: DeviceArray, w_strides: Sequence[int], bias: DeviceArray | None, out: DeviceArray,
                   out_strides: Sequence[int]) -> None:
    """out[b, m, n] = sum_k a[b, m, k] w[b, k, n] + bias[n].

    A result's bits depend on its own row and column only: every tile sums over k in one order. (Up to four columns are
    summed in another order than more.)

    Parameters
    ----------
    device : Device
    shape : tuple of int
        Lengths of b, m, k, n.
    a, w, out : float32
        First elements.
    a_strides, w_strides, out_strides : (3,) [element]
    bias : float32 (n,), optional
    """
    n_batch, n_row, n_sum, n_column = shape
    strides = [(np.int64(batch), row, column) for batch, row, column in (a_strides, w_strides, out_strides)]
    sizes = n_row, n_sum, n_column

    def launch(kernel: str, grid: tuple[int, ...], n_tile: int) -> None:
        device.launch(f"network_matmul:{kernel}", grid, (128,), a, *strides[0], w, *strides[1], bias, out, *strides[2],
                      *sizes, n_tile)

    if n_column <= 4:
        n_result = n_batch * n_row * n_column
        launch("network_matmul_dot", (-(-n_result // 4),), n_result)
        return
    tall, across = -(-n_row // 128), -(-n_column // 64)
    if n_row <= 4:
        launch("network_matmul_thin", (n_batch, -(-n_column // 128)), 1)
    elif n_row > 64 and n_batch * tall * across >= ENOUGH_BLOCKS:
        launch("network_matmul", (n_batch * tall, across), tall)
    else:
        tiles = -(-n_row // 32)
        launch("network_matmul_small", (n_batch * tiles, across), tiles)
