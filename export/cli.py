"""`deblendrt-export`: writes a model bundle from a training checkpoint, or graphs for other languages from a bundle."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from deblendrt.engine.solve import constants

# Exit codes. argparse exits with 2 if an argument is wrong.
FAILED, NO_INPUT, UNAVAILABLE = 1, 3, 4

# The check of TensorRT: this package builds without a GPU. Fewest, usual and most sources of its plans.
TENSORRT_PACKAGE, TENSORRT_SOURCES = "tensorrt_rtx", (1, 1024, 4096)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="deblendrt-export", description="Export a training checkpoint to a model bundle, and verify the bundle. "
        "Or export a bundle's solver as one ONNX graph, or as a model repository of NVIDIA Triton.",
        epilog=f"Exit codes: 0 done, {FAILED} the export or its verification failed, 2 wrong arguments, {NO_INPUT} no "
               f"checkpoint, no bundle or the output exists, {UNAVAILABLE} something is not installed.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder of deblendrt-train, to a bundle")
    source.add_argument("--solver", metavar="BUNDLE",
                        help="folder of a bundle or name of a bundled model, to one graph that solves a scene")
    source.add_argument("--detail", metavar="BUNDLE",
                        help="folder of a bundle or name of a bundled model, to a bundle with newly learnt detail")
    source.add_argument("--triton", metavar="BUNDLE",
                        help="folder of a bundle or name of a bundled model, to a model repository")
    parser.add_argument("--out", type=Path, required=True, metavar="PATH",
                        help="folder of the bundle or repository, or file of the graph, to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    bundle = parser.add_argument_group("bundles (--checkpoint)")
    bundle.add_argument("--model-version", default="1", help="stored in the manifest (default 1); also of --detail")
    bundle.add_argument("--licence", default="BSD-3-Clause", help="licence of the weights (default BSD-3-Clause)")
    bundle.add_argument("--check-tensorrt", action="store_true",
                        help="also parse and build every graph under TensorRT (tensorrt-rtx; needs no GPU)")
    detail = parser.add_argument_group("detail (--detail)")
    detail.add_argument("--stamps", type=Path, metavar="PATH",
                        help="FITS file, or folder of files, with images of real galaxies to learn from; "
                             "default: galaxies of the training population")
    detail.add_argument("--galaxies", type=int, default=400, metavar="N", help="galaxies to draw (default 400)")
    detail.add_argument("--scale", type=float, default=1.0, help="factor of the learnt covariance (default 1)")
    detail.add_argument("--shared-light-error", type=float, metavar="K", help="systematic error of fluxes F beneath "
                        "which neighbours have the light o, as a factor of sqrt(F o); default: the bundle's, or 0")
    solver = parser.add_argument_group("solvers (--solver, --triton)")
    solver.add_argument("--sources", type=int, metavar="N", help="most sources of a scene")
    solver.add_argument("--size", type=int, nargs=2, metavar=("NY", "NX"), help="size of the image [pixel]")
    n_iteration = constants.ITERATIONS["gauss_newton"]
    solver.add_argument("--iterations", type=int, default=n_iteration, metavar="N",
                        help=f"iterations of all blends (default {n_iteration}); blends that still move get at most "
                             f"{sum(constants.FURTHER_ROUNDS):g} times as many again")
    solver.add_argument("--no-rounds", action="store_true", help="no blend gets further iterations")
    solver.add_argument("--start", choices=("encoder", "linear"), default="encoder", help="default encoder")
    solver.add_argument("--psf", type=Path, metavar="FITS",
                        help="PSF images (band, y, x), all of the bundle's bands; default: the nominal ones")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.checkpoint is not None:
        return _export_bundle(arguments)
    if arguments.detail is not None:
        return _learn_detail(arguments)
    if arguments.sources is None or arguments.size is None:
        parser.error("--solver and --triton need --sources and --size")
    return _export_solver(arguments)


def _export_bundle(arguments: argparse.Namespace) -> int:
    if missing := [name for name in ("torch", "zuko", "galsim", "galcheat", "onnx", "onnxscript")
                   if importlib.util.find_spec(name) is None]:
        return _fail(f"not installed: {', '.join(missing)} (pip install 'deblendrt[train]')", UNAVAILABLE)
    from deblendrt.engine.model import tensorrt
    from deblendrt.engine.model.bundle import BundleError
    from deblendrt.engine.model.manifest import GRAPHS
    from deblendrt.export.bundle import check_target, write_bundle
    from deblendrt.export.networks.graphs import ExportError
    from deblendrt.training.checkpoint import load_model

    if arguments.check_tensorrt and (reason := tensorrt.why_unavailable(TENSORRT_PACKAGE)):
        return _fail(f"--check-tensorrt: {reason}", UNAVAILABLE)
    try:
        check_target(arguments.out, overwrite=arguments.overwrite)  # before the export, which takes a minute
        model = load_model(arguments.checkpoint)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, ValueError) as error:
        return _fail(str(error), NO_INPUT)
    try:
        lines = write_bundle(model, arguments.out, model_version=arguments.model_version, licence=arguments.licence,
                             overwrite=arguments.overwrite)
        print("\n".join(lines))
        if arguments.check_tensorrt:
            for name in GRAPHS:
                graph = (arguments.out / f"{name}.onnx").read_bytes()
                size = len(tensorrt.build_plan(graph, TENSORRT_PACKAGE, TENSORRT_SOURCES))
                print(f"{name}: parses and builds under TensorRT ({size / 1e6:.1f} MB)")
    except (ExportError, BundleError, tensorrt.TensorRTError, ValueError, OSError) as error:
        return _fail(str(error), FAILED)
    print(f"wrote {arguments.out}")
    return 0


def _learn_detail(arguments: argparse.Namespace) -> int:
    if missing := [name for name in ("torch", "zuko", "galsim", "galcheat", "onnx", "onnxscript")
                   if importlib.util.find_spec(name) is None]:
        return _fail(f"not installed: {', '.join(missing)} (pip install 'deblendrt[train]')", UNAVAILABLE)
    from deblendrt.engine.deblender import Deblender
    from deblendrt.export.bundle import check_target, write_detail
    from deblendrt.training.detail.modes import learn_modes

    try:
        check_target(arguments.out, overwrite=arguments.overwrite)  # before the learning, which takes minutes
        deblender = Deblender.load(arguments.detail)
        learnt = learn_modes(deblender, arguments.stamps, n_galaxy=arguments.galaxies, scale=arguments.scale)
    except (OSError, ValueError) as error:
        return _fail(str(error), NO_INPUT)
    try:
        lines = write_detail(arguments.detail, arguments.out, learnt.shared, learnt.per_band,
                             model_version=arguments.model_version,
                             shared_light_error=arguments.shared_light_error, overwrite=arguments.overwrite)
    except (OSError, ValueError) as error:
        return _fail(str(error), FAILED)
    print("\n".join(lines))
    print(f"detail of {learnt.n_galaxy} galaxies, log evidence of a galaxy +{learnt.evidence:.1f}")
    print(f"wrote {arguments.out}")
    return 0


def _export_solver(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("onnx") is None:
        return _fail("not installed: onnx (pip install 'deblendrt[export]')", UNAVAILABLE)
    from deblendrt.engine.files.fits import read_psf
    from deblendrt.engine.model.bundle import load_bundle
    from deblendrt.export.solver.solver_graph import solver_graph, write_solver
    from deblendrt.export.triton import write_repository

    if arguments.out.exists() and not arguments.overwrite:
        return _fail(f"{arguments.out} exists; --overwrite replaces it", NO_INPUT)
    try:
        bundle = load_bundle(arguments.solver or arguments.triton)
        psf = None if arguments.psf is None else read_psf(arguments.psf, bundle.n_band)
    except (OSError, ValueError) as error:
        return _fail(str(error), NO_INPUT)
    try:
        model = solver_graph(bundle, arguments.sources, tuple(arguments.size), n_iteration=arguments.iterations,
                             psf=psf, start=arguments.start, rounds=not arguments.no_rounds)
        if arguments.solver is not None:
            write_solver(model, arguments.out)
        else:
            write_repository(bundle, model, arguments.out)
    except (OSError, ValueError) as error:
        return _fail(str(error), FAILED)
    print(f"wrote {arguments.out}")
    return 0


def _fail(message: str, code: int) -> int:
    print(f"deblendrt-export: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
