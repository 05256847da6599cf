"""`mdd serve` around the daemon: checks of the configuration, signals, and the summary at the end.

Runs on the main thread of the command.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from pathlib import Path

from microdiffusion.config import Config
from microdiffusion.daemon.runs import ClosedRun
from microdiffusion.daemon.server.acquisition import Feed
from microdiffusion.daemon.server.daemon import Daemon
from microdiffusion.daemon.signals import StopRequest
from microdiffusion.errors import ConfigError, MissingFileError, RunError
from microdiffusion.runfile import Status, require_compression
from microdiffusion.text import command_line, count_noun


def serve(
    config: Config,
    *,
    volumes: int | None = None,
    duration_s: float | None = None,
    dashboard: bool = False,
    feed: Feed | None = None,
    resume: Path | None = None,
    stopping: StopRequest | None = None,
) -> int:
    """Run the daemon and say at the end where the files are; return the exit code.

    Parameters
    ----------
    stopping
        Of a caller that listens for signals already; None: they are listened for from here on.

    Raises
    ------
    ConfigError
        The method cannot be live.
    DependencyError
        The compression needs a package that is missing.
    MddError
        See `Daemon.serve`; the summary of what was written is printed first.
    """
    if config.engine.method == "microdiffusion":
        raise ConfigError(
            "engine.method microdiffusion trains for hours on every volume and cannot be live: choose "
            "another method here; `mdd reconstruct FILE --method microdiffusion` runs it on a file."
        )
    if config.engine.weights is not None and not config.engine.weights.is_file():
        raise MissingFileError(
            f"There are no weights at {config.engine.weights}: check engine.weights, or leave it out for "
            "those that ship with mdd."
        )
    require_compression(config.recorder.compress_after)  # refused now, not when the first run is over
    stopping = StopRequest() if stopping is None else stopping
    with stopping.heard():
        if stopping.is_set():  # before anything was begun
            return 0
        daemon = Daemon(
            _limited(config, volumes),
            volumes=volumes,
            duration_s=duration_s,
            feed=feed,
            resume=resume,
            stopping=stopping,
        )
        try:
            daemon.serve(dashboard=dashboard)
        finally:
            _print("".join(map(_summary, daemon.runs.closed)))
            _print("".join(f"{text}\n" for text in daemon.runs.compressor.left()))
            if daemon.is_stuck:
                atexit.register(_leave, RunError.exit_code)
    stopped = stopping.is_set()  # by the user, perhaps before there was anything to write
    if daemon.runs.closed and not stopped and not daemon.runs.written:
        raise RunError(
            "No volume was written; the run file's /mdd/reason says why for each sweep (mdd info)."
        )
    left_out = sum(run.ledger.dropped_by_sender for run in daemon.runs.closed)
    if left_out and feed is None and config.acquisition.driver != "none":
        raise RunError(
            f"{count_noun(left_out, 'image or frame is', 'images or frames are')} in no run file: the driver "
            "could not read them, or had no place or room for them; its messages (mdd info) say why."
        )
    return 0


def _leave(code: int) -> None:
    """End this process without what Python does at the end."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _print(text: str) -> None:
    """Print; a terminal that was closed must not end in an error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # the interpreter flushes once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _summary(run: ClosedRun) -> str:
    counts = run.counts
    written = counts[Status.WRITTEN]
    others = "".join(
        f", {counts[status]} {status.name.lower()}"
        for status in (Status.LOST, Status.SKIPPED, Status.FAILED)
        if counts[status]
    )
    z, y, x = run.shape
    path = run.paths[0]
    more = f" (and {len(run.paths) - 1} more)" if len(run.paths) > 1 else ""
    frames = run.ledger.sentence()
    volumes = count_noun(written, "volume")
    if not written:
        return f"{path}{more}\nno volume{others}; of the raw projections {frames}\n"
    return (
        f"{path}{more}\n"
        f"{volumes} of {z} x {y} x {x} voxels{others}; of the raw projections {frames}\n"
        f"{opening_line(path)}\n"
    )


def opening_line(path: Path) -> str:
    """Return the line that opens a run in Python, for a shell: whatever its path is called."""
    text = str(path)
    if text.isprintable() and not set(text) & set("'\"`$!" if os.name == "nt" else "'\"`$!\\"):
        return f"open: python -c \"import microdiffusion as m; print(m.open_run(r'{text}').volume[0].shape)\""
    words = ["python", "-c", f"import microdiffusion as m; print(m.open_run({text!a}).volume[0].shape)"]
    return f"open: {command_line(*words)}"


def _limited(config: Config, volumes: int | None) -> Config:
    """Let the driver acquire no more than what is asked for."""
    acquisition = config.acquisition
    if volumes is None or acquisition.driver == "none":
        return config
    sessions = max(1, len(acquisition.channels)) * max(1, len(acquisition.positions_um))
    sweeps = -(-volumes // sessions)
    if acquisition.sweeps is not None:
        sweeps = min(sweeps, acquisition.sweeps)
    return config.model_copy(update={"acquisition": acquisition.model_copy(update={"sweeps": sweeps})})
