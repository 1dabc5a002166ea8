"""Deblending of alert streams: Kafka in, Kafka out (extra ``alerts``)."""

from deblendrt.engine.adapters.alerts.packets import Alert, Schemas, load_schema, parse_alert
from deblendrt.engine.adapters.alerts.scenes import AlertDeblender, RecordWriter
from deblendrt.engine.adapters.alerts.settings import AlertSettings, read_settings
from deblendrt.engine.adapters.alerts.sky_catalog import SkyCatalog
from deblendrt.engine.adapters.alerts.worker import Worker, load_deblender, run_worker

__all__ = ["Alert", "AlertDeblender", "AlertSettings", "RecordWriter", "Schemas", "SkyCatalog", "Worker",
           "load_deblender", "load_schema", "parse_alert", "read_settings", "run_worker"]
