"""A chunk of inputs, run in a process of its own: `campaign` starts ``python -m perf.fuzz.child`` with a chunk as JSON.

The memory of the process is limited (`RLIMIT_AS`), and the processor time of each input. The current input is kept in a
file that is mapped into memory, so it is known if the process dies.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import mmap
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perf.fuzz import mutations, targets
from perf.report import ROOT

MEMORY = 1 << 30  # bytes that a reader may allocate
GROWTH = 512 << 20  # bytes by which memory may grow for an input, which has a megabyte at most
TIME_LIMIT = 10.0  # seconds of processor time for an input
KEEP = 20  # stored inputs for each kind of failure


class TimeLimit(BaseException):
    """An input takes too long. It is no Exception, because readers catch exceptions."""


class Current:
    """The current input, in a file that outlives the process."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w+b")
        self.file.truncate(16 + mutations.MAX_BYTES)
        self.map = mmap.mmap(self.file.fileno(), 0)

    def put(self, number: int, data: bytes) -> None:
        """Note an input and its number."""
        self.map[:16] = number.to_bytes(8, "little") + len(data).to_bytes(8, "little")
        self.map[16 : 16 + len(data)] = data


def noted(path: Path) -> tuple[int, bytes]:
    """Number and bytes of the input that a process noted last."""
    content = path.read_bytes()
    size = int.from_bytes(content[8:16], "little")
    return int.from_bytes(content[:8], "little"), content[16 : 16 + size]


class Tally:
    """Counts of accepted, refused and failing inputs of a chunk."""

    def __init__(self, target: targets.Target, read: targets.Read, out: Path) -> None:
        self.target, self.read, self.out = target, read, out
        self.n = self.accepted = 0
        self.refused: dict[str, int] = {}
        self.failures: dict[str, dict[str, Any]] = {}
        self.slowest = (0.0, "")
        self.growth = (0, "")
        self.peak = _peak()
        self.seen: set[tuple[str, int, int]] = set()
        self.novel = False

    def feed(self, data: bytes) -> None:
        """Read an input."""
        self.n += 1
        self.novel = False
        peak, start = _peak(), time.thread_time()
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
        failure: BaseException | None = None
        name = "accepted"
        try:
            self.read(data)
            self.accepted += 1
        except (ValueError, OSError) as error:
            name = type(error).__name__
            self.refused[name] = self.refused.get(name, 0) + 1
            self._novelty(name, error)
        except TimeLimit as error:
            failure = error
        except Exception as error:
            name = type(error).__name__
            if name in self.target.expected:
                self.refused[name] = self.refused.get(name, 0) + 1
            else:
                failure = error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.thread_time() - start
        growth = _peak() - peak
        if failure is not None:
            self._fail(data, type(failure).__name__, failure)
        elif growth > GROWTH:
            self._fail(data, f"Memory ({name})", None)
        if seconds > self.slowest[0]:
            self.slowest = seconds, self._store(data, "slowest")
        if growth > self.growth[0]:
            self.growth = growth, self._store(data, "largest")

    def _novelty(self, name: str, error: BaseException) -> None:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        place = (name, 0, 0) if last is None else (name, id(last.tb_frame.f_code), last.tb_lineno)
        if place not in self.seen:
            self.seen.add(place)
            self.novel = True

    def _fail(self, data: bytes, kind: str, error: BaseException | None) -> None:
        frames = traceback.extract_tb(error.__traceback__) if error is not None else []
        ours = [f for f in frames if "/engine/" in f.filename or "/perf/fuzz/arguments" in f.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else ""
        inner = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else ""
        key = f"{kind} in {where} ({inner})"
        found = self.failures.setdefault(key, {"n": 0, "message": str(error)[:300], "files": []})
        found["n"] += 1
        if len(found["files"]) < KEEP:
            found["files"].append(self._store(data, f"failure-{kind.split()[0]}"))

    def _store(self, data: bytes, kind: str) -> str:
        name = f"{kind}-{hashlib.sha256(data).hexdigest()[:16]}"
        (self.out / name).write_bytes(data)
        return name

    def record(self) -> dict[str, Any]:
        """The record of the chunk."""
        return {"n": self.n, "accepted": self.accepted, "refused": self.refused, "failures": self.failures,
                "slowest_s": self.slowest[0], "slowest": self.slowest[1], "growth": self.growth[0],
                "largest": self.growth[1], "peak": _peak(), "before": self.peak}


def engine_modules() -> list[str]:
    """The engine's modules that are loaded; the target tests these."""
    return sorted(name for name in sys.modules if name.startswith("deblendrt.engine."))


def hash_of(modules: list[str]) -> dict[str, Any]:
    """Names of modules, and a hash of their files."""
    digest = hashlib.sha256()
    for name in modules:
        path = ROOT / f"{name.removeprefix('deblendrt.').replace('.', '/')}.py"
        digest.update(name.encode() + (path.read_bytes() if path.is_file() else b""))
    return {"modules": modules, "sources": digest.hexdigest()[:12]}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _address_space() -> int:
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 4 << 30


def _too_long(*_: Any) -> None:
    raise TimeLimit(f"more than {TIME_LIMIT:g} s of processor time")


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Limit memory and time while the context lasts. What is loaded already does not count."""
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, most))
    signal.signal(signal.SIGPROF, _too_long)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))


def run_mutating(tally: Tally, current: Current, chunk: dict[str, Any], files: list[bytes]) -> None:
    """Feed mutated seeds. An input that was refused at a new place becomes a seed of the chunk."""
    rng = random.Random(f"{chunk['target']} {chunk['seed']} {chunk['chunk']}")
    pool = list(files)
    for number in range(chunk["n"]):
        data = targets.make_input(tally.target, pool, rng)
        current.put(number, data)
        tally.feed(data)
        if tally.novel and len(pool) < 4 * len(files) + 200:
            pool.append(data)


def run_atheris(tally: Tally, current: Current, chunk: dict[str, Any], files: list[bytes], done: Any) -> None:
    """Feed inputs that libFuzzer chooses by coverage of the engine's lines; never returns."""
    import atheris

    corpus = Path(chunk["corpus"])
    corpus.mkdir(parents=True, exist_ok=True)
    for data in files:
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    target = tally.target

    def one(data: bytes) -> None:
        current.put(tally.n, data)
        tally.feed(data)
        if tally.n >= chunk["n"]:
            done()

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.4:
            return atheris.Mutate(data, max_size)
        return mutations.mutate(rng, data, target.words, target.structured, files)[:max_size]

    size = 4 * max(len(data) for data in files)
    options = [f"-seed={chunk['seed'] * 1000 + chunk['chunk'] + 1}", f"-max_len={size}",
               f"-artifact_prefix={chunk['out']}/", "-timeout=600", "-rss_limit_mb=0",  # the limits above act first
               "-verbosity=0", "-handle_abrt=0", "-handle_segv=0", "-print_final_stats=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutator)
    atheris.Fuzz()


def main() -> None:
    """Run a chunk and write its record."""
    chunk = json.loads(sys.argv[1])
    out = Path(chunk["out"])
    warnings.simplefilter("ignore")
    os.environ["OMP_NUM_THREADS"] = "1"
    target = targets.targets()[chunk["target"]]
    if chunk["driver"] == "atheris":
        import atheris

        with atheris.instrument_imports(include=["deblendrt.engine"]):
            read = target.prepare()
    else:
        read = target.prepare()
    sources = hash_of(engine_modules())
    import logging

    logging.disable(logging.CRITICAL)
    files = target.seeds()
    for data in files:  # lazy imports and caches must not count as growth
        with contextlib.suppress(Exception):
            read(data)
    gc.collect()
    gc.freeze()
    start = time.monotonic()
    tally = Tally(target, read, out)

    def done() -> None:
        record = tally.record() | {"seconds": time.monotonic() - start, "cpu_s": time.process_time(),
                                   **sources}
        partial = Path(chunk["record"] + ".partial")
        partial.write_text(json.dumps(record))
        partial.replace(chunk["record"])
        targets.clean_up()
        sys.stdout.flush()
        os._exit(0)  # libFuzzer's exit handlers would call it a crash

    current = Current(Path(chunk["current"]))
    with limits():
        if chunk["driver"] == "atheris":
            run_atheris(tally, current, chunk, files, done)
        else:
            run_mutating(tally, current, chunk, files)
    done()


if __name__ == "__main__":
    main()
