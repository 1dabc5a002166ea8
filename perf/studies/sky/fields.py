"""The engine on real and third-party images.

    python -m perf.studies.sky.fields DATA_FOLDER

Fields without truth are multi-extension FITS files: ``dc2_*`` for the bundle lsst, ``hsc_*`` for the bundle hsc with
the options of `HSC_RUNS`. The study reports chi2 per pixel of the image and of the listed sources' cores, reduced chi2
of the listed sources, the distance of shapes from the edge of the prior, and flags, and draws a picture.
``scarlet_sim_matched.npz``, from scarlet's test data, has the noiseless image of each source; there the flux inside the
frame is compared.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.files.fits import read_image
from deblendrt.engine.scene.flags import Flag
from perf import study
from perf.report import environment, machine, markdown_table, number

# pixel: the DC2 lists are shifted by up to 0.5 pixel against their images, the HSC list has integer centres
CENTER_SIGMA = 0.4
CORE_RADIUS = 0.6  # arcsec: radius of a source's core, the FWHM of the PSF
# The list of the HSC image lacks sources and calls a star a galaxy. Its bright sources need more than 15 iterations.
HSC_RUNS: dict[str, dict[str, Any]] = {
    "the list, as galaxies": {},
    "find_missed": {"find_missed": True},
    "kind=auto, find_missed": {"kind": "auto", "find_missed": True},
    "kind=auto, find_missed, 40 iterations": {"kind": "auto", "find_missed": True, "n_iteration": 40},
}


def flag_counts(flags: np.ndarray) -> dict[str, int]:
    """Number of sources with each flag."""
    counts = {str(flag.name): int(((flags & flag) != 0).sum()) for flag in Flag}
    return {name: n for name, n in counts.items() if n}


def run_field(deblender: Deblender, path: Path, out: Path | None, **options: Any) -> dict[str, Any]:
    """Figures of a field without truth; also draws a picture if a folder is given."""
    image = read_image(path)
    result = deblender.deblend_batch(image.image, image.centers, variance=image.variance, mask=image.mask,
                                     psf=image.psf, bands=image.bands, zero_point=image.zero_point,
                                     center_sigma=CENTER_SIGMA, **options)
    if out is not None:
        from deblendrt.engine.result.figures import plot_overview, save

        save(plot_overview(result, 0, title=path.stem), out / f"{path.stem}.png")
    fitted = result.fitted
    listed = slice(0, len(image.centers))
    radius = np.sqrt((result.latent[fitted, len(result.bands) + 2 :] ** 2).sum(1))
    relative = radius / deblender.bundle.shape_radius
    radius = radius * (1 + relative**8) ** -0.125  # as the decoder confines it, see deblendrt.training.decoder.bound
    sigma = np.sqrt(result.scenes[0].inverse_variance) * result.residual(0)
    y, x = np.mgrid[: image.image.shape[1], : image.image.shape[2]]
    reach = CORE_RADIUS / deblender.bundle.pixel_scale
    places = result.position[listed][fitted[listed]]
    core = np.any([np.hypot(x - px, y - py) <= reach for px, py in places], axis=0)
    has_data = result.scenes[0].inverse_variance > 0
    per_band = {}
    for b, band in enumerate(result.bands):
        used = sigma[b][result.scenes[0].inverse_variance[b] > 0]
        per_band[band] = float(1.4826 * np.median(np.abs(used - np.median(used))))
    return {"n_source": len(image.centers), "n_found": result.n_source - len(image.centers),
            "n_fitted": int(fitted.sum()),
            "chi2_per_pixel": float((sigma[has_data] ** 2).mean()),
            "chi2_per_pixel_cores": float((sigma[has_data & core] ** 2).mean()),
            "reduced_chi2_median": float(np.nanmedian(result.reduced_chi2[listed])),
            "reduced_chi2_90": float(np.nanpercentile(result.reduced_chi2[listed], 90)),
            "residual_scatter_sigma": per_band,
            "shape_radius_max": float(radius.max()), "shape_radius_bound": deblender.bundle.shape_radius,
            "flags": flag_counts(result.flags)}


def centred(image: NDArray[Any], half: int = 11) -> NDArray[np.float64]:
    """A noiseless star, moved to the middle of a stamp and scaled to a sum of one."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    core = np.where(image > 0.02 * image.max(), image, 0.0)
    cx, cy = (core * x).sum() / core.sum(), (core * y).sum() / core.sum()
    ix, iy = round(cx), round(cy)
    cut = image[iy - half : iy + half + 1, ix - half : ix + half + 1]
    wave = 2j * np.pi * np.fft.fftfreq(2 * half + 1)
    moved = np.fft.ifft2(np.fft.fft2(cut) * np.exp(wave * (cx - ix) + wave[:, None] * (cy - iy))).real
    return moved / moved.sum()


def run_scarlet(deblender: Deblender, path: Path) -> dict[str, Any]:
    """Relative error of each source's flux inside the frame, per band."""
    with np.load(path, allow_pickle=False) as data:
        images, truth, star = data["images"], data["truth"], data["is_star"]
        centers = np.stack([data["x"], data["y"]], 1).astype(float)
    sigma = (images - truth.sum(0)).std((1, 2))
    # The file's "PSFs" have a FWHM of 1.3 pixels and its stars 2.7, so they are kernels. The brightest star is the PSF.
    brightest = int(np.argmax(np.where(star, truth.sum((1, 2, 3)), 0)))
    psfs = np.stack([centred(plane) for plane in truth[brightest]])
    # the listed x are half a pixel above the true centroids, also for stars; they are kept
    kind = np.where(star.astype(bool), "star", "galaxy")
    result = deblender.deblend_batch(images, centers, variance=sigma**2, psf=psfs, bands="ugrizy", kind=kind,
                                     center_sigma=CENTER_SIGMA)
    true = truth.sum((2, 3))
    error = result.flux * result.enclosed / true - 1
    galaxy = ~star.astype(bool)
    return {"relative_flux_error": error.round(4).tolist(), "is_star": star.astype(bool).tolist(),
            "snr": (true / result.flux_err).round(1).tolist(),
            "median_abs_error_galaxies": dict(zip(result.bands, np.median(np.abs(error[galaxy]), 0).round(4).tolist(),
                                                  strict=True)),
            "median_abs_error_stars": dict(zip(result.bands, np.median(np.abs(error[~galaxy]), 0).round(4).tolist(),
                                               strict=True)),
            "reduced_chi2": result.reduced_chi2.round(3).tolist(), "flags": flag_counts(result.flags)}


def markdown(figures: dict[str, Any]) -> str:
    """The figures as tables."""
    fields = [(name, f) for name, f in figures.items() if "reduced_chi2_median" in f]
    text = "# Real and third-party images\n\n"
    text += markdown_table(
        ["field", "sources", "found", "fitted", "chi2 per pixel, all", "in cores",
         "reduced chi2 of listed sources, median", "90%", "residual scatter r, i [sigma]",
         "largest shape radius (bound)", "flags"],
        [[name, str(f["n_source"]), str(f["n_found"]), str(f["n_fitted"]), number(f["chi2_per_pixel"]),
          number(f["chi2_per_pixel_cores"]), number(f["reduced_chi2_median"]), number(f["reduced_chi2_90"]),
          ", ".join(number(f["residual_scatter_sigma"][b]) for b in "ri" if b in f["residual_scatter_sigma"]),
          f"{number(f['shape_radius_max'])} ({number(f['shape_radius_bound'])})",
          ", ".join(f"{k} {v}" for k, v in f["flags"].items())] for name, f in fields])
    text += "\n\nThe mean over all pixels includes objects that the list lacks; on DC2 they are bright stars."
    for name, f in figures.items():
        if "relative_flux_error" in f:
            text += f"\n\n## {name}: flux inside the frame / truth - 1\n\n"
            rows = [[str(i), "star" if star else "galaxy", *[f"{100 * e:+.1f}%" for e in row]]
                    for i, (star, row) in enumerate(zip(f["is_star"], f["relative_flux_error"], strict=True))]
            text += markdown_table(["source", "kind", *"ugrizy"], rows)
    return text + f"\n\nMade by `python -m perf.studies.sky.fields FOLDER`. {machine(figures['environment'])}.\n"


def main(argv: list[str] | None = None) -> int:
    """Run the study."""
    parser = study.parser("perf.studies.sky.fields", __doc__)
    parser.add_argument("data", type=Path, help="folder of images")
    parser.add_argument("--hsc-bundle", default="hsc", help="for the HSC images")
    args = parser.parse_args(argv)
    deblender = Deblender.load(args.bundle)
    args.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {path.stem: run_field(deblender, path, args.out)
                               for path in sorted(args.data.glob("dc2_*.fits"))}
    for path in sorted(args.data.glob("hsc_*.fits")):
        for name, options in HSC_RUNS.items():  # the last one's picture stays
            figures[f"{path.stem}: {name}"] = run_field(Deblender.load(args.hsc_bundle), path, args.out, **options)
    simulated = args.data / "scarlet_sim_matched.npz"
    if simulated.exists():
        figures[simulated.stem] = run_scarlet(deblender, simulated)
    if not figures:
        print(f"no dc2_*.fits, hsc_*.fits or scarlet_sim_matched.npz in {args.data}", file=sys.stderr)
        return 1
    figures["environment"] = environment()
    study.store(args.out, "real", figures, markdown(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
