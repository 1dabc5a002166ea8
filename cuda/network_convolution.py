"""Convolutions of images; bytes and flops in network_convolution.cu."""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray


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
        (y, x): of the kernel; of its steps; rows and columns of zeros before the first.
    out : float32 (n_source, n_out, out_height, out_width)
    """
    n_source, n_out, out_height, out_width = out.shape
    grid = -(-n_source * out_height * out_width // 64), -(-n_out // 32)
    device.launch("network_convolution", grid, (128,), x, kernel, bias, out, *x.shape, n_out, out_height, out_width,
                  *size, *stride, *pad)
