"""A new process that imports the engine, loads the model, deblends a stored scene, and prints times and memory.

    python -m perf.gate.fresh_process SCENE.npz
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np


def peak_memory() -> float:
    """Largest resident memory of this process so far [byte].

    On Linux the figure of `getrusage` starts at the memory that the parent held when it forked, so it is not used.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024.0 * float(line.split()[1])
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Print times [s] and memory [byte] as a JSON object."""
    with np.load(sys.argv[1], allow_pickle=False) as file:
        image, variance, centers, psf = (file[name] for name in ("image", "variance", "centers", "psf"))
        bands, limit = str(file["bands"]), float(file["memory_limit"])
    start = time.perf_counter()
    from deblendrt.engine import Deblender

    imported = time.perf_counter()
    deblender = Deblender.load()
    loaded = time.perf_counter()
    before = peak_memory()
    deblender.deblend_batch([image], [centers], variance=[variance], psf=psf, bands=bands,
                            memory_limit=limit or None)
    print(json.dumps({"cpu_seconds": time.process_time(), "import_seconds": imported - start,
                      "load_seconds": loaded - imported, "first_call_seconds": time.perf_counter() - loaded,
                      "peak_bytes": peak_memory(), "peak_before_bytes": before}), flush=True)


if __name__ == "__main__":
    main()
