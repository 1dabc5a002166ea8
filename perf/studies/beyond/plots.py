"""The figure of `perf.studies.beyond`: data, model and residual of a galaxy in some of the cases."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import UNTRUSTED, Flag
from perf.studies.beyond.departures import Field, GalaxyLayout, sky

SHOWN = ("control", "Sersic n = 0.5", "Sersic n = 6", "clumpy", "ring", "spiral arms", "colour gradient",
         "PSF 3% too narrow", "unlisted neighbour", "cores masked")
BAND = "i"
CUT = 45  # pixel
MAGNITUDES, RADII = (20.0, 21.5), (0.6, 1.2)  # of the galaxy shown; arcsec
RESIDUAL_RANGE = 6.0  # of the residual's scale


@dataclasses.dataclass(frozen=True)
class Example:
    """A galaxy in a case.

    Attributes
    ----------
    name : str
    data, model, residual : float32 (CUT, CUT)
        The residual is in units of the noise.
    caption : str
    """

    name: str
    data: NDArray[np.float32]
    model: NDArray[np.float32]
    residual: NDArray[np.float32]
    caption: str


def scene_of(layouts: list[GalaxyLayout]) -> int:
    """The first scene of an isolated galaxy that is bright and large enough for its residual to be seen."""
    pool = sky()[0]
    for k, layout in enumerate(layouts):
        row = layout.rows[0]
        size = pool.disk_half_light_radius[row]
        if (len(layout.rows) == 1 and MAGNITUDES[0] < pool.magnitude[row] < MAGNITUDES[1]
                and RADII[0] < size < RADII[1] and pool.bulge_fraction[row] < 0.3):
            return k
    return 0


def example(name: str, result: DeblendResult, field: Field, k: int) -> Example:
    """Cut the galaxy of scene k out of a case."""
    b, r, i = result.bands.index(BAND), result.bands.index("r"), result.source_start[k]
    x, y = (int(v) - CUT // 2 for v in np.rint(field.centers[0]))
    model = result.model(k)
    residual = result.residual(k, model) * np.sqrt(result.scenes[k].inverse_variance)
    data, drawn, left = (image[b, y : y + CUT, x : x + CUT] for image in (field.image, model, residual))
    off, pull = result.flux[i, r] / field.flux[0, r] - 1, (result.flux[i, r] - field.flux[0, r]) / result.flux_err[i, r]
    flags = [str(flag.name) for flag in Flag if result.flags[i] & flag & UNTRUSTED]
    caption = (f"flux in r {100 * off:+.1f}% ({pull:+.1f} sigma)\n"
               f"systematic error {100 * result.flux_sys_err[i, r] / result.map_flux[i, r]:.1f}%\n"
               + ("\n".join(flags) or "no flag"))
    return Example(name, data, drawn, np.where(field.mask[y : y + CUT, x : x + CUT], np.nan, left), caption)


def draw(examples: list[Example], path: Path) -> None:
    """Draw the examples, a column for each.

    Parameters
    ----------
    examples : list of Example
    path : Path
        PNG.
    """
    columns = (len(examples) + 1) // 2
    figure = Figure(figsize=(2.3 * columns, 13.8), layout="constrained")
    panels: Any = figure.subplots(6, columns, squeeze=False)
    for axis in panels.ravel():
        axis.set(xticks=[], yticks=[])
        axis.set_visible(False)
    shown = None
    for n, found in enumerate(examples):
        row, column = 3 * (n // columns), n % columns
        scale = float(np.nanmax(found.model))
        noise = scale * 0.01
        for axis, image in zip(panels[row : row + 2, column], (found.data, found.model), strict=True):
            axis.set_visible(True)
            axis.imshow(np.arcsinh(image / noise), origin="lower", cmap="gray", vmin=-1, vmax=np.arcsinh(scale / noise))
        axis = panels[row + 2, column]
        axis.set_visible(True)
        shown = axis.imshow(found.residual, origin="lower", cmap="RdBu_r", vmin=-RESIDUAL_RANGE, vmax=RESIDUAL_RANGE)
        panels[row, column].set_title(found.name, fontsize=10)
        axis.set_xlabel(found.caption, fontsize=8)
    for row, label in enumerate(("data, i", "model", "residual") * 2):
        panels[row, 0].set_ylabel(label, fontsize=10)
    if shown is not None:
        figure.colorbar(shown, ax=panels, shrink=0.25, label="residual [sigma]")
    figure.savefig(path, dpi=90)
