"""Bundles with right hashes and invalid files are refused before memory is allocated for them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deblendrt.engine.model.array_file import read_archive, read_array
from deblendrt.engine.model.bundle import load_bundle
from deblendrt.engine.model.manifest import GRAPHS, BundleError, parse_manifest
from deblendrt.engine.model.onnx_check import MAX_NODES, check_onnx
from deblendrt.engine.model.verification import verify_bundle

onnx = pytest.importorskip("onnx")
Edit = Callable[[Any], None]


def header(shape: str, descr: str = "'<f4'", extra: str = "") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, {extra}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(("content", "message"), [
    (b"", "does not begin"),
    (b"\x80\x04cos\nsystem\n", "does not begin"),  # a pickle, which numpy.load can read
    (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "does not begin"),
    (b"\x93NUMPY\x01\x00\xff\xff", "its header is"),
    (header("(999999999, 999999999)"), "needs 3999999992000000004 bytes, the file has 0"),
    (header("(9999999999,)") + b"abcd", "its header is"),
    (header("(1, 1)", "'|O'") + b"abcd", "its header is"),
    (header("(1,)", "'<f8'") + bytes(8), "its header is"),
    (header("(1,)", "[('a', '<f4')]") + bytes(4), "its header is"),
    (header("(1,)", extra="'more': 1, ") + bytes(4), "its header is"),
    (header("(" * 500 + ")" * 500), "its header is"),
    (header("(2,)") + bytes(4), "needs 8 bytes"),
    (header("(1,)") + b"\x00\x00\x80\x7f", "not all values are finite"),
])
def test_arrays(content: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_array(content, "x.npy")


@pytest.mark.parametrize("array", [np.arange(24.0).reshape(2, 3, 4), np.asfortranarray(np.eye(3)), np.zeros((3, 0, 0)),
                                   np.float32(3)])
def test_arrays_as_numpy_saves_them(array: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, array.astype(np.float32))
    np.testing.assert_array_equal(read_array(file.getvalue(), ""), array, strict=False)


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        for name, content in entries.items():
            out.writestr(name, content)
    return file.getvalue()


def lying(content: bytes, size: int) -> bytes:
    """Return an archive whose directory has a wrong unpacked size for its only entry."""
    at = content.index(b"PK\x01\x02") + 24
    return content[:at] + size.to_bytes(4, "little") + content[at + 4 :]


ONE = header("(1,)") + bytes(4)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "not a NumPy archive"),
    (b"PK", "not a NumPy archive"),
    (archive({"b.npy": ONE}), r"unknown arrays \['b'\]"),
    (archive({"a.npy": ONE, "a": ONE}), "unknown arrays"),
    (archive({f"{k}.npy": b"" for k in range(200)}), "more entries"),
    (archive({"a.npy": bytes(2_000_000)}), "unpacks to more than 1000000"),
    (lying(archive({"a.npy": header("(1000000,)") + bytes(4_000_000)}), 80), "not a NumPy archive: Bad CRC"),
    (archive({"a.npy": ONE}, zipfile.ZIP_LZMA), "another method"),
    (archive({"a.npy": b"\x80\x04cos\nsystem\n"}), "does not begin"),
    (archive({"a.npy": ONE})[:-30], "not a NumPy archive"),
    (archive({"a.npy": ONE})[:20] + archive({"a.npy": ONE})[28:], "not a NumPy archive"),  # zipfile seeks before 0
])
def test_archives(content: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_archive(content, ["a"], 1_000_000, "golden.npz")


def test_archive_as_numpy_saves_it() -> None:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3, np.float32))
    np.testing.assert_array_equal(read_archive(file.getvalue(), ["a"], 10**6, "")["a"], [1, 1, 1])


def shipped_manifest(**changes: Any) -> bytes:
    return json.dumps(json.loads((load_bundle("lsst").path / "manifest.json").read_text()) | changes).encode()


@pytest.mark.parametrize(("text", "message"), [
    (b"[" * 100_000, "more than 32 levels"),
    (b'{"a": ' * 100_000, "more than 32 levels"),
    (b'"' + b'\\"' * 300_000, "not valid JSON"),  # takes quadratic time if the scan for brackets backtracks
    ("[".encode("utf-16") * 1000, "not valid JSON"),
    (b'{"a": 1e400}', "format_revision"),
    (b'{"format_revision": ' + b"9" * 4000 + b"}", "newer"),
    (b'{"format_revision": ' + b"9" * 100_000 + b"}", "not valid JSON"),
    (shipped_manifest(pixel_scale=10**400), "pixel_scale: expected 1 finite"),
    (shipped_manifest(n_basis=10**9), "n_basis: expected 4096 at most"),
    (shipped_manifest(encoder_cutout_size=1023), "encode: cutouts would have 6279174 numbers"),
    (shipped_manifest(bands=["g"] * 2), "expected different strings"),
    (shipped_manifest(bands=[f"b{k}" for k in range(65)]), "expected 64 at most"),
    (shipped_manifest(name="\x1b[2J"), "printable"),
    (shipped_manifest(licence="\ud800"), "printable"),
    (shipped_manifest(minimum_onnxruntime="a"), "expected a version"),
])
def test_manifests(text: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        parse_manifest(text, "manifest.json")
    assert len(str(caught.value)) < 2000


def test_depth_does_not_count_in_strings() -> None:
    text = json.loads(shipped_manifest())
    text["training"]["note"] = '["\\{' * 100
    parse_manifest(json.dumps(text).encode(), "")


def graph(edit: Edit) -> bytes:
    """Return an edited decoder of the shipped bundle."""
    proto = onnx.load_from_string(load_bundle("lsst").read("decode.onnx"))
    edit(proto)
    return proto.SerializeToString()


def external(tensor: Any, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location


def subgraph(proto: Any) -> None:
    inner = onnx.GraphProto(name="inner")
    external(inner.initializer.add(name="w", data_type=1, dims=[1]), "../w.bin")
    node = proto.graph.node.add(op_type="If")
    attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
    attribute.g.CopyFrom(inner)


def constant(proto: Any, **fields: Any) -> Any:
    node = proto.graph.node.add(op_type="Constant", output=["late"])
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(onnx.TensorProto(**fields))
    return attribute.t


EDITS: dict[str, tuple[Edit, str]] = {
    **{f"external data in {place}": (lambda p, place=place: external(p.graph.initializer[0], place), "external data")
       for place in ("weights.bin", "../weights.bin", "/etc/passwd", "link.bin", "")},
    "external data without a place": (lambda p: setattr(p.graph.initializer[0], "data_location", 1), "external data"),
    "a place, but not external": (lambda p: p.graph.initializer[0].external_data.add(key="location"), "external data"),
    "external data in an attribute": (lambda p: external(constant(p, data_type=1, dims=[1]), "x"), "external data"),
    "a subgraph": (subgraph, "a graph inside a node|operator that bundles do not use"),
    "subgraphs": (lambda p: p.graph.node[0].attribute.add(name="b").graphs.add(), "graphs inside a node"),
    "a tensor list": (lambda p: p.graph.node[0].attribute.add(name="b").tensors.add(), "several tensors"),
    "a sparse attribute": (lambda p: p.graph.node[0].attribute.add(name="b").sparse_tensor.dims.append(1), "a sparse"),
    "a training graph": (lambda p: p.training_info.add(), "training_info"),
    "a function": (lambda p: p.functions.add(name="f"), "functions"),
    "a sparse initializer": (lambda p: p.graph.sparse_initializer.add(), "a sparse initializer"),
    "quantization": (lambda p: p.graph.quantization_annotation.add(), "quantization"),
    "typed values": (lambda p: p.graph.initializer[0].float_data.append(1), "other than as raw_data"),
    "strings": (lambda p: p.graph.initializer[0].string_data.append(b"x"), "strings"),
    "a segment": (lambda p: setattr(p.graph.initializer[0].segment, "begin", 1), "segments"),
    "a loop": (lambda p: setattr(p.graph.node[0], "op_type", "Loop"), "operator that bundles do not use"),
    "no operator": (lambda p: p.graph.node[0].ClearField("op_type"), "operator that bundles do not use"),
    "an operator's domain": (lambda p: setattr(p.graph.node[0], "domain", "com.evil"), "domain 'com.evil'"),
    "an imported domain": (lambda p: p.opset_import.add(domain="com.evil", version=1), "domain 'com.evil'"),
    "a huge claim": (lambda p: p.graph.initializer[0].dims.extend([2**40, 2**40]), "in a file of"),
    "a negative length": (lambda p: p.graph.initializer[0].dims.append(-1), "in a file of"),
    "many axes": (lambda p: p.graph.initializer[0].dims.extend([1] * 9), "in a file of"),
    "zero and huge": (lambda p: p.graph.initializer[0].dims.extend([0, 2**62]), "in a file of"),
    "cut data": (lambda p: setattr(p.graph.initializer[0], "raw_data", b"abc"), "needs"),
    "strings' type": (lambda p: setattr(p.graph.initializer[0], "data_type", 8), "element type"),
    "a huge shape": (lambda p: constant(p, data_type=7, dims=[2], raw_data=np.full(2, 2**20).tobytes()), "too large"),
    "a huge length": (lambda p: constant(p, data_type=7, raw_data=np.int64(2**40).tobytes()), "too large"),
    "a huge attribute": (lambda p: p.graph.node[0].attribute.add(name="b").ints.append(2**40), "too large"),
    "many nodes": (lambda p: p.graph.node.extend([onnx.NodeProto(op_type="Add")] * MAX_NODES), "more than 5000 nodes"),
    "an output too many": (lambda p: p.graph.output.add(name="more"), "expected the outputs"),
    "no graph": (lambda p: p.ClearField("graph"), "expected one graph"),
}


@pytest.mark.parametrize("name", EDITS)
def test_graphs(name: str) -> None:
    edit, message = EDITS[name]
    with pytest.raises(BundleError, match=message):
        check_onnx(graph(edit), "decode.onnx", GRAPHS["decode"])


VALID = b"\x08\x0a\x3a\x00"  # ir_version 10 and an empty graph


@pytest.mark.parametrize(("content", "message"), [
    (b"", "expected one graph"), (VALID + b"\x3a\x00", "expected one graph, found 2"),
    (VALID + b"\x3a\x05", "cut off"), (VALID + b"\x08", "does not end"), (VALID + b"\x08" + b"\xff" * 11, "not end"),
    (VALID + b"\x0b\x0c", "another type"), (VALID + b"\x38\x00", "another type"), (VALID + b"\x0a\x00", "expected a"),
    (VALID + b"\xba\x80\x80\x00\x00", "does not end"), (VALID + b"\x00", "field 0"), (b"\x89PNG\r\n", "field 1281"),
])
def test_wire_format(content: bytes, message: str) -> None:
    check_onnx(VALID, "x.onnx")
    with pytest.raises(BundleError, match=message):
        check_onnx(content, "x.onnx")


def test_external_data_in_a_whole_bundle(toy_bundle: Path, reseal: Callable[[Path], None]) -> None:
    proto = onnx.load(toy_bundle / "encode.onnx")
    external(proto.graph.initializer[0], "manifest.json")
    (toy_bundle / "encode.onnx").write_bytes(proto.SerializeToString())
    reseal(toy_bundle)
    with pytest.raises(BundleError, match=r"encode\.onnx: external data"):
        load_bundle(toy_bundle)


def test_links_and_pipes(toy_bundle: Path, tmp_path: Path) -> None:
    basis = toy_bundle / "basis.npy"
    for target in (tmp_path / "elsewhere.npy", toy_bundle / "same.npy"):
        basis.rename(target)
        basis.symlink_to(target)
        with pytest.raises(BundleError, match=r"basis\.npy is a symbolic link|not listed"):
            load_bundle(toy_bundle)
        basis.unlink()
        target.rename(basis)
    content = basis.read_bytes()
    basis.unlink()
    os.mkfifo(basis)
    with pytest.raises(BundleError, match=r"basis\.npy is not a regular file"):  # the reader must not wait for a writer
        load_bundle(toy_bundle)
    basis.unlink()
    basis.mkdir()
    with pytest.raises(BundleError, match=r"basis\.npy (cannot be read|is not a regular file)"):
        load_bundle(toy_bundle)
    basis.rmdir()
    basis.write_bytes(content)
    load_bundle(toy_bundle)
    linked = tmp_path / "linked"
    linked.symlink_to(toy_bundle)  # the folder itself may be a link, which its user chose
    load_bundle(linked)


def test_large_manifests_and_folders(toy_bundle: Path) -> None:
    manifest = toy_bundle / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content + b" " * 2**20)
    with pytest.raises(BundleError, match=r"manifest\.json is larger than 1048576"):
        load_bundle(toy_bundle)
    manifest.write_bytes(content)
    for k in range(100):
        (toy_bundle / f"{k}.txt").touch()
    with pytest.raises(BundleError, match="more than 100 files"):
        load_bundle(toy_bundle)


def test_a_basis_that_unfolds(toy_bundle: Path, reseal: Callable[[Path], None]) -> None:
    path = toy_bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"outskirts_binning": 11}))
    np.save(toy_bundle / "outskirts.npy", np.zeros((7, 701, 701), np.float32))
    reseal(toy_bundle)
    with pytest.raises(BundleError, match="make a basis of 1664866588 bytes"):
        load_bundle(toy_bundle)


def test_a_pickle_is_not_run(toy_bundle: Path, reseal: Callable[[Path], None], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for name in ("basis.npy", "golden.npz"):
        content = (toy_bundle / name).read_bytes()
        trap = np.array([Trap()], object)
        save: Any = np.save if name == "basis.npy" else np.savez
        save(toy_bundle / name, trap, allow_pickle=True)
        reseal(toy_bundle)
        with pytest.raises(BundleError, match=name):
            verify_bundle(toy_bundle)
        (toy_bundle / name).write_bytes(content)
    assert not (tmp_path / "sprung").exists()
