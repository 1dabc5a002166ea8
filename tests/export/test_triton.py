"""The Triton repository against Triton's schema. No server runs: package registries have none."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deblendrt.engine.model.bundle import load_bundle
from deblendrt.engine.model.manifest import GRAPHS

onnx = pytest.importorskip("onnx")

from deblendrt.export import triton  # noqa: E402


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small graph instead of the solver. It has a scalar, which Triton does not have."""
    helper = onnx.helper
    one = [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [2, 3]),
           helper.make_tensor_value_info("valid", onnx.TensorProto.BOOL, [3])]
    two = [helper.make_tensor_value_info("model", onnx.TensorProto.FLOAT, [2, 3]),
           helper.make_tensor_value_info("total", onnx.TensorProto.FLOAT, [])]
    nodes = [helper.make_node("Identity", ["image"], ["model"]),
             helper.make_node("ReduceSum", ["image"], ["total"], keepdims=0)]
    model = helper.make_model(helper.make_graph(nodes, "main", one, two),
                              opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    out = tmp_path_factory.mktemp("triton") / "repository"
    triton.write_repository(load_bundle("lsst"), model, out, n_instance=2)
    triton.write_repository(load_bundle("lsst"), model, out, n_instance=2)  # replaces it
    return out


def test_layout(repository: Path) -> None:
    assert {folder.name for folder in repository.iterdir()} == {"solver", *GRAPHS}
    for folder in repository.iterdir():
        assert {path.name for path in folder.iterdir()} == {"1", "config.pbtxt"}
        onnx.checker.check_model(onnx.load(str(folder / "1" / "model.onnx")))
    assert not list(repository.parent.glob(".*"))


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="no model repository"):
        triton.write_repository(load_bundle("lsst"), onnx.ModelProto(), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def schema() -> Any:
    """Triton's `ModelConfig`, from the one file of its client's package that needs only protobuf."""
    pytest.importorskip("google.protobuf")
    package = importlib.util.find_spec("tritonclient")
    if package is None or package.origin is None:
        pytest.skip("needs pip install --no-deps tritonclient")
    file = Path(package.origin).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_schema(repository: Path) -> None:
    package = schema()
    from google.protobuf import text_format

    for folder in repository.iterdir():
        config = text_format.Parse((folder / "config.pbtxt").read_text(), package.ModelConfig())
        model = onnx.load(str(folder / "1" / "model.onnx"))
        assert config.name == folder.name
        assert config.platform == "onnxruntime_onnx"
        batched = config.max_batch_size > 0
        assert batched == (folder.name != "solver") == config.HasField("dynamic_batching")
        for given, values in ((config.input, model.graph.input), (config.output, model.graph.output)):
            assert [entry.name for entry in given] == [value.name for value in values]
            for entry, value in zip(given, values, strict=True):
                tensor = value.type.tensor_type
                stated = list(entry.reshape.shape if entry.HasField("reshape") else entry.dims)
                assert stated == [d.dim_value for d in tensor.shape.dim][1 if batched else 0 :]
                assert np.prod(entry.dims) == np.prod(stated)  # a reshape keeps the number of elements
                assert triton.TRITON_TYPES[tensor.elem_type] == package.DataType.Name(entry.data_type)
                if batched:
                    assert tensor.shape.dim[0].dim_param == "N"


def test_text(repository: Path) -> None:
    """Lines of the configuration, without the schema."""
    text = (repository / "solver" / "config.pbtxt").read_text()
    assert "max_batch_size: 0" in text
    assert "count: 2" in text
    assert 'name: "total" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [] }' in text
    assert 'name: "valid" data_type: TYPE_BOOL dims: [ 3 ]' in text
    text = (repository / "log_prior" / "config.pbtxt").read_text()
    assert re.search(r"max_batch_size: \d+", text)
    assert "dynamic_batching" in text
