"""MicroDiffusion live: depth-resolved volumes from Bessel-beam projections while the acquisition runs.

The ground floor: what others may rely on. Importing it never imports torch or pycromanager, and reading
run files (`open_run`) is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microdiffusion.runfile import Run, open_run

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "open_run"]

_LAZY = frozenset({"Run", "open_run"})


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from microdiffusion import runfile

        return getattr(runfile, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
