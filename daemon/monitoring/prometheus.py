"""The daemon's figures for Prometheus: GET /metrics on a loopback address, made from the status when asked.

The server's threads only read; it ends with the daemon. Counters count since the daemon's start.
docs/monitoring.md has all metrics.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

from prometheus_client import start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from microdiffusion import __version__
from microdiffusion.addresses import loopback
from microdiffusion.daemon.status import (
    BUCKETS_S,
    HEADLINE,
    LIVE,
    Histogram,
    State,
    StatusBoard,
    StatusSnapshot,
)
from microdiffusion.errors import AddressError
from microdiffusion.text import USUAL_ERROR

Values = Mapping[str, float] | Mapping[tuple[str, str], float] | float | None
"""One value, or one for each label or pair of labels; None: there is none now."""


@contextlib.contextmanager
def serve_metrics(
    address: str,
    board: StatusBoard,
    latest: Callable[[], StatusSnapshot],
    log_lines_dropped: Callable[[], int] = lambda: 0,
) -> Iterator[str]:
    """Serve the metrics at "HOST:PORT" on loopback (port 0: a free one), and give the address.

    `latest` returns the last snapshot that was shown, with its alarms.

    Raises
    ------
    AddressError
        The port is taken.
    """
    host, port = loopback(address)
    # A registry of its own: what a library in this process registers elsewhere is not served here.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(DaemonMetrics(board, latest, log_lines_dropped))
    try:
        if port:  # the server would share a port that is taken with its owner, where the system lets it
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            socket.create_server((host, port), family=family).close()
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise AddressError(
            f"monitoring.prometheus = {address!r} cannot be used ({error.strerror or error}): another "
            "daemon may be there; give another port (9464 is the usual one)."
        ) from error
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(2.0)


@dataclass(slots=True, eq=False)
class DaemonMetrics(Collector):
    """Makes the metrics; any thread."""

    board: StatusBoard
    latest: Callable[[], StatusSnapshot]
    log_lines_dropped: Callable[[], int]
    started_s: float = field(default_factory=time.time)

    def collect(self) -> Iterable[Metric]:
        """Return every metric, with the values that it has now."""
        s = self.latest()
        runs, queues, quality, frames = s.runs, s.queues, s.quality, s.frames_total
        levels = [alarm.level for alarm in s.alarms]
        errors = dict(quality.candidates)
        if quality.held_out_error is not None:
            errors["served"] = quality.held_out_error
        silent_s = [run.silent_s for run in runs if run.silent_s is not None]
        method = {(s.engine.method, s.engine.device): 1} if s.engine.method else None
        limits = {name: depth.limit for name, depth in queues.items() if depth.limit}
        resident = {name: 1e6 * mb for name, mb in s.memory_mb.items()}
        alarms = {(alarm.kind, str(alarm.level)): 1 for alarm in s.alarms}
        by_level = {level: levels.count(level) for level in ("warning", "error")}
        saturated = max((run.saturated for run in runs), default=0.0)
        yield from (
            _gauge("build_info", "always 1; the version", {__version__: 1}, "version"),
            _gauge("engine_info", "always 1; what reconstructs, and where", method, "method", "device"),
            _gauge(
                "state", "1 for the state of the daemon", {n: n == s.state for n in get_args(State)}, "state"
            ),
            _gauge("start_time_seconds", "start of the daemon, seconds since 1970", self.started_s),
            _gauge("runs_open", "runs that are not closed yet", len(runs)),
            _counter("frames_received", "frames received, each counted once", frames.received),
            _counter("frames_dropped", "frames that their sender had no room for", frames.dropped),
            _counter("frames_refused", "malformed or damaged messages", frames.refused),
            _counter("frames_duplicate", "frames received again", frames.duplicate),
            _gauge(
                "frames_missing", "frames of open runs that are not here (yet)", sum(r.missing for r in runs)
            ),
            _gauge("frame_rate_hertz", "frames per second, over the last ten seconds", s.frame_rate_hz),
            _gauge(
                "frame_age_seconds", "time since the last frame of an open run", min(silent_s, default=None)
            ),
            _gauge("saturated_ratio", "share of the newest frame's pixels that are saturated", saturated),
            _counter("volumes", "time points by outcome", s.volumes.model_dump(), "status"),
            _gauge("sweeps_waiting", "sweeps that wait for the engine", sum(run.waiting for run in runs)),
            _gauge("residual", "misfit of the last volume, in units of the noise", quality.residual),
            _gauge(
                "held_out_error",
                f"error on the last held-out projection, in units of noise: {USUAL_ERROR}",
                errors,
                "answer",
            ),
            _gauge("queue_bytes", "what waits in a queue", {n: d.bytes for n, d in queues.items()}, "queue"),
            _gauge(
                "queue_limit_bytes", "what a queue can hold; absent if there is no limit", limits, "queue"
            ),
            _gauge(
                "journal_bytes", "what waits in the senders' journals", sum(r.journal_bytes for r in runs)
            ),
            _gauge("disk_free_bytes", "free on the disk of the run file", s.disk_free_bytes),
            _gauge("process_resident_bytes", "resident memory of a process", resident, "process"),
            _counter("process_cpu_seconds", "processor time of the daemon's process", time.process_time()),
            _gauge("alarms", "alarms that stand, by severity", by_level, "level"),
            _gauge("alarm", "1 for each alarm that stands", alarms, "kind", "level"),
            _counter(
                "log_lines_dropped", "lines of the log that could not be kept", self.log_lines_dropped()
            ),
        )
        stages = self.board.histograms()
        whole, live = (
            {"": each} if each else {} for each in (stages.pop(HEADLINE, None), stages.pop(LIVE, None))
        )
        yield _histogram("latency_seconds", "from a sweep's last frame to its volume readable on disk", whole)
        yield _histogram("live_latency_seconds", "from a projection to the rolling volume with it", live)
        yield _histogram(
            "engine_seconds", "time that a stage of the engine took for a volume", stages, "stage"
        )


def _gauge(name: str, text: str, values: Values, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"mdd_{name}", text, labels=labels), values)


def _counter(name: str, text: str, values: Values, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"mdd_{name}", text, labels=labels), values)


def _filled(metric: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    rows = values.items() if isinstance(values, Mapping) else [((), values)]
    for key, value in rows:
        if value is not None:
            metric.add_metric((key,) if isinstance(key, str) else key, float(value))
    return metric


def _histogram(name: str, text: str, rows: Mapping[str, Histogram], *labels: str) -> Metric:
    metric = HistogramMetricFamily(f"mdd_{name}", text, labels=labels)
    for key, histogram in rows.items():
        ends = (*map(str, BUCKETS_S), "+Inf")
        totals = itertools.accumulate(histogram.counts)
        buckets = list(zip(ends, map(float, totals), strict=True))
        metric.add_metric((key,) if labels else (), buckets, sum_value=histogram.sum_s)
    return metric
