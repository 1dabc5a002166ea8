"""Make the virtual environments of the peers, ``FOLDER/PEER``.

    python -m perf.peers.environments FOLDER

An environment holds the packages of ``requirements/PEER.txt``. scarlet_lite is not on PyPI. It is cloned and built,
which needs git and a C++ compiler; ``--source scarlet_lite=WHERE`` clones from another address or a folder. An
environment that exists and works is kept. If an environment cannot be made, ``FOLDER/PEER.missing`` and the page of
`perf.peers` say why, and ``FOLDER/PEER.log`` has all messages.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from perf.peers.peer import PEERS, Missing, Peer

REPOSITORIES = {"scarlet_lite": "https://github.com/lsst/scarlet_lite"}
REPOSITORY_TAGS = {"scarlet_lite": "w.2025.43"}  # a tag, from which the package takes its version


def interpreter(folder: Path | None, peer: str) -> Path:
    """The interpreter of a peer's environment; raises `Missing` with the reason if there is none."""
    if folder is None:
        raise Missing("no folder of environments was given")
    reason = folder / f"{peer}.missing"
    if reason.exists():
        raise Missing(reason.read_text().strip())
    python = folder / peer / "bin" / "python"
    if not python.exists():
        raise Missing(f"the folder of environments has none for {peer}")
    return python.absolute()  # not resolved: the link to the interpreter marks the virtual environment


def _do(command: list[str], log: Path) -> None:
    """Run a command, with its output in the log; raises `Missing` with the last complaint if it fails."""
    with log.open("a") as out:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                              env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}).returncode
    if code:
        said = [line.strip() for line in log.read_text().splitlines() if line.strip()]
        complaints = [line for line in said if line.lower().startswith(("error", "fatal"))] or said
        raise Missing(f"{Path(command[0]).name} failed: {complaints[-1]}" if complaints else f"{command[0]} failed")


def install(home: Path, requirements: Path, log: Path, further: Sequence[str] = ()) -> None:
    """Make a virtual environment anew, and install what a file lists.

    Parameters
    ----------
    home : Path
        Folder of the environment.
    requirements : Path
        A file as pip reads it.
    log : Path
        All messages are added to it.
    further : sequence of str
        Arguments of one more call of pip.

    Raises
    ------
    Missing
        A command failed.
    """
    shutil.rmtree(home, ignore_errors=True)
    _do([sys.executable, "-m", "venv", str(home)], log)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--no-input"]
    _do([*pip, "-r", str(requirements)], log)
    if further:
        _do([*pip, *further], log)


def _install_peer(peer: str, folder: Path, source: str | None) -> None:
    log, requirements = folder / f"{peer}.log", Path(__file__).parent / "requirements" / f"{peer}.txt"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as clone:
        if source is not None:
            if shutil.which("git") is None:
                raise Missing("git is not there")
            # tags give the version
            _do(["git", "clone", "--quiet", "--branch", REPOSITORY_TAGS[peer], source, clone], log)
        install(folder / peer, requirements, log, [clone] if source is not None else [])


def make(peer: str, folder: Path, source: str | None = None) -> str:
    """Make a peer's environment, unless it exists and works; start its adapter, and return the peer's version.

    Parameters
    ----------
    peer : str
    folder : Path
    source : str, optional
        Address or folder of a git repository to install in addition to the requirements.

    Raises
    ------
    Missing
        It could not be made. ``PEER.missing`` says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reason = folder / f"{peer}.missing"
    try:
        try:
            python = interpreter(folder, peer)
        except Missing:
            reason.unlink(missing_ok=True)
            _install_peer(peer, folder, source)
            python = interpreter(folder, peer)
        with tempfile.TemporaryDirectory() as work:
            started = Peer(peer, python, Path(work))
            started.close()
    except Missing as why:
        reason.write_text(f"{why}\n")
        raise
    return started.version


def sources(given: list[str]) -> dict[str, str]:
    """`REPOSITORIES`, changed by texts ``PEER=WHERE``. Raises ValueError for a peer that is not built from source."""
    found = dict(REPOSITORIES)
    for text in given:
        peer, _, where = text.partition("=")
        if peer not in REPOSITORIES or not where:
            raise ValueError(f"--source: expected {' or '.join(REPOSITORIES)}, then = and an address or a folder; "
                             f"got {text!r}")
        path = Path(where).expanduser()
        found[peer] = str(path.absolute()) if path.exists() else where
    return found


def main(argv: list[str] | None = None) -> int:
    """Make environments; returns 1 if an environment could not be made."""
    parser = argparse.ArgumentParser(prog="python -m perf.peers.environments", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", action="append", choices=PEERS, help="only this one; repeatable")
    parser.add_argument("--source", action="append", default=[], metavar="PEER=WHERE", help="of a peer that is built")
    args = parser.parse_args(argv)
    try:
        where = sources(args.source)
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    for peer in args.peer or PEERS:
        try:
            print(f"{peer} {make(peer, args.folder, where.get(peer))}: {args.folder / peer}", flush=True)
        except Missing as why:
            failed = 1
            print(f"{peer}: not made: {why}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
