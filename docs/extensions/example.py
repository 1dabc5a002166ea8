"""The quickstart's pictures: its command is run when the site is built, into ``generated/example``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]


def run(app: Sphinx, _config: Any) -> None:
    """Deblend the example, unless the pictures are newer than the engine."""
    out = Path(app.srcdir) / "generated" / "example"
    pictures = [out / "overview.png", out / "sources.png"]
    newest = max(path.stat().st_mtime for path in (ROOT / "engine").rglob("*.py"))
    if all(path.exists() and path.stat().st_mtime > newest for path in pictures):
        return
    os.environ.setdefault("MPLBACKEND", "agg")
    from deblendrt.engine.adapters.cli import main

    image = ROOT / "examples" / "lsst_blend.fits"
    if main.main(["run", str(image), "--out", str(out), "--overwrite", "--quiet"]):
        raise RuntimeError(f"deblendrt run {image} failed")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect."""
    app.connect("config-inited", run)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
