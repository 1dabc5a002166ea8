"""Compare versions of the engine on the frozen cases of `perf.gate.cases`.

    python -m perf compare BASE CANDIDATE [--case NAME ...] [--slower 5] [--size short|full|N] [--pairs 14] [--json OUT]
    python -m perf quick        # this tree against perf/results/release.json: counts and accuracy, no times
    python -m perf release      # write perf/results/release.json
    python -m perf cases        # names, sizes, hashes

BASE and CANDIDATE are git revisions, folders or stored records. The exit status is 1 if the candidate is slower beyond
doubt or less accurate, and 2 if a version could not be run. Tolerances and their reasons: `perf/gate/verdict.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from perf.gate import cases, compare, measure, schema
from perf.report import ROOT


def main(words: list[str] | None = None) -> int:
    """Run one of the commands; returns the exit status."""
    arguments = parse(words)
    if arguments.command == "cases":
        return _cases()
    try:
        if arguments.command == "compare":
            record = compare.compare(arguments.base, arguments.candidate, arguments.case, slower=arguments.slower,
                                     size=arguments.size, pairs=arguments.pairs)
        elif arguments.command == "quick":
            record = compare.compare(str(compare.RELEASE), arguments.tree, compare.QUICK)
        else:
            record = compare.compare(None, arguments.tree, compare.QUICK, pairs=0)
    except (measure.Failed, schema.SchemaError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(compare.report(record))
    if arguments.json is not None:
        schema.write(arguments.json, record)
    return 1 if record["failed"] else 0


def parse(words: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m perf", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    two = commands.add_parser("compare", help="two versions, interleaved")
    two.add_argument("base")
    two.add_argument("candidate")
    two.add_argument("--case", nargs="+", choices=list(cases.CASES), default=list(cases.CASES))
    two.add_argument("--slower", type=float, default=5.0, metavar="PERCENT", help="allowed slowdown")
    two.add_argument("--size", type=_size, default="short", help="short, full, or a number of the case's unit")
    two.add_argument("--pairs", type=int, default=measure.PAIRS,
                     help="timed runs of each version; below 10 no time fails")
    quick = commands.add_parser("quick", help="this tree against the stored record, without times")
    release = commands.add_parser("release", help="write the stored record")
    for command in (quick, release):
        command.add_argument("--tree", default=str(ROOT), help="folder or revision; default: this checkout")
    for command, default in ((two, None), (quick, None), (release, compare.RELEASE)):
        command.add_argument("--json", type=Path, default=default, metavar="OUT", help="store the record")
    commands.add_parser("cases", help="names, sizes, hashes")
    return parser.parse_args(words)


def _size(text: str) -> str:
    if text not in ("short", "full") and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected short, full or a number, got {text!r}")
    return text


def _cases() -> int:
    changed = False
    for name, case in cases.CASES.items():
        found = cases.digest(name, case.short)
        changed |= found != cases.DIGESTS.get(name)
        print(f"{name}: {case.about}; {case.short} or {case.full} {case.unit}\n    {found}"
              + ("" if found == cases.DIGESTS.get(name) else f", frozen {cases.DIGESTS.get(name)}"))
    return int(changed)


if __name__ == "__main__":
    sys.exit(main())
