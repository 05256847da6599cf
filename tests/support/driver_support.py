"""What the drivers' tests have in common: a receiving end, a stand-in for the sender, images, data sets."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

from microdiffusion.config.models import Config
from microdiffusion.daemon.ingest import Ingest, PlainSink, RunState
from microdiffusion.drivers.passive import watch
from microdiffusion.drivers.passive.geometry import Image
from microdiffusion.drivers.plan import ResumeFrom
from microdiffusion.drivers.sending import DriverTask
from microdiffusion.frames import Frame, FrameInfo
from microdiffusion.header import RunHeader
from microdiffusion.sender import SenderStats

SLABS_UM = (6.0, 18.0, 30.0, 42.0)
FOLLOWED = """
[acquisition]
driver = "watch"
watch = "run_1"
[sweep]
length_um = 12
[volume]
shape_z = 24
z0_um = 1.0
[wire]
journal = "journal"
"""
"""A configuration that follows what `DatasetWriter` saves beside it."""


class Daemon:
    """The receiving end: keeps what comes in, has it safe at once, and forgets no run."""

    def __init__(self, address: str = "tcp://127.0.0.1:*", **options: Any) -> None:
        self.headers: list[RunHeader] = []
        self.frames: list[Frame] = []
        self.sinks: dict[str, PlainSink] = {}
        self.ingest = Ingest(address, **options)
        self.ingest.start(self._start)
        self.address = self.ingest.address

    def _start(self, header: RunHeader, owner: str = "") -> PlainSink:
        self.headers.append(header)
        sink = self.sinks.setdefault(header.run_id, PlainSink(header, self.frames.append))
        sink.state = RunState.OPEN  # also one that had ended: it is resumed
        return sink

    @property
    def ends(self) -> list[Any]:
        """The last words of the runs that have ended."""
        return [sink.last_word for sink in self.sinks.values() if sink.last_word is not None]

    def tell(self, what: Any) -> None:
        """Tell the newest run's driver."""
        self.ingest.tell(self.headers[-1].run_id, what)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ingest.stop()
        self.ingest.raise_if_failed()


class Outbox:
    """Stands in for the sender, and may be broken, full, or told something."""

    def __init__(self) -> None:
        self.put_frames: list[tuple[FrameInfo, Any]] = []
        self.broken = False
        self.wanted, self.wanted_text = "go", ""
        self.started = False
        self.left_out = 0
        self.finished: str | None = None
        self.trouble, self.stats = "", SimpleNamespace()

    def start(self) -> None:
        self.started = True

    def raise_if_failed(self) -> None:
        pass

    def put(self, info: FrameInfo, pixels: Any) -> bool:
        if self.broken:
            raise RuntimeError("broken")
        self.put_frames.append((info, pixels.copy()))
        return True

    def leave_out(self) -> None:
        self.left_out += 1

    def finish(self, *, reason: str, timeout_s: float) -> Any:
        self.finished = reason
        return SimpleNamespace(
            put=len(self.put_frames), acknowledged=0, dropped=self.left_out, waiting=0, unsent=0
        )


class Watch:
    """`watch.acquire` on a thread, and all that it tells."""

    def __init__(self, folder: Path, address: str, resume: ResumeFrom | None = None, **tables: Any) -> None:
        tables["acquisition"] = {"driver": "watch", "watch": folder, **tables.get("acquisition", {})}
        self.stop = threading.Event()
        self.notes: list[str] = []
        self.stats: SenderStats | None = None
        self.failure: Exception | None = None
        self._config = passive_config(**tables)
        self._thread = threading.Thread(target=self._run, args=(address, resume))
        self._thread.start()

    def _run(self, address: str, resume: ResumeFrom | None) -> None:
        try:
            self.stats = watch.acquire(
                DriverTask(
                    config=self._config,
                    address=address,
                    stop=self.stop,
                    note=self.notes.append,
                    resume=resume,
                )
            )
        except Exception as error:
            self.failure = error

    def join(self, timeout_s: float = 20.0) -> None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self.stop.set()
        self.join()

    def wait_for_note(self, text: str) -> None:
        assert wait_until(lambda: any(text in note for note in self.notes) or not self._thread.is_alive())
        assert any(text in note for note in self.notes), (self.notes, self.failure)


@contextlib.contextmanager
def spawned(target: Callable[..., None], *args: Any) -> Iterator[tuple[Any, Any]]:
    """Run `target(*args, pipe)` in a process of its own until the block ends; yield both."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=target, args=(*args, there))
    child.start()
    try:
        yield child, here
    finally:
        child.kill()
        child.join()


def passive_config(**tables: Any) -> Config:
    """Return a configuration for images of 24 x 16 pixels whose slabs are `SLABS_UM`, changed."""
    base: dict[str, dict[str, Any]] = {
        "acquisition": {"driver": "none"},
        "sweep": {"length_um": 12.0, "offsets": "fixed"},
        "volume": {"shape_z": 24, "voxel_z_um": 2.0, "z0_um": 1.0, "pixel_um": 0.5},
        "wire": {"journal_gb": 0},
    }
    return changed(base, tables)


def changed(base: dict[str, dict[str, Any]], tables: dict[str, dict[str, Any]]) -> Config:
    """Return the configuration `base` with some values of its tables changed."""
    return Config.model_validate(
        {name: base.get(name, {}) | tables.get(name, {}) for name in base.keys() | tables.keys()}
    )


def pixels_of(number: int, shape: tuple[int, int] = (16, 24)) -> Any:
    """Return pixels that tell image `number` from all others."""
    return np.random.default_rng(abs(number)).integers(0, 4096, shape, np.uint16)


def image_of(time_point: int, z: int, **more: Any) -> Image:
    """Return an image as pycromanager's engine would give it; more axes, or `z_um`, `pixels`, `metadata`."""
    z_um = more.pop("z_um", SLABS_UM[z % len(SLABS_UM)])
    number = 100 * time_point + z
    metadata = {
        "ZPosition_um_Intended": z_um,
        "Exposure": 5.0,
        "ElapsedTime-ms": 10.0 * number,
        "PixelSize_um": 0.25,
        **more.pop("metadata", {}),
    }
    pixels = more.pop("pixels", pixels_of(number))
    return Image({"time": time_point, "z": z, **more}, metadata, pixels)


class DatasetWriter:
    """Writes images as Micro-Manager would, with the published library."""

    def __init__(self, root: Path, name: str = "run", *, axes_in_metadata: bool = True) -> None:
        from ndstorage import NDTiffDataset

        self._dataset = NDTiffDataset(str(root), name=name, summary_metadata={}, writable=True)
        self._axes_in_metadata = axes_in_metadata
        self._writers: list[Any] = []
        self.folder = Path(self._dataset.path)

    def put(self, image: Image) -> None:
        metadata = dict(image.metadata)
        if self._axes_in_metadata:
            metadata["Axes"] = dict(image.axes)
        self._dataset.put_image(dict(image.axes), image.pixels, metadata)
        if self._dataset.current_writer not in self._writers:
            self._writers.append(self._dataset.current_writer)

    def flush_index(self) -> None:
        """Do what Java does after every image."""
        self._dataset._index_file.flush()

    def finish(self) -> None:
        self._dataset.finish()
        self._close()

    def abandon(self) -> None:
        """End as a program does that is killed: what was laid out stays."""
        self._dataset._index_file.close()
        self._dataset.current_writer.file.close()
        self._close()

    def _close(self) -> None:
        self._dataset.close()
        for writer in self._writers:
            writer.reader.close()  # the library forgets these


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
