"""Versions of installed packages, and the CPU cores that a process may use."""

from __future__ import annotations

import importlib.metadata
import os


def package_version(package: str) -> str | None:
    """Return the installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def n_usable_cpu() -> int:
    """Return the number of CPU cores that this process may use. A container or batch system may forbid some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
