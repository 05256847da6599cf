"""Where mdd keeps what belongs to this user on this machine: keys, journals.

Run files go where the user says; these are for what he does not want to think about. Folders are those
that each system provides for it (XDG on Linux, AppData on Windows, Library on macOS). No state; any thread.
"""

from __future__ import annotations

from pathlib import Path

import platformdirs

_NAME = "mdd"


def keys_folder() -> Path:
    """Return the folder of the keys; it need not exist."""
    return Path(platformdirs.user_config_path(_NAME, appauthor=False)) / "keys"


def journal_folder() -> Path:
    """Return the folder where senders spill frames; it need not exist."""
    return Path(platformdirs.user_state_path(_NAME, appauthor=False)) / "journal"
