"""The daemon's figures as Prometheus' metrics: made anew from the status whenever somebody asks.

`METRICS` is the list of all that there are, with kind, unit and labels; docs/monitoring.md, the example
dashboard and the tests hold on to it. Counters count since the daemon's start. Any thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from microdiffusion import __version__
from microdiffusion.daemon.status import BUCKETS_S, HEADLINE, LIVE, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from microdiffusion.daemon.status import StatusBoard, StatusSnapshot

STATES = ("starting", "waiting", "running", "closing", "closed", "failed")

METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "mdd_build_info": ("gauge", "always 1; which version this is", ("version",)),
    "mdd_engine_info": ("gauge", "always 1; what reconstructs, and where", ("method", "device")),
    "mdd_state": ("gauge", "1 for the state that the daemon is in", ("state",)),
    "mdd_start_time_seconds": ("gauge", "when the daemon started, seconds since 1970", ()),
    "mdd_runs_open": ("gauge", "runs that are not closed yet", ()),
    "mdd_frames_received": ("counter", "frames that came, each counted once", ()),
    "mdd_frames_dropped": ("counter", "frames that their sender had no room for", ()),
    "mdd_frames_refused": ("counter", "malformed or damaged messages", ()),
    "mdd_frames_duplicate": ("counter", "frames that came again", ()),
    "mdd_frames_missing": ("gauge", "frames of the open runs that were taken and are not here (yet)", ()),
    "mdd_frame_rate_hertz": ("gauge", "frames per second, over the last ten seconds", ()),
    "mdd_frame_age_seconds": ("gauge", "time since the last frame of an open run", ()),
    "mdd_saturated_ratio": ("gauge", "share of the newest frame's pixels that are saturated", ()),
    "mdd_volumes": ("counter", "time points by what became of them", ("status",)),
    "mdd_sweeps_waiting": ("gauge", "sweeps that wait for the engine", ()),
    "mdd_latency_seconds": ("histogram", "from a sweep's last frame to its volume readable on disk", ()),
    "mdd_live_latency_seconds": ("histogram", "from a projection to the rolling volume it is in", ()),
    "mdd_engine_seconds": ("histogram", "what a stage of the engine took for a volume", ("stage",)),
    "mdd_residual": ("gauge", "misfit of the last volume to its frames, in units of the noise", ()),
    "mdd_held_out_error": (
        "gauge",
        "error on the last held-out projection, in units of the noise, of what was served and of each answer",
        ("answer",),
    ),
    "mdd_queue_bytes": ("gauge", "what waits in a queue", ("queue",)),
    "mdd_queue_limit_bytes": (
        "gauge",
        "the most that a queue takes; absent where there is no limit",
        ("queue",),
    ),
    "mdd_journal_bytes": ("gauge", "what waits in the senders' journals", ()),
    "mdd_disk_free_bytes": ("gauge", "free on the disk of the run file", ()),
    "mdd_process_resident_bytes": ("gauge", "resident memory of a process", ("process",)),
    "mdd_process_cpu_seconds": ("counter", "processor time of the daemon's own process", ()),
    "mdd_alarms": ("gauge", "alarms that stand, by how grave they are", ("level",)),
    "mdd_alarm": ("gauge", "1 for each alarm that stands", ("kind", "level")),
    "mdd_log_lines_dropped": ("counter", "lines of the log that could not be kept", ()),
}
"""Name (a counter's without its _total), to kind, meaning and labels."""


class StatusCollector(Collector):
    """Answers a scrape.

    Parameters
    ----------
    board : StatusBoard
    latest : callable
        Returns the last snapshot that was shown, with its alarms.
    log_lines_dropped : callable
    """

    def __init__(
        self,
        board: StatusBoard,
        latest: Callable[[], StatusSnapshot],
        log_lines_dropped: Callable[[], int],
    ) -> None:
        self._board = board
        self._latest = latest
        self._dropped = log_lines_dropped
        self._started = time.time()

    def collect(self) -> Iterable[Metric]:
        """Return every metric that has a value now."""
        snapshot = self._latest()
        histograms = self._board.histograms()
        for name, values in self._values(snapshot):
            kind, text, labels = METRICS[name]
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            metric = family(name, text, labels=labels)
            for key, value in values:
                metric.add_metric(key, value)
            if metric.samples:
                yield metric
        yield self._histogram("mdd_latency_seconds", [((), histograms.get(HEADLINE))])
        yield self._histogram("mdd_live_latency_seconds", [((), histograms.get(LIVE))])
        stages = [((name,), each) for name, each in histograms.items() if name not in (HEADLINE, LIVE)]
        yield self._histogram("mdd_engine_seconds", stages)

    def _values(self, s: StatusSnapshot) -> Iterator[tuple[str, list[tuple[tuple[str, ...], float]]]]:
        frames, volumes, quality, alarms = s.frames_total, s.volumes, s.quality, s.alarms
        ages = [run.silent_s for run in s.runs if run.silent_s is not None]
        errors = dict(quality.candidates)
        if quality.held_out_error is not None:
            errors["served"] = quality.held_out_error
        yield "mdd_build_info", [((__version__,), 1)]
        yield "mdd_engine_info", [((s.engine.method, s.engine.device), 1)] if s.engine.method else []
        yield "mdd_state", [((state,), float(state == s.state)) for state in STATES]
        yield "mdd_start_time_seconds", [((), self._started)]
        yield "mdd_runs_open", [((), len(s.runs))]
        yield "mdd_frames_received", [((), frames.received)]
        yield "mdd_frames_dropped", [((), frames.dropped)]
        yield "mdd_frames_refused", [((), frames.refused)]
        yield "mdd_frames_duplicate", [((), frames.duplicate)]
        yield "mdd_frames_missing", [((), sum(run.missing for run in s.runs))]
        yield "mdd_frame_rate_hertz", [((), s.frame_rate_hz)]
        yield "mdd_frame_age_seconds", [((), min(ages))] if ages else []
        yield "mdd_saturated_ratio", [((), max((run.saturated for run in s.runs), default=0.0))]
        outcomes = ("written", "lost", "skipped", "failed")
        yield "mdd_volumes", [((outcome,), getattr(volumes, outcome)) for outcome in outcomes]
        yield "mdd_sweeps_waiting", [((), sum(run.waiting for run in s.runs))]
        yield "mdd_residual", [((), quality.residual)] if quality.residual is not None else []
        yield "mdd_held_out_error", [((answer,), error) for answer, error in errors.items()]
        yield "mdd_queue_bytes", [((name,), queue.bytes) for name, queue in s.queues.items()]
        limits = [((name,), float(queue.limit)) for name, queue in s.queues.items() if queue.limit]
        yield "mdd_queue_limit_bytes", [*limits]
        yield "mdd_journal_bytes", [((), sum(run.journal_bytes for run in s.runs))]
        yield "mdd_disk_free_bytes", [((), s.disk_free_bytes)] if s.disk_free_bytes is not None else []
        yield "mdd_process_resident_bytes", [((name,), 1e6 * mb) for name, mb in s.memory_mb.items()]
        yield "mdd_process_cpu_seconds", [((), time.process_time())]
        levels = ("warning", "error")
        yield "mdd_alarms", [((level,), sum(each.level == level for each in alarms)) for level in levels]
        yield "mdd_alarm", [((each.kind, each.level), 1) for each in alarms]
        yield "mdd_log_lines_dropped", [((), self._dropped())]

    @staticmethod
    def _histogram(name: str, rows: Sequence[tuple[tuple[str, ...], Histogram | None]]) -> Metric:
        _, text, labels = METRICS[name]
        metric = HistogramMetricFamily(name, text, labels=labels)
        for key, histogram in rows:
            if histogram is None:
                continue
            total, buckets = 0, []
            for end, count in zip((*map(str, BUCKETS_S), "+Inf"), histogram.counts, strict=True):
                total += count
                buckets.append((end, total))
            metric.add_metric(key, buckets, sum_value=histogram.sum_s)
        return metric
