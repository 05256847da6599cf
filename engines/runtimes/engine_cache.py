"""The private folder of built inference engines.

An engine file is executable code, so only what this user built on this machine is ever loaded: the
folder belongs to the user and is closed to all others (posix: mode 0700; Windows: the profile's own
access list), an entry is a plain file of the user's that nobody else can write, and it says for what it
was built. Whatever does not fit is taken for absent and built anew. The checksum is there for
damaged files; it is no defence against the user himself.

The folder heals itself: storing replaces what was refused, deletes what was built for the same thing under
another driver or version, and then what was not used for longest, until the rest fits into `most_bytes`.

Used from the thread that opens the engine. Two processes may store the same entry: the rename is atomic
and both wrote the same.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from microdiffusion.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from microdiffusion.engines.diffusion import Denoiser

logger = logging.getLogger("microdiffusion.engines")

State = Literal["found", "built", "healed"]
"""Where an engine came from: kept, built as there was none, built as the kept one was refused."""

_MAGIC = b"mdd-engine 1\n"
_HEADER_LIMIT = 1 << 16
_MOST_BYTES = 2 << 30  # some dozens of engines
# What differs between an entry and the stale one that it replaces.
_PASSING = frozenset({"driver", "tensorrt", "exporter", "code"})
_ABANDONED_S = 3600.0  # a file that is still being written is younger


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the cache: its size in bytes, when it was last used (s, Unix), and what it was built for."""

    path: Path
    size: int
    used_s: float
    built_for: dict[str, str]


def network_key(model: Denoiser, converter: ModuleType) -> dict[str, str]:
    """Return what a converted network depends on: weights, settings, its code and the converter's."""
    weights = hashlib.sha256(json.dumps([model.architecture, dict(model.settings)]).encode())
    for name, value in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().numpy().tobytes())
    modules = (sys.modules[type(model).__module__], converter)
    code = hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules))
    return {"weights": weights.hexdigest(), "code": code.hexdigest()[:16]}


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


class EngineCache:
    """Built engines by what they were built for.

    Parameters
    ----------
    folder : Path, optional
        `user_cache_folder()` where it is not given. Made when something is stored.
    most_bytes : int
        What the folder may hold.
    """

    def __init__(self, folder: Path | None = None, most_bytes: int = _MOST_BYTES) -> None:
        self.folder = folder or user_cache_folder()
        self._most_bytes = most_bytes

    def path(self, key: Mapping[str, str]) -> Path:
        """Return the file of the engine that was built for `key`."""
        return self.folder / f"{hashlib.sha256(_text(key)).hexdigest()[:32]}.engine"

    def open(
        self,
        key: Mapping[str, str],
        *,
        build: Callable[[], bytes],
        use: Callable[[bytes], bool],
        check: Callable[[], object],
    ) -> State:
        """Take the engine for `key` into use: the kept one, else a fresh one, kept once it has been checked.

        `use` says whether an engine is accepted; `check` raises where the one in use computes wrongly.

        Raises
        ------
        EngineError
            A fresh engine is not accepted; and whatever `build` and `check` raise.
        """
        refused = self.path(key).exists()
        kept = self.load(key)
        if kept is not None and use(kept):
            return "found"
        fresh = build()
        if not use(fresh):
            raise EngineError(f"An engine was built for {key.get('gpu')}, but is not accepted there.")
        check()
        self.store(key, fresh)
        return "healed" if refused else "built"

    def load(self, key: Mapping[str, str]) -> bytes | None:
        """Return the engine that was built for `key`; None where there is none that can be trusted."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            self._check_folder()
            content = _unpack(_read_own(path), key)
            with contextlib.suppress(OSError):
                os.utime(path)  # what is used stays
            return content
        except (OSError, ValueError) as error:
            logger.info("engine cache: %s is not used, the engine is built anew: %s", path, error)
            return None

    def store(self, key: Mapping[str, str], engine: bytes) -> bool:
        """Keep an engine; False where that was not possible, which costs a build at the next start."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_folder()
            content = _pack(key, engine)
            self._make_room(key, len(content))
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")  # mode 0600
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                Path(name).replace(self.path(key))
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except (OSError, ValueError) as error:
            logger.info("engine cache: %s keeps nothing: %s", self.folder, error)
            return False
        return True

    def entries(self) -> list[Entry]:
        """Return what is kept, the most recently used first; empty where there is no folder of ours."""
        try:
            self._check_folder()
            paths = sorted(self.folder.glob("*.engine"))
        except (OSError, ValueError):
            return []
        found = []
        for path in paths:
            with contextlib.suppress(OSError):
                status = path.lstat()
                found.append(Entry(path, status.st_size, status.st_mtime, _built_for(path)))
        return sorted(found, key=lambda entry: -entry.used_s)

    def clear(self) -> tuple[int, int]:
        """Delete everything that is kept; return the number of files and their bytes."""
        gone = [entry for entry in self.entries() if _delete(entry.path)]
        return len(gone), sum(entry.size for entry in gone)

    def _make_room(self, key: Mapping[str, str], size: int) -> None:
        """Delete what `key` makes stale, what a killed process left, and the oldest beyond the limit."""
        for path in self.folder.glob("*.part"):
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < time.time() - _ABANDONED_S:
                    path.unlink()
        left = self._most_bytes - size
        lasting = {name: value for name, value in key.items() if name not in _PASSING}
        for entry in self.entries():
            left -= entry.size
            same = {name: value for name, value in entry.built_for.items() if name not in _PASSING} == lasting
            if (same or left < 0) and _delete(entry.path):
                logger.info("engine cache: %s is deleted, it is %s", entry.path, "stale" if same else "old")
                left += entry.size

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


def _built_for(path: Path) -> dict[str, str]:
    """Return what an entry says it was built for; empty where it says nothing that can be read."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC) + _HEADER_LIMIT)
        header = json.loads(start[len(_MAGIC) : start.index(b"\n", len(_MAGIC))])
        built_for = header["built_for"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {str(name): str(value) for name, value in built_for.items()} if isinstance(built_for, dict) else {}


def _delete(path: Path) -> bool:
    try:
        path.unlink()
    except OSError as error:  # Windows: another process has it open
        logger.info("engine cache: %s cannot be deleted: %s", path, error)
        return False
    return True


def _text(key: Mapping[str, str]) -> bytes:
    return json.dumps(dict(key), sort_keys=True, ensure_ascii=True).encode()


def _pack(key: Mapping[str, str], engine: bytes) -> bytes:
    header = {"built_for": dict(key), "sha256": hashlib.sha256(engine).hexdigest()}
    return _MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n" + engine


def _unpack(data: bytes, key: Mapping[str, str]) -> bytes:
    if not data.startswith(_MAGIC):
        raise ValueError("not an engine file of mdd")
    end = data.find(b"\n", len(_MAGIC), len(_MAGIC) + _HEADER_LIMIT)
    if end < 0:
        raise ValueError("its header is damaged")
    header = json.loads(data[len(_MAGIC) : end])
    if not isinstance(header, dict) or header.get("built_for") != dict(key):
        raise ValueError("it was built for something else")
    engine = data[end + 1 :]
    if hashlib.sha256(engine).hexdigest() != header.get("sha256"):
        raise ValueError("it is damaged")
    return engine


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
