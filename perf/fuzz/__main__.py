"""Command line of `perf.fuzz`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import perf.fuzz
from perf.fuzz import campaign, child, page, targets


def main() -> None:
    """Run a campaign, write the page, tamper with bundles, or read a stored input."""
    parser = argparse.ArgumentParser(prog="python -m perf.fuzz", description=perf.fuzz.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    known = targets.targets()
    parser.add_argument("--target", nargs="+", choices=list(known), default=list(known))
    parser.add_argument("--inputs", type=int, default=10_000_000, help="of all targets together (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--driver", choices=("mutate", "atheris"), default="mutate")
    parser.add_argument("--state", type=Path, default=Path("out/fuzz"), help="folder (default: %(default)s)")
    parser.add_argument("--page", action="store_true", help="write the page of what the state folder holds")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"))
    parser.add_argument("--tamper", action="store_true")
    arguments = parser.parse_args()
    if arguments.replay:
        name, path = arguments.replay
        read = known[name].prepare()
        with child.limits():
            print(read(Path(path).read_bytes()))
        targets.clean_up()
    elif arguments.tamper:
        from perf.fuzz import tampering

        sys.exit(tampering.write())
    elif arguments.page:
        print(page.write(campaign.summary(campaign.read_records(arguments.state))))
    else:
        if arguments.driver == "atheris" and not targets.has_atheris():
            sys.exit('--driver atheris needs atheris: pip install atheris')
        campaign.Campaign(arguments.state.absolute(), arguments.inputs, arguments.target, arguments.seed,
                          arguments.driver).run(arguments.jobs)


if __name__ == "__main__":
    main()
