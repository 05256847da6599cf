"""The image hook of pycromanager: gives each image its place in the run and passes it to the sender.

The hook never raises and never blocks while images are due, because either would hang the acquisition; an
image that cannot be used is left out, and the reason kept. It returns None, so that no image stays in
pycromanager's storage. `take` runs on pycromanager's image thread, everything else on the thread that feeds
the acquisition.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.drivers.plan import Key, PlannedSweep, frame_key
from microdiffusion.drivers.specimen import CalibrationSpecimen, Specimen
from microdiffusion.errors import AcquisitionError
from microdiffusion.frames import FrameInfo
from microdiffusion.header import RunHeader
from microdiffusion.sender import Sender

_SETTINGS = {
    "ROI": "region",
    "ROI-X-start": "first column",
    "ROI-Y-start": "first row",
    "Binning": "binning",
    "PixelType": "pixel type",
    "BitDepth": "bit depth",
}
"""Metadata that must stay as they are in a run, and their names."""


class FrameHook:
    """The hook of one acquisition.

    Parameters
    ----------
    sender : Sender
        Receives the frames.
    header : RunHeader
        Geometry and camera of the run.
    specimens : one per position, or empty
        Their projections replace the camera's pixels; empty keeps these.
    seed : int
        Seed of the specimen's noise; each frame has its own generator.
    time_s : float
        Camera time at the start of this acquisition, s since the start of the run.
    rests : bool
        `take` does not return from the last image that is due before `expect` or `release` is called: over
        the bridge, pycromanager's thread waits for the next one with a busy core.

    Attributes
    ----------
    taken, failures, failures_in_a_row : int
        Images; those of them that could not be used; since the last usable one.
    reason : str
        Why the latest of these could not be used.
    progress : Event
        Set whenever an image comes.
    """

    def __init__(
        self,
        sender: Sender,
        header: RunHeader,
        specimens: Sequence[Specimen | CalibrationSpecimen],
        *,
        seed: int = 0,
        time_s: float = 0.0,
        rests: bool = False,
    ) -> None:
        self._sender = sender
        self._header = header
        self._profile = header.profile
        self._specimens = specimens
        self._seed = seed
        self._time_s = time_s
        self._lock = threading.Lock()
        self._expected: dict[Key, FrameInfo] = {}
        self._first_failure: Exception | None = None
        self._settings: dict[str, Any] = {}  # of the first image
        self._due = threading.Event()
        if not rests:
            self._due.set()
        self._rests = rests
        self.failures = self.failures_in_a_row = self.taken = 0
        self.reason = self._first_reason = ""
        self.progress = threading.Event()
        self._began_s = time.monotonic()

    def expect(self, sweep: PlannedSweep) -> None:
        """Announce the frames of a sweep, before its events are queued."""
        with self._lock:
            self._expected.update((frame_key(shot.event["axes"]), shot.info) for shot in sweep.shots)
        self._due.set()

    def release(self) -> None:
        """Let `take` return from now on: the acquisition is about to end."""
        with self._lock:  # not between the look and the rest of `take`
            self._rests = False
        self._due.set()

    @property
    def outstanding(self) -> int:
        """Number of frames that were announced and have not come."""
        with self._lock:
            return len(self._expected)

    def take(self, image: NDArray[Any], metadata: dict[str, Any]) -> None:
        """Pass an image on. Never raises; returns None, so that pycromanager keeps nothing."""
        try:
            self._take(image, metadata)
            self.failures_in_a_row = 0
        except Exception as error:
            self.failures += 1
            self.failures_in_a_row += 1
            self.reason = (
                str(error) if isinstance(error, AcquisitionError) else f"{type(error).__name__}: {error}"
            )
            if self._first_failure is None:
                self._first_failure = error
                self._first_reason = self.reason
            self._sender.leave_out()
        finally:
            self.taken += 1
            with self._lock:
                if self._rests and not self._expected:
                    self._due.clear()
            self.progress.set()
            self._due.wait()

    def raise_if_failed(self) -> None:
        """Raise the first error, if there was one."""
        error = self._first_failure
        if error is not None:
            raise AcquisitionError(
                f"{self.failures} of {self.taken} frames could not be used, the first because of "
                f"{self._first_reason}."
            ) from error

    def _take(self, image: NDArray[Any], metadata: dict[str, Any]) -> None:
        axes = metadata["Axes"]
        with self._lock:
            planned = self._expected.pop(frame_key(axes), None)
        if planned is None:
            raise AcquisitionError(f"an unexpected image came, axes {axes}")
        elapsed_ms = metadata.get("ElapsedTime-ms")
        time_s = time.monotonic() - self._began_s if elapsed_ms is None else float(elapsed_ms) / 1000.0
        info = replace(
            planned,
            stage=replace(planned.stage, z_um=self._depth(planned, metadata)),
            exposure_ms=float(metadata.get("Exposure", planned.exposure_ms)),
            camera_time_s=self._time_s + time_s,
        )
        self._sender.put(info, self._pixels(image, metadata, info))

    @staticmethod
    def _depth(planned: FrameInfo, metadata: dict[str, Any]) -> float:
        """Return the slab's centre in the volume, µm: the stage may have followed the specimen beyond it."""
        found = metadata.get("ZPosition_um_Intended")
        return planned.stage.z_um if found is None else float(found) - planned.refocus_um

    def _pixels(self, image: NDArray[Any], metadata: dict[str, Any], info: FrameInfo) -> NDArray[np.uint16]:
        if self._specimens:
            rng = np.random.default_rng([self._seed, 103, info.seq])
            specimen = self._specimens[info.position]
            stage = replace(info.stage, z_um=info.stage.z_um + info.refocus_um)
            light = specimen.expected(stage, self._profile, info.camera_time_s)
            return self._header.camera.expose(light, rng)
        self._check_settings(image, metadata)
        return image.astype(np.uint16, copy=False)

    def _check_settings(self, image: NDArray[Any], metadata: dict[str, Any]) -> None:
        """Raise `AcquisitionError` if the camera was set otherwise since the start of the run."""
        settings = {name: metadata[key] for key, name in _SETTINGS.items() if key in metadata}
        settings |= {"rows": image.shape[0], "columns": image.shape[1]}
        first = self._settings or settings
        if image.shape == self._header.shape[1:]:
            self._settings = first
        else:
            first = first | {"rows": self._header.shape[1], "columns": self._header.shape[2]}
        changes = [
            f"{name} {value} instead of {first[name]}"
            for name, value in settings.items()
            if first.get(name, value) != value
        ]
        if changes:
            raise AcquisitionError(
                f"a change of the camera's settings ({', '.join(changes)}): set them back in Micro-Manager"
            )
