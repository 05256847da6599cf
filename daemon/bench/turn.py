"""An update that can be called again and again, for things that are compared taking turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.bench.settings import WARM_UP
from microdiffusion.engines.pipeline import Reconstructor

if TYPE_CHECKING:
    from microdiffusion.daemon.bench.scene import Scene
    from microdiffusion.engines.pipeline import Engine

QUIET = (1, 2)
"""Of the sweeps that are made: both offsets, and nothing held out."""
_FIRST = 1000  # after everything that was reconstructed before; even


class Turn:
    """One more update of each session whenever it is called: warm, and without a held-out projection."""

    def __init__(self, reconstructor: Reconstructor, scene: Scene, sessions: int = 1) -> None:
        self.scene = scene
        self._reconstructor = reconstructor
        self._sessions = sessions
        self._number = _FIRST
        for _ in range(WARM_UP):
            self()

    def __call__(self) -> None:
        """Reconstruct the next sweep of each session."""
        sweep = self.scene.sweep(self._number, made=QUIET[self._number % len(QUIET)])
        for position in range(self._sessions):
            sweep.position = position
            self._reconstructor.reconstruct(sweep)
        self._number += 1

    def on(self, engine: Engine) -> Turn:
        """Return the same in another engine's runtime, warm too.

        With a reconstructor of its own: one that changes its runtime drops the graphs that it has recorded.
        """
        mine = self._reconstructor
        if engine.runtime is mine.engine.runtime:
            return self
        return Turn(Reconstructor(mine.header, mine.config, engine), self.scene, self._sessions)
