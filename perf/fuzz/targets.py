"""The targets: functions of the engine that read bytes or arguments made by others."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from perf.fuzz import mutations, seeds
from perf.fuzz.mutations import Mutation

Read = Callable[[bytes], object]


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader to be fuzzed.

    Attributes
    ----------
    name, what : str
    prepare : callable
        Imports what is needed and returns the function that reads an input.
    seeds : callable
        Returns the valid files.
    words : tuple of bytes
        Words of the format.
    structured : tuple of Mutation
    share : float
        Share of all inputs.
    expected : tuple of str
        Names of further exceptions that count as a refusal, beside ValueError, OSError and their subclasses.
    """

    name: str
    what: str
    prepare: Callable[[], Read]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()
    structured: tuple[Mutation, ...] = ()
    share: float = 0.0
    expected: tuple[str, ...] = ()


@functools.cache
def _folder() -> Path:
    """A folder for inputs of readers that take a path; in memory if there is such a file system."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix=f"fuzz-{os.getpid()}-", dir=memory if os.access(memory, os.W_OK) else None)
    return Path(folder)


def clean_up() -> None:
    """Remove the folder."""
    import shutil

    if _folder.cache_info().currsize:
        shutil.rmtree(_folder(), ignore_errors=True)


def _by_path(read: Callable[[Path], object], name: str) -> Read:
    path = _folder() / name

    def write_and_read(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return write_and_read


def _manifest() -> Read:
    from deblendrt.engine.model.manifest import parse_manifest

    return lambda data: parse_manifest(data, "manifest.json")


def _onnx() -> Read:
    from deblendrt.engine.model.onnx_check import check_onnx

    return lambda data: check_onnx(data, "x.onnx")


def _arrays() -> Read:
    from deblendrt.engine.model.array_file import read_archive, read_array

    names = seeds.ARCHIVE_NAMES
    return lambda data: read_archive(data, names, 10**6, "x.npz") if data[:2] == b"PK" else read_array(data, "x.npy")


def _session() -> Read:
    import numpy
    import onnxruntime

    from deblendrt.engine.model.onnx_check import check_onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4

    def read(data: bytes) -> object:
        check_onnx(data, "x.onnx")
        try:
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            return session.run(None, {"x": numpy.zeros((2, 3), numpy.float32)})
        except MemoryError:
            raise
        except Exception as error:  # as the engine does: ONNX Runtime's exceptions have no common base class
            raise ValueError(str(error)) from error

    return read


def _bundle() -> Read:
    """Replace a file of a bundle and make its hash right; the first byte of the input names the file."""
    import json

    from deblendrt.engine.model.bundle import load_bundle

    folder = _folder() / "bundle"
    contents = seeds.bundle_files()
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    manifest = json.loads(contents["manifest.json"])
    names = sorted(set(contents) - {"manifest.json"})

    def read(data: bytes) -> object:
        name = names[data[0] % len(names)] if data else names[0]
        (folder / name).write_bytes(data[1:])
        files = manifest["files"] | {name: hashlib.sha256(data[1:]).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest | {"files": files}))
        try:
            return load_bundle(folder)
        finally:
            (folder / name).write_bytes(contents[name])

    return read


def _header() -> Read:
    from astropy.io import fits

    from deblendrt.engine.files import fits_header

    def read(data: bytes) -> object:
        try:
            header = fits.Header.fromstring(data)
        except Exception as error:  # an error of astropy in a card; another target reads whole files
            raise ValueError(str(error)) from error
        path = Path("x.fits")
        wcs = fits_header.celestial_wcs(path, header)
        return (fits_header.zero_point(path, header), fits_header.bands(header),
                fits_header.pixel_scale(path, wcs, header))

    return read


def _fits() -> Read:
    from deblendrt.engine.files.fits import read_image

    return _by_path(read_image, "x.fits")


def _psf() -> Read:
    from deblendrt.engine.files.fits import read_psf

    return _by_path(lambda path: read_psf(path, 3), "psf.fits")


def _catalog() -> Read:
    from deblendrt.engine.files.catalogues import read_source_list

    places = {b"SIMPLE": "x.fits", b"# %ECS": "x.ecsv", b"# %ECV": "x.ecsv"}
    paths = {start: _folder() / name for start, name in places.items()}
    other = _folder() / "x.csv"

    def read(data: bytes) -> object:
        path = paths.get(data[:6], other)
        path.write_bytes(data)
        return read_source_list(path)

    return read


def _result() -> Read:
    from deblendrt.engine.deblender import Deblender
    from deblendrt.engine.result.result import DeblendResult

    deblender = Deblender.load("lsst")

    def everything(path: Path) -> object:
        result = DeblendResult.read(path, model=deblender)
        return result.source_start

    return _by_path(everything, "r.fits")


def _result_catalog() -> Read:
    from deblendrt.engine.result.result import DeblendResult

    return _by_path(DeblendResult.read_catalog, "r.fits")


def _scene() -> Read:
    from perf.fuzz.arguments import call

    return call


def _alert() -> Read:
    from deblendrt.engine.adapters.alerts.packets import Schemas, load_schema, parse_alert

    path = _folder() / "alert.avsc"
    path.write_text(seeds.alert_schema())
    schema = load_schema(path)
    schemas = Schemas({7: schema})
    return lambda data: parse_alert(data, schemas)


def _alert_schema() -> Read:
    from deblendrt.engine.adapters.alerts.packets import Schemas, parse_alert

    return lambda data: parse_alert(seeds.container(data, seeds.alert_record()), Schemas())


def _stamp() -> Read:
    from deblendrt.engine.adapters.alerts.packets import read_cutout

    return read_cutout


FITS_WORDS = seeds.FITS_WORDS
ALL = (
    Target("manifest", "`parse_manifest`: a bundle's manifest", _manifest, seeds.manifests, seeds.JSON_WORDS,
           (mutations.tree,), 0.16),
    Target("onnx", "`check_onnx`: a bundle's graphs", _onnx, seeds.graphs, seeds.ONNX_WORDS, (mutations.fields,), 0.08),
    Target("arrays", "`read_array`, `read_archive`: a bundle's arrays", _arrays, seeds.arrays, seeds.ARRAY_WORDS, (),
           0.31),
    Target("session", "ONNX Runtime, which loads and runs a small graph behind `check_onnx`", _session, seeds.sessions,
           seeds.ONNX_WORDS, (mutations.fields,), 0.004),
    Target("bundle", "`load_bundle`: one file of a bundle damaged, its hash made right", _bundle, seeds.bundles,
           seeds.ONNX_WORDS, (), 0.003),
    Target("header", "`fits_header`: units, bands, scale and WCS of a header", _header, seeds.headers, FITS_WORDS,
           (mutations.card,), 0.02, ("VerifyError",)),  # astropy's, for a card; `open_fits` turns it into an OSError
    Target("fits", "`read_image`: a FITS file", _fits, seeds.images, FITS_WORDS, (mutations.card,), 0.02),
    Target("psf", "`read_psf`: a FITS file of PSFs", _psf, seeds.psfs, FITS_WORDS, (mutations.card,), 0.01),
    Target("catalog", "`read_source_list`: CSV, ECSV and FITS tables", _catalog, seeds.catalogs,
           (*seeds.CATALOG_WORDS, *FITS_WORDS), (mutations.card, mutations.number), 0.012),
    Target("result", "`DeblendResult.read`", _result, seeds.results, FITS_WORDS, (mutations.card,), 0.0005),
    Target("result_catalog", "`DeblendResult.read_catalog`", _result_catalog, seeds.results, FITS_WORDS,
           (mutations.card,), 0.0005),
    Target("scene", "`make_scenes`: the arguments of `deblend_batch`", _scene, seeds.numbers, (), (), 0.08),
    Target("alert", "`parse_alert`: Avro messages", _alert, seeds.alerts, seeds.AVRO_WORDS, (), 0.2),
    Target("alert_schema", "`parse_alert`: the schema inside a container", _alert_schema, seeds.alert_schemas,
           seeds.AVRO_WORDS, (mutations.tree,), 0.01),
    Target("stamp", "`read_cutout`: cutouts of alerts", _stamp, seeds.stamps, FITS_WORDS, (mutations.card,), 0.09),
)


def targets() -> dict[str, Target]:
    """The targets by name."""
    return {target.name: target for target in ALL}


def has_atheris() -> bool:
    """True if inputs can be chosen by coverage."""
    return importlib.util.find_spec("atheris") is not None


def make_input(target: Target, files: Sequence[bytes], rng: random.Random) -> bytes:
    """Make an input of the mutating driver."""
    if rng.random() < 0.001:
        return rng.choice(files)  # undamaged, because a reader that refuses everything must not pass
    return mutations.mutate(rng, rng.choice(files), target.words, target.structured, files)
