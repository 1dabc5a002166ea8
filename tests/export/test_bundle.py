"""An export: parity, determinism, graphs without metadata, and checks that can fail."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
for name in ("zuko", "galsim", "galcheat", "onnxscript"):
    pytest.importorskip(name)

from deblendrt.engine.model import tensorrt  # noqa: E402
from deblendrt.engine.model.bundle import load_bundle  # noqa: E402
from deblendrt.engine.model.manifest import GRAPHS, BundleError  # noqa: E402
from deblendrt.engine.model.networks import NETWORK_TILE  # noqa: E402
from deblendrt.engine.model.onnxruntime_cpu import OrtRuntime  # noqa: E402
from deblendrt.engine.model.verification import output_error, verify_bundle  # noqa: E402
from deblendrt.export import bundle as export_bundle  # noqa: E402
from deblendrt.export import cli  # noqa: E402
from deblendrt.export.networks import graphs, parity  # noqa: E402
from deblendrt.training import checkpoint, config  # noqa: E402

pytestmark = pytest.mark.slow  # torch needs a few seconds a graph, and there are five


@pytest.fixture(scope="session")
def model() -> checkpoint.TrainedModel:
    """A small model. All its axes differ in length, and rows do not begin at 16-byte boundaries."""
    settings = config.load("smoke.toml")
    settings = dataclasses.replace(
        settings, name="small",
        survey=dataclasses.replace(settings.survey, bands=["g", "r", "i"]),
        basis=dataclasses.replace(settings.basis, n_basis=12, stamp_size=21, core_size=15),
        vae=dataclasses.replace(settings.vae, n_shape=5, hidden=16, n_layer=2),
        flow=dataclasses.replace(settings.flow, n_transform=2, hidden=8),
        encoder=dataclasses.replace(settings.encoder, cutout_size=17))
    model = checkpoint.random_model(settings, 1)
    model.decoder.head.weight.mul_(20)  # the output of an untrained head hardly depends on the trunk
    return model


@pytest.fixture(scope="session")
def folder(model: checkpoint.TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "bundle"
    lines = export_bundle.write_bundle(model, path, model_version="7")
    assert len(lines) == 1 + len(GRAPHS)
    return path


def scale_weights(proto: Any, factor: float) -> None:
    """Multiply the largest weights of a graph."""
    tensor = max(proto.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))


def test_five_bands(model: checkpoint.TrainedModel) -> None:
    """The number of sources stays symbolic for any number of bands."""
    settings = dataclasses.replace(model.config.survey, bands=["g", "r", "i", "z", "y"])
    other = checkpoint.random_model(dataclasses.replace(model.config, survey=settings), 1)
    proto = graphs.export_graph(other, "decode_pullback")
    assert all(value.type.tensor_type.shape.dim[0].dim_param for value in proto.graph.input)


def test_reads_back(folder: Path, model: checkpoint.TrainedModel) -> None:
    bundle = load_bundle(folder)
    assert (bundle.name, bundle.model_version, bundle.bands) == ("small", "7", ("g", "r", "i"))
    assert (bundle.stamp_size, bundle.outskirts_binning) == (15, 3)
    np.testing.assert_array_equal(bundle.basis, model.basis[:, 3:-3, 3:-3])
    limit = export_bundle.BASIS_LIMIT * np.abs(model.basis).max()
    np.testing.assert_allclose(bundle.full_basis, model.basis, rtol=0, atol=limit)
    assert np.abs(bundle.outskirts).max() > 100 * limit
    np.testing.assert_array_equal(bundle.shift, model.shift)
    np.testing.assert_allclose(bundle.psf.sum((1, 2)), 1.0, atol=1e-3)
    assert bundle.training["population"]["description"] == model.population["description"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["bundle"]  # no temporary folder is left


def test_a_basis_that_is_not_bilinear_is_refused(model: checkpoint.TrainedModel) -> None:
    basis = model.basis.copy()
    basis[3, 1, 0] += 1e-4
    with pytest.raises(ValueError, match="not bilinear between cells of 3 pixels outside its core of 15"):
        export_bundle.split_basis(dataclasses.replace(model, basis=basis))


def test_parity(folder: Path) -> None:
    for name, errors in load_bundle(folder).parity.items():
        assert errors["float64"] < parity.PARITY_LIMIT["float64"], name
        assert errors["float32"] < parity.PARITY_LIMIT["float32"], name
        assert errors["float32"] > 0, name


def test_parity_fails_for_another_weight(folder: Path, model: checkpoint.TrainedModel) -> None:
    inputs = parity.example_inputs(model, 8, 0)
    expected = parity.reference_outputs(model, inputs)
    for name in GRAPHS:
        proto = onnx.load(folder / f"{name}.onnx")
        assert parity.graph_error(proto, inputs[name], expected[name]) < parity.PARITY_LIMIT["float32"]
        scale_weights(proto, 1.1)
        assert parity.graph_error(proto, inputs[name], expected[name]) > parity.PARITY_LIMIT["float32"], name
        with pytest.raises(ValueError, match=f"{name}: float32 parity"):
            parity.check_parity({name: proto}, {name: proto}, inputs, expected)


def test_float64_parity_sees_what_float32_cannot(model: checkpoint.TrainedModel) -> None:
    inputs = parity.example_inputs(model, 8, 0)
    expected = parity.reference_outputs(model, inputs)["encode"]
    proto = graphs.export_graph(model, "encode")
    assert parity.graph_error(proto, inputs["encode"], expected) < parity.PARITY_LIMIT["float64"]
    tensor = max(proto.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * (1 + 1e-8), tensor.name))
    assert parity.graph_error(graphs.to_float32(proto), inputs["encode"], expected) < parity.PARITY_LIMIT["float32"]
    assert parity.graph_error(proto, inputs["encode"], expected) > parity.PARITY_LIMIT["float64"]


def test_graphs_are_clean(folder: Path) -> None:
    for name, graph in GRAPHS.items():
        content = (folder / f"{name}.onnx").read_bytes()
        proto = onnx.load_from_string(content)
        assert {entry.domain: entry.version for entry in proto.opset_import} == {"": graphs.GRAPH_OPSET}
        shapes = [value.type.tensor_type.shape for value in proto.graph.input]
        assert [shape.dim[0].dim_param for shape in shapes] == ["N"] * len(graph.inputs)
        for text in (b"site-packages", b"/home", b"/tmp", b"/work", b"stack_trace", b"pkg.torch", b".py"):
            assert text not in content, (name, text)
        assert not {node.op_type for node in proto.graph.node} & {"ScatterND", "ScatterElements", "Loop", "If"}


def test_no_sum_depends_on_alignment(folder: Path) -> None:
    """Sums over trailing axes are products with ones, see `graphs._sum`. The other sums are over inner axes."""
    for name in GRAPHS:
        proto = onnx.shape_inference.infer_shapes(onnx.load(folder / f"{name}.onnx"))
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in proto.graph.value_info}
        for node in proto.graph.node:
            if node.op_type == "ReduceSum":
                assert -1 not in constants[node.input[1]], name
                assert ranks[node.input[0]] - 1 not in constants[node.input[1]], name


def test_export_is_deterministic(folder: Path, model: checkpoint.TrainedModel) -> None:
    again = graphs.to_float32(graphs.export_graph(model, "log_prior")).SerializeToString(deterministic=True)
    assert again == (folder / "log_prior.onnx").read_bytes()
    golden = export_bundle.npz_bytes(export_bundle.stored_outputs(model))
    assert golden == (folder / "golden.npz").read_bytes()


@pytest.mark.parametrize("name", list(GRAPHS))
def test_runtime_agrees_and_bits_do_not_depend_on_the_batch(folder: Path, model: checkpoint.TrainedModel,
                                                            name: str) -> None:
    runtime = OrtRuntime(load_bundle(folder))
    inputs = parity.example_inputs(model, 3 * NETWORK_TILE - 5, 5)
    expected = parity.reference_outputs(model, inputs)[name]
    values = list(inputs[name].values())
    outputs = runtime.run(name, *values)
    for key, output in zip(GRAPHS[name].outputs, outputs, strict=True):
        assert output_error(output, expected[key]) < parity.PARITY_LIMIT["float32"], key
    order = np.random.default_rng(6).permutation(len(values[0]))
    permuted = runtime.run(name, *(value[order] for value in values))
    for output, other in zip(outputs, permuted, strict=True):
        np.testing.assert_array_equal(output[order], other)
    for row in (0, 1, NETWORK_TILE, len(order) - 1):
        alone = runtime.run(name, *(value[row : row + 1] for value in values))
        for output, other in zip(outputs, alone, strict=True):
            np.testing.assert_array_equal(output[row], other[0])


def test_stored_outputs_notice_another_weight(folder: Path, model: checkpoint.TrainedModel, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    proto = onnx.load_from_string(files["decode.onnx"])
    scale_weights(proto, 1.1)
    files["decode.onnx"] = proto.SerializeToString()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    manifest = export_bundle.manifest_of(model, files, load_bundle(folder).parity, model_version="1", licence="none")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="differs from the golden output"):
        verify_bundle(tmp_path)


def test_target_is_protected(folder: Path, model: checkpoint.TrainedModel, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="--overwrite"):
        export_bundle.write_bundle(model, folder)
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(FileExistsError, match="not a bundle"):
        export_bundle.write_bundle(model, tmp_path, overwrite=True)


@pytest.mark.parametrize("name", list(GRAPHS))
def test_tensorrt(folder: Path, name: str) -> None:
    if reason := tensorrt.why_unavailable(cli.TENSORRT_PACKAGE):
        pytest.skip(reason)
    assert tensorrt.build_plan((folder / f"{name}.onnx").read_bytes(), cli.TENSORRT_PACKAGE, (1, 16, 64))


def test_cli(folder: Path, model: checkpoint.TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
             capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    monkeypatch.setattr(checkpoint, "load_model", lambda directory: model)
    result: tuple[dict[str, bytes], Any] = files, load_bundle(folder).parity
    monkeypatch.setattr(export_bundle, "bundle_files", lambda model: result)
    out = tmp_path / "new" / "bundle"
    command = ["--checkpoint", "somewhere", "--out", str(out)]
    assert cli.main(command) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert cli.main(command) == cli.NO_INPUT
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite"]) == 0
    broken = files["encode.onnx"][: len(files["encode.onnx"]) // 2]
    monkeypatch.setattr(export_bundle, "bundle_files", lambda model: (files | {"encode.onnx": broken}, result[1]))
    assert cli.main([*command, "--overwrite"]) == cli.FAILED
    assert load_bundle(out).name == "small"  # the old bundle is still there
