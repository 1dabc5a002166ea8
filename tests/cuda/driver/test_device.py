"""Rules of every `Device`: the shim, a GPU and, without a GPU, its code on a stand-in for the driver."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shim
import standin

from deblendrt.cuda.driver import kernel_compiler
from deblendrt.cuda.driver.cuda_device import CudaDevice, open_device, stream_handle
from deblendrt.cuda.driver.device import DeviceArray, DeviceError, OutOfDeviceMemory
from deblendrt.cuda.driver.loaded_kernel import pack
from deblendrt.cuda.driver.staging import N_SLOT, SLOT_BYTES

PLANTED = Path(shim.__file__).parent
ON_STAND_IN = "DEBLENDRT_STAND_IN" in os.environ
needs_shim = pytest.mark.skipif(shim.missing() is not None, reason=str(shim.missing()))
needs_binding = pytest.mark.skipif(not ON_STAND_IN, reason="run by test_on_the_stand_in")


def gpu(monkeypatch: pytest.MonkeyPatch, **options: Any) -> CudaDevice:
    """The GPU, or the stand-in for the driver, with the planted kernels."""
    find = standin.cubin if ON_STAND_IN else kernel_compiler.cubin
    monkeypatch.setattr(kernel_compiler, "cubin", functools.partial(_planted, find))
    if ON_STAND_IN:
        monkeypatch.setattr(kernel_compiler, "compiler", lambda: None)
        monkeypatch.setattr(kernel_compiler, "prepare", lambda architecture: None)
    try:
        return open_device(**options)
    except DeviceError as error:
        if ON_STAND_IN:
            raise
        pytest.skip(str(error).partition(" (")[0])


def _planted(find: Any, file: str, architecture: str) -> bytes:
    content: bytes = find(file, architecture, PLANTED)
    return content


@pytest.fixture(params=[pytest.param("shim", marks=needs_shim), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Each kind of device."""
    if request.param == "shim":
        yield shim.ShimDevice(folder=PLANTED)
    else:
        opened = gpu(monkeypatch)
        yield opened
        opened.close()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDevice]:
    """A `CudaDevice`."""
    opened = gpu(monkeypatch)
    yield opened
    opened.close()


def affine(device: Any, x: DeviceArray, out: DeviceArray, scale: float = 2.0, shift: float = 0.5) -> None:
    n = x.size
    device.launch("planted:affine", (-(-n // 64),), (64,), x, float(scale), np.float64(shift), n, np.int64(1), out)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u1", "?"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (2, 3, 5)])
def test_arrays_come_back(device: Any, shape: tuple[int, ...], dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    back = device.download(device.upload(array))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_strided_arrays(device: Any) -> None:
    array = np.arange(60.0).reshape(3, 4, 5)[::-1, 1:, ::2].transpose(2, 0, 1)
    np.testing.assert_array_equal(device.download(device.upload(array)), array)


def test_upload_into(device: Any) -> None:
    out = device.empty((2, 3), np.float32)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert device.upload(array, out) is out
    array[...] = -1  # this does not change the uploaded array
    np.testing.assert_array_equal(device.download(out), [[0, 1, 2], [3, 4, 5]])
    device.upload(np.full(3, 9, np.float32), out.rows(1, 2).reshape(3))
    np.testing.assert_array_equal(device.download(out)[1], 9)
    with pytest.raises(ValueError, match=r"upload: expected \(2, 3\) float32, got \(2, 3\) float64"):
        device.upload(np.zeros((2, 3)), out)


def test_copy_and_clear(device: Any) -> None:
    source, target = device.upload(np.arange(4.0)), device.empty(4, np.float64)
    device.copy(source, target)
    device.clear(source.rows(1, 3))
    np.testing.assert_array_equal(device.download(target), [0, 1, 2, 3])
    np.testing.assert_array_equal(device.download(source), [0, 0, 0, 3])
    device.clear(source.rows(2, 2))
    device.copy(source.rows(0, 0), target.rows(0, 0))
    with pytest.raises(ValueError, match="copy: 32 bytes to 8"):
        device.copy(source, target.rows(0, 1))


def test_launch_passes_arguments_of_every_type(device: Any) -> None:
    x, out = device.upload(np.arange(100, dtype=np.float32)), device.empty(100, np.float32)
    affine(device, x, out, 0.1, 1e-3)
    expected = (np.float32(0.1) * np.arange(100, dtype=np.float32) + 1e-3).astype(np.float32)
    np.testing.assert_allclose(device.download(out), expected, rtol=2e-7)
    flag = device.empty(1, np.int32)
    for array, expected_flag in [(None, 1), (x, 0), (device.empty(0, np.float32), 0)]:
        device.launch("planted:is_null", (1,), (1,), array, flag)
        assert device.download(flag)[0] == expected_flag


@pytest.mark.parametrize("n_value", [64, 256, 13 * 1024, 50 * 1024])
def test_shared_memory(device: Any, n_value: int) -> None:
    x = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    out = device.empty(8, np.float32)
    device.launch("planted:sums", (8,), (64,), device.upload(x), 500, n_value - 1, out, shared=4 * n_value)
    expected = np.pad(x, (0, 12)).reshape(8, 64).sum(1)
    np.testing.assert_allclose(device.download(out), expected, rtol=1e-5, atol=1e-5)


def test_empty_grid_launches_nothing(device: Any) -> None:
    x = device.upload(np.zeros(0, np.float32))
    affine(device, x, x)


def test_wrong_launches(device: Any) -> None:
    x = device.upload(np.zeros(4, np.float32))
    with pytest.raises(DeviceError, match="affine"):
        device.launch("planted:affine", (1,), (64,), x, 1.0, np.float64(0), 4, np.int64(1))
    with pytest.raises(DeviceError, match="affine"):
        device.launch("planted:affine", (1,), (64,), x, np.float64(1), np.float64(0), 4, np.int64(1), x)
    with pytest.raises(DeviceError, match="bool"):
        device.launch("planted:affine", (1,), (64,), x, 1.0, np.float64(0), True, np.int64(1), x)
    with pytest.raises(DeviceError, match="nothing"):
        device.launch("planted:nothing", (1,), (64,), x)
    affine(device, x, x)  # the device still works
    np.testing.assert_array_equal(device.download(x), 0.5)


def test_recording(device: Any) -> None:
    x, y, z = (device.upload(np.full(5, k, np.float32)) for k in range(3))

    def work() -> None:
        affine(device, x, y)
        device.copy(y, z)
        affine(device, z, x)
        device.clear(y)

    recording = device.record(work)
    np.testing.assert_array_equal(device.download(x), 0)  # nothing ran
    recording.replay()
    recording.replay()
    np.testing.assert_array_equal(device.download(x), 2 * (2 * 1.5 + 0.5) + 0.5)
    np.testing.assert_array_equal(device.download(y), 0)
    device.upload(np.full(5, 10, np.float32), x)  # a replay uses the arrays' present contents
    recording.replay()
    np.testing.assert_array_equal(device.download(x), 41.5)
    device.record(lambda: None).replay()


def test_a_recording_keeps_its_arrays(device: Any) -> None:
    out = device.empty(8, np.float32)
    x = device.upload(np.ones(8, np.float32))
    recording = device.record(functools.partial(affine, device, x, out))
    del x
    gc.collect()
    device.upload(np.zeros(8, np.float32))
    recording.replay()
    np.testing.assert_array_equal(device.download(out), 2.5)


def test_what_may_not_be_recorded(device: Any) -> None:
    x = device.upload(np.ones(8, np.float32))
    for name, work in {"allocate": lambda: device.empty(3, np.float32), "download": lambda: device.download(x),
                       "upload": lambda: device.upload(np.ones(8, np.float32), x),
                       "record": lambda: device.record(lambda: None)}.items():
        with pytest.raises(DeviceError, match=f"recorded must not {name}"):
            device.record(work)
    with pytest.raises(ZeroDivisionError):
        device.record(lambda: 1 / 0)
    affine(device, x, x)  # the device still works
    np.testing.assert_array_equal(device.download(x), 2.5)


def test_limit(device: Any) -> None:
    held = device.empty(1000, np.uint8)
    with device.limit(device.used + 100):
        small = device.empty(60, np.uint8)
        with pytest.raises(OutOfDeviceMemory, match="41 bytes asked for, 40 left"):
            device.empty(41, np.uint8)
        del small
        device.empty(100, np.uint8)
    device.empty(4000, np.uint8)
    with device.limit(None):
        device.empty(4000, np.uint8)
    gc.collect()
    assert device.used == held.nbytes


@pytest.mark.parametrize(("argument", "size", "expected"), [
    (7, 4, np.int32(7)), (-1, 4, np.int32(-1)), (0.1, 4, np.float32(0.1)), (np.float64(0.1), 8, np.float64(0.1)),
    (np.float32(0.1), 4, np.float32(0.1)), (np.int64(1 << 40), 8, np.int64(1 << 40)), (np.uint8(3), 1, np.uint8(3)),
    (1e40, 4, np.float32("inf")), (None, 8, np.uint64(0)),
    (DeviceArray(1 << 45, (3,), "f4", None), 8, np.uint64(1 << 45)),
])
@pytest.mark.filterwarnings("ignore:overflow")
def test_packing(argument: Any, size: int, expected: np.generic) -> None:
    content, sizes = pack((argument, argument))
    assert sizes == [size, size]
    assert len(content) == 16
    for start in (0, 8):
        assert content[start : start + size] == expected.tobytes()


@pytest.mark.parametrize("argument", [True, np.True_, 2**31, "text", np.zeros(2), np.longdouble(1)])
def test_what_cannot_be_packed(argument: Any) -> None:
    with pytest.raises(DeviceError):
        pack((argument,))


def test_streams_of_other_libraries() -> None:
    for stream in (12, np.int64(12), SimpleNamespace(cuda_stream=12), SimpleNamespace(ptr=12),
                   SimpleNamespace(handle=12), SimpleNamespace(handle=SimpleNamespace(value=12)),
                   SimpleNamespace(__cuda_stream__=lambda: (0, 12)), SimpleNamespace(__cuda_stream__=(0, 12))):
        assert stream_handle(stream) == 12
    for stream in ("12", True, object()):
        with pytest.raises(TypeError, match="stream: expected"):
            stream_handle(stream)


@pytest.mark.gpu
def test_transfers_larger_than_the_ring(cuda: CudaDevice) -> None:
    array = np.random.default_rng(0).integers(0, 255, 2 * N_SLOT * SLOT_BYTES + 12345).astype(np.uint8)
    small = [np.full(1000 + k, k, np.int32) for k in range(50)]
    uploaded = [cuda.upload(a) for a in (*small, array, *small)]
    for expected, found in zip((*small, array, *small), uploaded, strict=True):
        np.testing.assert_array_equal(cuda.download(found), expected)


@pytest.mark.gpu
def test_big_endian_arrays(cuda: CudaDevice) -> None:
    np.testing.assert_array_equal(cuda.download(cuda.upload(np.arange(5, dtype=">f4"))), np.arange(5))


@pytest.mark.gpu
def test_callers_stream(monkeypatch: pytest.MonkeyPatch, cuda: CudaDevice) -> None:
    for stream in (cuda.stream, SimpleNamespace(ptr=cuda.stream), 0, 1, 2):
        second = gpu(monkeypatch, stream=stream)
        assert second.stream == (stream if isinstance(stream, int) else cuda.stream)
        x = second.upload(np.ones(5, np.float32))
        second.record(lambda x=x, second=second: affine(second, x, x)).replay()
        np.testing.assert_array_equal(second.download(x), 2.5)
        cuda.wait_for(second.stream)
        cuda.let_wait(second.stream)
        second.close()
        cuda.synchronize()  # the stream still belongs to the caller


@pytest.mark.gpu
def test_other_threads(cuda: CudaDevice) -> None:
    x = cuda.upload(np.ones(5, np.float32))
    found: list[np.ndarray] = []

    def work() -> None:
        y = cuda.empty(5, np.float32)
        affine(cuda, x, y)
        found.append(cuda.download(y))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], 2.5)
    assert cuda.used == x.nbytes


@pytest.mark.gpu
def test_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    device = gpu(monkeypatch)
    arrays = [device.empty(1 << 20, np.float32) for _ in range(5)]
    recording = device.record(functools.partial(device.clear, arrays[0]))
    assert device.used == 5 << 22
    free, total = device.memory()
    assert 0 <= free <= total - (5 << 22)
    del arrays
    gc.collect()
    assert device.used == 1 << 22  # held by the recording
    del recording
    gc.collect()
    assert device.used == 0
    device.close()
    device.close()


@pytest.mark.gpu
def test_too_much_shared_memory(cuda: CudaDevice) -> None:
    with pytest.raises(DeviceError, match=r"planted:sums: 10000000 bytes of shared memory asked for, a block can have"):
        cuda.launch("planted:sums", (1,), (64,), cuda.empty(64, np.float32), 64, 0, cuda.empty(1, np.float32),
                    shared=10_000_000)


@pytest.mark.gpu
def test_no_such_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch).close()
    with pytest.raises(DeviceError, match=r"there is no GPU 99: the driver shows .* CUDA_VISIBLE_DEVICES"):
        open_device(99)


@needs_binding
def test_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MAJOR", "7")
    with pytest.raises(DeviceError, match=r"Stand-in has compute capability 7\.0; 8\.0 \(Ampere\) or newer"):
        open_device()


@needs_binding
def test_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NO_DEVICE", "1")
    with pytest.raises(DeviceError, match=r"does not start: error 100 \(CUDA_ERROR_NO_DEVICE\).*CUDA_VISIBLE_DEVICES"):
        open_device()


@needs_binding
def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEBLENDRT_CACHE", str(tmp_path))
    monkeypatch.setattr(kernel_compiler, "compiler", lambda: None)
    monkeypatch.setattr(kernel_compiler, "names", lambda: ["planted"])
    monkeypatch.setattr(kernel_compiler, "SOURCE", PLANTED)
    with pytest.raises(DeviceError, match=r"neither NVRTC nor nvcc found; pip install .*sm_90 yet: planted"):
        open_device()


@pytest.mark.gpu
def test_more_than_there_is(cuda: CudaDevice) -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"1099511627776 bytes asked for, .* free, 0 in use here"):
        cuda.empty(1 << 40, np.uint8)
    cuda.empty(3, np.float32)


@needs_binding
def test_memory_runs_out(cuda: CudaDevice) -> None:
    held = cuda.empty(900 << 20, np.uint8)  # the stand-in has 1 GiB
    with pytest.raises(OutOfDeviceMemory, match=r"Stand-in: 209715200 bytes asked for, \d+ of 1073741824 free.*limit"):
        cuda.empty(200 << 20, np.uint8)
    del held
    cuda.empty(200 << 20, np.uint8)


def test_no_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda.bindings.driver", "cuda.bindings", "cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DeviceError, match=r'cuda-bindings is not installed.*: pip install "deblendrt\[gpu\]"'):
        open_device()


LOSE = """
import sys
import numpy as np
from deblendrt.cuda.driver.cuda_device import CudaDevice
from deblendrt.cuda.driver.device import DeviceArray, DeviceError

device = CudaDevice()
good = device.empty(8, np.float32)
device.clear(good)
for _ in range(2):
    try:
        device.clear(DeviceArray(64, (8,), np.float32, None))
        device.synchronize()
    except DeviceError as error:
        print(error)
del good
device.close()
"""


@needs_binding
def test_lost_context() -> None:
    done = subprocess.run([sys.executable, "-c", LOSE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "error 700 (CUDA_ERROR_ILLEGAL_ADDRESS)" in line
        assert "context is lost" in line
        assert "start a new one" in line


@needs_shim
@pytest.mark.skipif(ON_STAND_IN, reason="is running")
def test_on_the_stand_in() -> None:
    """All tests of this file and of `test_interop.py` that a GPU would run, on the stand-in for the driver."""
    pytest.importorskip("cuda.bindings.driver", reason="the package cuda-bindings is not installed")
    folder, reason = standin.folder()
    if folder is None:
        pytest.skip(str(reason))
    here = Path(__file__).parent
    files = [path for path in (here / "test_device.py", here / "test_interop.py") if path.exists()]
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not shim", *files],
                          env={**os.environ, "LD_LIBRARY_PATH": paths, "DEBLENDRT_STAND_IN": "1"},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
