"""The command line: ``deblendrt run``, ``merge``, ``alerts``, ``verify``, ``model``, ``build``, ``doctor``, ``flags``.

The exit status is 0 for success, 1 for a problem with the data, a file or the installation (one line on stderr) or if
no source was fitted, and 2 for a wrong command.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from deblendrt.engine.adapters.cli import doctor
from deblendrt.engine.files.installation import n_usable_cpu, package_version

SOLVERS = ("gauss_newton", "adam")
STARTS = ("linear", "encoder")
ZEROS = ("missing", "data")
SKIES = ("subtracted", "fit")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.function(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `deblendrt flags | head` closes the pipe; Python must not report it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if arguments.debug or not isinstance(error, _problems()):
            raise
        text = _sentence(error)
        print(f"deblendrt: error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("deblendrt: interrupted", file=sys.stderr)
        return 130


def _sentence(error: Exception) -> str:
    """Return an error as one line. An error of the operating system, ``[Errno 17] ...``, becomes a sentence."""
    if not isinstance(error, OSError) or error.errno is None or not error.strerror:
        return " ".join(str(error).split()) or type(error).__name__
    reasons = {errno.EEXIST: "exists already", errno.EACCES: "no permission", errno.EPERM: "no permission",
               errno.ENOSPC: "no space is left on the device", errno.EDQUOT: "the quota is used up",
               errno.EROFS: "the file system cannot be written to", errno.ENOENT: "no such file or folder",
               errno.ENOTDIR: "a part of the path is a file, expected a folder", errno.EISDIR: "is a folder"}
    reason = reasons.get(error.errno, error.strerror.lower())
    path = error.filename2 or error.filename
    path = os.fsdecode(path) if isinstance(path, str | bytes) else ""
    name = re.sub(r"\.([^/]+)\.[0-9a-f]{16}\.partial$", r"\1", path)  # the temporary name of a file that is written
    return f"{name}: {reason}" if name else reason


def _problems() -> tuple[type[Exception], ...]:
    """Return the classes of errors of the data, a file or the installation; other errors are faults of the program."""
    from deblendrt.cuda.driver.device import DeviceError  # imported here: `--help` and `--version` must stay instant

    return ValueError, OSError, ImportError, MemoryError, NotImplementedError, DeviceError  # BundleError: a ValueError


def parser() -> argparse.ArgumentParser:
    """Return the argument parser with all commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    root = argparse.ArgumentParser(prog="deblendrt", description="Separate overlapping galaxies in survey images.")
    root.add_argument("--version", action="version", version=f"deblendrt {package_version('deblendrt') or 'unknown'}")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        parents=[common],
        help="deblend a FITS image",
        description="Deblend a FITS image: writes DIR/catalog.fits (a row per source), DIR/images.fits (model and "
        "residual) and, with matplotlib, DIR/overview.png and DIR/sources*.png.",
    )
    _add_run_arguments(run)
    run.set_defaults(function=_run)

    merge = commands.add_parser("merge", parents=[common], help="make one catalogue of the results of all shards",
                                description="Write one catalogue of the results of `deblendrt run --shard`. The exit "
                                "status is 1 unless every input is there once.")
    merge.add_argument("folder", type=Path, metavar="DIR", help="the --out of the shards")
    merge.add_argument("--out", type=Path, required=True, metavar="FILE", help="FITS, or .parquet")
    merge.add_argument("--partial", action="store_true", help="merge the units that are there")
    merge.add_argument("--overwrite", action="store_true", help="replace the file")
    merge.set_defaults(function=_merge)

    verify = commands.add_parser("verify", parents=[common], help="check a model bundle's hashes and stored results")
    verify.add_argument("bundle", nargs="?", default="lsst", metavar="BUNDLE", help="bundled name or a folder")
    verify.set_defaults(function=_verify)

    model = commands.add_parser("model", parents=[common], help="describe a model bundle")
    model.add_argument("bundle", nargs="?", default="lsst", metavar="NAME|PATH", help="bundled name or a folder")
    model.set_defaults(function=_model)

    build = commands.add_parser(
        "build",
        parents=[common],
        help="build a model's TensorRT plans before their first use",
        description="Build the TensorRT plans of a model bundle and keep them in the cache (DEBLENDRT_CACHE, else "
        "~/.cache/deblendrt), where a runtime with the same settings on the same kind of GPU finds them.",
    )
    build.add_argument("bundle", nargs="?", default="lsst", metavar="NAME|PATH", help="bundled name or a folder")
    build.add_argument("--package", choices=("auto", "tensorrt", "tensorrt_rtx"), default="auto")
    build.add_argument("--rows", type=_count, default=1024, metavar="N", help="sources at a time (default 1024)")
    build.add_argument("--precision", choices=("fp32", "tf32"), default="fp32", help="precision of matrix products")
    build.add_argument("--capability", type=_capability, metavar="X.Y", help="compute capability of the "
                       "plans' GPU (default: this machine's); only tensorrt_rtx builds for others")  # fmt: skip
    build.set_defaults(function=_build)

    check = commands.add_parser("doctor", parents=[common], help="report packages, providers, devices and models")
    check.set_defaults(function=_doctor)

    alerts = commands.add_parser("alerts", parents=[common], help="deblend an alert stream: Kafka in, Kafka out")
    _add_alerts_arguments(alerts)
    alerts.set_defaults(function=_alerts)

    flags = commands.add_parser("flags", parents=[common], help="list the catalogue's flags and their meanings")
    flags.set_defaults(function=_flags)
    return root


def _add_run_arguments(run: argparse.ArgumentParser) -> None:
    run.add_argument("image", type=Path, nargs="*", metavar="IMAGE", help="FITS file, see deblendrt.engine.files.fits; "
                     "with --shard any number, folders, lists (.txt), or catalogues of cutouts")  # fmt: skip
    run.add_argument("--band", action="append", metavar="BAND=FILE", help="an image file for each band, in place of "
                     "IMAGE: --band g=g.fits --band r=r.fits")  # fmt: skip
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    run.add_argument("--overwrite", action="store_true", help="replace results that are there")

    sources = run.add_argument_group("sources")
    sources.add_argument("--catalog", type=Path, metavar="CAT", help="FITS, VOTable, Parquet, ECSV, CSV or other text "
                         "with x, y (0-based) or ra, dec, and id, kind; default: the image file's CENTERS")  # fmt: skip
    sources.add_argument("--one-based", action="store_true", help="the catalogue, or CENTERS, counts pixels from 1")
    sources.add_argument("--columns", metavar="x=NAME,y=NAME", help="the catalogue's columns for x, y, ra, dec, id, "
                         "kind, by name, or by number from 1")  # fmt: skip
    sources.add_argument("--detect", action="store_true", help="find the sources with SEP instead of a catalogue")
    sources.add_argument("--find-missed", action="store_true", help="add peaks of the residual and fit once more")
    sources.add_argument("--kind", choices=("galaxy", "star", "auto"), help="kind of all sources; auto: the "
                         "engine decides (default: the catalogue's column kind, else galaxy)")  # fmt: skip
    sources.add_argument("--star-fraction", type=float, default=0.1, metavar="P", help="prior probability that an auto "
                         "source is a star (default 0.1)")  # fmt: skip
    sources.add_argument("--threshold", type=float, default=3.0, metavar="SIGMA", help="limit of --detect (default 3)")

    data = run.add_argument_group("data that the image file lacks")
    data.add_argument("--bands", metavar="ugrizy", help="bands to read: gri or g,r,i; the names in file "
                      "order if the file names none; g=HSC-G,r=HSC-R takes a file's bands by other names")  # fmt: skip
    data.add_argument("--zero-point", type=_zero_point, metavar="MAG", help="AB magnitude of one count; for each band "
                      "27,27.5 or g=27,r=27.5")  # fmt: skip
    for name, what in (("variance", "variance"), ("weight", "inverse variance"), ("error", "standard deviation"),
                       ("mask", "mask")):
        data.add_argument(f"--{name}", action="append", metavar="[BAND=]FILE", help=f"{what} of the image; for each "
                          "band a file, or one file with all bands")  # fmt: skip
    data.add_argument("--pixel-scale", type=_positive, metavar="ARCSEC", help="must be the model's within 2%%")
    data.add_argument("--psf", action="append", metavar="[BAND=]PSF", help="PSF of all bands, or of each band: a FITS "
                      "file, a PSFEx file (.psf), or a FWHM in arcsec; \"nominal\" is the model's PSF, which also "
                      "serves, with a note, where the image file has none")  # fmt: skip
    data.add_argument("--bad-bits", type=lambda text: int(text, 0), metavar="BITS", help="mask bits of bad pixels")
    data.add_argument("--zeros", choices=ZEROS, default="missing", help="data: regions of exact zeros in a noisy image "
                      "are data (default: they are masked, with a note and a flag)")  # fmt: skip
    data.add_argument("--any-compression", action="store_true", help="also read PLIO and HCOMPRESS, from files that "
                      "you trust")  # fmt: skip

    fit = run.add_argument_group("fit")
    fit.add_argument("--model", default="lsst", metavar="NAME|PATH", help="model bundle (default lsst)")
    fit.add_argument("--device", default="cpu", help="cpu (default), or a device that `deblendrt doctor` lists")
    fit.add_argument("--solver", choices=SOLVERS, default="gauss_newton")
    fit.add_argument("--start", choices=STARTS, default="encoder")
    fit.add_argument("--iterations", type=_count, metavar="N", help="default: the solver's")
    fit.add_argument("--threads", type=_count, default=n_usable_cpu(), metavar="N", help="default: all cores")
    fit.add_argument(
        "--center-sigma",
        type=_positive,
        default=0.2,
        metavar="PIXEL",
        help="standard deviation of the positions' errors (default 0.2)",
    )
    fit.add_argument("--aperture", type=_positive, default=1.2, metavar="ARCSEC", help="diameter of the aperture of "
                     "aperture_flux (default 1.2)")  # fmt: skip
    fit.add_argument("--no-detail", action="store_true", help="galaxies as the decoder draws them, without detail")
    fit.add_argument("--sky", choices=SKIES, default="subtracted", help="fit: fit a constant per band along with the "
                     "sources (default subtracted)")  # fmt: skip
    fit.add_argument("--no-robust", action="store_true", help="plain Gaussian likelihood, without robust weights")

    many = run.add_argument_group("many inputs", "results: `deblendrt merge DIR`")
    many.add_argument("--shard", metavar="i/N", help="deblend every N-th unit of the inputs, from unit i (0 to "
                      "N - 1); the same command continues after a crash")  # fmt: skip
    many.add_argument("--cutouts", action="store_true", help="FITS inputs are catalogues of cutouts, see "
                      "`deblendrt.engine.files.cutouts`; Parquet always is")  # fmt: skip
    many.add_argument("--retry-failed", action="store_true", help="deblend units with failed inputs again")
    many.add_argument("--max-kills", type=_count, metavar="N", help="give an input up after N processes were killed "
                      "while they deblended it (default 2)")  # fmt: skip

    output = run.add_argument_group("output")
    output.add_argument("--stamps", action="store_true", help="also write every source's model to DIR/stamps.fits")
    output.add_argument("--no-plot", action="store_true", help="no figures")
    output.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _add_alerts_arguments(alerts: argparse.ArgumentParser) -> None:
    alerts.add_argument("--config", type=Path, metavar="TOML", help="all settings, see docs/embedding/alerts.md;"
                        " the options below override it")  # fmt: skip
    alerts.add_argument("--brokers", metavar="HOST:PORT,...")
    alerts.add_argument("--topic", dest="topics", action="append", help="topic of alerts; may be repeated")
    alerts.add_argument("--out-topic", metavar="TOPIC", help="topic of the results, a record per alert")
    alerts.add_argument("--dead-letter-topic", metavar="TOPIC", help="topic of messages that are no alerts")
    alerts.add_argument("--group", help="consumer group (default deblendrt)")
    alerts.add_argument("--schema", metavar="AVSC", help="schema of records without a schema or its number")
    alerts.add_argument("--catalog", metavar="CAT", help="table of known sources: ra, dec, optionally id, kind")
    alerts.add_argument("--device", help="cpu (default), or a device that `deblendrt doctor` lists")
    alerts.add_argument("--threads", type=_count, metavar="N")
    alerts.add_argument("--max-batch", type=_count, metavar="N", help="most alerts in a batch (default 32)")
    alerts.add_argument("--max-wait", type=_finite, metavar="S", help="longest wait for a batch (default 0.2)")
    alerts.add_argument("--http", metavar="HOST:PORT", help="metrics and health check (default 127.0.0.1:9464)")
    alerts.add_argument("--print-schema", action="store_true", help="print the Avro schema of the results and exit")


def _zero_point(text: str) -> float | list[float] | dict[str, float]:
    from deblendrt.engine.adapters.image_inputs import told_zero_point

    try:
        value = told_zero_point(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    numbers = [value] if isinstance(value, float) else value.values() if isinstance(value, dict) else value
    if not all(abs(number) < float("inf") for number in numbers):
        raise argparse.ArgumentTypeError(f"expected finite numbers, got {text}")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text}")
    return value


def _positive(text: str) -> float:
    value = _finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def _run(arguments: argparse.Namespace) -> int:
    if bool(arguments.image) == bool(arguments.band):
        raise ValueError("IMAGE: expected an image file, or --band BAND=FILE for each band, not both")
    if arguments.shard is not None:
        if arguments.band:
            raise ValueError("--band: for one image; with --shard give files with all bands")
        from deblendrt.engine.adapters.shards import run_shard

        arguments.shard = run_shard.parse_shard(arguments.shard)
        run_shard.run_shard(arguments)
        return 0
    if len(arguments.image) > 1 or arguments.cutouts or arguments.retry_failed or arguments.max_kills:
        raise ValueError("several inputs, --cutouts, --retry-failed and --max-kills are for --shard: say --shard 0/1 "
                         "to do all")
    from deblendrt.engine.adapters.cli.deblend_files import deblend_files

    if arguments.band:
        from deblendrt.engine.adapters.image_inputs import by_band

        arguments.image = by_band("band", arguments.band)
        if not isinstance(arguments.image, dict):
            raise ValueError(f"--band: expected BAND=FILE, got {arguments.band[0]}")
    else:
        arguments.image = arguments.image[0]
    return deblend_files(arguments)


def _merge(arguments: argparse.Namespace) -> int:
    from deblendrt.engine.adapters.shards.merge import merge

    done = merge(arguments.folder, arguments.out, partial=arguments.partial, overwrite=arguments.overwrite)
    print(f"{done.n_input} inputs, {done.n_row} rows, {done.n_failed} inputs failed; wrote {arguments.out}")
    if done.missing:
        print(f"{len(done.missing)} units are not there")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from deblendrt.engine.model.verification import verify_bundle

    for line in verify_bundle(arguments.bundle):
        print(line)
    return 0


def _model(arguments: argparse.Namespace) -> int:
    from deblendrt.engine.model.bundle import load_bundle

    bundle = load_bundle(arguments.bundle)
    fwhm = ", ".join(f"{band} {value:.2f}" for band, value in zip(bundle.bands, bundle.psf_fwhm, strict=True))
    sigma = ", ".join(f"{band} {value:.2f}" for band, value in zip(bundle.bands, bundle.sky_sigma, strict=True))
    size = sum(path.stat().st_size for path in Path(bundle.path).iterdir() if path.is_file())
    rows = {
        "model": f"{bundle.name} {bundle.model_version}",
        "folder": f"{bundle.path} ({size / 1e6:.1f} MB)",
        "bands": f"{', '.join(bundle.bands)} (reference {bundle.reference_band})",
        "pixel scale": f"{bundle.pixel_scale} arcsec",
        "stamp": f"{bundle.stamp_size} x {bundle.stamp_size} pixel, with outskirts {bundle.full_basis.shape[-1]}",
        "basis": f"{bundle.n_basis} images, reference PSF sigma {bundle.reference_psf_sigma} pixel",
        "latent": f"{len(bundle.bands)} fluxes, 2 offsets, {bundle.n_shape} shapes; {bundle.n_component} components",
        "nominal PSF": f"FWHM {fwhm} arcsec",
        "sky sigma": f"{sigma} {bundle.flux_unit} per pixel",
        "graphs": f"opset {bundle.opset}, onnxruntime >= {bundle.minimum_onnxruntime}",
        "licence": str(bundle.licence),
    }
    for key, value in rows.items():
        print(f"{key:<12} {value}")
    population = bundle.training.get("population", {})
    for key, value in population.items() if isinstance(population, dict) else [("population", population)]:
        print(f"trained on   {key}: {value}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from deblendrt.engine.model.bundle import load_bundle
    from deblendrt.engine.model.tensorrt import build_all

    bundle, capability, package = load_bundle(arguments.bundle), arguments.capability, arguments.package
    if capability is not None and package == "tensorrt":
        raise ValueError("--capability: tensorrt builds for this machine's GPU only, tensorrt_rtx for any")
    if capability is not None:
        package = "tensorrt_rtx"
    else:
        from deblendrt.cuda.driver.cuda_device import open_device

        device = open_device()
        capability = device.capability
        device.close()
    for line in build_all(bundle, package=package, capability=capability, n_row=arguments.rows,
                          precision=arguments.precision):
        print(line, flush=True)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    for line in doctor.report():
        print(line)
    return 0


def _alerts(arguments: argparse.Namespace) -> int:
    if arguments.print_schema:
        from deblendrt.engine.adapters.alerts.scenes import SCHEMA

        print(SCHEMA.read_text(), end="")
        return 0
    from deblendrt.engine.adapters.alerts import read_settings, run_worker

    own = {name: value for name, value in vars(arguments).items()
           if name not in ("config", "debug", "function", "print_schema")}
    run_worker(read_settings(arguments.config, **own))
    return 0


def _flags(arguments: argparse.Namespace) -> int:
    from deblendrt.engine.scene.flags import DESCRIPTIONS, Flag

    for flag in Flag:
        print(f"{flag.value.bit_length() - 1:>3} {flag.value:>8}  {flag.name:<20} {DESCRIPTIONS[flag]}")
    return 0
