"""float64 to float32: 12 bytes an element."""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray, blocks_for


def narrow(device: Device, values: DeviceArray, out: DeviceArray) -> None:
    """Round to float32.

    Parameters
    ----------
    device : Device
    values : float64
    out : float32
        Of the same shape.
    """
    device.launch("narrow", blocks_for(values.size), (256,), values, out, np.int64(values.size))
