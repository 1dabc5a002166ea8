"""Alerts as scenes of the engine, and results as records.

Alerts of one call share their band. An alert's record does not depend on the other alerts of its batch.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver.device import DeviceError
from deblendrt.engine.adapters.alerts.packets import Alert, CutoutImage, read_cutout
from deblendrt.engine.result.fields import QUANTITIES
from deblendrt.engine.scene.arguments import check_pixel_scale
from deblendrt.engine.units import AB_ZERO_POINT

if TYPE_CHECKING:
    from deblendrt.engine.adapters.alerts.settings import AlertSettings
    from deblendrt.engine.adapters.alerts.sky_catalog import SkyCatalog
    from deblendrt.engine.deblender import Deblender
    from deblendrt.engine.result.result import DeblendResult

SCHEMA = Path(__file__).with_name("deblended_alert.avsc")
SYNC = b"deblendrt alerts"  # marker of containers; random markers would make copies of a record differ

log = logging.getLogger("deblendrt.alerts")


@dataclasses.dataclass(frozen=True)
class Cutout:
    """A cutout ready for the engine.

    Attributes
    ----------
    alert : Alert
    stamp : CutoutImage
    image : float32 (n_y, n_x) [nJy]
    variance : float32 (n_y, n_x), or None [nJy^2]
    centers : float64 (n_source, 2) [pixel]
        The alert's own source is first.
    origins, ids, kinds : list (n_source,)
    notes : tuple of str
    """

    alert: Alert
    stamp: CutoutImage
    image: NDArray[np.float32]
    variance: NDArray[np.float32] | None
    centers: NDArray[np.float64]
    origins: list[str]
    ids: list[str | None]
    kinds: list[str]
    notes: tuple[str, ...]


class AlertDeblender:
    """Deblends alerts, with one model for each survey.

    Parameters
    ----------
    settings : AlertSettings
    deblenders : dict of str to Deblender
        Deblenders by the name of the survey.
    catalog : SkyCatalog, optional
    """

    def __init__(self, settings: AlertSettings, deblenders: dict[str, Deblender],
                 catalog: SkyCatalog | None = None) -> None:
        self.settings = settings
        self.deblenders = deblenders
        self.catalog = catalog
        self.n_engine_error = 0

    def answer(self, alerts: Sequence[Alert]) -> list[dict[str, Any]]:
        """Return the result records of alerts, in the order of the alerts.

        Raises
        ------
        MemoryError, DeviceError
            The error is a fault of the machine and not of the alerts.
        """
        answers: list[dict[str, Any]] = [{}] * len(alerts)
        groups: dict[tuple[Any, ...], list[tuple[int, Cutout]]] = {}
        for i, alert in enumerate(alerts):
            found = self.prepare(alert)
            if isinstance(found, Cutout):
                groups.setdefault((alert.survey, alert.band, *self._has(found)), []).append((i, found))
            else:
                answers[i] = blank(alert, self.settings.cutout, *found)
        for members in groups.values():
            records = self._solve([cutout for _, cutout in members])
            for (i, _), record in zip(members, records, strict=True):
                answers[i] = record
        return answers

    def prepare(self, alert: Alert) -> Cutout | tuple[str, str]:
        """Return an alert's cutout for the engine, or the status and the reason of a record without sources."""
        data = alert.cutouts.get(self.settings.cutout)
        if data is None:
            return "no_cutout", f"the alert has no {self.settings.cutout} cutout"
        if alert.survey not in self.deblenders:
            return "refused", f"no model for {alert.survey}: name a bundle in [models]"
        bundle = self.deblenders[alert.survey].bundle
        if alert.band not in bundle.bands:
            return "refused", f"band {alert.band}: the model has {', '.join(bundle.bands)}"
        try:
            stamp = read_cutout(data, self.settings.max_stamp_bytes)
        except ValueError as error:
            return "bad_cutout", str(error)
        scale = self.settings.pixel_scales.get(alert.survey) if stamp.plane is None else stamp.plane.pixel_scale
        try:
            check_pixel_scale(scale, bundle.pixel_scale)
        except ValueError as error:
            return "refused", str(error)
        notes = list(stamp.notes)
        if stamp.unit == "nJy":
            factor = 1.0
        elif alert.zero_point is not None:
            factor = 10 ** (-0.4 * (alert.zero_point - AB_ZERO_POINT))
        else:
            return "refused", f"unit {stamp.unit!r} and no zero point"
        image, variance = stamp.image.astype(np.float64), stamp.variance
        if alert.survey == "ztf":  # ZTF's images contain the sky
            sky = np.nanmedian(image) if np.isfinite(image).any() else 0.0
            image -= sky
            notes.append(f"background {sky:.6g} {stamp.unit} subtracted: the median")
        if variance is None:
            notes.append("variance estimated from the image")
        if stamp.psf is None or self.settings.psf == "nominal":
            notes.append("the model's nominal PSF")
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = (image * factor).astype(np.float32)
            scaled_variance = None if variance is None else (variance * np.float64(factor) ** 2).astype(np.float32)
        return Cutout(alert, stamp, scaled, scaled_variance, *self._sources(alert, stamp), tuple(notes))

    def _sources(self, alert: Alert, stamp: CutoutImage,
                 ) -> tuple[NDArray[np.float64], list[str], list[str | None], list[str]]:
        """Return the positions of the sources on the cutout, their origins, their catalogue numbers and their kinds."""
        n_y, n_x = stamp.image.shape
        middle = np.array([(n_x - 1) / 2, (n_y - 1) / 2])
        if stamp.plane is None:  # without a WCS, no other source can be placed
            return middle[None], ["alert"], [None], [self.settings.kind]
        plane = stamp.plane
        sky = [np.array([[alert.ra, alert.dec]])]
        origins, kinds = ["alert"], [self.settings.kind]
        ids: list[str | None] = [None]
        if self.catalog is not None:
            corner = 0.5 * np.hypot(n_x, n_y) * plane.pixel_scale / 3600
            ra, dec = plane.to_sky(middle[None])[0]
            rows = self.catalog.near(float(ra), float(dec), 1.01 * corner)
            sky.append(np.stack([self.catalog.ra[rows], self.catalog.dec[rows]], 1))
            origins += ["catalogue"] * len(rows)
            ids += [None if self.catalog.ids is None or np.ma.getmaskarray(self.catalog.ids)[r]
                    else str(self.catalog.ids[r]) for r in rows]
            kinds += [self.settings.kind if self.catalog.kinds is None else str(self.catalog.kinds[r]) for r in rows]
        if self.settings.history:
            sky.append(alert.positions)
            origins += alert.origins
            ids += [None] * len(alert.origins)
            kinds += [self.settings.kind] * len(alert.origins)
        pixels = plane.to_pixel(np.concatenate(sky))
        on_image = np.all((pixels > -0.5) & (pixels < [n_x - 0.5, n_y - 0.5]), axis=1)
        least = self.settings.same_radius / plane.pixel_scale
        chosen = [0]
        from_own = np.hypot(*(pixels - pixels[0]).T)
        for i in np.argsort(from_own, kind="stable").tolist() if np.isfinite(from_own[0]) else []:
            if i == 0 or not on_image[i]:
                continue
            near = [k for k in chosen if np.hypot(*(pixels[i] - pixels[k])) < least]
            if 0 in near and origins[i] == "catalogue" and ids[0] is None:  # the alert's source is a known source
                ids[0], kinds[0] = ids[i], kinds[i]
            elif not near and len(chosen) < self.settings.max_sources:
                chosen.append(i)
        return pixels[chosen], [origins[i] for i in chosen], [ids[i] for i in chosen], [kinds[i] for i in chosen]

    def _has(self, cutout: Cutout) -> tuple[bool, bool, bool]:
        """Return whether a cutout has a variance, a mask and a PSF. All cutouts of a call agree in these."""
        stamp = cutout.stamp
        return cutout.variance is not None, stamp.mask is not None, (
            self.settings.psf == "cutout" and stamp.psf is not None)

    def _solve(self, cutouts: list[Cutout]) -> list[dict[str, Any]]:
        """Return the records of the cutouts of one group. A cutout that the engine refuses affects no other cutout."""
        settings, first = self.settings, cutouts[0].alert
        has_variance, has_mask, has_psf = self._has(cutouts[0])
        nominal = "nominal" if settings.psf == "nominal" else None
        try:
            result = self.deblenders[first.survey].deblend_batch(
                [c.image[None] for c in cutouts], [c.centers for c in cutouts], bands=[first.band],
                variance=[np.asarray(c.variance)[None] for c in cutouts] if has_variance else None,
                mask=[np.asarray(c.stamp.mask) for c in cutouts] if has_mask else None,
                psf=[np.asarray(c.stamp.psf)[None] for c in cutouts] if has_psf else nominal,
                kind=[c.kinds for c in cutouts], find_missed=settings.find_missed, center_sigma=settings.center_sigma,
                n_threads=settings.threads)
        except (MemoryError, DeviceError):
            raise
        except Exception as error:
            self.n_engine_error += 1
            if len(cutouts) > 1:
                return [record for cutout in cutouts for record in self._solve([cutout])]
            log.warning("alert %s: %s", first.key, error, exc_info=not isinstance(error, ValueError))
            return [blank(first, settings.cutout, "failed", f"{type(error).__name__}: {error}")]
        return [_record(result, k, cutout, settings.cutout) for k, cutout in enumerate(cutouts)]


def blank(alert: Alert, cutout: str, status: str, reason: str | None) -> dict[str, Any]:
    """Return a record without sources."""
    return {"survey": alert.survey, "alertId": alert.alert_id, "objectId": alert.object_id, "ra": alert.ra,
            "dec": alert.dec, "band": alert.band, "status": status, "reason": reason, "notes": [], "cutout": cutout,
            "width": 0, "height": 0, "model": None, "chi2": float("nan"), "nPixel": 0, "sources": []}


def _record(result: DeblendResult, k: int, cutout: Cutout, name: str) -> dict[str, Any]:
    """Return the record of the k-th scene of a result."""
    rows = result.sources(k)
    b = result.bands.index(str(cutout.alert.band))
    n_found = rows.stop - rows.start - len(cutout.origins)
    position = result.position[rows]
    sky = np.full(position.shape, np.nan) if cutout.stamp.plane is None else cutout.stamp.plane.to_sky(position)
    columns: dict[str, Any] = {
        "origin": cutout.origins + ["found"] * n_found, "catalogId": cutout.ids + [None] * n_found,
        "ra": sky[:, 0], "dec": sky[:, 1]}
    for q in QUANTITIES.values():  # deblended_alert.avsc has the same names
        for i, column in enumerate(q.alert):
            values = getattr(result, q.name)[rows]
            columns[column] = values if values.ndim == 1 else values[:, b if q.by_band else i]
    lists = [v if isinstance(v, list) else v.tolist() for v in columns.values()]
    sources = [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
    n_y, n_x = cutout.image.shape
    return {**blank(cutout.alert, name, "deblended", None), "notes": list(cutout.notes), "width": n_x, "height": n_y,
            "model": f"{result.model_name} {result.model_version} {result.model_sha256}",
            "chi2": float(result.scene_chi2[k]), "nPixel": int(result.scene_n_pixel[k]), "sources": sources}


class RecordWriter:
    """Writer of records as bytes, in an Avro object container each, or in Confluent's wire format.

    Parameters
    ----------
    schema_id : int, optional
        Number of the schema in a registry. If it is given, records are in Confluent's wire format.
    """

    def __init__(self, schema_id: int | None = None) -> None:
        try:
            import fastavro
        except ImportError as error:
            raise ImportError('alert streams need fastavro: pip install "deblendrt[alerts]"') from error
        schema = json.loads(SCHEMA.read_text())
        self._write = fastavro.schemaless_writer
        self._schema = fastavro.parse_schema(schema)
        empty = io.BytesIO()
        fastavro.writer(empty, schema, [], sync_marker=SYNC)
        self._head = empty.getvalue() if schema_id is None else b"\0" + schema_id.to_bytes(4, "big")
        self._container = schema_id is None

    def write(self, record: dict[str, Any]) -> bytes:
        """Return the bytes of a record; equal records have equal bytes."""
        buffer = io.BytesIO()
        self._write(buffer, self._schema, record)
        body = buffer.getvalue()
        if not self._container:
            return self._head + body
        size, length = len(body) << 1, bytearray()
        while size > 0x7F:
            length.append(size & 0x7F | 0x80)
            size >>= 7
        length.append(size)
        return self._head + b"\x02" + bytes(length) + body + SYNC
