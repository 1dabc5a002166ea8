"""Rows of a pipeline's inputs: every input has a row for each of its sources, even if the input fails.

An input is a scene as a mapping: `image` and `centers`, and the other arguments of `Deblender.deblend_batch` for one
scene. All good scenes of a list are deblended in few calls. If the engine refuses a call, each half of its scenes is
tried again, so that a bad input gets its own reason and affects no other input. A failed input keeps its rows, with NaN
results, the flag NO_DATA and the reason in the column `error`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import DeviceError
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.model.bundle import Bundle
from deblendrt.engine.model.manifest import BundleError
from deblendrt.engine.result.fields import entries
from deblendrt.engine.result.one_scene import scene_result
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.arguments import band_names, chosen_bands
from deblendrt.engine.scene.objects.arrays import came, is_a, is_nddata, rank
from deblendrt.engine.scene.objects.bands import in_order, labels, stated_bands
from deblendrt.engine.scene.objects.positions import read_positions
from deblendrt.engine.scene.psf.models import is_model

PER_SCENE = ("variance", "mask", "psf", "kind", "background", "wcs")
BY_BAND = ("variance", "mask", "psf", "background", "zero_point")
PER_CALL = ("bands", "zero_point", "pixel_scale")
SCENE_KEYS = ("image", "centers", *PER_SCENE, *PER_CALL, "id")
# Errors that no input causes. They are raised: the operator of the cluster must see them, and a second try elsewhere
# may succeed.
NOT_THE_INPUT = (MemoryError, DeviceError, BundleError, ImportError)
_OF_THE_BATCH = ("id", "scene", "blend")  # columns that depend on the other scenes of a batch


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one input: its result, or the reason why it failed.

    Attributes
    ----------
    id : str
        Identifier of the input; empty if it has none.
    centers : float64 (n_source, 2) [pixel]
        Centres of the input; empty if they could not be read.
    result : DeblendResult, optional
        Result of the call that the scene was in; None if the call failed.
    i_scene : int
        Number of the scene in this call.
    error : str
        The reason why the input failed; empty if it did not fail.
    """

    id: str
    centers: NDArray[np.float64]
    result: DeblendResult | None = None
    i_scene: int = 0
    error: str = ""

    def alone(self, fold: Callable[[NDArray[np.float64] | None], FoldedBasis]) -> DeblendResult | FailedInput:
        """Return the result of the input alone."""
        if self.result is None:
            return FailedInput(self.error, self.id, self.centers)
        return scene_result(self.result, self.i_scene, fold)


@dataclasses.dataclass(frozen=True)
class FailedInput:
    """An input that could not be deblended, in place of its result.

    Attributes
    ----------
    error : str
        The reason why the input failed.
    id : str
    center : float64 (n_source, 2) [pixel]
    """

    error: str
    id: str
    center: NDArray[np.float64]


def deblend_inputs(deblender: Deblender, inputs: Iterable[Any], options: Mapping[str, Any]) -> list[Outcome]:
    """Deblend scenes, and return an outcome for each. Any scene may be bad.

    Parameters
    ----------
    deblender : Deblender
    inputs : iterable
        Mappings with keys of `SCENE_KEYS`. None, an exception or any other object is an input that failed earlier.
    options : mapping
        Options of `Deblender.deblend_batch` for all scenes; a scene's own keys take precedence.

    Returns
    -------
    list of Outcome
        An outcome for each input, in the order of the inputs.

    Raises
    ------
    DeviceError, MemoryError, BundleError, ImportError
        Errors that no input causes.
    """
    outcomes: dict[int, Outcome] = {}
    groups: dict[tuple[Any, ...], list[int]] = {}
    scenes: dict[int, dict[str, Any]] = {}
    for i, given in enumerate(inputs):
        if isinstance(given, BaseException):
            outcomes[i] = failed(None, given)
            continue
        try:
            scenes[i] = _scene(given, deblender.bundle, options)
        except NOT_THE_INPUT:
            raise
        except Exception as error:  # an input may hold objects of any class, which may raise any error
            outcomes[i] = failed(given, error)
        else:
            shared = tuple(repr(scenes[i].get(key)) for key in PER_CALL)
            groups.setdefault((tuple(sorted(scenes[i])), *shared), []).append(i)
    for members in groups.values():
        outcomes.update(_solve(deblender, [(i, scenes[i]) for i in members], options))
    return [outcomes[i] for i in range(len(outcomes))]


def _solve(deblender: Deblender, scenes: list[tuple[int, dict[str, Any]]],
           options: Mapping[str, Any]) -> dict[int, Outcome]:
    """Deblend scenes in one call. If the call is refused, its halves are tried, down to the bad scene."""
    group = [scene for _, scene in scenes]
    call = dict(options) | {key: group[0][key] for key in PER_CALL if key in group[0]}
    bands = band_names(call.get("bands"), deblender.bundle.bands)
    call |= {key: _by_band(key, call[key], bands) for key in BY_BAND if key in call}
    call |= {key: [scene[key] for scene in group] for key in PER_SCENE if key in group[0]}
    try:
        result = deblender.deblend_batch([s["image"] for s in group], [s["centers"] for s in group], **call)
    except NOT_THE_INPUT:
        raise
    except Exception as error:
        if len(scenes) == 1:
            return {scenes[0][0]: failed(group[0], error)}
        middle = len(scenes) // 2
        return _solve(deblender, scenes[:middle], options) | _solve(deblender, scenes[middle:], options)
    return {i: Outcome(_id(scene), result.center[result.sources(k)], result, k) for k, (i, scene) in enumerate(scenes)}


def _scene(given: Any, bundle: Bundle, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scene with arrays of full rank, so that no call mistakes them for the arrays of a whole batch."""
    if not isinstance(given, Mapping):
        raise ValueError("no image" if given is None else
                         f"a scene: expected a mapping with {', '.join(SCENE_KEYS)}, got {type(given).__name__}")
    scene = {key: value for key, value in given.items() if value is not None}
    if unknown := sorted(str(key) for key in scene if key not in SCENE_KEYS):
        raise ValueError(f"a scene: unknown {', '.join(unknown)}; known are {', '.join(SCENE_KEYS)}")
    if missing := [key for key in ("image", "centers") if key not in scene]:
        raise ValueError(f"a scene: no {' and no '.join(missing)}")
    names = chosen_bands(scene["image"], scene.get("bands", options.get("bands")), bundle.bands)
    if stated_bands(scene["image"]) is not None:
        scene["bands"] = names
    image = in_order(scene["image"], names, "image")
    if isinstance(image, list | tuple) and not any(is_nddata(plane) for plane in image):
        image = np.asanyarray(image)
    if rank(image) == 2 and len(names) == 1:
        image = image[None] if isinstance(image, np.ndarray) else [image]
    if rank(image) != 3:
        raise ValueError(f"image: expected shape ({len(names)}, n_y, n_x), got {came(image)}")
    scene["image"] = image
    scene |= {key: _by_band(key, scene[key], names) for key in BY_BAND if key in scene}
    return scene


def _by_band(key: str, value: Any, names: Sequence[str]) -> Any:
    """Return a value as a dict of bands if a call may take its entries for the scenes' entries; others as they are.

    Such a value is a number or an image for all bands, or has a number or a PSF for each band.
    """
    if key == "psf" and is_model(value):
        return dict.fromkeys(names, value)
    if callable(value) or is_a(value, "astropy.nddata", "NDUncertainty") or labels(value, key) is not None:
        return value
    depth = rank(value)
    if (depth == 1 or (key == "psf" and depth == 3)) and len(value) == len(names) and not is_nddata(value):
        return dict(zip(names, value, strict=True))
    whole = depth in (0, 2) and isinstance(value, np.ndarray | np.number | int | float)
    return dict.fromkeys(names, value) if whole else value


def _id(given: Any) -> str:
    return str(given["id"]) if isinstance(given, Mapping) and given.get("id") is not None else ""


def _n_row(centers: Any) -> int:
    """Return the number of positions on the sky or of rows of a table; 0 for other objects."""
    if isinstance(centers, Mapping):
        return max((len(column) for column in centers.values()), default=0)
    table = any(hasattr(centers, name) for name in ("colnames", "columns", "icrs"))
    return len(centers) if table else 0


def failed(given: Any, error: BaseException) -> Outcome:
    """Return the outcome of an input that could not be deblended; the text of a ValueError is the reason."""
    centers = np.zeros((0, 2))
    try:
        centers = np.full((_n_row(given["centers"]), 2), np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reason is in the row
            centers = read_positions(given["centers"], "centers", given.get("wcs"))[0]
    except Exception:  # an object without readable positions
        pass
    try:
        name = _id(given)
    except Exception:  # an object without a readable id
        name = ""
    plain = type(error) is ValueError
    return Outcome(name, centers, error=str(error) if plain else f"{type(error).__name__}: {error}")


def columns(outcomes: Sequence[Outcome], empty: DeblendResult) -> dict[str, NDArray[Any]]:
    """Return the rows of some inputs, as columns.

    Parameters
    ----------
    outcomes : sequence of Outcome
    empty : DeblendResult
        Result without a scene. It gives the bands and the types of the columns.

    Returns
    -------
    dict of str to array (n_row,)
        The columns scene (number of the input, int64), source (row of the source in the scene, int64; -1 if the input
        has no source), id, error (objects of str), blend (counted within the scene), then the columns of
        `DeblendResult.to_table`. Rows are in the order of the inputs. An input without a source has one row.
    """
    results = list({id(outcome.result): outcome.result for outcome in outcomes if outcome.result is not None}.values())
    low = dict(zip(map(id, results), np.cumsum([0, *(result.n_source for result in results)]), strict=False))
    unfitted = sum(result.n_source for result in results)  # row of failed inputs, after the rows of results
    take, source, blend, error = [], [], [], []
    for outcome in outcomes:
        result, n = outcome.result, len(outcome.centers)
        reason = outcome.error
        if result is not None and (n := result.sources(outcome.i_scene).stop - result.sources(outcome.i_scene).start):
            rows = result.sources(outcome.i_scene)
            take.append(low[id(result)] + np.arange(rows.start, rows.stop))
            blend.append(_within(result.blend[rows]))
        else:
            take.append(np.full(max(n, 1), unfitted))
            blend.append(np.full(max(n, 1), -1))
            reason = reason or "no sources"
        source.append(np.arange(n) if n else np.array([-1]))
        error.append(reason)
    count = np.array([len(rows) for rows in take], np.int64)
    index, number = _joined(take), np.repeat(np.arange(len(outcomes)), count)
    found: dict[str, NDArray[Any]] = {
        "scene": number, "source": _joined(source), "id": np.array([o.id for o in outcomes], object)[number],
        "error": np.array(error, object)[number], "blend": _joined(blend)}
    for entry in entries(empty.bands):
        if entry.column not in _OF_THE_BATCH:
            values = [entry.values(result) for result in (*results, empty)]
            nothing = np.array([entry.unfitted], values[-1].dtype)
            found[entry.column] = np.concatenate([*values, nothing])[index]
    for axis, name in enumerate(("x_input", "y_input")):
        given = [o.centers[:, axis] if len(o.centers) else np.array([np.nan]) for o in outcomes]
        found[name] = np.where(index == unfitted, np.concatenate([np.zeros(0), *given]), found[name])
    return found


def _within(blend: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a scene's blend numbers counted from 0. The given numbers of a scene are consecutive."""
    fitted = blend >= 0
    return np.where(fitted, blend - blend[fitted].min(initial=np.iinfo(np.int64).max), -1)


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)
