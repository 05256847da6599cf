"""The engine's own process: opens device and weights, reports them, then answers one sweep after the other.

It imports torch, ends when its pipe closes, so it cannot outlive the daemon, and changes its runtime when it
is told that another one has been built, or when it fails in the middle of a run: then torch goes on with
the same sweep. Where an error leaves the GPU refusing the whole process, it ends after its answer, to be
started again. Every request but a run's header has exactly one answer; a `Changed` may come before it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from microdiffusion.config import EngineConfig
from microdiffusion.errors import EngineError, MddError
from microdiffusion.run_header import RunHeader

if TYPE_CHECKING:
    from microdiffusion.engines.engine import Engine

_LOST = 70  # the exit code where the GPU is lost


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the child found.

    Attributes
    ----------
    device, reason : str
        Runtime, device and precision, and why these.
    weights, weights_sha256 : str
        File name and checksum.
    fallback : str
        Which runtime failed and was replaced, as a sentence.
    pending : str
        The runtime that is being built, and will replace this one.
    """

    device: str
    reason: str
    weights: str
    weights_sha256: str
    fallback: str = ""
    pending: str = ""

    @classmethod
    def of(cls, engine: Engine) -> EngineInfo:
        """Return what there is to say of an open engine."""
        return cls(
            engine.name,
            engine.reason,
            engine.weights,
            engine.weights_sha256,
            engine.fallback,
            engine.pending,
        )


@dataclass(frozen=True, slots=True)
class ChangeOver:
    """Asks the child to open the engine again and to go on with it."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What serves now, or None and why it goes on as before; `failure` also says why it had to change."""

    info: EngineInfo | None
    failure: str = ""


def open_engine(config: EngineConfig) -> Engine:
    """Open the engine that can serve at once; in the child, since it imports torch."""
    from microdiffusion.engines.engine import open_engine

    return open_engine(config, build=False)


def serve_engine(pipe: Connection, config: EngineConfig, opener: Callable[[EngineConfig], Engine]) -> None:
    """Run the child: report, then answer sweeps until the pipe closes."""
    # Ctrl-C, and systemd's SIGTERM, go to the whole process group; the daemon decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # What matters travels through the pipe; the terminal is the dashboard's.
    logging.getLogger("microdiffusion").addHandler(logging.NullHandler())
    from microdiffusion.engines.reconstructor import Reconstructor

    reconstructor: Reconstructor | None = None
    # A pipe that breaks means that the daemon is gone: there is nobody to tell.
    with contextlib.suppress(EOFError, OSError):
        try:
            engine = opener(config)
        except MddError as error:
            pipe.send(error)
            return
        except Exception as error:  # trying again would not help
            pipe.send(EngineError(f"The engine could not start ({type(error).__name__}: {error})."))
            return
        pipe.send(EngineInfo.of(engine))
        while True:
            request = pipe.recv()
            if isinstance(request, RunHeader):
                reconstructor = Reconstructor(request, config, engine)
                continue
            if isinstance(request, ChangeOver):
                newer, failure = _reopen(config, opener)
                if newer is not None:
                    engine = newer
                    if reconstructor is not None:
                        reconstructor.use(engine)
                pipe.send(Changed(None if newer is None else EngineInfo.of(newer), failure))
                continue
            try:
                if reconstructor is None:
                    raise EngineError("A sweep came before its run's header.")
                try:
                    answer: object = reconstructor.reconstruct(request)
                except RuntimeError as error:  # an EngineError is one too
                    if engine.name.startswith("torch") or _is_lost(engine):
                        raise
                    engine = _torch_instead(config, opener, engine, error)
                    reconstructor.use(engine)
                    pipe.send(Changed(EngineInfo.of(engine), engine.fallback))
                    answer = reconstructor.reconstruct(request)
            except Exception as error:  # one bad sweep must not end the run
                answer = EngineError(f"{type(error).__name__}: {error}")
            pipe.send(answer)
            if isinstance(answer, EngineError) and _is_lost(engine):
                pipe.close()
                os._exit(_LOST)  # an orderly end may hang


def _is_lost(engine: Engine) -> bool:
    """Return whether the GPU takes no more work of this process, as after an illegal access to its memory."""
    if engine.device.type != "cuda":
        return False
    import torch

    try:
        torch.cuda.synchronize(engine.device)
    except RuntimeError:
        return True
    return False


def _torch_instead(
    config: EngineConfig, opener: Callable[[EngineConfig], Engine], failed: Engine, error: RuntimeError
) -> Engine:
    """Return the engine with torch, after another runtime failed in the middle of a run."""
    engine = opener(config.model_copy(update={"runtime": "torch"}))
    why = f"{failed.name} failed: {error}"
    return replace(
        engine,
        reason=f"{engine.reason}; torch, {why}",
        fallback=f"{failed.name} is not used any more, torch goes on in its place: {error}",
    )


def _reopen(config: EngineConfig, opener: Callable[[EngineConfig], Engine]) -> tuple[Engine | None, str]:
    """Return the engine that has been built meanwhile, or why there is none."""
    try:
        engine = opener(config)
    except Exception as error:  # what serves goes on serving
        return None, str(error) if isinstance(error, MddError) else f"{type(error).__name__}: {error}"
    if engine.pending:
        return None, "what was built is not accepted here"
    return (None, engine.fallback) if engine.fallback else (engine, "")
