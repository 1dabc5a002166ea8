"""Arrays, and objects that hold an array: their values, units and masks.

An object is opened layer by layer: an astropy NDData, Cutout2D, masked array, Quantity or Column, an xarray DataArray,
a quantity of pint or unyt. Another package is looked for among the loaded modules: an object of it cannot exist before.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

UNIT_KEYS = ("units", "unit", "bunit")  # attributes of a DataArray, in small letters


class Numbers(NamedTuple):
    """A numeric argument.

    Attributes
    ----------
    values : number array
        The values, not converted; if possible they share the caller's memory.
    units : tuple of astropy units
        A unit of all values, or a unit for each leading element; empty if the values have no unit.
    masked : bool array, or None
        True where a value must not be used.
    """

    values: NDArray[Any]
    units: tuple[Any, ...] = ()
    masked: NDArray[np.bool_] | None = None


def is_a(value: Any, module: str, name: str) -> bool:
    """Return whether a value is an instance of a class of another package, which is not imported for that."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def is_nddata(value: Any) -> bool:
    """Return whether a value is an astropy NDData, such as a CCDData."""
    return is_a(value, "astropy.nddata", "NDData")


def is_data_array(value: Any) -> bool:
    """Return whether a value is an xarray DataArray."""
    return is_a(value, "xarray", "DataArray")


def is_sequence(value: Any) -> bool:
    """Return whether a value is a sequence of arrays. An array of objects counts as a sequence."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object)


def rank(value: Any) -> int:
    """Return the number of dimensions of an array, or of nested sequences and dicts down to their deepest element."""
    if is_sequence(value) or isinstance(value, Mapping):
        parts = value.values() if isinstance(value, Mapping) else value
        return 1 + max((rank(item) for item in parts if item is not None), default=0)
    if is_nddata(value) or is_a(value, "astropy.nddata", "Cutout2D"):
        return int(np.ndim(value.data))
    return int(getattr(value, "ndim", 0))


def is_plain(value: Any) -> bool:
    """Return whether a value is a number or an array without a unit or a mask, or nested sequences of these."""
    if is_sequence(value):
        return all(is_plain(item) for item in value)
    return isinstance(value, int | float | np.number) or type(value) is np.ndarray


def came(value: Any) -> str:
    """Describe a value for an error message."""
    if is_sequence(value):
        return f"a sequence of {len(value)}"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, list(value)[:8]))}"
    if hasattr(value, "dtype") and getattr(value, "shape", None):
        return f"shape {value.shape}"
    text = " ".join(repr(value).split())
    return text if len(text) < 80 else type(value).__name__


def read_numbers(value: Any, name: str) -> Numbers:
    """Return values, units and mask of an argument.

    Parameters
    ----------
    value : array, an object that holds an array, or a sequence of these of one shape
    name : str
        Name of the argument, for messages.

    Returns
    -------
    Numbers

    Raises
    ------
    ValueError
        The argument holds no real numbers, its arrays have several shapes, or only some have a unit.
    """
    if is_sequence(value) and not is_plain(value):
        return stacked([read_numbers(item, f"{name}[{i}]") for i, item in enumerate(value)], name)
    inner, unit, masked = opened(value, name)
    try:
        values = np.asarray(inner)
    except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: a tensor that records gradients
        reason = f" ({error})" if isinstance(error, RuntimeError) else ""
        raise ValueError(f"{name}: expected an array of one shape, got {came(value)}{reason}") from error
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected real numbers, got {came(value)} of {values.dtype}")
    if masked is not None:
        masked = np.broadcast_to(masked, values.shape)
    return Numbers(values, () if unit is None else (unit,), masked)


def stacked(parts: list[Numbers], name: str) -> Numbers:
    """Return arrays of one shape as one array with a further axis; `name` is for messages."""
    if len({part.values.shape for part in parts}) > 1:
        raise ValueError(f"{name}: expected arrays of one shape, got shapes {[part.values.shape for part in parts]}")
    units = [unit for part in parts for unit in part.units]
    if len(units) not in (0, len(parts)):
        raise ValueError(f"{name}: expected a unit for all entries or for none, got "
                         f"{', '.join(str(part.units[0]) if part.units else 'no unit' for part in parts)}")
    masked = None
    if any(part.masked is not None for part in parts):
        masked = np.stack([np.zeros(part.values.shape, bool) if part.masked is None else part.masked
                           for part in parts])
    return Numbers(np.stack([part.values for part in parts]), tuple(units), masked)


def opened(value: Any, name: str) -> tuple[Any, Any, NDArray[np.bool_] | None]:
    """Return the array in an object, its unit and its mask, None without these.

    A unit "dimensionless" counts as no unit.
    """
    unit: Any = None
    masked: NDArray[np.bool_] | None = None
    while True:
        own, mask, inner = None, None, value
        if is_nddata(value):
            if getattr(value, "flags", None) is not None:
                raise ValueError(f"{name}: expected no flags, got {type(value).__name__} with flags: make a mask of "
                                 "them, True meaning bad")
            own, mask, inner = value.unit, value.mask, value.data
        elif is_a(value, "astropy.nddata", "Cutout2D"):
            inner = value.data
        elif is_data_array(value):
            text = next((text for key, text in value.attrs.items() if str(key).lower() in UNIT_KEYS), None)
            own, inner = parse_unit(text, name), value.data
        elif is_a(value, "astropy.utils.masked", "Masked"):
            mask, inner = value.mask, value.unmasked
        elif hasattr(value, "to_value") and hasattr(value, "unit"):  # a Quantity
            own, inner = value.unit, value.value
        elif isinstance(value, np.ndarray) and (column := getattr(value, "unit", None)) is not None:  # a Column
            own, inner = column, np.ma.MaskedArray(value) if np.ma.isMA(value) else np.asarray(value)
        elif hasattr(value, "units") and (hasattr(value, "magnitude") or hasattr(value, "to_astropy")):  # pint, unyt
            own, inner = parse_unit(value.units, name), value.magnitude if hasattr(value, "magnitude") else value.d
        elif np.ma.isMA(value):
            mask, inner = np.ma.getmaskarray(value), np.ma.getdata(value)
        if own is not None and str(own):  # "dimensionless" has an empty name
            if unit is not None and unit != own:
                raise ValueError(f"{name}: expected one unit, got {unit} and {own}")
            unit = own
        if mask is not None and np.any(mask):
            array = mask_array(mask, name + ".mask")
            masked = array if masked is None else masked | array
        if inner is value:
            return value, unit, masked
        value = inner


def mask_array(mask: Any, name: str) -> NDArray[np.bool_]:
    """Return a mask as an array of bool. A masked value of a mask is True.

    Raises
    ------
    ValueError
        The mask is neither bool nor 0 and 1.
    """
    inner, unit, hidden = opened(mask, name)
    try:
        array = np.asarray(inner)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name}: expected an array of one shape, got {came(mask)}") from error
    if unit is not None:
        raise ValueError(f"{name}: expected bool, True meaning bad, got the unit {unit}")
    if array.dtype.kind in "iu" and ((array == 0) | (array == 1)).all():
        array = array.astype(bool)
    if array.dtype != bool:
        raise ValueError(f"{name}: expected bool, True meaning bad, got {array.dtype}; select bit planes first, "
                         "(mask & bits) != 0")
    return array if hidden is None else array | hidden


def plain_images(value: Any, name: str) -> Any:
    """Return images whose scale has no meaning, such as PSFs, without the objects that hold them.

    Raises
    ------
    ValueError
        Pixels are masked, or the unit is neither dimensionless nor a number per area, nor counts.
    """
    from astropy import units

    if is_sequence(value):
        return [plain_images(item, f"{name}[{i}]") for i, item in enumerate(value)]
    refuse_uncertainty(value, name)
    inner, unit, masked = opened(value, name)
    if masked is not None:
        raise ValueError(f"{name}: expected images without masked pixels, got {int(masked.sum())} masked")
    if unit is not None and not any(unit.is_equivalent(known) for known in (
            units.dimensionless_unscaled, units.pix**-2, units.sr**-1, units.adu, units.electron, units.count)):
        raise ValueError(f"{name}: expected images without a unit, got the unit {unit}")
    return inner


def refuse_uncertainty(value: Any, name: str) -> None:
    """Raise ValueError for an NDData whose uncertainty would be ignored."""
    parts = value.values() if isinstance(value, Mapping) else value if is_sequence(value) else [value]
    if any(is_nddata(part) and part.uncertainty is not None for part in parts):
        raise ValueError(f"{name}: expected no uncertainty, got {came(value)} with an uncertainty; give its data alone")


def parse_unit(text: Any, name: str) -> Any:
    """Return the unit that a text means; None for None or an empty text."""
    from astropy import units

    if text is None or not str(text).strip() or str(text).strip() in ("dimensionless", "1"):
        return None
    try:
        return units.Unit(text if isinstance(text, units.UnitBase) else str(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: expected a unit that astropy knows, got {str(text)[:60]!r}") from error


def number(value: Any, units: tuple[str, ...]) -> float:
    """Return a number, or a Quantity in the first of these units that it converts to.

    Raises
    ------
    TypeError, ValueError, OverflowError
        The value is no number, or has another unit.
    """
    if not hasattr(value, "to_value"):
        if hasattr(value, "unit") or hasattr(value, "units") or isinstance(value, bool | np.bool_):
            raise TypeError("expected a number or a Quantity")
        return float(value)
    for unit in units:
        if value.unit.is_equivalent(unit):
            return float(value.to_value(unit))
    raise ValueError(f"expected {' or '.join(units) or 'no unit'}, got the unit {value.unit}")
