"""Arrays shared with CuPy, PyTorch, PyCUDA and Numba without a copy, by DLPack and ``__cuda_array_interface__``.

DLPack is preferred: the other library makes our stream wait for its stream. ``__cuda_array_interface__`` may name the
stream to wait for. If it does not (PyCUDA), the caller passes the stream to `open_device`, or synchronizes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from deblendrt.cuda.driver.device import DeviceArray, DeviceError

CPU, CUDA, MANAGED = 1, 2, 13  # DLDeviceType; host and GPU both see managed memory
DLPACK_KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}  # DLDataTypeCode to NumPy's kind
DLPACK_CODES = {kind: code for code, kind in DLPACK_KINDS.items()}
CAPSULE, USED_CAPSULE = b"dltensor", b"used_dltensor"


class _Tensor(ctypes.Structure):
    """DLTensor, dlpack.h."""

    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64))


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_api = ctypes.pythonapi
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", _api))
# by a capsule's address, since nothing may refer to a capsule that is being destroyed
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_SetName", _api))

_given: dict[int, tuple[Any, ...]] = {}  # by address of a DLManagedTensor: objects that live until it is released


@_Deleter
def _release(address: int) -> None:
    _given.pop(address, None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _destroy(capsule: int) -> None:
    if _is_valid(capsule, CAPSULE):  # no library took it
        _release(_get_pointer(capsule, CAPSULE))


class Adopted:
    """Owner of an array of another library.

    Parameters
    ----------
    source : object
        The caller's array, kept alive.
    device : object
        The device that uses the array.
    managed : int
        Address of its DLManagedTensor, 0 if it has none.
    """

    def __init__(self, source: Any, device: Any, managed: int = 0) -> None:
        self.source, self.device, self._managed = source, device, managed

    def __del__(self) -> None:
        if self._managed:
            deleter = _Managed.from_address(self._managed).deleter
            if deleter:
                _Deleter(deleter)(self._managed)


def adopt_array(device: Any, array: Any, dtype: DTypeLike | None = None, name: str = "array") -> DeviceArray:
    """An array of another library as a `DeviceArray`, which shares its memory and keeps it alive.

    Parameters
    ----------
    device : Device
        Its later work waits for the work of the array's library, as far as the library names its stream.
    array : object
        With ``__dlpack__`` or ``__cuda_array_interface__``, C-contiguous, in this device's memory.
    dtype : dtype, optional
        The expected dtype.
    name : str
        For messages.

    Returns
    -------
    DeviceArray
        Raises TypeError, ValueError.
    """
    if isinstance(array, DeviceArray):
        adopted = array
    elif hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        adopted = _from_dlpack(device, array, name)
    elif hasattr(array, "__cuda_array_interface__"):
        adopted = _from_interface(device, array, name)
    else:
        raise TypeError(f"{name}: expected an array with __dlpack__ or __cuda_array_interface__, "
                        f"got {type(array).__name__}")
    if dtype is not None and adopted.dtype != np.dtype(dtype):
        raise ValueError(f"{name}: expected dtype {np.dtype(dtype)}, got {adopted.dtype}")
    return adopted


def is_on_device(array: Any) -> bool:
    """Whether an array says that it lies in a GPU's memory."""
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) in (CUDA, MANAGED)
    return hasattr(array, "__cuda_array_interface__")


def dlpack_device(array: DeviceArray) -> tuple[int, int]:
    """``__dlpack_device__`` of an array: that of its device, else the host."""
    return getattr(getattr(array.owner, "device", None), "dlpack_device", (CPU, 0))


def to_dlpack(array: DeviceArray, stream: int | None = None, dl_device: tuple[int, int] | None = None,
              copy: bool | None = None) -> Any:
    """``__dlpack__`` of an array: a capsule that shares its memory.

    Parameters
    ----------
    array : DeviceArray
    stream : int, optional
        The taker's stream, which will wait for the array's stream. -1: it does not wait. None or 1: the default stream.
    dl_device : tuple of int, optional
        Where the taker wants the array. Only the array's own device is possible.
    copy : bool, optional
        True is refused.

    Returns
    -------
    PyCapsule
    """
    here = dlpack_device(array)
    if copy or (dl_device is not None and tuple(map(int, dl_device)) != here):
        raise BufferError("__dlpack__: a view where the array lies is all that is given; copy on your side")
    if array.dtype.kind not in DLPACK_CODES or not array.dtype.isnative:
        raise BufferError(f"__dlpack__: dtype {array.dtype} has no counterpart")
    if here[0] == CUDA and stream != -1:
        array.owner.device.let_wait(1 if stream is None else int(stream))
    shape = (ctypes.c_int64 * max(len(array.shape), 1))(*array.shape)
    managed = _Managed(_Tensor(array.pointer, *here, len(array.shape), DLPACK_CODES[array.dtype.kind],
                               8 * array.dtype.itemsize, 1, shape, None, 0), None,
                       ctypes.cast(_release, ctypes.c_void_p))
    address = ctypes.addressof(managed)
    _given[address] = (managed, shape, array)
    return _new_capsule(address, CAPSULE, ctypes.cast(_destroy, ctypes.c_void_p))


def interface_stream(array: DeviceArray) -> int | None:
    """The stream that takers of an array by ``__cuda_array_interface__`` must wait for."""
    stream = getattr(getattr(array.owner, "device", None), "stream", None)
    return stream or (None if stream is None else 1)  # the interface does not allow 0; 1 is the same default stream


def _from_dlpack(device: Any, array: Any, name: str) -> DeviceArray:
    expected = getattr(device, "dlpack_device", (CPU, 0))
    found = tuple(int(n) for n in array.__dlpack_device__())
    if found != expected and not (found[0] == MANAGED and expected[0] == CUDA):
        raise ValueError(f"{name}: expected an array on device {expected} (DLPack's type and number; 1: the host, 2: a "
                         f"GPU), got {found}")
    capsule = array.__dlpack__(stream=device.stream or 1) if expected[0] == CUDA else array.__dlpack__()
    address = _get_pointer(id(capsule), CAPSULE)
    tensor = _Managed.from_address(address).tensor
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    if tensor.lanes != 1 or tensor.code not in DLPACK_KINDS:
        raise ValueError(f"{name}: a DLPack dtype of code {tensor.code} and {tensor.lanes} lanes is not supported")
    kind = DLPACK_KINDS[tensor.code]
    dtype = np.dtype(np.bool_) if kind == "b" else np.dtype(f"{kind}{tensor.bits // 8}")
    _contiguous(shape, None if strides is None else tuple(n * dtype.itemsize for n in strides), dtype, name)
    pointer = (tensor.data or 0) + tensor.byte_offset
    _set_name(id(capsule), USED_CAPSULE)  # from here on we must delete it
    return DeviceArray(pointer, shape, dtype, Adopted(array, device, address))


def _from_interface(device: Any, array: Any, name: str) -> DeviceArray:
    found = array.__cuda_array_interface__
    if found.get("mask") is not None:
        raise ValueError(f"{name}: masked arrays are not supported")
    dtype = np.dtype(found["typestr"])
    if not dtype.isnative or dtype.hasobject:
        raise ValueError(f"{name}: expected numbers in this machine's byte order, got {found['typestr']}")
    shape = tuple(int(n) for n in found["shape"])
    _contiguous(shape, found.get("strides"), dtype, name)
    stream = found.get("stream")
    if stream is not None and hasattr(device, "wait_for"):
        device.wait_for(int(stream))
    pointer = int(found["data"][0] or 0)
    _same_gpu(device, pointer, name)
    return DeviceArray(pointer, shape, dtype, Adopted(array, device))


def _contiguous(shape: tuple[int, ...], strides: Any, dtype: np.dtype[Any], name: str) -> None:
    """Raise ValueError unless strides [byte] belong to a C-contiguous array."""
    if strides is None or 0 in shape:
        return
    step = dtype.itemsize
    for n, stride in zip(reversed(shape), reversed(tuple(strides)), strict=True):
        if n != 1 and stride != step:
            raise ValueError(f"{name}: expected a C-contiguous array, got shape {shape} with strides {tuple(strides)} "
                             "bytes: pass a contiguous copy (ascontiguousarray, or .contiguous() in PyTorch)")
        step *= n


def _same_gpu(device: Any, pointer: int, name: str) -> None:
    if not pointer or not hasattr(device, "driver"):
        return
    attribute = device.driver.api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    try:
        ordinal = int(device.driver("cuPointerGetAttribute", attribute, pointer))
    except DeviceError as error:
        raise ValueError(f"{name}: its pointer is not in a GPU's memory ({error})") from None
    if ordinal != device.ordinal:
        raise ValueError(f"{name}: lies on GPU {ordinal}, the work runs on GPU {device.ordinal}")
