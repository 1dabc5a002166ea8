"""Accuracy on the frozen test scenes; needs ``deblendrt[train]``.

    python -m perf.studies.accuracy

Both solvers deblend the 200 scenes of `perf.scenes` in one call each, given the true positions, variance and PSF; with
the default robust likelihood and with the plain one. Final objectives are compared under the plain one, which is the
same function for both solvers (the robust bound depends on the model). The reported errors of the default run, and of
one more with errors in the given centres, are compared with the truth, and `uncertainty` compares covariances with
noise realisations. All metrics are defined in `perf.metrics`. Written: ``accuracy.json``, ``accuracy.md`` and
``accuracy.png`` in ``perf/results``. Ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from perf import report, scenes
from perf.studies.accuracy import measures, plots


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.studies.accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", default="lsst", help="shipped name or path of a bundle")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the test scenes; ~/.cache/deblendrt")
    parser.add_argument("--n-scene", type=int, default=scenes.N_SCENE, help="fewer, for a quick look")
    parser.add_argument("--solver", action="append", choices=sorted(measures.SOLVERS),
                        help="repeatable; default both. Errors are compared with the truth for the first")
    parser.add_argument("--no-realisations", action="store_true", help="leave out the noise realisations")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the page, figure and JSON file")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    tests = scenes.load_scenes(args.cache, args.n_scene)
    figures, quantities = measures.measure(args.bundle, tests, args.solver or list(measures.SOLVERS),
                                           not args.no_realisations)
    asked = {"--bundle": args.bundle, "--n-scene": args.n_scene}  # folders of this machine are nobody's business
    options = [f" {key} {value}" for key, value in asked.items()
               if value != parser.get_default(key[2:].replace("-", "_"))]
    figures["command"] = "python -m perf.studies.accuracy" + "".join(options)
    figures["seconds"] = time.perf_counter() - start
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "accuracy.json").write_text(json.dumps(figures, indent=1) + "\n")
    plots.draw(quantities, measures.REFERENCE_BAND, args.out / "accuracy.png")
    page = report.accuracy_page(figures)
    (args.out / "accuracy.md").write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
