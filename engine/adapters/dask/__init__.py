"""Deblending on a Dask cluster (extra ``dask``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deblendrt.engine.adapters.dask.cluster import FailedInput, PartitionDeblender, deblend_dask, send_model

__all__ = ["FailedInput", "PartitionDeblender", "deblend_dask", "send_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deblendrt.engine.adapters.dask import cluster  # on first use: `worker_engine` needs no dask

    return getattr(cluster, name)
