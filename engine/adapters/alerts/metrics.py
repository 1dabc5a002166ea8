"""Prometheus metrics and the health check of the alert worker, over HTTP."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from typing import Any


class Metrics:
    """The metrics of one worker, in a registry of its own."""

    def __init__(self) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise ImportError('alert streams need prometheus-client: pip install "deblendrt[alerts]"') from error
        self.registry = registry = prometheus.CollectorRegistry()
        times = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

        def counter(name: str, text: str, *labels: str) -> Any:
            return prometheus.Counter(f"deblendrt_alerts_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Any:
            return prometheus.Histogram(f"deblendrt_alerts_{name}", text, buckets=buckets, registry=registry)

        def gauge(name: str, text: str) -> Any:
            return prometheus.Gauge(f"deblendrt_alerts_{name}", text, registry=registry)

        self.consumed = counter("consumed", "Messages read")
        self.results = counter("results", "Result records acknowledged by the broker", "status")
        self.dead_letters = counter("dead_letters", "Poison messages acknowledged in the dead-letter topic")
        self.sources = counter("sources", "Sources fitted")
        self.commits = counter("commits", "Offset commits")
        self.commit_errors = counter("commit_errors", "Offset commits that failed, to be repeated")
        self.client_errors = counter("client_errors", "Errors that librdkafka reported", "code")
        self.engine_errors = counter("engine_errors", "Batches that the engine refused, solved one by one")
        self.latency = histogram("latency_seconds", "From the message's timestamp to the acknowledgement", times)
        self.stay = histogram("stay_seconds", "From the reading of a message to the acknowledgement", times)
        self.parse = histogram("parse_seconds", "Reading an alert", (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.1))
        self.solve = histogram("batch_seconds", "Deblending a batch", times)
        self.batch = histogram("batch_size", "Alerts of a batch", (1, 2, 4, 8, 16, 32, 64, 128, 256))
        self.queue = gauge("queue", "Alerts that wait")
        self.queue_bytes = gauge("queue_bytes", "Bytes of the messages of the alerts that wait")
        self.pending = gauge("pending", "Messages read and not answered yet")
        self.paused = gauge("paused", "1 while the worker does not read, for its queue is full")
        self.partitions = gauge("partitions", "Partitions that the worker has")

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        import prometheus_client

        return prometheus_client.generate_latest(self.registry)


Health = Callable[[], tuple[bool, bool, dict[str, Any]]]


def serve(address: str, metrics: Metrics, health: Health) -> http.server.ThreadingHTTPServer:
    """Answer ``/metrics``, ``/healthz`` and ``/readyz`` on a thread until `shutdown` of the returned server.

    Parameters
    ----------
    address : str
        "host:port"; port 0 takes a free port.
    metrics : Metrics
    health : callable
        Returns healthy, ready and a report that is sent as JSON. The status is 503 if not healthy or not ready.

    Raises
    ------
    OSError
        The port is in use.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10  # s: a silent client must not hold a thread

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, "text/plain; version=0.0.4; charset=utf-8", metrics.text())
            elif path in ("/healthz", "/readyz"):
                healthy, ready, report = health()
                good = healthy if path == "/healthz" else healthy and ready
                self._answer(200 if good else 503, "application/json", json.dumps(report).encode() + b"\n")
            else:
                self._answer(404, "text/plain", b"/metrics, /healthz, /readyz\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: Any) -> None:
            """Log nothing: probes come every few seconds."""

    host, _, port = address.rpartition(":")
    server = http.server.ThreadingHTTPServer((host.strip("[]") or "0.0.0.0", int(port)), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
