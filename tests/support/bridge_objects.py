"""The Java objects of the stand-in for Micro-Manager (`bridge_standin`): core, acquisition engine, storage.

Each public method with annotations is one of the object's Java methods. Names are Micro-Manager's.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, get_type_hints

import numpy as np
import zmq

HOST = "127.0.0.1"
TYPES = {
    str: "java.lang.String", float: "double", int: "int", bool: "boolean", object: "java.lang.Object",
    type(None): "void",
}  # fmt: skip


class JavaError(Exception):
    """What Java answers instead of a value; its text is a stack trace."""


class JavaObject:
    """An object on the Java side."""

    java_class = "java.lang.Object"
    fields: tuple[str, ...] = ()

    @classmethod
    def api(cls) -> list[dict[str, Any]]:
        """Return its methods, as the server describes them."""
        methods = []
        for name in dir(cls):
            method = getattr(cls, name)
            if name.startswith("_") or name in ("api", "java_type") or not callable(method):
                continue
            hints = get_type_hints(method)
            returned = hints.pop("return", type(None))
            methods.append(
                {
                    "name": name,
                    "arguments": [cls.java_type(hint) for hint in hints.values()],
                    "return-type": cls.java_type(returned),
                }
            )
        return methods

    @staticmethod
    def java_type(hint: Any) -> str:
        return TYPES[hint] if hint in TYPES else str(hint.java_class)


class StrVector(JavaObject):
    """A list of names."""

    java_class = "mmcorej.StrVector"

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def size(self) -> int:
        return len(self._names)

    def get(self, index: int) -> str:
        return self._names[index]


class Rectangle(JavaObject):
    """The region of interest."""

    java_class = "java.awt.Rectangle"
    fields = ("x", "y", "width", "height")

    def __init__(self, x: int, y: int, width: int, height: int) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height


class Core(JavaObject):
    """A core with a camera of 64 x 48 pixels, a focus stage and an XY stage.

    `settings`: "live", "stage" ("backwards", "restless", "stiff"), "groups" {group: presets}.
    """

    java_class = "mmcorej.CMMCore"

    def __init__(self, settings: dict[str, Any]) -> None:
        self._live = bool(settings.get("live"))
        self._stage = settings.get("stage", "")
        self._groups: dict[str, list[str]] = settings.get(
            "groups", {"Channel": ["DAPI", "FITC", "Rhodamine"]}
        )
        self._presets = {group: presets[-1] for group, presets in self._groups.items()}
        self._full = (64, 48)
        self._roi = (0, 0, *self._full)
        self._binning, self._bytes = 1, 2
        self._exposure, self._z, self._xy = 25.0, 3.5, (11.0, -7.0)
        self._moves = 0

    def _state(self) -> dict[str, Any]:
        """Return what a run may have changed."""
        return {
            "roi": list(self._roi), "exposure": self._exposure, "z": self._z, "xy": list(self._xy),
            "presets": self._presets, "moves": self._moves,
        }  # fmt: skip

    def _image(self, number: int) -> np.ndarray[Any, Any]:
        shape = (self._roi[3] // self._binning, self._roi[2] // self._binning)
        return np.full(shape, 100 + number % 900, np.uint16 if self._bytes == 2 else np.uint8)

    def getVersionInfo(self) -> str:
        return "MMCore version 12.5.0 (stand-in)"

    def getCameraDevice(self) -> str:
        return "Camera"

    def getFocusDevice(self) -> str:
        return "Z"

    def getXYStageDevice(self) -> str:
        return "XY"

    def getDeviceDescription(self, label: str) -> str:
        return "a stand-in"

    def hasProperty(self, label: str, name: str) -> bool:
        return False

    def getAvailableConfigGroups(self) -> StrVector:
        return StrVector(list(self._groups))

    def getAvailableConfigs(self, group: str) -> StrVector:
        # As Java's side sends them: in Latin-1.
        names = self._groups.get(group, [])
        return StrVector([name.encode("latin-1", "replace").decode("latin-1") for name in names])

    def getCurrentConfig(self, group: str) -> str:
        return self._presets.get(group, "")

    def setConfig(self, group: str, preset: str) -> None:
        self._presets[group] = preset

    def getNumberOfCameraChannels(self) -> int:
        return 1

    def getNumberOfComponents(self) -> int:
        return 1

    def getBytesPerPixel(self) -> int:
        return self._bytes

    def getImageBitDepth(self) -> int:
        return 8 * self._bytes

    def getImageWidth(self) -> int:
        return self._roi[2] // self._binning

    def getImageHeight(self) -> int:
        return self._roi[3] // self._binning

    def clearROI(self) -> None:
        self._refuse_while_live()
        self._roi = (0, 0, *self._full)

    def setROI(self, x: int, y: int, width: int, height: int) -> None:
        self._refuse_while_live()
        self._roi = (x, y, width, height)

    def getROI(self) -> Rectangle:
        return Rectangle(*self._roi)

    def getExposure(self) -> float:
        return self._exposure

    def setExposure(self, exposure: float) -> None:
        self._exposure = exposure

    def getPixelSizeUm(self) -> float:
        return 0.5

    def isSequenceRunning(self) -> bool:
        return self._live

    def getPosition(self, stage: str) -> float:
        if self._stage == "restless" and self._moves:
            self._z += 7.0
        return self._z

    def setPosition(self, stage: str, position: float) -> None:
        self._moves += 1
        self._z = {"backwards": -position, "stiff": self._z}.get(self._stage, position)

    def waitForDevice(self, label: str) -> None:
        pass

    def getXPosition(self) -> float:
        return self._xy[0]

    def getYPosition(self) -> float:
        return self._xy[1]

    def setXYPosition(self, x: float, y: float) -> None:
        self._xy = (x, y)

    def _refuse_while_live(self) -> None:
        if self._live:
            raise JavaError(
                "java.lang.reflect.InvocationTargetException\n"
                "\tat java.base/jdk.internal.reflect.Method.invoke(Method.java:580)\n"
                "\tat org.micromanager.internal.zmq.ZMQServer.runMethod(ZMQServer.java:345)\n"
                'Caused by: java.lang.Exception: Error in device "Camera": Camera Busy\n'
                "\tat mmcorej.MMCoreJJNI.CMMCore_setROI(Native Method)\n\t... 12 more"
            )


class RemoteImageProcessor(JavaObject):
    """The way of the images to Python and back."""

    java_class = "org.micromanager.remote.RemoteImageProcessor"

    def __init__(self) -> None:
        context = zmq.Context.instance()
        self._push, self._pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        self._push_port = self._push.bind_to_random_port(f"tcp://{HOST}")
        self._pull_port = free_port()
        for end in (self._push, self._pull):
            end.setsockopt(zmq.LINGER, 0)

    def startPull(self) -> None:
        self._pull.connect(f"tcp://{HOST}:{self._pull_port}")

    def startPush(self) -> None:
        pass

    def getPullPort(self) -> int:
        return self._pull_port

    def getPushPort(self) -> int:
        return int(self._push_port)

    def _send(self, pixels: np.ndarray[Any, Any], metadata: dict[str, Any]) -> None:
        kind = "short-array" if pixels.dtype == np.uint16 else "byte-array"
        message = {"metadata": metadata, "pixels": {"type": kind, "value": "@1f"}}
        text = json.dumps(message).encode("latin-1")
        self._push.send_multipart([text, (0x1F).to_bytes(4, "little"), pixels.tobytes()])

    def _finish(self) -> None:
        self._push.send_multipart([json.dumps({"special": "finished"}).encode()])
        while "special" not in json.loads(self._pull.recv_multipart()[0]):
            pass


class RemoteStorage(JavaObject):
    """Keeps nothing, as mdd's hook hands nothing back."""

    java_class = "org.micromanager.ndtiffstorage.NDRAMStorage"

    def __init__(self, acquisition: Any) -> None:
        self._acquisition = acquisition

    def getStorage(self) -> object:
        return self

    def getDiskLocation(self) -> object:
        return None

    def getSummaryMetadata(self) -> object:
        return {}

    def isFinished(self) -> bool:
        return bool(self._acquisition._sink_finished)


class RemoteAcquisition(JavaObject):
    """Takes the events' images, one after another.

    `settings`: "change" {"after": images, "until": images, "binning" | "bytes" | "x": value}, or
    {"nudge": image}: the stage is moved after it.
    """

    java_class = "org.micromanager.remote.RemoteAcquisition"
    running = 0

    def __init__(self, core: Core, settings: dict[str, Any], at: Callable[[str], None]) -> None:
        self._core, self._at = core, at
        self._change = settings.get("change", {})
        self._processor: RemoteImageProcessor | None = None
        self._notes: queue.Queue[dict[str, Any]] = queue.Queue()
        self._event_port = free_port()
        self._events_finished = self._sink_finished = self._aborted = False
        RemoteAcquisition.running += 1
        threading.Thread(target=self._run, daemon=True).start()

    def getEventPort(self) -> int:
        return self._event_port

    def getDataSink(self) -> object:
        return RemoteStorage(self)

    def addImageProcessor(self, processor: RemoteImageProcessor) -> None:
        self._processor = processor

    def areEventsFinished(self) -> bool:
        return self._events_finished

    def isFinished(self) -> bool:
        return self._events_finished

    def blockUntilEventsFinished(self, seconds: float) -> None:
        time.sleep(seconds)

    def waitForCompletion(self) -> None:
        while not self._sink_finished:
            time.sleep(0.01)

    def checkForExceptions(self) -> None:
        pass

    def abort(self) -> None:
        self._aborted = True

    def _run(self) -> None:
        events = zmq.Context.instance().socket(zmq.PULL)
        events.connect(f"tcp://{HOST}:{self._event_port}")
        began_s, number = time.monotonic(), 0
        while not self._aborted:
            if not events.poll(20):
                continue
            for event in json.loads(events.recv_multipart()[0])["events"]:
                if event.get("special") == "acquisition-end":
                    self._aborted = True
                elif not self._aborted:
                    self._take(event, number, time.monotonic() - began_s)
                    number += 1
        self._notes.put({"type": "global", "milestone": "acq_events_finished"})
        self._events_finished = True
        if self._processor is not None:
            self._processor._finish()
        self._notes.put({"type": "image", "milestone": "data_sink_finished"})
        self._sink_finished = True
        RemoteAcquisition.running -= 1

    def _take(self, event: dict[str, Any], number: int, elapsed_s: float) -> None:
        core = self._core
        self._at("image")
        if "after" in self._change:
            is_changed = self._change["after"] <= number < self._change.get("until", 1 << 30)
            core._binning = self._change.get("binning", 1) if is_changed else 1
            core._bytes = self._change.get("bytes", 2) if is_changed else 2
            if "x" in self._change:
                core._roi = (self._change["x"] if is_changed else 16, *core._roi[1:])
        core._z = event.get("z", core._z)
        core._xy = (event.get("x", core._xy[0]), event.get("y", core._xy[1]))
        core._exposure = event.get("exposure", core._exposure)
        if "config_group" in event:
            core._presets.update([event["config_group"]])
        time.sleep(core._exposure / 1000)
        image = core._image(number)
        z_um = core._z
        if number == self._change.get("nudge"):  # somebody turns the knob
            core._z += 5.0
        assert self._processor is not None
        self._processor._send(
            image,
            {
                "Axes": event["axes"], "Height": image.shape[0], "Width": image.shape[1],
                "PixelType": "GRAY16" if image.dtype == np.uint16 else "GRAY8",
                "ZPosition_um_Intended": z_um, "Exposure": core._exposure,
                "ElapsedTime-ms": 1000 * elapsed_s, "Binning": str(core._binning),
                "ROI": "-".join(map(str, core._roi)), "BitDepth": str(8 * core._bytes),
            },
        )  # fmt: skip


class RemoteAcquisitionFactory(JavaObject):
    """Makes acquisitions."""

    java_class = "org.micromanager.remote.RemoteAcquisitionFactory"

    def __init__(self, core: Core, settings: dict[str, Any], at: Callable[[str], None]) -> None:
        self._make = lambda: RemoteAcquisition(core, settings, at)

    def createAcquisition(
        self, directory: str, name: str, show_viewer: bool, queue_size: int, debug: bool
    ) -> RemoteAcquisition:
        return self._make()


class RemoteNotificationHandler(JavaObject):
    """Tells Python of an acquisition's progress."""

    java_class = "org.micromanager.remote.RemoteNotificationHandler"

    def __init__(self, acquisition: RemoteAcquisition) -> None:
        self._acquisition = acquisition
        self._push = zmq.Context.instance().socket(zmq.PUSH)
        self._port = self._push.bind_to_random_port(f"tcp://{HOST}")

    def getPort(self) -> int:
        return int(self._port)

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def notificationHandlingComplete(self) -> None:
        pass

    def _run(self) -> None:
        while True:
            self._push.send_multipart([json.dumps(self._acquisition._notes.get()).encode()])


class Engine(JavaObject):
    """The acquisition engine, that there is one of."""

    java_class = "org.micromanager.acqj.internal.Engine"

    def __init__(self, busy: bool) -> None:
        self._busy = busy

    def anyAcquisitionsRunning(self) -> bool:
        return self._busy or RemoteAcquisition.running > 0


def free_port() -> int:
    """Return a port that the system says is free."""
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])
