"""The folder of built engines: what is kept, and everything that is refused."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from microdiffusion.engines.runtimes import engine_cache, tensorrt_build
from microdiffusion.engines.runtimes.engine_cache import EngineCache
from microdiffusion.engines.runtimes.tensorrt_build import Profile, cache_key

posix = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are posix")
SMALL = Profile.of(32, 2)
MODULE = SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7.1")
KEY_PARTS: dict[str, Any] = {
    "trt": MODULE,
    "graph": b"graph",
    "profile": SMALL,
    "gpu": "GeForce, compute capability 8.6",
    "driver": "580.1",
}
KEY = cache_key(**KEY_PARTS)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache" / "engines")


def test_engine_is_kept_for_its_key(cache: EngineCache) -> None:
    assert cache.load(KEY) is None
    assert cache.store(KEY, b"engine\n" * 100)
    assert cache.load(KEY) == b"engine\n" * 100
    assert [path.name for path in cache.folder.iterdir()] == [cache.path(KEY).name]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"graph": b"other weights"}, id="weights"),
        pytest.param({"trt": SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7.2")}, id="version"),
        pytest.param({"trt": SimpleNamespace(__name__="tensorrt", __version__="1.7.1")}, id="flavour"),
        pytest.param({"gpu": "GeForce, compute capability 8.9"}, id="GPU"),
        pytest.param({"driver": "580.2"}, id="driver"),
        pytest.param({"profile": Profile.of(64, 2)}, id="sizes"),
    ],
)
def test_whatever_an_engine_depends_on_is_in_its_key(other: dict[str, Any], cache: EngineCache) -> None:
    cache.store(KEY, b"engine")
    key = cache_key(**{**KEY_PARTS, **other})
    assert cache.load(key) is None
    # Even under the right name, an engine that was built for something else is refused.
    cache.path(KEY).rename(cache.path(key))
    assert cache.load(key) is None


def test_engine_of_another_machine_is_refused(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store(KEY, b"engine")
    monkeypatch.setattr(tensorrt_build.platform, "node", lambda: "another")
    assert cache.load(cache_key(**KEY_PARTS)) is None


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], id="cut short"),
        pytest.param(lambda data: data[:-1] + b"?", id="changed"),
        pytest.param(lambda data: data + b"!", id="longer"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"ELF" + data, id="foreign"),
        pytest.param(lambda data: data[:20], id="checksum cut short"),
    ],
)
def test_a_broken_entry_is_refused_and_replaced(damage: Any, cache: EngineCache) -> None:
    cache.store(KEY, b"engine")
    path = cache.path(KEY)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.load(KEY) is None
    assert cache.store(KEY, b"fresh")
    assert cache.load(KEY) == b"fresh"


@posix
def test_folder_and_entries_are_private_and_an_open_folder_is_closed(cache: EngineCache) -> None:
    cache.store(KEY, b"engine")
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache.path(KEY).stat().st_mode) == 0o600
    cache.folder.chmod(0o777)
    assert cache.load(KEY) == b"engine"
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


@posix
def test_entry_that_others_can_write_is_refused(cache: EngineCache) -> None:
    cache.store(KEY, b"engine")
    cache.path(KEY).chmod(0o620)
    assert cache.load(KEY) is None


@posix
def test_links_are_not_followed(cache: EngineCache, tmp_path: Path) -> None:
    cache.store(KEY, b"engine")
    cache.path(KEY).rename(tmp_path / "elsewhere")
    cache.path(KEY).symlink_to(tmp_path / "elsewhere")
    assert cache.load(KEY) is None

    real = EngineCache(tmp_path / "real")
    real.store(KEY, b"engine")
    linked = EngineCache(tmp_path / "linked")
    linked.folder.symlink_to(real.folder)
    assert real.load(KEY) == b"engine"
    assert linked.load(KEY) is None
    assert not linked.store(KEY, b"engine")


@posix
def test_folder_of_another_user_is_neither_read_nor_written(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(KEY, b"engine")
    me = os.getuid()
    monkeypatch.setattr(engine_cache.os, "getuid", lambda: me + 1)
    assert cache.load(KEY) is None
    assert not cache.store(KEY, b"another")


def test_folder_that_cannot_be_made_costs_only_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = EngineCache(tmp_path / "file" / "engines")
    assert not cache.store(KEY, b"engine")
    assert cache.load(KEY) is None


def _aged(cache: EngineCache, key: dict[str, str], seconds: float) -> None:
    os.utime(cache.path(key), (time.time() - seconds,) * 2)


def test_what_was_not_used_for_longest_goes_where_room_is_short(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", most_bytes=2000)  # three of 632 bytes
    keys = [cache_key(**{**KEY_PARTS, "graph": str(number).encode()}) for number in range(4)]
    for number, key in enumerate(keys[:3]):
        assert cache.store(key, bytes(600))
        _aged(cache, key, 100 - number)
    assert len(list(cache.folder.iterdir())) == 3
    assert cache.load(keys[0]) is not None  # used again: now the newest
    assert cache.store(keys[3], bytes(600))
    assert [cache.load(key) is not None for key in keys] == [True, False, True, True]
    assert cache.store(keys[1], bytes(10_000))  # more than all the room: kept alone
    assert list(cache.folder.iterdir()) == [cache.path(keys[1])]


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(cache: EngineCache) -> None:
    cache.store(KEY, b"engine")
    left, writing = cache.folder / "left.part", cache.folder / "writing.part"
    for path in (left, writing):
        path.write_bytes(b"half an eng")
    os.utime(left, (time.time() - 7200,) * 2)
    cache.store(KEY, b"engine")
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".engine", ".part"]
    assert writing.exists()
