from __future__ import annotations

import sys
from pathlib import Path

import pytest

from microdiffusion.daemon.recorder import filesystem
from microdiffusion.daemon.recorder.filesystem import FileSystem, file_system_of, refuse_unordered
from microdiffusion.errors import InputFileError

MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / {root}/data\040one rw shared:2 - nfs4 server:/export rw,vers=4.2
31 22 0:41 / {root}/share rw - cifs //server/share rw
32 22 0:42 / {root}/big rw - lustre mgs@tcp:/big rw
33 22 0:43 / {root}/ssh rw - fuse.sshfs me@host: rw
34 31 8:2 / {root}/share/disk rw - xfs /dev/sdb1 rw
35 22 0:44 / {root}/twice rw - nfs server:/a rw
36 22 0:45 / {root}/twice rw - tmpfs tmpfs rw
short line
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("data one", FileSystem("nfs4", "{root}/data one", True, False)),
        ("share/runs", FileSystem("cifs", "{root}/share", True, False)),
        ("share/disk/runs", FileSystem("xfs", "{root}/share/disk")),
        ("big", FileSystem("lustre", "{root}/big", True, True)),
        ("ssh", FileSystem("fuse.sshfs", "{root}/ssh", True, False)),
        ("shared", FileSystem("ext4", "/")),
        ("twice", FileSystem("tmpfs", "{root}/twice")),
    ],
)
def test_kind_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, expected: FileSystem
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS.replace("{root}", str(tmp_path)))
    monkeypatch.setattr(filesystem, "_MOUNTINFO", table)
    (tmp_path / folder).mkdir(parents=True)
    found = file_system_of(tmp_path / folder / "not" / "there" / "run.h5")
    assert (found.kind, found.mount) == (expected.kind, expected.mount.replace("{root}", str(tmp_path)))
    assert (found.network, found.ordered) == (expected.network, expected.ordered)
    if expected.ordered:
        refuse_unordered(tmp_path / folder)
    else:
        with pytest.raises(InputFileError, match=r"network file system"):
            refuse_unordered(tmp_path / folder)


def test_mounts_of_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "/dev/disk3s1 on / (apfs, local)\n//me@host/lab on /Volumes/lab (1) (smbfs, nodev)\nodd\n"

    class Done:
        stdout = text

    monkeypatch.setattr(filesystem.subprocess, "run", lambda *args, **more: Done)
    assert filesystem._mac_mounts() == [("/", "apfs"), ("/Volumes/lab (1)", "smbfs")]


def test_nothing_known_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_MOUNTINFO", tmp_path / "absent")
    refuse_unordered(tmp_path)
