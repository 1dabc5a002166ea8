"""deblendrt beside other deblenders.

    python -m perf.peers --environments FOLDER

Every deblender gets the same test scenes (`perf.scenes`), in turn, ten scenes at a time, with the true positions, the
variance and the PSF. Each runs on one thread and is timed by processor time and by wall time; other work on the machine
disturbs processor time less. Peers run in environments of their own, which ``python -m perf.peers.environments FOLDER``
makes once. For a missing peer the page says why. The command writes ``peers.json``, ``peers.md`` and ``peers.png`` into
``perf/results``.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from perf import report, scenes, study
from perf.peers import page
from perf.peers.comparison import run_peers


def main(argv: list[str] | None = None) -> int:
    """Run the comparison."""
    parser = study.parser("perf.peers", __doc__, n_scene=scenes.N_SCENE)
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="of perf.peers.environments")
    parser.add_argument("--sources", type=Path, help="also write every source's metrics to this .npz file")
    args = parser.parse_args(argv)
    begin, load = time.perf_counter(), os.getloadavg()[0]
    tests = scenes.load_scenes(args.cache, args.n_scene)
    figures = run_peers(tests, args.environments, bundle=args.bundle, sources=args.sources)
    figures = {"command": f"{study.command(parser, args)} --environments FOLDER", "scenes_sha256": tests.sha256,
               "n_scene": len(tests), **figures, "environment": report.environment(),
               "load": [load, *os.getloadavg()[::2]], "seconds": time.perf_counter() - begin}
    study.store(args.out, "peers", figures, page.markdown(figures))
    page.draw(figures, args.out / "peers.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
