"""`deblendrt-export`: a training checkpoint to a model bundle."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

# Exit codes. argparse itself leaves with 2 on a wrong argument.
FAILED, NO_INPUT, UNAVAILABLE = 1, 3, 4


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="deblendrt-export", description="Export a training checkpoint to a model bundle, and verify the bundle.",
        epilog=f"Exit codes: 0 done, {FAILED} the export or its verification failed, 2 wrong arguments, {NO_INPUT} no "
               f"checkpoint or the output exists, {UNAVAILABLE} something is not installed.")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of deblendrt-train")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the bundle to write")
    parser.add_argument("--model-version", default="1", help="stored in the manifest (default 1)")
    parser.add_argument("--licence", default="BSD-3-Clause", help="of the weights (default BSD-3-Clause)")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle at --out")
    parser.add_argument("--check-tensorrt", action="store_true",
                        help="also parse and build every graph under TensorRT (tensorrt-rtx; needs no GPU)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    if missing := [name for name in ("torch", "zuko", "galsim", "galcheat", "onnx", "onnxscript")
                   if importlib.util.find_spec(name) is None]:
        return _fail(f"not installed: {', '.join(missing)} (pip install 'deblendrt[train]')", UNAVAILABLE)
    from deblendrt.engine.bundle import BundleError
    from deblendrt.engine.manifest import GRAPHS
    from deblendrt.export.bundle import check_target, write_bundle
    from deblendrt.export.graphs import ExportError
    from deblendrt.export.tensorrt import TensorRTError, check_graph, unavailable
    from deblendrt.training.checkpoint import load_model

    if arguments.check_tensorrt and (reason := unavailable()):
        return _fail(f"--check-tensorrt: {reason}", UNAVAILABLE)
    try:
        check_target(arguments.out, overwrite=arguments.overwrite)  # before the minute of work, not after it
        model = load_model(arguments.checkpoint)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, ValueError) as error:
        return _fail(str(error), NO_INPUT)
    try:
        lines = write_bundle(model, arguments.out, model_version=arguments.model_version, licence=arguments.licence,
                             overwrite=arguments.overwrite)
        print("\n".join(lines))
        if arguments.check_tensorrt:
            for name in GRAPHS:
                size = check_graph((arguments.out / f"{name}.onnx").read_bytes())
                print(f"{name}: parses and builds under TensorRT ({size / 1e6:.1f} MB)")
    except (ExportError, BundleError, TensorRTError, ValueError, OSError) as error:
        return _fail(str(error), FAILED)
    print(f"wrote {arguments.out}")
    return 0


def _fail(message: str, code: int) -> int:
    print(f"deblendrt-export: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
