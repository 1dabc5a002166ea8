"""perf/ is not installed, and the repository's root on sys.path would shadow NVIDIA's `cuda`: a package by its path."""

from __future__ import annotations

import sys
import types
from pathlib import Path

if "perf" not in sys.modules:
    package = types.ModuleType("perf")
    package.__path__ = [str(Path(__file__).parents[2] / "perf")]
    sys.modules["perf"] = package
