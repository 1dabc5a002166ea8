"""Pictures of the DC2 fields: image, model and residual, with a mark for every source by its kind.

    python -m perf.studies.sky.pictures DATA_FOLDER [--out docs/static/pictures]

All kinds are "auto", and unlisted sources are searched for. The command also prints figures of the residual.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.files.fits import read_image
from deblendrt.engine.result.colors import palette, reference_band
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.units import to_magnitude
from perf.studies.sky.fields import CENTER_SIGMA

BEYOND = 5.0  # sigma
NEAR = 25.0  # pixel: a bad pixel belongs to the nearest source within this; wings of bright stars reach far
SYMBOLS = (("listed, galaxy", "o", "#7df9a6"), ("listed, star", "*", "#7df9a6"),
           ("found, galaxy", "D", "#ffd166"), ("found, star", "*", "#ffd166"))


def deblend(deblender: Deblender, path: Path) -> DeblendResult:
    """Deblend a field with all kinds "auto", and add sources at peaks of the residual."""
    image = read_image(path)
    return deblender.deblend_batch(image.image, image.centers, variance=image.variance, mask=image.mask, psf=image.psf,
                                   bands=image.bands, zero_point=image.zero_point, center_sigma=CENTER_SIGMA,
                                   kind="auto", find_missed=True)


def classes(result: DeblendResult) -> list[NDArray[np.bool_]]:
    """Masks of the sources of each of `SYMBOLS`."""
    found = (result.flags & Flag.FOUND) != 0
    return [~found & ~result.star, ~found & result.star, found & ~result.star, found & result.star]


def picture(result: DeblendResult, title: str) -> Figure:
    """Three panels: image with marks, model, and residual in units of the noise with marks, in the reference band."""
    scene, colors, band = result.scenes[0], palette(result, 0), reference_band(result, 0)
    model = result.model(0)
    sigma = np.where(scene.inverse_variance[band] > 0,
                     result.residual(0, model)[band] * np.sqrt(scene.inverse_variance[band]), np.nan)
    figure = Figure(figsize=(17.4, 6.5), layout="constrained", dpi=100)
    axes = figure.subplots(1, 3, sharey=True)
    frame: dict[str, Any] = {"origin": "lower", "interpolation": "nearest"}
    axes[0].imshow(colors(scene.image), **frame)
    axes[1].imshow(colors(model), **frame)
    drawn = axes[2].imshow(sigma, cmap="RdBu_r", vmin=-6, vmax=6, **frame)
    figure.colorbar(drawn, ax=axes[2], fraction=0.046, pad=0.02, extend="both", label="sigma")
    axes[0].set_title(f"image ({colors.names})")
    axes[1].set_title("model")
    axes[2].set_title(f"(image - model) / noise in {result.bands[band]}")
    outline = [patheffects.withStroke(linewidth=2.2, foreground="black")]
    for (_, symbol, color), member in zip(SYMBOLS, classes(result), strict=True):
        size = 150 if symbol == "*" else 60
        for axis, edge in ((axes[0], color), (axes[2], "black")):
            axis.scatter(*result.position[member].T, marker=symbol, s=size, facecolors="none", edgecolors=edge,
                         linewidths=1.0, path_effects=outline if axis is axes[0] else None)
    for axis in axes:
        axis.set(xlim=(-0.5, scene.shape[1] - 0.5), ylim=(-0.5, scene.shape[0] - 0.5), xlabel="x [pixel]")
    axes[0].set_ylabel("y [pixel]")
    handles = [Line2D([], [], linestyle="", marker=symbol, markersize=9 if symbol != "*" else 14,
                      markerfacecolor="none", markeredgecolor=color, path_effects=outline,
                      label=f"{name}: {member.sum()}")
               for (name, symbol, color), member in zip(SYMBOLS, classes(result), strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title)
    return figure


def remaining(result: DeblendResult) -> str:
    """Figures of the residual, as text."""
    scene = result.scenes[0]
    used = scene.inverse_variance > 0
    sigma = np.where(used, result.residual(0) * np.sqrt(scene.inverse_variance), 0.0)
    lines = [f"  {name}: {member.sum()}" for (name, _, _), member in zip(SYMBOLS, classes(result), strict=True)]
    reduced = result.reduced_chi2
    lines.append(f"  reduced chi2: field {np.mean(sigma[used] ** 2):.3f}; sources' cores median "
                 f"{np.nanmedian(reduced):.3f}, 90% {np.nanpercentile(reduced, 90):.3f}, "
                 f"largest {np.nanmax(reduced):.1f}")
    y, x = np.nonzero((np.abs(sigma) > BEYOND).any(0))
    n = int((np.abs(sigma) > BEYOND).sum())
    lines.append(f"  beyond {BEYOND:g} sigma: {n} of {used.sum()} values, in {len(x)} pixels; per band "
                 + ", ".join(f"{b} {int((np.abs(s) > BEYOND).sum())}"
                             for b, s in zip(result.bands, sigma, strict=True)))
    distance = np.hypot(x[:, None] - result.position[:, 0], y[:, None] - result.position[:, 1])
    nearest = np.where(distance.min(1, initial=np.inf) < NEAR, distance.argmin(1), -1) if len(x) else np.zeros(0, int)
    for i in np.unique(nearest):
        pixels = (nearest == i).sum()
        if i < 0:
            lines.append(f"    {pixels} pixels within {NEAR:g} pixels of no source")
        else:
            kind = "star" if result.star[i] else "galaxy"
            lines.append(f"    {pixels} pixels at the {kind} {i} at ({result.position[i, 0]:.0f}, "
                         f"{result.position[i, 1]:.0f}), i = {to_magnitude(result.map_flux[i, 3]):.1f}, "
                         f"P(star) {result.star_probability[i]:.3f}, reduced chi2 {reduced[i]:.2f}")
    for px, py, s in result.residual_peaks(0):
        lines.append(f"    residual peak of {s:.1f} sigma at ({px:.0f}, {py:.0f})")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with dc2_field_*.fits")
    parser.add_argument("--bundle", default="lsst")
    parser.add_argument("--out", type=Path, default=Path("docs/static/pictures"))
    args = parser.parse_args(argv)
    paths = sorted(args.data.glob("dc2_field_*.fits"))
    if not paths:
        print(f"no dc2_field_*.fits in {args.data}", file=sys.stderr)
        return 1
    deblender = Deblender.load(args.bundle)
    args.out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        result = deblend(deblender, path)
        print(f"{path.stem}:\n{remaining(result)}", flush=True)
        figure = picture(result, f"LSST DESC DC2 coadd, {result.n_source} sources")
        figure.savefig(args.out / f"{path.stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
