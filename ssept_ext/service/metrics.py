"""What the server counts, in Prometheus's format.

With several workers, the environment variable PROMETHEUS_MULTIPROC_DIR names a folder in which their counts are added
up; see the documentation of prometheus_client.
"""

from __future__ import annotations

import os
import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "ssept_requests", "Requests", ["route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "ssept_request_seconds",
            "Time to answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batches = Histogram(
            "ssept_batch_size",
            "Requests scored together",
            buckets=_BATCHES,
            registry=self._registry,
        )
        self.unknown_items = Counter(
            "ssept_unknown_items", "Items that were not known", registry=self._registry
        )
        self.loaded = Gauge(
            "ssept_model_loaded_timestamp_seconds",
            "When the model was loaded",
            multiprocess_mode="min",
            registry=self._registry,
        )
        self.failed_loads = Gauge(
            "ssept_model_failed_loads",
            "Changes of the folder that could not be loaded",
            multiprocess_mode="max",
            registry=self._registry,
        )

    def text(self) -> bytes:
        """All figures, of all workers."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class CountRequests:
    """ASGI middleware that counts requests by route and status, and how long they take."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), "none"  # if the client leaves first

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_and_look)
        except Exception:
            status = "500"
            raise
        finally:
            route = scope.get("route")
            name = "none" if route is None else route.path
            self._metrics.requests.labels(name, status).inc()
            self._metrics.seconds.labels(name).observe(time.perf_counter() - start)
