"""The model bundle: a folder with the data of a trained model, which is checked before use.

Nothing is unpickled. The SHA-256 of every file is compared with the manifest's. Files that the manifest does not list
and keys that this version does not know are errors. `deblendrt.engine.model.manifest` has the format of the manifest.
`deblendrt.engine.model.array_file` and `deblendrt.engine.model.onnx_check` check the files, because hashes do not
protect against the author of a bundle.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.model.array_file import read_array
from deblendrt.engine.model.manifest import (
    ARRAYS,
    GRAPHS,
    MANIFEST,
    VECTORS,
    BundleError,
    graph_sizes,
    parse_manifest,
)
from deblendrt.engine.model.onnx_check import check_onnx
from deblendrt.engine.model.outskirts import expand

MAX_FILE_BYTES = 64 * 2**20  # a trained bundle has a few MB
MAX_MANIFEST_BYTES = 2**20  # a manifest has 9 kB
MAX_ENTRIES = 100  # files in the folder
MAX_BASIS_BYTES = 2**30  # the basis with its outskirts in full resolution has 15 MB
SHIPPED = Path(__file__).parents[1] / "bundles"


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle. The fields up to `files` are the manifest's keys.

    Attributes
    ----------
    format_revision : int
    name, model_version : str
    bands : tuple of str
    reference_band : str
    pixel_scale : float [arcsec]
    stamp_size : int [pixel]
        Side of a stamp's core, in full resolution.
    outskirts_binning : int [pixel]
        Side of the cells outside the core.
    n_basis, n_component, n_shape : int
    shape_radius : float
        Shapes are confined to this radius.
    reference_psf_sigma : float [pixel]
    flux_unit : str
        Always "nJy".
    psf_fwhm : float64 (n_band,) [arcsec]
        Nominal PSF widths.
    sky_sigma : float64 (n_band,) [nJy per pixel]
        Sky noise at the survey's nominal depth.
    encoder_cutout_size : int [pixel]
    start_shape : float64 (n_shape,)
        Mean of the prior.
    prior_curvature : float64 (n_shape, n_shape)
        E[g g^T] over the training population, where g is the gradient of the log prior by the shape.
    mean_color, color_sigma : float64 (n_band,)
        Mean and standard deviation of ln(flux / flux in the reference band).
    log_prob_percentiles : dict of str to float
        Percentiles ("0.1" to "75") of the log prior over the training population.
    training : dict
        Configuration of the training, and the description and limits of the population.
    parity : dict of str to dict
        For each graph, the largest relative difference from torch in "float32" and "float64".
    opset : int
    minimum_onnxruntime : str
    golden_tolerance : dict of str to dict
        For each graph "rtol" and "atol" of `output_error`.
    licence : str
    files : dict of str to str
        SHA-256 of each file.
    path : Path
    basis : float32 (n_basis, stamp_size, stamp_size)
        Cores of the basis functions, which are orthonormal on the whole stamp, under the reference PSF.
    outskirts : float32 (n_basis, q, q)
        The functions at the centres of all cells, 0 in the core. The shape (n_basis, 0, 0) stands for stamps without
        outskirts.
    shift : float32 (2, n_basis, n_basis)
        Generators of a shift by one pixel in x and y.
    psf : float32 (n_band, q, q)
        Nominal effective PSFs, each of sum 1.
    detail_shared : float32 (n_shared, n_basis)
        Modes of detail that all bands share, see `deblendrt.engine.solve.detail`: coefficients of a galaxy of unit flux
        for one standard deviation of the prior. A bundle without detail has none.
    detail_band : float32 (n_band_mode, n_basis)
        Modes of detail of single bands.
    sha256 : str
        SHA-256 of the manifest, which holds the hashes of all files: the bundle's identity.
    """

    format_revision: int
    name: str
    model_version: str
    bands: tuple[str, ...]
    reference_band: str
    pixel_scale: float
    stamp_size: int
    outskirts_binning: int
    n_basis: int
    n_component: int
    n_shape: int
    shape_radius: float
    reference_psf_sigma: float
    flux_unit: str
    psf_fwhm: NDArray[np.float64]
    sky_sigma: NDArray[np.float64]
    encoder_cutout_size: int
    start_shape: NDArray[np.float64]
    prior_curvature: NDArray[np.float64]
    mean_color: NDArray[np.float64]
    color_sigma: NDArray[np.float64]
    log_prob_percentiles: dict[str, float]
    training: dict[str, Any]
    parity: dict[str, dict[str, float]]
    opset: int
    minimum_onnxruntime: str
    golden_tolerance: dict[str, dict[str, float]]
    licence: str
    files: dict[str, str]
    path: Path
    basis: NDArray[np.float32]
    outskirts: NDArray[np.float32]
    shift: NDArray[np.float32]
    psf: NDArray[np.float32]
    detail_shared: NDArray[np.float32]
    detail_band: NDArray[np.float32]
    sha256: str

    @property
    def n_band(self) -> int:
        """Number of bands."""
        return len(self.bands)

    @property
    def n_latent(self) -> int:
        """Length of a latent, [log_flux per band, offset_x, offset_y, shape]."""
        return self.n_band + 2 + self.n_shape

    @property
    def reference_index(self) -> int:
        """Position of the reference band in `bands`."""
        return self.bands.index(self.reference_band)

    @functools.cached_property
    def full_basis(self) -> NDArray[np.float32]:
        """The basis with its outskirts, in full resolution: float32 (n_basis, s, s), read-only."""
        return _frozen(expand(self.basis, self.outskirts, self.outskirts_binning))

    @functools.cached_property
    def basis_sum(self) -> NDArray[np.float64]:
        """Sum over pixels of each basis function, outskirts included: float64 (n_basis,), read-only."""
        return _frozen(self.full_basis.sum((1, 2), dtype=np.float64))

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths for the symbols in `GRAPHS`."""
        return graph_sizes(n_band=self.n_band, n_basis=self.n_basis, n_component=self.n_component,
                           n_shape=self.n_shape, cutout_size=self.encoder_cutout_size)

    def read(self, name: str) -> bytes:
        """Return the contents of a file of the bundle, after another check of its hash."""
        return _read(self.path, name, self.files[name])


def load_bundle(name_or_path: str | Path) -> Bundle:
    """Read and check a bundle.

    Parameters
    ----------
    name_or_path : str or Path
        Name of a bundle that ships with the package ("lsst"), or a bundle's folder.

    Returns
    -------
    Bundle

    Raises
    ------
    BundleError
        The bundle does not exist, is damaged, or has another format revision. The message names the file or key.
    """
    path = _locate(name_or_path)
    text = _read(path, MANIFEST, None)
    manifest = parse_manifest(text, f"bundle {path}: {MANIFEST}")
    files = manifest["files"]
    entries = [entry.name for entry in itertools.islice(path.iterdir(), MAX_ENTRIES + 1)]
    if len(entries) > MAX_ENTRIES:
        raise BundleError(f"bundle {path}: more than {MAX_ENTRIES} files")
    present = set(entries) - {MANIFEST}
    if missing := sorted(set(files) - present):
        raise BundleError(f"bundle {path}: files listed in {MANIFEST} but missing: {missing}")
    if unlisted := sorted(present - set(files)):
        raise BundleError(f"bundle {path}: files present but not listed in {MANIFEST}: {unlisted}")
    contents = {name: _read(path, name, digest) for name, digest in files.items()}
    for name, graph in GRAPHS.items():
        check_onnx(contents[f"{name}.onnx"], f"bundle {path}: {name}.onnx", graph)
    arrays: dict[str, Any] = {name.removesuffix(".npy"): _frozen(read_array(contents[name], f"bundle {path}: {name}"))
                              for name in ARRAYS}
    values = manifest | {key: _frozen(np.array(manifest[key], np.float64)) for key in (*VECTORS, "prior_curvature")}
    values["bands"] = tuple(manifest["bands"])
    bundle = Bundle(**values, **arrays, path=path, sha256=hashlib.sha256(text).hexdigest())
    _check_shapes(bundle)
    return bundle


def _locate(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if not path.is_dir() and len(path.parts) == 1 and (SHIPPED / path).is_dir():
        path = SHIPPED / path
    if not path.is_dir():
        shipped = sorted(entry.name for entry in SHIPPED.iterdir()) if SHIPPED.is_dir() else []
        raise BundleError(f"no bundle {str(name_or_path)!r}: neither a folder nor a shipped bundle {shipped}")
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}")
    return path


def _read(path: Path, name: str, digest: str | None) -> bytes:
    limit = MAX_FILE_BYTES if digest is not None else min(MAX_MANIFEST_BYTES, MAX_FILE_BYTES)
    # A package manager may install files as links. Elsewhere, links could lead out of the checked folder.
    follow = 0 if path.parent == SHIPPED else getattr(os, "O_NOFOLLOW", 0)
    # Without O_NONBLOCK, opening a named pipe waits for a writer for ever.
    flags = os.O_RDONLY | follow | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if follow and (path / name).is_symlink():
            raise BundleError(f"bundle {path}: {name} is a symbolic link; a bundle's files lie in its folder")
        with open(os.open(path / name, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BundleError(f"bundle {path}: {name} is not a regular file")
            content = file.read(limit + 1)
    except OSError as error:
        raise BundleError(f"bundle {path}: {name} cannot be read: {error}") from error
    if len(content) > limit:
        raise BundleError(f"bundle {path}: {name} is larger than {limit} bytes")
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise BundleError(f"bundle {path}: {name} is damaged: its SHA-256 is not the manifest's")
    return content


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False  # one bundle serves many threads
    return array


def _check_shapes(bundle: Bundle) -> None:
    size, n_basis = bundle.stamp_size, bundle.n_basis
    q = bundle.psf.shape[-1] if bundle.psf.ndim else 0
    n_shared, n_band_mode = (modes.shape[0] if modes.ndim else 0
                             for modes in (bundle.detail_shared, bundle.detail_band))
    n_cell = bundle.outskirts.shape[-1] if bundle.outskirts.ndim else 0
    for name, expected in (("basis", (n_basis, size, size)), ("outskirts", (n_basis, n_cell, n_cell)),
                           ("shift", (2, n_basis, n_basis)), ("psf", (bundle.n_band, q, q)),
                           ("detail_shared", (n_shared, n_basis)), ("detail_band", (n_band_mode, n_basis))):
        shape = getattr(bundle, name).shape
        if shape != expected:
            raise BundleError(f"bundle {bundle.path}: {name}.npy: expected shape {expected}, got {shape}")
    if q % 2 == 0:
        raise BundleError(f"bundle {bundle.path}: psf.npy: expected odd-sized images, got {q} x {q}")
    if n_cell:
        _check_outskirts(bundle)


def _check_outskirts(bundle: Bundle) -> None:
    where = f"bundle {bundle.path}: outskirts.npy"
    n_cell, side, rest = bundle.outskirts.shape[-1], *divmod(bundle.stamp_size, bundle.outskirts_binning)
    if rest or n_cell % 2 == 0 or n_cell < side:
        raise BundleError(f"{where}: a core of {bundle.stamp_size} pixels and {n_cell} x {n_cell} cells of "
                          f"{bundle.outskirts_binning} pixels do not fit: expected a core of whole cells, and an odd "
                          "number of cells that cover it")
    n_byte = bundle.basis.itemsize * bundle.n_basis * (n_cell * bundle.outskirts_binning) ** 2
    if n_byte > MAX_BASIS_BYTES:
        raise BundleError(f"{where}: {n_cell} x {n_cell} cells of {bundle.outskirts_binning} pixels make a basis of "
                          f"{n_byte} bytes, more than {MAX_BASIS_BYTES}")
    core = slice((n_cell - side) // 2, (n_cell + side) // 2)
    if bundle.outskirts[:, core, core].any():
        raise BundleError(f"{where}: expected zeros in the core")
