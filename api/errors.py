"""Every error that mdd raises on purpose.

Two families, and the exit code of the command follows the family: what the user can fix (`UserError`, 2)
and what failed at run time (`RunError`, 3). Each class is also the built-in kind that a caller would expect,
so `except ValueError` in a notebook works. A message is one sentence that says what was expected, what came,
and what to do next; the command line prints it without a traceback.
"""

from __future__ import annotations


class MddError(Exception):
    """Root of all errors that mdd raises on purpose."""

    exit_code = 3


class UserError(MddError):
    """A mistake that the user can fix: a file, a value, an address. Exit code 2."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A configuration holds an unknown key, a wrong unit or an impossible value."""


class InputFileError(UserError, ValueError):
    """An input file is missing, damaged, or not what its name promises."""


class GapError(UserError, LookupError):
    """The requested time point of a run was not recorded; the message says why."""


class DamagedError(InputFileError):
    """Data do not have the checksum that was recorded with them."""


class MissingFileError(UserError, FileNotFoundError):
    """A named file or folder does not exist."""


class GeometryError(UserError, ValueError):
    """Projections, beam and volume do not fit together."""


class AddressError(UserError, OSError):
    """A network address cannot be used: malformed, or its port is taken."""


class DependencyError(UserError, ImportError):
    """An optional dependency is not installed; the message has the install line."""


class WireError(MddError, ValueError):
    """A message on the wire breaks the protocol; the receiver drops and counts it.

    Attributes
    ----------
    reason : str
        Short code that the receiver counts by (`wire.Reason`).
    run, seq
        The frame that was meant, where the message said so.
    """

    def __init__(
        self, message: str, *, reason: str = "header", run: str | None = None, seq: int | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.run = run
        self.seq = seq


class RunError(MddError, RuntimeError):
    """A failure at run time. Exit code 3."""


class AcquisitionError(RunError):
    """The acquisition could not start or was aborted."""


class EngineError(RunError):
    """The engine failed to reconstruct a sweep."""


class DiskError(RunError, OSError):
    """The run file cannot be written: no space, no permission, or the disk failed."""


class NoRoomError(DiskError):
    """The disk is full; it may have room again later."""
