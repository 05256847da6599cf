"""What the dashboard shows at every size of terminal, what its keys do, and what is logged without one."""

from __future__ import annotations

import io
import math
import re
import time

import numpy as np
import pytest
from rich.console import Console
from rich.segment import Segment

from microdiffusion.daemon.control import COMMANDS
from microdiffusion.daemon.dashboard import preview
from microdiffusion.daemon.dashboard.app import LiveDashboard
from microdiffusion.daemon.dashboard.panels import page
from microdiffusion.daemon.dashboard.preview import RAMP, Painter, half_blocks, ramp, windowed
from microdiffusion.daemon.dashboard.screen import SPARKS, screen, sparkline
from microdiffusion.daemon.dashboard.state import Choices, Request
from microdiffusion.daemon.status import (
    HEADLINE,
    Alarm,
    EngineStatus,
    FrameCounts,
    Learned,
    QueueDepth,
    RunStatus,
    RunSummary,
    StatusBoard,
    StatusSnapshot,
    SweepProgress,
    duration,
    log_line,
    make_preview,
    seconds,
    size,
    times,
)
from microdiffusion.errors import UserError
from microdiffusion.frames import Confidence

RNG = np.random.default_rng(0)
PREVIEW = make_preview(RNG.random((24, 64, 64), np.float32), (2, 1, 1), sweep=7, served="mdd")


def busy_snapshot(**changes: object) -> StatusSnapshot:
    board = StatusBoard()
    board.put(state="running")
    board.put(
        run=RunStatus(
            name="demo",
            id="3f" * 16,
            file="/data/µ/runs/demo.h5",
            shape=(48, 128, 128),
            voxel_size_um=(2, 1, 1),
        )
    )
    board.put(engine=EngineStatus(device="cpu", device_reason="no GPU", weights="v1", method="mdd", steps=2))
    board.put(frames=FrameCounts(received=338, missing=3))
    board.put(sweep=SweepProgress(number=37, received=5, count=9))
    for name in ("ingest", "engine", "recorder"):
        board.put(queues={name: QueueDepth(bytes=3_100_000, limit=512_000_000)})
    for stage in (HEADLINE, "inr", "sampler", "consistency", "other", "total"):
        board.add_latency(stage, 0.41)
    board.add_volume("written")
    board.add_volume("skipped")
    board.set_quality(36, "mdd", 1.0, 1.08, {"mdd": 1.08, "linear": 1.44})
    volume = np.random.default_rng(0).random((48, 128, 128), np.float32)
    board.set_preview(make_preview(volume, (2, 1, 1)))
    for number in range(8):
        board.note(f"note {number}: " + "something that is longer than a narrow line of text " * 3)
    return board.snapshot().model_copy(update=changes)


def text(lines: list[list[Segment]]) -> str:
    return "\n".join("".join(segment.text for segment in line) for line in lines)


SIZES = [
    (1, 1),
    (20, 5),
    (40, 10),
    (60, 15),
    (80, 24),
    (100, 30),
    (108, 34),
    (120, 60),
    (160, 48),
    (300, 100),
]


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "no colour"])
@pytest.mark.parametrize(
    "snapshot",
    [StatusSnapshot(), busy_snapshot(), busy_snapshot(preview=None)],
    ids=["empty", "busy", "no volume"],
)
@pytest.mark.parametrize(("width", "height"), SIZES, ids=lambda value: str(value))
def test_a_screen_never_exceeds_the_terminal(snapshot, width, height, colour):
    lines = screen(snapshot, width, height, painter=Painter("blocks" if colour else "none"))
    assert len(lines) <= height
    assert max(Segment.get_line_length(line) for line in lines) <= width


def test_what_is_usual_and_why_the_network_is_not_served_stand_beside_the_figures():
    board = StatusBoard()
    board.set_quality(3, "inr", 1.0, 1.9, {"mdd": 2.4, "inr": 1.9}, "the network misses the projections")
    shown = page(board.snapshot())
    assert "1.90 × noise, 1 to 3 is usual" in shown
    assert "inr, as the network misses the projections" in shown
    board.set_quality(4, "inr", 1.0, 3620.0, {"mdd": 7240.0, "inr": 3620.0})
    shown = page(board.snapshot())
    assert "> 5 × noise, no noise to go by" in shown
    assert "3620" not in shown
    assert "7240" not in shown
    assert re.search(r"error mdd +2\.00", shown)


@pytest.mark.parametrize("height", [36, 48])
def test_the_reason_and_the_source_are_whole_at_120_columns(height):
    why = "the network errs 1.23 times as much as the closed form on slabs twice as thick"
    board, busy = StatusBoard(), busy_snapshot()
    board.set_quality(36, "tikhonov", 1.0, 1.08, {"mdd": 1.08, "linear": 1.44}, why)
    source = "Micro-Manager (python), MMCore version 12.5.1, Camera DCam DHub of the demo"
    snapshot = busy.model_copy(
        update={
            "quality": board.snapshot().quality,
            "run": busy.run.model_copy(update={"source": source}),
            "memory_mb": {"daemon": 96.0, "engine": 1794.0},
        }
    )
    lines = text(screen(snapshot, 120, height)).splitlines()
    edge = next(line.index("XY  ") for line in lines if "XY  " in line)
    left = " ".join(" ".join(line[:edge] for line in lines).split())
    assert f"served tikhonov, as {why} " in left
    assert f"source {source} " in left
    assert "1.9 GB" in lines[3]
    assert "engine 1794 MB " in lines[4]


def test_the_newest_note_has_its_place_however_long_the_figures_are():
    why = "the network errs 1.23 times as much as the closed form on slabs twice as thick"
    board, busy = StatusBoard(), busy_snapshot()
    answers = dict.fromkeys(("mdd", "inr", "tikhonov", "linear", "blend"), 1.0)
    board.set_quality(36, "tikhonov", 1.0, 1.08, answers, why)
    run = busy.run.model_copy(update={"source": "Micro-Manager (python), MMCore version 12.5.1, " * 3})
    snapshot = busy.model_copy(update={"quality": board.snapshot().quality, "run": run})
    for height in range(34, 50):
        drawn = text(screen(snapshot, 120, height))
        assert "NOTES" in drawn
        assert " ".join(busy.notes[-1].text.split())[:24] in drawn


def test_the_images_stay_where_they_are_while_sweeps_are_counted():
    def places(sweep, session):
        preview = busy_snapshot().preview.model_copy(update={"sweep": sweep})
        lines = text(screen(busy_snapshot(preview=preview, session=session), 160, 48)).splitlines()
        return {line.index(name) for line in lines for name in ("XY  ", "XZ  ") if name in line}

    assert places(9, "") == places(99, "") == places(123456, "a long name of a channel at a position")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 48)], ids=["small", "large"])
def test_the_headline_figures_are_on_every_usual_terminal(width, height):
    shown = text(screen(busy_snapshot(), width, height))
    for figure in (
        "● running",
        "demo",
        "sweep 37",
        "5/9",
        "0.41 s",
        "p95",
        "1 written",
        "1 skipped",
        "1.08 × noise",
    ):
        assert figure in shown
    for figure in (
        "338, 3 missing",
        "XY 128 × 128 µm" if width == 80 else "XY  128 × 128 µm",
        "YZ",
        "note 7",
    ):
        assert figure in shown


def test_a_small_screen_is_used_to_its_last_line():
    lines = screen(busy_snapshot(), 80, 24)
    assert len(lines) == 24
    assert text(lines).count("▀") > 500


def test_without_a_volume_the_screen_says_so():
    assert "no volume yet" in text(screen(busy_snapshot(preview=None), 80, 24))


def test_the_preview_may_be_left_out():
    shown = text(screen(busy_snapshot(), 160, 48, preview=False))
    assert "▀" not in shown
    assert "note 3" in shown


def test_images_in_colour_put_two_pixels_into_a_cell():
    image = np.array([[0, 255], [255, 0]], np.uint8)
    (line,) = half_blocks(image, 1, 2)
    left, right = (segment.style for segment in line)
    assert (left.color, left.bgcolor) == (right.bgcolor, right.color)
    assert left.color != left.bgcolor


def test_images_without_colour_are_a_ramp_of_characters():
    image = np.linspace(0, 255, 10).astype(np.uint8)[None, :]
    (line,) = ramp(image, 1, 10)
    assert line[0].text == RAMP


def rendered(monkeypatch, *, environ: dict[str, str], **options: object) -> str:
    for name in ("NO_COLOR", "COLORTERM", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    preview._half_block.cache_clear()  # rich styles remember the first terminal that they were written for
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(file=file, width=80, height=24, force_terminal=True, **options)
    with LiveDashboard(console=console) as dashboard:
        dashboard.show(busy_snapshot())
    file.flush()
    return file.buffer.getvalue().decode()


@pytest.mark.parametrize(
    ("environ", "blocks"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, True),
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm"}, False),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
    ],
    ids=["true colour", "256 colours", "16 colours", "NO_COLOR"],
)
def test_the_preview_uses_the_colours_that_there_are(monkeypatch, environ, blocks):
    shown = rendered(monkeypatch, environ=environ)
    assert ("▀" in shown) is blocks
    assert ("38;2;" in shown) is (environ.get("COLORTERM") == "truecolor")
    assert "@" in shown or blocks


def test_the_terminal_is_given_back(monkeypatch):
    shown = rendered(monkeypatch, environ={"TERM": "xterm-256color"})
    assert shown.index("\x1b[?1049h") < shown.index("running") < shown.index("\x1b[?1049l")


def test_the_light_and_the_backlog_of_the_run_are_shown_and_how_long_it_takes_to_catch_up():
    run = RunSummary(id="3f" * 16, silent_s=0.4, saturated=0.021, journal_bytes=1_200_000_000, waiting=30)
    snapshot = busy_snapshot(runs=(run,))
    large = text(screen(snapshot, 160, 48))
    for shown in (large, page(snapshot)):
        assert "0.40 s ago, 2.1 % of its pixels saturated" in shown
        assert "1.2 GB with the sender" in shown
        assert "30 sweeps, about 0:00:12 to catch up" in shown
    assert "SOURCE" not in text(screen(busy_snapshot(), 160, 48))


def test_a_page_is_plain_and_holds_every_topic():
    shown = page(busy_snapshot())
    assert shown.isprintable() is False  # line ends
    assert "\x1b" not in shown
    for topic in ("state", "file", "sweep → disk", "held-out error", "stage inr", "queue recorder", "note 7"):
        assert topic in shown


def test_several_runs_are_all_shown_and_what_holds_one_up_is_said():
    runs = tuple(
        RunSummary(name=f"run-{number}", state="go", frames=10, written=2, waiting=number)
        for number in range(3)
    )
    full = RunSummary(name="run-full", state="go", waits_for="the disk is full")
    snapshot = busy_snapshot(runs=(*runs, full))
    shown = page(snapshot)
    assert "run-2, go, 10 frames, 2 volumes, 2 sweeps waiting" in shown
    assert "the disk is full" in shown
    assert "1 of 4 runs" in text(screen(snapshot, 80, 24, painter=Painter("none")))
    large = text(screen(snapshot, 160, 60, painter=Painter("none")))
    assert all(run.name in large for run in snapshot.runs)
    pairs = dict(pair.split("=") for pair in log_line(snapshot).split(" "))
    assert (pairs["runs"], pairs["sweeps_waiting"]) == ("4", "3")


@pytest.mark.parametrize(
    ("told", "state"),
    [(["pause"], "paused"), (["pause", "pause"], "paused"), (["pause", "go"], "running"), ([], "running")],
    ids=["one", "both", "one of two", "no run"],
)
def test_a_pause_is_shown(told, state):
    snapshot = busy_snapshot(runs=tuple(RunSummary(name="run", state=each) for each in told))
    assert f"● {state} " in text(screen(snapshot, 80, 24, painter=Painter("none")))
    assert page(snapshot).startswith(f"{'state':<18} {state}, ")


def test_the_log_gives_no_number_where_noise_is_no_measure():
    quality = busy_snapshot().quality.model_copy(update={"held_out_error": 3620.0, "residual": 0.9})
    line = log_line(busy_snapshot().model_copy(update={"quality": quality}))
    assert "held_out_error" not in line
    assert " residual=0.9 " in line


def test_the_log_line_is_one_line_of_key_and_value():
    line = log_line(busy_snapshot())
    pairs = dict(pair.split("=") for pair in line.split(" "))
    assert pairs["frames"] == "338"
    assert pairs["missing"] == "3"
    assert pairs["sweep_to_disk_p50_s"] == "0.41"
    assert pairs["held_out_error"] == "1.08"
    assert pairs["queue_ingest_mb"] == "3.1"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (size(0), "0 B"),
        (size(999), "999 B"),
        (size(999.6), "1.0 kB"),
        (size(3_100_000), "3.1 MB"),
        (size(512_000_000), "512 MB"),
        (size(4.2e15), "4200.0 TB"),
        (seconds(0.0304), "30 ms"),
        (seconds(0.41), "0.41 s"),
        (seconds(12.34), "12.3 s"),
        (duration(3723.9), "1:02:03"),
    ],
)
def test_figures_have_the_unit_that_reads_best(shown, expected):
    assert shown == expected


def press(choices: Choices, keys: list[str], snapshot: StatusSnapshot | None = None) -> list[Request]:
    found = [choices.press(key, snapshot or StatusSnapshot(), {"a": PREVIEW, "b": PREVIEW}) for key in keys]
    return [request for request in found if request is not None]


def test_keys_ask_for_what_the_help_says() -> None:
    choices = Choices(commands=True)
    paused = StatusSnapshot(state="running", runs=(RunSummary(state="pause"),))
    assert press(choices, ["space"]) == [Request("pause")]
    assert press(choices, ["space"], paused) == [Request("go")]
    assert press(choices, ["m", *"new lens", "backspace", "enter"]) == [Request("mark", "new len")]
    assert press(choices, ["m", "x", "escape"]) == []
    assert press(choices, ["tab", "tab", "s"]) == [Request("snapshot", "b")]
    assert press(choices, ["tab", "s"]) == [Request("snapshot", "")]
    assert {"pause", "go", "mark", "snapshot"} <= set(COMMANDS)


def test_where_nothing_may_be_asked_nothing_is() -> None:
    choices = Choices()
    assert press(choices, ["space", "s", "m", "x"]) == []
    assert press(choices, ["s"]) == []
    assert "read-only" in choices.message
    assert press(choices, ["q"]) == [Request("quit")]


def test_leaving_what_would_end_is_asked_for_twice() -> None:
    choices = Choices(commands=True, asks_to_quit=True)
    assert press(choices, ["q"]) == []
    assert choices.asking == "quit"
    assert press(choices, ["n"]) == []
    assert press(choices, ["q", "y"]) == [Request("quit")]


def test_the_help_is_closed_by_the_keys_that_it_names() -> None:
    for key in ("?", "escape", "q"):
        choices = Choices(commands=True)
        press(choices, ["?"])
        assert choices.help
        assert "pause or resume the acquisition" in text(screen(StatusSnapshot(), 80, 24, choices=choices))
        assert press(choices, [key]) == []
        assert not choices.help


def test_contrast_held_makes_brightness_comparable_and_gamma_lifts_what_is_dim() -> None:
    bright = make_preview(4 * RNG.random((24, 64, 64), np.float32), (2, 1, 1))
    held = (PREVIEW.low, PREVIEW.high)
    assert (windowed(PREVIEW, PREVIEW.images, "auto", 0, None)[0] == PREVIEW.images[0]).all()
    (own, *_), (same, *_) = (windowed(each, each.images, "held", 0, held) for each in (PREVIEW, bright))
    assert abs(own.astype(int) - PREVIEW.images[0]).max() <= 1
    assert same.mean() > 1.3 * own.mean(), "four times as bright is drawn brighter"
    (lifted, *_), (pressed, *_) = (windowed(PREVIEW, PREVIEW.images, "auto", step, None) for step in (3, -3))
    assert pressed.mean() < PREVIEW.images[0].mean() < lifted.mean()
    (dark, *_) = windowed(PREVIEW, PREVIEW.images, "percentile", 0, None)
    assert (dark == 0).mean() > 0.3


def test_slices_are_shown_instead_of_projections() -> None:
    volume = np.zeros((24, 64, 64), np.float32)
    volume[3] = 1.0  # nothing of it in the middle slice
    snapshot = StatusSnapshot(preview=make_preview(volume, (2, 1, 1), sweep=3), session="run · 488")
    for extent in ((80, 24), (160, 48)):
        shown = text(screen(snapshot, *extent, painter=Painter("none")))
        assert "slice" not in "".join(shown.splitlines()[:-1]), "the last line names the key"
        sliced = text(
            screen(snapshot, *extent, painter=Painter("none"), choices=Choices(view="middle slices"))
        )
        assert "XY slice" in sliced or "middle slices, sweep 3, run · 488" in sliced
        assert shown.count("@") > sliced.count("@")


def test_age_is_a_view_where_sessions_learn() -> None:
    volume = np.ones((24, 64, 64), np.float32)
    age = np.full((24, 32, 32), 8 * 16, np.uint8)
    age[5, :16, :16] = 16  # one sweep old, in one slice of a quarter
    preview = make_preview(volume, (2, 1, 1), sweep=3, age=age)
    assert preview.ages is not None
    xy, xz, _ = preview.ages
    assert (xy[0, 0], xy[-1, -1]) == (255 // 8, 255)
    assert (xz[10, 0], xz[20, 0]) == (255 // 8, 255)
    assert type(preview).model_validate_json(preview.model_dump_json()).ages is not None
    without = make_preview(volume, (2, 1, 1))
    choices = Choices()
    for _ in range(2):
        choices.press("v", StatusSnapshot(), {})
    for picture, title in ((preview, "age, dark is new"), (without, "projections")):
        snapshot = StatusSnapshot(preview=picture)
        assert title in text(screen(snapshot, 160, 48, painter=Painter("none"), choices=choices))


def test_a_row_of_values_is_a_row_of_bars() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == SPARKS
    assert sparkline(range(100), 3)[-1] == SPARKS[-1]
    assert len(sparkline(range(100), 30)) == 30
    assert sparkline([1.0, float("nan"), 1.0], 5) == "▇▇" or set(sparkline([1.0, 1.0], 5)) == {SPARKS[-1]}
    assert (sparkline([], 5), sparkline([0.0, 0.0], 5), sparkline([1.0], 0)) == ("", "▁▁", "")


def test_alarms_stand_above_everything_with_their_cure_at_any_width() -> None:
    alarms = tuple(
        Alarm(kind=str(number), level=level, text=f"trouble {number}", fix="do this about it " * 4, since_s=3)
        for number, level in enumerate(("error", "warning", "warning", "warning"))
    )
    snapshot = StatusSnapshot(alarms=alarms, elapsed_s=63.0, preview=PREVIEW)
    small = text(screen(snapshot, 80, 24))
    assert "0:01:00 trouble 0" in small
    assert "do this about it" in small
    assert small.count("▀") > 300, "and the preview is still there"
    assert "4 more alarms" not in small
    assert "2 more alarms" in text(screen(snapshot, 80, 50))
    large = text(screen(snapshot, 200, 60))
    assert all(f"trouble {number}: do this" in large for number in range(4))
    assert "alarm error        for 0:01:00 trouble 0: do this" in page(snapshot)


def test_times_are_local_and_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(time, "tzset"):
        pytest.skip("the zone of a process cannot be set here")
    for zone, expected in (("UTC0", "21:14:05 UTC"), ("CET-1CEST", "22:14:05 CET, 21:14:05 UTC")):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert times("2026-11-26T21:14:05.123+00:00") == expected
    monkeypatch.undo()
    time.tzset()


def test_no_style_of_the_dashboard_is_black_or_white() -> None:
    snapshot = StatusSnapshot(
        alarms=(Alarm(kind="a", level="error", text="t", fix="c", since_s=0),), history={"latency_s": (1.0,)}
    )
    for extent in ((80, 24), (160, 48)):
        for line in screen(snapshot, *extent):
            for segment in line:
                colours = [segment.style.color, segment.style.bgcolor] if segment.style else []
                for colour in colours:
                    assert colour is None or colour.name in ("green", "yellow", "red", "cyan")


class RecordingTerminal:
    extent = (120, 24, 0, 0)
    shown = ""

    def draw(self, lines: list[list[Segment]], pictures: object) -> None:
        self.shown = text(lines)


def test_the_dashboard_remembers_each_session_s_preview() -> None:
    dashboard = LiveDashboard(console=Console(file=io.StringIO()))
    other = make_preview(RNG.random((24, 64, 64), np.float32), (2, 1, 1), sweep=99)
    dashboard._terminal = terminal = RecordingTerminal()
    dashboard.show(StatusSnapshot(preview=PREVIEW, session="a"))
    dashboard.show(StatusSnapshot(preview=other, session="b"))
    dashboard.show(StatusSnapshot())
    assert "sweep 99, b" in terminal.shown
    dashboard.press("tab")
    assert "sweep 7, a" in terminal.shown


def test_what_came_of_a_key_is_said_in_the_last_line() -> None:
    def perform(command: str, value: str) -> str:
        if command == "pause":
            raise UserError("No run is open.")
        return f"{command} {value}"

    dashboard = LiveDashboard(perform=perform, console=Console(file=io.StringIO()))
    dashboard._terminal = terminal = RecordingTerminal()
    dashboard.press("space")
    assert "No run is open." in terminal.shown.splitlines()[-1]
    for key in ("m", "x", "enter"):
        dashboard.press(key)
    assert "mark x" in terminal.shown.splitlines()[-1]


def test_the_page_says_what_the_session_has_learned() -> None:
    learned = Learned(still=0.97, drift_um=(0.5, -0.25, 0.0))
    said = page(busy_snapshot(learned=learned))
    assert re.search(r"still +97 % of the voxels", said)
    assert re.search(r"drift +z \+0\.50, y -0\.25, x \+0\.00 µm", said)
    assert "% of the voxels" not in page(busy_snapshot())


def test_the_page_says_how_sure_the_volume_is_and_the_coverage_stays() -> None:
    board = StatusBoard()
    board.set_confidence(Confidence())  # nobody looked
    assert board.snapshot().sureness is None
    board.set_confidence(Confidence(12.3456, 1.2, 0.88, 0.93, 0.04))
    board.set_confidence(Confidence(11.0, 1.2, math.nan, 0.94, 0.03))  # nothing was held out
    said = page(busy_snapshot(sureness=board.snapshot().sureness))
    assert re.search(r"sure +± 11 counts, brightness 0\.94 ± 0\.03, 88 % of a held-out projection", said)
