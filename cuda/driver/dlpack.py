"""Capsules of DLPack, which lend a device array to another library without a copy."""

from __future__ import annotations

import ctypes
from typing import Any

CPU, CUDA, MANAGED = 1, 2, 13  # DLDeviceType; host and GPU both see managed memory
DLPACK_KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}  # DLDataTypeCode to NumPy's kind
DLPACK_CODES = {kind: code for code, kind in DLPACK_KINDS.items()}
CAPSULE, USED_CAPSULE = b"dltensor", b"used_dltensor"


class Tensor(ctypes.Structure):
    """DLTensor, dlpack.h."""

    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64))


class Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_api = ctypes.pythonapi
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", _api))
# by a capsule's address, since nothing may refer to a capsule that is being destroyed
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_SetName", _api))

given: dict[int, tuple[Any, ...]] = {}  # by address of a DLManagedTensor: objects that live until it is released


@Deleter
def _release(address: int) -> None:
    given.pop(address, None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _destroy(capsule: int) -> None:
    if _is_valid(capsule, CAPSULE):  # no library has taken it
        _release(get_pointer(capsule, CAPSULE))


def dlpack_device(array: Any) -> tuple[int, int]:
    """Return ``__dlpack_device__`` of an array: its device, else the host."""
    return getattr(getattr(array.owner, "device", None), "dlpack_device", (CPU, 0))


def to_dlpack(array: Any, stream: int | None = None, dl_device: tuple[int, int] | None = None,
              copy: bool | None = None) -> Any:
    """Return ``__dlpack__`` of an array: a capsule that shares its memory.

    Parameters
    ----------
    array : DeviceArray
    stream : int, optional
        The taker's stream, which will wait for the array's stream. -1: it does not wait. None or 1: the default stream.
    dl_device : tuple of int, optional
        Device on which the taker wants the array. Only the array's own device is possible.
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
    managed = Managed(Tensor(array.pointer, *here, len(array.shape), DLPACK_CODES[array.dtype.kind],
                             8 * array.dtype.itemsize, 1, shape, None, 0), None,
                      ctypes.cast(_release, ctypes.c_void_p))
    address = ctypes.addressof(managed)
    given[address] = (managed, shape, array)
    return _new_capsule(address, CAPSULE, ctypes.cast(_destroy, ctypes.c_void_p))


def interface_stream(array: Any) -> int | None:
    """Return the stream that takers of an array by ``__cuda_array_interface__`` must wait for."""
    stream = getattr(getattr(array.owner, "device", None), "stream", None)
    return stream or (None if stream is None else 1)  # the interface does not allow 0; 1 is the same default stream
