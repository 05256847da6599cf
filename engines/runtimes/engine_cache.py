"""The user's private folder of built engines and converted graphs.

An engine file is executable code, so only what this user built on this machine is ever loaded: the folder
belongs to the user and is closed to all others (posix: mode 0700; Windows: the profile's own access list), an
entry is a plain file of the user's that nobody else can write. It begins with a checksum of what it was built
for and of what follows. Whatever does not fit counts as absent. The checksum is there for damaged and renamed
files; it is no defence against the user.

Storing replaces what was refused, and deletes what was not used for longest until the rest fits. Two
processes may store the same entry: the rename is atomic and both wrote the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from microdiffusion.paths import engines_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from microdiffusion.engines.diffusion import Denoiser

logger = logging.getLogger("microdiffusion.engines")

_CHECKSUM = 32  # bytes
_MOST_BYTES = 2 << 30  # some dozens of engines
_ABANDONED_S = 3600.0  # a file that is still being written is younger


def network_key(model: Denoiser, converter: ModuleType) -> dict[str, str]:
    """Return what a converted network depends on: weights, settings, its code and the converter's."""
    weights = hashlib.sha256(json.dumps([model.architecture, dict(model.settings)]).encode())
    for name, value in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().numpy().tobytes())
    modules = (sys.modules[type(model).__module__], converter)
    code = hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules))
    return {"weights": weights.hexdigest(), "code": code.hexdigest()[:16]}


class EngineCache:
    """Built engines by what they were built for.

    Parameters
    ----------
    folder : Path, optional
        `engines_folder()` by default. Made when something is stored.
    most_bytes : int
        What the folder may hold.
    """

    def __init__(self, folder: Path | None = None, most_bytes: int = _MOST_BYTES) -> None:
        self.folder = folder or engines_folder()
        self._most_bytes = most_bytes

    def path(self, key: Mapping[str, str]) -> Path:
        """Return the file of what was built for `key`."""
        return self.folder / f"{hashlib.sha256(_text(key)).hexdigest()[:32]}.engine"

    def load(self, key: Mapping[str, str]) -> bytes | None:
        """Return what was built for `key`; None where there is nothing that can be trusted."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            self._check_folder()
            kept = _read_own(path)
            checksum, content = kept[:_CHECKSUM], kept[_CHECKSUM:]
            if checksum != _checksum(key, content):
                raise ValueError("it is damaged, or was built for something else")
            with contextlib.suppress(OSError):
                os.utime(path)  # what is used stays
            return content
        except (OSError, ValueError) as error:
            logger.info("engine cache: %s is not used, the engine is built again: %s", path, error)
            return None

    def store(self, key: Mapping[str, str], content: bytes) -> bool:
        """Keep something; False where that was not possible, which costs a build at the next start."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_folder()
            self._make_room(self.path(key), _CHECKSUM + len(content))
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")  # mode 0600
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_checksum(key, content) + content)
                Path(name).replace(self.path(key))
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except (OSError, ValueError) as error:
            logger.info("engine cache: %s keeps nothing: %s", self.folder, error)
            return False
        return True

    def _make_room(self, new: Path, size: int) -> None:
        """Delete what a killed process left, and what was not used for longest beyond the limit."""
        for path in self.folder.glob("*.part"):
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < time.time() - _ABANDONED_S:
                    path.unlink()
        kept = [(path.lstat(), path) for path in self.folder.glob("*.engine") if path != new]
        left = self._most_bytes - size
        for status, path in sorted(kept, key=lambda entry: -entry[0].st_mtime):
            left -= status.st_size
            if left < 0:
                with contextlib.suppress(OSError):  # Windows: another process has it open
                    path.unlink()
                    left += status.st_size

    def _check_folder(self) -> None:
        """Refuse a folder that somebody else may have filled; close one that is ours but open."""
        status = self.folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise ValueError("expected a folder, not a link or a file")
        if sys.platform != "win32":
            if status.st_uid != os.getuid():
                raise ValueError("the folder belongs to another user")
            if status.st_mode & 0o077:
                self.folder.chmod(0o700)


def _text(key: Mapping[str, str]) -> bytes:
    return json.dumps(dict(key), sort_keys=True).encode()


def _checksum(key: Mapping[str, str], content: bytes) -> bytes:
    return hashlib.sha256(_text(key) + content).digest()


def _read_own(path: Path) -> bytes:
    """Read a plain file of this user that nobody else can write, without following a link."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a plain file")
        if sys.platform != "win32":
            if status.st_uid != os.getuid():
                raise ValueError("it belongs to another user")
            if status.st_mode & 0o022:
                raise ValueError("others can write to it")
        return file.read()
