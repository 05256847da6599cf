"""MicroDiffusion live: depth-resolved volumes from Bessel-beam projections while the acquisition runs.

`__all__` is the public surface, together with `microdiffusion.drivers.attach` and what
`microdiffusion.engines` lists; everything else may change or move without notice. Each name is imported when
it is first used, so that ``import microdiffusion`` stays light, and never imports torch or pycromanager.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microdiffusion import export
    from microdiffusion.adapters import to_dask, to_pandas, to_xarray
    from microdiffusion.config import Config, load_config
    from microdiffusion.errors import DamagedError, GapError
    from microdiffusion.files import open_projections
    from microdiffusion.frames import Frame, FrameInfo, StagePosition
    from microdiffusion.header import RunHeader
    from microdiffusion.runfile import Run, RunEntry, Status, list_runs, open_run, traces_of
    from microdiffusion.sender import Sender

__version__ = "0.1.0"
__all__ = [
    "Config",
    "DamagedError",
    "Frame",
    "FrameInfo",
    "GapError",
    "Run",
    "RunEntry",
    "RunHeader",
    "Sender",
    "StagePosition",
    "Status",
    "__version__",
    "export",
    "list_runs",
    "load_config",
    "open_projections",
    "open_run",
    "to_dask",
    "to_pandas",
    "to_xarray",
    "traces_of",
]

_HOMES = {
    "Config": "config",
    "DamagedError": "errors",
    "Frame": "frames",
    "FrameInfo": "frames",
    "GapError": "errors",
    "Run": "runfile",
    "RunEntry": "runfile",
    "RunHeader": "header",
    "Sender": "sender",
    "StagePosition": "frames",
    "Status": "runfile",
    "list_runs": "runfile",
    "load_config": "config",
    "open_projections": "files",
    "open_run": "runfile",
    "to_dask": "adapters",
    "to_pandas": "adapters",
    "to_xarray": "adapters",
    "traces_of": "runfile",
}


def __getattr__(name: str) -> Any:
    if name == "export":
        return import_module("microdiffusion.export")
    if name in _HOMES:
        return getattr(import_module(f"microdiffusion.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
