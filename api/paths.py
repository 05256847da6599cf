"""User directories: where keys, journals, built engines and indexes of this user are on this machine.

They are the folders that each system provides for this (XDG on Linux, AppData on Windows, Library on macOS);
run files go where the user says. No state; any thread.
"""

from __future__ import annotations

from pathlib import Path

import platformdirs

_NAME = "mdd"


def keys_folder() -> Path:
    """Return the folder of the keys; it need not exist."""
    return Path(platformdirs.user_config_path(_NAME, appauthor=False)) / "keys"


def journal_folder() -> Path:
    """Return the folder of the senders' journals; it need not exist."""
    return Path(platformdirs.user_state_path(_NAME, appauthor=False)) / "journal"


def engines_folder() -> Path:
    """Return the folder of built engines and converted graphs; it need not exist, and may be deleted."""
    return Path(platformdirs.user_cache_path(_NAME, appauthor=False)) / "engines"


def catalogue_folder() -> Path:
    """Return the folder of the indexes of `list_runs`; it need not exist, and may be deleted."""
    return Path(platformdirs.user_cache_path(_NAME, appauthor=False)) / "catalogues"
