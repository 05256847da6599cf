"""A stand-in for Micro-Manager with its pycro-manager server: speaks PyJavaZ's protocol on loopback.

`MicroManager` starts it as a process of its own, so that a test can kill or freeze all of it, from outside
or, with "fault" in the settings, at a moment inside:

    {"at": "createAcquisition", "count": 1, "do": "freeze"}

`at` is a Java method, a command of the protocol ("constructor", "destructor", ...) or "image"; `do` is
freeze (the whole process stands still, its ports stay open), die, silence (this call never returns), dawdle
(it takes half a second) or raise. It prints its port; anything else that it prints is a mistake in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any, Self

import psutil
import zmq

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from support import bridge_objects as objects

VERSION = "5.1.0"
TRACE = (
    "java.lang.RuntimeException: java.util.concurrent.ExecutionException: java.lang.Exception: "
    'Error in device "Camera": the shutter is stuck\n'
    "\tat org.micromanager.acqj.internal.Engine.runAcquisition(Engine.java:501)\n"
    "\tat java.base/java.lang.Thread.run(Thread.java:1583)\n"
    'Caused by: java.lang.Exception: Error in device "Camera": the shutter is stuck\n'
    "\tat mmcorej.MMCoreJJNI.CMMCore_snapImage(Native Method)\n\t... 9 more"
)


class StandIn:
    """The server: one thread for each of its ports."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._fault = dict(settings.get("fault") or {})
        self._core = objects.Core(settings)
        self._engine: objects.JavaObject | None = None
        if settings.get("busy") is not None:
            self._engine = objects.Engine(settings["busy"])
        if settings.get("older"):
            self._engine = objects.JavaObject()
        self._held: dict[int, objects.JavaObject] = {}
        self._numbers = count(1)
        self._lock = threading.Lock()

    def open_port(self, at: str = "*") -> int:
        """Listen at another port; return it."""
        socket = zmq.Context.instance().socket(zmq.REP)
        socket.bind(f"tcp://{objects.HOST}:{at}")
        port = int(socket.getsockopt(zmq.LAST_ENDPOINT).decode().rpartition(":")[2])
        threading.Thread(target=self._serve, args=(socket,), daemon=True).start()
        return port

    def _serve(self, socket: Any) -> None:
        while True:
            request = json.loads(socket.recv_multipart()[0].decode("latin-1"))
            try:
                reply = self._answer(request)
            except objects.JavaError as error:
                reply = {"type": "exception", "value": str(error)}
            socket.send(json.dumps(reply).encode("latin-1"))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        command = request["command"]
        if command == "connect":
            return {"type": "none", "version": self._settings.get("version", VERSION)}
        if command == "stand-in-state":
            return {"type": "none", "held": len(self._held), **self._core._state()}
        self.at(command)
        if command == "get-constructors":
            made = next(kind for kind in _kinds() if kind.java_class == request["classpath"])
            api = {"name": made.java_class, "arguments": _arguments(made)}
            return {"type": "none", "api": [api]}
        if command == "constructor":
            self.at(request["classpath"].rpartition(".")[2])
            arguments = [self._value(argument) for argument in request["arguments"]]
            reply = self._shadow(self._construct(request["classpath"], arguments))
            if request.get("new-port"):
                taken = self._settings.get("second_port")
                reply["port"] = taken or self.open_port()
            return reply
        if command == "get-class":
            api = [{"name": "getInstance", "arguments": [], "return-type": objects.Engine.java_class}]
            shadow = self._shadow(objects.JavaObject())
            return {**shadow, "class": "java.lang.Class", "api": api}
        if command == "destructor":
            self._held.pop(request["hash-code"], None)
            return {"type": "none"}
        if command == "get-field":
            return self._reply(getattr(self._held[request["hash-code"]], request["name"]))
        assert command == "run-method", command
        self.at(request["name"])
        if request["name"] == "getInstance":
            return self._reply(self._engine)
        target = self._held[request["hash-code"]]
        arguments = [self._value(argument) for argument in request["arguments"]]
        return self._reply(getattr(target, request["name"])(*arguments))

    def at(self, moment: str) -> None:
        """Be at a moment; the fault strikes if it is its own."""
        with self._lock:
            if self._fault.get("at") != moment:
                return
            self._fault["count"] = self._fault.get("count", 1) - 1
            if self._fault["count"] != 0:
                return
        deed = self._fault["do"]
        if deed == "die":
            os._exit(9)
        elif deed == "freeze":
            psutil.Process().suspend()
        elif deed == "silence":
            threading.Event().wait()
        elif deed == "dawdle":
            time.sleep(0.5)
        elif deed == "raise":
            raise objects.JavaError(TRACE)

    def _construct(self, classpath: str, arguments: list[Any]) -> objects.JavaObject:
        if classpath == objects.Core.java_class:
            return self._core
        if classpath == objects.RemoteImageProcessor.java_class:
            return objects.RemoteImageProcessor()
        if classpath == objects.RemoteAcquisitionFactory.java_class:
            self._engine = self._engine or objects.Engine(False)
            return objects.RemoteAcquisitionFactory(arguments[0], self._settings, self.at)
        return objects.RemoteNotificationHandler(arguments[0])

    def _value(self, argument: Any) -> Any:
        return self._held[argument["hash-code"]] if isinstance(argument, dict) else argument

    def _reply(self, value: Any) -> dict[str, Any]:
        if value is None:
            return {"type": "null"}
        if isinstance(value, dict):
            return {"type": "object", "class": "JSONObject", "value": json.dumps(value)}
        if isinstance(value, objects.JavaObject):
            return self._shadow(value)
        return {"type": "string" if isinstance(value, str) else "primitive", "value": value}

    def _shadow(self, value: objects.JavaObject) -> dict[str, Any]:
        number = next(self._numbers)
        self._held[number] = value
        return {
            "type": "unserialized-object", "hash-code": number, "class": value.java_class,
            "interfaces": [value.java_class, "java.lang.Object"], "fields": list(value.fields),
            "api": value.api(),
        }  # fmt: skip


def _kinds() -> list[type[objects.JavaObject]]:
    return objects.JavaObject.__subclasses__()


def _arguments(kind: type[objects.JavaObject]) -> list[str]:
    if kind is objects.RemoteAcquisitionFactory:
        return [objects.Core.java_class]
    if kind is objects.RemoteNotificationHandler:
        return [objects.RemoteAcquisition.java_class]
    return []


class MicroManager:
    """A running stand-in, to be used with `with`.

    Parameters
    ----------
    settings
        See `StandIn`, `bridge_objects.Core` and `bridge_objects.RemoteAcquisition`.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(self._settings)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def is_running(self) -> bool:
        """Return whether it has not ended."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Number of its process."""
        return self._process.pid

    def is_frozen(self) -> bool:
        """Return whether its process stands still."""
        return psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED

    def freeze(self) -> None:
        """Stop all of its threads; its ports stay open."""
        psutil.Process(self._process.pid).suspend()

    @property
    def state(self) -> dict[str, Any]:
        """What a run may have changed."""
        with zmq.Context() as context, context.socket(zmq.REQ) as request:
            request.setsockopt(zmq.LINGER, 0)
            request.connect(f"tcp://{objects.HOST}:{self.port}")
            request.send(json.dumps({"command": "stand-in-state"}).encode())
            assert request.poll(10_000)
            found: dict[str, Any] = json.loads(request.recv())
            return found


def main() -> None:
    """Serve until killed, or until whoever started this is gone."""
    parent = os.getppid()
    print(StandIn(json.loads(sys.argv[1])).open_port(), flush=True)
    while os.getppid() == parent:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
