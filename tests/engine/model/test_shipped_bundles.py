"""Every bundle that ships with the package loads, reproduces its stored outputs, and matches its configuration."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from deblendrt.engine.model import bundle as bundle_module
from deblendrt.engine.model.bundle import load_bundle
from deblendrt.engine.model.manifest import GRAPHS
from deblendrt.engine.model.verification import verify_bundle

FOLDER = bundle_module.SHIPPED
CONFIGS = Path(bundle_module.__file__).parents[2] / "training" / "configs"
MAX_SIZE = 10e6  # bytes; all bundles are in one wheel

pytestmark = pytest.mark.parametrize("name", sorted(path.parent.name for path in FOLDER.glob("*/manifest.json")))


def test_verifies(name: str) -> None:
    lines = verify_bundle(name)
    assert "hashes match" in lines[0]
    assert len(lines) == 1 + len(GRAPHS)


def test_agrees_with_its_configuration(name: str) -> None:
    bundle = load_bundle(name)
    settings = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    assert bundle.name == settings["name"] == name
    assert list(bundle.bands) == settings["survey"]["bands"]
    assert bundle.pixel_scale == settings["survey"]["pixel_scale"]
    assert bundle.training["vae"]["n_step"] == settings["vae"]["n_step"]  # a changed configuration needs a new training


def test_size(name: str) -> None:
    assert sum(path.stat().st_size for path in (FOLDER / name).iterdir()) < MAX_SIZE
