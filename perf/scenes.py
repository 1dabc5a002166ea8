"""The frozen test scenes: 200 simulated LSST 10-year blends, on which every accuracy figure is measured.

The recipe below is frozen and separate from the training configurations. Training never uses its seed. The scenes are
cached under a name that holds a hash of the recipe, of the simulation's source and of GalSim's version, so that results
of a changed simulation cannot be compared with old results by accident. The SHA-256 of the arrays is printed with every
result; between machines it may differ, because the last bits of a Fourier transform do.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import galsim
import numpy as np

from deblendrt.training import config
from deblendrt.training.simulation import blend_scenes, components, population, survey

N_SCENE = 200
SEED = 810_450_237
RECIPE: dict[str, Any] = {
    "revision": 1,
    "seed": SEED,
    "shape": [101, 101],
    "n_source": [2, 8],
    "spread": 2.4,  # arcsec
    "min_separation": 0.6,  # arcsec
    "margin": 13.0,  # pixel: centres in the middle 75
    "pool": 20000,
    "population": {"n_galaxy": 20000, "magnitude_min": 16.5, "magnitude_max": 25.3, "uniform_fraction": 0.0,
                   "surface_brightness_limit": 27.5},
    "survey": {"galcheat_name": "LSST", "bands": ["u", "g", "r", "i", "z", "y"], "reference_band": "i",
               "pixel_scale": 0.2, "bandpass": "LSST_{band}.dat"},
}
DEFAULT_CACHE = Path("~/.cache/deblendrt")
FIELDS = ("image", "variance", "centers", "truth", "flux")


@functools.lru_cache(maxsize=1)
def sky() -> tuple[population.Galaxies, survey.Psf, survey.Depth]:
    """The pool of galaxies, the PSF and the depth of the test scenes."""
    spec = config.Survey(**RECIPE["survey"])
    galaxies = population.draw(config.Population(**RECIPE["population"]), spec, RECIPE["pool"],
                               np.random.default_rng([SEED, 1]))
    depth = survey.depth(spec)
    return galaxies, survey.nominal_psf(depth), depth


def make_scene(k: int) -> blend_scenes.SimulatedScene:
    """Test scene k. It does not depend on the number of scenes."""
    galaxies, psf, depth = sky()
    return blend_scenes.random_blend_scene(
        galaxies, psf, depth, np.random.default_rng([SEED, 2, k]), shape=tuple(RECIPE["shape"]),
        n_source=tuple(RECIPE["n_source"]), spread=RECIPE["spread"], min_separation=RECIPE["min_separation"],
        margin=RECIPE["margin"])


def expose(mean: np.ndarray, depth: survey.Depth, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A noiseless image with photon noise and sky noise, and its variance.

    Parameters
    ----------
    mean : float (n_band, n_y, n_x) [nJy]
        Not negative.
    depth : Depth
    rng : numpy.random.Generator

    Returns
    -------
    image, variance : float32 (n_band, n_y, n_x) [nJy, nJy^2]
    """
    counts, sigma = depth.counts_per_njy[:, None, None], depth.sky_sigma[:, None, None]
    image = rng.poisson(mean * counts) / counts + sigma * rng.standard_normal(mean.shape)
    return image.astype(np.float32), (sigma**2 + mean / counts).astype(np.float32)


def recipe_hash() -> str:
    """Hash of the recipe, of the simulation's source and of GalSim's version, which together decide the scenes."""
    digest = hashlib.sha256(json.dumps([RECIPE, galsim.__version__], sort_keys=True).encode())
    for module in (population, components, blend_scenes, survey):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


class SceneSet:
    """Cached scenes, read one at a time, so that truth images do not fill the memory.

    Attributes
    ----------
    path : Path
    bands : tuple of str
    psf : float64 (n_band, size, size)
    sky_sigma, counts_per_njy : float64 (n_band,)
    sha256 : str
        Hash of all arrays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = np.load(path, allow_pickle=False)
        self.bands = tuple(str(band) for band in self._file["bands"])
        self.psf = self._file["psf"]
        self.sky_sigma = self._file["sky_sigma"]
        self.counts_per_njy = self._file["counts_per_njy"]
        self.sha256 = str(self._file["sha256"])

    def __len__(self) -> int:
        return int(self._file["n_scene"])

    def field(self, name: str, k: int) -> np.ndarray:
        """An array of scene k; `name` is a field of `SimulatedScene`."""
        return self._file[f"{name}_{k}"]

    def every(self, name: str) -> list[np.ndarray]:
        """The arrays of this name of all scenes."""
        return [self.field(name, k) for k in range(len(self))]

    def joined(self, name: str) -> np.ndarray:
        """The arrays of this name of all scenes, joined along the first axis."""
        return np.concatenate(self.every(name))

    def given(self, numbers: Sequence[int] | None = None) -> dict[str, Any]:
        """Arguments of `deblend_batch` for some scenes, by default for all: true positions, variance and PSF."""
        chosen = range(len(self)) if numbers is None else numbers
        arrays = {key: [self.field(name, k) for k in chosen]
                  for key, name in (("cutouts", "image"), ("centers", "centers"), ("variance", "variance"))}
        return {**arrays, "psf": self.psf, "bands": self.bands}

    def __getitem__(self, k: int) -> blend_scenes.SimulatedScene:
        if not 0 <= k < len(self):
            raise IndexError(k)
        image, variance, centers, truth, flux = (self.field(name, k) for name in FIELDS)
        return blend_scenes.SimulatedScene(image, variance, self.psf, centers, truth, flux)

    def __iter__(self) -> Iterator[blend_scenes.SimulatedScene]:
        return (self[k] for k in range(len(self)))


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def load_scenes(cache: Path | None = None, n_scene: int = N_SCENE, n_process: int = 2) -> SceneSet:
    """Read the test scenes; make them first if the cache lacks them (20 s on two cores).

    Parameters
    ----------
    cache : Path, optional
        Folder; default ``~/.cache/deblendrt``.
    n_scene : int
        Number of scenes; reported figures use all 200.
    n_process : int
    """
    folder = (cache or DEFAULT_CACHE).expanduser()
    path = folder / f"scenes-{recipe_hash()[:12]}-{n_scene}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _, psf, depth = sky()
        shared: dict[str, Any] = {"bands": np.array(depth.bands), "psf": psf.image, "sky_sigma": depth.sky_sigma,
                                  "counts_per_njy": depth.counts_per_njy, "n_scene": np.array(n_scene)}
        partial = path.with_suffix(f".{os.getpid()}.part")
        digest = hashlib.sha256()
        # written scene by scene: np.savez would hold all scenes, and studies measure peak memory afterwards
        with (zipfile.ZipFile(partial, "w") as archive,
              multiprocessing.get_context("spawn").Pool(n_process) as pool):
            for k, scene in enumerate(pool.imap(make_scene, range(n_scene))):
                for name in FIELDS:
                    array = np.ascontiguousarray(getattr(scene, name))
                    _add(archive, f"{name}_{k}", array)
                    digest.update(array.tobytes())
            for name, value in {**shared, "sha256": np.array(digest.hexdigest())}.items():
                _add(archive, name, value)
        partial.replace(path)
    return SceneSet(path)
