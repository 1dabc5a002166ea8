"""Accuracy on the frozen test scenes; needs ``deblendrt[train]``.

    python -m perf.studies.accuracy

Each solver deblends the 200 scenes of `perf.scenes` in one call, given the true positions, variance and PSF, under the
default robust likelihood and under the plain likelihood. Final objectives are compared under the plain likelihood,
which is the same function for both solvers; the robust bound depends on the model. The reported errors are compared
with the truth, for the default run and for a run with errors in the given centres. `uncertainty` compares covariances
with noise realisations. The study writes ``accuracy.json``, ``accuracy.md`` and ``accuracy.png`` into ``perf/results``
and takes ten minutes on one core.
"""

from __future__ import annotations

import sys
import time

from perf import scenes, study
from perf.studies.accuracy import measures, page, plots


def main(argv: list[str] | None = None) -> int:
    """Run the study."""
    parser = study.parser("perf.studies.accuracy", __doc__, n_scene=scenes.N_SCENE)
    parser.add_argument("--solver", action="append", choices=sorted(measures.SOLVERS),
                        help="repeatable; default both. Reported errors are tested for the first")
    parser.add_argument("--no-realisations", action="store_true", help="leave out the noise realisations")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    tests = scenes.load_scenes(args.cache, args.n_scene)
    figures, quantities = measures.measure(args.bundle, tests, args.solver or list(measures.SOLVERS),
                                           not args.no_realisations)
    figures |= {"command": study.command(parser, args), "seconds": time.perf_counter() - start}
    study.store(args.out, "accuracy", figures, page.markdown(figures))
    plots.draw(quantities, measures.REFERENCE_BAND, args.out / "accuracy.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
