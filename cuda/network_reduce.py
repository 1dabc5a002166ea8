"""Sums and softmaxes along the middle of three axes; bytes in network_reduce.cu."""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray, blocks_for


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
