"""Fused elementwise operations; bytes in network_map.cu, the program in network_program.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deblendrt.cuda.device import Device, DeviceArray, blocks_for

THREADS, LANES = 128, 4  # as in network_map.cu


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
        Of the program.
    spaces : sequence of float32, ten
        What the program's views lie in: the arena, the constants, four inputs, four outputs.
    """
    device.launch("network_map", blocks_for(n_element, THREADS * LANES), (THREADS,), program, np.uint32(n_element),
                  *spaces, shared=4 * n_register * LANES * THREADS)
