"""Folding of a basis with the difference kernels of one PSF.

The direct convolution takes 2 n_band n_basis s^2 full_window^2 flops, 8e11 for the shipped model of LSST's bands; it
reads next to nothing. Bands are folded as many at a time as `scratch` has room for.
"""

from __future__ import annotations

from deblendrt.cuda.device import Device, DeviceArray
from deblendrt.cuda.gram import gram


def fold(device: Device, basis: DeviceArray, kernel: DeviceArray, scratch: DeviceArray, out_phi: DeviceArray,
         out_phi_t: DeviceArray, out_outer: DeviceArray | None, out_outer_t: DeviceArray | None,
         out_gram: DeviceArray, out_full_gram: DeviceArray, *, window: int, full_window: int, binning: int) -> None:
    """`reference_fold.fold`."""
    size, n_basis = basis.shape[1:]
    n_band, n = kernel.shape[:2]
    tiles = -(-full_window // 32) * -(-full_window // 4)
    for start in range(0, n_band, len(scratch)):
        bands = start, min(start + len(scratch), n_band)
        whole = scratch.rows(0, bands[1] - start)
        device.launch("fold:fold_convolve", (tiles, -(-n_basis // 64), len(whole)), (256,), basis,
                      kernel.rows(*bands), n_basis, size, n, full_window, whole)
        _cut(device, whole, full_window, (full_window - window) // 2, 1, window, out_phi.rows(*bands),
             out_phi_t.rows(*bands))
        gram(device, out_phi.rows(*bands), out_gram.rows(*bands))
        gram(device, whole, out_full_gram.rows(*bands))
        if out_outer is not None and out_outer_t is not None:
            _cut(device, whole, full_window, binning // 2, binning, full_window // binning, out_outer.rows(*bands),
                 out_outer_t.rows(*bands))


def _cut(device: Device, whole: DeviceArray, full_window: int, first: int, step: int, side: int, out: DeviceArray,
         out_t: DeviceArray) -> None:
    """Every `step`-th pixel from the first on, side x side of them."""
    n_table, n_basis, _ = whole.shape
    device.launch("fold:fold_cut", (-(-(side**2) // 32), -(-n_basis // 32), n_table), (32, 8), whole, n_basis,
                  full_window, first, step, side, out, out_t)


def scratch_shape(n_basis: int, full_window: int, n_at_once: int = 1) -> tuple[int, int, int]:
    """Shape of the float32 `scratch` for so many bands at a time: 13 MB each for the shipped model."""
    return n_at_once, n_basis, full_window**2


def cost(n_band: int, n_basis: int, size: int, full_window: int) -> tuple[float, float]:
    """Bytes written, and flops, of the convolution."""
    return 4.0 * n_band * n_basis * full_window**2, 2.0 * n_band * n_basis * (size * full_window) ** 2
