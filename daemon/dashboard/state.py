"""Choices of the user: what is shown, and what the keys do.

`Choices.press` takes a key and changes what is shown, or returns a request to the daemon. A state machine
without clock, terminal or daemon; main thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from microdiffusion.daemon.dashboard.preview import CONTRASTS, Contrast
from microdiffusion.daemon.status import Preview, StatusSnapshot, state_of

KEYS = (
    ("space", "pause or resume the acquisition"),
    ("s", "snapshot: save the newest volume as a TIFF beside the run file"),
    ("m", "mark: save a remark, with the time, in the run file"),
    ("c", "contrast: auto, held (as it is now), percentile"),
    ("+ -", "brighten or darken dim structures (gamma)"),
    ("v", "maximum projections, middle slices, or age: what has kept still (bright) and what is new"),
    ("tab", "next session: run, channel, position"),
    ("?", "this help"),
    ("q", "quit; in `mdd serve`, stop the run and close its file"),
)
COMMANDING = ("space", "s", "m")
_CONTRAST_HELP: dict[Contrast, str] = {
    "auto": "each volume its own window",
    "held": "the window of this moment",
    "percentile": "from the 60th percentile on, without haze",
}
View = Literal["projections", "middle slices", "age"]
VIEWS: tuple[View, ...] = ("projections", "middle slices", "age")
MOST_STEPS = 6
MOST_CHARACTERS = 120
"""Of a remark; an event of the run file has room for 160 bytes."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the daemon: a command of `control.COMMANDS` and its value, or "quit"."""

    command: str
    value: str = ""


@dataclass(slots=True)
class Choices:
    """The user's choices.

    Attributes
    ----------
    commands : bool
        Whether the daemon takes commands from here.
    asks_to_quit : bool
        Whether quitting ends something, so that it has to be confirmed.
    session : str
        Whose preview; empty: the newest one's.
    message : str
        The answer to the last request.
    """

    commands: bool = False
    asks_to_quit: bool = False
    view: View = "projections"
    contrast: Contrast = "auto"
    gamma_step: int = 0
    held: dict[str, tuple[float, float]] = field(default_factory=dict)
    session: str = ""
    help: bool = False
    asking: Literal["", "mark", "quit"] = ""
    text: str = ""
    message: str = ""

    @property
    def next_view(self) -> View:
        """The view that the key v goes to."""
        return VIEWS[(VIEWS.index(self.view) + 1) % len(VIEWS)]

    def press(self, key: str, snapshot: StatusSnapshot, previews: dict[str, Preview]) -> Request | None:
        """Take a key; return a request to the daemon, if it makes one."""
        if self.asking == "quit":
            self.asking = ""
            return Request("quit") if key in ("y", "Y", "enter") else None
        if self.asking == "mark":
            return self._type(key)
        self.message = ""
        if self.help and key in ("escape", "?", "h", "q", "enter"):
            self.help = False
        elif key == "q" and self.asks_to_quit:
            self.asking = "quit"
        elif key == "q":
            return Request("quit")
        elif key in ("?", "h"):
            self.help = True
        elif key in COMMANDING:
            return self._command(key, snapshot)
        elif key == "v":
            self.view = self.next_view
        elif key == "c":
            self.contrast = CONTRASTS[(CONTRASTS.index(self.contrast) + 1) % len(CONTRASTS)]
            self.message = f"contrast: {self.contrast} ({_CONTRAST_HELP[self.contrast]})"
            if self.contrast == "held":
                self.held = {name: (each.low, each.high) for name, each in previews.items()}
        elif key in ("+", "=", "-"):
            step = -1 if key == "-" else 1
            self.gamma_step = max(-MOST_STEPS, min(MOST_STEPS, self.gamma_step + step))
            self.message = f"gamma: {self.gamma_step:+d} (-{MOST_STEPS} to +{MOST_STEPS}, 0 is neutral)"
        elif key in ("tab", "shift-tab", "left", "right"):
            self._next_session(previews, -1 if key in ("shift-tab", "left") else 1)
        return None

    def _command(self, key: str, snapshot: StatusSnapshot) -> Request | None:
        if not self.commands:
            self.message = "read-only: the daemon's control channel cannot be reached from here (--control)"
            return None
        if key == "space":
            return Request("go" if state_of(snapshot) == "paused" else "pause")
        if key == "s":
            return Request("snapshot", self.session)
        self.asking, self.text = "mark", ""
        return None

    def _type(self, key: str) -> Request | None:
        """Edit the remark; return it once it is complete."""
        if key in ("escape", "enter"):
            self.asking = ""
            return Request("mark", self.text.strip() or "mark") if key == "enter" else None
        if key == "backspace":
            self.text = self.text[:-1]
        elif key == "space":
            self.text += " "
        elif len(key) == 1 and len(self.text) < MOST_CHARACTERS:
            self.text += key
        return None

    def _next_session(self, previews: dict[str, Preview], step: int) -> None:
        names = ["", *sorted(previews)]  # the first one: whichever is newest
        if len(names) <= 2:
            self.message = "there is only one session"
            return
        place = names.index(self.session) if self.session in names else 0
        self.session = names[(place + step) % len(names)]
        self.message = f"session: {self.session or 'the newest'}"
