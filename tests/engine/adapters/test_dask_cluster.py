"""Scenes deblended on a dask cluster of processes: bits, order, bad inputs, and workers that die."""

from __future__ import annotations

import os
import pickle
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.wcs import WCS
from toy_model import BANDS
from toy_scenes import VARIANCE, digest

from deblendrt.engine.adapters.dask import worker_engine
from deblendrt.engine.adapters.dask.cluster import FailedInput, PartitionDeblender, deblend_dask
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.result.tables import entries
from deblendrt.engine.scene.flags import NOT_FITTED

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed", reason="extra dask")

Scenes = list[dict[str, Any]]


@pytest.fixture(scope="module")
def scenes(batch: tuple[list[np.ndarray], list[np.ndarray]]) -> Scenes:
    return [{"image": image, "centers": center, "variance": VARIANCE, "id": f"scene {k}"}
            for k, (image, center) in enumerate(zip(*batch, strict=True))]


@pytest.fixture(scope="module")
def options(toy_deblender: Deblender) -> dict[str, Any]:
    return {"model": toy_deblender.bundle.path, "psf": "nominal", "n_iteration": 4}


@pytest.fixture(scope="module")
def expected(toy_deblender: Deblender, batch: tuple[list[np.ndarray], list[np.ndarray]]) -> DeblendResult:
    """Return the result of one call in one process."""
    return toy_deblender.deblend_batch(*batch, variance=VARIANCE, psf="nominal", n_iteration=4)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Yield a cluster of two worker processes, the first with a resource that stands for a GPU."""
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, resources={"GPU": 1}, dashboard_address=":0",
                                  processes=True) as cluster:
        plain = dict(cluster.new_spec["options"])
        del plain["resources"]
        cluster.new_spec["options"] = plain
        cluster.scale(2)
        with distributed.Client(cluster) as client:
            client.wait_for_workers(2, timeout=60)
            yield client


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_engine, "_engines", {})
    monkeypatch.setattr(worker_engine, "_received", {})


def assert_same(found: list[DeblendResult], expected: DeblendResult) -> None:
    """Compare results bit by bit. Scenes without sources are skipped."""
    assert [r.n_source for r in found] == [expected.sources(k).stop - expected.sources(k).start
                                           for k in range(expected.n_scene)]
    for name in ("flux", "flux_err", "position", "flags", "latent", "coefficients", "chi2", "moments", "flux_cov"):
        joined = np.concatenate([getattr(r, name) for r in found])
        assert joined.tobytes() == np.ascontiguousarray(getattr(expected, name)).tobytes(), name


def assert_rows(tables: list[Any], expected: DeblendResult) -> None:
    """Compare the catalogue's columns bit by bit, except the columns that depend on the batch."""
    whole = [table for table in tables if table["error"][0] != "no sources"]
    assert [len(t) for t in tables] == [max(n, 1) for n in np.diff(expected.source_start).tolist()]
    for entry in entries(expected.bands):
        if entry.column in ("id", "scene", "blend"):
            continue
        values = getattr(expected, entry.field)
        values = values if entry.component is None else values[:, entry.component]
        found = np.concatenate([np.asarray(table[entry.column]) for table in whole])
        assert found.dtype == values.dtype, entry.column
        assert found.tobytes() == np.ascontiguousarray(values).tobytes(), entry.column


def synchronous(lazy: Any) -> Any:
    return dask.compute(*lazy, scheduler="synchronous") if isinstance(lazy, list) else (
        lazy.compute(scheduler="synchronous"))


def test_a_list_gives_what_one_call_gives(scenes: Scenes, options: dict[str, Any], expected: DeblendResult) -> None:
    for per_task in (1, 4, 100):
        lazy = deblend_dask([dask.delayed(scene) for scene in scenes], per_task=per_task, **options)
        tables = synchronous(lazy)
        assert_rows(tables, expected)
        assert [table["id"][0] for table in tables] == [scene["id"] for scene in scenes]
        assert str(tables[0]["flux_g"].unit) == "nJy"


def test_a_scenes_result_is_that_of_the_scene_alone(scenes: Scenes, options: dict[str, Any],
                                                   toy_deblender: Deblender, expected: DeblendResult) -> None:
    found = synchronous(deblend_dask(scenes, returns="result", **options))
    assert_same(found, expected)
    for k, scene in enumerate(scenes):
        alone = toy_deblender.deblend_batch([scene["image"]], [scene["centers"]], variance=VARIANCE, n_iteration=4,
                                            psf="nominal")
        assert digest(found[k]) == digest(alone)
        assert found[k].blend.tolist() == alone.blend.tolist()
        assert [c.tobytes() for c in found[k].blend_flux_cov] == [c.tobytes() for c in alone.blend_flux_cov]
        assert found[k].scene_chi2 == alone.scene_chi2
        assert found[k].model(0).tobytes() == alone.model(0).tobytes()
        assert found[k].to_table().colnames == alone.to_table().colnames
    size = len(pickle.dumps(found[1]))
    assert size < 4 * scenes[1]["image"].nbytes + 100_000  # the model is not sent with the task
    assert pickle.loads(pickle.dumps(found[1])).model(0).tobytes() == found[1].model(0).tobytes()


def test_images_with_centers_beside_them(batch: tuple[list[np.ndarray], list[np.ndarray]], options: dict[str, Any],
                                         expected: DeblendResult) -> None:
    images, centers = batch
    assert_rows(synchronous(deblend_dask([dask.delayed(image) for image in images], centers, variance=VARIANCE,
                                         **options)), expected)


def test_scenes_of_image_objects(scenes: Scenes, options: dict[str, Any], expected: DeblendResult) -> None:
    world = WCS(naxis=2)
    world.wcs.ctype, world.wcs.crval, world.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [10.0, 12.0]
    world.wcs.cd = np.diag([-0.2, 0.2]) / 3600
    objects: Scenes = []
    for scene in scenes:
        bands = dict(zip(BANDS, scene["image"], strict=True))
        variance = dict(zip(BANDS, VARIANCE, strict=True))
        objects.append(scene | {
            "image": {band: CCDData(plane, unit="nJy", wcs=world, uncertainty=VarianceUncertainty(
                np.full(plane.shape, variance[band]))) for band, plane in reversed(bands.items())},
            "centers": world.pixel_to_world(*scene["centers"].T).galactic})
        del objects[-1]["variance"]
    found = synchronous(deblend_dask([*objects, objects[0] | {"mask": np.ones(5, bool)}], **options))
    flux = np.concatenate([table["flux_g"][table["source"] >= 0] for table in found[:-1]])
    np.testing.assert_allclose(flux, expected.flux[:, 0], rtol=1e-6)  # positions from the sky differ by their rounding
    assert len(found[-1]) == len(scenes[0]["centers"])  # a refused scene keeps its positions, by its WCS or as NaN
    assert all("mask" in error for error in found[-1]["error"])


def test_every_bad_input_keeps_its_rows_and_says_why(scenes: Scenes, options: dict[str, Any],
                                                     expected: DeblendResult) -> None:
    good = scenes[0]
    bad: list[tuple[Any, int, str]] = [
        ({**good, "image": good["image"][:1]}, 3, "expected shape"),
        ({**good, "image": "no pixels"}, 3, "image: expected shape"),
        ({**good, "variance": np.ones((3, 3))}, 3, "variance"),
        ({**good, "variance": -np.ones(1)}, 3, "variance"),
        ({**good, "psf": np.ones((9, 5, 5))}, 3, "psf"),
        ({**good, "psf": -np.ones((3, 5, 5))}, 3, "expected an image with a positive sum"),
        ({**good, "kind": "comet"}, 3, "comet"),
        ({**good, "bands": "qx"}, 3, "bands"),
        ({**good, "varience": 1.0}, 3, "unknown varience"),
        ({**good, "centers": np.ones((3, 3))}, 1, "centers"),
        ({"image": good["image"]}, 1, "no centers"),
        (None, 1, "no image"),
        (OSError("no such file"), 1, "OSError: no such file"),
        (3.5, 1, "expected a mapping"),
    ]
    mixed = [item for pair in zip(scenes * 3, [b[0] for b in bad], strict=False) for item in pair]
    tables = synchronous(deblend_dask(mixed, **options))
    assert len(tables) == len(mixed)
    for table, (_, n_row, reason) in zip(tables[1::2], bad, strict=True):
        assert len(table) == n_row
        assert all(reason in error for error in table["error"]), table["error"][0]
        assert ((table["flags"] & NOT_FITTED) != 0).all()
        assert np.isnan(table["flux_g"]).all()
    np.testing.assert_array_equal(tables[1]["x_input"], good["centers"][:, 0])
    assert_rows(tables[0 : 2 * len(scenes) : 2], expected)
    failed = synchronous(deblend_dask([bad[0][0]], returns="result", **options))[0]
    assert isinstance(failed, FailedInput)
    assert failed.id == "scene 0"
    np.testing.assert_array_equal(failed.center, good["centers"])


@pytest.mark.parametrize(("wrong", "message"), [
    ({"scenes": "catalog.parquet"}, "scenes: expected a dask Bag"),
    ({"returns": "images"}, "returns: expected one of"),
    ({"device": "gpu"}, "device: expected"),
    ({"per_task": 0}, "per_task: expected"),
    ({"iterations": 3}, "unknown options iterations"),
    ({"n_iteration": -1}, "n_iteration: expected"),
    ({"bands": "qx"}, "bands: expected"),
    ({"psf": np.ones((2, 4, 4))}, "psf"),
    ({"mask": np.zeros((5, 5), bool)}, "unknown options mask"),
    ({"centers": [[[1, 1]]]}, "centers: expected one entry"),
    ({"keep": ["ra"]}, "fetch, keep"),
    ({"resources": {"GPU": 1}, "returns": "frame"}, "resources: expected with a list"),
])
def test_mistakes_are_errors_before_anything_is_computed(scenes: Scenes, options: dict[str, Any],
                                                         wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deblend_dask(**({"scenes": scenes} | options | wrong))


def test_without_dask_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(ImportError, match=r'pip install "deblendrt\[dask\]"'):
        deblend_dask([], psf="nominal")


def test_no_scenes_no_results(options: dict[str, Any]) -> None:
    assert deblend_dask([], **options) == []
    bag = pytest.importorskip("dask.bag").from_sequence([None, None], npartitions=2).filter(lambda scene: False)
    assert synchronous(deblend_dask(bag, **options)) == []


def test_threads_of_a_process_share_one_engine(scenes: Scenes, options: dict[str, Any], expected: DeblendResult,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    load, loaded = Deblender.load, []

    def counted(*arguments: Any, **keywords: Any) -> Deblender:
        loaded.append(threading.get_ident())
        time.sleep(0.1)
        return load(*arguments, **keywords)

    monkeypatch.setattr(Deblender, "load", counted)
    lazy = deblend_dask(scenes, per_task=1, **options)
    assert_rows(dask.compute(*lazy, scheduler="threads", num_workers=4), expected)
    assert len(loaded) == 1


def test_a_bundle_that_was_sent_is_checked(toy_bundle: Path, tmp_path: Path) -> None:
    model, bundle = worker_engine.find_model(toy_bundle)
    contents = worker_engine.bundle_contents(bundle)
    for wrong, message in (({"basis.npy": contents["basis.npy"][:-1] + b"x"}, "damaged"),
                           ({"../escape.npy": b""}, "refused"), ({"more.npy": b""}, "not listed")):
        with pytest.raises(worker_engine.BundleError, match=message):
            worker_engine.receive(contents | wrong, tmp_path / "worker")
        assert not list(tmp_path.rglob("deblendrt-*"))
    half = tmp_path / "worker" / f"deblendrt-{model.sha256[:16]}"
    half.mkdir(parents=True)  # a killed worker left it
    place = worker_engine.receive(contents, tmp_path / "worker")
    assert place == half
    assert worker_engine.engine(model).bundle.path == place
    assert worker_engine.receive(contents, tmp_path / "worker") == place


def test_a_worker_refuses_another_model_of_that_name(toy_bundle: Path) -> None:
    model, _ = worker_engine.find_model(toy_bundle)
    other = worker_engine.ModelReference(model.name, "0" * 64)
    with pytest.raises(worker_engine.BundleError, match="install the same deblendrt"):
        worker_engine.engine(other)
    with pytest.raises(worker_engine.BundleError, match="send_model"):
        worker_engine.engine(worker_engine.ModelReference("/nowhere", model.sha256))


def test_two_processes_give_the_bits_of_one(client: Any, scenes: Scenes, options: dict[str, Any],
                                            expected: DeblendResult) -> None:
    bag = pytest.importorskip("dask.bag").from_sequence(scenes, npartitions=4)
    assert_rows(deblend_dask(bag, **options).compute(), expected)
    assert_same(deblend_dask(bag, returns="result", **options).compute(), expected)
    held = client.run(lambda: [str(e.bundle.path) for e in worker_engine._engines.values()])
    folders = client.run(lambda dask_worker: dask_worker.local_directory)
    assert all(len(paths) == 1 for paths in held.values())
    assert all(paths[0].startswith(folders[worker]) for worker, paths in held.items())  # sent over the network


def test_futures(client: Any, scenes: Scenes, options: dict[str, Any], expected: DeblendResult) -> None:
    futures = client.scatter(scenes, hash=False)
    assert_rows(list(dask.compute(*deblend_dask(list(futures), per_task=2, **options))), expected)


def test_tasks_run_where_their_resource_is(client: Any, scenes: Scenes, options: dict[str, Any],
                                           expected: DeblendResult) -> None:
    """Resources keep tasks on workers with a GPU; no GPU is used here."""
    having = [address for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()
              if worker["resources"]]
    lazy = deblend_dask(scenes, per_task=1, resources={"GPU": 1}, **options)
    futures = client.compute(lazy)
    assert_rows(client.gather(futures), expected)
    where = {worker for workers in client.who_has(futures).values() for worker in workers}
    assert where == set(having)
    from_bag = deblend_dask(pytest.importorskip("dask.bag").from_sequence(scenes, npartitions=3), **options)
    future = client.compute(from_bag, resources={"GPU": 1})
    assert_rows(future.result(), expected)
    assert set(client.who_has(future)[future.key]) == set(having)


def test_a_worker_killed_in_mid_run_loses_nothing(client: Any, scenes: Scenes, options: dict[str, Any],
                                                  expected: DeblendResult, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()

    def read(k: int, scene: dict[str, Any]) -> dict[str, Any]:
        first = not list(marks.glob(f"{k}.*"))
        (marks / f"{k}.{os.getpid()}").touch()
        if k == 2 and first:
            time.sleep(60)
        return scene

    images = [dask.delayed(read)(k, scene) for k, scene in enumerate(scenes)]
    futures = client.compute(deblend_dask(images, per_task=1, **options))
    until = time.monotonic() + 60
    while not list(marks.glob("2.*")) and time.monotonic() < until:
        time.sleep(0.05)
    victim = int(next(marks.glob("2.*")).suffix[1:])
    os.kill(victim, signal.SIGKILL)
    assert_rows(client.gather(futures), expected)
    assert len(list(marks.glob("2.*"))) == 2  # another process tried again


def test_frames(client: Any, scenes: Scenes, options: dict[str, Any], expected: DeblendResult) -> None:
    pandas = pytest.importorskip("pandas", reason="extra dask brings it for DataFrames")
    frames = pytest.importorskip("dask.dataframe")
    catalog = frames.from_pandas(pandas.DataFrame({"number": np.arange(len(scenes)), "ra": np.linspace(0, 1, 6)},
                                                  index=np.arange(100, 106)), npartitions=3)
    everything = dict(enumerate(scenes))

    def fetch(part: Any) -> list[Any]:
        return [everything[k] for k in part["number"]]

    lazy = deblend_dask(catalog, fetch=fetch, keep=["ra"], **options)
    assert lazy.divisions == catalog.divisions
    found = lazy.compute()
    assert found.dtypes.equals(lazy._meta.dtypes)
    assert found.index.tolist() == [100] * 3 + [101] + [102] * 6 + [103] * 2 + [104] + [105] * 5
    assert found["ra"].tolist() == catalog.compute()["ra"].loc[found.index].tolist()
    assert_rows([found.loc[[k]].reset_index() for k in range(100, 106)], expected)
    from_bag = deblend_dask(scenes, returns="frame", per_task=2, **options).compute()
    assert from_bag["partition"].tolist() == [0] * 4 + [1] * 8 + [2] * 6
    pandas.testing.assert_frame_equal(from_bag.iloc[:, 3:].reset_index(drop=True),
                                      found.drop(columns=["ra", "scene", "source"]).reset_index(drop=True))

    first = PartitionDeblender(fetch, first_only=True, keep=["ra"], **options)
    one = catalog.map_partitions(first, meta=first.make_meta(catalog._meta)).compute()
    assert one.index.tolist() == list(range(100, 106))
    assert one["flux_g"].tolist()[:4] == found[found["source"] == 0]["flux_g"].tolist()[:4]

    def broken(part: Any) -> list[Any]:
        raise OSError("archive is down")

    lost = deblend_dask(catalog, fetch=broken, **options).compute()
    assert lost.index.tolist() == list(range(100, 106))
    assert set(lost["error"]) == {"fetch: OSError: archive is down"}
    short = deblend_dask(catalog, fetch=lambda part: [], **options).compute()
    assert set(short["error"]) == {"fetch: expected 2 scenes, one for each row, got 0"}
    with pytest.raises(ValueError, match="no column image, centers"):
        deblend_dask(catalog, **options)


def test_images_in_a_frames_cells(scenes: Scenes, options: dict[str, Any], expected: DeblendResult) -> None:
    pandas = pytest.importorskip("pandas", reason="extra dask brings it for DataFrames")
    frames = pytest.importorskip("dask.dataframe")
    cells = pandas.DataFrame({key: [scene[key] for scene in scenes] for key in ("image", "centers", "variance", "id")})
    nested = cells.map(lambda value: value.tolist() if isinstance(value, np.ndarray) else value)
    with dask.config.set({"dataframe.convert-string": False}):
        for frame in (cells, nested):
            found = synchronous(deblend_dask(frames.from_pandas(frame, npartitions=2), **options))
            assert_rows([found.loc[[k]].reset_index() for k in range(6)], expected)
            assert found["id"].tolist() == [f"scene {k}" for k in found.index]


def test_the_lsdb_example_gives_a_row_an_object() -> None:
    lsdb = pytest.importorskip("lsdb", reason="LSDB is no dependency: pip install lsdb")
    example = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "lsdb_catalog.py"))
    table = example["table"](example["read_image"](example["IMAGE"]))
    table.loc[len(table)] = [99, 150.5, 2.2]  # off the image
    catalog = lsdb.from_dataframe(table.astype({"object_id": int}), catalog_name="objects")
    deblend = PartitionDeblender(example["cutouts"], keep=["object_id", "ra", "dec"], first_only=True, n_iteration=4)
    meta = deblend.make_meta(catalog.meta)
    with dask.config.set(scheduler="synchronous"):
        objects = catalog.map_partitions(deblend, meta=meta, include_pixel=True)
        found = objects.compute()
    assert isinstance(objects, type(catalog))
    assert found.index.name == "_healpix_29"
    assert found.dtypes.equals(meta.dtypes)
    assert sorted(found["object_id"]) == [*range(16), 99]
    found = found.set_index("object_id")
    assert found.loc[99, "error"] == "no image"
    scenes = example["cutouts"](table.iloc[:16])
    alone = Deblender.load().deblend_batch([scenes[3]["image"]], [scenes[3]["centers"]], psf=scenes[3]["psf"],
                                           variance=[scenes[3]["variance"]], n_iteration=4)
    assert found.loc[3, "flux_i"] == alone.flux[0, 3]
