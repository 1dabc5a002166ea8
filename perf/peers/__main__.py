"""deblendrt beside other deblenders: ``python -m perf.peers --environments FOLDER`` from a clone.

Every deblender gets the same test scenes (`perf.scenes`), in turn, ten scenes at a time, with the true positions, the
variance and the PSF; each on one thread, timed by the processor's clock, which other work on the machine disturbs less
than the wall's, and by the wall's. Peers run in environments of their own, made once by ``python -m
perf.peers.environments FOLDER``; one that is not there gets a line that says why. Metrics: `perf.metrics`. Written:
``peers.json``, ``peers.md`` and ``peers.png`` in ``perf/results``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from perf import report, scenes
from perf.peers import page
from perf.peers.comparison import run_peers


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.peers", description=__doc__.partition("\n")[0])
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="of perf.peers.environments")
    parser.add_argument("--bundle", default="lsst", help="shipped name or path of a bundle")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the test scenes; ~/.cache/deblendrt")
    parser.add_argument("--n-scene", type=int, default=scenes.N_SCENE, help="fewer, for a quick look")
    parser.add_argument("--sources", type=Path, help="also write every source's metrics to this .npz file")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the page, figure and JSON file")
    args = parser.parse_args(argv)
    begin, load = time.perf_counter(), os.getloadavg()[0]
    tests = scenes.load_scenes(args.cache, args.n_scene)
    figures = run_peers(tests, args.environments, bundle=args.bundle, sources=args.sources)
    command = "python -m perf.peers --environments FOLDER" + (
        f" --n-scene {len(tests)}" if len(tests) != scenes.N_SCENE else "")
    figures = {"command": command, "scenes_sha256": tests.sha256, "n_scene": len(tests), **figures,
               "environment": report.environment(), "load": [load, *os.getloadavg()[::2]],
               "seconds": time.perf_counter() - begin}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "peers.json").write_text(json.dumps(figures, indent=1) + "\n")
    page.draw(figures, args.out / "peers.png")
    text = page.markdown(figures)
    (args.out / "peers.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
