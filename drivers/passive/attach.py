"""A hook for your own acquisition: its images go to mdd as well, and nothing else changes.

    from microdiffusion.drivers import attach

    with attach("my.toml") as mdd:
        with Acquisition(directory="data", name="run", image_process_fn=mdd.process) as acquisition:
            acquisition.acquire(multi_d_acquisition_events(num_time_points=9, z_start=0, z_end=60, z_step=12))

`process` is an `image_process_fn` that returns each image unchanged, so saving continues as before; `saved`
is an `image_saved_fn`, for acquisitions that already have an `image_process_fn`. Invariants: neither ever
raises, since that would abort or hang the acquisition, and neither waits: `process` copies the image into the
sender's buffer, `saved` only notes its axes, and a thread of ours reads it back from where it was saved. A
problem is reported in one sentence, and from then on mdd keeps out of the way.

An acquisition of pymmcore-plus is followed by its signals instead, and the run ends with it:

    with attach("my.toml") as mdd:
        mdd.follow(core)
        core.run_mda(sequence, block=True)
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

from numpy.typing import NDArray

from microdiffusion.config import Config, load_config
from microdiffusion.drivers.passive.geometry import Image
from microdiffusion.drivers.passive.relay import PassiveRun
from microdiffusion.drivers.passive.useq_events import useq_image
from microdiffusion.drivers.sending import FINISH_S, DriverTask, require_port
from microdiffusion.errors import AcquisitionError, MddError
from microdiffusion.sender import SenderStats
from microdiffusion.text import count_noun
from microdiffusion.wire import client_security

logger = logging.getLogger(__name__)


def attach(
    config: Config | str | Path,
    *,
    address: str | None = None,
    note: Callable[[str], None] | None = None,
    finish_s: float = FINISH_S,
) -> Attached:
    """Return a hook for one acquisition; close it, or leave its `with` block, after the acquisition.

    Parameters
    ----------
    config : Config, file or name of a preset
        Beam ([sweep]), volume ([volume]) and the camera's noise; the number of slabs is learnt from the first
        sweep.
    address : str or None
        Where the daemon receives frames; None: `wire.data`.
    note : callable or None
        Called with messages for the user, one line each; None: the log, problems as warnings.
    finish_s : float
        How long closing may take to deliver the remaining frames; then they go to the journal.

    Raises
    ------
    UserError
        The configuration is unusable, or keys are missing.
    """
    checked = config if isinstance(config, Config) else load_config(config)
    address = address or checked.wire.data
    require_port(address)
    return Attached(checked, address, note=note, finish_s=finish_s)


class Attached:
    """A hook for one acquisition; a context manager. Its threads call `process` and `saved`.

    Attributes
    ----------
    problem : MddError or None
        Why images are no longer passed on.
    stats : SenderStats or None
        The sender's counters; None until it is closed, or if the run did not begin.
    """

    def __init__(
        self, config: Config, address: str, *, note: Callable[[str], None] | None, finish_s: float
    ) -> None:
        self.problem: MddError | None = None
        self.stats: SenderStats | None = None
        self._note, self._warn = note or logger.info, note or logger.warning
        task = DriverTask(
            config=config,
            address=address,
            stop=threading.Event(),
            note=lambda text: self._say(text, self._note),
            security=client_security(config.wire, address),
            finish_s=lambda: finish_s,
        )
        self._run = PassiveRun(task, source="hook in an acquisition")
        self._lock = threading.Lock()  # of the run
        self._closing = threading.Lock()  # held while it closes: a second caller waits for the first
        self._closed = False
        self._reason = "finished"
        self._late = False  # an image of a followed acquisition came after closing
        self._to_read: SimpleQueue[tuple[dict[str, Any], Any] | None] = SimpleQueue()
        self._reader: threading.Thread | None = None

    def process(self, image: NDArray[Any], metadata: dict[str, Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Pass an image on and return it unchanged: for `image_process_fn`."""
        try:
            with self._lock:
                if not self._closed:
                    self._take(Image(metadata["Axes"], metadata, image))
        except Exception as error:
            self._give_up(error)
        return image, metadata

    def saved(self, axes: dict[str, Any], dataset: Any) -> None:
        """Note a saved image, to be read back and passed on: for `image_saved_fn`."""
        try:
            with self._lock:
                if self._closed or self.problem is not None:
                    return
                if self._reader is None:
                    self._reader = threading.Thread(target=self._read, name="mdd-hook-reader", daemon=True)
                    self._reader.start()
                self._to_read.put((dict(axes), dataset))
        except Exception as error:
            self._give_up(error)

    def follow(self, core: Any) -> None:
        """Pass on the images of a `CMMCorePlus`'s next acquisition, and close by itself at its end.

        Call it before the acquisition starts. The images come by the core's signals (`core.mda.events`),
        in the acquisition's thread, or in Qt's where pymmcore-plus uses Qt's signals.

        Raises
        ------
        AcquisitionError
            `core` is not one of pymmcore-plus.
        """
        events = getattr(getattr(core, "mda", None), "events", None)
        if events is None:
            raise AcquisitionError(
                f"Expected a core of pymmcore-plus (CMMCorePlus), not {type(core).__name__}: with "
                "pycromanager pass `process` to its Acquisition."
            )

        # Functions, because methods are held weakly by the signals.
        def on_frame(pixels: Any, event: Any, metadata: Any) -> None:
            self._frame_ready(pixels, event, metadata)

        def on_end(_: Any) -> None:
            events.frameReady.disconnect(on_frame)
            events.sequenceFinished.disconnect(on_end)
            reason = str(getattr(getattr(core.mda, "status", None), "finish_reason", "completed"))
            if reason != "completed":
                self._reason = f"acquisition {reason}"
            threading.Thread(target=self.close, name="mdd-hook-closer").start()

        events.frameReady.connect(on_frame)
        events.sequenceFinished.connect(on_end)

    def _frame_ready(self, pixels: Any, event: Any, metadata: Any) -> None:
        try:
            with self._lock:
                if not self._closed:
                    self._take(useq_image(pixels, event, metadata))
                elif not self._late:
                    self._late = True
                    self._say(
                        "the hook was closed while its acquisition runs: further images are not passed on; "
                        "leave the with block after it, as with core.run_mda(sequence, block=True)",
                        self._warn,
                    )
        except Exception as error:
            self._give_up(error)

    def close(self) -> SenderStats | None:
        """Deliver the remaining frames, end the run, and return the sender's counters.

        Takes at most `finish_s`, plus the time to read back saved images. Does not raise; may be called
        again.
        """
        with self._closing:
            if not self._closed:
                self._close()
        return self.stats

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            self._to_read.put(None)
        if self._reader is not None:
            self._reader.join()
        try:
            if self.problem is None:
                self._run.settle()
        except Exception as error:
            self._give_up(error)
        self._finish()

    def raise_if_failed(self) -> None:
        """Raise the problem, if there was one."""
        if self.problem is not None:
            raise self.problem

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        """Read saved images back; on its own thread."""
        for axes, dataset in iter(self._to_read.get, None):
            try:
                image = Image(axes, dataset.read_metadata(**axes), dataset.read_image(**axes))
                with self._lock:
                    self._take(image)
            except Exception as error:
                self._give_up(error)

    def _take(self, image: Image) -> None:
        if self.problem is not None:
            return
        sender = self._run.sender
        if sender is not None and sender.wanted == "stop":
            raise AcquisitionError("The daemon has stopped the run: further images are not passed on.")
        self._run.take(image)

    def _finish(self) -> None:
        reason = self._reason if self.problem is None else f"broken off: {self.problem}"
        self.stats = stats = self._run.finish(reason)
        if stats is None:
            return
        try:
            self._run.raise_if_failed()
        except MddError as error:
            self._give_up(error)
        text = f"{count_noun(stats.put, 'frame')} passed on, {stats.acknowledged} acknowledged"
        if self._run.unplaced:
            text += f", {count_noun(self._run.unplaced, 'image')} without a place"
        # Frames that still wait are in the journal, or lost with the sender's memory.
        lost = stats.dropped - self._run.unplaced + stats.waiting - stats.unsent
        if lost:
            text += f", {lost} lost"
        if stats.unsent:
            text += f"; {stats.unsent} were not delivered and are in the journal: see `mdd deliver`"
        self._say(text, self._warn if lost or stats.unsent or self._run.unplaced else self._note)

    def _give_up(self, error: Exception) -> None:
        if self.problem is not None:
            return
        if not isinstance(error, MddError):
            cause = error
            error = AcquisitionError(f"An image could not be passed on ({type(cause).__name__}: {cause}).")
            error.__cause__ = cause
        self.problem = error
        self._say(f"mdd receives no more images of this acquisition: {error}", self._warn)

    def _say(self, text: str, note: Callable[[str], object]) -> None:
        try:
            note(text)
        except Exception:  # whatever a user's function does, the acquisition continues
            logger.exception("note= raised an error with the message: %s", text)
