"""A scene's image without the border of its canvas: 8 bytes a pixel and band."""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray, blocks_for


def crop(device: Device, canvas: DeviceArray, border: int, out: DeviceArray) -> None:
    """Copy the middle of a canvas.

    Parameters
    ----------
    device : Device
    canvas : float32 (n_band, n_y + 2 border, n_x + 2 border)
    border : int [pixel]
    out : float32 (n_band, n_y, n_x)
    """
    n_band, height, width = canvas.shape
    grid = (*blocks_for(out.shape[1] * out.shape[2]), n_band)
    device.launch("crop", grid, (256,), canvas, height, width, border, out)
