"""The terminal: keys, pictures, drawing only what changed; and everything is restored at the end."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from support.mdd_process import command, free_port

from microdiffusion.config.models import WireConfig
from microdiffusion.daemon.control import ControlServer
from microdiffusion.daemon.dashboard import preview
from microdiffusion.daemon.dashboard import terminal as display_terminal
from microdiffusion.daemon.dashboard.app import LiveDashboard
from microdiffusion.daemon.dashboard.preview import Painter
from microdiffusion.daemon.dashboard.remote import Remote
from microdiffusion.daemon.dashboard.screen import screen
from microdiffusion.daemon.dashboard.terminal import PICTURE, Terminal, TerminalPicture, names_of
from microdiffusion.daemon.status import (
    QueueDepth,
    StatusBoard,
    StatusPublisher,
    StatusSnapshot,
    make_preview,
)
from microdiffusion.wire.messages import Command

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")

RNG = np.random.default_rng(0)
PREVIEW = make_preview(RNG.random((24, 64, 64), np.float32), (2, 1, 1), sweep=7, served="mdd")


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        ("q", ["q"]),
        (" \t\r\x7f\x1b", ["space", "tab", "enter", "backspace", "escape"]),
        ("\x1b[A\x1bOC\x1b[D\x1b[Z", ["right", "left", "shift-tab"]),
        ("aµ😀", ["a", "µ", "😀"]),
        ("\x1b[?62;4c\x1b_Gi=31;OK\x1b\\q", ["q"]),
        ("\x1b]11;rgb:ffff/ffff/ffff\x07x", ["x"]),
        ("\x1b[15~\x1b[1;5Ay\x00\x01", ["y"]),
    ],
    ids=["letter", "named", "arrows", "unicode", "late answers", "colour answer", "unknown"],
)
def test_what_a_terminal_sends_is_told_by_name(sent: str, keys: list[str]) -> None:
    assert names_of(sent) == keys


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("\x1b_Gi=31;OK\x1b\\\x1b[6;20;9t\x1b[?62c", ("kitty", (20, 9))),
        ("\x1b[6;16;8t\x1b[?62;4;22c", ("sixel", (16, 8))),
        ("\x1b[?63;1;2;4;6;9;15;16;22;28c", ("blocks", None)),
        ("\x1b[?4;22c", ("blocks", None)),
        ("\x1b_Gi=31;ENOTSUPPORTED:no\x1b\\\x1b[?62;22c", ("blocks", None)),
        ("", ("blocks", None)),
    ],
    ids=["kitty", "sixel", "sixel of unknown cells", "4 is the class, not Sixel", "refused", "silent"],
)
def test_what_a_terminal_can_draw_is_what_it_answers(answer: str, expected: object) -> None:
    assert preview.understood(answer) == expected


def test_where_the_terminal_does_not_tell_its_cells_the_system_does() -> None:
    assert preview.understood("\x1b[?63;1;4c", (13, 6)) == ("sixel", (13, 6))
    assert preview.understood("\x1b[6;16;8t\x1b[?63;1;4c", (13, 6)) == ("sixel", (16, 8))


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({"TERM": "xterm-kitty"}, True),
        ({"TERM": "tmux-256color", "TMUX": "default,1,0"}, False),
        ({"TERM": "screen-256color"}, False),  # over SSH, from within tmux
    ],
)
def test_tmux_is_not_asked_for_what_it_would_take_for_a_title(environ: dict[str, str], asked: bool) -> None:
    question = preview.question(environ)
    assert ("\x1b_" in question) is asked
    assert question.endswith("\x1b[c")


def test_a_kitty_picture_holds_every_pixel() -> None:
    image = RNG.integers(0, 256, (96, 70), np.uint8)
    data = preview.kitty(image, 20, 30, number=2)
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", data)
    assert "".join(f"\x1b_G{head};{body}\x1b\\" for head, body in pieces) == data
    assert {"s=70", "v=96", "c=30", "r=20", "i=2", "C=1"} <= set(pieces[0][0].split(","))
    assert all(len(body) <= preview.CHUNK for _, body in pieces)
    pixels = zlib.decompress(base64.b64decode("".join(body for _, body in pieces)))
    colours = np.frombuffer(pixels, np.uint8).reshape(96, 70, 3)
    assert (colours == preview.palette(256)[image]).all()


def decode_sixel(data: str) -> np.ndarray:
    """Return the level of each pixel, -1 where none was drawn: a decoder of its own."""
    head = re.match(r'\x1bP0;1;0q"1;1;(\d+);(\d+)', data)
    assert head is not None
    width, height = int(head[1]), int(head[2])
    image = np.full((height, width), -1)
    body = re.sub(r"#\d+;2;\d+;\d+;\d+", "", data[head.end() :].removesuffix("\x1b\\"))
    for band, rows in enumerate(body.removesuffix("-").split("-")):
        for layer in rows.split("$"):
            if not layer:
                continue
            level, runs = re.fullmatch(r"#(\d+)(.*)", layer).groups()
            x = 0
            for count, character in re.findall(r"(?:!(\d+))?([?-~])", runs):
                for _ in range(int(count or 1)):
                    bits = ord(character) - 63
                    for bit in range(6):
                        if bits >> bit & 1:
                            image[6 * band + bit, x] = int(level)
                    x += 1
    return image


def test_a_sixel_picture_holds_every_pixel_and_stays_within_its_cells() -> None:
    image = RNG.integers(0, 256, (30, 40), np.uint8)
    data = preview.sixel(image, 70, 45)
    found = decode_sixel(data)
    assert found.shape == (66, 45), "whole bands of six, not more than 70 rows"
    assert not data.endswith("-\x1b\\"), "a band more would begin below, and scroll a full screen"
    rows, columns = np.arange(66) * 30 // 66, np.arange(45) * 40 // 45
    assert (found == image[rows][:, columns].astype(int) * preview.SIXEL_LEVELS // 256).all()


def test_pictures_are_put_where_the_screen_left_room_for_them() -> None:
    snapshot = StatusSnapshot(preview=PREVIEW)
    cells = ((20, 10), (17, 7), (13, 6), (16, 12))
    for (width, height), cell in itertools.product(((80, 24), (100, 30), (120, 40), (160, 48)), cells):
        painter = Painter("kitty", cell)
        lines = screen(snapshot, width, height, painter=painter)
        pictures = painter.pictures
        assert len(pictures) == 3
        shape = pictures[0].rows * cell[0] / (pictures[0].columns * cell[1])
        assert shape == pytest.approx(1.0, abs=0.1), "a square of the specimen is one on the screen"
        for number, picture in enumerate(pictures):
            cells = [s for line in lines for s in line if s.style and s.style.meta == {PICTURE: number}]
            assert [segment.text for segment in cells] == [" " * picture.columns] * picture.rows
        assert not any("▀" in segment.text for line in lines for segment in line)


def console(no_color: bool | None = False) -> tuple[Console, Callable[[], str]]:
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    made = Console(file=file, width=40, height=6, force_terminal=True, color_system="256", no_color=no_color)

    def written() -> str:
        file.flush()
        data = file.buffer.getvalue().decode()
        file.buffer.seek(0)
        file.buffer.truncate()
        return data

    return made, written


def test_a_terminal_that_refuses_is_no_failure_and_is_drawn_anew_when_it_takes_again() -> None:
    class Refusing(io.StringIO):
        gone = True

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    file = Refusing()
    terminal = Terminal(Console(file=file, force_terminal=True, width=20, height=3))
    terminal.open()
    terminal.draw([[Segment("one")], [Segment("two")]])
    file.gone = False
    terminal.draw([[Segment("one")], [Segment("two")]])
    assert "one" in file.getvalue()
    assert "two" in file.getvalue()
    terminal.close()


def test_a_text_from_elsewhere_cannot_play_the_screen() -> None:
    made, written = console()
    terminal = Terminal(made)
    terminal.open()
    written()
    terminal.draw([[Segment("run\x1b]0;owned\x07\x9b2J"), Segment("mark\x1bc", Style(color="red"))]])
    drawn = written()
    assert "run" in drawn
    assert "mark" in drawn
    for sequence in ("\x1b]0", "\x07", "\x9b", "\x1bc"):
        assert sequence not in drawn
    terminal.close()


def test_only_lines_that_changed_are_written() -> None:
    made, written = console()
    terminal = Terminal(made)
    terminal.open()
    terminal.draw([[Segment("one")], [Segment("two", Style(color="red"))], [Segment("three")]])
    written()
    terminal.draw([[Segment("one")], [Segment("2")], [Segment("three")]])
    assert re.findall(r"\x1b\[(\d);1H", written()) == ["2"]
    terminal.draw([[Segment("one")], [Segment("2")]])
    assert "\x1b[2J" in written(), "another number of lines: all is drawn anew"
    terminal.draw([[Segment("one")], [Segment("2")]])
    assert written() == ""
    terminal.close()
    terminal.close()
    assert written().count("\x1b[?1049l") == 1


def test_pictures_are_sent_once_and_anew_when_they_move() -> None:
    made, written = console()
    terminal = Terminal(made)
    terminal.forget_pictures = "FORGET"
    terminal.open()
    blank, cells = [Segment(" " * 8)], Segment(" " * 4, Style.from_meta({PICTURE: 0}))
    beside = [Segment("  "), cells, Segment("  ")]
    picture = TerminalPicture(rows=2, columns=4, data="PIXELS")
    terminal.draw([blank, beside, beside, blank], [picture])
    assert "\x1b[2;3HPIXELS" in written()
    terminal.draw([blank, beside, beside, blank], [picture])
    assert written() == ""
    terminal.draw([beside, beside, blank, blank], [picture])
    shown = written()
    assert shown.index("FORGET") < shown.index("\x1b[1;3HPIXELS")
    terminal.draw([blank, blank, blank, beside], [picture])
    assert "PIXELS" not in written(), "it would scroll the screen"
    terminal.close()


def test_a_text_beside_a_picture_changes_without_touching_it() -> None:
    made = Console(file=io.StringIO(), width=160, height=48, force_terminal=True, color_system="256")
    terminal, painter = Terminal(made), Painter("sixel", (16, 8))
    terminal.open()

    def drawn(snapshot: StatusSnapshot) -> str:
        made.file.seek(0)
        made.file.truncate()
        terminal.draw(screen(snapshot, 160, 48, painter=painter), painter.pictures)
        return made.file.getvalue()

    queues = {name: QueueDepth(bytes=1) for name in ("engine", "recorder")}
    first = drawn(StatusSnapshot(preview=PREVIEW, queues=queues))
    assert first.count("\x1bP0;1;0q") == 3
    queues = {name: QueueDepth(bytes=2) for name in queues}
    second = drawn(StatusSnapshot(preview=PREVIEW, queues=queues))
    changed = re.findall(r"\x1b\[\d+;(\d+)H(.*?)(?=\x1b\[\d+;\d+H|\x1b\[\?2026l)", second)
    assert [column for column, _ in changed] == ["1", "1"], "the line of each queue, up to the picture"
    assert all("2 B" in each and "\x1b[2K" not in each and "\x1b[K" not in each for _, each in changed)
    assert "\x1bP" not in second
    terminal.draw([[Segment("help")]])
    assert "\x1b[2J" in made.file.getvalue()
    terminal.close()


def test_a_picture_follows_the_size_of_the_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = (484, 316)  # a border of 2 is not the characters'
    monkeypatch.setattr(display_terminal, "_pixels", lambda _: pixels)
    # What xterm answers: Sixel, and nothing about its characters.
    monkeypatch.setattr(preview, "_ask", lambda terminal: preview.understood("\x1b[?63;4c", terminal.cell))
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system="256")
    dashboard = LiveDashboard(console=made)
    assert dashboard._terminal.cell == (13, 6)

    def sizes() -> set[str]:
        made.file.seek(0)
        made.file.truncate()
        dashboard.show(StatusSnapshot(preview=PREVIEW))
        return set(re.findall(r'q"1;1;(\d+;\d+)', made.file.getvalue()))

    dashboard._find_painter()
    small = sizes()
    assert len(small) > 0
    assert sizes() == set(), "the same picture is not sent again"
    pixels = (964, 604)
    large = sizes()
    assert len(large) > 0
    assert not large & small


def test_no_colour_keeps_bold_and_drops_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    made, written = console(no_color=None)
    terminal = Terminal(made)
    terminal.open()
    written()
    terminal.draw([[Segment("x", Style(color="red", bold=True)), Segment("y", Style(bgcolor="blue"))]])
    assert "\x1b[1mx\x1b[0my" in written()
    terminal.close()


@pytest.fixture
def daemon() -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """A daemon's status and control; yields their addresses and what it was asked."""
    board = StatusBoard()
    board.put(state="running")
    board.set_preview(PREVIEW, "demo")
    asked: list[tuple[str, str]] = []
    over, addresses, bound = threading.Event(), [], threading.Event()

    def obey(message: Command) -> tuple[str, dict[str, str]]:
        if message.command == "status":
            return "running", {"daemon": board.snapshot(preview=False).daemon}
        asked.append((message.command, message.value))
        return f"{message.command} is done", {}

    def serve() -> None:
        with StatusPublisher("tcp://127.0.0.1:*") as publisher:
            control = ControlServer("tcp://127.0.0.1:*", obey)
            addresses.extend((publisher.address, control.address))
            bound.set()
            while not over.wait(0.05):
                publisher.publish(board.snapshot())
                control.poll()
            control.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert bound.wait(10)
    yield addresses[0], addresses[1], asked
    over.set()
    thread.join(10)


class InTerminal:
    """`mdd` in a pseudo-terminal."""

    def __init__(self, *arguments: str, folder: Path) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self._end, self._other = pty.openpty()
        fcntl.ioctl(self._other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self._other)
        self.out = ""
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
        environment.pop("NO_COLOR", None)

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [command(), *arguments],
            stdin=self._other,
            stdout=self._other,
            stderr=self._other,
            cwd=folder,
            env=environment,
            preexec_fn=own_terminal,
        )

    def wait_for(self, wanted: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while wanted not in self.out:
            assert time.monotonic() < deadline, self.out[-3000:]
            ready, _, _ = select.select([self._end], [], [], 0.2)
            if ready:
                self.out += os.read(self._end, 1 << 16).decode(errors="replace")

    def send(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def finish(self) -> int:
        deadline = time.monotonic() + 60
        while self.process.poll() is None:  # read meanwhile: whoever writes to a full terminal waits
            assert time.monotonic() < deadline, self.out[-3000:]
            self._read(0.1)
        while self._read(0.1):
            pass
        return self.process.returncode

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._end], [], [], timeout_s)[0]:
            return False
        self.out += os.read(self._end, 1 << 16).decode(errors="replace")
        return True

    @property
    def is_as_it_was(self) -> bool:
        import termios

        given_back = self.out.rindex("\x1b[?1049l") > self.out.rindex("\x1b[?1049h")
        return termios.tcgetattr(self._other) == self.before and given_back and "\x1b[?25h" in self.out

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)
        os.close(self._other)


@posix_only
def test_keys_reach_the_daemon_from_another_terminal_which_is_left_as_it_was(daemon, tmp_path: Path) -> None:
    status, control, asked = daemon
    top = InTerminal("top", "--address", status, "--control", control, folder=tmp_path)
    try:
        top.wait_for("space")  # the line of keys, once the control channel has answered
        top.send("m")
        top.wait_for("remark (Enter saves")
        top.send("lens µ\r")
        top.wait_for("mark is done")
        top.send("\x1a")  # Ctrl-Z
        top.wait_for("\x1b[?1049l")
        process = psutil.Process(top.process.pid)
        deadline = time.monotonic() + 20
        while process.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert top.is_as_it_was
        top.out = ""
        top.process.send_signal(signal.SIGCONT)
        top.wait_for("\x1b[?1049h")
        top.wait_for("running")
        top.send("q")
        assert top.finish() == 0
        assert asked == [("mark", "lens µ")]
        assert top.is_as_it_was
    finally:
        top.close()


@posix_only
def test_without_the_control_channel_one_can_watch(daemon, tmp_path: Path) -> None:
    status, _, asked = daemon
    top = InTerminal(
        "top", "--address", status, "--control", f"tcp://127.0.0.1:{free_port()}", folder=tmp_path
    )
    try:
        top.wait_for("running")
        top.send("s")
        top.wait_for("read-only")
        top.send("\x03")
        assert top.finish() == 0
        assert asked == []
        assert top.is_as_it_was
    finally:
        top.close()


@posix_only
def test_a_kill_leaves_the_terminal_as_it_was(daemon, tmp_path: Path) -> None:
    top = InTerminal("top", "--address", daemon[0], "--read-only", folder=tmp_path)
    try:
        top.wait_for("running")
        top.process.send_signal(signal.SIGTERM)
        assert top.finish() == 0
        assert top.is_as_it_was
        assert "Traceback" not in top.out
    finally:
        top.close()


@posix_only
def test_who_looks_for_a_daemon_says_where_before_it_waits(tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    top = InTerminal("top", "--address", address, "--timeout", "600", folder=tmp_path)
    try:
        top.wait_for(f"looking for a daemon at {address}")
        assert "\x1b[?1049h" not in top.out  # no empty screen
        top.send("\x03")
        assert top.finish() == 130
    finally:
        top.close()


def test_another_daemon_s_control_channel_is_not_used(daemon, tmp_path: Path) -> None:
    _, control, _ = daemon
    dashboard = LiveDashboard(console=console()[0])
    remote = Remote(WireConfig(control=control))
    remote.look(StatusSnapshot(daemon="another one"), dashboard)
    deadline = time.monotonic() + 20
    while not remote._daemon and time.monotonic() < deadline:
        time.sleep(0.02)
    assert remote._daemon
    remote.look(StatusSnapshot(daemon="another one"), dashboard)
    assert not dashboard.choices.commands
    remote.look(StatusSnapshot(daemon=remote._daemon), dashboard)
    assert dashboard.choices.commands


def test_the_status_is_printed_plain_and_as_json(daemon, tmp_path: Path) -> None:
    plain = subprocess.run(
        [command(), "top", "--address", daemon[0], "--once"], capture_output=True, text=True, timeout=60
    )
    assert (plain.returncode, "\x1b" in plain.stdout) == (0, False)
    assert plain.stdout.startswith("state")
    found = subprocess.run(
        [command(), "top", "--address", daemon[0], "--json"], capture_output=True, text=True, timeout=60
    )
    status = json.loads(found.stdout)
    assert (status["state"], status["alarms"]) == ("running", [])
