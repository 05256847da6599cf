"""`mdd report`: whatever the state of a run, a page that is whole, small, and cannot be made to act."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import time
import zlib
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from support.run_file_writer import frame, header, put_sweep, put_volume
from support.run_file_writer import recorder as new_recorder

from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.daemon.report.charts import POINTS_MOST, ChartLine, chart
from microdiffusion.daemon.report.page import template, write_page
from microdiffusion.daemon.report.pictures import EDGE_MOST, png, projections
from microdiffusion.runfile.schema import Status

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"


def recorder(path: Path, **options):
    target = new_recorder(path, **options)
    target.start()
    return target


class Page(HTMLParser):
    """A parsed page: its tags, and its text outside of style and script; refuses tags that do not close."""

    VOID: ClassVar = {"meta", "img", "input", "line", "circle", "polyline", "br"}

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text += data + "\n"

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def checked(path: Path, **options: str) -> Page:
    """Make the page of a run, and see that it is closed in itself."""
    html = write_page(path, **options)
    page = Page(html)
    assert page.count("script") == 1
    assert "default-src 'none'" in html
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), attributes
    assert not re.search(r"url\(|@import|https?://", html)
    return page


@pytest.fixture
def closed_run(tmp_path):
    path = tmp_path / "run.h5"
    target = recorder(path)
    for sweep in range(4):
        put_sweep(target, sweep)
    target.mark(4, 0, 0, Status.SKIPPED, "the engine was busy")
    target.put_event("overload", "less effort from here on")
    target.stop()
    return path


def test_the_page_of_a_closed_run_says_what_was_done(closed_run):
    page = checked(closed_run)
    for words in (
        "closed cleanly",
        "6 × 16 × 20 voxels",
        "UTC",
        "the engine was busy",
        "skipped",
        "less effort from here on",
        "held-out error",
        "tikhonov 4",
        "sha256:abc",
        "Gaps: 1 time point without",
    ):
        assert words in page.text, words
    assert page.count("svg") == 2
    assert page.count("img") == 3 * 3 + 4 + 1


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(tmp_path):
    target = recorder(tmp_path / "run.h5")
    put_sweep(target, 0)
    put_sweep(target, 1)
    target.put_frame(frame(2, 0))
    page = checked(tmp_path / "run.h5")
    assert "still running, or cut off" in page.text
    target.stop()


def test_a_run_without_a_volume_has_a_page(tmp_path):
    recorder(tmp_path / "run.h5").stop()
    page = checked(tmp_path / "run.h5")
    assert "No volume was written." in page.text
    assert "no frame yet" in page.text


def test_channels_positions_and_further_files_are_all_there(tmp_path):
    path = tmp_path / "run.h5"
    target = recorder(
        path, run=header(channels=("green", "red"), positions=("left", "right")), time_points=2, durable=False
    )
    for sweep in range(3):
        for position in range(2):
            for channel in range(2):
                put_volume(target, sweep, channel, position)
    target.stop()
    assert (tmp_path / "run_s001.h5").is_file()
    page = checked(path)
    for position in ("left", "right"):
        for channel in ("green", "red"):
            assert f"position {position}, channel {channel}" in page.text
    assert page.text.count("tikhonov 3") == 4


def test_no_text_of_the_file_becomes_markup(tmp_path):
    path = tmp_path / "run <b>.h5"
    target = recorder(
        path,
        run=header(name=HOSTILE, source=HOSTILE, channels=(HOSTILE, "b"), positions=(HOSTILE, "q")),
        configuration='{"name": "</pre><script>alert(2)</script>", "<b>": {"x": "\\u0000\\u2028"}}',
    )
    put_volume(target, 0)
    target.mark(1, 0, 0, Status.LOST, HOSTILE)
    for _ in range(25):
        target.put_event("<i>", HOSTILE)
    target.stop()
    page = checked(path, title=HOSTILE)
    assert not any("open" in attributes for _, attributes in page.tags), "so many events are folded"
    assert page.count("b") == 4  # of the four cards
    assert page.count("i") == 0
    assert page.text.count("document.title='owned'") >= 6


def test_a_damaged_volume_costs_its_picture_only(closed_run):
    from microdiffusion.runfile.reader import open_run

    with open_run(closed_run) as run:
        voxels = np.array(run.volume[2]).tobytes()
    whole = closed_run.read_bytes()
    at = whole.index(voxels)
    closed_run.write_bytes(whole[: at + 5] + bytes([whole[at + 5] ^ 255]) + whole[at + 6 :])
    page = checked(closed_run)
    assert "Volumes that could not be read" in page.text
    assert "time point 2" in page.text
    assert page.count("img") == 3 * 3 + 3 + 1


def test_the_command_writes_the_page(closed_run, tmp_path, capsys):
    assert cli.main(["report", str(closed_run), "--output", str(tmp_path / "a" / "page.html")]) == 0
    assert "page.html" in capsys.readouterr().out
    assert (tmp_path / "a" / "page.html").read_text("utf-8").startswith("<!doctype html>")
    assert cli.main(["report", str(closed_run), "--output", str(closed_run)]) == 2
    assert cli.main(["report", str(tmp_path / "nothing.h5")]) == 2


def test_a_picture_is_a_png_of_these_pixels():
    grey = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(np.uint8)
    data = png(grey)
    assert struct.unpack(">II", data[16:24]) == (7, 5)
    body = data[data.index(b"IDAT") + 4 :]
    rows = np.frombuffer(zlib.decompress(body[: body.index(b"IEND") - 8]), np.uint8).reshape(5, 8)
    assert np.array_equal(rows[:, 1:], grey)


def test_projections_are_small_and_have_square_pixels():
    volume = np.zeros((10, 700, 1200), np.uint16)
    volume[4, 350, 600] = 900
    xy, xz, yz = projections(volume, (6.0, 0.5, 0.5))
    assert max(xy.shape) == EDGE_MOST
    assert xy.shape[1] / xy.shape[0] == pytest.approx(1200 / 700, rel=0.02)
    assert xz.shape[0] / xz.shape[1] == pytest.approx(10 * 12 / 1200, rel=0.1)
    assert xy.max() == 900
    assert min(xz.max(), yz.max()) > 0


@pytest.mark.parametrize(
    "y",
    [np.array([1.0]), np.full(5, np.nan), np.zeros(9), np.array([1.0, np.nan, 3.0]), np.full(3, 1e-300)],
    ids=["one point", "nothing", "zeros", "a hole", "tiny"],
)
def test_charts_take_any_values(y):
    drawn = chart("t <", [ChartLine("a & b", np.arange(len(y), dtype=float), y)], x_label="x", y_label="y")
    macros, _, _ = (
        files("microdiffusion.daemon.report").joinpath("page.html.j2").read_text().partition("<!doctype")
    )
    svg = str(template().environment.from_string(macros).module.chart(drawn))
    assert "nan" not in Page(svg).text
    assert ("<svg" in svg) is bool(np.isfinite(y).any())


def test_a_long_line_is_thinned_and_keeps_its_peak():
    y = np.zeros(100_000)
    y[54_321] = 7.0
    (line,) = chart("t", [ChartLine("a", np.arange(y.size, dtype=float), y)], x_label="x", y_label="y").lines
    points = line.pieces[0].split()
    assert len(points) <= POINTS_MOST + 2
    assert len({point.partition(",")[2] for point in points}) == 2


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_it_and_runs_its_one_script_alone(tmp_path):
    """What comes back is the document after its scripts have run: the slider works, no text does."""
    target = recorder(tmp_path / "run.h5", run=header(name=HOSTILE))
    for sweep in range(3):
        put_volume(target, sweep)
    target.put_event("kind", HOSTILE)
    target.stop()
    page = tmp_path / "page.html"
    page.write_text(write_page(tmp_path / "run.h5"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    profile = f"--user-data-dir={tmp_path / 'browser'}"
    command = [CHROMIUM, *flags, profile, "--dump-dom", "--virtual-time-budget=2000", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, timeout=110, check=True).stdout.decode()
    assert '<html lang="en" class="js">' in shown
    assert "<output>time point 0" in shown
    assert re.search(r'<div class="stage"><img alt="time point 0" src="data:image/png', shown)
    assert "<title>owned" not in shown
    assert shown.count("<script") == 1


@pytest.mark.parametrize("date", ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59", "yesterday"])
@pytest.mark.skipif(not hasattr(time, "tzset"), reason="needs another time zone than the machine's")
@pytest.mark.parametrize("zone", ["XST+8", "XST-8"])
def test_a_date_that_cannot_be_is_shown_as_it_is(tmp_path, capsys, monkeypatch, date, zone):
    import h5py

    monkeypatch.setenv("TZ", zone)
    time.tzset()

    path = tmp_path / "run.h5"
    target = recorder(path)
    target.stop()
    with h5py.File(path, "r+") as file:
        for name in [name for name in file.attrs if "created" in name]:
            file.attrs[name] = np.bytes_(date)
        assert any("created" in name for name in file.attrs)
    assert checked(path).count("svg") == 0
    assert cli.main(["info", str(path)]) == 0
    capsys.readouterr()
    monkeypatch.undo()
    time.tzset()


def test_an_alarm_about_a_sweep_is_an_event_once_and_on_the_page(tmp_path, capsys):
    target = recorder(tmp_path / "run.h5")
    sentence = "slabs look as if they lay elsewhere than the stage said"
    for sweep in range(2):
        put_sweep(target, sweep, alarms={"stage": sentence})
    target.stop()
    assert write_page(tmp_path / "run.h5").count(f"sweep 0: {sentence}") >= 2, "a fact, and an event"
    assert f"sweep 1: {sentence}" not in write_page(tmp_path / "run.h5")
    assert cli.main(["info", str(tmp_path / "run.h5")]) == 0
    assert f"sweep 0: {sentence}" in " ".join(capsys.readouterr().out.split())
