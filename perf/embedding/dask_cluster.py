"""Deblending on a dask cluster: throughput against a single process, and losses when parts of the cluster die.

    python -m perf.embedding.dask_cluster

The script starts clusters of worker processes on this machine, ends processes with signal 9, and compares every row
with the single process's, to the bit. It needs the extra ``dask`` and writes
``perf/results/embedding/dask_cluster.json``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
from distributed import Client, KilledWorker, LocalCluster, SchedulerPlugin

from deblendrt.engine.adapters.dask.cluster import deblend_dask
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.tables import entries
from perf.embedding import record
from perf.gate import cases

N_ALERT, N_BLEND = 128, 8
PER_TASK = {"alerts": 32, "blends": 4}
SMALL = 8  # inputs of a task while faults are caused
ROUNDS = 2
# by default dask's workers return every freed 64 kB to the system, and the engine's temporaries fetch it again
KEEP_MEMORY = {f"distributed.nanny.pre-spawn-environ.{name}": 2**30
               for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")}
Scenes = list[dict[str, Any]]
Row = tuple[bytes, ...]


def workload(name: str) -> tuple[Scenes, dict[str, Any]]:
    """Scenes of a frozen case, and the options for all of them."""
    case, n = (cases.CASES["burst"], N_ALERT) if name == "alerts" else (cases.CASES["offline"], N_BLEND)
    drawn = [case.scene(k, n) for k in range(n)]
    scenes: Scenes = [{"image": s.image, "centers": s.centers, "variance": s.variance, "id": str(k)}
                      for k, s in enumerate(drawn)]
    return scenes, {"psf": cases.psf(drawn[0].bands), "bands": list(drawn[0].bands)}


def one_process(deblender: Deblender, scenes: Scenes, options: dict[str, Any]) -> Any:
    """Deblend the whole workload in one call, on one thread."""
    return deblender.deblend_batch(*([s[key] for s in scenes] for key in ("image", "centers")), **options,
                                   variance=[s["variance"] for s in scenes])


def expected_rows(result: Any) -> list[Row]:
    """Bits of the rows of each scene, without the columns that number a batch."""
    names = [e for e in entries(result.bands) if e.column not in ("id", "scene", "blend")]
    values = [getattr(result, e.field) if e.component is None else getattr(result, e.field)[:, e.component]
              for e in names]
    return [tuple(np.ascontiguousarray(v[result.sources(k)]).tobytes() for v in values) for k in range(result.n_scene)]


def found_rows(table: Any, bands: Sequence[str]) -> Row:
    """The same bits from a table of the cluster."""
    return tuple(np.ascontiguousarray(table[e.column]).tobytes() for e in entries(tuple(bands))
                 if e.column not in ("id", "scene", "blend"))


def differing(tables: Sequence[Any], expected: list[Row], bands: Sequence[str], among: Sequence[int]) -> int:
    """Number of scenes whose bits differ from the single process's."""
    return sum(found_rows(tables[k], bands) != expected[k] for k in among)


def twice(tables: Sequence[Any]) -> int:
    """Number of repeated rows. A task that is computed again must replace its rows, not add to them."""
    numbers = Counter(str(table["id"][0]) for table in tables if table["id"][0])
    return sum(count - 1 for count in numbers.values()) + sum(
        not np.array_equal(table["source"], np.arange(len(table))) for table in tables if table["source"][0] >= 0)


def throughput(name: str) -> dict[str, Any]:
    """Scenes per second and processor time per scene, for a single process and for clusters of one and two workers."""
    scenes, options = workload(name)
    deblender = Deblender.load()
    expected = expected_rows(one_process(deblender, scenes, options))
    wall: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    around: dict[str, list[float]] = {}
    differ = 0
    with contextlib.ExitStack() as stack:
        clients = {f"{n} worker{'s' * (n > 1)}": stack.enter_context(cluster(n)) for n in (1, 2)}
        for number in range(ROUNDS + 1):  # the first warms up: imports, the model
            for label, n in (("one process", len(scenes)), (f"one process, calls of {PER_TASK[name]}", PER_TASK[name])):
                clock, used = time.perf_counter(), time.process_time()
                for low in range(0, len(scenes), n):
                    one_process(deblender, scenes[low : low + n], options)
                wall.setdefault(label, []).append(time.perf_counter() - clock)
                processor.setdefault(label, []).append(time.process_time() - used)
            for label, client in clients.items():
                before, used = sum(client.run(time.process_time).values()), time.process_time()
                clock = time.perf_counter()
                tables = client.gather(client.compute(deblend_dask(scenes, per_task=PER_TASK[name], **options)))
                wall.setdefault(label, []).append(time.perf_counter() - clock)
                processor.setdefault(label, []).append(sum(client.run(time.process_time).values()) - before)
                around.setdefault(label, []).append(time.process_time() - used)
                if not number:
                    differ += differing(tables, expected, deblender.bundle.bands, range(len(scenes)))

    def each(seconds: dict[str, list[float]], scale: float) -> dict[str, float]:
        return {label: float(np.median(values[1:])) * scale for label, values in seconds.items()}

    return {"scenes": len(scenes), "per_task": PER_TASK[name], "rounds": ROUNDS,
            "scenes_per_second": {label: len(scenes) / seconds for label, seconds in each(wall, 1.0).items()},
            "cpu_ms_per_scene": each(processor, 1000 / len(scenes)),
            "cpu_ms_per_scene_of_client_and_scheduler": each(around, 1000 / len(scenes)),
            "scenes_that_differ": differ, "load_average": os.getloadavg()[0]}


@contextlib.contextmanager
def cluster(n_worker: int) -> Iterator[Client]:
    """Worker processes of one thread each, which keep freed memory; see `KEEP_MEMORY`."""
    with (dask.config.set(KEEP_MEMORY), LocalCluster(n_workers=n_worker, threads_per_worker=1, processes=True,
                                                     dashboard_address=":0") as local, Client(local) as client):
        yield client


class Finished(SchedulerPlugin):
    """Counts how often each task has finished."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Called by the scheduler."""
        if (start, finish) == ("processing", "memory"):
            self.times[str(key)] += 1


def reader(folder: str, trap: Callable[[int], None] | None = None) -> Any:
    """A delayed function that returns a scene, notes the call in a file, and may run a trap."""

    def read(k: int, scene: dict[str, Any]) -> dict[str, Any]:
        with open(Path(folder) / str(k), "a") as file:
            file.write(f"{os.getpid()}\n")
        if trap is not None:
            trap(k)
        return scene

    return dask.delayed(read)


def worker_killed(scenes: Scenes, options: dict[str, Any], expected: list[Row], bands: Sequence[str],
                  ) -> record.Fault:
    """kill -9 to one of two workers when half of the tasks have finished, some of them in its memory."""
    per_task = SMALL
    with cluster(2) as client:
        counter = Finished()
        client.cluster.scheduler.add_plugin(counter)
        futures = client.compute(deblend_dask(scenes, per_task=per_task, **options))
        while sum(future.done() for future in futures) < len(futures) // 2:
            time.sleep(0.005)
        victim = sorted(client.run(os.getpid).values())[0]
        os.kill(victim, signal.SIGKILL)
        done = sum(future.done() for future in futures)
        tables = client.gather(futures)
        again = sum(n - 1 for key, n in counter.times.items() if key.startswith("deblend-"))
    return record.fault(
        "worker killed", f"kill -9 to one of two worker processes when {done} of {len(futures)} tables were there",
        len(scenes), differing(tables, expected, bands, range(len(scenes))), twice(tables),
        f"{again * per_task} inputs were computed again, whose finished tables only the dead worker held; all bits are "
        "the single process's")


def scheduler_killed(scenes: Scenes, options: dict[str, Any], expected: list[Row], bands: Sequence[str],
                     ) -> dict[str, Any]:
    """kill -9 to the scheduler in mid-run. dask cannot survive it, so the caller must get an exception."""
    per_task = SMALL
    with tempfile.TemporaryDirectory() as folder:
        with processes(folder) as (client, scheduler):
            futures = client.compute(deblend_dask(scenes, per_task=per_task, **options))
            while sum(future.done() for future in futures) < len(futures) // 2:
                time.sleep(0.005)
            done = sum(future.done() for future in futures)
            scheduler.kill()
            clock = time.perf_counter()
            error = raised(lambda: client.gather(futures), 120)
            noticed = time.perf_counter() - clock
        with processes(folder) as (client, _):
            tables = client.gather(client.compute(deblend_dask(scenes, per_task=per_task, **options)))
    return record.fault(
        "scheduler lost", f"kill -9 to the scheduler's process when {done} of {len(futures)} tables were there, then a "
        "new scheduler and new workers, and the same call again", len(scenes),
        differing(tables, expected, bands, range(len(scenes))), twice(tables),
        f"the client raised {error} after {noticed:.1f} s; dask keeps nothing of the run: the {done} inputs that were "
        "finished were computed again")


@contextlib.contextmanager
def processes(folder: str) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """Start a scheduler and two workers from the command line, and a client."""
    place = Path(folder) / f"scheduler-{time.monotonic_ns()}.json"
    log = (Path(folder) / "log").open("ab")

    def start(kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", str(place),
                                 "--no-dashboard", *arguments], stdout=log, stderr=log)

    scheduler = start("scheduler", "--port", "0", "--host", "127.0.0.1")
    workers = [start("worker", "--nthreads", "1", "--no-nanny", "--local-directory", folder) for _ in range(2)]
    try:
        with Client(scheduler_file=str(place), timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            yield client, scheduler
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()
        log.close()


def raised(call: Callable[[], Any], limit: float) -> str:
    """Name of the exception with which a call ends; a call that hangs is an error, too."""
    outcome = []

    def run() -> None:
        try:
            call()
            outcome.append("nothing")
        except BaseException as error:  # a cancelled future raises no Exception
            outcome.append(type(error).__name__)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    return outcome[0] if outcome else "TimeoutError (it hung)"


def poisoned(scenes: Scenes, options: dict[str, Any], expected: list[Row], bands: Sequence[str]) -> dict[str, Any]:
    """Deblend a scene whose variance has the wrong shape, an input that is no scene, and a file that cannot be read."""
    bad: dict[int, Any] = {40: {**scenes[40], "variance": np.ones((7, 7))}, 41: "text",
                           100: OSError("cutout 100: no such file")}
    with cluster(2) as client:
        given = [bad.get(k, scene) for k, scene in enumerate(scenes)]
        tables = client.gather(client.compute(deblend_dask(given, per_task=SMALL, **options)))
    good = [k for k in range(len(scenes)) if k not in bad]
    silent = sum(not all(tables[k]["error"]) for k in bad)
    reasons = "; ".join(str(tables[k]["error"][0]).split(";")[0] for k in bad)
    return record.fault(
        "poisoned scenes", f"{len(bad)} of the inputs cannot be deblended, two of them in one task with {SMALL - 2} "
        "good ones", len(scenes), silent + differing(tables, expected, bands, good), twice(tables),
        f"each has its rows, flagged, with the reason: {reasons}")


def deadly(scenes: Scenes, options: dict[str, Any], expected: list[Row], bands: Sequence[str]) -> dict[str, Any]:
    """Deblend a scene whose reader kills its own process every time, as a broken C library would."""
    target, per_task = 70, SMALL

    def trap(k: int) -> None:
        if k == target:
            os.kill(os.getpid(), signal.SIGKILL)

    with tempfile.TemporaryDirectory() as folder, cluster(2) as client:
        read = reader(folder, trap)
        images = [read(k, scene) for k, scene in enumerate(scenes)]
        futures = client.compute(deblend_dask(images, per_task=per_task, **options))
        tables = client.gather(futures, errors="skip")
        failed = [k for k, future in enumerate(futures) if future.status == "error"]
        reason = type(futures[failed[0]].exception()).__name__
        found = {int(table["id"][0]): table for table in tables}
        second: list[Any] = []
        for k in failed:  # one at a time: dask also blames the other inputs of a worker that died
            try:
                second.append(client.compute(read(k, scenes[k])).result())
            except KilledWorker as error:
                second.append(error)
        guilty = [k for k, scene in zip(failed, second, strict=True) if isinstance(scene, KilledWorker)]
        for k, table in zip(failed, client.gather(client.compute(deblend_dask(second, **options))), strict=True):
            found[k] = table
        reads = sum(len((Path(folder) / str(k)).read_text().split()) - 1 for k in range(len(scenes)))
    good = [k for k in range(len(scenes)) if k != target]
    silent = not found[target]["error"][0] or guilty != [target]
    return record.fault(
        "a scene that kills its worker", "reading input 70 ends in kill -9 of the process that reads it, every time",
        len(scenes), int(silent) + differing([found[k] for k in range(len(scenes))], expected, bands, good),
        twice(list(found.values())),
        f"dask gave it up after four workers ({reason}), and {len(failed)} inputs with it, of its task and of others "
        "that its workers had in hand; all else finished. Those inputs, read one at a time with the exception in place "
        f"of the one that fails, all got their rows; those of input {target} say "
        f"{str(found[target]['error'][0]).split(':')[0]}. {reads} reads were repeated")


def main() -> int:
    """Run everything, print the figures, write the file."""
    figures = {name: throughput(name) for name in PER_TASK}
    scenes, options = workload("alerts")
    deblender = Deblender.load()
    expected = expected_rows(one_process(deblender, scenes, options))
    faults = []
    for fault in (worker_killed, scheduler_killed, poisoned, deadly):
        faults.append(fault(scenes, options, expected, deblender.bundle.bands))
    return record.store("dask_cluster", "python -m perf.embedding.dask_cluster", faults, figures)


if __name__ == "__main__":
    sys.exit(main())
