"""A dask plugin that sends a bundle to every worker of a cluster, also to workers that join or restart later."""

from __future__ import annotations

from collections.abc import Mapping

from distributed import Worker, WorkerPlugin

from deblendrt.engine.adapters.dask.worker_engine import receive


class BundlePlugin(WorkerPlugin):
    """Writes a bundle to the local folder of each worker before the worker's first task.

    The scheduler keeps the plugin and sends it once to each worker process when the process starts.

    Parameters
    ----------
    contents : mapping of str to bytes
        The bundle's files.
    sha256 : str
        The bundle's identity.
    """

    idempotent = True

    def __init__(self, contents: Mapping[str, bytes], sha256: str) -> None:
        self.contents = contents
        self.name = f"deblendrt-{sha256}"

    def setup(self, worker: Worker) -> None:
        """Write the bundle; dask calls this on the worker."""
        receive(self.contents, worker.local_directory)
