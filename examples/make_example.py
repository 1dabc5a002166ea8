"""Make `lsst_blend.fits`: a small simulated LSST field at 10-year depth, with its truth.

Run from a clone: ``python examples/make_example.py``. Needs ``deblendrt[train]``.

HDUs: IMAGE and VARIANCE (band, y, x), PSF (band, y, x; sum one), BANDS (names, sky noise, seeing),
CENTERS (x, y; 0-based, a pixel's centre at the integer), TRUTH (the same rows with true total fluxes).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from deblendrt.engine.units import AB_ZERO_POINT
from deblendrt.training import config
from deblendrt.training.simulation import blend_scenes, population, survey

SEED = 2
SHAPE = (120, 120)
N_NATURAL = 13  # fainter, with the sky's own counts to i = 25.3
BRIGHT = (20.0, 22.0)  # i magnitudes of the three bright ones
N_BRIGHT = 3
SPREAD = 5.0  # arcsec


def choose_galaxies(galaxies: population.Galaxies, rng: np.random.Generator) -> np.ndarray:
    """Rows of three bright galaxies and of thirteen fainter ones."""
    bright = np.flatnonzero((galaxies.magnitude > BRIGHT[0]) & (galaxies.magnitude < BRIGHT[1]))
    chosen = rng.choice(bright, N_BRIGHT, replace=False)
    others = rng.choice(np.flatnonzero(galaxies.magnitude > BRIGHT[1]), N_NATURAL, replace=False)
    return np.concatenate([chosen, others])


def make_scene(cfg: config.Config) -> tuple[blend_scenes.SimulatedScene, survey.Depth, population.Galaxies]:
    """Simulate the field."""
    rng = np.random.default_rng(SEED)
    depth = survey.depth(cfg.survey)
    galaxies = blend_scenes.natural_population(cfg, 4000, rng)
    indices = choose_galaxies(galaxies, rng)
    scale = depth.pixel_scale
    positions = blend_scenes.blend_positions(len(indices), SHAPE, rng, spread=SPREAD / scale,
                                         min_separation=blend_scenes.BLEND_SEPARATION / scale, margin=8.0)
    scene = blend_scenes.simulate_scene(galaxies, indices, positions, survey.nominal_psf(depth), depth, SHAPE, rng)
    return scene, depth, galaxies[indices]


def write(scene: blend_scenes.SimulatedScene, depth: survey.Depth, galaxies: population.Galaxies, path: Path) -> None:
    """Write the field as FITS."""
    primary = fits.PrimaryHDU()
    primary.header["ORIGIN"] = "deblendrt examples/make_example.py (GalSim, galcheat)"
    primary.header["BANDS"] = ("".join(depth.bands), "order of the planes")
    primary.header["PIXSCALE"] = (depth.pixel_scale, "arcsec")
    primary.header["ZEROPNT"] = (AB_ZERO_POINT, "AB magnitude of 1 nJy")
    image = fits.ImageHDU(scene.image, name="IMAGE")
    image.header["BUNIT"] = "nJy"
    variance = fits.ImageHDU(scene.variance, name="VARIANCE")
    variance.header["BUNIT"] = "nJy2"
    psf = fits.ImageHDU(scene.psf.astype(np.float32), name="PSF")
    bands = Table({"band": list(depth.bands), "sky_sigma": depth.sky_sigma, "psf_fwhm_arcsec": depth.psf_fwhm})
    bands["sky_sigma"].unit, bands["psf_fwhm_arcsec"].unit = "nJy", "arcsec"
    x, y = scene.centers.T
    truth = Table({"x": x, "y": y, "redshift": galaxies.redshift, "bulge_fraction": galaxies.bulge_fraction,
                   "half_light_radius": galaxies.half_light_radius})
    for column, band in enumerate(depth.bands):
        truth[f"flux_{band}"] = scene.flux[:, column]
        truth[f"flux_{band}"].unit = "nJy"
    tables = [fits.BinTableHDU(table, name=name) for table, name in
              ((bands, "BANDS"), (Table({"x": x, "y": y}), "CENTERS"), (truth, "TRUTH"))]
    fits.HDUList([primary, image, variance, psf, *tables]).writeto(path, overwrite=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("lsst_blend.fits"))
    out = parser.parse_args().out
    scene, depth, galaxies = make_scene(blend_scenes.without_structure(config.load("lsst.toml")))
    write(scene, depth, galaxies, out)
    bright, faint = galaxies.magnitude.min(), galaxies.magnitude.max()
    print(f"{out}: {len(scene.centers)} galaxies, i = {bright:.1f} to {faint:.1f}, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
