"""Recordings cut into pieces that can be reconstructed apart, and what became of them.

A recording of one session is one piece: its run file. One with several sessions is cut by session, and a
session by time where that is asked for; each such piece is a part file (`parts`) in a hidden folder beside
the output, and a last piece assembles them. A piece knows the sweeps before it from the state that the piece
before it left (where volumes are causal), or from a warm-up: it goes through some sweeps next to its own
without keeping their volumes. Every piece is written whole or not at all, so what is there is done.

Plain data that travels to workers; `run_piece` is what a worker does with it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from microdiffusion import __version__
from microdiffusion.daemon.offline.assembly import assemble_file, reconstruct_part
from microdiffusion.daemon.offline.reconstruct import learns, reconstruct_file
from microdiffusion.daemon.offline.sweeps import SweepKey, open_recorded
from microdiffusion.errors import EngineError, InputFileError, MddError
from microdiffusion.files import leftovers
from microdiffusion.runfile import is_run_file, open_run

if TYPE_CHECKING:
    from microdiffusion.config import Config
    from microdiffusion.daemon.offline.sweeps import Recorded
    from microdiffusion.engines.pipeline import Engine
    from microdiffusion.frames import Reconstruction
    from microdiffusion.header import RunHeader

_MARK = "job"  # in a run file's provenance: of what, and how, it was made

Told = Callable[[int, int], None]
"""Called with the steps of a piece that are done, and all of them."""


@dataclass(frozen=True, slots=True)
class Work:
    """Settings of the work on pieces.

    Attributes
    ----------
    config : Config
    causal : bool
        Volumes know the sweeps before them alone.
    cut : int, optional
        Sweeps of a session that make a piece; None: all.
    warm_up : int, optional
        Sweeps that a piece of a cut session goes through beside its own; None: the state of the piece before.
    """

    config: Config
    causal: bool = False
    cut: int | None = None
    warm_up: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a recording that one worker reconstructs, or the assembly of such.

    Attributes
    ----------
    source, output : Path
        The recording; the run file, or part file, to write.
    final : Path
        The run file that it is for.
    steps : int
        Of its progress.
    mark : str
        Of the recording and of how it is reconstructed.
    keys, before, after : tuple of SweepKey
        Of a part: its sweeps, and those of its warm-up.
    states : pair of Path, optional
        Of a part: folders with the session's state before it and after it.
    parts : tuple of Path
        What an assembly is made of.
    needs : tuple of Path
        Outputs of pieces that must be there first.
    """

    source: Path
    output: Path
    final: Path
    steps: int
    mark: str
    keys: tuple[SweepKey, ...] = ()
    before: tuple[SweepKey, ...] = ()
    after: tuple[SweepKey, ...] = ()
    states: tuple[Path | None, Path] | None = None
    parts: tuple[Path, ...] = ()
    needs: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Name for people."""
        if not self.keys:
            return f"{self.final.name}, assembly" if self.parts else self.final.name
        first, last = self.keys[0], self.keys[-1]
        where = f"channel {first.channel}, position {first.position}"
        return f"{self.final.name}, {where}, sweeps {first.sweep} to {last.sweep}"


@dataclass(frozen=True, slots=True)
class PieceDone:
    """Report of a worker on a piece: seconds, of which opening the engine, and answers served with why."""

    seconds: float
    opening_s: float = 0.0
    served: tuple[tuple[str, str], ...] = ()


def plan_pieces(source: Path, output: Path, work: Work) -> tuple[list[Piece], RunHeader]:
    """Return the pieces of a recording that are not done yet, in an order that works, and its header.

    Raises
    ------
    InputFileError, MissingFileError
        The recording cannot be used, or the output is there and was made of something else.
    """
    with open_recorded(source) as recorded:
        if not any(recorded.keys.values()):
            raise InputFileError(
                f"{source} holds no sweep with enough frames: there is nothing to reconstruct."
            )
        mark = _mark_of(source, recorded.header, work)
        if output.exists():
            if _mark_in(output) == mark:
                return [], recorded.header
            raise InputFileError(
                f"{output} exists, and was not made of {source.name} with these settings and weights: "
                "name another output, or remove it first."
            )
        passes = 2 if learns(work.config) and not work.causal else 1
        sessions = [list(keys) for _, keys in groupby(recorded.keys, key=lambda key: key[1:])]
        if len(sessions) == 1 and (work.cut is None or len(sessions[0]) <= work.cut):
            steps = passes * sum(recorded.keys.values())
            return [Piece(source, output, output, steps, mark)], recorded.header
        folder = output.with_name(f".{output.name}.{mark[:12]}.pieces")
        pieces = [
            piece
            for keys in sessions
            for piece in _parts_of(recorded, keys, Piece(source, output, output, 0, mark), folder, work)
        ]
        parts = tuple(piece.output for piece in pieces)
        pieces = [piece for piece in pieces if not piece.output.exists()]
        return [*pieces, Piece(source, output, output, 1, mark, parts=parts, needs=parts)], recorded.header


def _parts_of(
    recorded: Recorded, keys: list[SweepKey], whole: Piece, folder: Path, work: Work
) -> Iterator[Piece]:
    """Yield the pieces of a session."""
    both = learns(work.config) and not work.causal
    cut = work.cut or len(keys)
    first = keys[0]
    before: Piece | None = None
    for start in range(0, len(keys), cut):
        own = keys[start : start + cut]
        if not any(recorded.keys[key] for key in own):
            continue
        warm = work.warm_up or 0
        ahead = keys[max(start - warm, 0) : start]
        beyond = keys[start + cut : start + cut + warm] if both else []
        name = f"c{first.channel:03d}_p{first.position:05d}_t{own[0].sweep:07d}"
        states = None
        if work.causal and work.warm_up is None and cut < len(keys):
            states = (None if before is None or before.states is None else before.states[1]), folder / name
        before = Piece(
            whole.source,
            folder / f"{name}.part",
            whole.final,
            (2 if both else 1) * len(own) + len(ahead) + len(beyond),
            whole.mark,
            tuple(own),
            tuple(ahead),
            tuple(beyond),
            states,
            needs=() if before is None or states is None else (before.output,),
        )
        yield before


def is_done(piece: Piece) -> bool:
    """Return whether a piece's output is there; an assembled run has no parts any more."""
    return piece.output.exists() or (piece.final.exists() and _mark_in(piece.final) == piece.mark)


def run_piece(
    piece: Piece, work: Work, engine: Callable[[Config], Engine], told: Told = lambda done, steps: None
) -> PieceDone:
    """Do a piece, unless it is done, and return what it took.

    `engine` opens device and network, or returns them where they are open.

    Raises
    ------
    InputFileError, MissingFileError, EngineError, DiskError
        It cannot be done.
    """
    began_s = time.monotonic()
    if is_done(piece):
        return PieceDone(0.0)
    piece.output.parent.mkdir(parents=True, exist_ok=True)
    marks = {_MARK: piece.mark}
    try:
        if piece.parts:
            assemble_file(
                piece.source,
                piece.output,
                piece.parts,
                config=work.config,
                causal=work.causal,
                marks=marks,
            )
            for folder in piece.final.parent.iterdir():  # of other settings, too: the run file is there
                if folder.name.startswith(f".{piece.final.name}.") and folder.suffix == ".pieces":
                    shutil.rmtree(folder, ignore_errors=True)
            return PieceDone(time.monotonic() - began_s)
        opened = engine(work.config)
        opening_s = time.monotonic() - began_s
        served: dict[str, str] = {}
        steps = 0

        def step(*_: object) -> None:
            nonlocal steps
            steps += 1
            told(min(steps, piece.steps), piece.steps)

        def volume(done: int, total: int, result: Reconstruction) -> None:
            if result.why:
                served.setdefault(result.served, result.why)
            step()

        if piece.keys:
            reconstruct_part(
                piece.source,
                piece.output,
                config=work.config,
                keys=piece.keys,
                before=piece.before,
                after=piece.after,
                states=piece.states,
                causal=work.causal,
                engine=opened,
                progress=volume,
                report=step,
            )
        else:
            reconstruct_file(
                piece.source,
                piece.output,
                config=work.config,
                causal=work.causal,
                engine=opened,
                marks=marks,
                progress=volume,
                report=step,
            )
        return PieceDone(time.monotonic() - began_s, opening_s, tuple(served.items()))
    except MddError:
        if is_done(piece):  # by a worker that was taken for lost
            return PieceDone(time.monotonic() - began_s)
        raise


def remove_unfinished(pieces: Collection[Piece]) -> None:
    """Remove what processes that are gone have left of pieces in the making."""
    for folder in {piece.output.parent for piece in pieces}:
        names = {piece.output.name for piece in pieces if piece.output.parent == folder}
        for name in names if folder.is_dir() else ():
            for left in leftovers(folder, name):
                shutil.rmtree(left, ignore_errors=True)


def check_version(version: str) -> None:
    """Raise an EngineError where this process has another version of mdd than its caller."""
    if version != __version__:
        raise EngineError(
            f"The worker has mdd {__version__} and the command mdd {version}: install the same one there."
        )


def _mark_of(source: Path, header: RunHeader, work: Work) -> str:
    """Return a checksum of what a run file is made of: recording, settings and weights."""
    weights = ""
    if work.config.engine.method == "mdd":
        from microdiffusion.engines.diffusion import weights_path

        path = weights_path(work.config.engine)
        weights = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    # What may differ from worker to worker, or from one attempt to the next, is no part of it.
    engine = work.config.engine.model_dump(
        mode="json", exclude={"device", "threads", "weights", "memory_gb", "session_memory_mb"}
    )
    about = [
        __version__,
        # A projection file has no identity of its own.
        header.run_id if is_run_file(source) else [str(source.absolute()), source.stat().st_mtime_ns],
        source.stat().st_size,
        engine,
        work.config.recorder.pyramid,
        weights,
        work.causal,
        work.cut,
        work.warm_up,
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _mark_in(output: Path) -> str:
    try:
        if not is_run_file(output):
            return ""
        with open_run(output, missing="ignore") as run:
            return run.provenance.get(_MARK, "")
    except MddError:
        return ""
