"""The engine on real HSC blends: hidden pixels, injected galaxies, flags; beside it other deblenders.

    python -m perf.studies.sky DATA_FOLDER [--row NAME[@BUNDLE][=OPTIONS]] [--environments FOLDER] [--solutions FOLDER]

`DATA_FOLDER` has ``hsc_blends`` and ``hst_galaxies.fits``. A row of the tables is a call of the engine; its options are
JSON, such as ``--row 'no detail={"detail": false}'``. The options that all rows share are `SHARED`. Peers run in
environments of `perf.peers.environments`. The folder of solutions keeps the models: a row that is there is not solved
again. Delete its file after a change of the engine or of a bundle.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from deblendrt.engine.deblender import Deblender
from perf import study
from perf.peers.environments import interpreter
from perf.peers.peer import Missing, Peer
from perf.report import environment
from perf.studies.sky import blends, injection, page, worst
from perf.studies.sky.solutions import Solution, solve, solve_with

SHARED: dict[str, Any] = {"kind": "auto"}
OURS = "deblendrt"
PEER_SETTINGS: dict[str, dict[str, Any]] = {"scarlet_lite": {"e_rel": 1e-5, "max_iter": 1000}}


class Row(NamedTuple):
    """A row of the tables: the name, the bundle and further options of a call."""

    name: str
    bundle: str
    options: dict[str, Any]


def parsed(text: str, bundle: str) -> Row:
    """The row that ``NAME[@BUNDLE][=OPTIONS]`` asks for.

    Raises
    ------
    ValueError
        The options are not a JSON object.
    """
    name, _, options = text.partition("=")
    name, _, own = name.partition("@")
    try:
        given = json.loads(options or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"--row: expected a JSON object after =, got {options!r} ({error})") from None
    if not isinstance(given, dict):
        raise ValueError(f"--row: expected a JSON object after =, got {options!r}")
    return Row(name, own or bundle, given)


def main(argv: list[str] | None = None) -> int:
    """Run the study."""
    parser = study.parser("perf.studies.sky", __doc__)
    parser.set_defaults(bundle="hsc")
    parser.add_argument("data", type=Path, help="folder of hsc_blends and hst_galaxies.fits")
    parser.add_argument("--row", action="append", default=[], metavar="NAME[@BUNDLE][=OPTIONS]", help="a further row")
    parser.add_argument("--environments", type=Path, help="folder of the peers' environments; default: no peers")
    parser.add_argument("--solutions", type=Path, default=Path("~/.cache/deblendrt/sky"), help="folder of solutions")
    parser.add_argument("--n-blend", type=int, help="the first so many")
    args = parser.parse_args(argv)
    try:
        rows = [Row(OURS, args.bundle, {}), *(parsed(text, args.bundle) for text in args.row)]
        all_blends = blends.read_blends(args.data)[: args.n_blend]
    except ValueError as error:
        parser.error(str(error))
    scenes = injection.inject_all(all_blends, args.data / "hst_galaxies.fits")
    folder = args.solutions.expanduser()

    def file(*call: Any) -> Path:
        digest = hashlib.sha256(json.dumps([call, len(all_blends)], sort_keys=True).encode()).hexdigest()
        return folder / f"{call[0].replace(' ', '_').replace('/', '_')}-{digest[:8]}.npz"

    found: dict[str, Solution] = {}
    missing: dict[str, str] = {}
    for row in rows:
        path = file(*row)
        if not path.exists():
            print(f"{row.name} ...", file=sys.stderr, flush=True)
            solve(Deblender.load(row.bundle), all_blends, scenes, SHARED | row.options).write(path)
        found[row.name] = Solution.read(path)
    for name, settings in PEER_SETTINGS.items():
        try:
            path = file(name, settings)
            if not path.exists():
                print(f"{name} ...", file=sys.stderr, flush=True)
                folder.mkdir(parents=True, exist_ok=True)
                peer = Peer(name, interpreter(args.environments, name), folder)
                try:
                    solve_with(peer, all_blends, scenes, settings).write(path)
                finally:
                    peer.close()
            found[name] = Solution.read(path)
        except Missing as why:
            missing[name] = str(why)
    parts = {part: {b.number for b in all_blends if part == "all" or (b.number % 2 == 0) == (part == "tuning")}
             for part in blends.PARTS}
    figures: dict[str, Any] = {
        "rows": {name: {part: solution.figures(all_blends, scenes, chosen) for part, chosen in parts.items() if chosen}
                 for name, solution in found.items()},
        "options": {row.name: {"bundle": row.bundle, **SHARED, **row.options} for row in rows} | {
            name: settings for name, settings in PEER_SETTINGS.items() if name in found},
        "missing": missing, "n_peak": sum(len(b.peaks) for b in all_blends), "environment": environment(),
        "galsim": importlib.metadata.version("galsim"), "command": study.command(parser, args)}
    args.out.mkdir(parents=True, exist_ok=True)
    figures["worst"] = worst.draw_worst(all_blends, found[OURS], args.out / "sky.png")
    study.store(args.out, "sky", figures, page.markdown(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
