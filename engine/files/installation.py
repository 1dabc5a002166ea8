"""Versions of installed packages, and the CPU cores that a process may use."""

from __future__ import annotations

import importlib.metadata
import os


def package_version(package: str) -> str | None:
    """Installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def n_usable_cpu() -> int:
    """Number of CPU cores that this process may use; a container or a batch system may allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
