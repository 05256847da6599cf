"""Requests of `mdd top` to the daemon, over its control channel.

A request may take seconds when nobody answers, so each goes on a thread of its own; `tell` brings the answers
to the dashboard on the main thread. Keys are enabled only once the answering daemon carries the number that
the status carries: with tunnels and two daemons on a machine, another one might listen at the address.
"""

from __future__ import annotations

import queue
import threading
import time

from microdiffusion.config import Config, WireConfig
from microdiffusion.daemon.dashboard.app import LiveDashboard
from microdiffusion.daemon.status import StatusSnapshot
from microdiffusion.errors import MddError
from microdiffusion.wire import Answer, ask, client_security

RETRY_S = 15.0
TIMEOUT_S = 3.0


class Remote:
    """Carries out requests, at the control channel and with the keys that `wire` names."""

    def __init__(self, wire: WireConfig) -> None:
        self._wire = wire
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._daemon = ""  # the number of the one that answers
        self._asked_s = -RETRY_S
        self._busy = threading.Event()

    def look(self, snapshot: StatusSnapshot, dashboard: LiveDashboard) -> None:
        """Enable the keys once the daemon of this status answers; disable them when it is another one."""
        same = bool(snapshot.daemon) and snapshot.daemon == self._daemon
        if same is not dashboard.choices.commands:
            dashboard.allow(self.perform if same else None)
        if not same and time.monotonic() - self._asked_s >= RETRY_S:
            self._asked_s = time.monotonic()
            threading.Thread(target=self._find, daemon=True).start()

    def perform(self, command: str, value: str) -> str:
        """Send a request; its answer comes later."""
        if command == "quit":
            raise KeyboardInterrupt
        if self._busy.is_set():
            return "the daemon has not answered yet"
        self._busy.set()
        threading.Thread(target=self._send, args=(command, value), daemon=True).start()
        return f"{command} ..."

    def tell(self, dashboard: LiveDashboard) -> None:
        """Show the answers that have come."""
        while not self._answers.empty():
            dashboard.say(self._answers.get())

    def _find(self) -> None:
        try:
            self._daemon = str(self._ask("status", "").values.get("daemon", ""))
        except MddError:
            self._daemon = ""

    def _send(self, command: str, value: str) -> None:
        try:
            self._answers.put(self._ask(command, value).text)
        except MddError as error:
            self._answers.put(str(error))
        finally:
            self._busy.clear()

    def _ask(self, command: str, value: str) -> Answer:
        wire = self._wire
        security = client_security(wire, wire.control)
        return ask(wire.control, command, value=value, timeout_s=TIMEOUT_S, security=security)


def control_beside(config: Config, status: str) -> Config:
    """Return the configuration with its control address on the host of the status."""
    host = status.rpartition(":")[0]
    control = f"{host}:{config.wire.control.rpartition(':')[2]}"
    return config.model_copy(update={"wire": config.wire.model_copy(update={"control": control})})
