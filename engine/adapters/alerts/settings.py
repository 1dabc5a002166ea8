"""Settings of the alert worker, from a TOML file and the command line."""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

from deblendrt.engine.scene.arguments import SOURCE_KINDS


@dataclasses.dataclass(frozen=True)
class AlertSettings:
    """The settings of ``deblendrt alerts``; their names are the keys of the TOML file.

    Attributes
    ----------
    brokers : str
        "host:port,host:port".
    topics : list of str
        Topics to read. In TOML, ``topic = "..."`` is accepted for one topic.
    out_topic, dead_letter_topic : str
    group : str
        Consumer group of the worker. Workers of one group share the partitions.
    kafka, consumer, producer : dict
        Further librdkafka properties: for both clients, for the consumer, and for the producer. "env:NAME" takes a
        value from the environment.
    framing : {"auto", "confluent", "container", "plain"}
    schema : str
        ``.avsc`` file of records without framing.
    schemas : dict of str to str
        ``.avsc`` files by number.
    schema_registry : str
        URL of a registry that is asked for numbers that `schemas` lacks.
    out_schema_id : int, optional
        Number of the results' schema in Confluent's wire format. By default each result is an object container.
    cutout : {"science", "template"}
    models : dict of str to str
        Bundles by survey. Alerts of other surveys are answered with the status "refused".
    pixel_scales : dict of str to float [arcsec]
        Pixel scales of surveys whose cutouts have no WCS.
    device : str
    threads : int
    kind : {"galaxy", "star", "auto"}
        Kind of the sources for which the catalogue gives no kind.
    psf : {"cutout", "nominal"}
        "nominal" uses the model's PSF even if the cutout has one. This is less accurate, and much faster if each alert
        has its own PSF.
    find_missed : bool
    center_sigma : float [pixel]
    catalog : str
        Table of known sources, see `SkyCatalog`.
    history : bool
        Use the positions in the alert's own history.
    same_radius : float [arcsec]
        Positions nearer to each other are one source.
    max_sources : int
        Largest number of sources in a cutout; the nearest to the alert are kept.
    max_batch : int
        Largest number of alerts that are deblended together.
    max_wait : float [s]
        Longest time that an alert waits for others to join its batch.
    max_queue : int
        Largest number of waiting alerts. A full queue stops the reading until half of them are answered.
    max_queue_bytes : int [byte]
    max_message_bytes, max_stamp_bytes : int [byte]
        Larger messages and cutouts are refused before they are parsed or decompressed.
    commit_interval : float [s]
    shutdown_seconds : float [s]
        Time to answer the messages that were read, after a signal to stop.
    stall_seconds : float [s]
        Time without progress after which the health check fails.
    http : str
        "host:port" of metrics and health check; empty: they are not served.
    """

    brokers: str = ""
    topics: list[str] = dataclasses.field(default_factory=list)
    out_topic: str = ""
    dead_letter_topic: str = ""
    group: str = "deblendrt"
    kafka: dict[str, Any] = dataclasses.field(default_factory=dict)
    consumer: dict[str, Any] = dataclasses.field(default_factory=dict)
    producer: dict[str, Any] = dataclasses.field(default_factory=dict)
    framing: str = "auto"
    schema: str = ""
    schemas: dict[str, str] = dataclasses.field(default_factory=dict)
    schema_registry: str = ""
    out_schema_id: int | None = None
    cutout: str = "science"
    models: dict[str, str] = dataclasses.field(default_factory=lambda: {"rubin": "lsst"})
    pixel_scales: dict[str, float] = dataclasses.field(default_factory=lambda: {"ztf": 1.01})
    device: str = "cpu"
    threads: int = 1
    kind: str = "galaxy"
    psf: str = "cutout"
    find_missed: bool = False
    center_sigma: float = 0.2
    catalog: str = ""
    history: bool = True
    same_radius: float = 0.5
    max_sources: int = 16
    max_batch: int = 32
    max_wait: float = 0.2
    max_queue: int = 512
    max_queue_bytes: int = 64 << 20
    max_message_bytes: int = 4 << 20
    max_stamp_bytes: int = 8 << 20
    commit_interval: float = 1.0
    shutdown_seconds: float = 30.0
    stall_seconds: float = 120.0
    http: str = "127.0.0.1:9464"

    def __post_init__(self) -> None:
        for name in ("brokers", "topics", "out_topic", "dead_letter_topic"):
            if not getattr(self, name):
                raise ValueError(f"{name}: missing: say it on the command line or in the configuration file")
        if {self.out_topic, self.dead_letter_topic} & set(self.topics) or self.out_topic == self.dead_letter_topic:
            raise ValueError("topic, out_topic and dead_letter_topic: expected different topics")
        for name, known in (("framing", ("auto", "confluent", "container", "plain")), ("psf", ("cutout", "nominal")),
                            ("cutout", ("science", "template")), ("kind", SOURCE_KINDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("threads", "max_sources", "max_batch", "max_queue", "max_queue_bytes", "max_message_bytes",
                     "max_stamp_bytes", "center_sigma", "commit_interval", "stall_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)!r}")
        for name in ("max_wait", "same_radius", "shutdown_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)!r}")
        if self.http and not self.http.rpartition(":")[2].isdecimal():
            raise ValueError(f"http: expected host:port, got {self.http!r}")


def read_settings(path: str | Path | None = None, **over: Any) -> AlertSettings:
    """Return the settings of a TOML file, overridden by the keyword arguments that are not None.

    Raises
    ------
    ValueError
        A key does not exist, or its value has a wrong type or is out of range; the message names the key.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not TOML: {error}") from error
        if "topic" in values:
            values["topics"] = [values.pop("topic")]
    kinds = typing.get_type_hints(AlertSettings)
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"{path}: unknown key {name!r}")
        kind = kinds[name]
        allowed = tuple(typing.get_origin(k) or k
                        for k in (typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)))
        if isinstance(value, bool) != (bool in allowed) or not isinstance(value, (*allowed, *(
                (int,) if float in allowed else ()))):
            raise ValueError(f"{path}: {name}: expected {kind}, got {value!r}")
    return AlertSettings(**values | {name: value for name, value in over.items() if value is not None})


def kafka_properties(settings: AlertSettings, own: dict[str, Any]) -> dict[str, Any]:
    """Return librdkafka's properties of a client.

    `own` overrides the settings for both clients. These settings override the defaults.

    Raises
    ------
    ValueError
        A value is "env:NAME" and the environment has no NAME.
    """
    found = {"bootstrap.servers": settings.brokers, "client.id": "deblendrt", **settings.kafka, **own}
    for name, value in found.items():
        if isinstance(value, str) and value.startswith("env:"):
            if value[4:] not in os.environ:
                raise ValueError(f"{name}: the environment has no {value[4:]}")
            found[name] = os.environ[value[4:]]
    return found
