"""Deblending on a dask cluster (extra ``dask``). Scenes become rows or results, lazily and in the same order.

Each worker process loads the model once (`deblendrt.engine.adapters.dask.worker_engine`) and deblends a partition's
scenes together. The bits of a scene's result do not depend on the batch that the scene is in, hence neither on the
partitions nor on the number of workers. A task that dask repeats because its worker died gives the same bits. A bad
input does not affect others: it keeps its rows, with the reason (`deblendrt.engine.adapters.input_rows`).
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deblendrt.engine.adapters.dask.worker_engine import Fold, bundle_contents, engine, find_model, ships
from deblendrt.engine.adapters.input_rows import SCENE_KEYS, FailedInput, Outcome, columns, deblend_inputs
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.model.bundle import Bundle, load_bundle
from deblendrt.engine.model.onnxruntime_cpu import OrtRuntime
from deblendrt.engine.result.result import DeblendResult

if TYPE_CHECKING:
    import pandas
    from astropy.table import Table
    from distributed import Client

__all__ = ["FailedInput", "PartitionDeblender", "deblend_dask", "send_model"]

PER_TASK = 32  # images per task; with 8 alert cutouts per task, the engine takes 1.6 times as long for each
RETURNS = ("frame", "table", "result")
_PER_SCENE_ONLY = ("cutouts", "centers", "mask", "kind")  # arguments of a single scene, which are no options


def deblend_dask(scenes: Any, centers: Sequence[Any] | None = None, *, model: str | Path = "lsst", device: str = "cpu",
                 returns: str | None = None, fetch: Callable[[pandas.DataFrame], Sequence[Any]] | None = None,
                 keep: Sequence[str] = (), per_task: int = PER_TASK, resources: Mapping[str, float] | None = None,
                 **options: Any) -> Any:
    """Deblend scenes on a dask cluster.

    Parameters
    ----------
    scenes : dask Bag, dask DataFrame, or list
        The items of a Bag and the elements of a list are scenes. A scene is a mapping with image and centers, and
        optionally id, variance, mask, psf, kind, background, bands, zero_point, pixel_scale and wcs, as
        `Deblender.deblend_batch` takes them for one scene. The elements of a list may be delayed objects or futures. A
        row of a DataFrame is a scene: its columns have these names, or `fetch` makes the scene.
    centers : sequence of float (n_source, 2) [pixel], optional
        Centres of the sources, if the elements of the list are images.
    model : str or Path
        Name of a bundled model, or a bundle's folder on this machine, which is sent to the workers once.
    device : str
        Device of each worker process: "cpu", "cuda" (the first GPU that the process sees, see CUDA_VISIBLE_DEVICES) or
        "cuda:N".
    returns : {"frame", "table", "result"}, optional
        "frame" gives a dask DataFrame with a row per source, "table" an astropy Table per scene, "result" a
        DeblendResult per scene. The default is "frame" for a DataFrame and "table" otherwise. A failed input has rows
        with the reason in `error`, or a `FailedInput` in place of its DeblendResult.
    fetch : callable, optional
        Function of a partition of the DataFrame. It returns a scene for each row; None or an exception stands for a
        missing scene.
    keep : sequence of str
        Columns of the DataFrame that each row of the result repeats. The index is kept too.
    per_task : int
        Elements of a list that one task deblends. Results do not depend on it.
    resources : mapping of str to float, optional
        Worker resources that each task takes, such as {"GPU": 1}: the task runs only on workers that have them. This
        holds for lists that become tables or results. For Bags and DataFrames, dask drops the resources when it fuses
        tasks; give them when the result is computed: ``client.compute(found, resources={"GPU": 1})``.
    **options
        Options of `Deblender.deblend_batch`, for all scenes that do not set these options themselves.

    Returns
    -------
    dask DataFrame, dask Bag or list of Delayed
        The rows, not yet computed. Tables and results come as a Bag if `scenes` is a Bag or a DataFrame, and as a list
        of Delayed if `scenes` is a list. Every input has its rows, in the order of the inputs.

    Raises
    ------
    ValueError
        An argument is wrong. The error is raised before any computation.
    BundleError
        The model is no bundle, or is damaged.
    ImportError
        dask, or for DataFrames pandas, is not installed.
    """
    try:
        import dask
    except ImportError as error:
        raise ImportError('deblend_dask needs dask: pip install "deblendrt[dask]"') from error
    kind = _kind(scenes)
    returns = ("frame" if kind == "frame" else "table") if returns is None else returns
    if returns not in RETURNS:
        raise ValueError(f"returns: expected one of {', '.join(RETURNS)}, got {returns!r}")
    if kind != "frame" and (fetch is not None or keep):
        raise ValueError(f"fetch, keep: expected with a DataFrame only, got a {kind}")
    if kind != "list" and centers is not None:
        raise ValueError(f"centers: expected with a list of images only, got a {kind}: its scenes have their own")
    if resources and (kind != "list" or returns == "frame"):
        raise ValueError("resources: expected with a list that becomes tables or results; for a Bag or DataFrame dask "
                         "keeps them only if told when it is computed: client.compute(found, resources=...)")
    work = PartitionDeblender(fetch, model=model, device=device, keep=keep, form=returns, **options)
    if kind == "frame":
        work.check_columns(scenes.columns)
        meta = work.make_meta(scenes._meta) if returns == "frame" else None
        parts, divisions = scenes.to_delayed(), scenes.divisions
    elif kind == "Bag":
        meta, parts, divisions = work.make_meta() if returns == "frame" else None, scenes.to_delayed(), None
    else:
        if isinstance(per_task, bool) or not isinstance(per_task, int) or per_task < 1:
            raise ValueError(f"per_task: expected a whole number of at least 1, got {per_task!r}")
        meta, divisions = work.make_meta() if returns == "frame" else None, None
        images = _with_centers(scenes, centers)
        parts = [images[low : low + per_task] for low in range(0, len(images), per_task)]
    task = dask.delayed(work, pure=False, traverse=False)
    with dask.annotate(resources=dict(resources)) if resources else contextlib.nullcontext():
        done = [task(part, number=number) for number, part in enumerate(parts)]
        if kind == "list" and returns != "frame":
            return [done[i // per_task][i % per_task] for i in range(len(scenes))]
    if returns == "frame":
        import dask.dataframe

        if not done:
            return dask.dataframe.from_pandas(meta, npartitions=1)
        return dask.dataframe.from_delayed(done, meta=meta, divisions=divisions)
    import dask.bag

    return dask.bag.from_delayed(done)


class PartitionDeblender:
    """Deblends one partition on a worker. LSDB's ``map_partitions`` takes this object.

    It pickles to a few hundred bytes: the model is not included. `send_model` sends a model that is not shipped.

    Parameters
    ----------
    fetch : callable, optional
        Function of a partition that returns a scene for each row (see `deblend_dask`).
    model, device, keep, **options
        See `deblend_dask`.
    form : {"frame", "table", "result"}
        A call returns one pandas DataFrame, or a list of tables or results with an item per scene.
    first_only : bool
        Return only the first source of each scene. The first source is the row's object. Its neighbours are in the
        scene because they overlap it, and have rows and cutouts of their own. The result then has one row for each row
        of the partition.

    Attributes
    ----------
    meta : pandas.DataFrame
        The empty result without kept columns; `make_meta` adds them.
    """

    __name__ = "deblend"  # name of the tasks on dask's dashboard

    def __init__(self, fetch: Callable[[pandas.DataFrame], Sequence[Any]] | None = None, *, model: str | Path = "lsst",
                 device: str = "cpu", keep: Sequence[str] = (), form: str = "frame", first_only: bool = False,
                 **options: Any) -> None:
        if fetch is not None and not callable(fetch):
            raise ValueError(f"fetch: expected a function of a partition, got {type(fetch).__name__}")
        if isinstance(keep, str):
            raise ValueError(f"keep: expected a sequence of column names, got {keep!r}")
        self.fetch, self.keep, self.form, self.first_only, self.options = fetch, tuple(keep), form, first_only, options
        self.model, bundle = find_model(model, device)
        self._check_options(bundle)
        if not ships(bundle) and (client := _active_client()) is not None:
            send_model(client, bundle.path)

    def _check_options(self, bundle: Bundle) -> None:
        known = inspect.signature(Deblender.deblend_batch).parameters
        if unknown := sorted(set(self.options) - (set(known) - {"self", *_PER_SCENE_ONLY})):
            raise ValueError(f"unknown options {', '.join(unknown)}; a scene's own are {', '.join(SCENE_KEYS)}")
        blank = np.zeros((len(_names(self.options, bundle)), 5, 5))  # no sources: only checks
        Deblender(bundle, OrtRuntime(bundle)).deblend_batch([blank], [np.zeros((0, 2))], **self.options)

    def check_columns(self, names: Iterable[str]) -> None:
        """Raise ValueError if a DataFrame lacks a column that is needed."""
        needed = [*self.keep, *(() if self.fetch else ("image", "centers"))]
        if missing := [name for name in needed if name not in list(names)]:
            raise ValueError(f"the DataFrame has no column {', '.join(missing)}" +
                             ("" if self.fetch else "; `fetch` makes scenes of other columns"))

    @property
    def meta(self) -> pandas.DataFrame:
        """Return the empty result of a partition without kept columns."""
        return self.make_meta()

    def make_meta(self, of: pandas.DataFrame | None = None) -> pandas.DataFrame:
        """Return the empty result of a partition, with the names and types of its columns and its index.

        Parameters
        ----------
        of : pandas.DataFrame, optional
            Meta of the DataFrame that is deblended (`catalog._meta`, `frame._meta`), which gives the kept columns.

        Returns
        -------
        pandas.DataFrame
        """
        bundle = load_bundle(self.model.name)
        empty = Deblender(bundle, OrtRuntime(bundle)).deblend_batch([], [])
        return self._frame([], empty, None if of is None else of.iloc[:0], None if of is None else 0)

    def __call__(self, part: Any, *_: Any, number: int | None = None) -> Any:
        """Deblend a partition, which is a pandas DataFrame or a sequence of scenes.

        Further positional arguments, such as the pixel that LSDB can add, are ignored. `number` is the partition's
        number.
        """
        deblender = engine(self.model)
        framed = hasattr(part, "columns")
        scenes = self._scenes(part) if framed else list(part)
        outcomes = deblend_inputs(deblender, scenes, self.options)
        if self.form == "result":
            return [outcome.alone(Fold(self.model)) for outcome in outcomes]
        empty = deblender.deblend_batch([], [])
        if self.form == "table":
            return _tables(outcomes, empty)
        return self._frame(outcomes, empty, part if framed else None, number)

    def _scenes(self, part: pandas.DataFrame) -> list[Any]:
        """Return a scene for each row; None or an exception stands for a scene that is missing."""
        if self.fetch is None:
            names = [name for name in SCENE_KEYS if name in part.columns]
            return [{name: value for name, value in zip(names, row, strict=True) if not _missing(value)}
                    for row in zip(*(map(_dense, part[name]) for name in names), strict=True)]
        if not len(part):
            return []
        try:
            scenes = list(self.fetch(part))
        except Exception as error:  # the caller's code failed: every row is kept, with the reason
            return [ValueError(f"fetch: {type(error).__name__}: {error}")] * len(part)
        if len(scenes) != len(part):
            return [ValueError(f"fetch: expected {len(part)} scenes, one for each row, got {len(scenes)}")] * len(part)
        return scenes

    def _frame(self, outcomes: Sequence[Outcome], empty: DeblendResult, part: pandas.DataFrame | None,
               number: int | None) -> pandas.DataFrame:
        """Return the rows as a DataFrame, with the kept columns and the index of the partition."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError('DataFrames need pandas: pip install "dask[dataframe]"') from error
        found = columns(outcomes, empty)
        scene = found["scene"]
        chosen = found["source"] <= 0 if self.first_only else np.ones(len(scene), bool)
        text = {name: pandas.array(found[name][chosen], dtype="string[pyarrow]") for name in ("id", "error")}
        values = {name: text[name] if name in text else column[chosen] for name, column in found.items()}
        if part is None:
            partition = np.full(int(chosen.sum()), 0 if number is None else number, np.int64)
            return pandas.DataFrame({"partition": partition, **values})
        rows = part.iloc[scene[chosen]]
        kept = {name: rows[name].array for name in self.keep}
        return pandas.DataFrame({**kept, **values}, index=rows.index)


def send_model(client: Client, model: str | Path) -> None:
    """Send a bundle that does not ship with the package to all workers of a cluster, also to workers that start later.

    `deblend_dask` and `PartitionDeblender` do this if a client is active.

    Parameters
    ----------
    client : distributed.Client
    model : str or Path
        The bundle's folder on this machine. Each worker writes it to its local folder and checks its hashes.

    Raises
    ------
    BundleError
        The model is no bundle, or is damaged.
    ValueError
        The client is asynchronous.
    """
    if client.asynchronous:
        raise ValueError("client: expected one that is not asynchronous: what it is told here has to have happened")
    from deblendrt.engine.adapters.dask.bundle_plugin import BundlePlugin

    bundle = load_bundle(model)
    client.register_plugin(BundlePlugin(bundle_contents(bundle), bundle.sha256))


def _active_client() -> Client | None:
    try:
        from distributed import default_client
    except ImportError:
        return None
    try:
        return default_client()
    except ValueError:
        return None  # dask's schedulers on this machine read the bundle from its folder


def _kind(scenes: Any) -> str:
    """Return "Bag", "frame" or "list"."""
    module = type(scenes).__module__
    if module.startswith("dask.bag"):
        return "Bag"
    if module.startswith("dask.dataframe"):
        return "frame"
    if isinstance(scenes, list | tuple):
        return "list"
    raise ValueError("scenes: expected a dask Bag, a dask DataFrame or a list of scenes (delayed, futures or values), "
                     f"got {module}.{type(scenes).__name__}")


def _with_centers(scenes: Sequence[Any], centers: Sequence[Any] | None) -> list[Any]:
    if centers is None:
        return list(scenes)
    if len(centers) != len(scenes):
        raise ValueError(f"centers: expected one entry for each of {len(scenes)} images, got {len(centers)}")
    return [{"image": image, "centers": where} for image, where in zip(scenes, centers, strict=True)]


def _names(options: Mapping[str, Any], bundle: Bundle) -> tuple[str, ...]:
    from deblendrt.engine.scene.arguments import band_names

    return band_names(options.get("bands"), bundle.bands)


def _tables(outcomes: Sequence[Outcome], empty: DeblendResult) -> list[Table]:
    """Return a table for each input."""
    from astropy.table import Table

    found = columns(outcomes, empty)
    bounds = np.searchsorted(found["scene"], np.arange(len(outcomes) + 1)).tolist()
    units = {column.name: column.unit for column in empty.to_table().itercols()}
    tables = []
    for low, high in itertools.pairwise(bounds):
        own = {name: column[low:high] for name, column in found.items() if name != "scene"}
        text = {name: column.astype(str) for name, column in own.items() if column.dtype == object}
        tables.append(Table(own | text, units={name: unit for name, unit in units.items() if unit and name in own}))
    return tables


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value)) or type(value).__name__ == "NAType"


def _dense(value: Any) -> Any:
    """Return a cell of a DataFrame as an array. Parquet's nested lists are arrays of arrays."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return np.array([_dense(item) for item in value])
    return value

