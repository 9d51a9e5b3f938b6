"""Whose disk this is: ``disk.toml`` and the lock that keeps a second process away."""

from __future__ import annotations

import errno
import fcntl
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from amberblob.errors import DiskInUse, DiskMismatch
from amberblob.ids import valid_ulid
from chunkstore.fileops import FileOps

DISK_FORMAT = 1
IDENTITY_NAME = "disk.toml"
LOCK_NAME = "lock"
_HARMLESS = {"lost+found", LOCK_NAME, IDENTITY_NAME + ".tmp"}
_HEADING = b"# An AmberBlob disk. Written by the node; do not edit. rfc/0003-on-disk-format.md tells the layout.\n"


@dataclass(slots=True, kw_only=True)
class DiskIdentity:
    """The content of ``disk.toml``.

    Attributes:
        disk_id: ULID, given once when the folder is formatted.
        slots_created: slots whose database was made durable; if one is missing later, it is lost.
    """

    disk_id: str
    cluster_id: str
    node_id: str
    format_version: int = DISK_FORMAT
    slots_created: set[int] = field(default_factory=set)


def read_identity(disk: Path) -> DiskIdentity:
    """What ``disk.toml`` says.

    Raises:
        FileNotFoundError: there is none.
        DiskMismatch: it cannot be understood, or is of a format that this version does not know.
    """
    path = disk / IDENTITY_NAME
    try:
        values = tomllib.loads(path.read_text())
        identity = DiskIdentity(
            disk_id=values["disk_id"],
            cluster_id=values["cluster_id"],
            node_id=values["node_id"],
            format_version=values["format_version"],
            slots_created={int(slot) for slot in values.get("slots_created", [])},
        )
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DiskMismatch(
            f"{path} cannot be understood ({error!r}). Restore it from a backup, or move the folder {disk} away and "
            "let the node rebuild an empty one from its peers."
        ) from error
    if identity.format_version != DISK_FORMAT:
        raise DiskMismatch(
            f"{disk} has format {identity.format_version}, and this version of AmberBlob knows format {DISK_FORMAT}. "
            "Start the version that wrote the disk, or upgrade this one."
        )
    if not valid_ulid(identity.disk_id):
        raise DiskMismatch(f"{path} has the disk id {identity.disk_id!r}, which is no ULID. Restore it from a backup.")
    return identity


def write_identity(disk: Path, identity: DiskIdentity, ops: FileOps) -> None:
    """Put ``disk.toml`` in place, atomically and durably."""
    values = {
        "format_version": identity.format_version,
        "disk_id": identity.disk_id,
        "cluster_id": identity.cluster_id,
        "node_id": identity.node_id,
        "slots_created": sorted(identity.slots_created),
    }
    ops.write_file(disk / IDENTITY_NAME, _HEADING + tomli_w.dumps(values).encode())


def open_identity(disk: Path, identity_if_new: DiskIdentity, ops: FileOps) -> tuple[DiskIdentity, bool]:
    """Read the disk's identity, or format an empty folder; returns it and whether it is new.

    Raises:
        DiskMismatch: it is another cluster's or node's disk, of an unknown format, or not empty and no disk.
    """
    try:
        identity = read_identity(disk)
    except FileNotFoundError:
        strangers = sorted(name for name in os.listdir(disk) if name not in _HARMLESS)
        if strangers:
            raise DiskMismatch(
                f"{disk} is not empty (it holds {', '.join(strangers[:3])}) and has no {IDENTITY_NAME}, so it is not "
                "an AmberBlob disk. Give an empty folder, or restore the file if it was one."
            ) from None
        write_identity(disk, identity_if_new, ops)
        return identity_if_new, True
    for name, seen, wanted in (
        ("cluster", identity.cluster_id, identity_if_new.cluster_id),
        ("node", identity.node_id, identity_if_new.node_id),
    ):
        if seen != wanted:
            raise DiskMismatch(
                f"{disk} belongs to {name} {seen!r}, and this node is of {name} {wanted!r}. Correct the {name} id or "
                "the disk's path in the configuration; to use the disk here anyway, empty it first."
            )
    return identity, False


class DiskLock:
    """An exclusive ``flock`` on ``<disk>/lock``, which holds the process id; let go by close or by death."""

    def __init__(self, disk: Path) -> None:
        """Take the lock.

        Raises:
            DiskInUse: another process has it.
        """
        self._fd = os.open(disk / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise DiskInUse(
                f"{disk} is in use by process {holder or 'unknown'}. One process serves a disk: stop that one first."
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let go."""
        os.close(self._fd)
