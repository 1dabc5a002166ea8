"""Bands and axes that an object names itself: dicts of bands, pandas Series, xarray DataArrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deblendrt.engine.scene.objects.arrays import is_a, is_data_array, is_sequence

AXES = {"band": ("band", "bands", "filter", "filters", "channel", "channels", "wavelength"),
        "y": ("y", "ny", "n_y", "row", "rows"), "x": ("x", "nx", "n_x", "col", "column", "columns")}


def labels(value: Any, name: str) -> tuple[str, ...] | None:
    """Return the names of the bands that an object states, in the object's order; None if it states none.

    Parameters
    ----------
    value : Any
    name : str
        Name of the argument, for messages.

    Returns
    -------
    tuple of str, or None
    """
    found: Any = None
    if isinstance(value, Mapping):
        found = tuple(value)
    elif is_a(value, "pandas", "Series"):
        found = tuple(value.index) if all(isinstance(key, str) for key in value.index) else None
    elif is_data_array(value):
        axis = _axes(value, name).get("band")
        coordinate = value.coords.get(axis) if axis is not None else None
        found = None if coordinate is None else tuple(coordinate.values.tolist())
        if axis is None and value.ndim == 2 and (own_label := _label_of_plane(value)) is not None:
            found = (own_label,)
        if found is not None and not any(isinstance(label, str) for label in found):
            if found not in (tuple(range(len(found))), tuple(range(1, len(found) + 1))):
                raise ValueError(f"{name}: expected names of bands as the coordinate {axis}, got {found}")
            found = None  # numbers of planes
    elif is_sequence(value) and len(value) and all(is_data_array(item) for item in value):
        own = [_label_of_plane(item) for item in value]
        if any(label is not None for label in own):
            found = tuple(own)
    if found is None:
        return None
    if not all(isinstance(label, str) for label in found) or len(set(found)) != len(found):
        raise ValueError(f"{name}: expected distinct names of bands, got {', '.join(map(str, found))}")
    return tuple(str(label) for label in found)


def _label_of_plane(plane: Any) -> str | None:
    """Return the band that a DataArray (y, x) states in a coordinate without a dimension, as `DataArray.sel` leaves."""
    for key, coordinate in plane.coords.items():
        if str(key).lower() in AXES["band"] and coordinate.ndim == 0 and isinstance(coordinate.item(), str):
            return str(coordinate.item())
    return None


def stated_bands(cutouts: Any) -> tuple[str, ...] | None:
    """Return the bands that the cutouts state themselves, a scene or a sequence of scenes; None if they state none.

    Raises
    ------
    ValueError
        The scenes state different bands.
    """
    own = labels(cutouts, "cutouts")
    if own is not None or not is_sequence(cutouts):
        return own
    each = [labels(scene, f"cutouts[{i}]") for i, scene in enumerate(cutouts)]
    if not each or all(entry is None for entry in each):
        return None
    for i, entry in enumerate(each):
        if entry is None or set(entry) != set(each[0] or ()):
            raise ValueError(f"cutouts[{i}]: expected the bands of the first scene, {', '.join(each[0] or ('none',))}, "
                             f"got {', '.join(entry or ('none',))}; choose with bands=")
    return each[0]


def split_scenes(value: Any, name: str) -> Any:
    """Return a DataArray of several scenes as a list of scenes, and any other value as it is."""
    if not is_data_array(value) or value.ndim != 4:
        return value
    axes = _axes(value, name)
    rest = [axis for axis in value.dims if axis not in axes.values()]
    scene = rest[0] if len(axes) == 3 else value.dims[0]
    return [value.isel({scene: i}) for i in range(value.sizes[scene])]


def in_order(value: Any, names: Sequence[str], name: str, grid: bool = True) -> Any:
    """Return a value with its bands in a given order: a list or an array for an object that names its bands.

    Parameters
    ----------
    value : Any
        A value that names no bands is returned as it is.
    names : sequence of str
        Bands to return, in this order.
    name : str
        Name of the argument, for messages.
    grid : bool
        Whether coordinates of a DataArray along y and x must count the pixels of the image.

    Returns
    -------
    Any
    """
    own = labels(value, name)
    if is_data_array(value):
        value = _transposed(value, name, grid)
        if own is not None and own != tuple(names):
            axis = value.dims[0]
            value = value.isel({axis: [own.index(band) for band in _known(own, names, name)]})
        return value
    if own is None:
        return [in_order(item, names, f"{name}[{i}]", grid) for i, item in enumerate(value)] if is_sequence(value) and (
            any(is_data_array(item) for item in value)) else value
    if isinstance(value, Mapping) or is_a(value, "pandas", "Series"):
        return [in_order(value[band], (band,), f"{name}[{band!r}]", grid) for band in _known(own, names, name)]
    return [_transposed(value[own.index(band)], name, grid) for band in _known(own, names, name)]


def _known(own: Sequence[str], names: Sequence[str], name: str) -> Sequence[str]:
    if missing := [band for band in names if band not in own]:
        raise ValueError(f"{name}: expected the bands {', '.join(names)}, got {', '.join(own) or 'none'}: no "
                         f"{', '.join(missing)}")
    return names


def _axes(value: Any, name: str) -> dict[str, Any]:
    """Return the dimensions of a DataArray that are known as band, y and x."""
    found: dict[str, Any] = {}
    for role, known in AXES.items():
        dims = [dim for dim in value.dims if str(dim).lower() in known]
        if len(dims) > 1:
            raise ValueError(f"{name}: expected one dimension for {role}, got {', '.join(map(str, dims))}")
        if dims:
            found[role] = dims[0]
    if "band" not in found:  # a dimension of another name whose coordinates are texts
        for dim in value.dims:
            if dim in value.coords and value.coords[dim].dtype.kind in "USO" and dim not in found.values():
                found["band"] = dim
    return found


def _transposed(value: Any, name: str, grid: bool) -> Any:
    """Return a DataArray with the dimensions (band,) y, x, after a check of its coordinates."""
    axes = _axes(value, name)
    if value.ndim == 1 or all(str(dim) == f"dim_{k}" for k, dim in enumerate(value.dims)):  # xarray's own names
        return value
    order = [axes[role] for role in ("band", "y", "x") if role in axes]
    if len(order) != value.ndim or "y" not in axes or "x" not in axes:
        raise ValueError(f"{name}: expected the dimensions band, y, x, got {', '.join(map(str, value.dims))}")
    for role in ("y", "x") if grid else ():
        coordinate = value.coords.get(axes[role])
        if coordinate is not None and not np.array_equal(coordinate.values, np.arange(coordinate.size)):
            raise ValueError(f"{name}: expected coordinates 0, 1, 2, ... along {axes[role]}, got "
                             f"{coordinate.values[:3]}: positions count from the image's first pixel; use "
                             f"drop_vars({axes[role]!r})")
    return value if tuple(order) == tuple(value.dims) else value.transpose(*order)
