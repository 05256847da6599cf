"""Sources of frames: Micro-Manager, recorded files, the virtual specimen.

Public: `attach`, for your own acquisition with pycromanager or pymmcore-plus; imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microdiffusion.drivers.passive import attach

__all__ = ["attach"]


def __getattr__(name: str) -> Any:
    if name == "attach":
        from microdiffusion.drivers.passive import attach

        return attach
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
