"""What machines are told of a daemon: the log of its life, and the figures for Prometheus."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
import urllib.request
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import h5py
import pytest
from prometheus_client import Metric
from support.mdd_process import Mdd, free_port

from microdiffusion.config.models import Config, MonitoringConfig
from microdiffusion.daemon.events import EVENTS, tell
from microdiffusion.daemon.monitoring import log as json_log
from microdiffusion.daemon.monitoring.log import JsonLog
from microdiffusion.daemon.monitoring.monitor import Monitor
from microdiffusion.daemon.monitoring.prometheus import DaemonMetrics, serve_metrics
from microdiffusion.daemon.status import HEADLINE, EngineStatus, QueueDepth, StatusBoard
from microdiffusion.daemon.status.history import BUCKETS_S, KEPT, Histogram, History
from microdiffusion.daemon.status.models import RunSummary
from microdiffusion.daemon.status.text import log_line
from microdiffusion.errors import AddressError, MddError
from microdiffusion.wire import ask


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


# The log -------------------------------------------------------------------------------------------


def test_each_line_is_an_object_with_time_level_event_and_text(tmp_path: Path) -> None:
    log = JsonLog(tmp_path)
    log.start()
    log.put("note", "a µm of\nmore than one line", "warning", {"frames": 3})
    log.stop()
    (line,) = lines_of(tmp_path / "mdd.log.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["mdd.log.jsonl"]
    assert line["text"] == "a µm of\nmore than one line"
    assert (line["level"], line["event"], line["frames"], line["pid"]) == ("warning", "note", 3, os.getpid())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", str(line["time"]))


def test_what_runs_tell_goes_into_the_log_and_never_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = JsonLog(tmp_path)
    tell("effort", "before anybody listens", "run")
    log.start()
    tell("effort", "one evaluation of the network", "run")
    log.stop()
    tell("effort", "after it", "run")
    (line,) = lines_of(log.path)
    assert (line["event"], line["text"], line["run"]) == ("effort", "one evaluation of the network", "run")
    assert capsys.readouterr() == ("", "")
    assert log._handler not in EVENTS.handlers


def test_files_are_rotated_by_size_and_the_oldest_goes(tmp_path: Path) -> None:
    log = JsonLog(tmp_path, max_mb=0.001, keep=2)
    log.start()
    for number in range(40):
        log.put("note", "x" * 100, fields={"number": number})
    log.stop()
    names = ["mdd.log.2.jsonl", "mdd.log.1.jsonl", "mdd.log.jsonl"]
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == sorted(names)
    assert all((tmp_path / name).stat().st_size <= 1000 for name in names)
    numbers = [line["number"] for name in names for line in lines_of(tmp_path / name)]
    assert numbers == list(range(40 - len(numbers), 40)), "in order, without a gap, to the last"


def test_a_second_daemon_in_the_folder_has_a_log_of_its_own(tmp_path: Path) -> None:
    first, second = JsonLog(tmp_path), JsonLog(tmp_path)
    for number, log in enumerate((first, second)):
        log.start()
        log.put("note", str(number))
    for log in (first, second):
        log.stop()
    assert (first.path.name, second.path.name) == ("mdd.log.jsonl", "mdd_2.log.jsonl")
    assert [lines_of(log.path)[0]["text"] for log in (first, second)] == ["0", "1"]


def test_the_next_daemon_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "mdd.log.jsonl"
    path.write_bytes(b'{"event": "note"}\n{"event": "no')
    log = JsonLog(tmp_path)
    log.start()
    log.put("note", "whole")
    log.stop()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines() if line.endswith("}")] == [
        "note",
        "note",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_costs_lines_that_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "mdd.log.jsonl"
    path.symlink_to("/dev/full")
    log = JsonLog(tmp_path)
    log.start()
    for _ in range(3):
        log.put("note", "lost")
    wait_for(lambda: log.dropped == 3)
    path.unlink()
    log.put("note", "after")
    log.stop()
    assert [line["text"] for line in lines_of(path)] == ["after"]


def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(json_log._Rotated, "emit", lambda self, record: release.wait(30))
    log = JsonLog(tmp_path)
    log.start()
    for _ in range(json_log.QUEUED + 500):
        log.put("note", "x")
    assert log.dropped >= 499, "more than the queue holds is counted, not waited for"
    log.stop(timeout_s=0.05)
    assert log._thread.is_alive()
    release.set()
    log._queue.put(None)
    log._thread.join(20)
    assert not log._thread.is_alive()


def test_a_folder_that_cannot_be_written_costs_the_log_alone(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "a file in its place" / "log")
    (tmp_path / "a file in its place").write_text("")
    log.start()
    log.put("note", "x")
    log.stop()
    assert log.dropped == 1


# What the daemon writes into it --------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_log_tells_of_start_notes_states_alarms_figures_and_the_end(tmp_path: Path) -> None:
    clock = Clock()
    board = StatusBoard(clock=clock, wall=lambda: 1.8e9 + clock.now)
    config = Config(recorder={"output": tmp_path})
    monitor = Monitor(config, board)
    monitor.start(name="demo")
    board.put(state="running")
    board.note("a note", "warning")
    for second in range(50):
        clock.now = float(second)
        full = 5 <= second < 20
        run = RunSummary(id="1", name="demo", state="go", waits_for="the disk is full" if full else "")
        board.put(runs=(run,))
        snapshot = monitor.complete(board.snapshot())
        assert bool(snapshot.alarms) is (5 <= second < 30), "it stays for ten seconds"
    monitor.stop(MddError("it broke"))
    lines = lines_of(tmp_path / "mdd.log.jsonl")
    events = [str(line["event"]) for line in lines]
    assert [event for event in events if event != "status"] == [
        "start",
        "note",
        "alarm",
        "alarm_over",
        "stop",
    ]
    assert events.count("status") == 5
    by_event = {str(line["event"]): line for line in lines}
    assert by_event["start"]["name"] == "demo"
    assert (by_event["alarm"]["alarm"], by_event["alarm"]["level"]) == ("disk-full", "error")
    assert "free space" in str(by_event["alarm"]["fix"])
    assert by_event["status"]["elapsed_s"] == 40
    assert (by_event["stop"]["level"], by_event["stop"]["text"]) == ("error", "it broke")


def test_without_a_terminal_figures_are_told_every_ten_seconds_and_at_each_change_and_notes_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    board = StatusBoard(clock=clock, wall=lambda: 1.8e9 + clock.now)
    config = Config(recorder={"output": tmp_path}, monitoring=MonitoringConfig(log=False))
    monitor = Monitor(config, board)
    board.note("before the start")
    monitor.start(echo=True)
    board.note("at the same moment", "warning")
    for tick in range(250):  # 25 seconds, ten snapshots a second
        clock.now = 0.1 * tick
        board.put(state="running" if tick > 30 else "waiting")
        monitor.complete(board.snapshot())
    told = [(record.levelname, record.message) for record in caplog.records]
    assert told[:2] == [("INFO", "before the start"), ("WARNING", "at the same moment")]
    elapsed = [message.split()[1] for _, message in told[2:]]
    assert elapsed == ["elapsed_s=0", "elapsed_s=3", "elapsed_s=13", "elapsed_s=23"]


def test_the_log_may_be_switched_off(tmp_path: Path) -> None:
    config = Config(recorder={"output": tmp_path}, monitoring=MonitoringConfig(log=False))
    monitor = Monitor(config, StatusBoard())
    monitor.start()
    monitor.stop(None)
    assert list(tmp_path.iterdir()) == []


def test_the_line_of_figures_is_documented_field_by_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([a-z0-9_]+)`", page.split("## The line of figures")[1], re.MULTILINE))
    board = StatusBoard()
    board.add_latency(HEADLINE, 0.4)
    board.set_quality(1, "mdd", 1.0, 1.1)
    fields = {pair.partition("=")[0] for pair in log_line(board.snapshot()).split(" ")}
    known = {name for name in fields if not re.match(r"(queue|memory)_\w+_mb$", name)}
    assert known <= documented, known - documented


# Prometheus ----------------------------------------------------------------------------------------


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


def busy_board() -> StatusBoard:
    board = StatusBoard()
    board.put(state="running")
    board.put(engine=EngineStatus(method="mdd", device="cpu"))
    for frames in (3, 7):
        board.put(runs=(RunSummary(id="1", name="a", state="go", frames=frames, missing=2, waiting=4),))
    board.put(runs=(RunSummary(id="2", name="b", state="go", frames=5, journal_bytes=9),))
    for seconds in (0.02, 0.3, 400.0):
        board.add_latency(HEADLINE, seconds)
    board.add_latency("inr", 0.05)
    board.add_volume("written")
    board.set_quality(1, "mdd", 1.02, 1.1, {"mdd": 1.1, "linear": 1.4})
    board.put(queues={"engine": QueueDepth(bytes=5, limit=10)})
    return board


def test_prometheus_reads_what_the_status_says() -> None:
    board = busy_board()
    with serve_metrics("127.0.0.1:0", board, board.snapshot) as address:
        found = scrape(address)
    assert found["mdd_frames_received_total"] == 12, "of both runs, though one is over"
    assert found['mdd_volumes_total{status="written"}'] == 1
    assert found['mdd_state{state="running"}'] == 1
    assert (found['mdd_queue_bytes{queue="engine"}'], found["mdd_journal_bytes"]) == (5, 9)
    assert found['mdd_held_out_error{answer="linear"}'] == 1.4
    assert found["mdd_latency_seconds_count"] == 3
    assert found["mdd_latency_seconds_sum"] == pytest.approx(400.32)
    assert found['mdd_latency_seconds_bucket{le="0.025"}'] == 1
    assert found['mdd_latency_seconds_bucket{le="300.0"}'] == 2
    assert found['mdd_engine_seconds_count{stage="inr"}'] == 1
    assert found['mdd_process_resident_bytes{process="daemon"}'] > 5e6


@pytest.mark.parametrize("address", ["0.0.0.0:9464", "192.0.2.1:9464", "example.org:9464", "[::]:9464"])
def test_only_loopback_is_served(address: str) -> None:
    with pytest.raises(ValueError, match="other machines"):
        MonitoringConfig(prometheus=address)


@pytest.mark.parametrize("address", ["127.0.0.1", "9464", "127.0.0.1:http", "127.0.0.1:70000", ""])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ValueError, match=r"like 127\.0\.0\.1:9464"):
        MonitoringConfig(prometheus=address)


def test_a_port_that_is_taken_is_said_with_what_to_do() -> None:
    board = busy_board()
    with (
        serve_metrics("127.0.0.1:0", board, board.snapshot) as first,
        pytest.raises(AddressError, match="give another port"),
        serve_metrics(first, board, board.snapshot),
    ):
        pass


def metrics() -> list[Metric]:
    board = busy_board()
    return list(DaemonMetrics(board, board.snapshot, lambda: 0).collect())


def test_every_metric_is_documented_and_named_as_prometheus_wants_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    for metric in metrics():
        assert re.fullmatch(r"mdd_[a-z_]+", metric.name)
        shown = f"{metric.name}_total" if metric.type == "counter" else metric.name
        assert f"| `{shown}" in page, metric.name
        assert all(f"`{label}`" in page for label in metric._labelnames), metric.name


def test_every_query_of_the_example_dashboard_names_a_metric_that_there_is() -> None:
    text = (files("microdiffusion.configs") / "monitoring" / "grafana.json").read_text(encoding="utf-8")
    dashboard = json.loads(text)
    known: dict[str, tuple[str, ...]] = {}
    for metric in metrics():
        name, kind, labels = metric.name, metric.type, metric._labelnames
        endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[kind]
        for ending in endings:
            known[name + ending] = (*labels, "le") if ending == "_bucket" else labels
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) >= 12
    asked: set[str] = set()
    for query in queries:
        names = re.findall(r"\bmdd_\w+", query)
        assert names, query
        assert set(names) <= set(known), query
        asked |= set(names)
        for labels in re.findall(r"by \(([^)]*)\)", query) + re.findall(r"\{(\w+)[=~!]", query):
            allowed = {label for name in names for label in known[name]} | {"instance", "job"}
            assert set(re.split(r",\s*", labels)) <= allowed, query
    assert {"mdd_frames_dropped_total", "mdd_volumes_total", "mdd_latency_seconds_bucket"} <= asked
    assert all(
        panel["title"] and panel["fieldConfig"]["defaults"].get("unit") for panel in dashboard["panels"]
    )


# Where the figures come from -----------------------------------------------------------------------


def test_a_run_that_is_gone_on_with_does_not_count_twice() -> None:
    board = StatusBoard()
    board.put(runs=(RunSummary(id="1", frames=100, resumed=True),))
    board.put(runs=(RunSummary(id="1", frames=104, resumed=True),))
    board.put(runs=())
    assert board.snapshot().frames_total.received == 4


def test_history_keeps_the_latest_values_and_samples_a_rate_evenly() -> None:
    history = History()
    for number in range(300):
        history.add("latency_s", number / 3)
        history.sample("frame_rate_hz", float(number), now_s=0.1 * number)
    history.add("latency_s", float("nan"))
    values = history.values()
    assert values["latency_s"][-1] == 99.67
    assert len(values["latency_s"]) == KEPT
    assert values["frame_rate_hz"] == pytest.approx([20.0 * number for number in range(15)])


def test_a_histogram_counts_what_is_at_a_bucket_s_end_into_it() -> None:
    histogram = Histogram()
    for value in (*BUCKETS_S, 1e9):
        histogram.add(value)
    assert histogram.counts == [1] * (len(BUCKETS_S) + 1)


# The real daemon -----------------------------------------------------------------------------------


@pytest.mark.acquisition
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_daemon_is_watched_marked_and_pictured_while_it_runs(weights: Path, tmp_path: Path) -> None:
    control, metrics = f"tcp://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    values = {
        "wire.data": f"tcp://127.0.0.1:{free_port()}",
        "wire.status": f"tcp://127.0.0.1:{free_port()}",
        "wire.control": control,
        "monitoring.prometheus": metrics,
        "engine.weights": weights,
        "engine.threads": 1,
        "volume.shape_z": 24,
        "camera.width": 48,
        "camera.height": 48,
        "specimen.neurons": 1,
        "specimen.nuclei": 8,
        "acquisition.sweep_interval_s": 0.5,
    }
    settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    output = tmp_path / "runs"

    def written() -> bool:
        try:
            return scrape(metrics)['mdd_volumes_total{status="written"}'] >= 1
        except OSError:
            return False

    with Mdd("serve", "--demo", "--output", output, *settings, folder=tmp_path) as mdd:
        mdd.wait_for(written)
        assert ask(control, "mark", value="new  objective").text == "marked: new objective"
        ask(control, "snapshot")
        mdd.wait_for(lambda: list(output.glob("demo_*_t*.tif")))
        found = scrape(metrics)
        ask(control, "stop")
        assert mdd.finish() == 0, mdd.err
    assert found["mdd_frames_received_total"] >= 2
    assert found["mdd_latency_seconds_count"] >= 1
    lines = lines_of(output / "mdd.log.jsonl")
    assert [lines[0]["event"], lines[-1]["event"]] == ["start", "stop"]
    assert [line["text"] for line in lines if line["event"] == "mark"] == ["new objective"]
    states = [line["state"] for line in lines if line["event"] == "status"]
    assert states[:1] + states[-2:] == ["waiting", "closing", "closed"]
    assert "running" in states
    (run,) = output.glob("demo_*.h5")
    with h5py.File(run) as file:
        assert b"mark" in file["mdd/events/kind"][:]


def test_a_log_that_somebody_holds_open_grows_on_and_costs_no_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = {f"mdd.log.{number}.jsonl": f'{{"older": {number}}}\n' for number in (1, 2, 3)}
    for name, text in older.items():
        (tmp_path / name).write_text(text)
    replace, held = os.replace, [True]

    def refuse(path: str, target: str) -> None:  # as Windows does while a reader has the file open
        if path.endswith("mdd.log.jsonl") and held[0]:
            raise PermissionError(13, "used by another process", path)
        replace(path, target)

    monkeypatch.setattr(json_log.os, "replace", refuse)
    log = JsonLog(tmp_path, max_mb=0.001, keep=4)
    log.start()
    for number in range(60):
        log.put("note", "x" * 100, fields={"number": number})
    log.stop()
    assert log.dropped == 0
    assert [line["number"] for line in lines_of(log.path)] == list(range(60))
    assert {name: (tmp_path / name).read_text() for name in older} == older
    held[0] = False
    log = JsonLog(tmp_path, max_mb=0.001, keep=4)
    log.start()
    log.put("note", "the reader has gone", fields={"number": 60})
    log.stop()
    assert lines_of(tmp_path / "mdd.log.1.jsonl")[-1]["number"] == 59
    assert (tmp_path / "mdd.log.4.jsonl").read_text() == older["mdd.log.3.jsonl"]
    assert [line["number"] for line in lines_of(log.path)] == [60]
    assert len(list(tmp_path.glob("mdd.log*"))) == 5
