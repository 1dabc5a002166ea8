"""Launchers of the kernels that measure a solution source by source."""

from __future__ import annotations

import numpy as np

from deblendrt.cuda.driver.device import Device, DeviceArray
from deblendrt.cuda.layout import PIXEL_TILE, Layout

BLOCK = 256  # pixels that are packed at once, as in footprint.cu


def footprint(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
              weight: DeviceArray, out: DeviceArray, *, significant: float, core: float) -> None:
    """Find footprints of sources. Reads every stamp three times and the weights under it once, 3 flops each.

    Specification: `reference.measures.footprint`.
    """
    device.launch("footprint", (layout.n_source,), (BLOCK,), layout.scene, layout.corner, extended,
                  layout.canvas_start, layout.canvas_shape, stamps, cells, weight, layout.n_band, layout.window,
                  layout.margin, layout.binning, layout.n_cell, float(significant), float(core), out.shape[1], out,
                  shared=np.dtype(np.float32).itemsize * layout.n_band)


def n_word(layout: Layout) -> int:
    """Return the number of 32-bit words of a footprint."""
    return -(-(layout.full_window**2) // BLOCK) * (BLOCK // 32)


def light(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
          footprints: DeviceArray, weight: DeviceArray, out: DeviceArray) -> None:
    """Sum the positive light of all sources. Reads every stamp and the weights once and writes an image.

    Specification: `reference.measures.light`.
    """
    device.launch("share:light", (len(layout.pixel_tile), layout.n_band), (PIXEL_TILE, PIXEL_TILE), layout.pixel_tile,
                  layout.tile_start, layout.tile_source, layout.scene, layout.corner, extended, layout.canvas_start,
                  layout.canvas_shape, stamps, cells, footprints, weight, layout.n_band, layout.window, layout.margin,
                  layout.binning, layout.n_cell, footprints.shape[1], out)


def share(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
          footprints: DeviceArray, data: DeviceArray, weight: DeviceArray, model: DeviceArray, light: DeviceArray,
          out: DeviceArray) -> None:
    """Share the light of scenes among their sources. Reads every stamp and four images under it.

    Specification: `reference.measures.share`.
    """
    device.launch("share", (layout.n_source, layout.n_band), (256,), layout.scene, layout.corner, extended,
                  layout.canvas_start, layout.canvas_shape, stamps, cells, footprints, data, weight, model, light,
                  layout.n_band, layout.window, layout.margin, layout.binning, layout.n_cell, footprints.shape[1], out)


def misfit(device: Device, layout: Layout, stamps: DeviceArray, latent: DeviceArray, data: DeviceArray,
           weight: DeviceArray, model: DeviceArray, edges: DeviceArray, out: DeviceArray, *, half: int,
           square: int) -> None:
    """Measure the misfit of sources. Reads four images in a source's square once.

    Specification: `reference.measures.misfit`; 80 half^2 bytes of shared memory.
    """
    device.launch("misfit", (layout.n_source,), (256,), layout.scene, layout.corner, layout.canvas_start,
                  layout.canvas_shape, stamps, latent, data, weight, model, edges, len(edges), layout.n_band,
                  latent.shape[1], layout.window, half, square, out, shared=(8 + 8 + 4) * (2 * half) ** 2)


def visible(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
            footprints: DeviceArray, weight: DeviceArray, out: DeviceArray) -> None:
    """Measure the visible light of sources. Reads a source's stamp and the weights in its footprint.

    Specification: `reference.measures.visible`.
    """
    device.launch("misfit:visible", (layout.n_source, layout.n_band), (256,), layout.scene, layout.corner, extended,
                  layout.canvas_start, layout.canvas_shape, stamps, cells, footprints, weight, layout.n_band,
                  layout.window, layout.margin, layout.binning, layout.n_cell, footprints.shape[1], out)


def core_statistics(device: Device, layout: Layout, number: DeviceArray, centre: DeviceArray, owner: DeviceArray,
                    data: DeviceArray, weight: DeviceArray, weights: DeviceArray, model: DeviceArray,
                    out: DeviceArray, *, radius: float) -> None:
    """chi2 of sources' own pixels: reads four images and the owners in a circle around each source once.

    Specification: `reference.measures.core_statistics`.
    """
    device.launch("core_statistics", (layout.n_source,), (256,), layout.scene, number, centre, layout.canvas_start,
                  layout.canvas_shape, owner, data, weight, weights, model, layout.n_band, np.float64(radius), out)


def light_area(device: Device, layout: Layout, stamps: DeviceArray, cells: DeviceArray | None, extended: DeviceArray,
               weight: DeviceArray, out: DeviceArray, *, threshold: float) -> None:
    """Areas of significant light: reads every stamp once, 3 flops a pixel and band.

    Specification: `reference.measures.light_area`.
    """
    device.launch("light_area", (layout.n_source,), (256,), layout.scene, extended, stamps, cells, weight,
                  layout.n_band, layout.window, layout.margin, layout.binning, layout.n_cell, np.float64(threshold),
                  out)
