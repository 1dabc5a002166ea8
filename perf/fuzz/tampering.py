"""A shipped bundle, tampered with in one way at a time, with right hashes and without: is it refused?

``python -m perf.fuzz --tamper`` writes ``perf/results/embedding/security.json``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from perf.embedding import record
from perf.fuzz import wire

Damage = Callable[[Path], object]


def seal(folder: Path) -> None:
    """Make the manifest's hashes right, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def sealed(damage: Damage) -> Damage:
    """Damage with hashes made right."""
    def both(folder: Path) -> None:
        damage(folder)
        seal(folder)
    return both


def edit(**changes: Any) -> Damage:
    """Change values in the manifest."""
    def write(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return write


def written(name: str, content: bytes) -> Damage:
    """Replace the contents of a file."""
    return lambda folder: (folder / name).write_bytes(content)


def graph(change: Callable[[list[wire.Field]], object]) -> Damage:
    """Change a graph: `change` gets the fields of decode.onnx's graph."""
    def write(folder: Path) -> None:
        path = folder / "decode.onnx"
        model = wire.decode(path.read_bytes())
        change(next(field[2] for field in model if field[0] == 7))
        path.write_bytes(wire.encode(model))
    return sealed(write)


def _tensor(fields: list[wire.Field]) -> list[wire.Field]:
    return next(field[2] for field in fields if field[0] == 5 and len(wire.encode(field[2])) > 1000)


def external(place: bytes) -> Damage:
    """Put the data of a tensor into another file."""
    def change(fields: list[wire.Field]) -> None:
        tensor = _tensor(fields)
        tensor[:] = [field for field in tensor if field[0] != 9]
        tensor += [[13, 2, wire.encode([[1, 2, b"location"], [2, 2, place]])], [14, 0, 1]]
    return graph(change)


def _node(operator: bytes, *attributes: bytes) -> list[Any]:
    return [1, 2, [[4, 2, operator], *([5, 2, attribute] for attribute in attributes)]]


def _link(folder: Path) -> None:
    target = folder.parent / "elsewhere.npy"
    (folder / "basis.npy").rename(target)
    (folder / "basis.npy").symlink_to(target)


def _pipe(folder: Path) -> None:
    (folder / "basis.npy").unlink()
    os.mkfifo(folder / "basis.npy")


def _flip(folder: Path) -> None:
    content = bytearray((folder / "basis.npy").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "basis.npy").write_bytes(content)


def _weight(folder: Path) -> None:
    """Increase the weights of a tensor by 1%."""
    path = folder / "decode.onnx"
    model = wire.decode(path.read_bytes())
    tensor = _tensor(next(field[2] for field in model if field[0] == 7))
    data = next(field for field in tensor if field[0] == 9)
    data[2] = (1.01 * np.frombuffer(data[2], "<f4")).astype("<f4").tobytes()
    path.write_bytes(wire.encode(model))


def _bomb(folder: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as out:
        for _ in range(200):
            out.write(bytes(2**20))
    (folder / "golden.npz").write_bytes(file.getvalue())


def _forged(folder: Path) -> None:
    """Replace the model: weights, golden vectors and hashes agree."""
    from deblendrt.engine.model.bundle import load_bundle
    from deblendrt.engine.model.manifest import GRAPHS
    from deblendrt.engine.model.onnxruntime_cpu import OrtRuntime

    with np.load(folder / "golden.npz", allow_pickle=False) as stored:
        golden = dict(stored)
    _weight(folder)
    seal(folder)
    runtime = OrtRuntime(load_bundle(folder))
    for name, described in GRAPHS.items():
        outputs = runtime.run(name, *(golden[f"{name}.in.{key}"] for key in described.inputs))
        golden |= {f"{name}.out.{key}": value for key, value in zip(described.outputs, outputs, strict=True)}
    np.savez(folder / "golden.npz", **golden)


def _header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


KINDS: dict[str, tuple[str, Damage]] = {
    "nothing": ("the bundle as it ships", lambda folder: None),
    "a bit flipped": ("in basis.npy", _flip),
    "a file missing": ("encode.onnx removed", lambda folder: (folder / "encode.onnx").unlink()),
    "a file too many": ("readme.txt added", lambda folder: (folder / "readme.txt").touch()),
    "a file swapped": ("encode.onnx is a copy of decode.onnx, hashes fit",
                       sealed(lambda folder: shutil.copy(folder / "decode.onnx", folder / "encode.onnx"))),
    "a link": ("basis.npy leads out of the folder", _link),
    "a named pipe": ("basis.npy has no writer", _pipe),
    "a directory": ("in place of basis.npy",
                    lambda folder: ((folder / "basis.npy").unlink(), (folder / "basis.npy").mkdir())),
    "a huge file": ("golden.npz of 10 GB, sparse", lambda folder: os.truncate(folder / "golden.npz", 10**10)),
    "a path in the manifest": ("files names ../../etc/passwd", edit(files={"../../etc/passwd": "0" * 64})),
    "deep JSON": ("100,000 brackets", written("manifest.json", b"[" * 100_000)),
    "a huge manifest": ("2 MB of spaces", written("manifest.json", b" " * 2**21)),
    "a key twice": ("in the manifest", written("manifest.json", b'{"name": "a", "name": "b"}')),
    "a newer format": ("format_revision 99", edit(format_revision=99)),
    "huge sizes": ("n_basis of a billion", edit(n_basis=10**9)),
    "a number beyond float64": ("pixel_scale of 400 digits", edit(pixel_scale=10**400)),
    "terminal codes": ("an escape sequence in the name", edit(name="\x1b[2Jlsst")),
    "a pickle": ("basis.npy is one that would run a command",
                 sealed(written("basis.npy", b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."))),
    "objects in an array": ("basis.npy has dtype object",
                            sealed(written("basis.npy", _header("(1,)", "|O") + b"\x80\x04N."))),
    "an array's claim": ("basis.npy announces 4 EB", sealed(written("basis.npy", _header("(999999999, 999999999)")))),
    "a zip bomb": ("golden.npz unpacks to 200 MB", sealed(_bomb)),
    **{f"external data: {place.decode()}": ("a tensor of decode.onnx lies in that file, hashes fit", external(place))
       for place in (b"weights.bin", b"../weights.bin", b"/etc/passwd", b"manifest.json")},
    "a subgraph": ("an If in decode.onnx", graph(lambda fields: fields.insert(0, _node(b"If", wire.encode(
        [[1, 2, b"then_branch"], [6, 2, b""], [20, 0, 5]]))))),
    "a sparse tensor": ("in decode.onnx", graph(lambda fields: fields.append([15, 2, b""]))),
    "an operator of another domain": ("com.evil in decode.onnx", graph(lambda fields: fields.insert(0, [1, 2, [
        [4, 2, b"Add"], [7, 2, b"com.evil"]]]))),
    "a constant for a huge shape": ("Expand to 2^40 in decode.onnx", graph(lambda fields: fields.append([5, 2, [
        [1, 0, 1], [2, 0, 7], [8, 2, b"huge"], [9, 2, (2**40).to_bytes(8, "little")]]]))),
    "a million nodes": ("in decode.onnx", graph(lambda fields: fields.extend([_node(b"Add")] * 1_000_000))),
    "a tensor's claim": ("2^62 elements in decode.onnx",
                         graph(lambda fields: _tensor(fields).insert(0, [1, 0, 2**62]))),
    "other weights": ("a tensor of decode.onnx is 1% larger, hashes fit", sealed(_weight)),
    "another model": ("other weights, golden vectors and hashes that fit them", sealed(_forged)),
}


def tamper(name: str, source: Path) -> dict[str, Any]:
    """Damage a copy of a bundle, load it, and run its golden vectors.

    Parameters
    ----------
    name : str
        Of `KINDS`.
    source : Path
        A bundle.

    Returns
    -------
    dict
        A row of the table of faults; ``refused`` is "at load", "at verify" or "".
    """
    from deblendrt.engine.model.bundle import load_bundle
    from deblendrt.engine.model.manifest import BundleError
    from deblendrt.engine.model.verification import verify_bundle

    how, damage = KINDS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundle"
        shutil.copytree(source, folder)
        damage(folder)
        before, start = _peak(), time.perf_counter()
        refused, note = "", "loads, and passes its golden vectors"
        try:
            load_bundle(folder)
            refused = "at verify"  # unless the next line returns
            verify_bundle(folder)
            refused = ""
        except BundleError as error:
            refused = refused or "at load"
            note = f"refused {refused}: {' '.join(str(error).replace(temporary, '').split())[:140]}"
        return record.fault(f"bundle: {name}", how, 1, 0, 0, note) | {
            "refused": refused, "seconds": time.perf_counter() - start, "memory_MiB": (_peak() - before) / 2**20}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write() -> int:
    """Tamper in every way, and store the table."""
    from deblendrt.engine.model.bundle import load_bundle
    from deblendrt.engine.model.verification import verify_bundle

    source = load_bundle("lsst").path
    verify_bundle(source)  # the first use of ONNX Runtime takes time and memory of its own
    rows = [tamper(name, source) for name in KINDS]
    figures = {"kinds": len(rows) - 1, "refused_at_load": sum(row["refused"] == "at load" for row in rows),
               "refused_at_verify": sum(row["refused"] == "at verify" for row in rows),
               "accepted": [row["fault"] for row in rows if not row["refused"]],
               "largest_memory_growth_MiB": max(row["memory_MiB"] for row in rows),
               "slowest_s": max(row["seconds"] for row in rows)}
    return record.store("security", "python -m perf.fuzz --tamper", rows, figures)
