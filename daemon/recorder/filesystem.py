"""On which file system a path lies, and whether others see what is written there in order.

Owns that one question for `mdd doctor` and for the SWMR storage, whose readers rely on what was written first
being seen first. Network file systems that keep copies at each client (NFS, SMB) do not promise that; those
made for clusters (Lustre, GPFS, BeeGFS, Ceph) do. Linux says it in /proc/self/mountinfo, macOS by `mount`,
Windows by the kind of drive. Where nothing is known nothing is refused. Any thread.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from microdiffusion.errors import InputFileError

_MOUNTINFO = Path("/proc/self/mountinfo")
_NETWORK = frozenset((
    "9p", "acfs", "afpfs", "afs", "cifs", "coda", "davfs", "drvfs", "ftp", "fuse.cifs",
    "fuse.curlftpfs", "fuse.davfs2", "fuse.gcsfuse", "fuse.rclone", "fuse.s3fs", "fuse.smbnetfs",
    "fuse.sshfs", "fuse.vmhgfs-fuse", "ncpfs", "nfs", "nfs4", "prl_fs", "smb2", "smb3", "smbfs",
    "vboxsf", "vmhgfs", "webdav", "webdavfs",
))  # fmt: skip
_CLUSTER = frozenset((
    "beegfs", "ceph", "fuse.ceph", "fuse.glusterfs", "glusterfs", "gfs2", "gpfs", "lustre", "ocfs2",
    "panfs", "pvfs2", "wekafs",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system.

    Attributes
    ----------
    kind : str
        As the system calls it, such as ext4, nfs4 or smbfs; empty where it does not say.
    mount : str
        Where it is mounted, or the drive.
    network : bool
        Whether the disk is another machine's.
    ordered : bool
        Whether readers elsewhere see writes in the order in which they were made.
    """

    kind: str
    mount: str
    network: bool = False
    ordered: bool = True


def file_system_of(path: Path) -> FileSystem:
    """Return the file system that a path lies on, or will: it need not exist."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    if sys.platform == "win32":
        return _of_drive(path)
    mounts = _mac_mounts() if sys.platform == "darwin" else _linux_mounts()
    return _deepest(path.resolve(), mounts)


def refuse_unordered(path: Path) -> None:
    """Refuse a folder where the SWMR storage cannot work.

    Raises
    ------
    InputFileError
        It lies on a network file system without ordered writes.
    """
    found = file_system_of(path)
    if not found.ordered:
        raise InputFileError(
            f"{path} lies on a network file system ({found.kind}, {found.mount}), where readers may see what "
            "is written in another order: set recorder.output to a local folder, or "
            'recorder.layout = "static".'
        )


def _named(kind: str, mount: str) -> FileSystem:
    kind = kind.lower()
    unordered = kind in _NETWORK
    return FileSystem(kind, mount, network=unordered or kind in _CLUSTER, ordered=not unordered)


def _deepest(path: Path, mounts: list[tuple[str, str]]) -> FileSystem:
    """Return the mount that a path lies in; of two at the same place the later one covers the other."""
    best: tuple[int, str, str] | None = None
    for mount, kind in mounts:
        if path.is_relative_to(mount) and (best is None or len(Path(mount).parts) >= best[0]):
            best = len(Path(mount).parts), kind, mount
    return _named(best[1], best[2]) if best is not None else FileSystem("", "")


def _linux_mounts() -> list[tuple[str, str]]:
    try:
        lines = _MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, more = before.split(" "), after.split(" ")
        if len(fields) > 4 and more[0]:
            # Blanks in names are written as octal numbers.
            mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            found.append((mount, more[0]))
    return found


def _mac_mounts() -> list[tuple[str, str]]:
    try:
        text = subprocess.run(["/sbin/mount"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    lines = (re.match(r".* on (/.*) \(([^,)]+)", line) for line in text.splitlines())
    return [(match[1], match[2]) for match in lines if match]


def _of_drive(path: Path) -> FileSystem:
    drive = path.anchor
    if drive.startswith("\\\\"):
        return FileSystem("smb", drive, network=True, ordered=False)
    import ctypes

    windll = getattr(ctypes, "windll", None)
    remote = windll is not None and windll.kernel32.GetDriveTypeW(drive) == 4  # DRIVE_REMOTE
    return FileSystem("smb" if remote else "", drive, network=remote, ordered=not remote)
