"""The engine that a worker process of a cluster keeps between its tasks.

A task carries a `ModelReference`: a name, a hash and a device. The first task of a process that needs the model loads
it under a lock. Every later task of the process, on any thread, finds the engine here. A model that does not ship with
the package is sent as the contents of the bundle's files. They are written to the worker's own folder, and
`load_bundle` checks each file against the manifest, whose hash the task names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.model.bundle import SHIPPED, Bundle, load_bundle
from deblendrt.engine.model.manifest import MANIFEST, BundleError

_engines: dict[tuple[str, str], Deblender] = {}
_received: dict[str, Path] = {}
_lock = threading.RLock()


@dataclasses.dataclass(frozen=True)
class ModelReference:
    """The model and the device that a task needs.

    Attributes
    ----------
    name : str
        Name of a bundle that ships with the package, or the bundle's folder on the caller's machine.
    sha256 : str
        The bundle's identity. A process that finds another bundle of this name refuses it.
    device : str
        "cpu", "cuda" (the first GPU that the process sees) or "cuda:N".
    """

    name: str
    sha256: str
    device: str = "cpu"


@dataclasses.dataclass(frozen=True)
class Fold:
    """Folds PSFs with the process's engine of a model. A result that is sent without its engine holds this object."""

    model: ModelReference

    def __call__(self, images: NDArray[Any] | None) -> FoldedBasis:
        """See `Deblender.fold`."""
        return engine(self.model, any_device=True).fold(images)


def find_model(name_or_path: str | Path, device: str = "cpu") -> tuple[ModelReference, Bundle]:
    """Check a model on the caller's machine, and return the reference that tasks carry.

    Parameters
    ----------
    name_or_path : str or Path
    device : str
        Device of the workers. It is not opened here.

    Returns
    -------
    ModelReference, Bundle

    Raises
    ------
    BundleError
        The bundle cannot be loaded; see `load_bundle`.
    ValueError
        The device is unknown.
    """
    kind, _, ordinal = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind not in ("cpu", "cuda") or (ordinal and (kind == "cpu" or not ordinal.isdecimal())):
        raise ValueError(f'device: expected "cpu", "cuda" or "cuda:N", got {device!r}')
    bundle = load_bundle(name_or_path)
    name = str(name_or_path) if ships(bundle) else str(bundle.path.resolve())
    return ModelReference(name, bundle.sha256, device), bundle


def ships(bundle: Bundle) -> bool:
    """Return whether a bundle ships with the package, so that every worker has it."""
    return bundle.path.parent == SHIPPED


def bundle_contents(bundle: Bundle) -> dict[str, bytes]:
    """Return the contents of a bundle's files by name, after a check of their hashes."""
    return {MANIFEST: (bundle.path / MANIFEST).read_bytes(), **{name: bundle.read(name) for name in bundle.files}}


def receive(contents: Mapping[str, bytes], folder: str | Path) -> Path:
    """Write a bundle that came over the network, and remember its folder.

    Parameters
    ----------
    contents : mapping of str to bytes
        Contents of the bundle's files, from `bundle_contents`.
    folder : str or Path
        The worker's folder. The bundle's folder is made in it, whole or not at all.

    Returns
    -------
    Path

    Raises
    ------
    BundleError
        The files are no bundle or were damaged on the way, or a name is not the name of a plain file.
    """
    sha256 = hashlib.sha256(contents.get(MANIFEST, b"")).hexdigest()
    place = Path(folder) / f"deblendrt-{sha256[:16]}"
    if unsafe := [name for name in contents if name in ("", ".", "..") or Path(name).name != name]:
        raise BundleError(f"a bundle's files lie in one folder: refused {unsafe}")
    with _lock:
        if not _is_bundle(place, sha256):
            partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir(parents=True)
                for name, content in contents.items():
                    (partial / name).write_bytes(content)
                load_bundle(partial)
                shutil.rmtree(place, ignore_errors=True)  # a killed worker may have left a part of it
                with contextlib.suppress(OSError):  # another process may have renamed its own copy first
                    partial.rename(place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        _received[sha256] = place
        return place


def engine(model: ModelReference, *, any_device: bool = False) -> Deblender:
    """Return this process's engine of a model; the first call loads it.

    Parameters
    ----------
    model : ModelReference
    any_device : bool
        Accept a loaded engine on any device; load an engine on the CPU if there is none.

    Returns
    -------
    Deblender

    Raises
    ------
    BundleError
        The model is not on this machine, or its name belongs to another model; the message says what to do.
    DeviceError
        There is no usable GPU.
    """
    with _lock:
        if any_device:
            for (sha256, _), loaded in _engines.items():
                if sha256 == model.sha256:
                    return loaded
            model = dataclasses.replace(model, device="cpu")
        key = model.sha256, model.device
        if key not in _engines:
            _engines[key] = Deblender.load(_locate(model), device=model.device)
        return _engines[key]


def _locate(model: ModelReference) -> Path:
    """Return the folder of a model on this machine."""
    if model.sha256 in _received:
        return _received[model.sha256]
    try:
        found = load_bundle(model.name)
    except BundleError as error:
        raise BundleError(
            f"this worker lacks the model: {error}. Make the tasks while a dask Client is active, or "
            "send the model: deblendrt.engine.adapters.dask.send_model(client, folder)"
        ) from error
    if found.sha256 != model.sha256:
        raise BundleError(f"model {model.name!r}: this worker has {found.model_version} ({found.sha256[:12]}), the "
                          f"tasks were made for {model.sha256[:12]}: install the same deblendrt everywhere")
    return found.path


def _is_bundle(place: Path, sha256: str) -> bool:
    try:
        return load_bundle(place).sha256 == sha256
    except BundleError:
        return False
