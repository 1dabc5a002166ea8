"""Launchers of the networks' kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deblendrt.cuda.driver.device import Device, DeviceArray, blocks_for

MAP_THREADS, LANES = 128, 4  # as in network_map.cu
ENOUGH_BLOCKS = 264  # two for each multiprocessor of an H100: fewer large tiles would leave it idle


def network_map(device: Device, program: DeviceArray, n_element: int, n_register: int,
                spaces: Sequence[DeviceArray | None]) -> None:
    """Run a program for every element.

    Parameters
    ----------
    device : Device
    program : int32 (n,)
        `Program.encoded`.
    n_element : int
    n_register : int
        `Program.n_register`.
    spaces : sequence of float32, ten
        Memory of the program's views: the arena, the constants, four inputs, four outputs.
    """
    device.launch("network_map", blocks_for(n_element, MAP_THREADS * LANES), (MAP_THREADS,), program,
                  np.uint32(n_element), *spaces, shared=4 * n_register * LANES * MAP_THREADS)


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


def network_sum(device: Device, x: DeviceArray, out: DeviceArray) -> None:
    """out[i, 0, j] = sum_k x[i, k, j].

    Parameters
    ----------
    device : Device
    x : float32 (outer, length, inner)
    out : float32 (outer, 1, inner)
    """
    outer, length, inner = x.shape
    device.launch("network_reduce:network_sum", blocks_for(outer * inner), (256,), x, out, np.int64(outer * inner),
                  length, inner)


def network_softmax(device: Device, x: DeviceArray, out: DeviceArray) -> None:
    """out[i, k, j] = exp(x[i, k, j]) / sum_k' exp(x[i, k', j]).

    Parameters
    ----------
    device : Device
    x, out : float32 (outer, length, inner)
    """
    outer, length, inner = x.shape
    device.launch("network_reduce:network_softmax", blocks_for(outer * inner), (256,), x, out, np.int64(outer * inner),
                  length, inner)


def network_convolution(device: Device, x: DeviceArray, kernel: DeviceArray, bias: DeviceArray | None, *,
                        size: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int], out: DeviceArray) -> None:
    """out[n, o] = sum_i x[n, i] * kernel[i, o] + bias[o], x zero outside.

    Parameters
    ----------
    device : Device
    x : float32 (n_source, n_in, height, width)
    kernel : float32 (n_in * kernel_height * kernel_width, n_out)
    bias : float32 (n_out,), optional
    size, stride, pad : tuple of int
        (y, x): size of the kernel, its steps, rows and columns of zeros before the first.
    out : float32 (n_source, n_out, out_height, out_width)
    """
    n_source, n_out, out_height, out_width = out.shape
    grid = -(-n_source * out_height * out_width // 64), -(-n_out // 32)
    device.launch("network_convolution", grid, (128,), x, kernel, bias, out, *x.shape, n_out, out_height, out_width,
                  *size, *stride, *pad)
