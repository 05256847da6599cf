"""The user's private folder of built engines and converted graphs.

An engine file is executable code, so only what this user built on this machine is ever loaded: the folder
belongs to the user and is closed to all others (posix: mode 0700; Windows: the profile's own access list), an
entry is a plain file of the user's that nobody else can write, and it says for what it was built. Whatever
does not fit counts as absent. The checksum is there for damaged files; it is no defence against the user.

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

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from microdiffusion.engines.diffusion import Denoiser

logger = logging.getLogger("microdiffusion.engines")

_MAGIC = b"mdd-engine 1\n"
_HEADER_LIMIT = 1 << 16
_MOST_BYTES = 2 << 30  # some dozens of engines
_ABANDONED_S = 3600.0  # a file that is still being written is younger


def user_cache_folder() -> Path:
    """Return where this platform keeps a user's caches, for mdd's engines."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # The XDG specification: a relative path is to be ignored.
        base = configured if configured.is_absolute() else Path.home() / ".cache"
    return base / "microdiffusion" / "engines"


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
        `user_cache_folder()` by default. Made when something is stored.
    most_bytes : int
        What the folder may hold.
    """

    def __init__(self, folder: Path | None = None, most_bytes: int = _MOST_BYTES) -> None:
        self.folder = folder or user_cache_folder()
        self._most_bytes = most_bytes

    def path(self, key: Mapping[str, str]) -> Path:
        """Return the file of what was built for `key`."""
        text = json.dumps(dict(key), sort_keys=True).encode()
        return self.folder / f"{hashlib.sha256(text).hexdigest()[:32]}.engine"

    def load(self, key: Mapping[str, str]) -> bytes | None:
        """Return what was built for `key`; None where there is nothing that can be trusted."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            self._check_folder()
            header, content = _unpack(_read_own(path))
            if header.get("built_for") != dict(key):
                raise ValueError("it was built for something else")
            if hashlib.sha256(content).hexdigest() != header.get("sha256"):
                raise ValueError("it is damaged")
            with contextlib.suppress(OSError):
                os.utime(path)  # what is used stays
            return content
        except (OSError, ValueError) as error:
            logger.info("engine cache: %s is not used, the engine is built again: %s", path, error)
            return None

    def store(self, key: Mapping[str, str], content: bytes) -> bool:
        """Keep something; False where that was not possible, which costs a build at the next start."""
        header = {"built_for": dict(key), "sha256": hashlib.sha256(content).hexdigest()}
        packed = _MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n" + content
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_folder()
            self._make_room(self.path(key), len(packed))
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")  # mode 0600
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(packed)
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


def _unpack(data: bytes) -> tuple[dict[str, object], bytes]:
    """Return the header of an entry and what follows it."""
    end = data.find(b"\n", len(_MAGIC), len(_MAGIC) + _HEADER_LIMIT)
    if not data.startswith(_MAGIC) or end < 0:
        raise ValueError("not an engine file of mdd")
    header = json.loads(data[len(_MAGIC) : end])
    if not isinstance(header, dict):
        raise ValueError("its header is damaged")
    return header, data[end + 1 :]


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
