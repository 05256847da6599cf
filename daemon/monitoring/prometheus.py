"""The daemon's figures for Prometheus: GET /metrics on a loopback address, made from the status when asked.

`Exporter` owns the server and its threads, which only read; it ends with the daemon. Counters count since
the daemon's start.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from microdiffusion import __version__
from microdiffusion.addresses import loopback
from microdiffusion.daemon.status import BUCKETS_S, HEADLINE, LIVE, Histogram
from microdiffusion.errors import AddressError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from microdiffusion.daemon.status import StatusBoard, StatusSnapshot

STATES = ("starting", "waiting", "running", "closing", "closed", "failed")

METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "mdd_build_info": ("gauge", "always 1; the version", ("version",)),
    "mdd_engine_info": ("gauge", "always 1; what reconstructs, and where", ("method", "device")),
    "mdd_state": ("gauge", "1 for the state of the daemon", ("state",)),
    "mdd_start_time_seconds": ("gauge", "start of the daemon, seconds since 1970", ()),
    "mdd_runs_open": ("gauge", "runs that are not closed yet", ()),
    "mdd_frames_received": ("counter", "frames received, each counted once", ()),
    "mdd_frames_dropped": ("counter", "frames that their sender had no room for", ()),
    "mdd_frames_refused": ("counter", "malformed or damaged messages", ()),
    "mdd_frames_duplicate": ("counter", "frames received again", ()),
    "mdd_frames_missing": ("gauge", "frames of the open runs that were taken and are not here (yet)", ()),
    "mdd_frame_rate_hertz": ("gauge", "frames per second, over the last ten seconds", ()),
    "mdd_frame_age_seconds": ("gauge", "time since the last frame of an open run", ()),
    "mdd_saturated_ratio": ("gauge", "share of the newest frame's pixels that are saturated", ()),
    "mdd_volumes": ("counter", "time points by outcome", ("status",)),
    "mdd_sweeps_waiting": ("gauge", "sweeps that wait for the engine", ()),
    "mdd_latency_seconds": ("histogram", "from a sweep's last frame to its volume readable on disk", ()),
    "mdd_live_latency_seconds": ("histogram", "from a projection to the rolling volume with it", ()),
    "mdd_engine_seconds": ("histogram", "time that a stage of the engine took for a volume", ("stage",)),
    "mdd_residual": ("gauge", "misfit of the last volume to its frames, in units of the noise", ()),
    "mdd_held_out_error": ("gauge", "error on the last held-out projection, in units of noise", ("answer",)),
    "mdd_queue_bytes": ("gauge", "what waits in a queue", ("queue",)),
    "mdd_queue_limit_bytes": ("gauge", "what a queue can hold; absent if there is no limit", ("queue",)),
    "mdd_journal_bytes": ("gauge", "what waits in the senders' journals", ()),
    "mdd_disk_free_bytes": ("gauge", "free on the disk of the run file", ()),
    "mdd_process_resident_bytes": ("gauge", "resident memory of a process", ("process",)),
    "mdd_process_cpu_seconds": ("counter", "processor time of the daemon's own process", ()),
    "mdd_alarms": ("gauge", "alarms that stand, by severity", ("level",)),
    "mdd_alarm": ("gauge", "1 for each alarm that stands", ("kind", "level")),
    "mdd_log_lines_dropped": ("counter", "lines of the log that could not be kept", ()),
}
"""Name (a counter's without its _total), to kind, meaning and labels; docs/monitoring.md has them all."""

Values = Mapping[str, float] | Mapping[tuple[str, str], float] | float | None
"""One value, or one for each label or pair of labels; None: there is none now."""


class Exporter(Collector):
    """Serves the metrics until it is closed.

    Parameters
    ----------
    address : str
        "HOST:PORT" on loopback; port 0 takes a free one.
    board : StatusBoard
    latest : callable
        Returns the last snapshot that was shown, with its alarms.
    log_lines_dropped : callable

    Attributes
    ----------
    address : str
        Where it listens.

    Raises
    ------
    AddressError
        Other machines could reach the address, or its port is taken.
    """

    def __init__(
        self,
        address: str,
        board: StatusBoard,
        latest: Callable[[], StatusSnapshot],
        log_lines_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self._board = board
        self._latest = latest
        self._dropped = log_lines_dropped
        self._started = time.time()
        try:
            host, port = loopback(address)
        except ValueError as error:
            raise AddressError(f"monitoring.prometheus = {address!r} cannot be used: {error}.") from None
        # A registry of its own: what a library in this process registers elsewhere is not served here.
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            if port:  # the server would share a port that is taken with its owner, where the system lets it
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                socket.create_server((host, port), family=family).close()
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise AddressError(
                f"monitoring.prometheus = {address!r} cannot be used ({error.strerror or error}): another "
                "daemon may be there; give another port (9464 is the usual one)."
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def collect(self) -> Iterable[Metric]:
        """Return every metric that has a value now; any thread."""
        for name, values in self._values(self._latest()).items():
            kind, text, labels = METRICS[name]
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            metric = family(name, text, labels=labels)
            rows = values.items() if isinstance(values, Mapping) else [((), values)]
            for key, value in rows:
                if value is not None:
                    metric.add_metric((key,) if isinstance(key, str) else key, float(value))
            if metric.samples:
                yield metric
        stages = self._board.histograms()
        yield _histogram("mdd_latency_seconds", {"": stages.pop(HEADLINE, None)})
        yield _histogram("mdd_live_latency_seconds", {"": stages.pop(LIVE, None)})
        yield _histogram("mdd_engine_seconds", stages)

    def _values(self, s: StatusSnapshot) -> dict[str, Values]:
        runs, queues, quality, frames = s.runs, s.queues, s.quality, s.frames_total
        levels = [alarm.level for alarm in s.alarms]
        errors = dict(quality.candidates)
        if quality.held_out_error is not None:
            errors["served"] = quality.held_out_error
        return {
            "mdd_build_info": {__version__: 1},
            "mdd_engine_info": {(s.engine.method, s.engine.device): 1} if s.engine.method else None,
            "mdd_state": {state: state == s.state for state in STATES},
            "mdd_start_time_seconds": self._started,
            "mdd_runs_open": len(runs),
            "mdd_frames_received": frames.received,
            "mdd_frames_dropped": frames.dropped,
            "mdd_frames_refused": frames.refused,
            "mdd_frames_duplicate": frames.duplicate,
            "mdd_frames_missing": sum(run.missing for run in runs),
            "mdd_frame_rate_hertz": s.frame_rate_hz,
            "mdd_frame_age_seconds": min((r.silent_s for r in runs if r.silent_s is not None), default=None),
            "mdd_saturated_ratio": max((run.saturated for run in runs), default=0.0),
            "mdd_volumes": s.volumes.model_dump(),
            "mdd_sweeps_waiting": sum(run.waiting for run in runs),
            "mdd_residual": quality.residual,
            "mdd_held_out_error": errors,
            "mdd_queue_bytes": {name: depth.bytes for name, depth in queues.items()},
            "mdd_queue_limit_bytes": {name: depth.limit for name, depth in queues.items() if depth.limit},
            "mdd_journal_bytes": sum(run.journal_bytes for run in runs),
            "mdd_disk_free_bytes": s.disk_free_bytes,
            "mdd_process_resident_bytes": {name: 1e6 * mb for name, mb in s.memory_mb.items()},
            "mdd_process_cpu_seconds": time.process_time(),
            "mdd_alarms": {level: levels.count(level) for level in ("warning", "error")},
            "mdd_alarm": {(alarm.kind, str(alarm.level)): 1 for alarm in s.alarms},
            "mdd_log_lines_dropped": self._dropped(),
        }

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _histogram(name: str, rows: Mapping[str, Histogram | None]) -> Metric:
    _, text, labels = METRICS[name]
    metric = HistogramMetricFamily(name, text, labels=labels)
    for key, histogram in rows.items():
        if histogram is not None:
            ends = (*map(str, BUCKETS_S), "+Inf")
            totals = itertools.accumulate(histogram.counts)
            buckets = list(zip(ends, map(float, totals), strict=True))
            metric.add_metric((key,) if labels else (), buckets, sum_value=histogram.sum_s)
    return metric
