"""Arrays shared with other libraries, in both directions."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shim

from deblendrt.cuda.driver import dlpack, interop
from deblendrt.cuda.driver.cuda_device import CudaDevice, open_device
from deblendrt.cuda.driver.device import DeviceArray, DeviceError

ON_STAND_IN = "DEBLENDRT_STAND_IN" in os.environ


@pytest.fixture
def device() -> shim.ShimDevice:
    """The shim, whose arrays lie on the host, so NumPy can take and give them by DLPack."""
    return shim.ShimDevice()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDevice]:
    """A `CudaDevice`."""
    if ON_STAND_IN:
        from deblendrt.cuda.driver import kernel_compiler

        monkeypatch.setattr(kernel_compiler, "compiler", lambda: None)
        monkeypatch.setattr(kernel_compiler, "prepare", lambda architecture: None)
    try:
        opened = open_device()
    except DeviceError as error:
        pytest.skip(str(error).partition(" (")[0])
    yield opened
    opened.close()


def interface(array: DeviceArray, **changes: Any) -> SimpleNamespace:
    """An object of another library."""
    found = {**array.__cuda_array_interface__, **changes}
    return SimpleNamespace(__cuda_array_interface__=found, keep=array)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u1", "?", "c16"])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (1, 4, 1), (2, 3, 4)])
def test_numpy_takes_and_gives(device: shim.ShimDevice, shape: tuple[int, ...], dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    taken = np.from_dlpack(device.upload(array))  # type: ignore[arg-type]
    assert taken.dtype == array.dtype
    np.testing.assert_array_equal(taken, array)
    adopted = interop.adopt_array(device, array, dtype)
    assert (adopted.shape, adopted.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(device.download(adopted), array)
    assert adopted.pointer == array.ctypes.data or array.size == 0


def test_memory_lives_as_long_as_its_taker(device: shim.ShimDevice) -> None:
    given = device.upload(np.arange(6.0))
    taken = np.from_dlpack(given)  # type: ignore[arg-type]
    capsule = given.__dlpack__()
    del given
    gc.collect()
    assert device.used == 48
    np.testing.assert_array_equal(taken, np.arange(6.0))
    del taken
    gc.collect()
    assert device.used == 48  # memory of the capsule that no library took
    del capsule
    gc.collect()
    assert device.used == 0
    assert not dlpack.given


def test_an_adopted_array_lives_as_long_as_it_is_used(device: shim.ShimDevice) -> None:
    array = np.arange(6.0)
    before = sys.getrefcount(array)
    view = interop.adopt_array(device, array).reshape(2, 3)
    gc.collect()
    assert sys.getrefcount(array) > before
    del view
    gc.collect()
    assert sys.getrefcount(array) == before


def test_a_view_of_an_array(device: shim.ShimDevice) -> None:
    array = np.arange(24.0).reshape(4, 6)
    np.testing.assert_array_equal(device.download(interop.adopt_array(device, array[1:3])), array[1:3])
    for strided in (array[:, 1:], array.T, array[::2], array[:, None, ::-1]):
        with pytest.raises(ValueError, match=r"data: expected a C-contiguous array.*ascontiguousarray"):
            interop.adopt_array(device, strided, name="data")
    interop.adopt_array(device, array[:1].T[:, :, None])  # strides of axes of length one do not matter


def test_cuda_array_interface(device: shim.ShimDevice) -> None:
    array = device.upload(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert array.__cuda_array_interface__["stream"] is None
    for changes in ({}, {"strides": (12, 4)}, {"version": 2, "stream": None}):
        adopted = interop.adopt_array(device, interface(array, **changes), np.float32)
        assert (adopted.pointer, adopted.shape, adopted.dtype) == (array.pointer, (2, 3), np.dtype("f4"))
    for changes, said in [({"strides": (4, 8)}, "C-contiguous"), ({"mask": array}, "masked"),
                          ({"typestr": ">f4"}, "byte order")]:
        with pytest.raises(ValueError, match=f"^data: .*{said}"):
            interop.adopt_array(device, interface(array, **changes), name="data")


def test_what_is_not_taken(device: shim.ShimDevice) -> None:
    with pytest.raises(TypeError, match=r"data: expected an array with __dlpack__ or __cuda_array.*, got list"):
        interop.adopt_array(device, [1, 2], name="data")
    with pytest.raises(ValueError, match="data: expected dtype float32, got float64"):
        interop.adopt_array(device, np.zeros(3), np.float32, "data")
    elsewhere = SimpleNamespace(__dlpack__=None, __dlpack_device__=lambda: (2, 0))
    with pytest.raises(ValueError, match=r"data: expected an array on device \(1, 0\).*got \(2, 0\)"):
        interop.adopt_array(device, elsewhere, name="data")
    with pytest.raises(BufferError):
        device.upload(np.zeros(3)).__dlpack__(copy=True)
    with pytest.raises(BufferError):
        device.upload(np.zeros(3)).__dlpack__(dl_device=(2, 0))


def test_where_an_array_says_it_is(device: shim.ShimDevice) -> None:
    array = device.upload(np.zeros(3))
    assert array.__dlpack_device__() == (1, 0)
    assert not interop.is_on_device(np.zeros(3))
    assert not interop.is_on_device(array)
    assert not interop.is_on_device([1])
    assert interop.is_on_device(SimpleNamespace(__dlpack_device__=lambda: (2, 1)))
    assert interop.is_on_device(SimpleNamespace(__cuda_array_interface__={}))


@pytest.mark.gpu
def test_streams_wait(cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[tuple[str, int]] = []
    monkeypatch.setattr(CudaDevice, "wait_for", lambda self, stream: orders.append(("wait_for", stream)))
    monkeypatch.setattr(CudaDevice, "let_wait", lambda self, stream: orders.append(("let_wait", stream)))
    array = cuda.upload(np.zeros(3, np.float32))
    assert array.__cuda_array_interface__["stream"] == cuda.stream
    assert array.__dlpack_device__() == (2, 0)
    for stream in (None, 1, 77, -1):
        array.__dlpack__(stream=stream)
    assert orders == [("let_wait", 1), ("let_wait", 1), ("let_wait", 77)]
    orders.clear()
    interop.adopt_array(cuda, interface(array, stream=77))
    assert orders == [("wait_for", 77)]
    adopted = interop.adopt_array(cuda, SimpleNamespace(__dlpack__=array.__dlpack__,
                                                  __dlpack_device__=array.__dlpack_device__))
    assert orders[1:] == [("let_wait", cuda.stream)]  # the giver orders the streams
    assert adopted.pointer == array.pointer
    assert adopted.__dlpack_device__() == (2, 0)


@pytest.mark.gpu
def test_memory_of_the_host_is_refused(cuda: CudaDevice) -> None:
    host = np.zeros(3, np.float32)
    wrong = interface(DeviceArray(host.ctypes.data, (3,), np.float32, None))
    with pytest.raises(ValueError, match="data: its pointer is not in a GPU's memory"):
        interop.adopt_array(cuda, wrong, name="data")
    with pytest.raises(ValueError, match=r"data: expected an array on device \(2, 0\)"):
        interop.adopt_array(cuda, host, name="data")


@pytest.mark.gpu
@pytest.mark.skipif(ON_STAND_IN, reason="the libraries need a GPU")
@pytest.mark.parametrize("library", ["torch", "cupy", "pycuda"])
def test_libraries(cuda: CudaDevice, library: str) -> None:
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    if library == "torch":
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("this PyTorch has no CUDA")
        given = torch.arange(12, dtype=torch.float32, device="cuda").reshape(3, 4)
        taken = torch.from_dlpack(cuda.upload(expected)).cpu().numpy()
        stream: Any = torch.cuda.Stream()
    elif library == "cupy":
        cupy = pytest.importorskip("cupy")
        given = cupy.arange(12, dtype=cupy.float32).reshape(3, 4)
        taken = cupy.asnumpy(cupy.from_dlpack(cuda.upload(expected)))
        np.testing.assert_array_equal(cupy.asnumpy(cupy.asarray(cuda.upload(expected))), expected)
        stream = cupy.cuda.Stream(non_blocking=True)
    else:
        pytest.importorskip("pycuda")
        pytest.importorskip("pycuda.autoprimaryctx")
        gpuarray = pytest.importorskip("pycuda.gpuarray")
        given = gpuarray.to_gpu(expected)
        taken = expected
        stream = sys.modules["pycuda.driver"].Stream()
    np.testing.assert_array_equal(taken, expected)
    adopted = interop.adopt_array(cuda, given, np.float32)
    np.testing.assert_array_equal(cuda.download(adopted), expected)
    with_stream = open_device(stream=stream)
    np.testing.assert_array_equal(with_stream.download(with_stream.upload(expected)), expected)
    with_stream.close()
